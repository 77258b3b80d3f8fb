"""The numbers that a study's tables have of a Run, each with its label and unit."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from gear_studio.analysis.agreement import KINDS
from gear_studio.models.judges import ATTRIBUTES
from gear_studio.runs import Run


@dataclass(frozen=True)
class Measure:
    """label: with its unit. read: the number a Run has, or None where it was not measured."""

    label: str
    read: Callable[[Run], float | None]
    digits: int = 2


def evaluated(*keys: str, scale: float = 1.0) -> Callable[[Run], float | None]:
    """A figure of evaluation.json; of a spread over sampling seeds, the mean."""

    def read(run: Run) -> float | None:
        value = run.evaluation
        for key in keys:
            value = value.get(key, {})
        value = value.get("mean", {}) if isinstance(value, dict) else value
        return None if isinstance(value, dict) else scale * value

    return read


def last(key: str) -> Callable[[Run], float | None]:
    """A validation metric at the end of the training."""
    return lambda run: run.series(key)[1][-1].item() if any(key in row for row in run.metrics) else None


def like(place: str, measure: str) -> Callable[[Run], float | None]:
    """A measure of likeness to the teacher at a place of features; "tap": the generator's."""

    def read(run: Run) -> float | None:
        at = f"generator.{run.config['recipe']['generator']['tap']}" if place == "tap" else place
        return evaluated("likeness", "patch", at, measure)(run)

    return read


def index_entropy(run: Run) -> float | None:
    perplexity = evaluated("perplexity")(run)
    return None if perplexity is None else math.log(perplexity)


MEASURES = {
    "ntp": Measure("NTP (nats/token)", last("val_ntp"), 3),
    "alignment": Measure("alignment (-cos)", last("val_alignment"), 3),
    "fd": Measure("FD", evaluated("fd")),
    "fd_guided": Measure("FD, guidance 1.5", evaluated("fd_guided")),
    "rfd": Measure("rFD", evaluated("rfd")),
    "agreement": Measure("asked class, guidance 1.5 (%)", evaluated("class_agreement", "1.5", scale=100), 1),
    "psnr": Measure("PSNR (dB)", evaluated("psnr")),
    "usage": Measure("codes used (%)", evaluated("usage", scale=100), 1),
    "perplexity": Measure("perplexity (codes)", evaluated("perplexity"), 0),
    "index_entropy": Measure("entropy of the indices (nats)", index_entropy),
    "entropy_tau": Measure("entropy of softmax(A/tau) (nats)", evaluated("entropy_tau"), 3),
}
MEASURES |= {
    f"{kind}_{name}": Measure(
        f"{name}, {kind} combinations (%)", evaluated("prompts", kind, "asked", name, scale=100), 1
    )
    for kind in KINDS
    for name in (*ATTRIBUTES, "all")
}
LIKENESS = {  # to the teacher, patch level; see analysis/likeness.py
    "z_cka": Measure("CKA of z", like("tokenizer.z", "cka"), 3),
    "c_q_cka": Measure("CKA of c_q", like("tokenizer.c_q", "cka"), 3),
    "tap_cka": Measure("CKA at the tap", like("tap", "cka"), 3),
    "tap_cknna": Measure("CKNNA at the tap", like("tap", "cknna"), 3),
}
CURVES = {
    "val_ntp": "validation NTP (nats/token)",
    "val_alignment": "validation alignment (-cos)",
    "val_fd": "FD of samples, no guidance",
}
