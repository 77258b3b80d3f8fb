"""Recipes: everything one stage of one training needs, as a frozen dataclass. Presets, not flags.

The small recipe trains on `shapes`; its stages and budgets are a table below. Its budget `quick` also has
smaller models of smaller pictures, so that a training is minutes on one CPU core and a study over seeds an
evening. Its budget `long` has the same models and is for studies whose curves shall come to rest: more steps,
guided by a network that never saw this world, on pictures whose features are kept. The recipes of the paper,
`imagenet-b-vq` to `imagenet-xl-ibq` and `gpic-1b`, are at the end; `gear-studio recipe NAME` prints them.
"""

import ast
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any

from gear_studio.errors import InputError
from gear_studio.models.generator import GeneratorConfig, paper_config
from gear_studio.models.quantizers import QUANTIZERS
from gear_studio.models.teachers import SPATIAL_NORMS, TEACHERS, teacher_names
from gear_studio.models.text_encoders import LENGTH, Words
from gear_studio.models.tokenizer import PRESETS, TokenizerConfig, preset_name
from gear_studio.ranges import (
    Count,
    Counts,
    Decay,
    Flag,
    Natural,
    NonNegative,
    Positive,
    Probability,
    Several,
    Width,
    check,
)

STAGES = ("warmup", "joint", "generator")
_JOINT = (  # see `stages`
    "gear",
    "continued",
    "straight-through",
    "straight-through-alignment",
    "soft-ntp",
    "latent",
)
ARMS = {  # stage: arms it knows. The tokenizer of the baseline is the warm-up's.
    "warmup": ("warmup",),
    "joint": _JOINT,
    "generator": ("baseline", *_JOINT),
}
CLASS_SHARES = ("reference", "equal")  # how often samples are asked for each class
LR_SCHEDULES = ("constant", "cosine")  # after `lr_warmup`
WITHOUT_GENERATOR = ("continued", "latent")  # joint arms that train a tokenizer alone


def trains_generator(stage: str, arm: str) -> bool:
    return stage == "generator" or (stage == "joint" and arm not in WITHOUT_GENERATOR)


@dataclass(frozen=True)
class Rhythm:
    """How many steps of how many images, and what happens how often. Raises ValueError for values out of
    range, and where checkpoint_every is no multiple of log_every."""

    steps: Count
    batch_size: Count
    log_every: Count
    checkpoint_every: Count

    def __post_init__(self):
        check(self)
        if self.checkpoint_every % self.log_every:
            raise InputError(
                f"checkpoint_every {self.checkpoint_every} is not a multiple of log_every {self.log_every}; "
                "metrics are averaged from one log to the next and a checkpoint must not cut such a window"
            )


@dataclass(frozen=True)
class Recipe:
    """One stage. Learning rates are of AdamW without weight decay; `steps` are optimizer steps of
    `batch_size` images. Raises ValueError for values out of range, and for some that do not fit each
    other.

    start: of the generator stage. fresh: a new generator. joint: the generator of the parent, and its
    projector, train on. Else the folder of a Run whose generator trains on."""

    steps: Count
    batch_size: Count
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    image_size: Natural = 0  # px along a side of the pictures; 0: as the parent's tokenizer had it
    text_encoder: str = ""  # of the generator's captions (see `text_encoders`); "": class labels
    held_out_combinations: Flag = False  # of `shapes`: some are never seen in training (see `data.shapes`)
    start: str = "fresh"  # the generator stage's generator: fresh, joint, or the folder of a Run
    projector_hidden: Width = 2048
    teacher: str = "tiny"  # several: "dinov2-b+siglip2-b", the first is also the perceptual network
    teacher_weights: tuple[str, ...] = ()  # files of published teachers, one for each; () downloads them
    teacher_block: Natural = 0  # an inner block as the target, without the final norm; 0: the last
    spatial_norm: str = "auto"  # of the alignment target: auto, none, demean, zscore
    spatial_norm_alpha: NonNegative = 0.6
    tokenizer_lr: NonNegative = 1e-4
    generator_lr: NonNegative = 1e-4
    lr_warmup: Natural = 0  # steps in which a learning rate rises from 0, the first step's, to its value
    lr_schedule: str = "constant"  # then: constant, or cosine down to lr_end at the last step
    lr_end: Probability = 0.0  # of the learning rate
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    clip: Positive = 1.0
    ema: Decay = 0.9999
    ema_climbs: Flag = True  # to `ema` as 1 - 1/step, so that early averages forget; else `ema` from step 1
    keep_live: Flag = False  # the trained tokenizer beside its average, for the joint stage to start from
    tau: Positive = 0.1  # temperature of the soft read-out
    alignment_weight: NonNegative = 0.5  # lambda, on both sides
    perceptual: str = "teacher"  # the first; or "tiny", whoever aligns; or "lpips", or its VGG-16's file
    perceptual_weight: NonNegative = 1.0
    perceptual_blocks: Counts = (2,)  # of the teacher, where it is the perceptual network
    entropy_weight: NonNegative = 0.05
    gan_weight: NonNegative = 0.0  # 0: no discriminator
    token_views: Natural = 0  # generator stage: views of each picture encoded ahead (data/tokens.py); 0: none
    kept_pictures: Natural = 0  # views to train on, their tokens and features kept (data/kept_pictures.py)
    log_every: Count = 50
    checkpoint_every: Count = 250  # also when the validation images are looked at; a multiple of log_every
    keep_every: Natural = 0  # steps from one Run kept in RUN/snapshots to the next; 0: none
    validation_images: Count = 512
    fd_every: Natural = 0  # steps from one FD of samples to the next (`sampled_distance`), also last; 0: no
    fid_every: Natural = 0  # the same for FID, in its Inception network
    inception_weights: str = ""  # that network's file, where it cannot be downloaded
    fd_samples: Several = 2000  # the same for runs that are compared
    fd_teacher: str = "teacher"  # whose features FD is taken in: the first's; or "tiny", whoever aligns
    fd_classes: str = "reference"  # asked for in the real pictures' proportions; or "equal": in turn

    def __post_init__(self):
        check(self)
        _ = self.rhythm
        if self.spatial_norm not in SPATIAL_NORMS:
            raise InputError(
                f"unknown spatial_norm {self.spatial_norm!r}; choose one of {', '.join(SPATIAL_NORMS)}"
            )
        if self.keep_every % self.checkpoint_every:
            raise InputError(
                f"keep_every {self.keep_every} is not a multiple of checkpoint_every "
                f"{self.checkpoint_every}; what is kept is written together with a checkpoint"
            )
        for name in ("fd_every", "fid_every"):
            if getattr(self, name) % self.log_every:
                raise InputError(
                    f"{name} {getattr(self, name)} is not a multiple of log_every {self.log_every}; the "
                    "distance is logged with the other metrics"
                )
        if self.lr_schedule not in LR_SCHEDULES:
            raise InputError(f"lr_schedule is {self.lr_schedule!r}; choose {' or '.join(LR_SCHEDULES)}")
        if self.fd_classes not in CLASS_SHARES:
            raise InputError(f"fd_classes is {self.fd_classes!r}; choose {' or '.join(CLASS_SHARES)}")

    @property
    def rhythm(self) -> Rhythm:
        return Rhythm(self.steps, self.batch_size, self.log_every, self.checkpoint_every)

    def lr_factor(self, number: int) -> float:
        """What the learning rates of step `number`, counted from 1, are multiplied by."""
        done = number - 1
        if done < self.lr_warmup:
            return done / self.lr_warmup
        if self.lr_schedule == "constant":
            return 1.0
        progress = min(1.0, (done - self.lr_warmup) / max(1, self.steps - self.lr_warmup))
        return self.lr_end + (1 - self.lr_end) * 0.5 * (1 + math.cos(math.pi * progress))

    def asdict(self) -> dict:
        return asdict(self)


_SMALL = Recipe(
    steps=1,  # a budget has its own
    batch_size=32,
    generator=GeneratorConfig(dropout=0.0),  # the small world never shows a picture twice
    projector_hidden=256,
    betas=(0.9, 0.99),
    ema=0.995,
    perceptual_weight=3.0,
    perceptual_blocks=(1, 2, 4),
    log_every=25,
    checkpoint_every=125,
)
_SMALL_STAGES = {
    "warmup": replace(_SMALL, tokenizer_lr=1e-3),
    "joint": replace(_SMALL, tokenizer_lr=3e-4, generator_lr=5e-4, alignment_weight=1.0),
    "generator": replace(_SMALL, generator_lr=1.5e-3),
}
_QUICK: dict[str, Any] = {  # what differs from the small recipe, beside the steps; chosen on seed 100
    "batch_size": 16,
    "tokenizer": PRESETS["mini"],
    "generator": replace(_SMALL.generator, blocks=4, dim=96, tap=2),
    "generator_lr": 1.5e-3,
    "perceptual_weight": 1.0,
    "perceptual_blocks": (1, 2),
    "checkpoint_every": 250,
    "validation_images": 256,
}
# What differs from `quick` in the budget `long`, after the warm-up. The teacher saw ImageNet alone; the tiny
# one, which knows this world, aligns nothing: it compares reconstructions, and FD is taken in its features.
_LONG: dict[str, Any] = {
    "teacher": "efficientnet-lite0",
    "perceptual": "tiny",
    "fd_teacher": "tiny",
    "kept_pictures": 40_000,
}
_THIN = ("quick", "long")  # budgets of smaller models
BUDGETS = {  # steps of each stage, and of the models that are trained on the world's truth
    "shipped": {
        "warmup": 2500,
        "joint": 1250,
        "generator": 6000,
        "teacher": 3600,
        "judge": 1600,
        "attribute-judge": 1600,
    },
    "long": {
        "warmup": 2000,
        "joint": 2000,
        "generator": 8000,
        "teacher": 3600,
        "judge": 1600,
        "attribute-judge": 1600,
    },
    "quick": {
        "warmup": 2000,
        "joint": 1000,
        "generator": 2000,
        "teacher": 900,
        "judge": 300,
        "attribute-judge": 300,
    },
    "smoke": {
        "warmup": 4,
        "joint": 4,
        "generator": 4,
        "teacher": 2,
        "judge": 2,
        "attribute-judge": 2,
    },
}
BUDGET_NOTES = {  # what the numbers of a budget are worth
    "shipped": "as what ships",
    "long": "the models of quick, trained for longer on 40,000 kept pictures",
    "quick": "smaller models of 32 px pictures",
    "smoke": "a few steps, to see that everything works; its numbers say nothing about the question",
}
EVALUATION = {  # samples behind every figure, sampling seeds
    "shipped": (5000, 3),
    "long": (5000, 1),
    "quick": (2000, 1),
    "smoke": (24, 1),
}


def small_recipe(stage: str, budget: str = "shipped") -> Recipe:
    """The small recipe of a stage. Raises ValueError for a stage or budget that does not exist."""
    if stage not in STAGES:
        raise InputError(f"unknown stage {stage!r}; choose one of {', '.join(STAGES)}")
    if budget not in BUDGETS:
        raise InputError(f"unknown budget {budget!r}; choose one of {', '.join(BUDGETS)}")
    recipe = replace(_SMALL_STAGES[stage], steps=BUDGETS[budget][stage])
    if budget in _THIN:
        recipe = replace(recipe, **_QUICK)
    if budget == "long" and stage != "warmup":
        recipe = replace(recipe, **_LONG)
    if budget == "long" and stage == "generator":
        recipe = replace(recipe, batch_size=32)
    if budget == "smoke":
        recipe = replace(recipe, batch_size=4, log_every=2, checkpoint_every=2, validation_images=16)
    return recipe


def small_tokenizer(budget: str, quantizer: str = "vq") -> str:
    """The name in `PRESETS` of the tokenizer of a budget with a quantizer of `QUANTIZERS`."""
    return preset_name("mini" if budget in _THIN else "small", quantizer)


def with_captions(recipe: Recipe) -> Recipe:
    """The same, with its generator conditioned on captions, those of the small world unless it says which."""
    if recipe.text_encoder:
        return recipe
    generator = replace(recipe.generator, caption_dim=Words.dim, caption_length=LENGTH)
    return replace(recipe, text_encoder=Words.name, generator=generator)


def with_image_size(recipe: Recipe, image_size: int) -> Recipe:
    """The same for pictures of another size, in px; networks are convolutional, so that a parent's tokenizer
    goes along. Raises ValueError where a token's side does not divide it."""
    tokenizer = replace(recipe.tokenizer, image_size=image_size)
    generator = replace(recipe.generator, grid=tokenizer.grid)
    return replace(recipe, image_size=image_size, tokenizer=tokenizer, generator=generator)


IMAGENET_SIZES = ("b", "l", "xl")
PAPER_QUANTIZERS = tuple(quantizer for quantizer in QUANTIZERS if f"{quantizer}-16" in PRESETS)
NAMES = (
    "small",
    *(f"imagenet-{size}-{quantizer}" for size in IMAGENET_SIZES for quantizer in PAPER_QUANTIZERS),
    "gpic-1b",
)
GPIC_STEPS = 390_000  # of the text-to-image generator, as far as the paper reports it
PAPER_STEPS = {"warmup": 400_000, "joint": 400_000, "generator": 4_000_000}  # of a fresh generator


def recipe_of(name: str, stage: str, budget: str = "shipped", start: str | None = None) -> Recipe:
    """The recipe of a stage by its name in `NAMES`. budget: of the small recipe alone. start: of the
    generator stage; None is as released: joint with ImageNet, fresh with GPIC. A generator that trains on
    takes as many steps fewer as it has had.

    Raises ValueError for a name, stage or budget that does not exist."""
    if name == "small":
        return replace(small_recipe(stage, budget), start=start or "fresh")
    if name not in NAMES:
        raise InputError(f"unknown recipe {name!r}; choose one of {', '.join(NAMES)}")
    if stage not in STAGES:
        raise InputError(f"unknown stage {stage!r}; choose one of {', '.join(STAGES)}")
    if budget != "shipped":
        raise InputError(f"budget {budget!r} is of the small recipe; give {name} a number of steps")
    if name == "gpic-1b":
        recipe = recipe_of("imagenet-xl-vq", stage, start=start or "fresh")
        generator = replace(paper_config("1B", classes=0), caption_dim=2048, caption_length=300)
        steps = {**PAPER_STEPS, "generator": GPIC_STEPS}[stage]
        return replace(recipe, steps=steps, generator=generator, text_encoder="Qwen/Qwen3-1.7B")
    _, size, quantizer = name.split("-")
    start = start or ("joint" if stage == "generator" else "fresh")
    had = PAPER_STEPS["joint"] if (stage, start) == ("generator", "joint") else 0
    # Values that are Recipe's defaults are repeated: this is the paper's table.
    return Recipe(
        steps=PAPER_STEPS[stage] - had,
        batch_size=256,
        tokenizer=PRESETS[f"{quantizer}-16"],
        generator=paper_config(size.upper()),
        start=start,
        projector_hidden=2048,
        teacher="dinov2-b",
        tokenizer_lr=1e-4,
        generator_lr=1e-4,
        lr_warmup=0 if stage == "generator" else 1,
        betas=(0.9, 0.999),
        clip=1.0,
        ema=0.9999,
        ema_climbs=False,
        keep_live=stage == "warmup",
        tau=0.1,
        alignment_weight=0.5,
        perceptual="lpips",
        perceptual_weight=1.0,
        entropy_weight=0.05,
        gan_weight=0.1,
        log_every=100,
        checkpoint_every=5000,
    )


def with_settings(config: Any, settings: Sequence[str]) -> Any:
    """A config with NAME=VALUE set (dots reach into nested configs). All are set at once, so that they are
    judged together.

    Raises ValueError for a name it does not have, and for a value of another type or out of range."""
    values: dict[str, Any] = {}
    of_parts: dict[str, list[str]] = {}
    known = [each.name for each in fields(config)]
    for setting in settings:
        name, _, value = setting.partition("=")
        name, _, rest = name.partition(".")
        if name not in known:
            raise InputError(f"no setting {name!r} to change; choose from {', '.join(known)}")
        has_parts = is_dataclass(getattr(config, name))
        if rest and not has_parts:
            raise InputError(f"setting {name!r} has no part {rest!r}; write {name}=VALUE")
        if has_parts and not rest:
            parts = ", ".join(each.name for each in fields(getattr(config, name)))
            raise InputError(f"setting {name!r} has parts; write {name}.PART=VALUE with one of {parts}")
        if rest:
            of_parts.setdefault(name, []).append(f"{rest}={value}")
        else:
            values[name] = _read_like(getattr(config, name), name, value)
    for name, parts_set in of_parts.items():
        try:
            values[name] = with_settings(getattr(config, name), parts_set)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    return replace(config, **values)


def _read_like(old: Any, name: str, text: str) -> Any:
    """A value as it is written, of a setting that has been `old`. Raises ValueError for what is no value."""
    if isinstance(old, str):
        return text
    try:
        new = ast.literal_eval(text)
        if isinstance(new, list):
            return tuple(new)
        return float(new) if isinstance(old, float) and type(new) is int else new
    except (ValueError, SyntaxError, TypeError, OverflowError, RecursionError, MemoryError):
        raise InputError(f"{name}={text!r}: expected a {type(old).__name__} like {old!r}") from None


WEIGHT_DECAY = 0.0  # of every AdamW
TRAINED = {
    "warmup": "tokenizer, discriminator",
    "joint": "tokenizer, discriminator, generator, projector",
    "generator": "generator, projector",
}
_NOTES = {
    "batch_size": "over all processes and pieces",
    "generator.label_drop": "to the null class or the empty caption, for guidance",
    "text_encoder": "frozen; its last hidden states",
    "image_size": "px; 0: as the parent's tokenizer had it",
    "start": "of the generator stage: fresh, joint (the parent's trains on), or a run",
    "tokenizer_lr": "also of the discriminator",
    "generator_lr": "also of the projector",
    "lr_warmup": "steps in which rates rise from 0; 1: the first step changes nothing",
    "lr_schedule": "then constant, or cosine",
    "lr_end": "where cosine ends, times the rate",
    "clip": "norm of a module's gradient",
    "ema": "tokenizer and generator alike",
    "ema_climbs": "to ema as 1 - 1/step; else ema from the first step",
    "keep_live": "the live tokenizer beside its average, for the joint stage",
    "tau": "temperature of the soft read-out",
    "alignment_weight": "lambda, on both sides",
    "perceptual_weight": "of LPIPS, or of the teacher's features",
    "gan_weight": "PatchGAN, hinge",
    "keep_every": "steps between the averages kept beside the last; 0: none",
}


def recipe_lines(name: str, stage: str, recipe: Recipe) -> list[str]:
    """A recipe as text to lay beside the paper: every setting under the name that `--set` takes, then what
    follows from them and what no recipe changes."""

    def flat(settings: dict, prefix: str = "") -> dict:
        parts = [
            flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k: v} for k, v in settings.items()
        ]
        return {k: v for part in parts for k, v in part.items()}

    grid, size = recipe.tokenizer.grid, recipe.tokenizer.image_size
    # A teacher is shown images on which its patches are as many as the tokens: DINOv2's, 14 px wide, of 224.
    teacher = TEACHERS.get(teacher_names(recipe.teacher)[0])
    patch = teacher.patch_size if teacher else None
    seen = f" of an image of {patch * grid} px" if patch and patch * grid != size else ""
    follows = {
        "downsampling": f"f = {size // grid}",
        "tokens": f"N = {grid**2} ({grid} x {grid})",
        "teacher sees": f"{grid} x {grid} patches{seen}",
        "optimizer": f"AdamW, weight decay {WEIGHT_DECAY:g}, learning rate {recipe.lr_schedule}",
        "precision": "bf16 on GPUs (scores, losses, LPIPS, discriminator and weights float32), else float32",
    }
    if name != "small":
        follows["images"] = f"short side resized to {size} px (bicubic), random crop, horizontal flip"
    width = max(map(len, flat(recipe.asdict())))
    text = [f"{name}, stage {stage}: trains {TRAINED[stage]}", ""]
    for key, value in flat(recipe.asdict()).items():
        note = f"   # {_NOTES[key]}" if key in _NOTES else ""
        text.append(f"{key:{width}}  {value}{note}")
    return [*text, "", *(f"{key:{width}}  {value}" for key, value in follows.items())]
