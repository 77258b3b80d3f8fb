"""The chart of the tab Convergence in Vega-Lite, drawn by the page; hovering tells run, seed, step."""

import math
from typing import Any

from charts import as_plot, frame
from convergence_look import UNITS, Look
from gradio.components.plot import PlotData

from gear_studio.plots.style import INK
from gear_studio.studies import CURVES

MOST_POINTS = 400  # of a line that are drawn; what is read off is read off all


def draw_chart(look: Look) -> PlotData | None:
    """For gr.Plot; None where there is nothing to show."""
    return as_plot(describe_chart(look)) if look.arms else None


def describe_chart(look: Look) -> dict[str, Any]:
    """The chart in Vega-Lite's grammar."""
    scale = {"domain": look.labels, "range": [arm.color for arm in look.arms]}
    dashes = {"domain": scale["domain"], "range": [arm.dash for arm in look.arms]}
    positive = "vertical" in look.logarithmic
    linear, log = {"type": "linear", "zero": False, "nice": True}, {"type": "log", "nice": False}
    across, up = (log if name in look.logarithmic else linear for name in ("horizontal", "vertical"))
    x = {"field": "x", "type": "quantitative", "scale": across, "title": UNITS[look.asked.against]}
    title = CURVES.get(str(look.metric), look.metric)
    y = {"field": "y", "type": "quantitative", "scale": up, "title": title}
    key = {"orient": "top", "direction": "vertical", "title": None, "labelLimit": 280}
    by_arm = {"field": "arm", "type": "nominal", "legend": key if len(look.arms) <= 8 else None}
    color, dash = {**by_arm, "scale": scale}, {**by_arm, "scale": dashes}
    of_runs, of_arms, reached = _rows(look)
    if positive:
        of_runs = [row for row in of_runs if row["y"] > 0]
        of_arms = [row for row in of_arms if row["low"] > 0]
    shared = {"x": x, "y": y, "color": color}
    several = [arm.label for arm in look.arms if len(arm.lines) > 1]
    band = {**shared, "y": {**y, "field": "low"}, "y2": {"field": "high"}}
    told = [
        {"field": "run", "title": "run"},
        {"field": "seed", "title": "seed"},
        {"field": "step", "title": "step", "format": ","},
        {"field": "x", "title": UNITS[look.asked.against], "format": ",.6~g"},
        {"field": "y", "title": "value", "type": "quantitative", "format": ".5~g"},
    ]
    for each in told:
        each.setdefault("type", "quantitative" if "format" in each else "nominal")
    if look.asked.against == "steps":
        del told[3]
    nearest = {"type": "point", "on": "pointermove", "nearest": True, "clear": "pointerout"}
    at_pointer = {"param": "pointed", "empty": False, "value": 1}
    ruler = {"values": [{"y": look.level, "said": f"level {look.level:.4g}"}]}
    shown = not positive or look.level > 0
    layers: list[dict[str, Any]] = [
        {
            "data": {"values": [row for row in of_arms if row["arm"] in several]},
            "mark": {"type": "area", "opacity": 0.18},
            "encoding": band,
        },
        {
            "data": {"values": [row for row in of_runs if row["arm"] in several]},
            "mark": {"type": "line", "strokeWidth": 0.9, "opacity": 0.6},
            "encoding": {**shared, "detail": {"field": "run", "type": "nominal"}},
        },
        {
            "data": {"values": of_arms},
            "mark": {"type": "line", "strokeWidth": 2.6},
            "encoding": {**shared, "strokeDash": dash},
        },
        {
            "data": ruler if shown else {"values": []},
            "mark": {"type": "rule", "color": INK, "strokeDash": [6, 4]},
            "encoding": {"y": y},
        },
        {
            "data": ruler if shown else {"values": []},
            "mark": {"type": "text", "align": "right", "dy": -7, "color": INK, "fontSize": 12},
            "encoding": {"y": y, "x": {"value": "width"}, "text": {"field": "said"}},
        },
        {
            "data": {"values": reached if shown else []},
            "mark": {"type": "point", "shape": "diamond", "filled": True, "size": 130,
                     "opacity": 1, "stroke": "white"},
            "encoding": shared,
        },
        {
            "data": {"values": of_runs},
            "params": [{"name": "pointed", "select": nearest}],
            "mark": {"type": "point", "filled": True, "size": 80},
            "encoding": {
                **shared,
                "opacity": {"condition": at_pointer, "value": 0},
                "tooltip": told,
            },
        },
    ]  # fmt: skip
    return frame(look.sentence, [layer for layer in layers if layer["data"]["values"]], 400)


def _rows(look: Look) -> tuple[list[dict], list[dict], list[dict]]:
    """Rows of the chart: of every Run, of every arm, and where arms reach the level."""
    of_runs, of_arms, reached = [], [], []
    for arm in look.arms:
        for line in arm.lines:
            for i in _thin(len(line.steps)):
                at, value = float(line.at[i]), float(line.values[i])
                known = {
                    "arm": arm.label,
                    "run": line.name,
                    "seed": line.seed,
                    "step": int(line.steps[i]),
                }
                of_runs.append({**known, "x": at, "y": value})
        rows = arm.median()
        of_arms += [rows[i] for i in _thin(len(rows))]
        place = look.reached(arm)
        if not math.isinf(place):
            reached.append({"arm": arm.label, "x": place, "y": look.level})
    return of_runs, of_arms, reached


def _thin(count: int) -> list[int]:
    """Numbers below `count`, evenly spread, first and last included, at most about MOST_POINTS."""
    every = math.ceil(count / MOST_POINTS) or 1
    return sorted({*range(0, count, every), count - 1}) if count else []
