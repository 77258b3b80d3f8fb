"""The trainings behind a study's arms, as jobs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gear_studio.analysis.metrics import EvaluationOptions
from gear_studio.data import find_source
from gear_studio.errors import InputError
from gear_studio.runs import Run
from gear_studio.studies.catalogue import STUDIES, Arm, Study
from gear_studio.studies.world import World
from gear_studio.training.execution import Execution
from gear_studio.training.jobs import Job
from gear_studio.training.recipes import EVALUATION, WITHOUT_GENERATOR, Recipe
from gear_studio.training.request import Training, options_of

SEEDS = (0, 1, 2)
FD_SAMPLES = {"shipped": 2000, "long": 2000, "quick": 500, "smoke": 16}  # while a generator trains


@dataclass(frozen=True)
class Link:
    """One training in an arm's chain, without what the seed, the world and the place add to it.

    name: of its Run, without the seed. parent: the name of the link it builds on. settings: recipe values
    that differ from the recipe's, as NAME=VALUE. quantizer: what a warm-up trains; later links take theirs
    from the parent. start: of a generator stage."""

    name: str
    stage: str
    arm: str
    parent: str | None
    settings: tuple[str, ...]
    quantizer: str = "vq"
    start: str = "fresh"


def chain_of(arm: Arm, settings: tuple[str, ...] = ()) -> list[Link]:
    """The trainings behind an arm, first to last; the last is the one that is measured. settings: recipe
    values of all of them.

    A name says everything that decides its Run, so that equal names are equal trainings. Runs that ship have
    the names of the zoo. Settings too long for a file's name are in it as a digest."""

    def name(*parts: str) -> str:
        return "-".join(parts).replace("/", "_")

    quantizer = () if arm.quantizer == "vq" else (arm.quantizer,)
    named_settings = settings
    if len("-".join(settings)) > 100:
        named_settings = ("set", hashlib.sha256(repr(settings).encode()).hexdigest()[:12])
    tail = (*quantizer, *named_settings)
    warmup = Link(name("warmup", *tail), "warmup", "warmup", None, settings, arm.quantizer)
    links = [warmup]
    if arm.joint:
        tail = (*tail, *arm.joint_set)
        links.append(
            Link(name(arm.joint, *tail), "joint", arm.joint, warmup.name, (*settings, *arm.joint_set))
        )
    if arm.generator:
        kind = arm.joint or "baseline"
        # "+": what is set of the generator alone, so that it is not taken for the tokenizer's.
        start = () if arm.start == "fresh" else (f"start={arm.start}",)
        own = (*start, *arm.generator_set)
        run_name = name("generator", kind, *tail) + ("+" + name(*own) if own else "")
        parent, settings = links[-1].name, (*settings, *arm.generator_set)
        links.append(Link(run_name, "generator", kind, parent, settings, start=arm.start))
    return links


def fit_to_world(study: Study, world: World, settings: tuple[str, ...] = ()) -> Study:
    """A study as another world has it. What an arm's label says of the joint stage is set where the recipe
    has another value; where it has the same, the arm's Run is the one that every other study has. settings:
    recipe values of every training.

    Raises ValueError for a world that cannot be (see `World.check`), for a value that no recipe has, and for
    an arm that this world cannot have."""
    world.check()
    joint, generator = (world.recipe_of(stage, settings) for stage in ("joint", "generator"))
    quantizer = world.recipe_of("warmup", settings).tokenizer.quantizer

    def fit(arm: Arm) -> Arm:
        if arm.quantizer != "vq" and quantizer != "vq":
            raise InputError(
                f"arm {arm.label!r} of study {study.name} has another quantizer in the place of vq, and this "
                f"recipe, {world.recipe}, has {quantizer}; choose one of vq"
            )
        for setting in (*arm.joint_set, *arm.generator_set):
            if why := _why_impossible(setting, world):
                raise InputError(f"arm {arm.label!r} of study {study.name} has {setting}, {why}")

        def differing(stage: str, recipe: Recipe, labelled: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(each for each in labelled if world.recipe_of(stage, (*settings, each)) != recipe)

        return replace(
            arm,
            implied=(),
            joint_set=differing("joint", joint, (*arm.implied, *arm.joint_set)),
            generator_implied=(),
            generator_set=(*differing("generator", generator, arm.generator_implied), *arm.generator_set),
        )

    return replace(study, arms=tuple(map(fit, study.arms)))


def _why_impossible(setting: str, world: World) -> str | None:
    """Why a world cannot have an arm's setting, and the way out; None where it can."""
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


def study_jobs(
    study: Study, world: World, seeds: Sequence[int], out: Path, settings: tuple[str, ...] = ()
) -> list[Job]:
    """Everything a study trains and measures, seed by seed. What several arms need comes first.

    study: as `fit_to_world` gives it. settings: recipe values of every training."""
    jobs: dict[str, Job] = {}
    # A Run is the same whichever study asks for it, so that all measure FD on the way for those that draw it.
    curved = {
        link.name
        for each in STUDIES.values()
        if each.fd_curves
        for arm in each.arms
        for link in chain_of(arm, settings)
    }
    chains = [chain_of(arm, settings) for arm in study.arms]
    for seed in seeds:
        for depth in range(max(map(len, chains))):
            for link in [links[depth] for links in chains if depth < len(links)]:
                job = _training_job(link, world, seed, out / "runs", link.name in curved)
                jobs[job.name] = job
        for *_, link in chains:
            job = _evaluation_job(out / "runs" / f"{link.name}-s{seed}", world)
            jobs[job.name] = job
    return list(jobs.values())


def _training_job(link: Link, world: World, seed: int, runs: Path, curved: bool) -> Job:
    """curved: measure FD, too, while a generator trains."""
    settings = link.settings
    without = link.stage == "warmup" or (link.stage == "joint" and link.arm in WITHOUT_GENERATOR)
    if curved and not without:
        recipe = world.recipe_of(link.stage, settings, link.start)
        every = max(1, recipe.steps // 8 // recipe.log_every) * recipe.log_every
        settings = (*settings, f"fd_every={every}", f"fd_samples={FD_SAMPLES[world.budget]}")
    parent = f"{link.parent}-s{seed}" if link.parent else None
    tokenizer = world.tokenizer_name(link.quantizer) if link.quantizer != "vq" else None
    out = runs / f"{link.name}-s{seed}"
    training = world.make_training(
        link.stage, link.arm, seed, out, runs / parent if parent else None, settings, tokenizer, link.start
    )
    return Job(out.name, training.command(), [parent] if parent else [], lambda: _is_finished(training, out))


def _is_finished(training: Training, out: Path) -> bool:
    """Whether the finished Run of a training lies in its folder. Raises ValueError where another one does."""
    if not (out / "config.json").is_file() or not Run(out).finished:
        return False
    from gear_studio.training import loop  # imports Accelerate, which a table needs not wait for

    # Of a finished Run it compares configs and does nothing else; the device may be a cluster's alone.
    loop.train(replace(training, execution=Execution()), progress=False)
    return True


def _evaluation_job(folder: Path, world: World) -> Job:
    samples, seeds = EVALUATION[world.budget]
    teacher = "tiny" if world.embedded else None
    options = EvaluationOptions(
        samples,
        seeds,
        metrics=("fd", "likeness"),
        teacher=teacher,
        folder=world.folder,
        device=world.execution.device,
    )

    def finished() -> bool:
        run = Run(folder)
        evaluation = run.evaluation
        # Of a tokenizer alone there is no FD.
        fds = evaluation.get("fd", {"values": [None] * seeds})["values"]
        asked_samples = evaluation.get("samples_asked", evaluation.get("samples"))
        measured = asked_samples, evaluation.get("teacher"), len(fds), "likeness" in evaluation
        return measured == (samples, teacher or run.setting("teacher"), seeds, True)

    command = ["evaluate", str(folder), *options_of(options)]
    return Job(f"evaluate {folder.name}", command, [folder.name], finished)
