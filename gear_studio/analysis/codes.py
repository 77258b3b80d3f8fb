"""Single codes: how often each is used and for what, and which ones a token could have had.

`survey` runs a tokenizer once over some hundred pictures; usage, mean colours, galleries and what is typical
of these pictures are read off it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gear_studio.analysis.features import umap_layout
from gear_studio.analysis.typical import FIGURES, figures_of
from gear_studio.data.images import to_float
from gear_studio.data.source import Source
from gear_studio.errors import InputError
from gear_studio.models.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Survey:
    """What a tokenizer did with n pictures, on the CPU.

    images: uint8 (n, 3, H, W). indices: int64 (n, N). counts: int64 (K,), tokens of each code.
    colors: float (K, 3) in [0, 1], mean RGB of the patches with that code; 0.5 for codes never chosen.
    figures: of `typical.FIGURES`, key -> (n,)."""

    images: Tensor
    indices: Tensor
    counts: Tensor
    colors: Tensor
    figures: Mapping[str, Tensor]


def survey(tokenizer: Tokenizer, source: Source, pictures: int = 512) -> Survey:
    """Tokenize the first `pictures` pictures of `source`, evaluation view. They have the tokenizer's size."""
    *_, whole = grow_survey(tokenizer, source, pictures)
    return whole


@torch.no_grad()
def grow_survey(tokenizer: Tokenizer, source: Source, pictures: int = 512) -> Iterator[Survey]:
    """Yields the survey of the first few pictures, then of more and more; the last is that of all."""
    device = tokenizer.quantizer.codebook.device
    codes, size = tokenizer.config.codes, tokenizer.config.image_size
    patch = size // tokenizer.grid
    counts, sums = torch.zeros(codes, dtype=torch.long), torch.zeros(codes, 3)
    all_images: list[Tensor] = []
    all_indices: list[Tensor] = []
    all_figures: list[dict[str, Tensor]] = []
    at_once = min(32, max(1, 32 * 64**2 // size**2))
    for numbers in torch.arange(min(pictures, len(source))).split(at_once):
        images = source.read(numbers.tolist())["image"]
        shown = to_float(images.to(device))
        assignment = tokenizer.assign(shown)
        all_figures.append(figures_of(assignment, shown, tokenizer.decode(assignment.indices)))
        indices = assignment.indices.cpu()
        patches = F.avg_pool2d(images.float() / 255, patch).flatten(2).transpose(1, 2).flatten(0, 1)
        counts = counts + torch.bincount(indices.flatten(), minlength=codes)
        sums = sums.index_add(0, indices.flatten(), patches)
        all_images.append(images)
        all_indices.append(indices)
        colors = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), 0.5)
        figures = {key: torch.cat([each[key] for each in all_figures]) for key in FIGURES}
        yield Survey(torch.cat(all_images), torch.cat(all_indices), counts, colors, figures)


def gallery(survey: Survey, code: int, count: int = 12, margin: int = 1) -> tuple[Tensor, int]:
    """Patches of `code`, with `margin` patches around each, and how many the survey has of it.

    Returns uint8 (m, 3, s, s), m <= count, s = patch size * (1 + 2 margin), spread evenly over all of them.
    Raises ValueError for a code that does not exist."""
    if not 0 <= code < len(survey.counts):
        raise InputError(f"code {code} is not one of 0..{len(survey.counts) - 1}")
    places = (survey.indices == code).nonzero()
    grid = int(survey.indices.shape[1] ** 0.5)
    chosen = places[torch.linspace(0, len(places) - 1, min(count, len(places))).long()]
    return crop_patches(survey.images, chosen[:, 0], chosen[:, 1], grid, margin), len(places)


def crop_patches(images: Tensor, picture: Tensor, token: Tensor, grid: int, margin: int = 1) -> Tensor:
    """Patches of images with `margin` patches around each, the edge repeated outside of an image.

    images: uint8 (n, 3, H, W). picture, token: int64 (m,), which image, and which token of its grid.
    Returns uint8 (m, 3, s, s), s = patch size * (1 + 2 margin)."""
    size = images.shape[-1] // grid
    side = size * (1 + 2 * margin)
    used, which = picture.unique(return_inverse=True)
    crops = torch.empty(len(token), 3, side, side, dtype=torch.uint8)
    padded = F.pad(images[used].float(), (size * margin,) * 4, mode="replicate").byte()
    for crop, i, place in zip(crops, which.tolist(), token.tolist(), strict=True):
        top, left = (place // grid) * size, (place % grid) * size
        crop.copy_(padded[i, :, top : top + side, left : left + side])
    return crops


def code_layout(codebook: np.ndarray, counts: np.ndarray, limit: int = 4096) -> np.ndarray:
    """UMAP of the code vectors that are used, by cosine distance: (K, 2) float32, the same on every call.

    codebook: (K, D). counts: (K,), tokens of each code. Codes that are never used are not laid out, nor are
    more than the `limit` most used ones: their rows are NaN. See `features.umap_layout`."""
    most_used = np.argsort(-counts, kind="stable")[:limit]
    laid_out = np.sort(most_used[counts[most_used] > 0])
    positions = np.full((len(codebook), 2), np.nan, np.float32)
    positions[laid_out] = umap_layout(codebook[laid_out])
    return positions


class Candidate(NamedTuple):
    """A code that a token could have. score: A_k. hard, soft: its weights in the two read-outs, in [0, 1]."""

    code: int
    score: float
    hard: float
    soft: float


def top_codes(scores: Tensor, tau: float, count: int = 8) -> list[Candidate]:
    """The `count` best codes of one token, best first. scores: (K,) one row of A; tau > 0.

    hard is one-hot at the arg max, soft is softmax(A / tau)."""
    scores = scores.float().cpu()
    soft = torch.softmax(scores / tau, dim=-1)
    best = scores.topk(min(count, len(scores)))
    return [
        Candidate(code, score, float(rank == 0), float(soft[code]))
        for rank, (score, code) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True))
    ]


def token_entropy(scores: Tensor, tau: float) -> Tensor:
    """Entropy in nats, in [0, ln K], of softmax(A / tau) of every token. scores: (..., K). Returns (...)."""
    return torch.special.entr(torch.softmax(scores.float() / tau, dim=-1)).sum(-1)


def with_codes(indices: Tensor, edits: Mapping[int, int], codes: int) -> Tensor:
    """A copy of one picture's indices (N,) with some tokens' codes replaced: edits maps position -> code.

    Raises ValueError for a position or a code (of `codes`) that does not exist."""
    indices = indices.clone()
    for position, code in edits.items():
        if not 0 <= position < len(indices):
            raise InputError(f"token {position} is not one of 0..{len(indices) - 1}")
        if not 0 <= code < codes:
            raise InputError(f"code {code} is not one of 0..{codes - 1}")
        indices[position] = code
    return indices
