"""Pictures to train on: where they come from (`load`) and in which order training reads them (`stream`)."""

from pathlib import Path

from gear_studio.data.shapes import Shapes
from gear_studio.data.source import Source, to_float
from gear_studio.data.stream import stream

__all__ = ["SOURCES", "Shapes", "Source", "load", "stream", "to_float"]

SOURCES = ("shapes", "digits", "folder")


def load(
    name: str, split: str = "train", image_size: int = 64, folder: str | Path | None = None, seed: int = 0
) -> Source:
    """The source called `name`: shapes, digits or folder.

    folder: where the pictures of `folder` lie. seed: which world of `shapes`; the other two are what they are.
    Raises ValueError for an unknown name or split, or when `folder` comes without a folder.
    """
    match name:
        case "shapes":
            return Shapes(split, image_size, seed)
        case _:
            raise ValueError(f"unknown data {name!r}; choose one of {', '.join(SOURCES)}")
