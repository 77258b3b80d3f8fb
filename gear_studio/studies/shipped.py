"""What ships of the studies, and the Runs behind a study."""

import functools
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gear_studio.errors import InputError, MissingError
from gear_studio.files import read_json, write_json
from gear_studio.places import STUDIES as SHIPPED
from gear_studio.places import ZOO
from gear_studio.run_files import (
    SHARED,
    holds,
    read_record,
    read_shared,
    run_folders,
    small_files,
    write_shared,
)
from gear_studio.runs import Run
from gear_studio.studies.catalogue import STUDIES, Study, study_of
from gear_studio.studies.chains import SEEDS, chain_of, fit_to_world
from gear_studio.studies.tables import make_record
from gear_studio.studies.world import World
from gear_studio.training.request import Training


def find_runs(
    study: Study, seeds: Sequence[int], out: Path | None, settings: tuple[str, ...] = ()
) -> dict[tuple[str, int], Run]:
    """The Run that is measured for each arm's label and seed. out: the folder of all studies; None takes the
    zoo's own Runs, which are larger and of one seed. settings: those that the study set on top.

    Raises FileNotFoundError naming the Runs that are missing or not finished."""
    names = {(arm.label, seed): chain_of(arm, settings)[-1].name for seed in seeds for arm in study.arms}
    runs, missing = {}, []
    for (label, seed), name in names.items():
        run = _find_in_zoo(name, seed) if out is None else _open_finished(out / "runs" / f"{name}-s{seed}")
        if run is None:
            missing.append(f"{name} (seed {seed})")
        else:
            runs[label, seed] = run
    if missing:
        where = "the shipped runs" if out is None else str(out / "runs")
        raise MissingError(
            f"study {study.name} needs {', '.join(missing)}, not among {where}; train what is missing with "
            f"gear-studio study {study.name}"
        )
    return runs


def _open_finished(folder: Path) -> Run | None:
    run = Run(folder) if holds(folder, "config.json") else None
    return run if run and run.finished else None


def _find_in_zoo(name: str, seed: int) -> Run | None:
    run = _open_finished(ZOO / name)
    return run if run and run.config["seed"] == seed else None


def core_seconds(study: Study, budget: str) -> float | None:
    """What the trainings of one seed take on one CPU core, by the records of those that ship; one that does
    not ship counts as the median of its stage. Evaluations come on top.

    None where no training of some stage ships in this budget."""
    by_run, by_stage = _core_seconds_of_runs(budget)
    total = 0.0
    for link in {link for arm in study.arms for link in chain_of(arm)}:
        names = (link.name, *(f"{link.name}-s{seed}" for seed in SEEDS))
        seconds_of_each = [by_run[name] for name in names if name in by_run] or by_stage.get(link.stage)
        if not seconds_of_each:
            return None
        total += float(np.median(seconds_of_each))
    return total


@functools.cache
def stage_core_seconds(stage: str, budget: str) -> float | None:
    """What a training of a stage takes on one CPU core: the median of those that ship; None where none of
    this budget does."""
    seconds = _core_seconds_of_runs(budget)[1].get(stage)
    return float(np.median(seconds)) if seconds else None


def _core_seconds_of_runs(budget: str) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Of every training that ships in a budget, by the Run's name and by stage."""
    by_run: dict[str, float] = {}
    by_stage: dict[str, list[float]] = {}
    for folder in (place for where in (ZOO, SHIPPED / "runs") for place in run_folders(where, "record.json")):
        record = read_record(folder)
        threads, command = re.search(r"CPU, (\d+) threads", record["device"]), record["command"]
        if not threads or "train" not in command.split():
            continue
        if _option(command, "budget", Training.budget) == budget:
            by_run[folder.name] = seconds = record["seconds"] * int(threads[1])
            by_stage.setdefault(_option(command, "stage", Training.stage), []).append(seconds)
    return by_run, by_stage


def _option(command: str, name: str, default: str) -> str:
    """The value of an option in a command line. Parsing all of it would take tyro seconds for all Runs."""
    match = re.search(rf" --{name} (\S+)", command)
    return match[1] if match else default


def record_of_shipped(study: Study) -> dict:
    """The record of a study that ships; of another, that of the zoo's own Runs, larger and of one seed."""
    path = SHIPPED / study.name / "record.json"
    return read_json(path, "a shipped study") if path.is_file() else make_record(study, World(), SEEDS[:1])


def shipped_runs(name: str, seeds: Sequence[int] = ()) -> dict[tuple[str, int], Run]:
    """The Runs behind a shipped study, by arm and seed; of one that does not ship, the zoo's own where they
    suffice. seeds: all that ship, unless given.

    Raises ValueError for a study that does not exist, FileNotFoundError naming the Runs that are missing."""
    study = study_of(name)
    out = SHIPPED if (SHIPPED / name).is_dir() else None
    return find_runs(study, seeds or record_of_shipped(study)["seeds"], out)


def load_study(name: str, out: Path | str | None = None) -> tuple[dict, dict[tuple[str, int], Run]]:
    """A finished study: its record, and its Runs by arm and seed. out: the OUT of `gear-studio study NAME
    --out OUT` for a study of one's own; None for the one that ships.

    Raises as `shipped_runs`, and FileNotFoundError where the study was not made there, or not to its end."""
    study = study_of(name)
    if out is None:
        return record_of_shipped(study), shipped_runs(name)
    path = Path(out) / name / "record.json"
    if not path.is_file():
        raise MissingError(
            f"{out} holds no finished study {name}: there is no {path}; make it with "
            f"gear-studio study {name} --out {out}"
        )
    record = read_json(path, "a study")
    settings = tuple(record["set"])
    study = fit_to_world(study, World.from_record(record), settings)
    return record, find_runs(study, record["seeds"], Path(out), settings)


def ship_study(study: Study, seeds: Sequence[int], out: Path) -> None:
    """Put a study that is finished and written in `out` into `SHIPPED`: its table, and of every training in
    its chains the config, metrics, record and evaluation. Runs whose weights some study names have a folder,
    with EMA weights in float16; the others lie in one file a study, each in that of the first to ship it.

    Raises ValueError where another study has shipped a Run of the same name with another config."""
    chains = [chain_of(arm) for arm in study.arms]
    names = dict.fromkeys(f"{link.name}-s{seed}" for seed in seeds for links in chains for link in links)
    runs = [Run(out / "runs" / name) for name in names]
    for run in runs:
        target = SHIPPED / "runs" / run.name
        if holds(target, "config.json") and Run(target).config != run.config:
            raise InputError(
                f"{target} ships with another config, and other studies' tables may be of it; to ship anew, "
                f"delete {SHIPPED} and ship all studies of one budget"
            )
    with_weights = {
        f"{link.name}-s{SEEDS[0]}"
        for each in STUDIES.values()
        for arm in each.arms
        if arm.label in each.weights
        for link in chain_of(arm)
    }
    own = SHIPPED / "runs" / f"{study.name}.runs.jsonl"
    shared = {path: read_shared(path) for path in (own, *own.parent.glob(SHARED))}
    for run in runs:
        target = SHIPPED / "runs" / run.name
        # Where it was trained is of no use to others.
        record = run.record | {"command": re.sub(r"\S*/runs/", "OUT/runs/", run.record["command"])}
        if run.name in with_weights:
            generates = run.config["stage"] == "generator"
            run.save_pretrained(target, ("generator", "projector") if generates else ("tokenizer",))
            write_json(target / "record.json", record)
            for picture in target.glob("*.png"):
                picture.unlink()
            for held in shared.values():
                held.pop(run.name, None)
        else:
            held = next((held for held in shared.values() if run.name in held), shared[own])
            held[run.name] = small_files(run.folder) | {"record.json": record}
    for path, held in shared.items():
        write_shared(path, held)
    for name in names.keys() - with_weights:
        shutil.rmtree(SHIPPED / "runs" / name, ignore_errors=True)  # where it had weights before
    for name in ("table.csv", "summary.md", "record.json"):
        (SHIPPED / study.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(out / study.name / name, SHIPPED / study.name / name)
