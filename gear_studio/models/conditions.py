"""Conditions: what the generator is asked for, as embedded positions in front of the tokens.

Two kinds with one interface, so that nothing else asks which one a generator has. What is asked for is always
one tensor, `given`, with a picture a row:

    ClassCondition     (B,) int64                   a class label                  one position
    CaptionCondition   (B, T, 1 + caption_dim)      a caption, encoded (`text`)    T positions

Each has a *null*, "no condition" in classifier-free guidance: the class past the last, or the encoding of the
empty string. In training what is given is replaced by it with probability `drop`.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Condition(nn.Module, ABC):
    """kind: what `given` is called. positions: how many stand in front of the tokens; the last predicts the
    first token."""

    kind: str
    positions: int
    drop: float

    @abstractmethod
    def nulls(self, batch: int, device: torch.device | None = None) -> Tensor:
        """The null, `batch` times."""

    @abstractmethod
    def forward(self, given: Tensor) -> Tensor:
        """Embedded: (B, positions, d)."""

    @abstractmethod
    def visible(self, given: Tensor) -> Tensor | None:
        """Which positions others may look at, bool (B, positions); None is all."""

    @abstractmethod
    def check(self, given: Tensor | None, count: int) -> None:
        """Raise ValueError unless `given` asks for `count` pictures and can be embedded."""

    def dropped(self, given: Tensor) -> Tensor:
        """In training, the same with some replaced by the null; else `given` itself."""
        if not self.training or self.drop == 0:
            return given
        dropped = torch.rand(len(given), device=given.device) < self.drop
        nulls = self.nulls(len(given), given.device)
        return torch.where(dropped.view(-1, *[1] * (given.ndim - 1)), nulls, given)


class ClassCondition(Condition):
    kind, positions = "label", 1

    def __init__(self, classes: int, dim: int, drop: float):
        super().__init__()
        self.null = classes
        self.drop = drop
        self.table = nn.Embedding(classes + 1, dim)

    def nulls(self, batch: int, device: torch.device | None = None) -> Tensor:
        return torch.full((batch,), self.null, device=device)

    def forward(self, given: Tensor) -> Tensor:
        """given: (B,) int64 in [0, classes], `classes` being the null. Returns (B, 1, d)."""
        return self.table(given).unsqueeze(1)

    def visible(self, given: Tensor) -> None:
        return None

    def check(self, given: Tensor | None, count: int) -> None:
        if given is None or given.shape != (count,):
            shape = None if given is None else tuple(given.shape)
            raise ValueError(
                f'condition is "label" and labels have shape {shape}; expected ({count},), one an image'
            )
        if given.min() < 0 or given.max() >= self.null:
            raise ValueError(
                f"labels are {int(given.min())}..{int(given.max())}; the generator's classes are "
                f"0..{self.null - 1}"
            )


class CaptionCondition(Condition):
    """Encoded captions, projected by a two-layer MLP (paper, text-to-image).

    A caption that is shorter than T is padded on the right. Channel 0 of an encoded caption is 1 where there
    is a word and 0 at padding; the others are the encoder's features, which it has of padding too. Padding is
    hidden from every other position, so its features matter at one place only: the last position predicts the
    first token, whether it is padding or not. It sees all words of the caption."""

    kind = "caption"

    def __init__(self, caption_dim: int, positions: int, dim: int, drop: float):
        super().__init__()
        self.positions = positions
        self.drop = drop
        self.up = nn.Linear(caption_dim, dim, bias=False)
        self.down = nn.Linear(dim, dim, bias=False)
        # Kept with the weights: guidance needs what training dropped to, and not the encoder that made it.
        self.register_buffer("null", torch.zeros(positions, 1 + caption_dim))

    def nulls(self, batch: int, device: torch.device | None = None) -> Tensor:
        return self.null.expand(batch, -1, -1).to(device)

    def forward(self, given: Tensor) -> Tensor:
        """given: (B, T, 1 + caption_dim). Returns (B, T, d)."""
        features = given[..., 1:].to(self.up.weight.dtype)
        return self.down(F.gelu(self.up(features), approximate="tanh"))

    def visible(self, given: Tensor) -> Tensor:
        return given[..., 0] > 0

    def check(self, given: Tensor | None, count: int) -> None:
        if given is None or given.shape != (count, *self.null.shape):
            shape = None if given is None else tuple(given.shape)
            raise ValueError(
                f'condition is "caption" and captions have shape {shape}; expected '
                f"{(count, *self.null.shape)}, encoded by the run's text encoder"
            )
