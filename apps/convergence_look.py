"""What the tab Convergence shows: metrics of Runs as curves, when each reaches a level, and the chart.

Runs that differ in their seed alone are one arm: its line is their median, its band reaches from the least
to the most. What is read off is read off the curves as they are drawn."""

import html
import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from components import div
from gradio.components.plot import PlotData
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from runs_on_offer import RunsOnOffer, study_name

from gear_studio.analysis.convergence import Curve, smooth, speed_up, speed_up_over_seeds, steps_to
from gear_studio.errors import InputError
from gear_studio.files import one_line
from gear_studio.plots.style import DASHES, INK, OKABE_ITO, PALE
from gear_studio.runs import Run
from gear_studio.studies import CURVES, SHIPPED, study_of

ARMS = ("baseline", "continued", "gear")  # their colours are those of every chart
MOST_RUNS = 64  # that one may choose; their other seeds come on top
MOST_POINTS = 400  # of a line that are drawn; what is read off is read off all
DEEPEST = 8  # parents of parents that are compared
UNITS = {"steps": "training step", "pictures": "pictures seen", "time": "minutes of training"}
_PAPER = study_of("convergence").paper
PAPER = {  # metric -> what the paper has of the same
    "val_fd": "steps to the same gFID without guidance",
    "val_ntp": "text to image: steps to the baseline's final NTP / alignment loss",
    "val_alignment": "text to image: steps to the baseline's final NTP / alignment loss",
}

Names = Annotated[list[str], BeforeValidator(lambda value: value or [])]


class Asked(BaseModel):
    """What a visitor asks to see. over: measurements that smoothing takes together. level: None where the
    control's last value is meant. arm, control: names of arms; others than there are count as none."""

    model_config = ConfigDict(strict=True, frozen=True)

    runs: Annotated[Names, Field(max_length=MOST_RUNS)]
    all_seeds: bool = True
    metric: str | None = "val_ntp"
    against: Literal["steps", "pictures", "time"] = "steps"
    smoothing: Literal["none", "exponential", "rolling"] = "none"
    over: Annotated[int, Field(ge=1, le=200)] = 5
    logarithmic: Annotated[list[Literal["horizontal", "vertical"]], BeforeValidator(lambda v: v or [])] = []
    arm: str | None = None
    control: str | None = None
    level: Annotated[float, Field(allow_inf_nan=False)] | None = None

    @classmethod
    def of(cls, **values: Any) -> "Asked":
        """Raises InputError naming the first value that cannot be."""
        try:
            return cls(**values)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            held = one_line(repr(problem["input"]))[:60]
            raise InputError(f"{where} is {held}: {problem['msg'].lower()}") from error


class Measured(dict[str, Run]):
    """The Runs whose metrics can be shown, by name: those that the page offers; the studies' and those in the
    page's folder that hold no weights, or none yet."""

    def __init__(self, runs: RunsOnOffer):
        super().__init__({name: runs[name] for name in list(runs.names)})
        there = {run.folder.resolve() for run in self.values()}
        folders: dict[Path, Callable[[str], str]] = {SHIPPED / "runs": study_name}
        if any(folder.parent == runs.folder.resolve() for folder in there):
            folders[runs.folder] = str
        for folder, name_of in folders.items():
            for path in sorted(folder.glob("*/metrics.jsonl")):
                if path.parent.resolve() in there:
                    continue
                with suppress(ValueError, OSError):  # damaged; tab Open names it
                    run = Run(path.parent)
                    name = name_of(run.name)
                    self[name if name not in self else f"{folder}/{run.name}"] = run


@dataclass(frozen=True)
class Line:
    """One Run's metric, (n,) each. at, values: as drawn. steps, raw: as measured."""

    name: str
    seed: int
    steps: np.ndarray
    raw: np.ndarray
    at: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone. color, dash: of its line; dash in pixels."""

    label: str
    color: str
    dash: tuple[float, ...]
    lines: tuple[Line, ...]

    def median(self) -> list[dict]:
        """Median, least and most of the Runs at the steps that all have measured, in their order."""
        steps = sorted(set.intersection(*(set(line.steps) for line in self.lines)))
        rows = []
        for step in steps:
            places = [int(np.searchsorted(line.steps, step)) for line in self.lines]
            at, values = (
                [float(getattr(line, name)[i]) for line, i in zip(self.lines, places, strict=True)]
                for name in ("at", "values")
            )
            rows.append(
                {
                    "arm": self.label,
                    "x": float(np.median(at)),
                    "y": float(np.median(values)),
                    "low": min(values),
                    "high": max(values),
                }
            )
        return rows

    def last(self) -> float:
        return float(np.median([line.values[-1] for line in self.lines]))


class Look:
    """The metrics of the Runs that are asked for.

    arms: what is drawn. metrics: those on offer, of any of the Runs. metric: the one shown; None where there
    is none. problems: what is not shown, and why. logarithmic: the axes that are. arm, control: the two
    compared; None where there are fewer than two. low, high, step: range of the level and its fineness.
    level: the value that is read off."""

    def __init__(self, runs: Measured, asked: Asked):
        self.asked = asked
        self.problems: list[str] = []
        names = list(dict.fromkeys(asked.runs))
        self.problems += [f"{name} is not among the runs" for name in names if name not in runs]
        names = [name for name in names if name in runs]
        groups = group_by_arm(runs, _with_all_seeds(runs, names) if asked.all_seeds else names)
        measured = {name: self._read_metrics(name, runs[name]) for group in groups for name in group}
        self.metrics = _order(measured.values())
        self.metric = asked.metric if asked.metric in self.metrics else next(iter(self.metrics), None)
        self.arms = self._draw_arms(runs, groups, measured) if self.metric else []
        values = np.concatenate([line.values for arm in self.arms for line in arm.lines] or [np.zeros(1)])
        self.logarithmic = set(asked.logarithmic)
        if "vertical" in self.logarithmic and (values <= 0).all():
            self.logarithmic.remove("vertical")
            self.problems.append("No value is positive: the vertical axis stays linear.")
        elif "vertical" in self.logarithmic and (values <= 0).any():
            self.problems.append("Values that are not positive have no place on a logarithmic axis.")
        self._choose_pair(runs)
        self.level = self._choose_level()

    @property
    def labels(self) -> list[str]:
        return [arm.label for arm in self.arms]

    @property
    def pair(self) -> tuple[str | None, str | None]:
        """Labels of the arm and of the control."""
        return self.arm.label if self.arm else None, self.control.label if self.control else None

    @property
    def mark(self) -> float:
        """The level as a slider of this fineness shows it."""
        return round(round(self.level / self.step) * self.step, 12)

    def _read_metrics(self, name: str, run: Run) -> list[dict]:
        try:
            rows = run.metrics
        except (ValueError, OSError) as error:
            self.problems.append(f"{name} is left out: {one_line(error)}")
            return []
        if not rows:
            self.problems.append(f"{name} is left out: it holds no metrics (metrics.jsonl)")
        return rows

    def _draw_arms(
        self, runs: Measured, groups: list[list[str]], measured: dict[str, list[dict]]
    ) -> list[Arm]:
        drawn = []
        for group in groups:
            lines = [self._draw_line(name, runs[name], measured[name]) for name in group if measured[name]]
            drawn.append((group, tuple(line for line in lines if line)))
        drawn = [(group, lines) for group, lines in drawn if lines]
        labels = _label([group for group, _ in drawn])
        looks = _choose_looks([runs[group[0]].config["arm"] for group, _ in drawn])
        return [
            Arm(label, *look, lines) for label, look, (_, lines) in zip(labels, looks, drawn, strict=True)
        ]

    def _draw_line(self, name: str, run: Run, rows: list[dict]) -> Line | None:
        asked, batch = self.asked, run.config["recipe"].get("batch_size")
        if asked.against == "pictures" and not (isinstance(batch, int) and batch > 0):
            self.problems.append(f"{name} is left out: its config.json does not say its batch_size")
            return None
        having = [row for row in rows if row.get(self.metric, self) is not self]
        points = {}
        for row in having:  # where a step was measured twice, the last counts
            minutes = (row.get("seconds") or 0) / 60
            at = {"steps": row["step"], "pictures": row["step"] * (batch or 0), "time": minutes}
            if row[self.metric] is not None and math.isfinite(row[self.metric]) and at[asked.against] > 0:
                points[row["step"]] = at[asked.against], row[self.metric]
        if not points:
            lack = (
                f"no {self.metric}" if not having else f"no number for {self.metric} against {asked.against}"
            )
            self.problems.append(f"{name} is left out: it has {lack}")
            return None
        if len(points) < len(having):
            self.problems.append(f"{name}: {len(having) - len(points)} of {len(having)} values are left out")
        steps = np.array(sorted(points), dtype=float)
        at, raw = np.array([points[step] for step in steps], dtype=float).T
        values = raw if asked.smoothing == "none" else smooth(raw, asked.smoothing, asked.over)
        return Line(name, run.config["seed"], steps, raw, at, values)

    def _choose_pair(self, runs: Measured) -> None:
        """Which two arms are compared: those asked for, else `gear` with `continued`, or the last with the
        first."""
        by_label = {arm.label: arm for arm in self.arms}
        kinds = {arm.label: runs[arm.lines[0].name].config["arm"] for arm in self.arms}

        def pick(kind: str, instead: Sequence[Arm], unlike: Arm | None = None) -> Arm | None:
            alike = [each for each in self.arms if kinds[each.label] == kind]
            return next((each for each in (*alike, *instead) if each is not unlike), None)

        asked_control = by_label.get(self.asked.control or "")
        self.arm = by_label.get(self.asked.arm or "") or pick("gear", self.arms[::-1], asked_control)
        self.control = asked_control or pick("continued", self.arms, self.arm)

    def _choose_level(self) -> float:
        shown = np.concatenate([line.values for arm in self.arms for line in arm.lines] or [np.zeros(1)])
        low, high = float(shown.min()), float(shown.max())
        self.step = 10.0 ** (math.floor(math.log10(max(high - low, abs(high) * 1e-6, 1e-12))) - 3)
        self.low, self.high = (
            round(whole(end / self.step) * self.step, 12)
            for end, whole in ((low, math.floor), (high, math.ceil))
        )
        control = self.control or self.arm
        last = control.last() if control else low
        asked = self.asked.level
        # A slider cannot stand at every value: where it stands nearest to the last one, that is meant.
        return last if asked is None or abs(asked - last) <= self.step else min(max(asked, low), high)

    @property
    def sign(self) -> float:
        """1 for a metric that falls in the control's course, -1 for one that rises."""
        lines = (self.control or self.arms[0]).lines
        return -1.0 if sum(line.values[-1] - line.values[0] for line in lines) > 0 else 1.0

    def _curve(self, line: Line) -> Curve:
        return line.at, self.sign * line.values

    def reached(self, arm: Arm) -> float:
        """Where an arm first reaches the level: the median over its seeds, infinity where it never does."""
        places = [steps_to(*self._curve(line), self.sign * self.level) for line in arm.lines]
        return float(np.quantile(places, 0.5, method="inverted_cdf"))

    def compare(self, arm: Arm, control: Arm) -> str:
        """The speed-up of an arm over another at the level; seeds that both have are paired."""
        return self._say_speed_up(arm, control, self._curve, self.sign * self.level)

    def compare_as_tables(self, arm: Arm, control: Arm) -> str:
        """As the studies' tables count it: as measured, in steps, to each control's own last value."""
        return self._say_speed_up(arm, control, lambda line: (line.steps, self.sign * line.raw), None)

    def _say_speed_up(self, arm: Arm, control: Arm, curve: Any, goal: float | None) -> str:
        controls, ours = ({line.seed: curve(line) for line in each.lines} for each in (control, arm))
        seeds = sorted(controls.keys() & ours.keys())
        if not seeds:
            return "no seed in common"
        if len(seeds) == 1:
            ratio = speed_up(controls[seeds[0]], ours[seeds[0]], goal)
            said = f"{ratio:.2f}x" if ratio else "not reached"
        else:
            pairs = [controls[seed] for seed in seeds], [ours[seed] for seed in seeds]
            said = str(speed_up_over_seeds(*pairs, goal=goal))
        return said.replace("infx", "inf").replace("inf", "control not reached")

    def say_place(self, place: float) -> str:
        if self.asked.against == "time":
            return f"{place:,.1f} minutes"
        return f"{place:,.0f} {self.asked.against}"

    @property
    def sentence(self) -> str:
        """What is read off, in words."""
        if not self.arms:
            return "Nothing to show: choose runs that have a metric in common."
        if self.arm is None or self.control is None:
            return f"{self._say_reached(self.arms[0])}. Choose a second run to compare it with."
        ours = self._say_reached(self.arm)
        theirs = self._say_reached(self.control)
        what = f"{self.metric} {'falls' if self.sign > 0 else 'rises'} to {self.level:.4g}"
        if self.arm is self.control:
            return f"{what}: {ours}."
        said = self.compare(self.arm, self.control)
        return f"{what}: {ours}, {theirs}. Speed-up of {self.arm.label} over {self.control.label}: {said}."

    @property
    def answer(self) -> str:
        """The sentence, as HTML."""
        return div("big", self.sentence)

    def _say_reached(self, arm: Arm) -> str:
        place = self.reached(arm)
        seeds = f" (median of {len(arm.lines)} seeds)" if len(arm.lines) > 1 else ""
        if math.isinf(place):
            longest = self.say_place(max(line.at[-1] for line in arm.lines))
            return f"{arm.label} never gets there within {longest}{seeds}"
        return f"{arm.label} gets there after {self.say_place(place)}{seeds}"

    @property
    def table(self) -> str:
        """Every arm: its colour, its Runs, where it reaches the level and its speed-up; as HTML."""
        if not self.arms:
            return ""
        control = self.control or self.arms[0]
        rows = []
        for arm in self.arms:
            place = self.reached(arm)
            cells = (
                ("seed " if len(arm.lines) == 1 else "seeds ") + ", ".join(str(e.seed) for e in arm.lines),
                f"{arm.last():.4g}",
                "never" if math.isinf(place) else self.say_place(place),
                self.compare(arm, control),
                self.compare_as_tables(arm, control),
            )
            swatch = f'<i class="swatch" style="background:{arm.color}"></i>'
            rows.append(
                f"<tr><td>{swatch}</td><td>{html.escape(arm.label)}</td>"
                + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
                + "</tr>"
            )
        heads = (
            "arm",
            "of",
            "last value",
            f"reaches {self.level:.4g} after",
            f"speed-up over {control.label}",
            "the same as the studies' tables count it",
        )
        head = "<th></th>" + "".join(f"<th>{html.escape(each)}</th>" for each in heads)
        return f'<div class="wide"><table class="codes arms"><tr>{head}</tr>{"".join(rows)}</table></div>'

    @property
    def notes(self) -> str:
        """How to read chart and table, what the paper says, and what is left out; as HTML."""
        if not self.arms:
            return "".join(div("note", problem) for problem in self.problems)
        asked = self.asked
        said = ["Thin lines are seeds, the bold one is their median, the band reaches from least to most."]
        if asked.smoothing != "none":
            said.append(
                f"Smoothed: {asked.smoothing} mean over {asked.over} measurements, which also delays what is "
                "read off."
            )
        if asked.against == "time":
            said.append(
                "Minutes are those of the machine that trained the run, and of whatever else ran there."
            )
        said.append(
            "The first crossing counts, interpolated between measurements; of several seeds the median, in "
            "brackets a bootstrap's 95 % interval. The studies' tables take what was measured, in steps, to "
            "each control's own last value."
        )
        lines = [" ".join(said)]
        if self.metric in PAPER and (key := PAPER[self.metric]) in _PAPER:
            lines.append(
                f"The paper, on its own data and at its scale: {key}: {_PAPER[key]}. Its curves are of other "
                "measures and data than these, so that none of its points has a place in this chart."
            )
        return "".join(div("note", line) for line in (*lines, *self.problems))

    @property
    def chart(self) -> PlotData | None:
        """For gr.Plot: a chart in Vega-Lite, which Gradio's page draws."""
        return PlotData(type="altair", plot=json.dumps(self.drawing())) if self.arms else None

    def drawing(self) -> dict[str, Any]:
        """The chart in Vega-Lite's grammar."""
        scale = {"domain": self.labels, "range": [arm.color for arm in self.arms]}
        dashes = {"domain": scale["domain"], "range": [arm.dash for arm in self.arms]}
        positive = "vertical" in self.logarithmic
        linear, log = {"type": "linear", "zero": False, "nice": True}, {"type": "log", "nice": False}
        across, up = (log if name in self.logarithmic else linear for name in ("horizontal", "vertical"))
        x = {"field": "x", "type": "quantitative", "scale": across, "title": UNITS[self.asked.against]}
        title = CURVES.get(str(self.metric), self.metric)
        y = {"field": "y", "type": "quantitative", "scale": up, "title": title}
        key = {"orient": "top", "direction": "vertical", "title": None, "labelLimit": 280}
        by_arm = {"field": "arm", "type": "nominal", "legend": key if len(self.arms) <= 8 else None}
        color, dash = {**by_arm, "scale": scale}, {**by_arm, "scale": dashes}
        of_runs, of_arms, reached = self._points()
        if positive:
            of_runs = [row for row in of_runs if row["y"] > 0]
            of_arms = [row for row in of_arms if row["low"] > 0]
        shared = {"x": x, "y": y, "color": color}
        several = [arm.label for arm in self.arms if len(arm.lines) > 1]
        band = {**shared, "y": {**y, "field": "low"}, "y2": {"field": "high"}}
        told = [
            {"field": "run", "title": "run"},
            {"field": "seed", "title": "seed"},
            {"field": "step", "title": "step", "format": ","},
            {"field": "x", "title": UNITS[self.asked.against], "format": ",.6~g"},
            {"field": "y", "title": "value", "type": "quantitative", "format": ".5~g"},
        ]
        for each in told:
            each.setdefault("type", "quantitative" if "format" in each else "nominal")
        if self.asked.against == "steps":
            del told[3]
        nearest = {"type": "point", "on": "pointermove", "nearest": True, "clear": "pointerout"}
        at_pointer = {"param": "pointed", "empty": False, "value": 1}
        ruler = {"values": [{"y": self.level, "said": f"level {self.level:.4g}"}]}
        shown = not positive or self.level > 0
        drawing: dict[str, Any] = {
            "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
            "description": self.sentence,
            "width": "container",
            "height": 400,
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
            "layer": [
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
            ],
        }  # fmt: skip
        drawing["layer"] = [layer for layer in drawing["layer"] if layer["data"]["values"]]
        return drawing

    def _points(self) -> tuple[list[dict], list[dict], list[dict]]:
        """Rows of the chart: of every Run, of every arm, and where arms reach the level."""
        of_runs, of_arms, reached = [], [], []
        for arm in self.arms:
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
            place = self.reached(arm)
            if not math.isinf(place):
                reached.append({"arm": arm.label, "x": place, "y": self.level})
        return of_runs, of_arms, reached


def _thin(count: int) -> list[int]:
    """Numbers below `count`, evenly spread, first and last included, at most about MOST_POINTS."""
    every = math.ceil(count / MOST_POINTS) or 1
    return sorted({*range(0, count, every), count - 1}) if count else []


def _order(measured: Any) -> list[str]:
    """The metrics of all Runs: first those of the studies' curves, then of validation, then the others."""
    keys = {key for rows in measured for row in rows for key in row} - {"step"}
    curves = list(CURVES)
    place = {key: curves.index(key) if key in curves else len(curves) for key in keys}
    return sorted(keys, key=lambda key: (place[key], not key.startswith("val_"), key))


def same_but_seed(one: Run, other: Run, depth: int = DEEPEST) -> bool:
    """Whether two Runs and all they are built on were asked for alike, seeds aside."""
    if (one.config["stage"], one.config["arm"]) != (other.config["stage"], other.config["arm"]):
        return False  # most often, and soon told
    varying = {"seed": None, "parent": None}
    if _what_is_set(one.config | varying) != _what_is_set(other.config | varying):
        return False
    parents = one.config["parent"], other.config["parent"]
    if None in parents or parents[0] == parents[1]:
        return parents[0] == parents[1]
    try:
        pair = one.parent, other.parent
    except (ValueError, OSError):  # it is gone: what is left of it is its name
        return _without_seed(one, parents[0]) == _without_seed(other, parents[1])
    return bool(depth and pair[0] and pair[1] and same_but_seed(pair[0], pair[1], depth - 1))


def _what_is_set(value: Any) -> Any:
    """A config without what is off, empty or 0: a Run of before there was a setting does not name it."""
    if not isinstance(value, dict):
        return value
    return {key: kept for key, each in value.items() if (kept := _what_is_set(each))}


def _without_seed(run: Run, name: str) -> str:
    return name.replace(f"-s{run.config['seed']}", "", 1)


def _with_all_seeds(runs: Measured, names: list[str]) -> list[str]:
    """Each Run, followed by those that differ from it in their seed alone."""
    found: list[str] = []
    for name in names:
        seeds = {runs[name].config["seed"]}
        found.append(name)
        for other, run in runs.items():
            if run.config["seed"] not in seeds and same_but_seed(runs[name], run):
                seeds.add(run.config["seed"])
                found.append(other)
    return list(dict.fromkeys(found))


def group_by_arm(runs: Measured, names: list[str]) -> list[list[str]]:
    """Names of Runs by arm, in the order of first mention, within an arm by seed."""
    groups: list[list[str]] = []
    for name in names:
        for group in groups:
            seeds = {runs[each].config["seed"] for each in group}
            if runs[name].config["seed"] not in seeds and same_but_seed(runs[group[0]], runs[name]):
                group.append(name)
                break
        else:
            groups.append([name])
    return [sorted(group, key=lambda name: runs[name].config["seed"]) for group in groups]


def _label(groups: list[list[str]]) -> list[str]:
    """A name for each group of Runs: theirs without the seed, where that tells the groups apart."""
    short = [re.sub(r"-s\d+(?= \(|$)", "", group[0]) if len(group) > 1 else group[0] for group in groups]
    return [
        label if short.count(label) == 1 else group[0] for label, group in zip(short, groups, strict=True)
    ]


def _choose_looks(arms: list[str]) -> list[tuple[str, tuple[float, ...]]]:
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
