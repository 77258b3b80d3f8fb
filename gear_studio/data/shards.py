"""Shards: pictures and their class numbers or captions in WebDataset tar files, read in any order.

Notable: an index, not a pipeline. WebDataset streams its tars: which pictures a batch holds then depends on
the number of workers and processes, and a run that was killed cannot go on in the middle of an epoch without
reading up to it. But a plain tar holds its members whole, each at a known offset. One pass over the headers
writes down (offset, size, label, key) of every picture, and from then on shards are a numbered collection
like any other `Source`: `stream` shuffles, shares and resumes them exactly.

The index is built once, shard by shard, by as many processes as there are cores (and by all processes of a
training together), and kept in the user's cache folder; a shard whose size or time changes is read again. It
takes some 40 bytes a picture: 50 MB for ImageNet's 1.28 million.

The shuffle (`order`) keeps reads near each other, for spinning and network disks: see there.
"""

import glob
import json
import os
import random
import re
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from braceexpand import braceexpand

from gear_studio.data.images import SUFFIXES
from gear_studio.data.picture_files import PictureFiles, warn_of_single, warn_passed_over
from gear_studio.data.source import SPLITS, check_split, digest_arrays, numbers_of_split
from gear_studio.errors import InputError
from gear_studio.files import atomic
from gear_studio.places import cache_folder

RUN = 64  # neighbours in a shard that stay near each other in the shuffle: some 7 MB of ImageNet
WINDOW = 16_384  # how many pictures later the shuffle may bring one: some 2 GB of ImageNet
_FORMAT = 3  # of the stored index
_NONE = -1  # in an index: no label, or no caption


class Shards(PictureFiles):
    """Samples KEY.jpg (or another picture) with KEY.cls or KEY.json in tar files; satisfies `Source`.

    folder: a folder of .tar files, at any depth, or a pattern: "PATH/{000000..000099}.tar", "PATH/*.tar".
    split: train or val. Where some shards' or their folders' names begin a word with "train" and others with
    "val", that is the split; else val is a twentieth of the samples and of every class: their shard and key
    hash lowest. A class with a single one, which is warned of, is trained on alone.
    Labels: KEY.cls, a whole number, or the "label" of KEY.json. Their names are the lines of a classnames.txt
    in the shards' folder or the one above it, else the numbers.
    captions: take the samples that have a KEY.txt, and pass over the others; then no labels are needed, and
    there are no classes (all labels are 0).
    Raises ValueError, naming the shard and key, for what is missing, empty, damaged, there twice or has no
    label. Warns of shards that do not end as a tar does: samples may be missing from them.
    """

    name = "shards"
    place = "a folder of .tar files, or a pattern like 'PATH/{000000..000099}.tar'"

    def __init__(
        self, folder: str | Path, split: str = "train", image_size: int = 64, captions: bool = False
    ) -> None:
        check_split(self.name, split)
        self.folder = Path(folder).expanduser()
        self.image_size = image_size
        self.with_captions = captions
        self.skipped: set[str] = set()
        self._shards = find_shards(self.folder)
        tables = index_shards(self._shards)
        _warn_cut(self._shards, tables)
        if not captions:
            for shard, table in zip(self._shards, tables, strict=True):
                _check_labels(shard, table)
        counts = [len(table["label"]) for table in tables]
        self._shard = np.repeat(np.arange(len(tables), dtype=np.int32), counts)
        self._offset, self._size, self._labels, self._keys, self._text, self._text_size = (
            np.concatenate([table[column] for table in tables])
            for column in ("offset", "size", "label", "key", "text_offset", "text_size")
        )
        members = self._members_of(split)
        if captions:
            self.classes, self._labels = [], np.zeros_like(self._labels)
            captioned = members[self._text[members] != _NONE]
            if len(captioned) < len(members):
                warn_passed_over(self.folder, len(members) - len(captioned), len(members))
            if not len(captioned):
                raise InputError(f"{self.folder}: no sample for {split} has a caption; expected KEY.txt")
            members = captioned
        else:
            self.classes = self._class_names()
            if split == "train":
                self._warn_of_unseen(members)
        if not len(members):
            raise InputError(f"{self.folder} has too few samples ({sum(counts)}) to use some for {split}")
        for column in ("_shard", "_offset", "_size", "_labels", "_keys", "_text", "_text_size"):
            setattr(self, column, getattr(self, column)[members])
        self._fetched: OrderedDict[int, None] = OrderedDict()
        self._decode(0)

    def __len__(self) -> int:
        return len(self._labels)

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """An epoch's order (len,): every sample once, such that the disk is read in stretches.

        Runs of `RUN` neighbours come in random order; then each sample is delayed by less than `WINDOW`
        places. So a batch mixes some 256 places of the whole collection, whatever the order within a shard,
        and what is read at any time lies in runs that are read whole, once, as long as the system's file
        cache holds them.
        """
        runs = rng.permutation(-(-len(self) // RUN))
        numbers = (runs[:, None] * RUN + np.arange(RUN)).ravel()
        numbers = numbers[numbers < len(self)]  # the last run may be a shorter one
        return numbers[np.argsort(np.arange(len(self)) + WINDOW * rng.random(len(self)))]

    def fingerprint(self) -> str:
        """A digest that changes with any shard's name, size or time of writing, or with the split."""
        stamps = [(shard.name, *_stamp(shard)) for shard in self._shards]
        return digest_arrays(np.array(json.dumps(stamps).encode()), self._shard, self._offset, self._labels)

    def identity(self) -> str:
        names = json.dumps([shard.name for shard in self._shards]).encode()
        columns = self._shard, self._keys, self._labels, self._offset, self._size, self._text_size
        return digest_arrays(np.array(names), *columns)

    def _name(self, index: int) -> str:
        return f"{self._shards[self._shard[index]]}: {os.fsdecode(self._keys[index])}"

    def _label(self, index: int) -> int:
        return int(self._labels[index])

    def _read_caption_bytes(self, index: int) -> bytes:
        with open(self._shards[self._shard[index]], "rb", buffering=0) as file:
            file.seek(int(self._text[index]))
            return file.read(int(self._text_size[index]))

    def _read_bytes(self, index: int) -> bytes:
        with open(self._shards[self._shard[index]], "rb", buffering=0) as file:
            self._fetch_run(index, file.fileno())
            file.seek(int(self._offset[index]))
            return file.read(int(self._size[index]))

    def _fetch_run(self, index: int, file: int) -> None:
        """Ask the system to read all of a run when its first sample is: one stretch instead of 64 jumps."""
        run = index // RUN
        if run not in self._fetched and hasattr(os, "posix_fadvise"):
            members = np.arange(run * RUN, min((run + 1) * RUN, len(self)))
            members = members[self._shard[members] == self._shard[index]]
            begin = int(self._offset[members[0]])
            end = int(self._offset[members[-1]] + self._size[members[-1]])
            os.posix_fadvise(file, begin, end - begin, os.POSIX_FADV_WILLNEED)
        self._fetched[run] = None
        self._fetched.move_to_end(run)
        if len(self._fetched) > 4 * WINDOW // RUN:
            self._fetched.popitem(last=False)

    def _class_names(self) -> list[str]:
        count = int(self._labels.max()) + 1
        for folder in (self._shards[0].parent, self._shards[0].parent.parent):
            if (names := folder / "classnames.txt").is_file():
                classes = names.read_text().splitlines()
                if count > len(classes):
                    raise InputError(
                        f"{names} names {len(classes)} classes, but there are labels up to {count - 1}"
                    )
                return classes
        return [str(number) for number in range(count)]

    def _warn_of_unseen(self, members: np.ndarray) -> None:
        """Warn, naming the first, of classes without a picture among those that are trained on."""
        if unseen := sorted(set(range(len(self.classes))) - set(self._labels[members].tolist())):
            warnings.warn(
                f"{len(unseen)} of {len(self.classes)} classes in {self.folder} have no picture to train on; "
                f"the first is {self.classes[unseen[0]]!r}",
                stacklevel=3,
            )

    def _members_of(self, split: str) -> np.ndarray:
        """The numbers of a split's samples among those of all shards."""
        splits = np.array([_split_in_name(shard) for shard in self._shards])
        if set(SPLITS) <= set(splits):
            return np.flatnonzero((splits == split)[self._shard])
        keys = [
            f"{self._shards[shard].name}/{os.fsdecode(key)}"
            for shard, key in zip(self._shard, self._keys, strict=True)
        ]
        classes = np.zeros_like(self._labels) if self.with_captions else self._labels
        if split == "train":
            warn_of_single(self.folder, classes.tolist())
        return numbers_of_split(keys, classes.tolist(), split)


def find_shards(folder: Path) -> list[Path]:
    """List the shards of a folder or pattern, in order. Raises ValueError when there are none."""
    expected = "expected a folder of .tar files or a pattern like 'PATH/{000000..000099}.tar'"
    shards = []
    for path in map(Path, braceexpand(str(folder))):
        if path.is_dir():
            shards += sorted(path.rglob("*.tar"))
        elif any(sign in str(path) for sign in "*?["):
            shards += map(Path, sorted(glob.glob(str(path))))
        else:
            shards.append(path)
    if missing := [shard for shard in shards if not shard.is_file()]:
        raise InputError(
            f"{len(missing)} of {len(shards)} shards are missing, the first is {missing[0]}; {expected}"
        )
    if not shards:
        raise InputError(f"no shards in {folder}; {expected}")
    return [shard.absolute() for shard in shards]


def index_shards(shards: list[Path]) -> list[dict[str, np.ndarray]]:
    """Give the index of each shard: the stored one, or one that is built now, side by side, and stored.

    {"offset": int64, "size": int64, "label": int32, "key": bytes, "text_offset": int64, "text_size": int32},
    an entry a sample; label and text_offset are -1 where it has none. And "whole": bool, one a shard, whether
    it ends as a tar does.
    """
    tables = {shard: table for shard in shards if (table := _load_index(shard)) is not None}
    missing = [shard for shard in dict.fromkeys(shards) if shard not in tables]
    # Each process of a training begins elsewhere and passes over what another has done meanwhile.
    random.Random().shuffle(missing)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(missing) <= 4 or cores == 1:
        tables |= {shard: index_shard(shard) for shard in missing}
    else:
        with ProcessPoolExecutor(min(cores, 32, len(missing))) as pool:
            tables |= zip(missing, pool.map(index_shard, missing), strict=True)
    return [tables[shard] for shard in shards]


def index_shard(shard: Path) -> dict[str, np.ndarray]:
    """Index a shard, as `index_shards` does: read its headers and labels, unless its index is stored."""
    if (table := _load_index(shard)) is not None:
        return table
    stamp = _stamp(shard)  # of before: a shard written to meanwhile will be read again
    pictures: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    texts: dict[str, tuple[int, int]] = {}
    seen: set[tuple[str, str]] = set()
    try:
        with tarfile.open(shard, "r:") as tar, open(shard, "rb", buffering=0) as file:
            for member in tar:
                path = PurePosixPath(member.name)
                stem, _, kind = path.name.partition(".")
                key, kind = str(path.with_name(stem)) if stem else "", kind.lower()
                if not member.isfile() or not key:
                    continue
                if (key, kind) in seen and (f".{kind}" in SUFFIXES or kind in ("txt", "cls", "json")):
                    raise InputError(
                        f"{shard} holds {member.name} twice: key {key} is of two samples, or of one that was "
                        "added again; make it again with a key for each sample"
                    )
                seen.add((key, kind))
                if f".{kind}" in SUFFIXES:
                    pictures.setdefault(key, (member.offset_data, member.size))
                elif kind == "txt":
                    texts[key] = member.offset_data, member.size
                elif kind == "cls" or (kind == "json" and key not in labels):
                    file.seek(member.offset_data)
                    label = _parse_label(file.read(member.size), kind, f"{shard}: {member.name}")
                    if label is not None:
                        labels[key] = label
            file.seek(tar.offset)  # where a tar ends: with two empty blocks, and more to pad it
            rest = file.read(2 * tarfile.RECORDSIZE)
    except tarfile.TarError as error:
        raise InputError(
            f"{shard} is damaged or no uncompressed tar ({error}); make or copy it again"
        ) from error
    if not pictures:
        raise InputError(f"{shard} is empty: it holds no pictures ({', '.join(SUFFIXES)})")
    table = {
        "offset": np.array([offset for offset, _ in pictures.values()], np.int64),
        "size": np.array([size for _, size in pictures.values()], np.int64),
        "label": np.array([labels.get(key, _NONE) for key in pictures], np.int32),
        "text_offset": np.array([texts.get(key, (_NONE, 0))[0] for key in pictures], np.int64),
        "text_size": np.array([texts.get(key, (_NONE, 0))[1] for key in pictures], np.int32),
        "key": np.array([os.fsencode(key) for key in pictures]),
        "whole": np.array(len(rest) >= tarfile.BLOCKSIZE and not any(rest)),
    }
    arrays: dict[str, Any] = {"stamp": (_FORMAT, *stamp)} | table
    with atomic(_index_path(shard)) as temporary, open(temporary, "wb") as target:
        np.savez(target, **arrays)
    return table


def _warn_cut(shards: list[Path], tables: list[dict[str, np.ndarray]]) -> None:
    """Warn, naming the first, of shards that do not end as a tar does."""
    cut = [number for number, table in enumerate(tables) if not table["whole"]]
    if cut:
        warnings.warn(
            f"{len(cut)} of {len(shards)} shards do not end as a tar does, the first is {shards[cut[0]]}, "
            f"with {len(tables[cut[0]]['label'])} samples before it breaks off; what followed is not used. "
            "Copy or make it again",
            stacklevel=3,
        )


def _check_labels(shard: Path, table: dict[str, np.ndarray]) -> None:
    """Raise ValueError, naming the first, where samples have no label."""
    if len(unlabelled := table["key"][table["label"] == _NONE]):
        first = os.fsdecode(unlabelled[0])
        raise InputError(
            f"{shard}: {len(unlabelled)} of {len(table['key'])} samples have no label, the first is {first}; "
            f'expected {first}.cls with its class number, or .json with a "label"'
        )


def _parse_label(content: bytes, kind: str, where: str) -> int | None:
    """Read the class number in a .cls or .json file; None where a .json has no "label"."""
    try:
        value = int(content) if kind == "cls" else json.loads(content).get("label")
    except (ValueError, AttributeError):
        value = content[:20]
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise InputError(f"{where} says {value!r}; expected a class number, counted from 0")
    return value


def _split_in_name(shard: Path) -> str:
    """The split that the name of a shard or of its folder says; "" where neither says one."""
    match = re.search(r"(?:^|[^a-z])(train|val)", f"{shard.parent.name}/{shard.name}".lower())
    return match[1] if match else ""


def _stamp(shard: Path) -> tuple[int, int]:
    """Size and time of writing: what changes when the shard does."""
    stat = shard.stat()
    return stat.st_size, stat.st_mtime_ns


def _index_path(shard: Path) -> Path:
    """Where a shard's index is stored."""
    return cache_folder("shards") / f"{sha256(str(shard).encode()).hexdigest()[:32]}.npz"


def _load_index(shard: Path) -> dict[str, np.ndarray] | None:
    """Load a shard's stored index; None where it is missing, damaged, or of the shard as it was earlier."""
    try:
        with np.load(_index_path(shard)) as stored:
            table = dict(stored)
    except (FileNotFoundError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return table if tuple(table.pop("stamp")) == (_FORMAT, *_stamp(shard)) else None
