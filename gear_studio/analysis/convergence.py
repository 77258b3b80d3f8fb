"""How much sooner one arm reaches a value than another: that at which the other ends, or a level that one
sets; for one pair of runs and over seeds."""

import math
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


def speed_up(baseline: Curve, arm: Curve, goal: float | None = None) -> float:
    """The steps that `baseline` needs to reach a value, divided by those that `arm` needs to reach it. 0
    where the arm never does, infinity where only the baseline never does.

    Both are (steps, values) of a measure that falls, as `Run.series` returns, from the first step or later.
    goal: the value; by default the baseline's own final one."""
    goal = baseline[1][-1] if goal is None else goal
    steps = steps_to(*arm, goal)
    return 0.0 if math.isinf(steps) else steps_to(*baseline, goal) / steps


def smooth(values: np.ndarray, how: str, count: int) -> np.ndarray:
    """Each value as a mean of itself and those before it. values: (n,), and so is what is returned.

    how: "rolling", the plain mean of the last `count` values; "exponential", where a value weighs
    1 - 2 / (count + 1) times the one after it. The first values have fewer before them. Raises ValueError for
    another way."""
    if how == "rolling":
        sums = np.cumsum(np.concatenate([[0.0], values]))
        last = np.arange(1, len(values) + 1)
        first = np.maximum(last - count, 0)
        return (sums[last] - sums[first]) / (last - first)
    if how != "exponential":
        raise InputError(f"unknown way to smooth {how!r}; choose rolling or exponential")
    keep, total, weight, means = 1 - 2 / (count + 1), 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight)
    return np.array(means)


@dataclass(frozen=True)
class SpeedUp:
    """pairs: the speed-up of each seed's arm over the same seed's baseline, 0 where the arm never reached the
    goal. value: their median. low, high: confidence interval of the median over seeds, and paired the same
    where the seeds of both arms are drawn together; None where it was not computed."""

    pairs: tuple[float, ...]
    value: float
    low: float
    high: float
    paired: tuple[float, float] | None = None

    @property
    def reached(self) -> int:
        """In how many seeds the arm reached the goal."""
        return sum(pair > 0 for pair in self.pairs)

    def __str__(self) -> str:
        return self._say(_interval(self.low, self.high))

    def with_paired(self) -> str:
        """As str, with both intervals."""
        paired = f"; paired {_interval(*self.paired)}" if self.paired else ""
        return self._say(_interval(self.low, self.high) + paired)

    def _say(self, intervals: str) -> str:
        if not self.value:
            return f"not reached ({self.reached} of {len(self.pairs)} seeds)"
        return f"{self.value:.2f}x {intervals}, {len(self.pairs)} seeds"


def _interval(low: float, high: float) -> str:
    return f"[{low:.2f}, {high:.2f}]" if low else f"[not reached, {high:.2f}]"


def speed_up_over_seeds(
    baselines: Sequence[Curve],
    arms: Sequence[Curve],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    goal: float | None = None,
) -> SpeedUp:
    """`speed_up` of an arm over a baseline, both trained with the same seeds, given in the same order. goal:
    the value to reach, the same for all; by default each baseline's own final one.

    The interval is the percentile bootstrap: seeds of the baseline and seeds of the arm are drawn with
    replacement, independently of each other, and paired as drawn; then the median is taken. What a seed does
    to both arms alike is not cancelled that way, so the interval is rather too wide. `paired` draws the seeds
    of both together, as fits arms that share their warm-up and their pictures.

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
    ratios = np.array([[speed_up(baseline, arm, goal) for arm in arms] for baseline in baselines])
    rng = np.random.default_rng(seed)

    def interval(drawn: np.ndarray) -> tuple[float, float]:
        medians = np.quantile(drawn, 0.5, axis=1, method="inverted_cdf")
        tail = (1 - level) / 2
        low, high = np.quantile(medians, [tail, 1 - tail], method="inverted_cdf")
        return float(low), float(high)

    low, high = interval(ratios[tuple(rng.integers(count, size=(2, resamples, count)))])
    pairs = ratios.diagonal()
    value = np.quantile(pairs, 0.5, method="inverted_cdf")
    paired = interval(pairs[rng.integers(count, size=(resamples, count))])
    return SpeedUp(tuple(pairs.tolist()), float(value), low, high, paired)


def speed_ups_by_level(baseline: Curve, arm: Curve, count: int = 40) -> Curve:
    """How many times sooner an arm reaches each of the levels that a baseline has passed: (levels, ratios),
    (n,) each, n <= count, levels falling.

    The levels are those at which the baseline was first after so many steps of its training, evenly spaced
    from the first measurement to the last; of noisy curves only those below all before. Levels that the arm
    never reaches are left out, and those at which either is at its first measurement, whose steps are not
    known."""
    steps = np.linspace(baseline[0][0], baseline[0][-1], count)
    levels = np.interp(steps, baseline[0], np.minimum.accumulate(baseline[1]))
    highest = min(baseline[1][0], arm[1][0])
    levels = np.unique(levels[levels < highest])[::-1]
    ratios = np.array([speed_up(baseline, arm, goal) for goal in levels])
    return levels[ratios > 0], ratios[ratios > 0]
