"""What every source of pictures looks like to the rest of the package, and what only some sources can do.

A source is a class in a file of its own and a line in `data.SOURCES`. It says as class attributes
(`ListedSource`) what is special about it. What its pictures allow, it has as methods (`Ordered`,
`Fingerprinted`, `Captioned`, `OnDisk`, `Skipping`): ask for these with isinstance.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np

from gear_studio.errors import InputError

ENDLESS = 2**31  # a source at least this long is read from some place straight on; others are drawn from
SPLITS = ("train", "val")  # of all sources; `shapes` has more
_VAL_SHARE = 20  # one picture in so many is held out where the data bring no split of their own

Batch: TypeAlias = dict[str, Any]  # columns of B rows by name: "image" and "label" tensors, "caption" strings


class Source(Protocol):
    """A numbered collection of labelled square RGB pictures."""

    name: str
    classes: list[str]
    image_size: int

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int], rngs: Sequence[np.random.Generator] | None = None) -> Batch:
        """Pictures by number: {"image": uint8 (B,3,H,W), "label": int64 (B,)}.

        rngs: one generator a picture asks for the training view (random crop, flip or shift, where the source
        has one); None asks for the deterministic evaluation view.
        """
        ...


@runtime_checkable
class Ordered(Source, Protocol):
    """A source with a shuffle of its own, which suits the way it is stored."""

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """An epoch's order: every number from 0 to len - 1 once."""
        ...


@runtime_checkable
class Fingerprinted(Source, Protocol):
    """A source with an end, whose pictures are known all together."""

    def fingerprint(self) -> str:
        """A digest that changes when any of its pictures does."""
        ...


@runtime_checkable
class Captioned(Source, Protocol):
    """A source that can say what its pictures show."""

    def captions(self, indices: Sequence[int]) -> list[str]:
        """What `read` gives as "caption" with these pictures, where captions are asked for."""
        ...


@runtime_checkable
class OnDisk(Source, Protocol):
    """A source whose pictures lie in files."""

    folder: Path

    def identity(self) -> str:
        """A digest of what there is to read, by names, labels and sizes: the same wherever the files lie and
        whenever they were copied there, unlike a `fingerprint`."""
        ...


@runtime_checkable
class Skipping(Source, Protocol):
    """A source that skips files it cannot read, and keeps their names."""

    skipped: set[str]


class ListedSource(Source, Protocol):
    """The base of the classes in `data.SOURCES`: what each says about itself, so that nobody compares names.

    `data.load` makes it with a split and an image_size; with a folder where it is `on_disk`; and with
    captions, seed and combinations where it has them."""

    trainable: ClassVar[bool] = True  # False: it is to look at only, and all of it is held out
    on_disk: ClassVar[bool] = False  # its pictures lie in a place that the user names (`--folder`)
    place: ClassVar[str] = ""  # what that place is, in an error that asks for it
    has_captions: ClassVar[bool] = False
    has_seeds: ClassVar[bool] = False  # every seed has pictures of its own
    has_combinations: ClassVar[bool] = False  # some combinations of attributes can be kept from training
    balanced: ClassVar[bool] = False  # every class is equally likely: counts differ by chance alone
    embedded: ClassVar[bool] = False  # the world that shipped teachers, judges and word lists know

    def __init__(self, *, split: str, image_size: int, **options: Any) -> None: ...


def choose_pictures(length: int, count: int) -> list[list[int]]:
    """Choose which pictures of a source to look at: two lists of `count` ascending numbers, without overlap.

    A list for which there are too few pictures is left out. Those of a finite source are drawn: the first few
    would all be of one class where it is in the order of its classes."""
    order = range(2 * count) if length >= ENDLESS else np.random.default_rng(0).permutation(length).tolist()
    parts = [sorted(order[:count]), sorted(order[count : 2 * count])]
    return [part for part in parts if len(part) == count]


def batch_size_for(image_size: int) -> int:
    """How many pictures to decode or look at together where nothing is trained."""
    return 250 if image_size <= 64 else 32


def check_split(source: str, split: str) -> None:
    """Raise ValueError for a split that is neither train nor val. source: its name, for the message."""
    if split not in SPLITS:
        raise InputError(f"{source} has no split {split!r}; choose one of {', '.join(SPLITS)}")


def numbers_of_split(names: Sequence[str], classes: Sequence[Any] | np.ndarray, split: str) -> np.ndarray:
    """Split pictures by class and name: the ascending numbers, int64, of those in `split`. classes: one a
    picture.

    val is a twentieth of all, at least one, with about a twentieth of every class: those of its names that
    hash lowest. train is the rest. It has at least one of every class, so that val may be empty."""
    hashes = [hashlib.sha256(name.encode(errors="surrogateescape")).digest() for name in names]
    counts, seen, places = Counter(classes), Counter[Any](), []
    for number in sorted(range(len(names)), key=hashes.__getitem__):
        label = classes[number]
        if seen[label] < counts[label] - 1:  # the last of its class stays
            places.append(((seen[label] + 0.5) / counts[label], number))
        seen[label] += 1
    places.sort(key=lambda place: place[0])  # of equals the lower hash stays first
    held_out = [number for _, number in places[: max(1, len(names) // _VAL_SHARE)]]
    if split == "val":
        return np.sort(np.array(held_out, np.int64))
    return np.setdiff1d(np.arange(len(names)), held_out)


def digest_arrays(*arrays: object) -> str:
    """SHA-256 of arrays (or what NumPy makes one of), their shapes and types included."""
    digest = hashlib.sha256()
    for array in map(np.ascontiguousarray, arrays):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array.data.cast("B"))
    return digest.hexdigest()
