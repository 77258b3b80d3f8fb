"""What the Runs of a study are trained on, and by which recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import OmitArgPrefixes

from gear_studio.data import SOURCES, Source, find_source, load
from gear_studio.errors import InputError
from gear_studio.ranges import Workers, check
from gear_studio.training.execution import Execution
from gear_studio.training.recipes import Recipe, recipe_of, small_tokenizer, with_settings
from gear_studio.training.request import BudgetName, SourceName, Training

if TYPE_CHECKING:
    RecipeName = str  # the command line's: a study's record has no place for a recipe made in Python
else:
    from gear_studio.training.request import RecipeName


@dataclass(frozen=True)
class World:
    """What all trainings of a study have in common, as `train` takes it."""

    # `fit_to_world` refuses what is wrong, by `check`. An error while tyro makes a World would end in a page
    # about options instead of one line.

    source: SourceName = "shapes"
    """What to train on: the embedded world, real handwritten digits, a folder of pictures by class, or
    WebDataset shards."""
    folder: Path | None = None
    """For source `folder` and `shards`, where the pictures lie."""
    recipe: RecipeName = "small"
    """small, or one of the paper's."""
    budget: BudgetName = "shipped"
    """Of the small recipe: shipped (what ships), long (more steps on kept pictures), quick (smaller models of
    32 px pictures), smoke (checks the plumbing)."""
    workers: Workers | None = None
    """Data-loading processes of every training. Default: 2 for a GPU, else 0."""
    teacher_weights: tuple[Path, ...] = ()
    """The file of a published teacher's weights; with several teachers one for each."""
    execution: OmitArgPrefixes[Execution] = Execution()
    """How the steps of every training are computed."""

    def __post_init__(self):
        if self.folder is not None:  # a notebook may give it as a string
            object.__setattr__(self, "folder", Path(self.folder))

    def check(self) -> None:
        """Raise ValueError for values out of range, for a recipe or budget that does not exist, for a folder
        that is missing or of no use, and for `shard`, which needs several processes a training."""
        check(self)
        on_disk = find_source(self.source).on_disk
        if on_disk and self.folder is None:
            raise InputError(f"source {self.source!r} needs the place of its pictures; name it with --folder")
        if self.folder is not None and not on_disk:
            able = " or ".join(name for name, source in SOURCES.items() if source.on_disk)
            raise InputError(
                f"folder {self.folder} is of no use to source {self.source!r}; add --source {able}"
            )
        if self.execution.shard:
            raise InputError(
                "shard spreads a generator over several processes, and a study trains each run in one; leave "
                "it out"
            )
        self.recipe_of("joint")

    @classmethod
    def from_record(cls, record: dict) -> World:
        """The world that a study's record says; the first records to ship did not say all of it."""
        folder = record.get("folder")
        return cls(
            record.get("source", "shapes"),
            Path(folder) if folder else None,
            record.get("recipe_name", "small"),
            record["budget"],
        )

    @property
    def name(self) -> str:
        """budget or recipe, after the source where that is not the embedded world."""
        sizes = self.budget if self.recipe == "small" else self.recipe
        return sizes if self.source == "shapes" else f"{self.source}-{sizes}"

    @property
    def embedded(self) -> bool:
        """Whether it is the one that the tiny teacher knows, with the recipe that has it."""
        return find_source(self.source).embedded and self.recipe == "small"

    def recipe_of(self, stage: str, settings: Sequence[str] = (), start: str = "fresh") -> Recipe:
        """The recipe of a stage with settings (NAME=VALUE) on top. start: of the generator stage.

        Raises ValueError for a recipe, budget or setting that does not exist."""
        return with_settings(recipe_of(self.recipe, stage, self.budget, start), settings)

    def tokenizer_name(self, quantizer: str) -> str:
        """The name in `PRESETS` of the recipe's tokenizer with another quantizer."""
        return small_tokenizer(self.budget, quantizer) if self.recipe == "small" else f"{quantizer}-16"

    def make_training(
        self,
        stage: str,
        arm: str,
        seed: int,
        out: Path,
        parent: Path | None = None,
        settings: tuple[str, ...] = (),
        tokenizer: str | None = None,
        start: str = "fresh",
    ) -> Training:
        """A training in this world; the arguments are the fields of a `Training` that differ from Run to
        Run."""
        own = recipe_of(self.recipe, stage, self.budget).start
        return Training(
            self.source,
            stage,
            arm,
            self.recipe,
            seed,
            out,
            parent,
            self.folder,
            self.budget,
            tokenizer=tokenizer,
            start=None if start == own else start,
            set=settings,
            teacher_weights=self.teacher_weights,
            workers=self.workers,
            execution=self.execution,
        )

    def load_held_out(self, image_size: int) -> Source:
        """The pictures that no Run was trained on."""
        return load(self.source, "val", image_size, self.folder)
