"""What ships of the studies, and the Runs behind a study."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gear_studio.files import read_json, write_json
from gear_studio.places import ZOO
from gear_studio.runs import Run
from gear_studio.studies.catalogue import STUDIES, Study, named
from gear_studio.studies.tables import record
from gear_studio.studies.training import SEEDS, chain, fitted
from gear_studio.studies.world import World

SHIPPED = ZOO / "studies"


def found(
    study: Study, seeds: Sequence[int], out: Path | None, extra: tuple[str, ...] = ()
) -> dict[tuple[str, int], Run]:
    """The Run that is measured for each arm's label and seed. out: None takes the zoo's own Runs, which are
    larger and of one seed.

    Raises FileNotFoundError naming the Runs that are missing or not finished."""
    wanted = {(arm.label, seed): chain(arm, extra)[-1].name for seed in seeds for arm in study.arms}
    runs = {
        (label, seed): _shipped(name, seed) if out is None else _finished(out / "runs" / f"{name}-s{seed}")
        for (label, seed), name in wanted.items()
    }
    if missing := [f"{wanted[key]} (seed {key[1]})" for key, run in runs.items() if run is None]:
        where = "the shipped runs" if out is None else str(out / "runs")
        raise FileNotFoundError(
            f"study {study.name} needs {', '.join(missing)}, not among {where}; train what is missing with "
            f"gear-studio study {study.name}"
        )
    return runs


def _finished(folder: Path) -> Run | None:
    run = Run(folder) if (folder / "config.json").is_file() else None
    return run if run and run.finished else None


def _shipped(name: str, seed: int) -> Run | None:
    run = _finished(ZOO / name)
    return run if run and run.config["seed"] == seed else None


def core_seconds(study: Study, budget: str) -> float | None:
    """What the trainings of one seed take on one CPU core, by what those that ship have recorded; of one that
    does not ship, the median of its stage. Evaluations come on top.

    None where no training of some stage ships in this budget."""
    took: dict[str, float] = {}  # by a Run's name
    of_stage: dict[str, list[float]] = {}
    for path in (*ZOO.glob("*/record.json"), *(SHIPPED / "runs").glob("*/record.json")):
        known = read_json(path, "a shipped run")
        threads = re.search(r"CPU, (\d+) threads", known["device"])
        stage = re.search(rf"--stage (\w+) .*--budget {budget}\b", known["command"])
        if threads and stage:
            took[path.parent.name] = known["seconds"] * int(threads[1])
            of_stage.setdefault(stage[1], []).append(took[path.parent.name])
    total = 0.0
    for training in {training for arm in study.arms for training in chain(arm)}:
        names = (training.name, *(f"{training.name}-s{seed}" for seed in SEEDS))
        own = [took[name] for name in names if name in took]
        if not (like := own or of_stage.get(training.stage)):
            return None
        total += float(np.median(like))
    return total


def shipped_record(study: Study) -> dict:
    """The `record` of a study that ships; of another, that of the zoo's own Runs: one seed, larger."""
    path = SHIPPED / study.name / "record.json"
    return read_json(path, "a shipped study") if path.is_file() else record(study, World(), SEEDS[:1])


def shipped(name: str, seeds: Sequence[int] = ()) -> dict[tuple[str, int], Run]:
    """The Runs behind a shipped study, by arm and seed; of one that does not ship, the zoo's own where they
    suffice. seeds: all that ship, unless given.

    Raises ValueError for a study that does not exist, FileNotFoundError naming the Runs that are missing."""
    study = named(name)
    out = SHIPPED if (SHIPPED / name).is_dir() else None
    return found(study, seeds or shipped_record(study)["seeds"], out)


def looked_at(name: str, out: Path | str | None = None) -> tuple[dict, dict[tuple[str, int], Run]]:
    """What a notebook shows of a study: its `record`, and its Runs by arm and seed. out: of a study of one's
    own, the OUT that `gear-studio study NAME --out OUT` was told; None: the one that ships.

    Raises as `shipped`, and FileNotFoundError where the study was not made there, or not to its end."""
    study = named(name)
    if out is None:
        return shipped_record(study), shipped(name)
    path = Path(out) / name / "record.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{out} holds no finished study {name}: there is no {path}; make it with "
            f"gear-studio study {name} --out {out}"
        )
    asked = read_json(path, "a study")
    extra = tuple(asked["set"])
    return asked, found(fitted(study, World.recorded(asked), extra), asked["seeds"], Path(out), extra)


def ship(study: Study, seeds: Sequence[int], out: Path) -> None:
    """Put a study that is finished and written in `out` into `SHIPPED`: of every training in its chains the
    config, metrics, record and evaluation; float16 EMA weights of those that some study names; the table.

    Raises ValueError where another study has shipped a Run of the same name with another config."""
    chains = [chain(arm) for arm in study.arms]
    folders = dict.fromkeys(f"{t.name}-s{seed}" for seed in seeds for trainings in chains for t in trainings)
    runs = [Run(out / "runs" / name) for name in folders]
    for run in runs:
        there = SHIPPED / "runs" / run.name
        if there.is_dir() and Run(there).config != run.config:
            raise ValueError(
                f"{there} ships with another config, and other studies' tables may be of it; to ship anew, "
                f"delete {SHIPPED} and ship all studies of one budget"
            )
    heavy = {
        f"{training.name}-s{SEEDS[0]}"
        for each in STUDIES.values()
        for arm in each.arms
        if arm.label in each.weights
        for training in chain(arm)
    }
    for run in runs:
        there = SHIPPED / "runs" / run.name
        parts = ("generator", "projector") if run.config["stage"] == "generator" else ("tokenizer",)
        run.save_pretrained(there, parts if run.name in heavy else ())
        for picture in there.glob("*.png"):
            picture.unlink()
        # Where it was trained is of no use to others.
        command = re.sub(r"\S*/runs/", "OUT/runs/", run.record["command"])
        write_json(there / "record.json", run.record | {"command": command})
    for name in ("table.csv", "summary.md", "record.json"):
        (SHIPPED / study.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(out / study.name / name, SHIPPED / study.name / name)
