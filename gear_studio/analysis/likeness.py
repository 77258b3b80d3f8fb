"""How much a Run's features are like the teacher's: the paper's similarity probes as numbers for
evaluation.json, by one protocol for all Runs.

Features are those of `features.extract` with its defaults (null condition, before the projector), of IMAGES
held-out images. At patch level PATCHES rows are drawn, the same for every Run of the same pictures. Notebook
04_alignment takes the same measures with intervals, under other protocols too.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import stdtrit
from torch import Tensor, nn

from gear_studio.analysis.features import extract
from gear_studio.analysis.similarity import Estimate, cka, cknna
from gear_studio.errors import InputError
from gear_studio.models.generator import Generator

IMAGES, PATCHES = 512, 4096


def measure_likeness(modules: Sequence[nn.Module], images: Tensor, source: str = "") -> dict:
    """Debiased CKA and CKNNA (k = 10) with the teacher's features: {"patch" or "image": {place: {"cka",
    "cknna"}}, "protocol"}.

    Places: tokenizer.z, tokenizer.c_q (CKA alone: equal rows have no nearest neighbours) and, where there is
    a Generator, generator.BLOCK for each of its blocks. A measure that cannot be taken is left out: of a
    collapsed codebook, or of a handful of pictures.

    modules: a Tokenizer, a Teacher of one patch a token and perhaps the Generator of those tokens, in eval
    mode on the device of `images` (B, 3, H, W), float in [-1, 1]. source: what the images are."""
    places = ["tokenizer.z", "tokenizer.c_q"]
    for module in modules:
        if isinstance(module, Generator):
            places += [f"generator.{block}" for block in range(1, module.config.blocks + 1)]
    features = extract(modules, images, [*places, "teacher"], source=source)
    result: dict = {"protocol": f"{features.protocol}; patch level: {PATCHES} drawn (seed 0)"}
    for level, count in (("patch", min(PATCHES, features["teacher"][..., 0].numel())), ("image", None)):
        rows = features.rows(level, count)
        result[level] = {}
        for place in places:
            measures = {"cka": cka} if place == "tokenizer.c_q" else {"cka": cka, "cknna": cknna}
            result[level][place] = _measure_rows(measures, rows[place], rows["teacher"])
    return result


def _measure_rows(measures: dict[str, Callable], rows: Tensor, of_teacher: Tensor) -> dict[str, float]:
    values = {}
    for name, measure in measures.items():
        try:
            values[name] = measure(rows, of_teacher)
        except ValueError:  # rows that do not vary, neighbours that cannot be told apart, too few rows
            continue
    return values


def change_over_seeds(ours: Sequence[float], controls: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean over training seeds of the difference between a seed's value and its own control's, with Student's
    interval of a mean of paired differences. Of 3 seeds it is wide, and takes the differences to be normal.

    Raises ValueError for unequal numbers of seeds, or fewer than 2."""
    if len(ours) != len(controls) or len(ours) < 2:
        raise InputError(
            f"{len(ours)} seeds and {len(controls)} of the control; it takes the same number, at least 2"
        )
    gains = np.subtract(ours, controls)
    mean, error = float(gains.mean()), gains.std(ddof=1) / len(gains) ** 0.5
    reach = float(stdtrit(len(gains) - 1, (1 + level) / 2) * error)
    return Estimate(mean, mean - reach, mean + reach)
