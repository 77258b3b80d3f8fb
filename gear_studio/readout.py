"""The paper's one idea: one codebook assignment, read out in two ways (GEAR, "dual read-out").

A tokenizer gives, for every position, a score for every code. The generator reads that assignment through its
*own* token table E (K, d):

- `hard`: u = E[argmax A]. What the generator is trained on and what it sees when sampling. No gradient
  reaches A.
- `soft`: u = softmax(A / tau) @ E. Differentiable in A, so a loss on the generator's hidden states can move
  the tokenizer.
- `straight_through`: the value of `hard` with the gradient of softmax(A), or softmax(A / tau). The ablation
  that collapses the codebook.

At paper scale the scores are (32, 256, 16384), half a gigabyte, and so is every softmax that autograd would
keep of them. `by_rows` works on a few rows at a time and computes them again in the backward pass: beside the
scores, only their gradient is ever held whole.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gear_studio.errors import InputError

AT_ONCE = 2**24  # scores that `by_rows` works on at a time: 64 MiB of float32


@dataclass(frozen=True)
class Assignment:
    """How strongly each position of an image belongs to each code.

    scores: (B, N, K) float32, larger is closer (see `quantizers` for what each quantizer measures).
    indices: (B, N) int64, the arg max over codes, in raster order.
    """

    scores: Tensor
    indices: Tensor


def hard(assignment: Assignment, table: Tensor) -> Tensor:
    """Embed the chosen code. table: (K, d). Returns (B, N, d)."""
    return F.embedding(assignment.indices, table)


class _ByRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function: Callable[[Tensor, Tensor], Tensor], scores: Tensor, shared: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(scores, shared)
        device = scores.device.type
        ctx.precision = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        return torch.cat([function(rows, shared) for rows in scores.split(rows_at_once(scores))])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[None, Tensor, Tensor | None]:
        scores, shared = ctx.saved_tensors
        device = scores.device.type
        shared = shared.detach().requires_grad_(ctx.needs_input_grad[2])
        to_scores, count = torch.empty_like(scores), rows_at_once(scores)
        pieces = zip(scores.split(count), gradient.split(count), to_scores.split(count), strict=True)
        for rows, incoming, place in pieces:
            rows = rows.detach().requires_grad_()
            with torch.enable_grad(), torch.autocast(*ctx.precision):
                answer = ctx.function(rows, shared)
            with torch.autocast(device, enabled=False):  # each operation's gradient in its own precision
                answer.backward(incoming)  # adds up in shared.grad
            place.copy_(rows.grad)
        return None, to_scores, shared.grad


def rows_at_once(scores: Tensor) -> int:
    """How many rows of K scores to work on at a time."""
    return max(1, AT_ONCE // scores.shape[-1])


def by_rows(function: Callable[[Tensor, Tensor], Tensor], scores: Tensor, shared: Tensor) -> Tensor:
    """function(rows, shared), piece by piece and equal to the whole, gradients included.

    function: differentiable, (R, K) and `shared` -> (R, ...); row i of its answer depends on row i alone, and
    it draws no random numbers. scores: (B, N, K). Returns (B, N, ...)."""
    return _ByRows.apply(function, scores.flatten(0, 1), shared).unflatten(0, scores.shape[:2])


def soft(assignment: Assignment, table: Tensor, tau: float = 0.1) -> Tensor:
    """Expected embedding under softmax(scores / tau). table: (K, d); tau > 0, tends to `hard` as tau -> 0.
    Returns (B, N, d)."""
    if not tau > 0:
        raise InputError(f"tau is {tau}; the soft read-out needs a temperature above 0 (the paper uses 0.1)")
    return by_rows(
        lambda rows, table: torch.softmax(rows / tau, dim=-1).to(table.dtype) @ table,
        assignment.scores,
        table,
    )


def straight_through(assignment: Assignment, table: Tensor, tau: float = 1.0) -> Tensor:
    """Forward one-hot, backward softmax(scores / tau). table: (K, d). Returns (B, N, d), equal to `hard` in
    value."""
    surrogate = soft(assignment, table.detach(), tau)
    return hard(assignment, table) + (surrogate - surrogate.detach())
