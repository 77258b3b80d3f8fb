"""Shards: pictures and their class numbers or captions in WebDataset tar files, read in any order.

Notable: an index, not a pipeline. WebDataset streams its tars: which pictures a batch holds then depends on
the number of workers and processes, and a run that was killed cannot go on in the middle of an epoch without
reading up to it. But a plain tar holds its members whole, each at a known offset. One pass over the headers
writes down label, key and where picture and caption lie of every sample, and from then on shards are a
numbered collection like any other `Source`: `stream` shuffles, shares and resumes them exactly.

The index is built once, shard by shard, by as many processes as there are cores (and by all processes of a
training together), and kept in the user's cache folder; a shard whose size or time changes is read again. It
takes some 60 bytes a picture: 75 MB for ImageNet's 1.28 million.

Several collections are mixed by a small file, which names each, how often it is read and the field of its
captions (`read_mixture`).

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
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from braceexpand import braceexpand

from gear_studio.data.images import SUFFIXES
from gear_studio.data.picture_files import (
    PictureFiles,
    UnreadableCaption,
    warn_of_single,
    warn_passed_over,
)
from gear_studio.data.source import SPLITS, check_split, digest_arrays, numbers_of_split
from gear_studio.errors import InputError
from gear_studio.files import atomic, read_json, read_patiently
from gear_studio.places import cache_folder

RUN = 64  # neighbours in a shard that stay near each other in the shuffle: some 7 MB of ImageNet
WINDOW = 16_384  # how many pictures later the shuffle may bring one: some 2 GB of ImageNet
_FORMAT = 4  # of the stored index
_NONE = -1  # in an index: no label, or no such member


class Shards(PictureFiles):
    """Samples KEY.jpg (or another picture) with KEY.cls or KEY.json in tar files; satisfies `Source`.

    folder: a folder of .tar files, at any depth; a pattern: "PATH/{000000..000099}.tar", "PATH/*.tar"; or the
    .json of a mixture of these (see `read_mixture`), each of which is split for itself.
    split: train or val. Where some shards' or their folders' names begin a word with "train" and others with
    "val", that is the split; else val is a twentieth of the samples and of every class: their shard and key
    hash lowest. A class with a single one, which is warned of, is trained on alone.
    Labels: KEY.cls, a whole number, or the "label" of KEY.json. Their names are the lines of a classnames.txt
    in the shards' folder or the one above it, else the numbers.
    captions: take the samples that have a caption, and pass over the others; then no labels are needed, and
    there are no classes (all labels are 0). A caption is the field that a mixture names, else KEY.txt, where
    there is none the "caption" of KEY.json.
    Raises ValueError, naming the shard and key, for what is missing, empty, damaged, there twice or has no
    label. Warns of shards that do not end as a tar does: samples may be missing from them.
    """

    name = "shards"
    place = "a folder of .tar files, a pattern like 'PATH/{000000..000099}.tar', or a mixture's .json"

    def __init__(
        self, folder: str | Path, split: str = "train", image_size: int = 64, captions: bool = False
    ) -> None:
        check_split(self.name, split)
        self.folder = Path(folder).expanduser()
        self.image_size = image_size
        self.with_captions = captions
        self.skipped: set[str] = set()
        self._parts = read_mixture(self.folder)
        of_parts = [find_shards(Path(part.shards)) for part in self._parts]
        self._shards = [shard for of_part in of_parts for shard in of_part]
        tables = index_shards(self._shards)
        _warn_cut(self._shards, tables)
        if not captions:
            for shard, table in zip(self._shards, tables, strict=True):
                _check_labels(shard, table)
        self._shard = np.repeat(np.arange(len(tables), dtype=np.int32), [len(t["label"]) for t in tables])
        part_of_shard = np.repeat(np.arange(len(of_parts), dtype=np.int32), list(map(len, of_parts)))
        self._part = part_of_shard[self._shard]
        self._offset, self._size, self._labels, self._keys = (
            np.concatenate([table[column] for table in tables])
            for column in ("offset", "size", "label", "key")
        )
        found = [
            find_captions(table, self._parts[part].caption if captions else "txt")
            for part, table in zip(part_of_shard, tables, strict=True)
        ]
        self._text, self._text_size, self._in_json = map(np.concatenate, zip(*found, strict=True))
        members = np.concatenate([self._members_of(split, part) for part in range(len(self._parts))])
        if captions:
            self.classes, self._labels = [], np.zeros_like(self._labels)
            captioned = members[self._text[members] != _NONE]
            if len(captioned) < len(members):
                warn_passed_over(self.folder, len(members) - len(captioned), len(members))
            if not len(captioned):
                raise InputError(
                    f"{self.folder}: no sample for {split} has a caption; expected "
                    f"{' or '.join(dict.fromkeys(part.described for part in self._parts))}"
                    f"{_name_fields(tables)}"
                )
            members = captioned
        else:
            self.classes = self._class_names()
            if split == "train":
                self._warn_of_unseen(members)
        if not len(members):
            raise InputError(
                f"{self.folder} has too few samples ({len(self._shard)}) to use some for {split}"
            )
        columns = (
            "_shard",
            "_part",
            "_offset",
            "_size",
            "_labels",
            "_keys",
            "_text",
            "_text_size",
            "_in_json",
        )
        for column in columns:
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

        Parts of a mixture with weights have their shares of the epoch instead: of one that is too small for
        its share, samples come again after all have come once; of one that is too large some are left out.
        """
        sizes = [int((self._part == part).sum()) for part in range(len(self._parts))]
        if len(sizes) == 1:
            return _shuffle(len(self), rng)
        weights = [size and (part.weight or size) for size, part in zip(sizes, self._parts, strict=True)]
        bounds = (np.cumsum(weights) / np.sum(weights) * len(self)).round().astype(int)
        order, places = [], []
        for start, size, count in zip(np.cumsum([0, *sizes]), sizes, np.diff([0, *bounds]), strict=False):
            rounds = [start + _shuffle(size, rng) for _ in range(-(-count // size) if size else 0)]
            order.append(np.concatenate([np.empty(0, np.int64), *rounds])[:count])
            places.append((np.arange(len(order[-1])) + rng.random(len(order[-1]))) / max(1, count))
        return np.concatenate(order)[np.argsort(np.concatenate(places))]

    def fingerprint(self) -> str:
        """A digest that changes with any shard's name, size or time of writing, or with the split."""
        stamps = [(shard.name, *_stamp(shard)) for shard in self._shards]
        return digest_arrays(np.array(json.dumps(stamps).encode()), self._shard, self._offset, self._labels)

    def identity(self) -> str:
        names = json.dumps([shard.name for shard in self._shards]).encode()
        columns = self._shard, self._keys, self._labels, self._offset, self._size, self._text_size
        told = [(part.weight, part.caption) for part in self._parts if part != Part(part.shards)]
        return digest_arrays(np.array(names), *columns, *([repr(told).encode()] if told else []))

    def _name(self, index: int) -> str:
        return f"{self._shards[self._shard[index]]}: {os.fsdecode(self._keys[index])}"

    def _label(self, index: int) -> int:
        return int(self._labels[index])

    def _read_caption_bytes(self, index: int) -> bytes:
        with open(self._shards[self._shard[index]], "rb", buffering=0) as file:
            file.seek(int(self._text[index]))
            stored = file.read(int(self._text_size[index]))
        if not self._in_json[index]:
            return stored
        field = self._parts[self._part[index]].json_field
        caption = (_parse_json(stored) or {}).get(field)
        if not isinstance(caption, str):
            raise UnreadableCaption(f"{self._name(index)}: its .json has no text {field!r} any more")
        return caption.encode(errors="surrogatepass")

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

    def _members_of(self, split: str, part: int) -> np.ndarray:
        """The numbers of a split's samples in a part, among those of all shards."""
        numbers = np.flatnonzero(self._part == part)
        splits = np.array([_split_in_name(shard) for shard in self._shards])
        if set(SPLITS) <= set(splits[np.unique(self._shard[numbers])]):
            return numbers[(splits == split)[self._shard[numbers]]]
        keys = [
            f"{self._shards[shard].name}/{os.fsdecode(key)}"
            for shard, key in zip(self._shard[numbers], self._keys[numbers], strict=True)
        ]
        classes = (np.zeros_like(numbers) if self.with_captions else self._labels[numbers]).tolist()
        if split == "train":
            warn_of_single(self.folder, classes)
        return numbers[numbers_of_split(keys, classes, split)]


@dataclass(frozen=True)
class Part:
    """A part of a mixture. shards: a folder or pattern. weight: how often a sample is one of this part,
    against those of the others; None: as often as it has samples. caption: the field of its captions: "txt"
    (KEY.txt) or "json.NAME" (NAME of KEY.json); "": KEY.txt, where there is none json.caption."""

    shards: str
    weight: float | None = None
    caption: str = ""

    @property
    def json_field(self) -> str:
        return self.caption.removeprefix("json.") or "caption"

    @property
    def described(self) -> str:
        """What a caption of it is, for an error."""
        in_json = f'KEY.json with a text "{self.json_field}"'
        return "KEY.txt" if self.caption == "txt" else in_json if self.caption else f"KEY.txt, or {in_json}"


def read_mixture(path: Path) -> list[Part]:
    """Read the parts of a mixture: {"mixture": [{"shards": PLACE, "weight": 0.8, "caption": "json.caption"},
    ...]} in a .json file, PLACE inside the file's folder where it is not absolute. Weight and caption may be
    left out, the weight by all or by none. Any other path is the only part.

    Raises FileNotFoundError, and ValueError naming what is wrong with the file."""
    if path.suffix != ".json":
        return [Part(str(path))]
    listed = read_json(path, "a mixture of shards").get("mixture")
    expected = '{"mixture": [{"shards": PLACE, "weight": 0.8, "caption": "json.caption"}, ...]}'
    if not isinstance(listed, list) or not listed:
        raise InputError(f"{path} lists no shards; expected {expected}")
    parts = []
    for each in listed:
        known = isinstance(each, dict) and "shards" in each and each.keys() <= {"shards", "weight", "caption"}
        if not known or not isinstance(each["shards"], str):
            raise InputError(f"{path}: {str(each)[:60]} is no part of a mixture; expected {expected}")
        weight, caption = each.get("weight"), each.get("caption", "")
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if weight is not None and not (is_number and 0 < weight < float("inf")):
            raise InputError(f"{path}: weight is {weight!r}; it must be a number above 0, or left out")
        if caption not in ("", "txt") and not (
            isinstance(caption, str) and caption[5:] and caption[:5] == "json."
        ):
            raise InputError(f'{path}: caption is {caption!r}; expected "txt" or "json.NAME"')
        parts.append(Part(str(path.parent / Path(each["shards"]).expanduser()), weight, caption))
    if len({part.weight is None for part in parts}) > 1:
        raise InputError(f"{path} gives a weight to some of its parts; give one to all, or to none")
    return parts


def _shuffle(length: int, rng: np.random.Generator) -> np.ndarray:
    """The numbers below `length` in an order that suits the disk; see `Shards.order`."""
    runs = rng.permutation(-(-length // RUN))
    numbers = (runs[:, None] * RUN + np.arange(RUN)).ravel()
    numbers = numbers[numbers < length]  # the last run may be a shorter one
    return numbers[np.argsort(np.arange(length) + WINDOW * rng.random(length))]


def find_shards(folder: Path) -> list[Path]:
    """List the shards of a folder or pattern, in order. Raises ValueError when there are none."""
    expected = f"expected {Shards.place}"
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

    {"offset": int64, "size": int64, "label": int32, "key": bytes, "text_offset": int64, "text_size": int32,
    "json_offset": int64, "json_size": int32, "json_kind": int32}, an entry a sample; label and offsets are -1
    where it has none. json_kind is the row of "json_kinds" that lists, a line each, which fields of its .json
    are texts. And, one a shard, "whole": bool, whether it ends as a tar does, and "odd_label": what is wrong
    with the first label that is none, or "".
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
    return read_patiently(partial(_index_shard, shard))


def _index_shard(shard: Path) -> dict[str, np.ndarray]:
    if (table := _load_index(shard)) is not None:
        return table
    stamp = _stamp(shard)  # of before: a shard written to meanwhile will be read again
    pictures: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    texts: dict[str, tuple[int, int]] = {}
    jsons: dict[str, tuple[int, int, int]] = {}
    kinds: dict[str, int] = {"": 0}  # lists of the fields that are texts, and their rows
    odd_label = ""
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
                elif kind in ("cls", "json"):
                    file.seek(member.offset_data)
                    content = file.read(member.size)
                    if kind == "json":
                        fields = _parse_json(content) or {}
                        listed = "\n".join(sorted(n for n, value in fields.items() if isinstance(value, str)))
                        row = kinds.setdefault(listed, len(kinds))
                        jsons[key] = member.offset_data, member.size, row
                    if kind == "cls" or key not in labels:
                        try:
                            label = _parse_label(content, kind, f"{shard}: {member.name}")
                        except InputError as error:  # who trains on captions needs none
                            label, odd_label = None, odd_label or str(error)
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
        "json_offset": np.array([jsons.get(key, (_NONE, 0, 0))[0] for key in pictures], np.int64),
        "json_size": np.array([jsons.get(key, (_NONE, 0, 0))[1] for key in pictures], np.int32),
        "json_kind": np.array([jsons.get(key, (_NONE, 0, 0))[2] for key in pictures], np.int32),
        "json_kinds": np.array([listed.encode(errors="surrogatepass") for listed in kinds]),
        "odd_label": np.array(odd_label.encode(errors="surrogateescape")),
        "key": np.array([os.fsencode(key) for key in pictures]),
        "whole": np.array(len(rest) >= tarfile.BLOCKSIZE and not any(rest)),
    }
    arrays: dict[str, Any] = {"stamp": (_FORMAT, *stamp)} | table
    with atomic(_index_path(shard)) as temporary, open(temporary, "wb") as target:
        np.savez(target, **arrays)
    return table


def find_captions(table: dict[str, np.ndarray], field: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the captions of a shard lie, by its index: offset (-1: there is none) and size of the member, and
    whether that is a .json. field: as `Part.caption`."""
    text, size = table["text_offset"], table["text_size"]
    if field == "txt":
        return text, size, np.zeros(len(text), bool)
    wanted = Part("", caption=field).json_field
    has = np.array([wanted in _lines(listed) for listed in table["json_kinds"]])
    in_json = has[table["json_kind"]] & (table["json_offset"] != _NONE)
    if field == "":
        in_json &= text == _NONE
    else:
        text = np.full_like(text, _NONE)
    return np.where(in_json, table["json_offset"], text), np.where(in_json, table["json_size"], size), in_json


def _lines(listed: bytes) -> list[str]:
    """The names of fields in a row of "json_kinds"."""
    return listed.decode(errors="surrogatepass").split("\n")


def _name_fields(tables: list[dict[str, np.ndarray]]) -> str:
    """The fields of KEY.json that are texts, for an error; "" where there are none."""
    names = sorted({name for table in tables for listed in table["json_kinds"] for name in _lines(listed)})
    known = ", ".join(repr(name) for name in names[:10] if name)
    return f"; the texts in KEY.json are {known}, of which a mixture can name one" if known else ""


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
    """Raise ValueError, naming the first, where samples have no label, or something else in its place."""
    if odd := table["odd_label"].item():
        raise InputError(odd.decode(errors="surrogateescape"))
    if len(unlabelled := table["key"][table["label"] == _NONE]):
        first = os.fsdecode(unlabelled[0])
        raise InputError(
            f"{shard}: {len(unlabelled)} of {len(table['key'])} samples have no label, the first is {first}; "
            f'expected {first}.cls with its class number, or .json with a "label"; or train on captions '
            "alone, with --condition caption"
        )


def _parse_json(content: bytes) -> dict | None:
    """A .json file's object; None where it is none."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


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
