"""The studies, as data: each a question, its arms, its measures and what the paper says of the same."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from gear_studio.errors import InputError
from gear_studio.models.judges import ATTRIBUTES
from gear_studio.models.quantizers import QUANTIZERS
from gear_studio.studies.paper import TOKENIZERS
from gear_studio.training.recipes import small_recipe

_COMPARED = tuple(name for name, kind in QUANTIZERS.items() if kind.compared)


@dataclass(frozen=True)
class Arm:
    """One row of a table, for each seed a chain of trainings.

    joint: the joint stage's arm; None leaves the warm-up's tokenizer as it is. joint_set, generator_set:
    recipe values that differ from the recipe's, as NAME=VALUE. implied, generator_implied: values of the
    joint and of the generator stage that the label names and that the small recipe has anyway; `fit_to_world`
    sets them where another recipe or budget differs. generator: False measures the Run of the joint stage
    itself. quantizer: vq, which is the recipe's own, or the name of another in its place. start: of its
    generator, as `train --start` takes it, fresh or joint."""

    label: str
    joint: str | None = "gear"
    joint_set: tuple[str, ...] = ()
    generator_set: tuple[str, ...] = ()
    implied: tuple[str, ...] = ()
    generator_implied: tuple[str, ...] = ()
    generator: bool = True
    quantizer: str = "vq"
    start: str = "fresh"


def sweep(setting: str, values: Sequence[float]) -> tuple[Arm, ...]:
    """`gear` with each value of a setting of the joint stage. Where a value is the recipe's own, in every
    budget, the Run is the one that every other study has."""
    arms = []
    for value in values:
        settings = (f"{setting}={value}",)
        if value == getattr(small_recipe("joint"), setting):
            arms.append(Arm(f"{value:g}", implied=settings))
        else:
            arms.append(Arm(f"{value:g}", joint_set=settings))
    return tuple(arms)


@dataclass(frozen=True)
class Study:
    """A question and the arms that answer it.

    varies: what the arms' labels are values of. measures: columns of the table. shown: the measures in the
    figure; () draws the curves of `CURVES` instead. controls: arms over which the speed-ups of the others
    are computed. fd_curves: FD is also measured while its generators train. paper: the paper's own figures
    of the same measures; they are never shown without the word paper. weights: arms whose whole chains ship
    with weights, of the first seed; every other Run ships its metrics alone."""

    name: str
    question: str
    varies: str
    arms: tuple[Arm, ...]
    measures: tuple[str, ...]
    shown: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    fd_curves: bool = False
    paper: dict[str, str] = field(default_factory=dict)
    note: str = ""
    weights: tuple[str, ...] = ()


GENERATED = ("ntp", "alignment", "fd", "fd_guided", "agreement", "rfd", "psnr")
CAPTIONS = ("text_encoder=words", "held_out_combinations=True")
BASELINE, CONTINUED, GEAR = Arm("baseline", joint=None), Arm("continued", joint="continued"), Arm("gear")
TEACHERS = {"tiny (supervised)": "tiny", "random ViT": "random", "raw pixels": "pixels"}


def _arms_aligned_with(label: str, teacher: str) -> tuple[Arm, Arm]:
    own = (f"teacher={teacher}",)
    if teacher == "tiny":
        baseline = Arm(f"{label}, baseline", None, generator_implied=own)
        return baseline, Arm(f"{label}, gear", implied=own, generator_implied=own)
    baseline = Arm(f"{label}, baseline", None, generator_set=own)
    # Another teacher aligns, and the tiny one goes on looking at the reconstructions.
    return baseline, Arm(f"{label}, gear", joint_set=(*own, "perceptual=tiny"), generator_set=own)


def _arm_tapped_at(block: int) -> Arm:
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
        fd_curves=True,
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
            for quantizer in _COMPARED
            for kind, joint in (("warm-up", None), ("gear", "gear"))
        ),
        ("fd", "fd_guided", "rfd", "psnr", "usage", "perplexity", "ntp", "alignment"),
        shown=("fd", "rfd", "psnr", "usage"),
        paper={
            f"{quantizer}, warm-up -> GEAR": (
                "gFID {:.3f} -> {:.3f}, ".format(*of["gfid"])
                + "rFID {:.3f} -> {:.3f}, ".format(*of["rfid"])
                + "PSNR {:.2f} -> {:.2f} dB".format(*of["psnr"])
            )
            for quantizer, of in TOKENIZERS.items()
        },
        weights=tuple(f"{quantizer.upper()}, gear" for quantizer in _COMPARED),
    ),
    Study(
        "teachers",
        "How much of the gain is the teacher's knowledge?",
        "teacher, tokenizer",
        tuple(arm for label, teacher in TEACHERS.items() for arm in _arms_aligned_with(label, teacher)),
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
        (Arm("the recipe's own"), _arm_tapped_at(4)),
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
    Study(
        "start",
        "Should the joint stage's generator train on, or a fresh one take its place?",
        "generator",
        (GEAR, Arm("gear-init", start="joint")),
        GENERATED,
        controls=("gear",),
        fd_curves=True,
        note="gear-init: the generator and the projector of the joint stage train on, the released scripts' "
        "default. Here both rows train for as many steps on the frozen tokenizer, so that gear-init has had "
        "those of the joint stage on top; with a recipe of the paper both have had 4 million in all.",
    ),
    Study(
        "straight-through",
        "Is it the straight-through read-out that ruins a codebook, or the next-token loss through it?",
        "gradient to the tokenizer",
        (
            GEAR,
            Arm("straight-through", joint="straight-through"),
            Arm("straight-through, alignment alone", joint="straight-through-alignment"),
        ),
        ("usage", "perplexity", "index_entropy", "entropy_tau", "rfd", "psnr", "fd", "fd_guided"),
        shown=("usage", "perplexity", "rfd", "fd"),
        note="gear: alignment alone, read out softly. Alignment alone, straight through, is an option of the "
        "released code; its gradient is that of softmax(A / tau). The other rows are also in collapse.",
    ),
)
STUDIES = {study.name: study for study in _STUDIES}


def study_of(name: str) -> Study:
    """A study by its name. Raises ValueError for one that does not exist."""
    if name not in STUDIES:
        raise InputError(f"unknown study {name!r}; choose one of {', '.join(STUDIES)}")
    return STUDIES[name]
