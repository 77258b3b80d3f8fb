"""Pictures to train on: where they come from (`load`) and in which order training reads them (`stream`)."""

from pathlib import Path
from typing import Any

from gear_studio.data.digits import Digits
from gear_studio.data.folder import Folder
from gear_studio.data.images import to_float, to_uint8
from gear_studio.data.photos import Photos
from gear_studio.data.shapes import Shapes
from gear_studio.data.shards import Shards
from gear_studio.data.source import ListedSource, Source, batch_size_for, choose_pictures
from gear_studio.data.stream import stream
from gear_studio.errors import InputError

__all__ = [
    "SOURCES",
    "Digits",
    "Folder",
    "Photos",
    "Shapes",
    "Shards",
    "Source",
    "batch_size_for",
    "choose_pictures",
    "find_source",
    "load",
    "stream",
    "to_float",
    "to_uint8",
]

SOURCES: dict[str, type[ListedSource]] = {
    kind.name: kind for kind in (Shapes, Digits, Photos, Folder, Shards)
}


def find_source(name: str) -> type[ListedSource]:
    """The class of the source called `name`, which says what is special about it. Raises ValueError for an
    unknown name."""
    if name not in SOURCES:
        raise InputError(f"unknown data source {name!r}; choose one of {', '.join(SOURCES)}")
    return SOURCES[name]


def load(
    name: str,
    split: str = "train",
    image_size: int = 64,
    folder: str | Path | None = None,
    seed: int = 0,
    captions: bool = False,
    combinations: str = "all",
) -> Source:
    """Load the source called `name`: shapes, digits, photos, folder or shards.

    folder: where the pictures of `folder` lie, or the shards of `shards` (a folder, a pattern or a mixture).
    seed: which world of `shapes`; the others have only one. captions: batches have "caption" too, B strings.
    combinations: of `shapes`, see there.
    Raises ValueError for an unknown name or split, when `folder` or `shards` comes without a folder, and for
    what a source does not have.
    """
    kind = find_source(name)
    options: dict[str, Any] = {}
    if kind.has_combinations:
        options["combinations"] = combinations
    elif combinations != "all":
        able = " or ".join(repr(other) for other, its_kind in SOURCES.items() if its_kind.has_combinations)
        raise InputError(f"combinations {combinations!r} are of the source {able}; {name} has all it has")
    if kind.has_captions:
        options["captions"] = captions
    elif captions:
        *most, last = (other for other, its_kind in SOURCES.items() if its_kind.has_captions)
        raise InputError(f"the data source {name!r} has no captions; choose {', '.join(most)} or {last}")
    if kind.on_disk:
        if folder is None:
            raise InputError(f"the data source {name!r} needs the path of {kind.place}")
        options["folder"] = folder
    if kind.has_seeds:
        options["seed"] = seed
    return kind(split=split, image_size=image_size, **options)
