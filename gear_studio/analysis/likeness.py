"""How like the teacher's a Run's features are: the paper's similarity probes as numbers for evaluation.json,
by one protocol for all Runs.

Features are those of `features.extract` with its defaults (null condition, before the projector), of IMAGES
held-out images; at patch level PATCHES rows are drawn, the same for every Run of the same pictures. Notebook
04_alignment takes the same measures with intervals, under other protocols too.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import stdtrit
from torch import Tensor, nn

from gear_studio.analysis.features import extract
from gear_studio.analysis.similarity import Estimate, cka, cknna
from gear_studio.models.generator import Generator

IMAGES, PATCHES = 512, 4096


def likeness(modules: Sequence[nn.Module], images: Tensor, source: str = "") -> dict:
    """{"patch" or "image": {place: {"cka", "cknna"}}, "protocol"}, debiased CKA and CKNNA (k = 10) with the
    teacher's last features. Places: tokenizer.z, tokenizer.c_q (CKA alone: equal rows have no nearest
    neighbours) and, where there is a Generator, generator.BLOCK for each of its blocks. What cannot be taken
    is left out: of a collapsed codebook, or of a handful of pictures.

    modules: a Tokenizer, a Teacher of one patch a token and perhaps the Generator of those tokens, in eval
    mode on the device of `images` (B, 3, H, W), float in [-1, 1]. source: what the images are."""
    places = ["tokenizer.z", "tokenizer.c_q"]
    for module in modules:
        if isinstance(module, Generator):
            places += [f"generator.{block}" for block in range(1, module.config.blocks + 1)]
    found = extract(modules, images, [*places, "teacher"], source=source)
    result: dict = {"protocol": f"{found.protocol}; patch level: {PATCHES} drawn (seed 0)"}
    for level, count in (("patch", min(PATCHES, found["teacher"][..., 0].numel())), ("image", None)):
        rows = found.rows(level, count)
        result[level] = {}
        for place in places:
            measures = {"cka": cka} if place == "tokenizer.c_q" else {"cka": cka, "cknna": cknna}
            result[level][place] = _measured(measures, rows[place], rows["teacher"])
    return result


def _measured(measures: dict[str, Callable], ours: Tensor, theirs: Tensor) -> dict[str, float]:
    found = {}
    for name, measure in measures.items():
        try:
            found[name] = measure(ours, theirs)
        except ValueError:  # rows that do not vary, neighbours that cannot be told apart, too few rows
            continue
    return found


def change_over_seeds(ours: Sequence[float], controls: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean over training seeds of what each seed has gained over its own control, with Student's interval of
    a mean of paired differences. Of 3 seeds it is wide, and takes the differences to be normal.

    Raises ValueError for unequal numbers of seeds, or fewer than 2."""
    if len(ours) != len(controls) or len(ours) < 2:
        raise ValueError(
            f"{len(ours)} seeds and {len(controls)} of the control; it takes the same number, at least 2"
        )
    gained = np.subtract(ours, controls)
    mean, error = float(gained.mean()), gained.std(ddof=1) / len(gained) ** 0.5
    reach = float(stdtrit(len(gained) - 1, (1 + level) / 2) * error)
    return Estimate(mean, mean - reach, mean + reach)
