"""Charts in Vega-Lite, which Gradio's page draws: what those of several tabs have in common."""

import itertools
import json
from typing import Any

from gradio.components.plot import PlotData

from gear_studio.plots.style import DASHES, INK, OKABE_ITO, PALE

ARMS = ("baseline", "continued", "gear")  # their colours are those of every chart


def frame(said: str, layers: list[dict[str, Any]], height: int) -> dict[str, Any]:
    """A chart of layers in Vega-Lite's grammar, as wide as its place. said: what it shows, for those who
    cannot see it. height: in pixels."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "description": said,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit", "contains": "padding"},
        "background": "white",
        "padding": 10,
        "usermeta": {"embedOptions": {"actions": {"export": True, "source": False, "compiled": False,
                                                  "editor": False}}},
        "config": {
            "font": "system-ui, sans-serif",
            "view": {"stroke": None},
            "axis": {"labelColor": INK, "titleColor": INK, "gridColor": PALE, "domainColor": INK,
                     "tickColor": INK, "tickCount": 7,
                     "labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": 500},
            "legend": {"labelColor": INK, "labelFontSize": 12, "symbolStrokeWidth": 3,
                       "symbolType": "stroke", "symbolOpacity": 1},
        },
        "layer": layers,
    }  # fmt: skip


def as_plot(chart: dict[str, Any]) -> PlotData:
    """A chart as gr.Plot takes it."""
    return PlotData(type="altair", plot=json.dumps(chart))


def choose_looks(arms: list[str]) -> list[tuple[str, tuple[float, ...]]]:
    """A colour and a dash for each of what is drawn. arms: the arms of their Runs; those of ARMS look alike
    in every chart, whatever stands beside them."""
    numbers: list[int | None] = []
    for arm in arms:
        number = ARMS.index(arm) if arm in ARMS else None
        numbers.append(None if number in numbers else number)
    free = itertools.count(len(ARMS))
    chosen = [next(free) if number is None else number for number in numbers]
    looks = []
    for number in chosen:
        dash: Any = DASHES[(number + number // len(OKABE_ITO)) % len(DASHES)]
        pixels = (1.0, 0.0) if dash == "-" else tuple(2.6 * part for part in dash[1])
        looks.append((OKABE_ITO[number % len(OKABE_ITO)], pixels))
    return looks
