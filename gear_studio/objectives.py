"""What is minimised: the terms of the tokenizer objective, and the generator's next-token loss."""

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
import torch.nn.functional as F
from torch import Tensor

from gear_studio.readout import Assignment


def mean_over_processes(x: Tensor) -> Tensor:
    """Average a tensor over all processes, with gradient; the identity when there is one process."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        return dist_nn.all_reduce(x) / dist.get_world_size()
    return x


def entropy(p: Tensor) -> Tensor:
    """H(p) in nats over the last axis; probabilities are kept above 1e-5 inside the logarithm."""
    return -(p * p.clamp_min(1e-5).log()).sum(-1)


def entropy_loss(scores: Tensor, temperature: float = 0.01) -> Tensor:
    """E_tokens[H(p)] - H(E_tokens[p]), p = softmax(A / 0.01): sure about each token, all codes used overall.

    scores: (B, N, K). The average assignment is taken over all processes, so the loss does not depend on
    their number; 1e-5 is added to it inside the logarithm, as in the released quantizers."""
    log_p = (scores.float() / temperature).log_softmax(-1).flatten(0, 1)
    p = log_p.exp()
    average = mean_over_processes(p.mean(0))
    return (average * (average + 1e-5).log()).sum() - (p * log_p).sum(-1).mean()


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
