"""What the tab Convergence says: metrics of arms of Runs as curves, and when each reaches a level.

An arm's line is the median of its Runs, its band reaches from the least to the most. What is read off is read
off the curves as they are drawn."""

import html
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from charts import choose_looks
from components import div
from convergence_arms import Arm, Line, Measured, group_by_arm, label_groups, with_all_seeds
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from gear_studio.analysis.convergence import Curve, smooth, speed_up, speed_up_over_seeds, steps_to
from gear_studio.errors import InputError
from gear_studio.files import one_line
from gear_studio.runs import Run
from gear_studio.studies import CURVES, study_of

MOST_RUNS = 64  # that one may choose; their other seeds come on top
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
        groups = group_by_arm(runs, with_all_seeds(runs, names) if asked.all_seeds else names)
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

    def runs_by_arm(self, runs: Measured) -> dict[str, list[Run]]:
        """The Runs that are drawn, by the label of their arm."""
        return {arm.label: [runs[line.name] for line in arm.lines] for arm in self.arms}

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
        labels = label_groups([group for group, _ in drawn])
        looks = choose_looks([runs[group[0]].config["arm"] for group, _ in drawn])
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
        table = f'<table class="codes arms"><tr>{head}</tr>{"".join(rows)}</table>'
        said = 'class="wide" tabindex="0" role="region" aria-label="When each arm gets there"'
        return f"<div {said}>{table}</div>"

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


def _order(measured: Any) -> list[str]:
    """The metrics of all Runs: first those of the studies' curves, then of validation, then the others."""
    keys = {key for rows in measured for row in rows for key in row} - {"step"}
    curves = list(CURVES)
    place = {key: curves.index(key) if key in curves else len(curves) for key in keys}
    return sorted(keys, key=lambda key: (place[key], not key.startswith("val_"), key))
