"""The trainings behind a study's arms, as jobs."""

import contextlib
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gear_studio.data import find_source
from gear_studio.runs import Run
from gear_studio.studies.catalogue import STUDIES, Arm, Study
from gear_studio.studies.world import World
from gear_studio.training.jobs import Job
from gear_studio.training.recipes import (
    EVALUATION,
    WITHOUT_GENERATOR,
)

SEEDS = (0, 1, 2)
FD_SAMPLES = {"shipped": 2000, "quick": 500, "smoke": 16}  # while a generator trains


@dataclass(frozen=True)
class Training:
    """One Run: its name without the seed, and what decides it. parent: the name of another."""

    name: str
    stage: str
    arm: str
    parent: str | None
    set: tuple[str, ...]
    quantizer: str = "vq"


def chain(arm: Arm, extra: tuple[str, ...] = ()) -> list[Training]:
    """The trainings behind an arm, first to last; the last is the one that is measured. extra: recipe values
    of all of them.

    Names say everything that decides a Run, so equal names are equal trainings. Those that ship have the
    zoo's names. Of an `extra` too long for a file's name they hold a digest."""

    def name(*parts: str) -> str:
        return "-".join(parts).replace("/", "_")

    quantizer = () if arm.quantizer == "vq" else (arm.quantizer,)
    told = (
        extra
        if len("-".join(extra)) <= 100
        else ("set", hashlib.sha256(repr(extra).encode()).hexdigest()[:12])
    )
    tail = (*quantizer, *told)
    warmup = Training(name("warmup", *tail), "warmup", "warmup", None, extra, arm.quantizer)
    trainings = [warmup]
    if arm.joint:
        tail = (*tail, *arm.joint_set)
        settings = (*extra, *arm.joint_set)
        trainings.append(Training(name(arm.joint, *tail), "joint", arm.joint, warmup.name, settings))
    if arm.generator:
        kind, settings = arm.joint or "baseline", (*extra, *arm.generator_set)
        # "+": what is set of the generator alone, so that it is not taken for the tokenizer's.
        own = "+" + name(*arm.generator_set) if arm.generator_set else ""
        whole = name("generator", kind, *tail) + own
        trainings.append(Training(whole, "generator", kind, trainings[-1].name, settings))
    return trainings


def fitted(study: Study, world: World, extra: tuple[str, ...] = ()) -> Study:
    """A study as another world has it. What an arm says of the joint stage is set where it is not the
    recipe's own; where it is, the Run is the one that every other study has. extra: recipe values of every
    training.

    Raises ValueError for a value that no recipe has, and for an arm that this world cannot have."""
    joint, quantizer = world.stage("joint", extra), world.stage("warmup", extra).tokenizer.quantizer

    def fit(arm: Arm) -> Arm:
        if arm.quantizer != "vq" and quantizer != "vq":
            raise ValueError(
                f"arm {arm.label!r} of study {study.name} has another quantizer in the place of vq, and this "
                f"recipe, {world.recipe}, has {quantizer}; choose one of vq"
            )
        for setting in (*arm.joint_set, *arm.generator_set):
            if why := _impossible(setting, world):
                raise ValueError(f"arm {arm.label!r} of study {study.name} has {setting}, {why}")
        said = [*arm.own, *arm.joint_set]
        differs = tuple(each for each in said if world.stage("joint", (*extra, each)) != joint)
        return replace(arm, own=(), joint_set=differs)

    return replace(study, arms=tuple(map(fit, study.arms)))


def _impossible(setting: str, world: World) -> str | None:
    """Why a world cannot have an arm's setting, and the way out."""
    name, _, _ = setting.partition("=")
    if name in ("teacher", "perceptual") and not world.embedded:
        return (
            f"and the teachers of this study are of source shapes and the recipe small, not {world.source} "
            f"and {world.recipe}; do convergence once for each teacher, with --set teacher=NAME and another "
            "--out"
        )
    if name == "generator.tap" and world.recipe != "small":
        return (
            f"a block of the small recipe's generator; {world.recipe} has another depth. Do convergence once "
            "for each tap, with --set generator.tap=BLOCK and another --out"
        )
    if name == "held_out_combinations" and not find_source(world.source).has_combinations:
        return (
            f"which is of source shapes alone, not {world.source}; do convergence on captions, with "
            "--set text_encoder=words or --recipe gpic-1b"
        )
    return None


def jobs(
    study: Study, world: World, seeds: Sequence[int], out: Path, extra: tuple[str, ...] = ()
) -> list[Job]:
    """Everything a study trains and measures, seed by seed, in an order that finishes early what others wait
    for. study: as `fitted` to the world. extra: recipe values of every training."""
    todo: dict[str, Job] = {}
    curved = {training.name for arm in STUDIES["convergence"].arms for training in chain(arm, extra)}
    for seed in seeds:
        chains = [chain(arm, extra) for arm in study.arms]
        for depth in range(max(map(len, chains))):
            for training in [trainings[depth] for trainings in chains if depth < len(trainings)]:
                job = _train(training, world, seed, out / "runs", training.name in curved)
                todo[job.name] = job
        for training in [trainings[-1] for trainings in chains]:
            job = _evaluate(out / "runs" / f"{training.name}-s{seed}", world)
            todo[job.name] = job
    return list(todo.values())


def _train(training: Training, world: World, seed: int, runs: Path, curved: bool) -> Job:
    """curved: with FD while a generator trains, for the one study that draws it."""
    name, settings = f"{training.name}-s{seed}", list(training.set)
    command = ["train", world.source, "--stage", training.stage, "--arm", training.arm]
    command += ["--seed", str(seed), *world.words, "--out", str(runs / name)]
    if training.parent:
        command += ["--parent", str(runs / f"{training.parent}-s{seed}")]
    elif training.quantizer != "vq":
        command += ["--tokenizer", world.tokenizer(training.quantizer)]
    without = training.stage == "warmup" or (training.stage == "joint" and training.arm in WITHOUT_GENERATOR)
    if curved and not without:
        recipe = world.stage(training.stage, training.set)
        every = max(1, recipe.steps // 8 // recipe.log_every) * recipe.log_every
        settings += [f"fd_every={every}", f"fd_samples={FD_SAMPLES[world.budget]}"]
    command += ["--set", *settings] if settings else []
    needs = [f"{training.parent}-s{seed}"] if training.parent else []
    return Job(name, command, needs, lambda: _trained(runs / name, command))


def _trained(folder: Path, command: list[str]) -> bool:
    """Whether a folder holds the finished Run of a command. Raises ValueError where it is another one's."""
    if not (folder / "config.json").is_file() or not Run(folder).finished:
        return False
    from gear_studio import cli

    with contextlib.redirect_stdout(io.StringIO()):
        cli.run(command)  # of a finished Run it compares configs and does nothing else
    return True


def _evaluate(folder: Path, world: World) -> Job:
    samples, seeds = EVALUATION[world.budget]
    command = ["evaluate", str(folder), "--samples", str(samples), "--seeds", str(seeds)]
    command += ["--teacher", "tiny"] if world.embedded else []
    command += [*world.pictures, "--metrics", "fd", "likeness"]

    def finished() -> bool:
        run = Run(folder)
        held = run.evaluation
        spread = held.get("fd", {"values": [None] * seeds})["values"]  # of a tokenizer alone there is none
        asked = held.get("samples_asked", held.get("samples"))
        teacher = "tiny" if world.embedded else run.config["recipe"]["teacher"]
        measured = asked, held.get("teacher"), len(spread), "likeness" in held
        return measured == (samples, teacher, seeds, True)

    return Job(f"evaluate {folder.name}", command, [folder.name], finished)
