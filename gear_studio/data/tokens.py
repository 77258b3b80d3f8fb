"""Tokens made once: a source's training views, encoded ahead of training by a frozen tokenizer.

The generator stage needs only the tokenizer's indices, and sees every picture again each epoch. Here each
picture gets a fixed number of `views`, each with its own crop and mirroring, and every view is encoded once
(LlamaGen does so with ten). Position p of the training then takes view v of picture i, with v drawn from the
random numbers of that position: it is as exact to resume and to share as `stream` on pictures.

Teacher features are not kept here: N x d_f numbers a view are hundreds of times what the tokens take
(`kept_pictures` keeps them, of a set of a stated size). The alignment target needs the picture of the very
view that was encoded, so a view is a pure function of (i, v): `view_rng` gives the random numbers that
`Source.read` makes it from, when encoding and again when training. Where nothing is aligned, no picture is
opened at all.

On disk: a folder with tokens.npy (n, views, N) uint16 or int32, memory-mapped, and labels.npy (n,), beside
tokens.json, which says what they were made from: a digest of the tokenizer's weights, the source's
fingerprint, picture size, precision. When any of these differs, the tokens are made anew. ImageNet with ten
views of 256 tokens takes 6.6 GB, and as much again while it is made.
"""

import hashlib
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader
from tqdm import tqdm

from gear_studio import locks
from gear_studio.data.images import to_float
from gear_studio.data.source import Batch, Fingerprinted, Ordered, Source
from gear_studio.data.stream import Reader, note_skipped, skipped_by
from gear_studio.errors import InputError
from gear_studio.files import atomic, read_json, write_json
from gear_studio.models.pretrained import fingerprint
from gear_studio.models.tokenizer import Tokenizer

_FORMAT = 1
_BATCH = 64  # views the tokenizer sees at once
_BLOCK = 256  # batches in a file of the unfinished work: what a kill can cost


def view_rng(index: int, view: int) -> np.random.Generator:
    """The random numbers that make a picture's view: the same in every run, process and epoch."""
    return np.random.default_rng((0x766965, index, view))  # apart from the stream's own (seed, position)


class EncodedSource:
    """A source whose training views are encoded; satisfies `Source`, but for the evaluation view.

    pixels: `read` also gives the pictures, of the same views.
    """

    def __init__(self, source: Source, folder: Path, pixels: bool) -> None:
        self.name, self.classes, self.image_size = source.name, source.classes, source.image_size
        self.source, self.folder, self.pixels = source, folder, pixels
        self.skipped = skipped_by(source)
        self._labels = np.load(folder / "labels.npy")
        self._views = self._tokens().shape[1]
        if isinstance(source, Ordered):
            self.order = source.order

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, indices: Sequence[int], rngs: Sequence[np.random.Generator] | None = None) -> Batch:
        """{"tokens": int64 (B,N), "label": int64 (B,)}, with `pixels` also {"image": uint8 (B,3,H,W)}.

        rngs: choose the view of each picture. Raises ValueError without: only training views are encoded.
        """
        if rngs is None:
            raise InputError(f"only training views of {self.name} are encoded; give rngs to choose them")
        views = [int(rng.integers(self._views)) for rng in rngs]
        batch = {
            "tokens": torch.from_numpy(self._tokens()[list(indices), views].astype(np.int64)),
            "label": torch.from_numpy(self._labels[list(indices)].astype(np.int64)),
        }
        if self.pixels:
            view_rngs = [view_rng(index, view) for index, view in zip(indices, views, strict=True)]
            batch["image"] = self.source.read(indices, view_rngs)["image"]
        return batch

    def _tokens(self) -> np.ndarray:
        # Mapped anew each time: a map that is kept would be sent whole to loading processes that are spawned.
        return np.load(self.folder / "tokens.npy", mmap_mode="r")


def check_source(source: Source) -> Fingerprinted:
    """The source, where it has an end. Raises ValueError for one without, of which nothing can be encoded
    ahead."""
    if not isinstance(source, Fingerprinted):
        raise InputError(
            f"{source.name} has no end of new pictures, so none can be encoded ahead; set token_views=0"
        )
    return source


def encode(
    source: Source,
    tokenizer: Tokenizer,
    views: int,
    folder: Path,
    accelerator: Accelerator,
    workers: int = 0,
    progress: bool = True,
) -> None:
    """Fill `folder` with the tokens of `views` training views of every picture, unless it holds them already.

    All processes call it; each encodes its share, in blocks that a later call finds again if this one is
    killed. They need one file system, on which the main process alone puts the blocks together; of several
    trainings that want the same tokens one makes them, and the others wait. The tokenizer runs in the
    accelerator's precision, as in training. Raises ValueError as `check_source` does.
    """
    pictures = check_source(source)
    with ExitStack() as held:
        if accelerator.is_main_process:
            held.enter_context(locks.hold(folder, wait=True))
        made_from = done = None
        if accelerator.is_main_process:
            made_from = {
                "format": _FORMAT,
                "source": source.name,
                "pictures": pictures.fingerprint(),
                "image_size": source.image_size,
                "views": views,
                "tokenizer": f"{tokenizer.config} {fingerprint(tokenizer)}",
                "precision": accelerator.mixed_precision,
            }
            record = folder / "tokens.json"
            done = record.is_file() and read_json(record, "a folder of tokens") == made_from
        made_from, done = broadcast_object_list([made_from, done])
        if done:
            return
        work = folder / f"unfinished-{hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]}"
        batches = _ViewBatches(source, views)
        blocks = [work / f"{begin:08d}.npz" for begin in range(0, len(batches), _BLOCK)]
        (missing,) = broadcast_object_list(
            [[number for number, path in enumerate(blocks) if not path.is_file()]]
        )
        mine = missing[accelerator.process_index :: accelerator.num_processes]
        ranges = [range(number * _BLOCK, min((number + 1) * _BLOCK, len(batches))) for number in mine]
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=[number for numbers in ranges for number in numbers],
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # as in `stream`
        )
        loaded = note_skipped(loader, source)
        tokenizer = tokenizer.to(accelerator.device).eval()
        quiet = not (progress and accelerator.is_main_process)
        for number, numbers in zip(
            tqdm(mine, desc="encoding", unit="block", disable=quiet), ranges, strict=True
        ):
            encoded = [_encode(tokenizer, next(loaded), accelerator) for _ in numbers]
            tokens, labels = (torch.cat(column).cpu().numpy() for column in zip(*encoded, strict=True))
            with atomic(blocks[number]) as temporary, temporary.open("wb") as file:
                np.savez(
                    file,
                    tokens=tokens.astype(_token_dtype(tokenizer)),
                    labels=labels[::views].astype(np.int32),
                )
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shape = (len(source), views, tokenizer.grid**2)
            _merge(blocks, folder, shape, _token_dtype(tokenizer))
            write_json(folder / "tokens.json", made_from)
            for work in folder.glob("unfinished-*"):
                shutil.rmtree(work)
        accelerator.wait_for_everyone()


class _ViewBatches(Reader):
    """All views of a few neighbouring pictures as item s."""

    def __init__(self, source: Source, views: int) -> None:
        super().__init__(source)
        self.views = views
        self.pictures = max(1, _BATCH // views)

    def __len__(self) -> int:
        return -(-len(self.source) // self.pictures)

    def __getitem__(self, number: int) -> Batch:
        begin = number * self.pictures
        pairs = [
            (index, view)
            for index in range(begin, min(begin + self.pictures, len(self.source)))
            for view in range(self.views)
        ]
        return self.read([index for index, _ in pairs], [view_rng(*pair) for pair in pairs])


@torch.no_grad()
def _encode(
    tokenizer: Tokenizer, batch: Batch, accelerator: Accelerator
) -> tuple[torch.Tensor, torch.Tensor]:
    with accelerator.autocast():
        images = to_float(batch["image"].to(accelerator.device, non_blocking=True))
        return tokenizer.assign(images).indices, batch["label"]


def _merge(blocks: list[Path], folder: Path, shape: tuple[int, int, int], dtype: type) -> None:
    """Write the blocks, in order, as tokens.npy and labels.npy.

    The old tokens.json goes first: what it says is no longer true of the folder."""
    (folder / "tokens.json").unlink(missing_ok=True)
    labels = []
    with atomic(folder / "tokens.npy") as temporary:
        tokens = np.lib.format.open_memmap(temporary, "w+", dtype, shape)
        filled = 0
        for path in blocks:
            with np.load(path) as block:
                tokens[filled : filled + len(block["labels"])] = block["tokens"].reshape(-1, *shape[1:])
                filled += len(block["labels"])
                labels.append(block["labels"])
        tokens.flush()
    with atomic(folder / "labels.npy") as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate(labels))


def _token_dtype(tokenizer: Tokenizer) -> type:
    return np.uint16 if tokenizer.config.codes <= 2**16 else np.int32
