"""Pictures to train on: where they come from (`load`) and in which order training reads them (`stream`)."""

from pathlib import Path

from gear_studio.data.digits import Digits
from gear_studio.data.folder import Folder
from gear_studio.data.shapes import Shapes
from gear_studio.data.shards import Shards
from gear_studio.data.source import PATIENCE, Source, at_once, chosen, to_float
from gear_studio.data.stream import stream

__all__ = [
    "PATIENCE",
    "SOURCES",
    "Digits",
    "Folder",
    "Shapes",
    "Shards",
    "Source",
    "at_once",
    "chosen",
    "load",
    "stream",
    "to_float",
]

SOURCES = ("shapes", "digits", "folder", "shards")


def load(
    name: str,
    split: str = "train",
    image_size: int = 64,
    folder: str | Path | None = None,
    seed: int = 0,
    captions: bool = False,
    combinations: str = "all",
) -> Source:
    """The source called `name`: shapes, digits, folder or shards.

    folder: where the pictures of `folder` lie, or the shards of `shards` (a folder or a pattern). seed: which
    world of `shapes`; the others have only one. captions: batches have "caption" too, B strings.
    combinations: of `shapes`, see there.
    Raises ValueError for an unknown name or split, when `folder` or `shards` comes without a folder, and for
    what a source does not have.
    """
    if combinations != "all" and name != "shapes":
        raise ValueError(f"combinations {combinations!r} are of the source 'shapes'; {name} has all it has")
    match name:
        case "shapes":
            return Shapes(split, image_size, seed, captions, combinations)
        case "digits":
            if captions:
                raise ValueError("the data source 'digits' has no captions; choose shapes, folder or shards")
            return Digits(split, image_size)
        case "folder":
            if folder is None:
                raise ValueError("the data source 'folder' needs the path of a folder of pictures")
            return Folder(folder, split, image_size, captions)
        case "shards":
            if folder is None:
                raise ValueError(
                    "the data source 'shards' needs the path of a folder of .tar files, or a pattern like "
                    "'PATH/{000000..000099}.tar'"
                )
            return Shards(folder, split, image_size, captions)
        case _:
            raise ValueError(f"unknown data source {name!r}; choose one of {', '.join(SOURCES)}")
