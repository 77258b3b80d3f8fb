"""What is typical of the pictures that a tokenizer knows, and where another picture lies among them.

A tokenizer gives every picture some code at every place. That a picture is foreign shows in figures: how well
it is rebuilt, and how sure the assignment is.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gear_studio.analysis.reconstruction import psnr
from gear_studio.readout import Assignment, rows_at_once

TAU = 0.1  # the paper's, of the soft read-out; one for all, since figures of two temperatures do not compare
LOW, HIGH = 0.05, 0.95  # quantiles between which a figure is typical
FEWEST = 8  # pictures that have a range


@dataclass(frozen=True)
class Figure:
    """One number of a picture. unit: with the blank before it."""

    label: str
    digits: int
    unit: str = ""

    def format(self, value: float) -> str:
        return f"{value:.{self.digits}f}{self.unit}"


FIGURES = {
    "psnr": Figure("PSNR", 1, " dB"),
    "entropy": Figure("mean entropy", 2, " nats"),
    "effective_size": Figure("effective codes a token", 1),
    "mass_1": Figure("weight of the likeliest code", 3),
    "score": Figure("score A of the nearest code", 3),
}


def figures_of(assignment: Assignment, images: Tensor, rebuilt: Tensor) -> dict[str, Tensor]:
    """`FIGURES` of every picture: key -> (B,), on the CPU. But for PSNR they are means over tokens, of
    softmax(A / TAU) and of the chosen codes' scores.

    assignment: of the pictures, N tokens each. images, rebuilt: (B, 3, H, W) in [-1, 1]."""
    scores, (count, tokens, _) = assignment.scores, assignment.scores.shape
    entropy, mass = [], []
    for rows in scores.flatten(0, 1).split(rows_at_once(scores)):
        soft = torch.softmax(rows.float() / TAU, dim=-1)
        entropy.append(torch.special.entr(soft).sum(-1))
        mass.append(soft.amax(-1))
    of_tokens = {
        "entropy": torch.cat(entropy),
        "effective_size": torch.cat(entropy).exp(),
        "mass_1": torch.cat(mass),
        "score": scores.gather(2, assignment.indices[..., None]).float(),
    }
    means = {key: values.view(count, tokens).mean(1).cpu() for key, values in of_tokens.items()}
    return {"psnr": psnr(rebuilt, images).cpu(), **means}


@dataclass(frozen=True)
class Range:
    """How a figure is spread over pictures. low, high: the 5th and the 95th percentile."""

    low: float
    median: float
    high: float


def range_of(values: Tensor) -> Range | None:
    """The range of a figure over pictures (n,); None of fewer than FEWEST."""
    if len(values) < FEWEST:
        return None
    shares = torch.tensor([LOW, 0.5, HIGH], dtype=torch.float64)
    low, median, high = torch.quantile(values.double(), shares).tolist()
    return Range(low, median, high)


def place_among(value: float, values: Tensor) -> str:
    """Where a figure lies outside of its range over pictures (n,), such as "below all" or "above 95 %"; ""
    where it lies inside, and of fewer than FEWEST."""
    known = range_of(values)
    if known is None or known.low <= value <= known.high:
        return ""
    side = "below" if value < known.low else "above"
    beyond = value < float(values.min()) or value > float(values.max())
    return f"{side} {'all' if beyond else '95 %'}"


def find_untypical(figures: Mapping[str, float], known: Mapping[str, Tensor]) -> dict[str, str]:
    """The figures of a picture that lie outside of their range over the pictures a tokenizer knows: key ->
    as `place_among` says it."""
    places = {key: place_among(value, known[key]) for key, value in figures.items()}
    return {key: place for key, place in places.items() if place}
