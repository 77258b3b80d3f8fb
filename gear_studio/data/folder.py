"""Folder: any folder of real pictures, one sub-folder a class, or with a caption beside each picture.

Notable: a file that does not decode costs a warning with its name, not the run. The next readable one stands
in for it, so the stream stays a pure function of (seed, step). The same goes for a caption that is empty or
not UTF-8. `open_rgb` and `fit` turn every picture from
outside (the user's own photo too) into square uint8 RGB. Names and labels are arrays, not lists of objects: a
million of them cost some 40 MB, and loading processes share them instead of copying.
"""

import hashlib
import io
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps

SPLITS = ("train", "val")
_HELD_OUT = ("val", "validation", "test")  # folders beside `train`: the first that is there is the split val
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_VAL_SHARE = 20  # one picture in so many is held out where the data bring no split of their own


class Pictures(ABC):
    """What sources of picture files share (`Folder`, `Shards`): reading them by number, whatever their state.

    skipped: the files that this process has found unreadable so far, or without a readable caption where
    captions are asked for (`with_captions`); its loading processes' too, once `stream` has given their batch.
    """

    name: str
    folder: Path
    classes: list[str]
    image_size: int
    with_captions: bool
    skipped: set[str]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def identity(self) -> str:
        """A digest of what there is to read, by names, labels and sizes: the same wherever the files lie and
        whenever they were copied there, unlike a `fingerprint`."""

    @abstractmethod
    def _name(self, index: int) -> str:
        """What to call file `index` in a message."""

    @abstractmethod
    def _bytes(self, index: int) -> bytes:
        """The file as it is stored."""

    @abstractmethod
    def _caption_bytes(self, index: int) -> bytes:
        """The caption of file `index` as it is stored."""

    @abstractmethod
    def _label(self, index: int) -> int: ...

    def read(
        self, indices: Sequence[int], rngs: Sequence[np.random.Generator] | None = None
    ) -> dict[str, torch.Tensor]:
        """{"image": uint8 (B,3,H,W), "label": int64 (B,)}, with captions also {"caption": B strings}.

        With rngs the square lies at random and is mirrored half the time; without, it is the middle one.
        An unreadable file is replaced, label and caption included, by the next readable one.
        Raises IndexError for an index that is not there, ValueError when no file is readable.
        """
        images, labels, captions = [], [], []
        for row, index in enumerate(indices):
            if row == 0 or index != indices[row - 1]:  # several views of one picture need one decoding
                picture, label, caption = self._decode(index)
            images.append(fit(picture, self.image_size, None if rngs is None else rngs[row]))
            labels.append(label)
            captions.append(caption)
        batch = {"image": torch.stack(images), "label": torch.tensor(labels)}
        return batch | ({"caption": captions} if self.with_captions else {})

    def captions(self, indices: Sequence[int]) -> list[str]:
        """The captions that `read` gives with these pictures."""
        return [self._decode(index)[2] for index in indices]

    def _decode(self, index: int) -> tuple[Image.Image, int, str]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder} has pictures 0 to {len(self) - 1}, asked for {index}")
        for step in range(len(self)):
            at = (index + step) % len(self)
            name = self._name(at)
            if name in self.skipped:
                continue
            try:
                caption = read_caption(self._caption_bytes(at), name) if self.with_captions else ""
                return open_rgb(io.BytesIO(self._bytes(at)), self.image_size, name), self._label(at), caption
            except (UnreadableImage, UnreadableCaption, OSError) as error:
                self.skipped.add(name)
                warnings.warn(f"skipped {error}", stacklevel=2)
        raise ValueError(f"{self.folder}: none of the {len(self)} pictures can be read")


class Folder(Pictures):
    """Pictures under `folder/CLASS/` or `folder/{train,val}/CLASS/`, at any depth; satisfies `Source`.

    split: train or val. Beside a sub-folder `train`, val is the sub-folder `val`, where there is none
    `validation`, else `test`. Where there is none of these, val is a twentieth of the files, the ones whose
    path inside the folder (or inside `train`) hashes lowest: the same on every machine.
    Hidden files and folders are passed over.
    captions: pictures with a .txt of the same name beside them, those without passed over; then no class
    folders are needed, and there are no classes (all labels are 0).
    Raises ValueError, naming the folder, when it is missing or has no class folders or no readable pictures,
    or pictures beside `train` that belong to no split.
    """

    name = "folder"

    def __init__(
        self, folder: str | Path, split: str = "train", image_size: int = 64, captions: bool = False
    ) -> None:
        check_split(self.name, split)
        self.folder = Path(folder)
        self.image_size = image_size
        self.with_captions = captions
        self.skipped: set[str] = set()
        self.classes, files = _find(self.folder, split, captions)
        number = {file_class: i for i, file_class in enumerate(self.classes)}
        self._labels = np.array([number.get(file_class, 0) for _, file_class in files], np.int32)
        self._paths = np.array([os.fsencode(path) for path, _ in files])  # inside the folder
        self._decode(0)  # a folder without one readable picture is known now

    def __len__(self) -> int:
        return len(self._labels)

    def _name(self, index: int) -> str:
        return str(self.folder / os.fsdecode(self._paths[index]))

    def _bytes(self, index: int) -> bytes:
        return Path(self._name(index)).read_bytes()

    def _caption_bytes(self, index: int) -> bytes:
        return Path(self._name(index)).with_suffix(".txt").read_bytes()

    def _label(self, index: int) -> int:
        return int(self._labels[index])

    def fingerprint(self) -> str:
        """A digest that changes with any file's name, label, size or time of writing, or with the split."""
        stats = [os.stat(self._name(i)) for i in range(len(self))]
        return digest(self._paths, self._labels, [(stat.st_size, stat.st_mtime_ns) for stat in stats])

    def identity(self) -> str:
        files = [os.path.join(os.fsencode(self.folder), path) for path in self._paths]
        if self.with_captions:
            files += [os.path.splitext(file)[0] + b".txt" for file in files]
        return digest(self._paths, self._labels, [_size(file) for file in files])


def _size(path: bytes) -> int:
    """In bytes; -1 for a file that is not there, which is skipped when its turn comes."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def check_split(source: str, split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"{source} has no split {split!r}; choose one of {', '.join(SPLITS)}")


def digest(*arrays: object) -> str:
    """SHA-256 of arrays (or what NumPy makes one of), their shapes and types included."""
    found = hashlib.sha256()
    for array in map(np.ascontiguousarray, arrays):
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(array.data.cast("B"))
    return found.hexdigest()


class UnreadableCaption(ValueError):
    """The caption is empty or not UTF-8; the message names its picture."""


def read_caption(stored: bytes, name: str) -> str:
    """A caption's text, line breaks being spaces. Raises UnreadableCaption."""
    try:
        caption = " ".join(stored.decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise UnreadableCaption(f"{name}: its caption is not UTF-8: {error}") from error
    if not caption:
        raise UnreadableCaption(f"{name}: its caption is empty")
    return caption


class UnreadableImage(ValueError):
    """The file is not a picture, or a broken one; the message names it and says why."""


def open_rgb(
    file: str | Path | BinaryIO, at_least: int | None = None, name: str | None = None
) -> Image.Image:
    """Decode to 8-bit RGB the way it is meant to be seen: EXIF orientation applied, transparency on white.

    at_least: a JPEG may be decoded at a half, quarter or eighth of its size, no side below twice this.
    name: what to call the file in an error, where it has none of its own.
    Raises UnreadableImage for anything that does not decode.
    """
    try:
        with Image.open(file) as picture:
            kind = picture.format
            if at_least is not None:
                picture.draft(None, (2 * at_least, 2 * at_least))  # a camera's photo: several times faster
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith(("I", "F")):  # a plain conversion would clip, not scale
                picture = Image.fromarray((255 * _grays(picture, kind)).round().astype(np.uint8))
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            return picture.convert("RGB")
    except Exception as error:  # what a decoder raises on bad bytes is an open list
        raise UnreadableImage(f"{name or file}: {type(error).__name__}: {error}") from error


def _grays(picture: Image.Image, kind: str | None) -> np.ndarray:
    """Grays of more than 8 bits as 0..1; kind: the file's format. Raises ValueError where their range is not
    known: that of 16 bits is 0..65535, of floats 0..1 or, where one is above 1, 0..255."""
    grays = np.asarray(picture)
    if picture.mode == "F":
        top = 1 if grays.max() <= 1 else 255
    elif picture.mode == "I" and kind not in ("PNG", "PPM"):  # these two are of 16 bits, read into 32
        raise ValueError("its grays are 32-bit integers of unknown range; save it with 8 or 16 bits")
    else:
        top = 65535
    if not (grays.min() >= 0 and grays.max() <= top):  # nor where one is NaN
        raise ValueError(
            f"its grays lie in {grays.min()} to {grays.max()}, an unknown range; save it with 8 or 16 bits"
        )
    return grays / top


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


def passed_over(where: Path, count: int, total: int) -> None:
    warnings.warn(f"passed over {count} of {total} pictures in {where}: no .txt beside them", stacklevel=2)


def held_out(names: Sequence[str], split: str) -> np.ndarray:
    """Which of `names` belong to a split, as ascending numbers: val is the twentieth that hashes lowest."""
    hashes = [hashlib.sha256(name.encode(errors="surrogateescape")).digest() for name in names]
    ranked = sorted(range(len(names)), key=hashes.__getitem__)
    cut = max(1, len(names) // _VAL_SHARE)
    return np.sort(np.array(ranked[:cut] if split == "val" else ranked[cut:], np.int64))


def _find(folder: Path, split: str, captions: bool) -> tuple[list[str], list[tuple[str, str]]]:
    """Class names, and the split's files in order: path inside the folder, and class. With captions no
    classes, and the files that have one."""
    expected = f"expected {folder}/CLASS/picture.jpg, or {folder}/train/CLASS/... and {folder}/val/CLASS/..."
    if captions:
        expected = f"expected pictures with captions beside them: {folder}/picture.jpg and picture.txt"
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; {expected}")
    beside = sorted(e.name for e in folder.iterdir() if e.is_dir() and not e.name.startswith("."))
    held = next((name for name in _HELD_OUT if name in beside), None)
    if "train" in beside:
        _check_beside_train(folder, set(beside) - {"train", *_HELD_OUT})
    elif held and not captions:
        raise ValueError(
            f"{folder} has {held} and no train beside it; name {folder / held} itself to train on that, or "
            f"rename {held} where it is a class"
        )
    root = "train" if "train" in beside else ""
    files = _pictures(folder, root, captions)
    classes = sorted({file_class for _, file_class in files if not captions})
    if root and held:
        if split == "val":
            root, files = held, _pictures(folder, held, captions)
            if strange := sorted({file_class for _, file_class in files if file_class} - set(classes)):
                raise ValueError(
                    f"{folder / held} has classes that {folder}/train has not: {', '.join(strange)}"
                )
    else:
        names = [Path(path).relative_to(root).as_posix() for path, _ in files]
        files = [files[i] for i in held_out(names, split)]
    if not files:
        kind = "with captions" if captions else "in class folders"
        raise ValueError(f"{folder / root} has no pictures {kind} to use for {split}; {expected}")
    return classes, files


def _check_beside_train(folder: Path, names: set[str]) -> None:
    for name in sorted(names):
        if any(pictures for _, _, pictures in _walk(folder / name)):
            raise ValueError(
                f"{folder} has {name} beside train, with pictures that belong to no split (train, "
                f"{', '.join(_HELD_OUT)}); move {name} elsewhere, or rename train where it is a class"
            )


def _walk(root: Path) -> Iterator[tuple[tuple[str, ...], list[str], list[str]]]:
    """Of each folder at or below root: its path inside root, its files, and which of them are pictures.
    Nothing hidden is one, or is looked into."""
    for here, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        pictures = [n for n in names if not n.startswith(".") and n.lower().endswith(SUFFIXES)]
        yield Path(here).relative_to(root).parts, names, pictures


def _pictures(folder: Path, root: str, captions: bool) -> list[tuple[str, str]]:
    """Every picture in a sub-folder of folder/root: path inside the folder, and that sub-folder's name. With
    captions: every picture that has one, at any depth, and no name; those without are counted in a
    warning."""
    found, without = [], 0
    for inside, names, pictures in _walk(folder / root):
        if captions:
            present = set(names)
            told = [name for name in pictures if os.path.splitext(name)[0] + ".txt" in present]
            without += len(pictures) - len(told)
            found += [(os.path.join(root, *inside, name), "") for name in told]
        elif inside:
            found += [(os.path.join(root, *inside, name), inside[0]) for name in pictures]
    if without:
        passed_over(folder / root, without, len(found) + without)
    return sorted(found, key=lambda item: item[0].split(os.sep))
