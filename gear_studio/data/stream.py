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

from gear_studio.data.source import ENDLESS, Batch, Ordered, Skipping, Source
from gear_studio.errors import InputError


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
) -> Iterator[Batch]:
    """Yield batches `start` to `start + steps - 1`, in the training view: {"image": uint8, "label": int64}.

    Sample i of batch s has position p = s * batch_size + i. A finite source is shuffled anew each epoch, in
    its own `order` where it has one; an endless one is read in order from a place that the seed decides.
    Augmentation: default_rng((seed, p)).

    batch_size: the whole batch; process r of `processes` gets its r-th equal slice.
    workers: loader processes that read ahead; 0 reads in this one.
    Raises ValueError when batch_size does not divide among the processes.
    """
    if batch_size < 1 or batch_size % processes:
        raise InputError(
            f"batch_size {batch_size} does not divide among {processes} processes; use a multiple of it"
        )
    share = batch_size // processes
    batches = _TrainingBatches(source, batch_size, seed, slice(process * share, (process + 1) * share))
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, start + steps),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # of its own: seeding workers must not move the training's random state
    )
    yield from note_skipped(loader, source)


class Reader(Dataset):
    """Reads a source in loading processes.

    A loading process puts the files that it could not read into the batch, under "skipped"; `note_skipped`
    adds them to `source.skipped` in the process that trains."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._reported: set[str] = set()

    def read(self, indices: Sequence[int], rngs: Sequence[np.random.Generator]) -> Batch:
        batch = self.source.read(indices, rngs)
        new = skipped_by(self.source) - self._reported
        self._reported |= new
        return batch | {"skipped": new} if new else batch


def note_skipped(batches: Iterable[Batch], source: Source) -> Iterator[Batch]:
    """Yield the batches that a loader of a `Reader` gives, and move their "skipped" to the source."""
    for batch in batches:
        if new := batch.pop("skipped", None):
            skipped_by(source).update(new)
        yield batch


def skipped_by(source: Source | None) -> set[str]:
    """The files that a source has skipped in this process; an empty set where it has none."""
    return source.skipped if isinstance(source, Skipping) else set()


def collect_skipped(*sources: Source | None) -> list[str]:
    """Collect the files of these sources that any process, or a loading process of one, has found unreadable
    since it was started. All processes must call it."""
    names = {name for source in sources for name in skipped_by(source)}
    return sorted(set(gather_object(sorted(names))))


def describe_skipped(names: Sequence[str]) -> str:
    """A line to print about what `collect_skipped` returned."""
    files = f"{len(names)} file{'s' if len(names) > 1 else ''} could not be read and"
    files += " were" if len(names) > 1 else " was"
    return f"{files} skipped: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


class _TrainingBatches(Reader):
    """Batch s as item s, so that the loader's workers can fetch whole batches out of turn."""

    def __init__(self, source: Source, batch_size: int, seed: int, part: slice) -> None:
        super().__init__(source)
        self.batch_size = batch_size
        self.seed = seed
        self.part = part
        self._shuffled: tuple[int, np.ndarray] | None = None  # the last epoch read from, and its order

    def __getitem__(self, step: int) -> Batch:
        positions = [step * self.batch_size + i for i in range(self.batch_size)[self.part]]
        rngs = [np.random.default_rng((self.seed, p)) for p in positions]
        return self.read([self._index_at(p) for p in positions], rngs)

    def _index_at(self, position: int) -> int:
        """The number of the picture that is read at a position of the stream."""
        length = len(self.source)
        if length >= ENDLESS:  # no run comes to its end
            begin = int(np.random.default_rng(self.seed).integers(length))
            return (begin + position) % length
        epoch, place = divmod(position, length)
        if self._shuffled is None or self._shuffled[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            source = self.source
            order = source.order(rng) if isinstance(source, Ordered) else rng.permutation(length)
            self._shuffled = epoch, order
        return int(self._shuffled[1][place])
