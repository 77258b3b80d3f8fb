"""What the Runs of a study are trained on, and by which recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gear_studio.data import SOURCES, Source, find_source, load
from gear_studio.training.recipes import (
    Recipe,
    recipe_of,
    small_tokenizer,
    with_setting,
)


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
        on_disk = find_source(self.source).on_disk
        if on_disk and self.folder is None:
            raise ValueError(f"source {self.source!r} needs the place of its pictures; name it with --folder")
        if self.folder is not None and not on_disk:
            able = " or ".join(name for name, kind in SOURCES.items() if kind.on_disk)
            raise ValueError(
                f"folder {self.folder} is of no use to source {self.source!r}; add --source {able}"
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
        return find_source(self.source).embedded and self.recipe == "small"

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
        recipe = recipe_of(self.recipe, stage, self.budget)
        for setting in settings:
            recipe = with_setting(recipe, *setting.partition("=")[::2])
        return recipe

    def tokenizer(self, quantizer: str) -> str:
        """The name in `PRESETS` of the recipe's tokenizer with another quantizer."""
        return small_tokenizer(self.budget, quantizer) if self.recipe == "small" else f"{quantizer}-16"

    def held_out(self, image_size: int) -> Source:
        """The pictures that no Run was trained on."""
        return load(self.source, "val", image_size, self.folder)
