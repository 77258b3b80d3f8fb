"""Codebook statistics: which codes are used, and how concentrated the assignments are."""

from collections import Counter

import torch
from torch import Tensor

from gear_studio.models.quantizers import Quantizer


def entropy(p: Tensor) -> Tensor:
    """H(p) in nats over the last axis; probabilities are kept above 1e-5 inside the logarithm."""
    return -(p * p.clamp_min(1e-5).log()).sum(-1)


def usage_statistics(counts: Tensor) -> dict[str, Tensor]:
    """Of counts (K,), how often each code was chosen: usage in [0, 1], the share of codes chosen at all, and
    perplexity in [1, K]."""
    p = counts.float() / counts.sum()
    return {"usage": (counts > 0).float().mean(), "perplexity": torch.special.entr(p).sum().exp()}


def assignment_statistics(scores: Tensor, tau: float) -> dict[str, Tensor]:
    """How concentrated softmax(A) and softmax(A / tau) are, averaged over tokens. scores: (B, N, K).

    For each of the two (the second with suffix _tau): entropy in nats; effective_size in codes, the mean over
    tokens of exp(entropy); and mass_1 / mass_10 / mass_100, the probability of the 1, 10, 100 likeliest
    codes."""
    result: dict[str, Tensor] = {}
    for suffix, temperature in (("", 1.0), ("_tau", tau)):
        p = torch.softmax(scores.float() / temperature, dim=-1)
        h = entropy(p)
        result |= {f"entropy{suffix}": h.mean(), f"effective_size{suffix}": h.exp().mean()}
        top = p.topk(min(100, p.shape[-1]), dim=-1).values.mean((0, 1)).cumsum(-1)
        for k in (1, 10, 100):
            result[f"mass_{k}{suffix}"] = top[min(k, len(top)) - 1]
    return result


@torch.no_grad()
def measure_assignment(
    z: Tensor, quantizer: Quantizer, tau: float
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """What `assignment_statistics` says of latents z (B, N, D), and their indices, for codebooks whose scores
    (B, N, K) are too many to hold: `readout.AT_ONCE` of them are at a time.

    Returns indices (B, N) int64; counts (K,), how often each code was chosen, for `usage_statistics`; and the
    statistics."""
    sums: Counter[str] = Counter()
    chosen = []
    for rows in quantizer.pieces(z):
        assignment = quantizer.assign(rows)
        chosen.append(assignment.indices[0])
        statistics = assignment_statistics(assignment.scores, tau)
        sums.update({name: rows.shape[1] * value.item() for name, value in statistics.items()})
    indices = torch.cat(chosen)
    counts = torch.bincount(indices, minlength=len(quantizer.codebook))
    return indices.view(z.shape[:2]), counts, {name: total / len(indices) for name, total in sums.items()}
