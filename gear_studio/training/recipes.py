"""Recipes: everything one stage of one training needs, as a frozen dataclass. Presets, not flags.

The small recipe trains on `shapes` in minutes; its three stages and its two budgets are the table at the end.
"""

from dataclasses import asdict, dataclass, field, replace

from gear_studio.generator import GeneratorConfig
from gear_studio.tokenizer import TokenizerConfig

STAGES = ("warmup", "joint", "generator")
ARMS = {  # stage: arms it knows. The tokenizer of the baseline is the warm-up's.
    "warmup": ("warmup",),
    "joint": ("gear", "continued", "straight-through"),
    "generator": ("baseline", "gear", "continued", "straight-through"),
}


@dataclass(frozen=True)
class Recipe:
    """One stage. Learning rates are of AdamW without weight decay; `steps` are optimizer steps of
    `batch_size` images."""

    steps: int
    batch_size: int
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    projector_hidden: int = 2048
    teacher: str = "tiny"
    tokenizer_lr: float = 1e-4
    generator_lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    ema: float = 0.9999
    tau: float = 0.1  # temperature of the soft read-out
    alignment_weight: float = 0.5  # lambda, on both sides
    perceptual_weight: float = 1.0
    perceptual_blocks: tuple[int, ...] = (2,)  # of the teacher
    entropy_weight: float = 0.05
    gan_weight: float = 0.0  # 0: no discriminator
    token_views: int = 0  # generator stage: views of each picture encoded ahead (data/tokens.py); 0: none
    log_every: int = 50
    checkpoint_every: int = 250  # also when the validation images are looked at; a multiple of log_every
    validation_images: int = 512

    def __post_init__(self):
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f"checkpoint_every {self.checkpoint_every} is not a multiple of log_every {self.log_every}; "
                "metrics are averaged from one log to the next and a checkpoint must not cut such a window"
            )

    def asdict(self) -> dict:
        return asdict(self)


_SMALL = Recipe(
    steps=0,
    batch_size=32,
    projector_hidden=256,
    betas=(0.9, 0.99),
    ema=0.995,
    log_every=25,
    checkpoint_every=125,
)
_SMALL_STAGES = {
    "warmup": replace(_SMALL, tokenizer_lr=1e-3),
    "joint": replace(_SMALL, tokenizer_lr=3e-4, generator_lr=5e-4, alignment_weight=1.0),
    "generator": replace(_SMALL, generator_lr=1.5e-3),
}
BUDGETS = {  # steps of each stage, and of the two models that are trained on the world's truth
    "shipped": {"warmup": 2000, "joint": 1500, "generator": 2000, "teacher": 3600, "judge": 1600},
    "quick": {"warmup": 750, "joint": 500, "generator": 750, "teacher": 900, "judge": 300},
    "smoke": {"warmup": 4, "joint": 4, "generator": 4, "teacher": 2, "judge": 2},
}


def small(stage: str, budget: str = "shipped") -> Recipe:
    """The small recipe of a stage. Raises ValueError for a stage or budget that does not exist."""
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}; choose one of {', '.join(STAGES)}")
    if budget not in BUDGETS:
        raise ValueError(f"unknown budget {budget!r}; choose one of {', '.join(BUDGETS)}")
    recipe = replace(_SMALL_STAGES[stage], steps=BUDGETS[budget][stage])
    if budget == "smoke":
        recipe = replace(recipe, batch_size=4, log_every=2, checkpoint_every=2, validation_images=16)
    return recipe
