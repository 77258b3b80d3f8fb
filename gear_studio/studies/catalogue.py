"""Studies: named sets of Runs over arms and seeds, each answering one question with a table and a figure.

A study is data: arms, measures, and what the paper says of the same. An arm is a chain of trainings: the
warm-up, a joint stage on it, and a fresh generator on the frozen result. `jobs` writes the chains of all
seeds as `gear-studio` command lines, `found` finds the finished Runs again, `rows` reads them into a table.

    OUT/runs/     the Runs of all studies, named by what they were asked: one training serves every study that
                  asks for it, and a finished one is not done again. A folder with another config is refused.
    OUT/logs/     what each training and evaluation printed
    OUT/NAME/     table.csv (one row an arm and seed), summary.md (over seeds), figure.png, record.json (what
                  was asked: source, recipe, budget, seeds)

What ships lies in `gear_studio/zoo/studies/`, laid out as OUT is: `ship` puts it there, `shipped` reads it.

Settings are chosen on seeds 100 and above, and what is reported is of seeds 0 to 2: a choice made on the
seeds that are reported would flatter the arm it was made for.

What they are trained on is a `World`: the embedded one with the small recipe, or other pictures, or a recipe
of the paper. In the embedded one every Run is measured in the features of the tiny teacher, whoever aligned
it; elsewhere in those of its own. FD against steps is `training/fd.py`'s, about eight times a training; the
table's FD is `evaluate`'s, with more samples. All arms of a study get the same count.

A study trains one process a run. Runs that several processes made (`accelerate launch -m gear_studio train
...`), under the names and with the settings that `gear-studio study NAME --commands` prints, are taken as
they are.
"""

import contextlib
import csv
import hashlib
import io
import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from gear_studio.analysis.agreement import KINDS
from gear_studio.analysis.convergence import speed_up, speed_up_over_seeds
from gear_studio.models.judges import ATTRIBUTES
from gear_studio.data import Source, load
from gear_studio.training.jobs import Job
from gear_studio.models.pretrained import atomic, read_json, write_json
from gear_studio.runs import ZOO, Run
from gear_studio.training.recipes import (
    EVALUATION,
    QUANTIZERS,
    WITHOUT_GENERATOR,
    Recipe,
    change,
    small,
    small_tokenizer,
)
from gear_studio.training.recipes import named as recipe_named

SEEDS = (0, 1, 2)
FD_SAMPLES = {"shipped": 2000, "quick": 500, "smoke": 16}  # while a generator trains
SHIPPED = ZOO / "studies"


# Worlds


@dataclass(frozen=True)
class World:
    """What all Runs of a study are trained on, and by which recipe.

    source, folder, recipe, budget: what `gear-studio train` takes by these names; a paper's recipe has no
    budget but the default. how: more words of every `train`, such as --micro-batch 32. Raises ValueError for
    a recipe or budget that does not exist, and where a folder is missing or of no use."""

    source: str = "shapes"
    folder: Path | str | None = None
    recipe: str = "small"
    budget: str = "shipped"
    how: tuple[str, ...] = ()

    def __post_init__(self):
        if self.source in ("folder", "shards") and self.folder is None:
            raise ValueError(f"source {self.source!r} needs the place of its pictures; name it with --folder")
        if self.source in ("shapes", "digits") and self.folder is not None:
            raise ValueError(
                f"folder {self.folder} is of no use to source {self.source!r}; add --source folder or shards"
            )
        self.stage("joint")

    @classmethod
    def recorded(cls, asked: dict) -> "World":
        """That of a `record`; the first ones to ship did not say which."""
        names = asked.get("source", "shapes"), asked.get("folder"), asked.get("recipe_name", "small")
        return cls(*names, asked["budget"])

    @property
    def name(self) -> str:
        own = self.budget if self.recipe == "small" else self.recipe
        return own if self.source == "shapes" else f"{self.source}-{own}"

    @property
    def embedded(self) -> bool:
        """Whether it is the one that the tiny teacher knows, with the recipe that has it."""
        return (self.source, self.recipe) == ("shapes", "small")

    @property
    def words(self) -> list[str]:
        """What `train` and `study` are told, beside the source."""
        words = ["--budget", self.budget] if self.recipe == "small" else ["--recipe", self.recipe]
        return [*words, *self.pictures, *self.how]

    @property
    def pictures(self) -> list[str]:
        return ["--folder", str(self.folder)] if self.folder else []

    def stage(self, stage: str, settings: Sequence[str] = ()) -> Recipe:
        """The recipe of a stage with values set on top. Raises ValueError for one that it does not have."""
        recipe = recipe_named(self.recipe, stage, self.budget)
        for setting in settings:
            recipe = change(recipe, *setting.partition("=")[::2])
        return recipe

    def tokenizer(self, quantizer: str) -> str:
        """The name in `PRESETS` of the recipe's tokenizer with another quantizer."""
        return small_tokenizer(self.budget, quantizer) if self.recipe == "small" else f"{quantizer}-16"

    def held_out(self, image_size: int) -> Source:
        """The pictures that no Run was trained on."""
        return load(self.source, "val", image_size, self.folder)


# Measures


@dataclass(frozen=True)
class Measure:
    """label: with its unit. read: the number a Run has, or None where it was not measured."""

    label: str
    read: Callable[[Run], float | None]
    digits: int = 2


def evaluated(*keys: str, scale: float = 1.0) -> Callable[[Run], float | None]:
    """A figure of evaluation.json; of a spread over sampling seeds, the mean."""

    def read(run: Run) -> float | None:
        value = run.evaluation
        for key in keys:
            value = value.get(key, {})
        value = value.get("mean", {}) if isinstance(value, dict) else value
        return None if isinstance(value, dict) else scale * value

    return read


def last(key: str) -> Callable[[Run], float | None]:
    """A validation metric at the end of the training."""
    return lambda run: run.series(key)[1][-1].item() if any(key in row for row in run.metrics) else None


def like(place: str, measure: str) -> Callable[[Run], float | None]:
    """A measure of likeness to the teacher at a place of features; "tap": the generator's."""

    def read(run: Run) -> float | None:
        at = f"generator.{run.config['recipe']['generator']['tap']}" if place == "tap" else place
        return evaluated("likeness", "patch", at, measure)(run)

    return read


def index_entropy(run: Run) -> float | None:
    perplexity = evaluated("perplexity")(run)
    return None if perplexity is None else math.log(perplexity)


MEASURES = {
    "ntp": Measure("NTP (nats/token)", last("val_ntp"), 3),
    "alignment": Measure("alignment (-cos)", last("val_alignment"), 3),
    "fd": Measure("FD", evaluated("fd")),
    "fd_guided": Measure("FD, guidance 1.5", evaluated("fd_guided")),
    "rfd": Measure("rFD", evaluated("rfd")),
    "agreement": Measure("asked class, guidance 1.5 (%)", evaluated("class_agreement", "1.5", scale=100), 1),
    "psnr": Measure("PSNR (dB)", evaluated("psnr")),
    "usage": Measure("codes used (%)", evaluated("usage", scale=100), 1),
    "perplexity": Measure("perplexity (codes)", evaluated("perplexity"), 0),
    "index_entropy": Measure("entropy of the indices (nats)", index_entropy),
    "entropy_tau": Measure("entropy of softmax(A/tau) (nats)", evaluated("entropy_tau"), 3),
}
MEASURES |= {
    f"{kind}_{name}": Measure(
        f"{name}, {kind} combinations (%)", evaluated("prompts", kind, "asked", name, scale=100), 1
    )
    for kind in KINDS
    for name in (*ATTRIBUTES, "all")
}
LIKENESS = {  # to the teacher, patch level; see analysis/likeness.py
    "z_cka": Measure("CKA of z", like("tokenizer.z", "cka"), 3),
    "c_q_cka": Measure("CKA of c_q", like("tokenizer.c_q", "cka"), 3),
    "tap_cka": Measure("CKA at the tap", like("tap", "cka"), 3),
    "tap_cknna": Measure("CKNNA at the tap", like("tap", "cknna"), 3),
}
CURVES = {
    "val_ntp": "validation NTP (nats/token)",
    "val_alignment": "validation alignment (-cos)",
    "val_fd": "FD of samples, no guidance",
}


# Arms


@dataclass(frozen=True)
class Arm:
    """One row of a table, for each seed a chain of trainings.

    joint: the joint stage's arm; None leaves the warm-up's tokenizer as it is. joint_set, generator_set:
    recipe values that differ from the recipe's, as NAME=VALUE. own: those of the joint stage that its label
    speaks of, and that the small recipe has anyway (see `fitted`). generator: False measures the Run of the
    joint stage itself. quantizer: vq, which is the recipe's own, or in its place lfq or ibq."""

    label: str
    joint: str | None = "gear"
    joint_set: tuple[str, ...] = ()
    generator_set: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    generator: bool = True
    quantizer: str = "vq"


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


def sweep(setting: str, values: Sequence[float]) -> tuple[Arm, ...]:
    """`gear` with each value of a setting of the joint stage. Where a value is the recipe's own, in every
    budget, the Run is the one that every other study has."""
    arms = []
    for value in values:
        said = (f"{setting}={value}",)
        own = value == getattr(small("joint"), setting)
        arms.append(Arm(f"{value:g}", own=said) if own else Arm(f"{value:g}", joint_set=said))
    return tuple(arms)


# Studies


@dataclass(frozen=True)
class Study:
    """varies: what the arms' labels are values of. measures: columns of the table. shown: those in the
    figure; () draws the curves of `CURVES`. controls: arms that the others' speed-ups are taken over.
    paper: what the paper reports of the same, its own figures; never to be shown without that word. weights:
    arms whose whole chains ship with weights, of the first seed; of all others metrics are enough."""

    name: str
    question: str
    varies: str
    arms: tuple[Arm, ...]
    measures: tuple[str, ...]
    shown: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    paper: dict[str, str] = field(default_factory=dict)
    note: str = ""
    weights: tuple[str, ...] = ()


GENERATED = ("ntp", "alignment", "fd", "fd_guided", "agreement", "rfd", "psnr")
CAPTIONS = ("text_encoder=words", "held_out_combinations=True")
BASELINE, CONTINUED, GEAR = Arm("baseline", joint=None), Arm("continued", joint="continued"), Arm("gear")
TEACHERS = {"tiny (supervised)": "tiny", "random ViT": "random", "raw pixels": "pixels"}


def _aligned_with(label: str, teacher: str) -> tuple[Arm, Arm]:
    generator = () if teacher == "tiny" else (f"teacher={teacher}",)
    # Another teacher aligns, and the tiny one goes on looking at the reconstructions.
    joint = (*generator, "perceptual=tiny") if generator else ()
    baseline = Arm(f"{label}, baseline", None, generator_set=generator)
    return baseline, Arm(f"{label}, gear", joint_set=joint, generator_set=generator)


def _tapped(block: int) -> Arm:
    setting = (f"generator.tap={block}",)
    return Arm(f"{block}", joint_set=setting, generator_set=setting)


_STUDIES = (
    Study(
        "convergence",
        "Does a fresh generator learn sooner on a guided tokenizer, and does it end up better?",
        "tokenizer",
        (BASELINE, CONTINUED, GEAR, Arm("gear, in the joint stage", generator=False)),
        GENERATED,
        controls=("baseline", "continued"),
        paper={
            "gFID without guidance, 300 epochs, LlamaGen-REPA -> GEAR": "B 20.16 -> 16.96, L 12.70 -> 8.66, "
            "XL 8.20 -> 6.76",
            "gFID, guidance 1.5, 300 epochs": "B 6.00 -> 4.95, L 3.15 -> 2.95, XL 2.68 -> 2.52",
            "steps to the same gFID without guidance": "up to 10x fewer",
            "text to image: steps to the baseline's final NTP / alignment loss": "2.5x / 11.1x fewer",
        },
        note="NTP of different tokenizers counts different things. In the joint stage the generator learns "
        "at another rate, for fewer steps and on a tokenizer that still moves. The first crossing of a noisy "
        "curve (FD) flatters the arm that crosses.",
    ),
    Study(
        "collapse",
        "Does the codebook collapse when the next-token loss reaches the tokenizer?",
        "gradient to the tokenizer",
        (
            CONTINUED,
            GEAR,
            Arm("straight-through", joint="straight-through"),
            Arm("soft-ntp", joint="soft-ntp"),
        ),
        ("usage", "perplexity", "index_entropy", "entropy_tau", "rfd", "psnr", "fd", "fd_guided"),
        shown=("usage", "perplexity", "rfd", "fd"),
        paper={
            "straight-through instead of the dual read-out": "gFID 104.932, rFID 59.723",
            "GEAR (VQ)": "gFID 10.630, rFID 1.640",
        },
        note="continued: no gradient of a generator. soft-ntp: the paper argues against it; we know of no "
        "figure.",
    ),
    Study(
        "temperature",
        "How soft should the soft read-out be?",
        "tau",
        sweep("tau", (0.01, 0.1, 1.0)),
        ("fd", "fd_guided", "ntp", "alignment", "rfd", "psnr", "usage", "entropy_tau"),
        shown=("fd", "ntp", "rfd", "entropy_tau"),
        paper={"tau": "0.1"},
        note="entropy_tau is of softmax(A / 0.1) for every row.",
    ),
    Study(
        "lambda",
        "How strongly should alignment guide the tokenizer?",
        "lambda",
        (Arm("0", joint="continued"), *sweep("alignment_weight", (0.5, 1.0, 4.0))),
        ("fd", "fd_guided", "ntp", "alignment", "rfd", "psnr", "usage", "entropy_tau"),
        shown=("fd", "ntp", "rfd", "psnr"),
        paper={"lambda": "0.5"},
        note="0 is the arm `continued`. Lambda of the joint stage, on both sides; fresh generators have the "
        "recipe's own.",
    ),
    Study(
        "quantizers",
        "Does guidance help whatever the quantizer?",
        "quantizer, tokenizer",
        tuple(
            Arm(f"{quantizer.upper()}, {kind}", joint, quantizer=quantizer)
            for quantizer in QUANTIZERS
            for kind, joint in (("warm-up", None), ("gear", "gear"))
        ),
        ("fd", "fd_guided", "rfd", "psnr", "usage", "perplexity", "ntp", "alignment"),
        shown=("fd", "rfd", "psnr", "usage"),
        paper={
            "VQ, warm-up -> GEAR": "gFID 14.719 -> 10.630, rFID 1.724 -> 1.640, PSNR 21.06 -> 20.78 dB",
            "LFQ, warm-up -> GEAR": "gFID 18.681 -> 14.776, rFID 2.421 -> 2.129, PSNR 20.97 -> 20.48 dB",
            "IBQ, warm-up -> GEAR": "gFID 20.246 -> 12.972, rFID 1.973 -> 1.716, PSNR 21.18 -> 20.92 dB",
        },
        weights=("VQ, gear", "LFQ, gear", "IBQ, gear"),
    ),
    Study(
        "teachers",
        "How much of the gain is the teacher's knowledge?",
        "teacher, tokenizer",
        tuple(arm for label, teacher in TEACHERS.items() for arm in _aligned_with(label, teacher)),
        ("fd", "fd_guided", "agreement", "ntp", "rfd", "psnr", "entropy_tau"),
        shown=("fd", "agreement", "ntp", "rfd"),
        paper={
            "DINOv2, 100k steps, LlamaGen-REPA -> GEAR": "gFID 22.371 -> 16.837",
            "DINOv3": "gFID 23.115 -> 18.967",
            "SigLIP2": "gFID 23.254 -> 19.226",
            "V-JEPA 2.1": "gFID 23.536 -> 19.532",
        },
        note="The tiny teacher is supervised: it learnt from the world's own labels. It stays the perceptual "
        "network, and the space of FD, in every row; the judge behind the asked class shares nothing with "
        "it.",
    ),
    Study(
        "alignment-place",
        "Is it alignment, or alignment through the generator, that helps?",
        "what is aligned",
        (CONTINUED, Arm("latent", joint="latent"), GEAR),
        GENERATED,
        shown=("fd", "ntp", "rfd", "psnr"),
        paper={
            "the paper's contrast": "guidance comes through the generator, not from the latents; no figure"
        },
        note="continued: nothing is aligned. latent: the tokenizer's latents, through a projector of their "
        "own. gear: the generator's hidden states.",
    ),
    Study(
        "tap",
        "At which depth should the generator be aligned?",
        "tap (block)",
        (Arm("the recipe's own"), _tapped(4)),
        ("fd", "fd_guided", "agreement", "ntp", "alignment", "rfd", "psnr"),
        shown=("fd", "ntp", "alignment", "rfd"),
        paper={"tap of B / L / XL": "4 / 8 / 12, of 12 / 24 / 36 blocks"},
        note="Joint stage and fresh generator have the same tap. The recipe's own is 3 of 6 blocks, in the "
        "budget quick 2 of 4. Alignment losses of different taps count different things.",
    ),
    Study(
        "text",
        "Does a guided tokenizer also help a generator that is asked in words?",
        "tokenizer",
        tuple(
            Arm(label, joint, generator_set=CAPTIONS)
            for label, joint in (("baseline", None), ("continued", "continued"), ("gear", "gear"))
        ),
        (
            "ntp",
            "alignment",
            "fd",
            "fd_guided",
            *(f"seen_{name}" for name in (*ATTRIBUTES, "all")),
            "unseen_all",
        ),
        controls=("baseline", "continued"),
        paper={
            "steps to the baseline's final NTP / alignment loss": "2.5x / 11.1x fewer",
            "FD-DINOv2 on GPIC with guidance, LlamaGen-REPA -> GEAR": "50k steps 279.6 -> 256.9, "
            "100k 198.6 -> 177.4, 200k 153.5 -> 138.0, 390k 127.9 -> 115.3",
            "GenEval, short / long prompts": "0.272 -> 0.334 / 0.419 -> 0.478",
            "DPG-Bench": "70.363 -> 72.881",
            "COCO: CLIPScore / FID": "30.80 -> 31.39 / 27.99 -> 25.74",
        },
        note="Captions name all four attributes, guidance is 1.5, and a judge of attributes looks. Unseen: "
        "combinations of texture, shape and colour that training never showed together. The tokenizers are "
        "those of the other studies: what guided `gear` was a generator of classes.",
        weights=("baseline", "gear"),
    ),
)
STUDIES = {study.name: study for study in _STUDIES}


def named(name: str) -> Study:
    """A study by its name. Raises ValueError for one that does not exist."""
    if name not in STUDIES:
        raise ValueError(f"unknown study {name!r}; choose one of {', '.join(STUDIES)}")
    return STUDIES[name]


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
    if name == "held_out_combinations" and world.source != "shapes":
        return (
            f"which is of source shapes alone, not {world.source}; do convergence on captions, with "
            "--set text_encoder=words or --recipe gpic-1b"
        )
    return None


# Training


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


# From Runs to a table


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


def by_arm(runs: dict[tuple[str, int], Run]) -> dict[str, list[Run]]:
    """Each arm's Runs, in the order of their seeds."""
    arms: dict[str, list[Run]] = {}
    for (label, _), run in sorted(runs.items(), key=lambda item: item[0][1]):
        arms.setdefault(label, []).append(run)
    return arms


def rows(study: Study, runs: dict[tuple[str, int], Run]) -> list[dict]:
    """One dict an arm and seed: arm, seed, run, the study's measures, and speed-ups where it has controls.
    None: not measured."""
    table = []
    for arm in study.arms:
        for label, seed in runs:
            if label == arm.label:
                run = runs[label, seed]
                row = {"arm": label, "seed": seed, "run": run.name}
                row |= {key: MEASURES[key].read(run) for key in study.measures}
                row |= {key: measure.read(run) for key, measure in LIKENESS.items()}
                row |= speed_ups({control: runs[control, seed] for control in study.controls}, run)
                table.append(row)
    return table


def speed_ups(controls: dict[str, Run], run: Run) -> dict[str, float | None]:
    """Steps each control needs to its own final value over the steps this Run needs to get there, for each
    of `CURVES`; 0 where it never does, None where it was not measured."""
    found: dict[str, float | None] = {}
    for key in CURVES:
        for name, control in controls.items():
            both = all(last(key)(each) is not None for each in (control, run))
            value = speed_up(control.series(key), run.series(key)) if both else None
            found[f"{key.removeprefix('val_')}_speed_up_over_{name}"] = value
    return found


def speed_up_table(study: Study, runs: dict[tuple[str, int], Run]) -> list[list[str]]:
    """Header and rows: for each arm its speed-up over each control, with its interval where seeds are
    several."""

    of = by_arm(runs)

    def cell(key: str, control: str, label: str) -> str:
        pair = of[control], of[label]
        if any(last(key)(run) is None for side in pair for run in side):
            return "not measured"
        controls, arms = ([run.series(key) for run in side] for side in pair)
        if len(arms) > 1:
            return str(speed_up_over_seeds(controls, arms))
        ratio = speed_up(controls[0], arms[0])
        return f"{ratio:.2f}x" if ratio else "not reached"

    pairs = [(key, control) for key in CURVES for control in study.controls]
    titles = {"val_ntp": "NTP", "val_alignment": "alignment", "val_fd": "FD"}
    header = [study.varies, *(f"{titles[key]}, over {control}" for key, control in pairs)]
    return [header, *([arm.label, *(cell(*pair, arm.label) for pair in pairs)] for arm in study.arms)]


def beside(table: Sequence[dict], arm: str, other: str, key: str) -> tuple[str, str]:
    """How a measure of one arm lies beside another's: ("above" or "below", "in every seed" or "in 2 of 3
    seeds"). Compared are the arms of one seed, which share their warm-up and their pictures.

    table: `rows`. Where neither has more: ("equal to", "in every seed") or ("above and below", "in as many
    seeds"). Raises ValueError where a seed has only one of the two."""
    ours, theirs = ({row["seed"]: row[key] for row in table if row["arm"] == each} for each in (arm, other))
    if ours.keys() != theirs.keys() or None in [*ours.values(), *theirs.values()]:
        raise ValueError(f"{key} of {arm} is there for seeds {list(ours)}, of {other} for {list(theirs)}")
    above = sum(ours[seed] > theirs[seed] for seed in ours)
    below = sum(ours[seed] < theirs[seed] for seed in ours)
    if above == below:
        return ("above and below", "in as many seeds") if above else ("equal to", "in every seed")
    most = max(above, below)
    often = "in every seed" if most == len(ours) else f"in {most} of {len(ours)} seeds"
    return ("above" if above > below else "below"), often


def tokenizer_changes(runs: Sequence[Run]) -> list[dict]:
    """How much more like the teacher tokenizers are than their controls of the same seed, in CKA of z and of
    c_q, patch by patch.

    runs: generators as `shipped` finds them, whose evaluations measured their tokenizers; a warm-up's is
    there where some generator was trained on it. One dict a tokenizer and seed: `arm` (its Run's name
    without the seed), `seed`, `z_cka_over_CONTROL`, `c_q_cka_over_CONTROL`. warmup: the tokenizer that this
    one was trained from. continued: the arm, of the same quantizer; None for itself, and where it was not
    trained."""
    tokenizers = {run.parent.name: run.parent for run in runs}
    measured = {
        run.parent.name: {key: LIKENESS[key].read(run) for key in ("z_cka", "c_q_cka")} for run in runs
    }
    table = []
    for name, tokenizer in tokenizers.items():
        if tokenizer.parent is None:
            continue
        arm, _, seed = name.rpartition("-s")
        quantizer = tokenizer.config["recipe"]["tokenizer"]["quantizer"]
        continued = f"continued-s{seed}" if quantizer == "vq" else f"continued-{quantizer}-s{seed}"
        row = {"arm": arm, "seed": int(seed)}
        for control, other in {"warmup": tokenizer.parent.name, "continued": continued}.items():
            of_control = measured.get(other) if other != name else None
            for key, value in measured[name].items():
                row[f"{key}_over_{control}"] = value - of_control[key] if of_control else None
        table.append(row)
    return table


# Writing


def over_seeds(values: list[float | None], write: Callable[[float], str]) -> str:
    """Median, and minimum to maximum where there are several seeds."""
    known = [value for value in values if value is not None]
    if not known:
        return "not measured"
    text = write(float(np.median(known)))
    return f"{text} ({write(min(known))} to {write(max(known))})" if len(known) > 1 else text


def summary(study: Study, runs: dict[tuple[str, int], Run]) -> str:
    """Markdown: the medians over seeds, the speed-ups, and the paper's own figures."""
    from gear_studio.studies.report import table as markdown

    table = rows(study, runs)

    def over_arms(measures: dict[str, Measure]) -> str:
        lines = []
        for arm in study.arms:
            of_arm = [row for row in table if row["arm"] == arm.label]
            cells = [
                over_seeds([row[key] for row in of_arm], lambda v, m=measure: f"{v:.{m.digits}f}")
                for key, measure in measures.items()
            ]
            lines.append([arm.label, str(len(of_arm)), *cells])
        return markdown([study.varies, "seeds", *(measure.label for measure in measures.values())], lines)

    seeds = ", ".join(map(str, sorted({seed for _, seed in runs})))
    parts = [f"## {study.name}", study.question]
    parts.append(over_arms({key: MEASURES[key] for key in study.measures}))
    parts.append(
        f"Median over training seeds ({seeds}), in brackets the least and the most. {study.note}".strip()
    )
    parts += ["How like the teacher's the features are, patch by patch:", over_arms(LIKENESS)]
    if study.controls:
        parts.append(
            "Steps a control needs to its own final value, over the steps to get there; of several seeds the "
            "median, in brackets a bootstrap's 95 % interval over seeds, which is rough when they are few."
        )
        header, *lines = speed_up_table(study, runs)
        parts.append(markdown(header, lines))
    if study.paper:
        parts.append(
            markdown(["measure, on the paper's own data", "paper"], list(map(list, study.paper.items())))
        )
    return "\n\n".join(parts)


def record(study: Study, world: World, seeds: Sequence[int], extra: tuple[str, ...] = ()) -> dict:
    """What was asked of a study: its world, seeds, values set on top, and the recipe of each stage."""
    return {
        "study": study.name,
        "source": world.source,
        "folder": str(Path(world.folder).absolute()) if world.folder else None,
        "recipe_name": world.recipe,
        "budget": world.budget,
        "seeds": list(seeds),
        "set": list(extra),
        "fd_samples": {"table": EVALUATION[world.budget][0], "curves": FD_SAMPLES[world.budget]},
        "recipe": {stage: world.stage(stage).asdict() for stage in ("warmup", "joint", "generator")},
    }


def told(asked: dict) -> str:
    """A record in a sentence."""
    steps = ", ".join(f"{stage} {recipe['steps']:,}" for stage, recipe in asked["recipe"].items())
    recipe = asked["recipe"]["generator"]
    settings = f" Set on top: {', '.join(asked['set'])}." if asked["set"] else ""
    world = World.recorded(asked)
    own = f"Budget {world.budget}" if world.recipe == "small" else f"Recipe {world.recipe}"
    source = "" if world.source == "shapes" else f", source {world.source}"
    return (
        f"{own}{source}, seeds {', '.join(map(str, asked['seeds']))}. Steps: {steps}; "
        f"{recipe['batch_size']} images each, of {recipe['tokenizer']['image_size']} px; "
        f"{recipe['tokenizer']['codes']:,} codes; a generator of {recipe['generator']['blocks']} blocks, "
        f"{recipe['generator']['dim']} wide. FD is of {asked['fd_samples']['table']:,} samples, against "
        f"steps of {asked['fd_samples']['curves']:,}.{settings}"
    )


def write(study: Study, runs: dict[tuple[str, int], Run], folder: Path, asked: dict) -> str:
    """Write table.csv, summary.md, record.json and figure.png into `folder`; returns what to print. asked: a
    `record`."""
    from gear_studio import plots

    table = rows(study, runs)
    text = f"{summary(study, runs)}\n\n{told(asked)}"
    write_json(folder / "record.json", asked)
    with atomic(folder / "table.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    with atomic(folder / "summary.md") as temporary:
        temporary.write_text(text + "\n")
    if study.shown:
        labels = {key: MEASURES[key].label for key in study.shown}
        figure = plots.by_seed(table, labels, study.varies)
    else:
        known = {
            k: label for k, label in CURVES.items() if any(last(k)(run) is not None for run in runs.values())
        }
        figure = plots.curves(by_arm(runs), known)
    with atomic(folder / "figure.png") as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    names = ("table.csv", "summary.md", "record.json", "figure.png")
    return text + "\n\n" + "\n".join(f"wrote {folder / name}" for name in names)


# What ships


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
