"""The paper's one idea: one codebook assignment, read out in two ways (GEAR, "dual read-out").

A tokenizer gives, for every position, a score for every code. The generator reads that assignment through its
*own* token table E (K, d):

- `hard`: u = E[argmax A]. What the generator is trained on and what it sees when sampling. No gradient
  reaches A.
- `soft`: u = softmax(A / tau) @ E. Differentiable in A, so a loss on the generator's hidden states can move
  the tokenizer.
- `straight_through`: the value of `hard` with the gradient of softmax(A). The ablation that collapses the
  codebook.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Assignment:
    """How strongly each position of an image belongs to each code.

    scores: (B, N, K) float, larger is closer (see `quantizers` for what each quantizer measures).
    indices: (B, N) int64, the arg max over codes, in raster order.
    """

    scores: Tensor
    indices: Tensor


def hard(assignment: Assignment, table: Tensor) -> Tensor:
    """Embed the chosen code. table: (K, d). Returns (B, N, d)."""
    return F.embedding(assignment.indices, table)


def soft(assignment: Assignment, table: Tensor, tau: float = 0.1) -> Tensor:
    """Expected embedding under softmax(scores / tau). table: (K, d); tau > 0, tends to `hard` as tau -> 0.
    Returns (B, N, d)."""
    if not tau > 0:
        raise ValueError(f"tau is {tau}; the soft read-out needs a temperature above 0 (the paper uses 0.1)")
    return torch.softmax(assignment.scores.float() / tau, dim=-1).to(table.dtype) @ table


def straight_through(assignment: Assignment, table: Tensor) -> Tensor:
    """Forward one-hot, backward softmax(scores). table: (K, d). Returns (B, N, d), equal to `hard` in
    value."""
    surrogate = torch.softmax(assignment.scores.float(), dim=-1).to(table.dtype) @ table.detach()
    return hard(assignment, table) + (surrogate - surrogate.detach())
