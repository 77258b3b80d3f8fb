"""Folder: any folder of real pictures, one sub-folder a class.

Notable: a file that does not decode costs a warning with its name, not the run. The next readable one stands
in for it, so the stream stays a pure function of (seed, step). `open_rgb` and `fit` turn every picture from
outside (the user's own photo too) into square uint8 RGB.
"""

import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps

SPLITS = ("train", "val")
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_VAL_SHARE = 20  # one picture in so many is held out where the folder brings no split of its own


class Folder:
    """Pictures under `folder/CLASS/` or `folder/{train,val}/CLASS/`, at any depth; satisfies `Source`.

    split: train or val. Where the folder has no such sub-folders, val is a twentieth of the files, the ones
    whose path inside the folder hashes lowest: the same on every machine.
    skipped: the files that this process has found unreadable so far.
    Raises ValueError, naming the folder, when it is missing or has no class folders or no readable pictures.
    """

    name = "folder"

    def __init__(self, folder: str | Path, split: str = "train", image_size: int = 64) -> None:
        if split not in SPLITS:
            raise ValueError(f"folder has no split {split!r}; choose one of {', '.join(SPLITS)}")
        self.folder = Path(folder)
        self.image_size = image_size
        self.skipped: set[str] = set()
        self.classes, files = _find(self.folder, split)
        self._files = [(str(file), self.classes.index(file_class)) for file, file_class in files]
        self._decode(0)  # a folder without one readable picture is known now

    def __len__(self) -> int:
        return len(self._files)

    def read(
        self, indices: Sequence[int], rngs: Sequence[np.random.Generator] | None = None
    ) -> dict[str, torch.Tensor]:
        """{"image": uint8 (B,3,H,W), "label": int64 (B,)}.

        With rngs the square lies at random and is mirrored half the time; without, it is the middle one.
        An unreadable file is replaced, label included, by the next readable one.
        Raises IndexError for an index that is not there, ValueError when no file is readable.
        """
        images, labels = [], []
        for row, index in enumerate(indices):
            picture, label = self._decode(index)
            images.append(fit(picture, self.image_size, None if rngs is None else rngs[row]))
            labels.append(label)
        return {"image": torch.stack(images), "label": torch.tensor(labels)}

    def _decode(self, index: int) -> tuple[Image.Image, int]:
        if not 0 <= index < len(self._files):
            raise IndexError(f"{self.folder} has pictures 0 to {len(self._files) - 1}, asked for {index}")
        for step in range(len(self._files)):
            file, label = self._files[(index + step) % len(self._files)]
            if file in self.skipped:
                continue
            try:
                return open_rgb(file, self.image_size), label
            except UnreadableImage as error:
                self.skipped.add(file)
                warnings.warn(f"skipped {error}", stacklevel=2)
        raise ValueError(f"{self.folder}: none of the {len(self._files)} pictures can be read")


class UnreadableImage(ValueError):
    """The file is not a picture, or a broken one; the message names it and says why."""


def open_rgb(file: str | Path | BinaryIO, at_least: int | None = None) -> Image.Image:
    """Decode to 8-bit RGB the way it is meant to be seen: EXIF orientation applied, transparency on white.

    at_least: a JPEG may be decoded at a half, quarter or eighth of its size, no side below twice this.
    Raises UnreadableImage for anything that does not decode.
    """
    try:
        with Image.open(file) as picture:
            if at_least is not None:
                picture.draft(None, (2 * at_least, 2 * at_least))  # a camera's photo: several times faster
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith("I"):  # 16-bit grays: a plain conversion would clip, not scale
                picture = Image.fromarray((np.asarray(picture) / 257).round().clip(0, 255).astype(np.uint8))
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            return picture.convert("RGB")
    except Exception as error:  # what a decoder raises on bad bytes is an open list
        raise UnreadableImage(f"{file}: {type(error).__name__}: {error}") from error


def fit(picture: Image.Image, image_size: int, rng: np.random.Generator | None = None) -> torch.Tensor:
    """RGB picture -> uint8 (3,image_size,image_size): its largest square, resized (bicubic).

    rng: the square lies at random and is mirrored half the time; None: it is the middle one.
    """
    side = min(picture.size)
    left, top = ((length - side) * (0.5 if rng is None else rng.random()) for length in picture.size)
    # In one go: to resize all of a very long picture before cropping it would need memory for nothing.
    square = (left, top, left + side, top + side)
    picture = picture.resize((image_size, image_size), Image.Resampling.BICUBIC, box=square)
    if rng is not None and rng.random() < 0.5:
        picture = ImageOps.mirror(picture)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _find(folder: Path, split: str) -> tuple[list[str], list[tuple[Path, str]]]:
    """Class names, and the split's files in order, each with its class."""
    expected = f"expected {folder}/CLASS/picture.jpg, or {folder}/train/CLASS/... and {folder}/val/CLASS/..."
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; {expected}")
    if all((folder / part).is_dir() for part in SPLITS):
        classes = sorted({file_class for _, file_class in _pictures(folder / "train")})
        files = _pictures(folder / split)
        if strange := sorted({file_class for _, file_class in files} - set(classes)):
            raise ValueError(f"{folder}/val has classes that {folder}/train has not: {', '.join(strange)}")
    else:
        only_train = [entry.name for entry in folder.iterdir() if entry.is_dir()] == ["train"]
        root = folder / "train" if only_train else folder
        everything = _pictures(root)
        classes = sorted({file_class for _, file_class in everything})
        ranked = sorted(everything, key=lambda item: _hash(item[0].relative_to(root)))
        held_out = max(1, len(ranked) // _VAL_SHARE)
        files = sorted(ranked[:held_out] if split == "val" else ranked[held_out:])
    if not files:
        raise ValueError(f"{folder} has no pictures in class folders to use for {split}; {expected}")
    return classes, files


def _pictures(root: Path) -> list[tuple[Path, str]]:
    """Every picture in a sub-folder of root, with that sub-folder's name; hidden files are not pictures."""
    found = []
    for here, _, names in os.walk(root, followlinks=True):
        inside = Path(here).relative_to(root).parts
        for name in names:
            if inside and not name.startswith(".") and name.lower().endswith(_SUFFIXES):
                found.append((Path(here, name), inside[0]))
    return sorted(found)


def _hash(path: Path) -> bytes:
    return hashlib.sha256(path.as_posix().encode()).digest()
