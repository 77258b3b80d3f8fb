"""How local a map of features is: Moran's I, the high-frequency ratio, and similarity by distance.

The paper names Moran's I and an FFT high-frequency ratio of the generator's features but defines neither.
What follows is our definition of each; say so beside a figure.

Features are (B, N, d), N patches in raster order on `grid`: its side, or (rows, columns). Every function
gives one number a picture, float64 (B,): its mean is the value, its spread over pictures the uncertainty.

A channel that is constant over a picture has no spatial structure, 0 / 0 in both ratios. It is left out of
that picture's average. A picture with nothing but constant channels gets nan (`nanmean` leaves it out).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gear_studio.devices import to_float64
from gear_studio.errors import InputError

AT_ONCE = 2**22  # numbers worked on at a time: 32 MiB of float64
CONSTANT = 1e-6  # a channel whose range is below this share of its largest value is constant
NEIGHBOURS = ("rook", "queen")


def morans_i(features: Tensor, grid: int | tuple[int, int], neighbours: str = "rook") -> Tensor:
    """Moran's I on the token grid (Moran 1950), by channel, averaged over channels: (B,), at most about 1.

    With z = x - mean(x) over the N patches of a picture, I = (N / W) sum_ij w_ij z_i z_j / sum_i z_i^2, where
    w_ij is 1 for neighbours, else 0, and W = sum_ij w_ij. 1: neighbours are alike; -1 / (N - 1): patches in
    random order; negative: neighbours differ. neighbours: "rook", the 4 that share an edge; "queen", the 8
    that share an edge or a corner."""
    if neighbours not in NEIGHBOURS:
        raise InputError(f"neighbours is {neighbours!r}; choose one of {', '.join(NEIGHBOURS)}")
    steps = [(0, 1), (1, 0)] + ([(1, 1), (1, -1)] if neighbours == "queen" else [])
    return torch.cat([_morans_i(z, steps) for z in _to_centred_maps(features, grid)])


def _morans_i(z: Tensor, steps: list[tuple[int, int]]) -> Tensor:
    """z: centred maps (B, rows, columns, d). steps: from a patch to its neighbours, one of each two ways."""
    (height, width), total = z.shape[1:3], z.square().sum((1, 2))
    agreement, weight = torch.zeros_like(total), 0
    for down, right in steps:
        here = z[:, : height - down, max(0, -right) : width - max(0, right)]
        there = z[:, down:, max(0, right) : width + min(0, right)]
        agreement += (here * there).sum((1, 2))
        weight += (height - down) * (width - abs(right))
    return _mean_of_varying(agreement * (height * width) / weight, total)


def high_frequency_ratio(features: Tensor, grid: int | tuple[int, int]) -> Tensor:
    """Energy above half the Nyquist frequency over all energy, by channel, averaged: (B,) in [0, 1].

    The mean over a picture is removed, the 2-D discrete Fourier transform taken without a window, and
    |X(f)|^2 summed over frequencies f = (f_y, f_x), in cycles a patch, with |f| > 1/4: Nyquist is 1/2. The
    length of f counts, so that diagonals are no special case. A white map gives the share of frequencies that
    are high, `white_ratio`. The transform takes the map as periodic: a step from one edge to the other
    counts as a jump."""
    high, ratios = _high_frequencies(*_sides_of(grid)), []
    for z in _to_centred_maps(features, grid):
        energy = torch.fft.fft2(z, dim=(1, 2)).abs().square()
        ratios.append(_mean_of_varying(energy[:, high.to(z.device)].sum(1), energy.sum((1, 2))))
    return torch.cat(ratios)


def white_ratio(grid: int | tuple[int, int]) -> float:
    """The `high_frequency_ratio` that patches in random order tend to: the share of high ones among all
    frequencies but zero."""
    high = _high_frequencies(*_sides_of(grid))
    return high.sum().item() / (high.numel() - 1)


class LocalSimilarity(NamedTuple):
    """Mean cosine of near and of distant pairs of patches, (B,) each in [-1, 1]."""

    near: Tensor
    far: Tensor

    @property
    def difference(self) -> Tensor:
        """near - far, (B,): how much more alike neighbours are than patches far apart."""
        return self.near - self.far


def local_similarity(
    features: Tensor, grid: int | tuple[int, int], radius: float = 1.0, far: float | None = None
) -> LocalSimilarity:
    """Mean cosine of the pairs of different patches of a picture at most `radius` apart, and of those at
    least `far` apart, in patches from middle to middle.

    radius: 1 is the rook's neighbours, 1.5 the queen's. far: by default half the grid's longer side. Means
    are not removed, so features with a large common part are alike everywhere; look at `difference` then. A
    patch of zeros counts as cosine 0. Raises ValueError where no two patches are that near or that far."""
    height, width = _sides_of(grid)
    far = max(height, width) / 2 if far is None else far
    if not 0 < radius < far:
        raise InputError(f"radius is {radius} and far {far}; it takes 0 < radius < far")
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
    distance = torch.cdist(places, places)
    masks = ((distance > 0) & (distance <= radius + 1e-9)), distance >= far - 1e-9
    for mask, what in zip(masks, (f"at most {radius}", f"at least {far}"), strict=True):
        if not mask.any():
            raise InputError(f"no two patches of {height} x {width} are {what} apart")
    means = []
    for z in _to_maps(features, grid):
        for picture in F.normalize(z.flatten(1, 2), dim=-1):  # (N, N) of one picture at a time
            cosine = picture @ picture.T
            means.append(torch.stack([cosine[mask.to(z.device)].mean() for mask in masks]))
    return LocalSimilarity(*torch.stack(means, 1))


def _sides_of(grid: int | tuple[int, int]) -> tuple[int, int]:
    return (grid, grid) if isinstance(grid, int) else (grid[0], grid[1])


def _to_maps(features: Tensor, grid: int | tuple[int, int]) -> Iterator[Tensor]:
    """(B, N, d) -> maps (b, rows, columns, d) of a few pictures at a time, float64.

    Raises ValueError for another shape, a grid of other than N patches, and values that are not finite."""
    features = torch.as_tensor(features).detach()
    sides = _sides_of(grid)
    if features.ndim != 3 or not features.numel():
        raise InputError(
            f"features have shape {tuple(features.shape)}; expected (B, N, d), N patches a picture"
        )
    if min(sides) < 2 or sides[0] * sides[1] != features.shape[1]:
        raise InputError(
            f"a grid of {sides[0]} x {sides[1]} was asked for and there are {features.shape[1]} patches; "
            "give the side of the token grid, or (rows, columns), each at least 2"
        )
    bad = (~torch.isfinite(features)).flatten(1).any(1).nonzero().flatten()
    if len(bad):
        raise InputError(
            f"{len(bad)} of {len(features)} pictures have features that are not finite, the first of them "
            f"number {int(bad[0])}; leave those out, or find out where they come from"
        )
    for part in features.split(max(1, AT_ONCE // features[0].numel())):
        yield to_float64(part).unflatten(1, sides)


def _to_centred_maps(features: Tensor, grid: int | tuple[int, int]) -> Iterator[Tensor]:
    """Maps without their means over the picture; constant channels exactly zero."""
    for x in _to_maps(features, grid):
        spread = x.amax((1, 2), keepdim=True) - x.amin((1, 2), keepdim=True)
        varies = spread > CONSTANT * x.abs().amax((1, 2), keepdim=True)
        yield (x - x.mean((1, 2), keepdim=True)) * varies


def _mean_of_varying(part: Tensor, total: Tensor) -> Tensor:
    """The mean of part / total over the channels whose total is not zero. (B, d) twice -> (B,)."""
    return torch.where(total > 0, part / total, torch.nan).nanmean(1)


def _high_frequencies(height: int, width: int) -> Tensor:
    """Which frequencies of a map are above half of Nyquist, bool (height, width)."""
    y, x = torch.fft.fftfreq(height, dtype=torch.float64), torch.fft.fftfreq(width, dtype=torch.float64)
    return torch.hypot(y[:, None], x[None, :]) > 0.25
