"""How much sooner one arm reaches the value at which another ends, for one pair of runs and over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gear_studio.errors import InputError

Curve = tuple[np.ndarray, np.ndarray]  # steps and values, (n,) each


def steps_to(steps: np.ndarray, values: np.ndarray, goal: float) -> float:
    """First step at which a falling curve reaches `goal`, interpolated between measurements; infinity where
    it never does. steps, values: (n,), steps ascending."""
    below = np.flatnonzero(values <= goal)
    if not len(below):
        return float("inf")
    i = below[0]
    if i == 0:
        return float(steps[0])
    share = (values[i - 1] - goal) / (values[i - 1] - values[i])
    return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))


def speed_up(baseline: Curve, arm: Curve) -> float:
    """The steps that `baseline` needs to reach its own final value, divided by those that `arm` needs to
    reach that value. 0 where the arm never does.

    Both are (steps, values) of a measure that falls, as `Run.series` returns."""
    goal = baseline[1][-1]
    return steps_to(*baseline, goal) / steps_to(*arm, goal)


@dataclass(frozen=True)
class SpeedUp:
    """pairs: the speed-up of each seed's arm over the same seed's baseline, 0 where the arm never reached the
    baseline's final value. value: their median. low, high: confidence interval of the median over seeds."""

    pairs: tuple[float, ...]
    value: float
    low: float
    high: float

    @property
    def reached(self) -> int:
        """In how many seeds the arm reached its baseline's final value."""
        return sum(pair > 0 for pair in self.pairs)

    def __str__(self) -> str:
        if not self.value:
            return f"not reached ({self.reached} of {len(self.pairs)} seeds)"
        low = f"{self.low:.2f}" if self.low else "not reached"
        return f"{self.value:.2f}x [{low}, {self.high:.2f}], {len(self.pairs)} seeds"


def speed_up_over_seeds(
    baselines: Sequence[Curve],
    arms: Sequence[Curve],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> SpeedUp:
    """`speed_up` of an arm over a baseline, both trained with the same seeds, given in the same order.

    The interval is the percentile bootstrap: seeds of the baseline and seeds of the arm are drawn with
    replacement, independently of each other, and paired as drawn; then the median is taken. What a seed does
    to both arms alike is not cancelled that way, so the interval is rather too wide.

    An arm that never reaches the goal needs longer than it was trained for, by an unknown factor. It counts
    as 0, less than any other. The median can still be taken of such values, where the mean cannot; of an even
    number it is the lower of the middle two. A low end, or a value, of 0 is printed as "not reached".

    With 3 seeds the interval is rough: there are 27 draws of each arm, and their median can be any of the 9
    pairs, extremes included. It comes out near the full range of the pairs, so do not read it as 95 %.
    Raises ValueError for unequal numbers of seeds, fewer than 2, or a level outside (0, 1)."""
    count = len(baselines)
    if count != len(arms) or count < 2:
        raise InputError(
            f"{count} seeds of the baseline and {len(arms)} of the arm; it takes the same number, at least 2 "
            "(of one pair, speed_up)"
        )
    if not 0 < level < 1 or resamples < 1:
        raise InputError(f"level is {level} and resamples {resamples}; expected 0 < level < 1, 1 or more")
    ratios = np.array([[speed_up(baseline, arm) for arm in arms] for baseline in baselines])
    rng = np.random.default_rng(seed)
    drawn = ratios[tuple(rng.integers(count, size=(2, resamples, count)))]
    medians = np.quantile(drawn, 0.5, axis=1, method="inverted_cdf")
    tail = (1 - level) / 2
    low, high = np.quantile(medians, [tail, 1 - tail], method="inverted_cdf")
    pairs = ratios.diagonal()
    value = np.quantile(pairs, 0.5, method="inverted_cdf")
    return SpeedUp(tuple(pairs.tolist()), float(value), float(low), float(high))
