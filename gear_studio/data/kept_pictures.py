"""A fixed set of pictures to train on, and what frozen networks say of each, computed once and kept on disk.

A source of pictures without end never shows one twice, so a frozen teacher has to be run at every step. Of a
fixed set its features are known after the first pass, whoever trains: runs with other seeds, arms and
tokenizers read the same files. That is what `KeptPictures` is for. Each of its columns (labels, a tokenizer's
tokens, a teacher's features) lies in a folder of its own, named by a digest of everything that it depends on:
the pictures and the network. So features are computed once for all tokenizers, and nothing is out of date.

Item j of the set is view j // n of the source's picture j % n (of a source with an end, in a fixed random
order), a view being a pure function of its two numbers (`view_rng`). So a source of few pictures gives many
views of each, and one without end gives its first pictures.

On disk: gear-studio/kept in the user's cache folder, a folder a column with blocks of `BLOCK` rows, .npy,
memory-mapped. A block is written whole or not at all, under a lock of its own: processes that want the same
column share the work, and one that is killed costs its block alone. All columns together stay below `LARGEST`
bytes; where a new one needs room, those unused for longest go.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from gear_studio.data.source import ENDLESS, Batch, Captioned, Fingerprinted, Source, digest_arrays
from gear_studio.data.stream import skipped_by
from gear_studio.data.tokens import view_rng
from gear_studio.errors import InputError
from gear_studio.files import atomic, write_json
from gear_studio.places import cache_folder

FORMAT = 1  # raise it when a change of the code gives other rows for the same pictures and network
BLOCK = 2048  # rows in a file
LARGEST = 16 * 2**30  # bytes of all columns together
_SEEN = 256  # pictures that tell a set from another
_DESCRIPTION = "made-from.json"

Compute = Callable[[Batch], Tensor]  # a batch of the source -> rows (B, ...)


class KeptPictures:
    """`count` training views of a source's pictures; satisfies `Source`, but for the evaluation view.

    captions: whether batches have them. pixels: whether batches have the pictures; without, none is drawn or
    opened. Columns are added by `keep`."""

    def __init__(self, source: Source, count: int, captions: bool = False, pixels: bool = True):
        self.name, self.classes, self.image_size = source.name, source.classes, source.image_size
        self.source, self.count, self.with_captions, self.pixels = source, count, captions, pixels
        self.skipped = skipped_by(source)
        self.columns: dict[str, KeptRows] = {}
        self._order: np.ndarray | None = None
        if len(source) < ENDLESS:  # as it lies on disk, the first ones would be of a few classes
            self._order = np.random.default_rng(0).permutation(len(source))

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Sequence[int], rngs: Sequence[np.random.Generator] | None = None) -> Batch:
        """The batch of the source, without "image" where `pixels` is False, and a tensor for each column.
        rngs are ignored: the views are fixed."""
        if self.pixels:
            batch = self._read_pictures(indices)
        else:
            batch = {}
            if self.with_captions and isinstance(self.source, Captioned):
                batch["caption"] = self.source.captions([self._place(j)[0] for j in indices])
        return batch | {name: column.read(indices) for name, column in self.columns.items()}

    def keep(
        self, kind: str, network: str, compute: Compute, at_once: int, progress: bool = True, name: str = ""
    ) -> None:
        """Add a column: `compute` of every picture, from disk where it has been computed before.

        network: everything that rows of this kind depend on beside the pictures. at_once: how many pictures
        `compute` is given. name: of the column, by default its kind. Raises ValueError for a column that is
        too large, or has numbers that its type cannot hold."""
        made_from = {"format": FORMAT, "kind": kind, "network": network, "pictures": self.identity}
        digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]
        folder = cache_folder("kept") / f"{kind}-{digest}"
        blocks = [folder / f"{begin:09d}.npy" for begin in range(0, self.count, BLOCK)]
        if missing := [path for path in blocks if not path.is_file()]:
            first = compute(self._read_pictures([0]))
            self._make_room(folder, first.numel() * first.element_size())
        write_json(folder / _DESCRIPTION, made_from)  # also says when it was used last
        with tqdm(total=len(missing), desc=f"keeping {kind}", unit="block", disable=not progress) as bar:
            for wait in (False, True):  # first what nobody is at, then what others are at, should they die
                for path in missing:
                    with suppress(Timeout), FileLock(path.with_suffix(".lock"), -1 if wait else 0):
                        if not path.is_file():
                            self._write_block(path, compute, at_once)
                            bar.update()
        for path in blocks:  # whoever takes one later finds the block
            path.with_suffix(".lock").unlink(missing_ok=True)
        self.columns[name or kind] = KeptRows(blocks)

    @cached_property
    def identity(self) -> str:
        """A digest of what the pictures are: of how many, and of some that lie all over the set."""
        seen = self._read_pictures(sorted({int(j) for j in np.linspace(0, self.count - 1, _SEEN)}))
        known = self.source.fingerprint() if isinstance(self.source, Fingerprinted) else self.name
        return digest_arrays(np.array([self.count]), known.encode(), seen["image"], seen["label"])

    def _place(self, item: int) -> tuple[int, int]:
        """The picture's number in the source, and the view."""
        view, number = divmod(item, len(self.source))
        return (number if self._order is None else int(self._order[number])), view

    def _read_pictures(self, indices: Sequence[int]) -> Batch:
        places = [self._place(j) for j in indices]
        return self.source.read([number for number, _ in places], [view_rng(*place) for place in places])

    def _write_block(self, path: Path, compute: Compute, at_once: int) -> None:
        begin = int(path.stem)
        end = min(begin + BLOCK, self.count)
        rows = [
            compute(self._read_pictures(range(at, min(at + at_once, end))))
            for at in range(begin, end, at_once)
        ]
        block = torch.cat(rows).cpu()
        if block.is_floating_point() and not block.isfinite().all():
            raise InputError(
                f"features of {path.parent.name} go beyond the numbers of {block.dtype}; set kept_pictures=0"
            )
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.save(file, block.numpy())

    def _make_room(self, folder: Path, row: int) -> None:
        """Delete the columns unused for longest until one of rows of so many bytes fits."""
        needed = self.count * row
        if needed > LARGEST:
            raise InputError(
                f"kept_pictures={self.count}: {folder.name} would take {needed / 2**30:.0f} GiB, at most "
                f"{LARGEST / 2**30:.0f} are kept; set it lower, or to 0 to keep nothing"
            )
        sizes = {}
        for path in folder.parent.glob(f"*/{_DESCRIPTION}"):
            with suppress(FileNotFoundError):  # another process makes room, too
                sizes[path.parent] = sum(file.stat().st_size for file in path.parent.iterdir())
        sizes.pop(folder, None)
        for oldest in sorted(sizes, key=lambda each: (each / _DESCRIPTION).stat().st_mtime):
            if needed + sum(sizes.values()) <= LARGEST:
                break
            sizes.pop(oldest)
            shutil.rmtree(oldest, ignore_errors=True)


class KeptRows:
    """The rows of a column, memory-mapped. Maps stay open, so that rows stay there when files are deleted."""

    def __init__(self, blocks: Sequence[Path]):
        self.blocks = list(blocks)
        self._maps = [np.load(path, mmap_mode="r") for path in self.blocks]

    def read(self, indices: Sequence[int]) -> Tensor:
        """Rows by number: (B, ...), whole numbers as int64, others in the type they are kept in."""
        rows = torch.from_numpy(np.stack([self._maps[j // BLOCK][j % BLOCK] for j in indices]))
        return rows if rows.is_floating_point() else rows.long()

    def __getstate__(self) -> dict[str, Any]:
        return {"blocks": self.blocks}  # maps would be sent whole to loading processes that are spawned

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["blocks"])  # type: ignore[misc]
