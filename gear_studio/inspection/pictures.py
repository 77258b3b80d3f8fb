"""The pictures that tokenizers are compared on: some of a collection, all of them readable, one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from gear_studio.data.photos import PHOTOS
from gear_studio.data.source import Fingerprinted, digest_arrays
from gear_studio.errors import MissingError
from gear_studio.looking.pictures import (
    NAMES,
    SMALL,
    AnyFolder,
    SourcePictures,
    pictures_of_folder,
    pictures_of_source,
)


@dataclass(frozen=True)
class Chosen:
    """Pictures of a collection, by their numbers there.

    title: what they are, for the protocol. identity: changes when one of them does. passed_over: damaged
    files. photographs: whether a network of ImageNet can be asked what they show. credits: who made them, and
    under which licence, where that is known."""

    collection: SourcePictures
    numbers: Sequence[int]
    title: str
    identity: str
    passed_over: list[str]
    photographs: bool
    credits: str

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def names(self) -> list[str]:
        return [self.collection.short_name(number) for number in self.numbers]

    def read(self, at: int, size: int) -> Tensor:
        """The middle square of one of them, uint8 (3, size, size)."""
        return self.collection.source(size).read([self.numbers[at]])["image"][0]


def choose_pictures(name: str, count: int, seed: int = 0) -> Chosen:
    """At most `count` pictures of a collection of `NAMES` or of a folder; of more than that, `seed` draws.

    Raises FileNotFoundError where there is no such folder, ValueError for one without a readable picture."""
    if name in NAMES:
        return _of_source(name, count, seed)
    if not Path(name).is_dir():
        raise MissingError(
            f"pictures {name!r} are neither {', '.join(NAMES)} nor a folder; name one of these"
        )
    return _of_folder(Path(name), count, seed)


def _of_source(name: str, count: int, seed: int) -> Chosen:
    collection = pictures_of_source(name)
    source, there = collection.source(SMALL), len(collection)
    if collection.embedded or there <= count:
        numbers = list(range(min(there, count)))
    else:
        numbers = sorted(np.random.default_rng(seed).permutation(there)[:count].tolist())
    photos = name == "photos"
    credits = ", ".join(
        f"{PHOTOS[i].name} {PHOTOS[i].credit} ({PHOTOS[i].licence})" for i in numbers * photos
    )
    files = source.fingerprint() if isinstance(source, Fingerprinted) else ""
    identity = digest_arrays([name, files], numbers)
    return Chosen(collection, numbers, f"{name}, val", identity, [], photos, credits)


def _of_folder(folder: Path, count: int, seed: int) -> Chosen:
    collection = pictures_of_folder(folder)
    files = collection.source(SMALL)
    assert isinstance(files, AnyFolder)
    readable: list[int] = []
    damaged: list[str] = []
    for number in np.random.default_rng(seed).permutation(len(files)).tolist():
        if len(readable) == count:
            break
        if files.is_readable(number):
            readable.append(number)
        else:
            damaged.append(files.path_name(number))
    readable.sort()
    names = np.array([files.path_name(number).encode() for number in readable])
    identity = digest_arrays(names, files.stats_of(readable))
    return Chosen(collection, readable, f"folder {folder}", identity, sorted(damaged), True, "")
