"""How much sooner one arm gets where another ends up."""

import numpy as np


def steps_to(steps: np.ndarray, values: np.ndarray, goal: float) -> float:
    """First step at which a falling curve reaches `goal`, linear between measurements; infinity if it never
    does.

    steps, values: (n,), steps ascending."""
    below = np.flatnonzero(values <= goal)
    if not len(below):
        return float("inf")
    i = below[0]
    if i == 0:
        return float(steps[0])
    share = (values[i - 1] - goal) / (values[i - 1] - values[i])
    return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))


def speed_up(baseline: tuple[np.ndarray, np.ndarray], arm: tuple[np.ndarray, np.ndarray]) -> float:
    """Steps `baseline` needs to reach its own final value, over the steps `arm` needs to reach it first.

    Both are (steps, values) of a measure that falls, as `Run.series` returns; 0 when the arm never gets
    there."""
    goal = baseline[1][-1]
    return steps_to(*baseline, goal) / steps_to(*arm, goal)
