"""How alike two sets of features are, row by row: CKA, CKNNA and mutual k-NN, with chance level and interval.

x and y hold one row an image or a patch, (N, d) and (N, d'), row i of both being the same image or patch.
`sample_rows` makes such rows of patch features; `features.extract` also says under which protocol.

- `cka` compares the similarities of all pairs of rows. A few directions of large variance can decide it.
- `cknna` (Huh et al. 2024, arXiv 2405.07987) compares only pairs that are near neighbours in both sets.
- `mutual_knn` counts those neighbours and leaves their similarities out.

Notable here:
- No N x N matrix is held in memory. Linear CKA needs sums of d x d' values. A masked kernel of CKNNA has at
  most k entries a row that are not zero; after the search for neighbours, its sums run over those entries.
- Products are computed in the dtype and on the device of the rows (on the CPU where the device has no
  float64); sums in which large terms cancel are float64. Rows in half precision are converted to float32;
  for float64 results give float64 rows.
- Read a value beside its chance level (`null_baseline`) and its uncertainty (`interval`): the biased CKA of
  unrelated wide features is near 1 when rows are few.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gear_studio.devices import float64_device
from gear_studio.errors import InputError

AT_ONCE = 2**24  # cosines worked on at a time: 64 MiB of float32
TIED_ROWS = 0.05  # share of rows whose k-th neighbour may be a matter of chance

Rows = np.ndarray | Tensor


@dataclass(frozen=True)
class Null:
    """What a measure gives on unrelated rows: mean, and the quantiles that hold 95 % of it."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A measured value with its confidence interval, and the chance level (None where not measured)."""

    value: float
    low: float
    high: float
    null: Null | None = None

    def __str__(self) -> str:
        chance = f", chance {self.null.mean:.3f}" if self.null else ""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]{chance}"


@dataclass(frozen=True)
class Neighbours:
    """The m nearest other rows of every row, by cosine.

    rows: (N, d), scaled to length 1. indices: int64 (N, m), nearest first. cosines: (N, m)."""

    rows: Tensor
    indices: Tensor
    cosines: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def permuted(self, order: Tensor) -> "Neighbours":
        """The neighbours of the rows in another order: new row i is old row order[i]."""
        return Neighbours(self.rows[order], torch.argsort(order)[self.indices[order]], self.cosines[order])

    def within(self, chosen: Tensor, k: int) -> "Neighbours":
        """The k nearest neighbours of each chosen row among the chosen rows. chosen: bool (N,).

        Rows whose list holds k chosen neighbours are not searched again; the others are."""
        kept = chosen.nonzero().flatten()
        if len(kept) <= k:
            raise InputError(f"k is {k} and a half has {len(kept)} rows; give more rows, or a smaller k")
        inside = chosen[self.indices[kept]]
        enough = inside.sum(1) >= k
        first = inside & (inside.cumsum(1) <= k) & enough[:, None]
        indices = torch.empty(len(kept), k, dtype=torch.int64, device=kept.device)
        cosines = torch.empty(len(kept), k, dtype=self.cosines.dtype, device=kept.device)
        indices[enough] = (chosen.cumsum(0) - 1)[self.indices[kept][first]].view(-1, k)
        cosines[enough] = self.cosines[kept][first].view(-1, k)
        rows, short = self.rows[kept], (~enough).nonzero().flatten()
        if len(short):
            indices[short], cosines[short] = _search(rows, short, k)
        return Neighbours(rows, indices, cosines)


@torch.no_grad()
def neighbours(x: Rows, k: int = 10) -> Neighbours:
    """Search the k + 1 nearest rows of every row of x, (N, d); the last one shows whether the k-th is tied.

    `cknna` and `mutual_knn` accept the result instead of x. Features that are compared with many others, such
    as a teacher's, are then searched only once.
    Raises ValueError for k >= N, a row of zeros or values that are not finite."""
    return _search_all(_to_matrix(x, "x"), k, k + 1, "x")


# The measures


@torch.no_grad()
def cka(x: Rows, y: Rows, debiased: bool = True) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019), HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with
    K = XX' and L = YY'. x: (N, d), y: (N, d').

    debiased: HSIC by the unbiased estimator of Song et al. 2012 (N >= 4); about 0 for unrelated rows, can be
    slightly negative. Otherwise the biased one, in [0, 1], which grows with d / N on rows that have nothing
    in common. Turning or scaling all of x, or shifting it, changes neither. Rows are not normalised.

    It sums over d x d' products, or over chunks of the N x N kernels where that is less work (few wide rows).
    Raises ValueError for shapes that do not match, too few rows, values that are not finite, and rows that do
    not vary."""
    x, y = _to_matrices(x, y)
    if len(x) < (4 if debiased else 2):
        raise InputError(
            f"CKA of {len(x)} rows was asked for; it takes at least 4 (2 with debiased=False), and some "
            "hundred to mean much"
        )
    a, b = _centre(x, "x"), _centre(y, "y")
    hsic = _hsic_unbiased if debiased else _hsic_biased
    return hsic(a, b) / math.sqrt(_check_positive(hsic(a, a), a, "x") * _check_positive(hsic(b, b), b, "y"))


@torch.no_grad()
def cknna(x: Rows | Neighbours, y: Rows | Neighbours, k: int = 10) -> float:
    """Centred kernel nearest-neighbour alignment (Huh et al. 2024), as REPA and GEAR use it with k = 10.

    Rows are first scaled to length 1; K = XX', L = YY'. The mask a_ij is 1 when j is among the k nearest
    neighbours of i both in K and in L (i is not its own neighbour); a_KK uses the neighbours in K alone. Then
    HSIC_u(a K, a L) / sqrt(HSIC_u(a_KK K, a_KK K) HSIC_u(a_LL L, a_LL L)), HSIC_u of Song et al. 2012.
    1 for equal neighbourhoods, about k / N or less for unrelated rows; with k = N - 1 it is debiased CKA of
    the scaled rows. It depends on k and on N: compare only values of the same two.

    The masks are not symmetric: j can be a neighbour of i without i being one of j. As the authors' code
    does, HSIC_u is still computed by its formula: its trace then counts the mutual neighbours, and exchanging
    x and y can change the value slightly. That code adds 1e-6 to the denominator, which lowers its values,
    more the larger N and the less alike neighbours are: of normally distributed rows, 768 to 2,048 wide, by 1
    to 10 % at N = 500 to 8,000; of narrow ones, and of the shipped models' features, by less than 1 %.
    Nothing is added here.

    x: (N, d), y: (N, d'), or their `neighbours`.

    Raises ValueError as `neighbours` does, for N < 4, and where for more than 5 % of the rows the k-th
    neighbour is as near as the next one, as among quantized features, many of whose rows are equal."""
    x, y = _take_neighbours(x, y, k)
    n = len(x)
    if n < 4:
        raise InputError(
            f"CKNNA of {n} rows was asked for; it takes at least 4, and some hundred to mean much"
        )
    (in_x, cos_x), (in_y, cos_y) = _edges(x, k), _edges(y, k)
    shared, at = _locate(in_x, in_y)
    together = _hsic_sparse(n, in_x[shared], cos_x[shared], cos_y[at[shared]])
    alone = [_hsic_sparse(n, keys, cos, cos) for keys, cos in ((in_x, cos_x), (in_y, cos_y))]
    for name, value in zip("xy", alone, strict=True):
        if not value > 0:
            raise InputError(
                f"HSIC of {name} with itself is {value:.3g} at k = {k} of {n} rows: hardly any two rows "
                "chose each other, or the rows do not vary; give more rows, or another k"
            )
    return together / math.sqrt(alone[0] * alone[1])


@torch.no_grad()
def mutual_knn(x: Rows | Neighbours, y: Rows | Neighbours, k: int = 10) -> float:
    """The share, in [0, 1], of a row's k nearest rows in x that are also among its k nearest in y, by cosine,
    averaged over rows (Huh et al. 2024). k / (N - 1) for unrelated rows.

    x: (N, d), y: (N, d'), or their `neighbours`. Raises ValueError as `cknna` does."""
    x, y = _take_neighbours(x, y, k)
    shared, _ = _locate(_edges(x, k)[0], _edges(y, k)[0])
    return shared.double().mean().item()


# Chance and uncertainty


Measure = Callable[[Any, Any], float]  # of two row matrices, or of two Neighbours


@torch.no_grad()
def null_baseline(measure: Measure, x: Rows, y: Rows, permutations: int = 100, seed: int = 0) -> Null:
    """Chance level: the values of `measure` after the rows of y are shuffled, so that row i of x and row i
    of y come from different images.

    measure: `cka`, `cknna`, `mutual_knn`, a functools.partial of one (k=5, debiased=False), or any function
    of two row matrices. Neighbours are searched once, not once a permutation."""
    if permutations < 1:
        raise InputError(f"permutations is {permutations}; it takes at least 1")
    a, b = _search_if_needed(measure, *_to_matrices(x, y), margin=1)
    return _measure_shuffled(measure, a, b, permutations, seed)


def _measure_shuffled(
    measure: Measure, x: Tensor | Neighbours, y: Tensor | Neighbours, permutations: int, seed: int
) -> Null:
    source = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(permutations):
        order = torch.randperm(len(y), generator=source).to(_device(y))
        values.append(measure(x, y.permuted(order) if isinstance(y, Neighbours) else y[order]))
    low, high = np.quantile(values, [0.025, 0.975])
    return Null(float(np.mean(values)), float(low), float(high))


@torch.no_grad()
def interval(
    measure: Measure,
    x: Rows,
    y: Rows,
    groups: Rows | Sequence[int] | None = None,
    level: float = 0.95,
    halves: int = 50,
    permutations: int = 20,
    seed: int = 0,
) -> Estimate:
    """Measure x and y, with a confidence interval from random halves and (permutations > 0) the chance level.

    groups: (N,) which image each row came from; None where every row is an image of its own. Patches of one
    image resemble each other, so images are drawn, never single patches. measure: as in `null_baseline`.
    level: in (0, 1).

    Half of the groups is drawn `halves` times, each time *without* replacement. The value of a half differs
    from the value of all groups as much as that one differs from the true value (Politis & Romano 1994; the
    delete-half jackknife), so the standard deviation over halves estimates the standard error. The interval
    is the value of all rows plus and minus Student's t times that error. A bootstrap with replacement is no
    choice here: copies of a row would be each other's nearest neighbours. A half has the same k among fewer
    rows, which shifts its value; therefore only the spread of the halves is used. Below about 20 groups the
    interval is rough.

    Raises ValueError for fewer than 8 groups."""
    from scipy.special import stdtrit  # here: figures need this file and not scipy

    a, b = _to_matrices(x, y)
    if not 0 < level < 1:
        raise InputError(f"level is {level}; give a share between 0 and 1, such as 0.95")
    if halves < 2:
        raise InputError(f"halves is {halves}; a spread takes at least 2, and 50 to be steady")
    group = torch.arange(len(a)) if groups is None else torch.as_tensor(groups).cpu()
    if group.shape != (len(a),):
        raise InputError(
            f"groups have shape {tuple(group.shape)}; expected ({len(a)},), the image of each row"
        )
    names, group = group.unique(return_inverse=True)
    count, half = len(names), len(names) // 2
    if count < 8:
        raise InputError(
            f"the rows come from {count} images; a confidence interval takes at least 8, and some 20 to be "
            "more than rough"
        )
    near_a, near_b = _search_if_needed(measure, a, b, margin=3)
    null = _measure_shuffled(measure, near_a, near_b, permutations, seed) if permutations else None
    source, values = torch.Generator().manual_seed(seed), []
    for _ in range(halves):
        drawn = torch.zeros(count, dtype=torch.bool)
        drawn[torch.randperm(count, generator=source)[:half]] = True
        chosen = drawn[group].to(a.device)
        values.append(measure(*(_choose_rows(side, chosen, measure) for side in (near_a, near_b))))
    # Without the factor, the halves of an odd number of groups would spread a little too much.
    error = float(np.std(values, ddof=1)) * math.sqrt(half / (count - half))
    reach = float(stdtrit(count - 1, (1 + level) / 2)) * error
    value = measure(near_a, near_b)
    return Estimate(value, value - reach, value + reach, null)


# Rows


def sample_rows(
    *features: Rows, level: str = "patch", count: int | None = None, seed: int = 0
) -> tuple[list[Tensor], Tensor]:
    """Make rows to compare of features (B, N, d) of the same images: matrices (n, d) and groups (n,).

    level: "image" makes a row of each image, the mean over its patches; "patch" makes a row of each patch.
    Every matrix holds the same rows. count: how many rows to draw, without replacement; None takes all.
    groups: the image of each row, for `interval`. The draw depends on B, N, count and seed alone.

    Raises ValueError for another level, features of unequal B or N, and a count above what there is."""
    parts = [torch.as_tensor(part) for part in features]
    if not parts or any(part.ndim != 3 for part in parts):
        shapes = ", ".join(str(tuple(part.shape)) for part in parts) or "none"
        raise InputError(f"features have shapes {shapes}; expected one or more of (B, N, d)")
    if level not in ("image", "patch"):
        raise InputError(f"level is {level!r}; choose image (averaged over patches) or patch")
    sizes = {part.shape[:1] if level == "image" else part.shape[:2] for part in parts}
    if len(sizes) > 1:
        what = "images" if level == "image" else "images and patches"
        raise InputError(
            f"features differ in their numbers of {what}: {', '.join(str(tuple(size)) for size in sizes)}; "
            "take them of the same images, on the same grid"
        )
    if level == "image":
        groups, rows = torch.arange(len(parts[0])), [_to_float(part).mean(1) for part in parts]
    else:
        groups = torch.arange(len(parts[0])).repeat_interleave(parts[0].shape[1])
        rows = [part.flatten(0, 1) for part in parts]
    if count is None:
        return rows, groups
    if not 1 <= count <= len(groups):
        raise InputError(f"{count} rows were asked for; there are {len(groups)} at {level} level")
    source = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(groups), generator=source)[:count].sort().values
    return [part[drawn.to(part.device)] for part in rows], groups[drawn]


def _to_float(x: Tensor) -> Tensor:
    """As float32, or float64 where it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def _to_matrix(x: Rows, name: str) -> Tensor:
    """Rows as a tensor. Raises ValueError unless they are (N, d) and finite."""
    x = torch.as_tensor(np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x).detach()
    if x.ndim != 2 or not x.numel():
        raise InputError(
            f"{name} has shape {tuple(x.shape)}; expected (N, d), one row an image or a patch: `sample_rows` "
            "makes them of (B, N, d)"
        )
    bad = (~torch.isfinite(x)).any(1).nonzero().flatten()
    if len(bad):
        raise InputError(
            f"{name} holds values that are not finite in {len(bad)} of its {len(x)} rows, the first of them "
            f"row {int(bad[0])}; leave those rows out of x and y, or find out where they come from"
        )
    return _to_float(x.to(float64_device(x.device)))


def _to_matrices(x: Rows, y: Rows) -> tuple[Tensor, Tensor]:
    x, y = _to_matrix(x, "x"), _to_matrix(y, "y")
    _check_same_rows(x, y)
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def _check_same_rows(x: Tensor | Neighbours, y: Tensor | Neighbours) -> None:
    if len(x) != len(y):
        raise InputError(f"x has {len(x)} rows and y {len(y)}; row i of both must be the same image or patch")
    if _device(x) != _device(y):
        raise InputError(f"x is on {_device(x)} and y on {_device(y)}; move one to the other's device")


def _device(x: Tensor | Neighbours) -> torch.device:
    return (x.rows if isinstance(x, Neighbours) else x).device


# CKA. With K = XX' of centred rows, K 1 = 0: a row's sum without its diagonal entry is minus that entry.


def _centre(x: Tensor, name: str) -> Tensor:
    if (x == x[0]).all():
        raise InputError(
            f"all {len(x)} rows of {name} are equal, so nothing can vary with them; give other images, or "
            "look at what makes these features"
        )
    return x - x.mean(0, dtype=torch.float64).to(x.dtype)


def _squared_lengths(x: Tensor) -> Tensor:
    """The diagonal of XX', float64 (N,)."""
    return torch.cat([part.double().square().sum(1) for part in x.split(_chunk_rows(x.shape[1]))])


def _chunk_rows(width: int) -> int:
    """How many rows of `width` values to work on at a time."""
    return max(1, AT_ONCE // width)


def _products(x: Tensor, y: Tensor, diagonal: bool) -> float:
    """The sum of K_ij L_ij over all i and j, or over i != j. x: (N, d), y: (N, d')."""
    n = len(x)
    if x.shape[1] * y.shape[1] <= n * (x.shape[1] + y.shape[1]):  # |X'Y|^2
        cross = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, device=x.device)
        size = min(_chunk_rows(max(x.shape[1], y.shape[1])), 4096)  # float32 sums stay short
        for a, b in zip(x.split(size), y.split(size), strict=True):
            cross += a.T @ b
        total = cross.square_().sum()
        return (total if diagonal else total - (_squared_lengths(x) * _squared_lengths(y)).sum()).item()
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for rows in torch.arange(n, device=x.device).split(_chunk_rows(n)):
        product = (x[rows] @ x.T).mul_(y[rows] @ y.T)
        if not diagonal:
            product[torch.arange(len(rows), device=x.device), rows] = 0
        total += product.sum(dtype=torch.float64)
    return total.item()


def _hsic_biased(x: Tensor, y: Tensor) -> float:
    """tr(K H L H), the factor left out that cancels. x, y: centred."""
    return _products(x, y, diagonal=True)


def _hsic_unbiased(x: Tensor, y: Tensor) -> float:
    """Song et al. 2012, equation 5, the factor 1 / (n (n - 3)) left out. x, y: centred.

    With K~ = K without its diagonal and K 1 = 0, K~ 1 is minus the diagonal. The estimator is the same for
    shifted rows, so centring them, which keeps the sums small, changes nothing."""
    n, a, b = len(x), _squared_lengths(x), _squared_lengths(y)
    total = _products(x, y, diagonal=False)
    return total + (a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * (a * b).sum() / (n - 2)).item()


def _check_positive(value: float, x: Tensor, name: str) -> float:
    """HSIC of x with itself; ValueError where nothing but rounding is left of it."""
    if not value > 10 * torch.finfo(x.dtype).eps * _squared_lengths(x).square().sum().item():
        raise InputError(
            f"the rows of {name} hardly vary (HSIC with itself is {value:.3g}), so that CKA is 0 / 0; give "
            "more rows, or float64"
        )
    return value


# CKNNA: kernels as lists of edges i -> j, key i * n + j, ascending


def _search(rows: Tensor, of: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices and cosines of the `count` nearest other rows, for the rows whose numbers are `of`."""
    indices, cosines = [], []
    for part in of.split(_chunk_rows(len(rows))):
        similar = rows[part] @ rows.T
        similar[torch.arange(len(part), device=part.device), part] = -torch.inf
        nearest = similar.topk(count, dim=1)
        cosines.append(nearest.values)
        indices.append(nearest.indices)
    return torch.cat(indices), torch.cat(cosines)


def _search_all(x: Tensor, k: int, count: int, name: str) -> Neighbours:
    """At least k neighbours of every row, `count` where there are as many."""
    n = len(x)
    if not 1 <= k < n:
        raise InputError(
            f"k is {k} and {name} has {n} rows, each with {n - 1} others; give a k of 1 to {n - 1}, or "
            "more rows"
        )
    zero = (x == 0).all(1).nonzero().flatten()
    if len(zero):
        raise InputError(
            f"{len(zero)} rows of {name} are all zero, the first of them row {int(zero[0])}: they have no "
            "direction and no neighbours; leave those rows out of x and y"
        )
    rows = F.normalize(x / x.abs().amax(1, keepdim=True), dim=1)  # in two steps: tiny rows would underflow
    return Neighbours(rows, *_search(rows, torch.arange(n, device=x.device), min(count, n - 1)))


def _take_neighbours(x: Rows | Neighbours, y: Rows | Neighbours, k: int) -> tuple[Neighbours, Neighbours]:
    """The neighbours of x and of y. Raises ValueError where too many rows cannot tell their k-th neighbour
    from the next."""
    sides = [
        side if isinstance(side, Neighbours) else _to_matrix(side, name)
        for name, side in zip("xy", (x, y), strict=True)
    ]
    _check_same_rows(*sides)
    both = [
        side if isinstance(side, Neighbours) else _search_all(side, k, k + 1, name)
        for name, side in zip("xy", sides, strict=True)
    ]
    for name, near in zip("xy", both, strict=True):
        searched = near.indices.shape[1]
        if searched < k:
            raise InputError(f"k is {k}, but {searched} neighbours of {name} were searched; search for more")
        if searched > k:
            tolerance = 4 * torch.finfo(near.cosines.dtype).eps
            tied = (near.cosines[:, k - 1] - near.cosines[:, k] <= tolerance).double().mean().item()
            if tied > TIED_ROWS:
                raise InputError(
                    f"for {100 * tied:.0f} % of the rows of {name} the {k} nearest cannot be told from the "
                    f"next (ties; at most {100 * TIED_ROWS:.0f} % are let pass): rows that are equal, as "
                    "after quantization, have no nearest; take features before quantization, give float64, "
                    "or use cka"
                )
    return both[0], both[1]


def _edges(near: Neighbours, k: int) -> tuple[Tensor, Tensor]:
    """Keys (N k,), ascending, and cosines, float64, of the k nearest of every row."""
    columns, order = near.indices[:, :k].sort(1)
    first = torch.arange(len(near), device=columns.device)[:, None] * len(near)
    return (first + columns).flatten(), near.cosines[:, :k].gather(1, order).double().flatten()


def _locate(wanted: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Which of `wanted` are among the ascending `keys`, bool, and at which position."""
    if not len(keys):
        return torch.zeros_like(wanted, dtype=torch.bool), wanted
    at = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    return keys[at] == wanted, at


def _hsic_sparse(n: int, keys: Tensor, a: Tensor, b: Tensor) -> float:
    """HSIC_u of two n x n kernels with entries a and b at `keys` and none elsewhere, none on the diagonal.

    tr(AB) + 1'A1 1'B1 / ((n-1)(n-2)) - 2 1'AB1 / (n-2); 1'A holds column sums, B1 row sums."""
    i, j = keys // n, keys % n
    both_ways, at = _locate(j * n + i, keys)
    trace = (a[both_ways] * b[at[both_ways]]).sum()
    columns = torch.zeros(n, dtype=a.dtype, device=a.device).index_add_(0, j, a)
    rows = torch.zeros(n, dtype=b.dtype, device=b.device).index_add_(0, i, b)
    return (trace + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * (columns @ rows) / (n - 2)).item()


# Measures of neighbours, whose search is shared between permutations and between halves


def _k_of(measure: Measure) -> int | None:
    """The k of `cknna` and `mutual_knn`, also inside a partial; None for other measures."""
    if getattr(measure, "func", measure) not in (cknna, mutual_knn):
        return None
    return getattr(measure, "keywords", {}).get("k", 10)


def _search_if_needed(
    measure: Measure, x: Tensor, y: Tensor, margin: int
) -> tuple[Tensor, Tensor] | tuple[Neighbours, Neighbours]:
    """x and y as they are, or their neighbours for a measure of neighbours. margin: how many times k + 1
    neighbours to keep."""
    k = _k_of(measure)
    if k is None:
        return x, y
    count = margin * (k + 1)
    return _search_all(x, k, count, "x"), _search_all(y, k, count, "y")


def _choose_rows(side: Tensor | Neighbours, chosen: Tensor, measure: Measure) -> Tensor | Neighbours:
    """Only the chosen rows. chosen: bool (N,)."""
    if not isinstance(side, Neighbours):
        return side[chosen]
    k = _k_of(measure)
    assert k is not None, "Neighbours are only made for measures that have a k"
    return side.within(chosen, k)
