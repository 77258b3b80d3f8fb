"""Folder: any folder of real pictures, one sub-folder a class, or with a caption beside each picture."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from gear_studio.data.images import is_picture
from gear_studio.data.picture_files import PictureFiles, warn_of_single, warn_passed_over
from gear_studio.data.source import check_split, digest_arrays, numbers_of_split
from gear_studio.errors import InputError
from gear_studio.files import read_patiently, walk_folders

_HELD_OUT = ("val", "validation", "test")  # folders beside `train`: the first that is there is the split val


class Folder(PictureFiles):
    """Pictures under `folder/CLASS/` or `folder/{train,val}/CLASS/`, at any depth; satisfies `Source`.

    split: train or val. Beside a sub-folder `train`, val is the sub-folder `val`, where there is none
    `validation`, else `test`. Where there is none of these, val is a twentieth of the files and of every
    class, those whose path inside the folder (or inside `train`) hashes lowest: the same on every machine.
    A class with a single file, which is warned of, is trained on alone.
    Hidden files and folders are passed over.
    captions: take the pictures that have a .txt of the same name beside them, and pass over the others; then
    no class folders are needed, and there are no classes (all labels are 0).
    Raises ValueError, naming the folder, when it is missing or has no class folders or no readable pictures,
    or pictures beside `train` that belong to no split.
    """

    name = "folder"
    place = "a folder of pictures"

    def __init__(
        self, folder: str | Path, split: str = "train", image_size: int = 64, captions: bool = False
    ) -> None:
        check_split(self.name, split)
        self.folder = Path(folder)
        self.image_size = image_size
        self.with_captions = captions
        self.skipped: set[str] = set()
        self.classes, files = _find_files(self.folder, split, captions)
        class_numbers = {name: i for i, name in enumerate(self.classes)}
        self._labels = np.array([class_numbers.get(file_class, 0) for _, file_class in files], np.int32)
        self._paths = np.array([os.fsencode(path) for path, _ in files])  # inside the folder
        self._decode(0)  # a folder without one readable picture is known now

    def __len__(self) -> int:
        return len(self._labels)

    def _name(self, index: int) -> str:
        return str(self.folder / os.fsdecode(self._paths[index]))

    def _read_bytes(self, index: int) -> bytes:
        return Path(self._name(index)).read_bytes()

    def _read_caption_bytes(self, index: int) -> bytes:
        return Path(self._name(index)).with_suffix(".txt").read_bytes()

    def _label(self, index: int) -> int:
        return int(self._labels[index])

    def fingerprint(self) -> str:
        """A digest that changes with any file's name, label, size or time of writing, or with the split."""
        stats = [read_patiently(partial(os.stat, self._name(i))) for i in range(len(self))]
        return digest_arrays(self._paths, self._labels, [(stat.st_size, stat.st_mtime_ns) for stat in stats])

    def identity(self) -> str:
        files = [os.path.join(os.fsencode(self.folder), path) for path in self._paths]
        if self.with_captions:
            files += [os.path.splitext(file)[0] + b".txt" for file in files]
        return digest_arrays(self._paths, self._labels, [_file_size(file) for file in files])


def _file_size(path: bytes) -> int:
    """A file's size in bytes; -1 where it is not there: such a file is skipped when its turn comes."""
    try:
        return read_patiently(lambda: os.stat(path)).st_size
    except OSError:
        return -1


def _find_files(folder: Path, split: str, captions: bool) -> tuple[list[str], list[tuple[str, str]]]:
    """Find the names of the classes, and a split's files in order, each as (path inside the folder, class).

    With captions there are no classes, and only files that have a caption count."""
    expected = f"expected {folder}/CLASS/picture.jpg, or {folder}/train/CLASS/... and {folder}/val/CLASS/..."
    if captions:
        expected = f"expected pictures with captions beside them: {folder}/picture.jpg and picture.txt"
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; {expected}")
    subfolders = {e.name for e in folder.iterdir() if e.is_dir() and not e.name.startswith(".")}
    held_out = next((name for name in _HELD_OUT if name in subfolders), None)
    if "train" in subfolders:
        _check_beside_train(folder, subfolders - {"train", *_HELD_OUT})
    elif held_out and not captions:
        raise InputError(
            f"{folder} has {held_out} and no train beside it; name {folder / held_out} itself to train on "
            f"that, or rename {held_out} where it is a class"
        )
    root = "train" if "train" in subfolders else ""
    files = _list_pictures(folder, root, captions)
    classes = sorted({file_class for _, file_class in files if not captions})
    if root and held_out:
        if split == "val":
            root, files = held_out, _list_pictures(folder, held_out, captions)
            if unknown := sorted({file_class for _, file_class in files if file_class} - set(classes)):
                raise InputError(
                    f"{folder / held_out} has classes that {folder}/train has not: {', '.join(unknown)}"
                )
    else:
        names = [Path(path).relative_to(root).as_posix() for path, _ in files]
        of_class = [file_class for _, file_class in files]
        if split == "train":
            warn_of_single(folder, of_class)
        numbers = numbers_of_split(names, of_class, split)
        if files and not len(numbers):
            raise InputError(
                f"{folder / root} has a single picture of each class; it takes two of a class to hold one "
                f"out for {split}"
            )
        files = [files[i] for i in numbers]
    if not files:
        kind = "with captions" if captions else "in class folders"
        raise InputError(f"{folder / root} has no pictures {kind} to use for {split}; {expected}")
    return classes, files


def _check_beside_train(folder: Path, names: set[str]) -> None:
    """Raise ValueError where a folder beside train that belongs to no split has pictures. names: of these."""
    for name in sorted(names):
        if any(pictures for _, _, pictures in _walk(folder / name)):
            raise InputError(
                f"{folder} has {name} beside train, with pictures that belong to no split (train, "
                f"{', '.join(_HELD_OUT)}); move {name} elsewhere, or rename train where it is a class"
            )


def _walk(root: Path) -> Iterator[tuple[tuple[str, ...], list[str], list[str]]]:
    """Yield for each folder at or below root: its path inside root, its files, and those that are pictures.

    Hidden folders are not looked into, and hidden files are no pictures."""
    for here, names in walk_folders(root):
        yield here.relative_to(root).parts, names, [name for name in names if is_picture(name)]


def _list_pictures(folder: Path, root: str, captions: bool) -> list[tuple[str, str]]:
    """List every picture in a sub-folder of folder/root, as (path inside the folder, name of the sub-folder).

    With captions: every picture at any depth that has one, and "" for the name; warn of those without."""
    files, uncaptioned = [], 0
    for inside, names, pictures in _walk(folder / root):
        if captions:
            present = set(names)
            captioned = [name for name in pictures if os.path.splitext(name)[0] + ".txt" in present]
            uncaptioned += len(pictures) - len(captioned)
            files += [(os.path.join(root, *inside, name), "") for name in captioned]
        elif inside:
            files += [(os.path.join(root, *inside, name), inside[0]) for name in pictures]
    if uncaptioned:
        warn_passed_over(folder / root, uncaptioned, len(files) + uncaptioned)
    return sorted(files, key=lambda file: file[0].split(os.sep))
