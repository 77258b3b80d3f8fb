"""The lines of the tab Convergence: which Runs there are to show, and which of them are one arm.

Runs that differ in their seed alone, and that of what they are built on, are one arm."""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from runs_on_offer import RunsOnOffer, study_name

from gear_studio.run_files import run_folders
from gear_studio.runs import Run
from gear_studio.studies import SHIPPED, study_folders
from gear_studio.training.queue import list_trainings

DEEPEST = 8  # parents of parents that are compared


class Measured(dict[str, Run]):
    """The Runs whose metrics can be shown, by name: those that the page offers; the studies' and those in the
    page's folder that hold no weights, or none yet."""

    def __init__(self, runs: RunsOnOffer):
        super().__init__({name: runs[name] for name in list(runs.names)})
        there = {run.folder.resolve() for run in self.values()}
        folders: dict[Path, Callable[[Run], str]] = {SHIPPED / "runs": lambda run: study_name(run.name)}
        own = any(folder.is_relative_to(runs.folder.resolve()) for folder in there)
        if own or list_trainings(runs.folder):
            folders |= dict.fromkeys([runs.folder, *study_folders(runs.folder)], runs.name_of)
        for folder, name_of in folders.items():
            for path in run_folders(folder, "metrics.jsonl"):
                if path.resolve() in there:
                    continue
                with suppress(ValueError, OSError):  # damaged; tab Open names it
                    run = Run(path)
                    name = name_of(run)
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


def with_all_seeds(runs: Measured, names: list[str]) -> list[str]:
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


def label_groups(groups: list[list[str]]) -> list[str]:
    """A name for each group of Runs: theirs without the seed, where that tells the groups apart."""
    short = [re.sub(r"-s\d+(?= \(|$)", "", group[0]) if len(group) > 1 else group[0] for group in groups]
    return [
        label if short.count(label) == 1 else group[0] for label, group in zip(short, groups, strict=True)
    ]
