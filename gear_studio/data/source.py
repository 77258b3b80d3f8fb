"""What every source of pictures looks like to the rest of the package.

Pictures stay uint8 until they reach the device that trains on them: a quarter of the memory and copying.
`to_float` is the one place that says what a model's input range is.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

import numpy as np
import torch

# How long processes wait for one that does something for all, such as looking at a million files; NCCL's own
# ten minutes are too few.
PATIENCE = timedelta(hours=2)
ENDLESS = 2**31  # a source at least this long is read from some place straight on; others are drawn from


class Source(Protocol):
    """A numbered collection of labelled square RGB pictures.

    More where it makes sense: `order(rng)`, the shuffle of an epoch that suits the way it is stored;
    `fingerprint()`, a digest that changes when any of its pictures does (for `tokens`); `captions(indices)`,
    what `read` gives as "caption" where the source was asked for captions; and of files that lie somewhere
    `folder`, `identity()` and `skipped`, see `Pictures`.
    """

    name: str
    classes: list[str]
    image_size: int

    def __len__(self) -> int: ...

    def read(
        self, indices: Sequence[int], rngs: Sequence[np.random.Generator] | None = None
    ) -> dict[str, torch.Tensor]:
        """Pictures by number: {"image": uint8 (B,3,H,W), "label": int64 (B,)}.

        rngs: one generator a picture asks for the training view (random crop, flip or shift, where the source
        has one); None asks for the deterministic evaluation view.
        """
        ...


def chosen(length: int, count: int) -> list[list[int]]:
    """Which pictures of a source to look at: `count` of them, and as many others where there are more.

    A source in the order of its classes would give the first few: those of a finite source are drawn."""
    order = range(2 * count) if length >= ENDLESS else np.random.default_rng(0).permutation(length).tolist()
    parts = [sorted(order[:count]), sorted(order[count : 2 * count])]
    return [part for part in parts if len(part) == count]


def at_once(image_size: int) -> int:
    """How many pictures to decode or look at together where nothing is trained."""
    return 250 if image_size <= 64 else 32


def to_float(image: torch.Tensor) -> torch.Tensor:
    """uint8 pictures in 0..255 -> float32 in [-1,1], the range models take."""
    return image.float() / 127.5 - 1.0
