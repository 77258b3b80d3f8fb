"""A training asked for, as one value: the command line, studies and the app all make it, the loop takes it.

`Training.command` is the one place that turns it into words, and tyro, reading the fields below, the one that
turns words into it: the two are inverses.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tyro.conf import OmitArgPrefixes, Positional

from gear_studio.data import SOURCES
from gear_studio.errors import InputError
from gear_studio.models.tokenizer import PRESETS, preset
from gear_studio.places import check_own_folder, find_folder, folder_named
from gear_studio.ranges import Count, Pixels, Seed, Workers, check
from gear_studio.training.execution import Execution
from gear_studio.training.recipes import (
    ARMS,
    BUDGETS,
    NAMES,
    STAGES,
    WITHOUT_GENERATOR,
    Recipe,
    recipe_of,
    with_captions,
    with_image_size,
    with_settings,
)
from gear_studio.training.trackers import TRACKERS

if TYPE_CHECKING:  # the names that the command line takes; in Python a Recipe of one's own will do, too
    SourceName: TypeAlias = str
    StageName: TypeAlias = str
    ArmName: TypeAlias = str
    BudgetName: TypeAlias = str
    TokenizerName: TypeAlias = str
    RecipeName: TypeAlias = str | Recipe
    TrackerName: TypeAlias = str
else:
    SourceName = Literal[*(name for name, source in SOURCES.items() if source.trainable)]
    StageName, BudgetName = Literal[*STAGES], Literal[*BUDGETS]
    ArmName = Literal[*dict.fromkeys(arm for arms in ARMS.values() for arm in arms)]
    TokenizerName, RecipeName, TrackerName = Literal[*PRESETS], Literal[*NAMES], Literal[*TRACKERS]


@dataclass(frozen=True)
class Training:
    """One stage of one training. `completed` fills in what is left out and follows from the rest: the arm,
    the run's folder, and the run it builds on."""

    source: Positional[SourceName]
    """What to train on: the embedded world, real handwritten digits, a folder of pictures by class, or
    WebDataset shards."""
    stage: StageName = "warmup"
    """warmup (tokenizer), joint (tokenizer guided by a generator), generator (on the frozen tokenizer)."""
    arm: ArmName | None = None
    """What is compared: baseline, gear, continued, or one of the ablations straight-through,
    straight-through-alignment, soft-ntp and latent. Default: gear, or warmup for the warm-up."""
    recipe: RecipeName = "small"
    """small, or one of the paper's; `gear-studio recipe NAME` prints it."""
    seed: Seed = 0
    """Decides weights, images and dropout."""
    out: Path | None = None
    """The run's folder. Default: runs/SOURCE-STAGE-ARM-sSEED, with a budget other than shipped before the
    seed."""
    parent: Path | None = None
    """The run to build on: a folder beside OUT, or the name of a shipped one. Default: the warm-up, or the
    joint run of the same arm; for the warm-up none, from scratch. One that is given, such as an imported run,
    gives it the tokenizer to start from; its discriminator is new."""
    folder: Path | None = None
    """For source `folder`: one sub-folder a class (optionally inside train/ and val/). For source `shards`: a
    folder of .tar files, a pattern such as 'PATH/{000000..000099}.tar', or the .json of a mixture."""
    budget: BudgetName = "shipped"
    """Of the small recipe: shipped; long, more steps on kept pictures; quick, smaller models of 32 px
    pictures; smoke, a few steps."""
    steps: Count | None = None
    """Steps, instead of the recipe's."""
    batch_size: Count | None = None
    """Images a step over all processes, instead of the recipe's."""
    tokenizer: TokenizerName | None = None
    """What the warm-up trains instead of the recipe's tokenizer. Given to the later stages too, it finds the
    runs: runs/SOURCE-TOKENIZER-STAGE-..."""
    image_size: Pixels | None = None
    """Pixels along a side of the pictures, instead of the recipe's: 384, say, also on a tokenizer that was
    trained at 256. The run is called runs/SOURCE-384px-STAGE-..."""
    start: str | None = None
    """The generator stage's generator: fresh; joint, the generator of the joint stage it builds on and its
    projector train on; or a run (a folder or the name of a shipped one) whose generator trains on, of class
    labels for one of captions, too. Default: fresh with the small recipe and GPIC's, joint with the paper's,
    as released. The run is called runs/SOURCE-generator-ARM-init-..."""
    condition: Literal["class", "caption"] | None = None
    """What the generator is asked by: class labels, or captions (of shapes its own; of folder and shards the
    .txt beside each picture, of shards also the "caption" in its .json). Default: the recipe's. The run is
    called runs/SOURCE-caption-STAGE-... and builds on the same tokenizers."""
    set: tuple[str, ...] = ()
    """Other recipe values, as NAME=VALUE: gan_weight=0.1 tau=0.05 teacher=FOLDER teacher=dinov2-b
    generator.blocks=4 fd_every=250 (FD of samples while it trains; fid_every: FID) keep_every=100000 (a run
    to evaluate or sample from in OUT/snapshots, every so many steps). In the generator stage token_views=10
    encodes ten crops of every picture ahead, once a tokenizer. kept_pictures=40000 trains on so
    many pictures, of which tokens and the teacher's features are computed once and kept on disk."""
    teacher_weights: tuple[Path, ...] = ()
    """The file of a published teacher's weights (safetensors or torch), instead of a download; with several
    teachers one for each."""
    workers: Workers | None = None
    """Data-loading processes; 0 loads in the training process. Default: 2 for a GPU, else 0."""
    track: tuple[TrackerName, ...] = ()
    """Where else metrics and grids of pictures go: tensorboard (into OUT/tensorboard), wandb."""
    execution: OmitArgPrefixes[Execution] = Execution()
    """How steps are computed."""
    extend: bool = False
    """Go on with a run that was asked for fewer steps, finished or not, as if it had been asked for these."""

    def completed(self) -> Training:
        """The same, with the arm, the run's folder and the run it builds on filled in.

        Raises ValueError for values out of range and an arm that the stage does not have, and as `resolved`
        does."""
        check(self)
        if self.stage not in STAGES:
            raise InputError(f"unknown stage {self.stage!r}; choose one of {', '.join(STAGES)}")
        arm = self.arm or ("warmup" if self.stage == "warmup" else "gear")
        if arm not in ARMS[self.stage]:
            raise InputError(
                f"stage {self.stage} has no arm {arm!r}; choose one of {', '.join(ARMS[self.stage])}"
            )

        def run_name(label: str, stage: str) -> str:
            kind = [] if stage == "warmup" else [arm]
            kind += ["init"] if stage == "generator" and self.resolved.start != "fresh" else []
            budget = [] if self.budget == "shipped" else [self.budget]
            return "-".join([label, stage, *kind, *budget, f"s{self.seed}"])

        label = f"{self.source}-{self.tokenizer}" if self.tokenizer else self.source
        label += f"-{self.image_size}px" if self.image_size else ""
        captions = "-caption" if self.stage != "warmup" and self.resolved.text_encoder else ""
        out = Path(self.out or Path("runs") / run_name(label + captions, self.stage))
        check_own_folder(out)
        parent = self.parent
        if parent is None and self.stage != "warmup":
            guided = self.stage == "generator" and arm != "baseline"  # the tokenizer that it is trained on
            parent = out.parent / run_name(label, "joint" if guided else "warmup")
        return replace(self, arm=arm, out=out, parent=parent)

    @property
    def parent_folder(self) -> Path | None:
        """Where the run lies, or will lie, that this training builds on, once it is `completed`."""
        return folder_named(self.parent) if self.parent else None

    @cached_property
    def resolved(self) -> Recipe:
        """The recipe with everything that is set on top of it.

        Raises ValueError for a recipe, budget or setting that does not exist, and for classes asked of a
        recipe of captions."""
        if isinstance(self.recipe, Recipe):
            recipe = replace(self.recipe, start=self.start or self.recipe.start)
        else:
            # The tokenizers of some arms come from no generator that could train on.
            alone = self.stage == "generator" and self.arm in ("baseline", *WITHOUT_GENERATOR)
            start = self.start or ("fresh" if alone else None)
            recipe = recipe_of(self.recipe, self.stage, self.budget, start)
        if recipe.start not in ("fresh", "joint"):  # absolute, as the teacher's files below
            recipe = replace(recipe, start=str(find_folder(recipe.start).resolve()))
        changes: dict[str, Any] = {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "tokenizer": preset(self.tokenizer) if self.tokenizer else None,
        }
        recipe = replace(recipe, **{name: value for name, value in changes.items() if value is not None})
        if self.image_size:
            recipe = with_image_size(recipe, self.image_size)
        if self.condition == "class" and recipe.text_encoder:
            raise InputError(f"recipe {self.recipe} is one of captions; choose another for --condition class")
        if self.condition == "caption":
            recipe = with_captions(recipe)
        recipe = with_settings(recipe, self.set)
        if self.teacher_weights:  # absolute, so that the run finds them again from anywhere
            files = tuple(str(Path(file).resolve()) for file in self.teacher_weights)
            recipe = replace(recipe, teacher_weights=files)
        return recipe

    def next_command(self) -> list[str]:
        """The words after `gear-studio` for what follows this training: the next stage on it, or its
        evaluation. Raises as `command`."""
        done = self.completed()
        if done.stage == "generator" or done.out is None:
            return ["evaluate", str(done.out)]
        stage = "joint" if done.stage == "warmup" else "generator"
        arm = None if done.arm in ("warmup", "gear") else done.arm
        after = replace(
            self, stage=stage, arm=arm, out=None, parent=None, steps=None, batch_size=None, extend=False
        )
        if after.completed().parent != done.out:
            name = after.completed().out
            after = replace(after, out=done.out.with_name(name.name) if name else None, parent=done.out)
        return after.command()

    def command(self) -> list[str]:
        """The words after `gear-studio` that ask for the same.

        Raises ValueError for a recipe that was made in Python and has no name."""
        if isinstance(self.recipe, Recipe):
            raise InputError("a recipe made in Python has no name to write on a command line; give its name")
        return ["train", self.source, *options_of(self)]


def options_of(value: Any) -> list[str]:
    """The options of a command line that tyro reads a dataclass from: one for each field that differs from
    its default. A field without a default is positional, and left out."""
    words = []
    for field in fields(value):
        held, option = getattr(value, field.name), "--" + field.name.replace("_", "-")
        if field.default is MISSING or held in (field.default, ()):
            continue
        if is_dataclass(held):
            words += options_of(held)
        elif isinstance(held, tuple):
            words += [option, *map(str, held)]
        else:
            words += [option] if held is True else [option, str(held)]
    return words
