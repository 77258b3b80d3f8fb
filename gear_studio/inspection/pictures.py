"""The pictures that tokenizers are looked at with: of a source, or of any folder."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from gear_studio import data
from gear_studio.data.images import SUFFIXES, UnreadableImage, crop_and_resize, is_picture, open_rgb
from gear_studio.data.photos import PHOTOS
from gear_studio.data.source import ENDLESS, Fingerprinted, digest_arrays

SOURCES = ("photos", "shapes", "digits")  # those that need no place


@dataclass(frozen=True)
class Pictures:
    """A numbered collection at any size.

    title: what they are, for the protocol. names: one a picture. identity: changes when one of them does.
    passed_over: damaged files. photographs: whether a network of ImageNet can be asked what they show.
    credits: who made them, and under which licence, where that is known.
    read: (number, size) -> the middle square, uint8 (3, size, size)."""

    title: str
    names: list[str]
    identity: str
    passed_over: list[str]
    photographs: bool
    credits: str
    read: Callable[[int, int], Tensor]

    def __len__(self) -> int:
        return len(self.names)


def open_pictures(name: str, count: int, seed: int = 0) -> Pictures:
    """At most `count` pictures of a source of `SOURCES` or of a folder; of more than that, `seed` draws.

    Raises FileNotFoundError where there is no such folder, ValueError for one without a readable picture."""
    return _of_source(name, count, seed) if name in SOURCES else _of_folder(Path(name), count, seed)


def _of_source(name: str, count: int, seed: int) -> Pictures:
    source = data.load(name, "val")
    there = len(source)
    if there >= ENDLESS or there <= count:
        chosen = list(range(min(there, count)))
    else:
        chosen = sorted(np.random.default_rng(seed).permutation(there)[:count].tolist())
    photos = name == "photos"
    names = [f"{PHOTOS[i].name}: {PHOTOS[i].caption}" if photos else f"{name} {i}" for i in chosen]

    def read(number: int, size: int) -> Tensor:
        return data.load(name, "val", size).read([chosen[number]])["image"][0]

    credits = ", ".join(f"{PHOTOS[i].name} {PHOTOS[i].credit} ({PHOTOS[i].licence})" for i in chosen * photos)
    files = source.fingerprint() if isinstance(source, Fingerprinted) else ""
    return Pictures(f"{name}, val", names, digest_arrays([name, files], chosen), [], photos, credits, read)


def _of_folder(folder: Path, count: int, seed: int) -> Pictures:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"pictures {str(folder)!r} are neither {', '.join(SOURCES)} nor a folder; name one of these"
        )
    inside = [path.relative_to(folder) for path in folder.rglob("*") if is_picture(path.name)]
    files = sorted(
        path
        for path in inside
        if not any(part.startswith(".") for part in path.parts) and (folder / path).is_file()
    )
    readable: list[Path] = []
    damaged: list[str] = []
    for at in np.random.default_rng(seed).permutation(len(files)):
        if len(readable) == count:
            break
        try:
            open_rgb(folder / files[at])
            readable.append(files[at])
        except (UnreadableImage, OSError):
            damaged.append(os.fsencode(files[at]).decode(errors="replace"))
    if not readable:
        raise ValueError(
            f"{folder} has no readable picture at any depth ({len(damaged)} damaged); pictures are files "
            f"that end in {', '.join(SUFFIXES)}"
        )
    readable.sort()

    def read(number: int, size: int) -> Tensor:
        return crop_and_resize(open_rgb(folder / readable[number], size), size)

    stats = [os.stat(folder / path) for path in readable]
    encoded = np.array([os.fsencode(path) for path in readable])
    names = [os.fsencode(path).decode(errors="replace") for path in readable]
    identity = digest_arrays(encoded, [(stat.st_size, stat.st_mtime_ns) for stat in stats])
    return Pictures(f"folder {folder}", names, identity, sorted(damaged), True, "", read)
