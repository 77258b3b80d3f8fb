"""The order in which training reads a source.

Notable: batch s is a pure function of (seed, s). So a run that was killed and started again at step s reads
what it would have read, any number of workers gives the same pictures, and R processes share the very batch
that one would read.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset

from gear_studio.data.source import ENDLESS, Source


def stream(
    source: Source,
    batch_size: int,
    seed: int,
    *,
    steps: int,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches `start` to `start + steps - 1`, in the training view: {"image": uint8, "label": int64}.

    Sample i of batch s has position p = s * batch_size + i. A finite source is shuffled anew each epoch, in
    its own `order` where it has one; an endless one is read in order from a place of the seed's own.
    Augmentation: default_rng((seed, p)).

    batch_size: the whole batch; process r of `processes` gets its r-th equal slice.
    workers: loader processes that read ahead; 0 reads in this one.
    Raises ValueError when batch_size does not divide among the processes.
    """
    if batch_size < 1 or batch_size % processes:
        raise ValueError(
            f"batch_size {batch_size} does not divide among {processes} processes; use a multiple of it"
        )
    share = batch_size // processes
    batches = _Batches(source, batch_size, seed, slice(process * share, (process + 1) * share))
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, start + steps),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # of its own: seeding workers must not move the training's random state
    )
    yield from noted(loader, source)


class Reader(Dataset):
    """Reads a source in loading processes. What one of them could not read it tells with the batch, under
    "skipped"; `noted` adds it to `source.skipped` in the process that trains."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._told: set[str] = set()

    def read(self, indices: Sequence[int], rngs: Sequence[np.random.Generator]) -> dict:
        batch = self.source.read(indices, rngs)
        new = getattr(self.source, "skipped", set()) - self._told
        self._told |= new
        return batch | {"skipped": new} if new else batch


def noted(batches: Iterable[dict], source: Source) -> Iterator[dict]:
    """The batches of a loader of a `Reader`, without "skipped"."""
    for batch in batches:
        if new := batch.pop("skipped", None):
            source.skipped.update(new)
        yield batch


def skipped(*sources: Source) -> list[str]:
    """The files of these sources that any process, or a loading process of one, has found unreadable since it
    was started. All processes must call it."""
    found = {name for source in sources for name in getattr(source, "skipped", ())}
    return sorted(set(gather_object(sorted(found))))


def skipped_line(names: Sequence[str]) -> str:
    """What to print about what `skipped` found."""
    files = f"{len(names)} file{'s' if len(names) > 1 else ''} could not be read and"
    files += " were" if len(names) > 1 else " was"
    return f"{files} skipped: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


class _Batches(Reader):
    """Batch s as item s, so that the loader's workers can fetch whole batches out of turn."""

    def __init__(self, source: Source, batch_size: int, seed: int, part: slice) -> None:
        super().__init__(source)
        self.batch_size = batch_size
        self.seed = seed
        self.part = part
        self._ordered = hasattr(source, "order")
        self._shuffled: tuple[int, np.ndarray] | None = None  # the last epoch asked for, and its order

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        positions = [step * self.batch_size + i for i in range(self.batch_size)[self.part]]
        rngs = [np.random.default_rng((self.seed, p)) for p in positions]
        return self.read([self._index(p) for p in positions], rngs)

    def _index(self, position: int) -> int:
        length = len(self.source)
        if length >= ENDLESS:  # no run comes to its end
            begin = int(np.random.default_rng(self.seed).integers(length))
            return (begin + position) % length
        epoch, place = divmod(position, length)
        if self._shuffled is None or self._shuffled[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            self._shuffled = epoch, self.source.order(rng) if self._ordered else rng.permutation(length)
        return int(self._shuffled[1][place])
