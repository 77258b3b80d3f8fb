"""How good pictures are: PSNR, Frechet distance in the teacher's feature space, and whether samples show the
asked class.

The distance between Gaussians fitted to mean-pooled teacher features is the formula of FID in another space.
It is called FD here, never FID: numbers from different spaces do not compare. From few samples it is biased
and noisy, so every arm gets the same count (5,000 by default) and the distance of the reconstructions, the
floor a generator cannot pass, stands beside.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gear_studio import data, sampling
from gear_studio.analysis.codebook import assignment_statistics, usage_statistics
from gear_studio.analysis.judge import Judge
from gear_studio.runs import Run

BATCH = 250


@dataclass(frozen=True)
class Statistics:
    """Mean (d,) and covariance (d, d) of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, features: Tensor) -> "Statistics":
        """features: (n, d), n > 1."""
        x = features.double().cpu().numpy()
        return cls(x.mean(0), np.cov(x, rowvar=False))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Frechet 1957; Heusel et al. 2017). Zero for equal
    statistics."""
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b.covariance @ root).clip(0)).sum()
    return float(((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance) - 2 * cross)


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, for values in [-1, 1]. (B, 3, H, W) twice -> (B,)."""
    return 10 * torch.log10(4 / (images - reference).square().flatten(1).mean(1))


def real_images(
    source: data.Source, start: int, count: int, device: str = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Evaluation views number `start` to `start + count - 1` as (images in [-1, 1], labels), in batches."""
    if start + count > len(source):
        raise ValueError(
            f"{source.name} has {len(source)} held-out images, asked for {start + count}; lower --samples"
        )
    for begin in range(start, start + count, BATCH):
        batch = source.read(range(begin, min(begin + BATCH, start + count)))
        yield data.to_float(batch["image"].to(device)), batch["label"].to(device)


def pooled(teacher: Callable[[Tensor], Tensor], batches: Iterator[Tensor]) -> Tensor:
    """Mean-pooled teacher features (n, d_f) of batches of images, all on one device."""
    with torch.no_grad():
        return torch.cat([teacher(images).mean(1) for images in batches])


def spread(values: list[float]) -> dict:
    """Mean and sample standard deviation over seeds, with the values themselves."""
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "values": values,
    }


@torch.no_grad()
def evaluate(
    run: Run, samples: int = 5000, seeds: int = 3, cfg_scale: float = 1.5, folder: str | None = None
) -> dict:
    """Measure a Run with its EMA weights, on a GPU if there is one; a plain dict for evaluation.json.

    A tokenizer's Run: psnr (dB), rfd, codebook statistics on `samples` held-out images, and real_fd, the
    distance of as many other real images: what counting noise alone gives. A generator's Run also: fd without
    and with guidance over sampling seeds 0..seeds-1 (its tokenizer's rfd is the floor), and class_agreement,
    the
    share of 480 guided samples a seed that the judge gives the asked class, beside the judge's accuracy on
    real
    images and on their reconstructions."""
    source = data.load(run.config["source"], "val", run.tokenizer.config.image_size, folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher, tokenizer = run.teacher.to(device), run.tokenizer.to(device)
    count = min(samples, len(source))
    reference = Statistics.of(
        pooled(teacher, (images for images, _ in real_images(source, 0, count, device)))
    )
    result = {"samples": count, "teacher": run.config["recipe"]["teacher"], "teacher_note": teacher.note}

    judge = Judge.from_pretrained().to(device) if run.config["source"] == "shapes" else None
    counts = torch.zeros(tokenizer.config.codes, device=device)
    signal, features, concentration, correct = [], [], [], {"real": 0, "reconstructed": 0}
    for images, labels in real_images(source, 0, count, device):
        assignment = tokenizer.assign(images)
        reconstruction = tokenizer.decode(assignment.indices)
        counts += torch.bincount(assignment.indices.flatten(), minlength=len(counts))
        statistics = assignment_statistics(assignment.scores, run.config["recipe"]["tau"])
        concentration.append({name: value * len(images) / count for name, value in statistics.items()})
        signal.append(psnr(reconstruction, images))
        features.append(teacher(reconstruction).mean(1))
        if judge:
            correct["real"] += (judge(images).argmax(-1) == labels).sum().item()
            correct["reconstructed"] += (judge(reconstruction).argmax(-1) == labels).sum().item()
    result["rfd"] = frechet_distance(Statistics.of(torch.cat(features)), reference)
    result["psnr"] = torch.cat(signal).mean().item()
    result |= {name: value.item() for name, value in usage_statistics(counts).items()}
    result |= {name: torch.stack([c[name] for c in concentration]).sum().item() for name in concentration[0]}
    if judge:
        result["judge_accuracy"] = {name: hits / count for name, hits in correct.items()}
    if len(source) >= 2 * count:
        others = pooled(teacher, (images for images, _ in real_images(source, count, count, device)))
        result["real_fd"] = frechet_distance(Statistics.of(others), reference)
    if not run.has("generator"):
        return result

    classes = len(run.config["classes"])
    run.generator.to(device)
    for name, scale in (("fd", 1.0), ("fd_guided", cfg_scale)):
        distances = []
        for seed in range(seeds):
            generated = pooled(
                teacher, (images for images, _ in samples_of(run, count, classes, scale, seed))
            )
            distances.append(frechet_distance(Statistics.of(generated), reference))
        result[name] = spread(distances)
    result["cfg_scale"] = cfg_scale
    if judge:
        agreement = []
        for seed in range(seeds):
            batches = samples_of(run, 480, classes, cfg_scale, 1000 + seed)
            agreement.append(
                sum((judge(images).argmax(-1) == labels).sum().item() for images, labels in batches) / 480
            )
        result["class_agreement"] = spread(agreement)
    return result


def samples_of(
    run: Run, count: int, classes: int, cfg_scale: float, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Sampled images in [-1, 1] with the labels asked for, every class as often as the next, in batches."""
    labels = torch.arange(count, device=run.generator.token_table.device) % classes
    for number, part in enumerate(labels.split(BATCH)):
        indices = sampling.sample(run.generator, part, cfg_scale=cfg_scale, seed=seed * 10_000 + number)
        yield run.tokenizer.decode(indices), part
