"""Conditions: what the generator is asked for, as embedded positions in front of the tokens.

A class label is one position. The null class, one past the last, stands for "no condition" in classifier-free
guidance; in training the label is dropped to it with probability `drop`.
"""

import torch
from torch import Tensor, nn


class ClassCondition(nn.Module):
    def __init__(self, classes: int, dim: int, drop: float):
        super().__init__()
        self.null = classes
        self.drop = drop
        self.table = nn.Embedding(classes + 1, dim)

    def nulls(self, batch: int, device: torch.device | None = None) -> Tensor:
        """The null label, (batch,) int64."""
        return torch.full((batch,), self.null, device=device)

    def forward(self, labels: Tensor) -> Tensor:
        """labels: (B,) int64 in [0, classes], `classes` being the null. Returns (B, 1, d)."""
        if self.training and self.drop > 0:
            dropped = torch.rand(labels.shape, device=labels.device) < self.drop
            labels = torch.where(dropped, self.null, labels)
        return self.table(labels).unsqueeze(1)
