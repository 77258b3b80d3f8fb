"""Summaries of a set of pictures by which it is compared with another: moments, class predictions, feature
points.

Notable here:
- Every summary is a sum over pictures. So a set is read batch by batch, and the sums of several processes
  add up. Sums are float64: their order, and with it the number of processes, shows in the last digits only.
- A distance between Gaussians fitted to features is FID only in the features of one particular Inception
  network. In any other space the same formula is called FD here: numbers of different spaces do not compare.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from gear_studio.devices import float64_device
from gear_studio.errors import InputError

SPLITS = 10  # parts that an Inception Score is averaged over


@dataclass(frozen=True)
class Statistics:
    """Mean (d,) and covariance (d, d) of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray


def split_among_processes(count: int, size: int, accelerator: Accelerator) -> Iterator[range]:
    """This process's batches of 0..count-1, `size` at a time. The batches do not depend on the number of
    processes."""
    for number, begin in enumerate(range(0, count, size)):
        if number % accelerator.num_processes == accelerator.process_index:
            yield range(begin, min(begin + size, count))


def check_finite(sums: Tensor) -> None:
    """Raise ValueError where something added up over pictures is NaN or infinite."""
    if not sums.isfinite().all():
        raise InputError(
            "features of some pictures are NaN or infinite, so that nothing can be measured in them; the "
            "weights of their network, or of the model that drew the pictures, may be damaged"
        )


class Moments:
    """Mean and covariance of features (n, d), from the sums that `add` keeps: never more than (d + 1, d + 1).

    sums: [x 1]' [x 1] added over all rows; sums of several processes add up."""

    def __init__(self, dim: int, device: torch.device | str = "cpu"):
        device = float64_device(device)
        self.sums = torch.zeros(dim + 1, dim + 1, dtype=torch.float64, device=device)

    def add(self, start: int, features: Tensor) -> None:
        """Add features (B, d). start: the number of the first picture, which makes no difference here."""
        rows = torch.nn.functional.pad(features.to(self.sums.device).double(), (0, 1), value=1.0)
        self.sums += rows.T @ rows

    def result(self) -> Statistics:
        """Raises ValueError for fewer than two rows, which have no covariance, and for rows that are not
        finite."""
        check_finite(self.sums)
        sums = self.sums.cpu().numpy()
        count = sums[-1, -1]
        if count < 2:
            raise InputError(f"statistics of {count:.0f} pictures were asked for; it takes at least 2")
        mean = sums[-1, :-1] / count
        return Statistics(mean, (sums[:-1, :-1] - count * np.outer(mean, mean)) / (count - 1))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Frechet 1957; Heusel et al. 2017), at least 0.
    Near 0 it is rounding: that of equal statistics is below a millionth of tr(C_a)."""
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b.covariance @ root).clip(0)).sum()
    distance = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance) - 2 * cross
    return max(0.0, float(distance))


class Predictions:
    """Inception Score (Salimans et al. 2016) of `count` pictures: in each of 10 successive parts,
    exp(mean KL(p(y|x) || mean p(y))).

    sums: (10, classes + 2), a row a part: the sums of p and of p log p (over all classes), and the number of
    pictures. Pictures are not shuffled; samples take their classes in turn or evenly spread, so that every
    part has its share of each."""

    def __init__(self, count: int, classes: int, device: torch.device | str = "cpu"):
        self.count = count
        device = float64_device(device)
        self.sums = torch.zeros(SPLITS, classes + 2, dtype=torch.float64, device=device)

    def add(self, start: int, logits: Tensor) -> None:
        """Add logits (B, classes) of the pictures from number `start` on."""
        log_p = logits.to(self.sums.device).double().log_softmax(-1)
        p = log_p.exp()
        rows = torch.cat([p, (p * log_p).sum(-1, keepdim=True), torch.ones_like(p[:, :1])], dim=-1)
        # Part i holds pictures i * count // 10 up to (i + 1) * count // 10.
        ends = torch.arange(1, SPLITS + 1, device=rows.device) * self.count // SPLITS
        numbers = torch.arange(start, start + len(rows), device=rows.device)
        self.sums.index_add_(0, torch.searchsorted(ends, numbers, right=True), rows)

    def result(self) -> float:
        """At least 1, at most the number of classes. Raises ValueError for fewer than 10 pictures, and for
        logits that are not finite."""
        check_finite(self.sums)
        if self.count < SPLITS:
            raise InputError(f"an Inception Score of {self.count} pictures was asked for; it takes {SPLITS}")
        total = self.sums[:, -1]
        mean = self.sums[:, :-2] / total[:, None]
        divergence = self.sums[:, -2] / total + torch.special.entr(mean).sum(-1)
        return divergence.exp().mean().item()


class Points:
    """The features themselves, float32 (n, d), of every `stride`-th of `count` pictures.

    sums: a row a picture, zero for pictures that this process has not seen, so that the sums of several
    processes add up."""

    def __init__(self, count: int, dim: int, stride: int = 1, device: torch.device | str = "cpu"):
        self.stride = stride
        self.sums = torch.zeros(-(-count // stride), dim, device=device)

    def add(self, start: int, features: Tensor) -> None:
        """Add features (B, d) of the pictures from number `start` on."""
        skipped = -start % self.stride
        rows = features[skipped :: self.stride].to(self.sums)
        begin = (start + skipped) // self.stride
        self.sums[begin : begin + len(rows)] = rows

    def result(self) -> Tensor:
        """Raises ValueError for features that are not finite."""
        check_finite(self.sums)
        return self.sums


def precision_recall(generated: Tensor, real: Tensor, neighbours: int = 3) -> dict[str, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019) of points (n, d) and (m, d), both in [0, 1].

    precision: the share of generated points that lie inside a ball around a real one, which reaches to its
    `neighbours`-th nearest real point. recall: the same with the two exchanged.
    Raises ValueError for too few points."""
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    if min(len(generated), len(real)) <= neighbours:
        raise InputError(
            f"precision and recall of {len(generated)} generated and {len(real)} real pictures were asked "
            f"for; it takes more than {neighbours} of each"
        )
    precision, recall = calculate_precision_recall_part(generated, real, neighbours)
    return {"precision": precision, "recall": recall}


def precision_recall_density_coverage(
    generated: Tensor, real: Tensor, neighbours: int = 5, most: int = 10_000
) -> dict[str, float]:
    """How two sets of points (n, d) and (m, d) overlap (Naeem et al. 2020, arXiv 2002.09797), measured as
    GPIC does: of both `most` points at most, as many of one as of the other.

    A ball around a point reaches to its `neighbours`-th nearest point of the same set. precision: the share
    of generated points inside a ball of a real one. recall: the same with the two exchanged. density: how
    many balls of real points a generated one is in, a `neighbours`-th of it on average. coverage: the share
    of real points whose ball holds a generated one. Raises ValueError for too few points."""
    count = min(len(generated), len(real), most)
    if count <= neighbours:
        raise InputError(
            f"precision, recall, density and coverage of {len(generated)} generated and {len(real)} real "
            f"pictures were asked for; they take more than {neighbours} of each"
        )
    generated, real = (_spread(points, count).double() for points in (generated, real))
    reach_of_generated, reach_of_real = (_reach(points, neighbours) for points in (generated, real))
    inside_real = torch.zeros(count, device=real.device)  # for each generated point, the balls it is in
    recalled, covered = [], []
    for begin in range(0, count, 1000):
        distances = torch.cdist(real[begin : begin + 1000], generated)
        reach = reach_of_real[begin : begin + 1000]
        inside_real += (distances < reach[:, None]).sum(0)
        recalled.append((distances < reach_of_generated).any(1))
        covered.append(distances.amin(1) < reach)
    return {
        "precision": (inside_real > 0).double().mean().item(),
        "recall": torch.cat(recalled).double().mean().item(),
        "density": inside_real.double().mean().item() / neighbours,
        "coverage": torch.cat(covered).double().mean().item(),
    }


def _spread(points: Tensor, count: int) -> Tensor:
    """`count` of the points, evenly spread over them."""
    return points[torch.arange(count, device=points.device) * len(points) // count]


def _reach(points: Tensor, neighbours: int) -> Tensor:
    """The distance of each point to its `neighbours`-th nearest other one."""
    parts = [torch.cdist(part, points) for part in points.split(1000)]
    return torch.cat([part.kthvalue(neighbours + 1, dim=1).values for part in parts])


def kernel_distance(generated: Tensor, real: Tensor, subsets: int = 100, size: int = 1000) -> float:
    """MMD^2 of points (n, d) and (m, d) with the kernel (x . y / d + 1)^3, unbiased (Binkowski et al. 2018,
    arXiv 1801.01401): the mean over `subsets` draws of `size` points of each, fewer where there are fewer.

    The draws are always the same. Near 0 it may be below. Raises ValueError for fewer than two points."""
    size = min(size, len(generated), len(real))
    if size < 2:
        raise InputError(f"the kernel distance of {size} pictures was asked for; it takes at least 2")
    rng, total = np.random.default_rng(0), 0.0

    def draw(points: Tensor) -> Tensor:
        chosen = torch.from_numpy(rng.choice(len(points), size, replace=False))
        return points[chosen.to(points.device)].double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    for _ in range(subsets):
        x, y = draw(generated), draw(real)
        within = sum((k.sum() - k.trace()).item() for k in (kernel(x, x), kernel(y, y)))
        total += within / (size * (size - 1)) - 2 * kernel(x, y).mean().item()
    return total / subsets
