"""What is minimised: the terms of the tokenizer objective, and the generator's next-token loss."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from gear_studio.readout import Assignment, by_rows, rows_at_once


@torch.no_grad()
def mean_over_processes(x: Tensor) -> Tensor:
    """Average a tensor over all processes, without gradient; the identity when there is one process."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        x = x.clone()
        dist.all_reduce(x)
        return x / dist.get_world_size()
    return x


ENTROPY_TEMPERATURE = 0.01
LEAST_LOG = -87.0  # its exponential is about the smallest normal float32


@torch.no_grad()
def mean_assignment(scores: Tensor) -> Tensor:
    """E_tokens[softmax(A / 0.01)] over these tokens, without gradient: (B, N, K) -> (K,)."""
    tokens = scores.flatten(0, 1)
    sums = [
        torch.softmax(rows / ENTROPY_TEMPERATURE, -1).sum(0) for rows in tokens.split(rows_at_once(scores))
    ]
    return torch.stack(sums).sum(0) / len(tokens)


def entropy_loss(scores: Tensor, mean: Tensor | None = None) -> Tensor:
    """E_tokens[H(p)] - H(E_tokens[p]), p = softmax(A / 0.01): sure about each token, all codes used overall.

    scores: (B, N, K), a part of the batch. mean: (K,), the average assignment of the whole batch, where that
    is more than these scores and those of the other processes at this moment. 1e-5 is added to it inside the
    logarithm, as in the released quantizers.

    Averaged over the parts, value and gradient are those of the whole batch in one piece: the second term
    enters each token's loss through its slope at the mean, so that no gradient has to cross from one part to
    another."""
    mean = mean_over_processes(mean_assignment(scores)) if mean is None else mean
    with torch.enable_grad():
        mean = mean.detach().requires_grad_()
        of_mean = -(mean * (mean + 1e-5).log()).sum()
        (slope,) = torch.autograd.grad(of_mean, mean)

    def of_each(rows: Tensor, slope: Tensor) -> Tensor:
        log_p = torch.log_softmax(rows / ENTROPY_TEMPERATURE, dim=-1)
        # Most codes are far off, and where a result is no normal number a CPU's exp takes ten times as long.
        p = log_p.clamp(min=LEAST_LOG).exp()
        return -(p * (log_p + slope)).sum(-1)

    return by_rows(of_each, scores, slope).mean() + ((mean * slope).sum() - of_mean).detach()


def perceptual_loss(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    """Mean over blocks of 1 - cosine between the teacher's features of two images, each (B, N, d): a scalar
    in [0, 2].

    The stand-in for LPIPS on the small world: the frozen teacher is the perceptual network."""
    return torch.stack(
        [1 - F.cosine_similarity(a, b, dim=-1).mean() for a, b in zip(ours, theirs, strict=True)]
    ).mean()


def next_token_loss(logits: Tensor, indices: Tensor) -> Tensor:
    """Mean cross-entropy in nats a token. logits: (B, N, K) for tokens 1..N; indices: (B, N)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), indices.flatten())


def straight_through_next_token_loss(logits: Tensor, assignment: Assignment) -> Tensor:
    """`next_token_loss` whose target is also a straight-through one-hot: codes can move towards what is easy
    to predict.

    This is the loss the paper warns of; only the `straight-through` arm uses it."""
    p = torch.softmax(assignment.scores.float(), dim=-1)
    surprise = -logits.detach().float().log_softmax(-1)
    return next_token_loss(logits, assignment.indices) + ((p - p.detach()) * surprise).sum(-1).mean()
