"""What the tab Train shows: which trainings or study a form asks for, how they stand, and their curves."""

import html
import math
import re
import shlex
from pathlib import Path
from typing import Any, Literal

from charts import as_plot, frame
from components import div
from gradio.components.plot import PlotData
from runs_on_offer import check_name

from gear_studio import data
from gear_studio.errors import InputError
from gear_studio.files import one_line
from gear_studio.models.tokenizer import TokenizerConfig
from gear_studio.places import ZOO, name_parent, shipped_names
from gear_studio.plots.style import OKABE_ITO
from gear_studio.run_files import read_metrics
from gear_studio.studies import CURVES, AskedStudy, World, core_seconds, stage_core_seconds
from gear_studio.training.execution import Execution
from gear_studio.training.jobs import describe_left
from gear_studio.training.queue import ENDED, RUNNING, Queue, Standing, in_a_row, in_folder, shortest
from gear_studio.training.recipes import ARMS, BUDGETS
from gear_studio.training.request import Training

ALL = "all three in a row"
ASKED_BY: dict[str, Literal["caption"] | None] = {"its class": None, "words": "caption"}
BY_NAME = "as the command line finds it"
FIRST_SHOWN = ("ntp", "l1")  # metrics that a chart begins with, where they are measured
TIMINGS = {"step", "seconds"}
MOST_POINTS = 500  # of a line that are drawn
MOST_ENDED = 20  # trainings that have ended in the list
MOST_SEEDS = 20  # of a study
PICTURES = {  # what is shown of a training, written with each checkpoint, and of a study
    "reconstructions": "held-out pictures above, what the tokenizer makes of them below",
    "samples": "drawn by the generator, with guidance 1.5",
    "figure": "the study's measures",
}
STUDY_ADVICE = {
    "paused": "Resume: its trainings go on from where they stand.",
    "stopped": "Resume: what is finished stays, the others go on from their last checkpoints.",
    "failed": "The last it said is below. Resume: what is finished stays, the others go on.",
    "finished": "Its runs are in the lists of all tabs.",
    "running": "It goes on when this page is closed, and when the explorer ends. The curves are of the "
    "trainings under way; Convergence shows all.",
}


def arms_of(stage: str) -> tuple[str, ...]:
    """The arms that a stage, or all three, may have."""
    return ARMS.get("generator" if stage == ALL else stage, ())


def read_form(
    queue: Queue,
    stage: str,
    arm: str | None,
    budget: str,
    quantizer: str,
    source: str,
    condition: str,
    folder: str | None,
    seed: int | None,
    steps: str | int | None,
    name: str | None,
    recipe: str,
    parent: str,
    settings: str | None,
) -> list[Training]:
    """The trainings that a form asks for, in their order. Raises ValueError as `Training` does."""
    folder, name, settings = ((text or "").strip() for text in (folder, name, settings))
    if seed is None:
        raise InputError("seed is empty; give a whole number, such as 0")
    steps = str("" if steps is None else steps).strip()
    if not re.fullmatch(r"(-?\d{1,12})?", steps):
        raise InputError(f"steps is {steps!r}; give a whole number, or leave it empty for the recipe's own")
    try:
        words = tuple(shlex.split(settings))
    except ValueError as error:
        raise InputError(f"settings {settings!r}: {error}; give NAME=VALUE, with blanks between") from error
    on_disk = data.find_source(source).on_disk
    own = quantizer == TokenizerConfig.quantizer
    given: dict[str, Path | None] = {BY_NAME: None, **_shipped_parents()}
    training = Training(
        source,
        "generator" if stage == ALL else stage,
        None if arm in ("", "warmup") else arm,
        recipe,
        seed,
        folder=Path(folder) if on_disk and folder else None,
        parent=given[parent] if parent in given else queue.runs / check_name(parent),
        budget=budget,
        steps=int(steps) if steps else None,
        tokenizer=None if own else World(recipe=recipe, budget=budget).tokenizer_name(quantizer),
        condition=None if stage == "warmup" else ASKED_BY[condition],
        set=words,
        execution=Execution(device=queue.device),
    )
    name = check_name(name) if name else ""
    asked = in_a_row(training, queue.runs, name) if stage == ALL else [in_folder(training, queue.runs, name)]
    for each in asked:
        _ = each.completed().resolved  # which names what no recipe has
    return asked


def _shipped_parents() -> dict[str, Path]:
    """The shipped Runs that a training may build on: what the list calls them, and what a command does."""
    return {name_parent(ZOO / name): Path(name) for name in shipped_names("tokenizer")}


def read_study(queue: Queue, name: str, budget: str, seeds: str | None) -> AskedStudy:
    """The study that a form asks for. seeds: numbers with blanks between. Raises ValueError for what cannot
    be."""
    words = (seeds or "").replace(",", " ").split()
    if not all(re.fullmatch(r"\d{1,10}", word) for word in words) or not 1 <= len(words) <= MOST_SEEDS:
        raise InputError(f"seeds is {seeds!r}; give 1 to {MOST_SEEDS} whole numbers, such as 0 1 2")
    return AskedStudy(name, budget, tuple(map(int, words)), queue.runs, queue.device)


def describe_study(asked: AskedStudy, queue: Queue) -> list[str]:
    """The question of a study, its command line, and what it makes and how long that takes; the first and the
    last as HTML."""
    seconds = core_seconds(asked.study, asked.budget)
    took = (
        f", {_describe_time(seconds * len(asked.seeds))} on one core, as the shipped ones took"
        if seconds
        else ""
    )
    makes = (
        f"{asked.out}: {len(asked.makes)} trainings{took}; those that are there already are not done again"
    )
    command = f"gear-studio {shlex.join(asked.command(queue.at_once))}"
    return [div("note", asked.study.question), command, div("note", makes)]


def describe_command(trainings: list[Training]) -> str:
    """The command lines of trainings, one a line."""
    return "\n".join(f"gear-studio {shlex.join(shortest(each).command())}" for each in trainings)


def describe_effort(trainings: list[Training]) -> str:
    """The Runs that trainings make and how long that takes, as HTML."""
    lines = []
    for each in map(Training.completed, trainings):
        assert each.out is not None
        seconds = _core_seconds(each)
        took = f", {_describe_time(seconds)} on one core, as the shipped runs took" if seconds else ""
        lines.append(div("note", f"{each.out}: {each.resolved.steps:,} steps{took}"))
    return "".join(lines)


def _core_seconds(training: Training) -> float | None:
    """What a training takes on one core by the records of what ships; None where none is like it."""
    if training.recipe != "small" or not data.find_source(training.source).embedded:
        return None
    seconds = stage_core_seconds(training.stage, training.budget)
    usual = BUDGETS[training.budget][training.stage]
    return seconds * training.resolved.steps / usual if seconds else None


def _describe_time(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def in_order(standings: list[Standing]) -> list[Standing]:
    """The trainings as a list shows them: what runs, what waits, then what has ended, the latest first."""
    active = [each for each in standings if each.state in RUNNING]
    waiting = [each for each in standings if each.state == "waiting"]
    ended = [each for each in reversed(standings) if each.state in ENDED]
    return [*active, *waiting, *ended[:MOST_ENDED]]


def say_state(standing: Standing) -> str:
    """How a training stands, in a few words."""
    state, step, steps = standing.state, f"{standing.step:,}", f"{standing.steps:,}"
    done = f"step {step} of {steps}" if standing.steps else "its first steps"
    if standing.result:
        done = f"{step} of {steps} trainings"
    if state == "waiting":
        return f"waits for {standing.note}" if standing.note else "waits for its turn"
    if state == "running":
        return f"running, {done}{describe_left(standing.seconds_left or 0)}" if standing.steps else "starting"
    if state == "pausing":
        return f"writes a checkpoint to pause, {done}"
    if state == "finished":
        return f"finished, {steps} {'trainings' if standing.result else 'steps'}"
    said = {"paused": "paused", "stopped": "stopped", "failed": "ended before it was finished"}
    return said.get(state, state) + (f", {done}" if standing.steps else "")


def advise(standing: Standing) -> str:
    """What can be done now, in a sentence; "" where that is clear."""
    if standing.result:
        return STUDY_ADVICE.get(standing.state, "")
    last = "goes on from its last checkpoint" if standing.step else "begins"
    return {
        "paused": f"Resume: it goes on from step {standing.step:,}." if standing.step else "",
        "stopped": f"Resume: it {last}.",
        "failed": f"The last it said is below. Resume: it {last}.",
        "finished": "It is in the lists of all tabs.",
        "running": "It goes on when this page is closed, and when the explorer ends.",
    }.get(standing.state, "")


def describe_standing(standing: Standing, queue: Queue) -> str:
    """A training's state, how far it is, its command, and of one that failed the last it said; as HTML."""
    said = say_state(standing)
    parts = [div("big", f"{said[0].upper()}{said[1:]}.")]
    if standing.steps:
        parts.append(
            f'<progress value="{standing.step}" max="{standing.steps}" aria-label="steps done"></progress>'
        )
    for each in standing.begun:
        parts.append(div("note", f"{Path(each.name).name}: {say_state(each)}"))
    if standing.state == "running" and standing.step == standing.steps:
        parts.append(div("note", "All are trained; now their pictures are measured."))
    if advice := advise(standing):
        parts.append(div("note", advice))
    parts.append(div("note", f"gear-studio {shlex.join(standing.command)}"))
    if standing.state == "failed":
        parts.append(div("log", queue.last_lines(standing.name) or "It said nothing."))
    return f'<div data-state="{standing.state}">{"".join(parts)}</div>'


def shown_runs(standing: Standing, queue: Queue) -> list[Path]:
    """The folders of the Runs whose curves are shown: a training's own, of a study those begun."""
    names = [each.name for each in standing.begun] if standing.result else [standing.name]
    return [queue.runs / name for name in names]


def shown_pictures(standing: Standing, queue: Queue) -> dict[str, Path]:
    """The files of the pictures that are shown, by kind, there or not: of the first Run that is shown, and of
    a study that is finished its figure."""
    files = {kind: folder / f"{kind}.png" for folder in shown_runs(standing, queue)[:1] for kind in PICTURES}
    if standing.result and standing.state == "finished":
        files["figure"] = (queue.runs / standing.result).with_name("figure.png")
    return files


def read_summary(standing: Standing, queue: Queue) -> str:
    """The tables of a study that is finished, as Markdown; "" of anything else."""
    if not standing.result or standing.state != "finished":
        return ""
    try:
        text = (queue.runs / standing.result).with_name("summary.md").read_text()
    except (OSError, UnicodeDecodeError) as error:
        text = f"Its tables cannot be read: {one_line(error)}. Remove it, and start it again."
    return html.escape(text, quote=False)


def metrics_of(rows: list[dict]) -> list[str]:
    """The metrics that can be drawn, those of training and validation by one name."""
    names = {key.removeprefix("val_") for row in rows for key in row} - TIMINGS
    return sorted(names, key=lambda name: (name not in FIRST_SHOWN, name))


def read_rows(folder: Path) -> list[dict]:
    """The metrics of a Run as they are by now; none where they cannot be read."""
    try:
        return read_metrics(folder)
    except (ValueError, OSError):  # the training itself says so
        return []


def draw_curves(runs: dict[str, list[dict]], metric: str) -> PlotData | None:
    """A metric of training and of validation against steps; None where it was not measured. runs: name ->
    rows."""
    points = []
    for name, rows in runs.items():
        for kind, key in (("training", metric), ("validation", f"val_{metric}")):
            having = [row for row in rows if isinstance(row.get(key), int | float)]
            of = kind if len(runs) == 1 else f"{name}, {kind}"
            for row in having[:: math.ceil(len(having) / MOST_POINTS) or 1]:
                points.append({"kind": of, "step": row["step"], "value": row[key]})
    if not points:
        return None
    kinds = list(dict.fromkeys(point["kind"] for point in points))
    title = CURVES.get(f"val_{metric}", metric).removeprefix("validation ")
    legend = (
        {"orient": "top", "title": None, "columns": 1 if len(runs) > 1 else 0, "labelLimit": 300}
        if len(kinds) > 1
        else None
    )
    color = {"field": "kind", "type": "nominal", "legend": legend, "scale": {"domain": kinds,
             "range": [OKABE_ITO[number % len(OKABE_ITO)] for number in range(len(kinds))]}}  # fmt: skip
    linear = {"type": "linear", "zero": False, "nice": True}
    shared = {
        "x": {
            "field": "step", "type": "quantitative", "scale": {"type": "linear", "domainMin": 0},
            "title": "training step", "axis": {"tickMinStep": 1, "format": ",d"},
        },
        "y": {"field": "value", "type": "quantitative", "scale": linear, "title": title},
        "color": color,
    }  # fmt: skip
    told = [
        {"field": "kind", "title": "of", "type": "nominal"},
        {"field": "step", "title": "step", "type": "quantitative", "format": ","},
        {"field": "value", "title": metric, "type": "quantitative", "format": ".5~g"},
    ]
    nearest = {"type": "point", "on": "pointermove", "nearest": True, "clear": "pointerout"}
    few = len(points) <= 60
    layers: list[dict[str, Any]] = [
        {
            "data": {"values": points},
            "mark": {"type": "line", "strokeWidth": 2.2, "point": {"size": 36} if few else False},
            "encoding": shared,
        },
        {
            "data": {"values": points},
            "params": [{"name": "pointed", "select": nearest}],
            "mark": {"type": "point", "filled": True, "size": 90},
            "encoding": {
                **shared,
                "opacity": {"condition": {"param": "pointed", "empty": False, "value": 1}, "value": 0},
                "tooltip": told,
            },
        },
    ]
    last = points[-1]
    said = (
        f"{metric} of {', '.join(runs)} against steps; of {last['kind']} at step {last['step']}: "
        f"{last['value']:.4g}"
    )
    return as_plot(frame(said, layers, 300))


def list_parents(queue: Queue) -> list[str]:
    """The Runs of a folder, finished or asked for, and those that ship, that a training may build on."""
    there = [path.parent.name for path in sorted(queue.runs.glob("*/tokenizer"))]
    asked = [folder.name for folder in queue.makes() if folder.parent == queue.runs]
    return [BY_NAME, *dict.fromkeys([*there, *asked]), *_shipped_parents()]
