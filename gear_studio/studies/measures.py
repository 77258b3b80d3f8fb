"""The numbers that a study's tables have of a Run, each with its label and unit."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from gear_studio.analysis.agreement import KINDS
from gear_studio.models.judges import ATTRIBUTES
from gear_studio.runs import Run


@dataclass(frozen=True)
class Measure:
    """A column of the table.

    label: with its unit. read: the number of a Run, or None where it was not measured. digits: decimals to
    print."""

    label: str
    read: Callable[[Run], float | None]
    digits: int = 2


def from_evaluation(*keys: str, scale: float = 1.0) -> Callable[[Run], float | None]:
    """Reads the number at `keys` of evaluation.json, times `scale`; of a spread over sampling seeds its
    mean."""

    def read(run: Run) -> float | None:
        value = run.evaluation
        for key in keys:
            value = value.get(key, {})
        value = value.get("mean", {}) if isinstance(value, dict) else value
        return None if value is None or isinstance(value, dict) else scale * value

    return read


def final_value(key: str) -> Callable[[Run], float | None]:
    """Reads a validation metric at the end of the training."""
    return lambda run: run.series(key)[1][-1].item() if any(key in row for row in run.metrics) else None


def likeness_at(place: str, measure: str) -> Callable[[Run], float | None]:
    """Reads a measure of likeness to the teacher at a place of the model, such as tokenizer.z; "tap" is the
    block at which the generator is aligned."""

    def read(run: Run) -> float | None:
        at = f"generator.{run.config['recipe']['generator']['tap']}" if place == "tap" else place
        return from_evaluation("likeness", "patch", at, measure)(run)

    return read


def index_entropy(run: Run) -> float | None:
    """Entropy of the indices in nats, by their perplexity."""
    perplexity = from_evaluation("perplexity")(run)
    return None if perplexity is None else math.log(perplexity)


MEASURES = {
    "ntp": Measure("NTP (nats/token)", final_value("val_ntp"), 3),
    "alignment": Measure("alignment (-cos)", final_value("val_alignment"), 3),
    "fd": Measure("FD", from_evaluation("fd")),
    "fd_guided": Measure("FD, guidance 1.5", from_evaluation("fd_guided")),
    "rfd": Measure("rFD", from_evaluation("rfd")),
    "agreement": Measure(
        "asked class, guidance 1.5 (%)", from_evaluation("class_agreement", "1.5", scale=100), 1
    ),
    "psnr": Measure("PSNR (dB)", from_evaluation("psnr")),
    "usage": Measure("codes used (%)", from_evaluation("usage", scale=100), 1),
    "perplexity": Measure("perplexity (codes)", from_evaluation("perplexity"), 0),
    "index_entropy": Measure("entropy of the indices (nats)", index_entropy),
    "entropy_tau": Measure("entropy of softmax(A/tau) (nats)", from_evaluation("entropy_tau"), 3),
}
MEASURES |= {
    f"{kind}_{name}": Measure(
        f"{name}, {kind} combinations (%)", from_evaluation("prompts", kind, "asked", name, scale=100), 1
    )
    for kind in KINDS
    for name in (*ATTRIBUTES, "all")
}
LIKENESS = {  # to the teacher, patch level; see analysis/likeness.py
    "z_cka": Measure("CKA of z", likeness_at("tokenizer.z", "cka"), 3),
    "c_q_cka": Measure("CKA of c_q", likeness_at("tokenizer.c_q", "cka"), 3),
    "tap_cka": Measure("CKA at the tap", likeness_at("tap", "cka"), 3),
    "tap_cknna": Measure("CKNNA at the tap", likeness_at("tap", "cknna"), 3),
}
CURVES = {
    "val_ntp": "validation NTP (nats/token)",
    "val_alignment": "validation alignment (-cos)",
    "val_fd": "FD of samples, no guidance",
}
