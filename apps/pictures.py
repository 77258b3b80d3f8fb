"""The picture that a visitor looks at: one of the world, or an upload."""

from dataclasses import dataclass
from pathlib import Path

from components import as_markdown
from torch import Tensor

from gear_studio import data
from gear_studio.data.shapes import Shapes
from gear_studio.data.upload import read_upload
from gear_studio.models.teachers import to_size
from gear_studio.runs import Run

WORLD_PICTURES = 1000  # how many pictures of the world the slider offers


@dataclass(frozen=True)
class Picture:
    """Picture number `index` of the held-out world, or the visitor's `photo`, uint8 (3, H, W), and its file's
    `name`."""

    index: int = 0
    photo: Tensor | None = None
    name: str = ""

    def to_tensor(self, size: int) -> Tensor:
        """The picture as a model takes it: float (1, 3, size, size) in [-1, 1], on the CPU."""
        if self.photo is None:
            return data.to_float(Shapes("val", size).read([self.index])["image"])
        return to_size(data.to_float(self.photo[None]), size).clamp(-1, 1)

    def class_number(self, classes: list[str]) -> int | None:
        """Which of `classes` the picture is of. None for a photo, and where they are not the world's."""
        world = Shapes("val")
        if self.photo is not None or classes != world.classes:
            return None
        return int(world.read([self.index])["label"][0])

    def is_foreign_to(self, run: Run) -> bool:
        """Whether the Run was trained on the world alone and the picture is not of it."""
        return self.photo is not None and run.config["source"] == "shapes"

    def caption(self) -> str:
        """A sentence about the picture, in Markdown."""
        if self.photo is not None:
            return f"Your picture **{as_markdown(self.name)}**, its middle square."
        return f"Picture {self.index} of the held-out world: {world_caption(self.index)}."


def world_caption(index: int) -> str:
    """What picture number `index` of the held-out world shows."""
    return Shapes("val").caption(index)


def read_photo(path: str, size: int) -> Picture:
    """An uploaded file, `size` pixels a side. Raises UploadError, whose message may be shown."""
    return Picture(photo=read_upload(path, size), name=Path(path).name)
