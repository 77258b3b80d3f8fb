"""Conditions: what the generator is asked for, as embedded positions in front of the tokens.

Two kinds with one interface, so that nothing else asks which one a generator has. A condition is one tensor,
with a row for each picture:

    ClassCondition     (B,) int64                 a class label                          one position
    CaptionCondition   (B, T, 1 + caption_dim)    a caption from `text_encoders`         T positions

Each has a *null*, "no condition" in classifier-free guidance: the class past the last, or the encoding of the
empty string. In training a row is replaced by the null with probability `drop`.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gear_studio.errors import InputError


class Condition(nn.Module, ABC):
    """kind: "label" or "caption". positions: how many stand in front of the tokens; the last predicts the
    first token. drop: the probability that training replaces a row by the null."""

    kind: str
    positions: int
    drop: float

    @abstractmethod
    def nulls(self, batch: int, device: torch.device | None = None) -> Tensor:
        """A condition of `batch` nulls."""

    @abstractmethod
    def forward(self, condition: Tensor) -> Tensor:
        """The condition embedded: (B, positions, d)."""

    @abstractmethod
    def visible(self, condition: Tensor) -> Tensor | None:
        """Which of its positions other positions may look at, bool (B, positions); None means all."""

    @abstractmethod
    def check(self, condition: Tensor | None, count: int) -> None:
        """Raise ValueError unless the condition has `count` rows that can be embedded."""

    def with_nulls(self, condition: Tensor) -> Tensor:
        """In training, the condition with some rows replaced by the null; else the condition itself."""
        if not self.training or self.drop == 0:
            return condition
        dropped = torch.rand(len(condition), device=condition.device) < self.drop
        nulls = self.nulls(len(condition), condition.device)
        return torch.where(dropped.view(-1, *[1] * (condition.ndim - 1)), nulls, condition)


class ClassCondition(Condition):
    kind, positions = "label", 1

    def __init__(self, classes: int, dim: int, drop: float):
        super().__init__()
        self.null = classes
        self.drop = drop
        self.table = nn.Embedding(classes + 1, dim)

    def nulls(self, batch: int, device: torch.device | None = None) -> Tensor:
        return torch.full((batch,), self.null, device=device)

    def forward(self, condition: Tensor) -> Tensor:
        """condition: (B,) int64 in [0, classes], `classes` being the null. Returns (B, 1, d)."""
        return self.table(condition).unsqueeze(1)

    def visible(self, condition: Tensor) -> None:
        return None

    def check(self, condition: Tensor | None, count: int) -> None:
        if condition is None or condition.shape != (count,):
            shape = None if condition is None else tuple(condition.shape)
            raise InputError(
                f'condition is "label" and labels have shape {shape}; expected ({count},), one an image'
            )
        if condition.min() < 0 or condition.max() >= self.null:
            raise InputError(
                f"labels are {int(condition.min())}..{int(condition.max())}; the generator's classes are "
                f"0..{self.null - 1}"
            )


class CaptionCondition(Condition):
    """Encoded captions, projected by a two-layer MLP (paper, text-to-image).

    A caption shorter than T is padded on the right. Channel 0 of an encoded caption is 1 at a word and 0 at
    padding; the other channels are the text encoder's features, at padding too. Padding is hidden from every
    other position, so its features matter in one place only: the last position predicts the first token,
    padding or not. It sees all words of the caption."""

    kind = "caption"
    null: Tensor

    def __init__(self, caption_dim: int, positions: int, dim: int, drop: float):
        super().__init__()
        self.positions = positions
        self.drop = drop
        self.up = nn.Linear(caption_dim, dim, bias=False)
        self.down = nn.Linear(dim, dim, bias=False)
        # Kept with the weights, so that guidance has training's null without the encoder that made it.
        self.register_buffer("null", torch.zeros(positions, 1 + caption_dim))

    def nulls(self, batch: int, device: torch.device | None = None) -> Tensor:
        return self.null.expand(batch, -1, -1).to(device)

    def forward(self, condition: Tensor) -> Tensor:
        """condition: (B, T, 1 + caption_dim). Returns (B, T, d)."""
        features = condition[..., 1:].to(self.up.weight.dtype)
        return self.down(F.gelu(self.up(features), approximate="tanh"))

    def visible(self, condition: Tensor) -> Tensor:
        return condition[..., 0] > 0

    def check(self, condition: Tensor | None, count: int) -> None:
        if condition is None or condition.shape != (count, *self.null.shape):
            shape = None if condition is None else tuple(condition.shape)
            raise InputError(
                f'condition is "caption" and captions have shape {shape}; expected '
                f"{(count, *self.null.shape)}, encoded by the run's text encoder"
            )
