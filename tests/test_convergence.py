"""Steps to a value and speed-ups, against hand-worked curves."""

import math

import numpy as np
import pytest

from gear_studio.analysis.convergence import (
    smooth,
    speed_up,
    speed_up_over_seeds,
    speed_ups_by_level,
    steps_to,
)


def line(slope: float, length: float = 100, steps: int = 11) -> tuple[np.ndarray, np.ndarray]:
    """A value that falls from 10 by `slope` a step."""
    at = np.linspace(0, length, steps)
    return at, 10 - slope * at


def test_steps_to_a_value_lie_between_measurements():
    steps, values = np.array([0.0, 10, 20, 30]), np.array([8.0, 6, 2, 3])
    assert steps_to(steps, values, 5) == pytest.approx(12.5)
    assert steps_to(steps, values, 6) == 10 and steps_to(steps, values, 9) == 0
    assert steps_to(steps, values, 1) == math.inf


def test_speed_up_of_lines_is_the_ratio_of_slopes():
    assert speed_up(line(0.01), line(0.03)) == pytest.approx(3)
    assert speed_up(line(0.01), line(0.008)) == 0


def test_speed_up_to_a_level_that_one_sets():
    assert speed_up(line(0.01), line(0.03), 9.5) == pytest.approx(50 / (0.5 / 0.03))
    assert speed_up(line(0.01), line(0.03), 8) == math.inf and speed_up(line(0.03), line(0.01), 8) == 0
    assert speed_up(line(0.01), line(0.01), 0) == 0
    curves = [line(slope) for slope in (0.02, 0.03, 0.04)]
    over = speed_up_over_seeds([line(0.02)] * 3, curves, goal=9.0)
    assert over.pairs == pytest.approx((1, 1.5, 2)) and over.value == pytest.approx(1.5)


def test_smoothing_takes_each_value_together_with_those_before_it():
    values = np.array([4.0, 2, 0, 6])
    assert smooth(values, "rolling", 2).tolist() == [4, 3, 1, 3]
    assert smooth(values, "exponential", 3).tolist() == pytest.approx([4, 8 / 3, 8 / 7, 56 / 15])
    for how in ("rolling", "exponential"):
        assert smooth(values, how, 1).tolist() == values.tolist()
    with pytest.raises(ValueError, match="'other'"):
        smooth(values, "other", 2)


def test_speed_up_over_seeds_by_hand():
    """Three baselines alike, so that a pair is what its arm alone makes it."""
    found = speed_up_over_seeds([line(0.01)] * 3, [line(0.02), line(0.05), line(0.04)])
    assert found.pairs == pytest.approx((2, 5, 4)) and found.value == pytest.approx(4)
    # The median of 3 draws of 3 is the smallest with probability 7/27, the largest likewise.
    assert (found.low, found.high) == pytest.approx((2, 5))
    assert str(found) == "4.00x [2.00, 5.00], 3 seeds" and found.reached == 3
    half = speed_up_over_seeds([line(0.01)] * 3, [line(0.02), line(0.05), line(0.04)], level=0.4)
    assert (half.low, half.high) == pytest.approx((4, 4))  # 7/27 is below 0.3


def test_seeds_of_both_arms_are_drawn():
    baselines = [line(0.01), line(0.02)]
    fixed_arm = speed_up_over_seeds(baselines, [line(0.04), line(0.04)])
    assert fixed_arm.pairs == pytest.approx((4, 2)) and (fixed_arm.low, fixed_arm.high) == pytest.approx(
        (2, 4)
    )
    both = speed_up_over_seeds(baselines, [line(0.02), line(0.04)])  # 2 and 2 as paired, 1 and 4 across
    assert (
        both.pairs == pytest.approx((2, 2)) and both.low == pytest.approx(1) and both.high == pytest.approx(4)
    )


def test_what_a_seed_does_to_both_arms_is_cancelled_where_seeds_are_drawn_together():
    slopes = (0.01, 0.02, 0.04)
    found = speed_up_over_seeds([line(slope) for slope in slopes], [line(2 * slope) for slope in slopes])
    assert found.pairs == pytest.approx((2, 2, 2)) and found.paired == pytest.approx((2, 2))
    assert found.low < 1 and found.high > 4
    assert found.with_paired().endswith("; paired [2.00, 2.00], 3 seeds") and "paired" not in str(found)


def test_speed_ups_at_every_level_that_both_pass():
    levels, ratios = speed_ups_by_level(line(0.01), line(0.03), count=11)
    assert levels == pytest.approx(np.linspace(9.9, 9, 10)) and ratios == pytest.approx(3)
    steps = np.array([1.0, 2, 3, 4])
    slow, bent = (steps, np.array([8.0, 4, 5, 2])), (steps, np.array([6.0, 4, 3.5, 3]))
    levels, ratios = speed_ups_by_level(slow, bent, count=7)
    # From 6, where the arm begins, down to 3, where it ends: a rise of the control is no level.
    assert levels.tolist() == [4, 3] and ratios == pytest.approx([1, (3 + 2 / 3) / 4])


def test_an_arm_that_never_gets_there_counts_as_least():
    never, fast = line(0.005), line(0.05)
    most = speed_up_over_seeds([line(0.01)] * 3, [never, fast, fast])
    assert most.pairs == pytest.approx((0, 5, 5)) and most.value == pytest.approx(5) and most.low == 0
    assert str(most) == "5.00x [not reached, 5.00], 3 seeds"
    tie = speed_up_over_seeds([line(0.01)] * 2, [never, fast])
    assert tie.value == 0  # not 2.5, half of an unknown
    assert str(tie) == "not reached (1 of 2 seeds)" and tie.reached == 1


def test_many_seeds_narrow_the_interval_and_a_seed_repeats_it():
    rng = np.random.default_rng(0)

    def width(count):
        arms = [line(0.01 * ratio) for ratio in rng.uniform(2, 4, count)]
        found = speed_up_over_seeds([line(0.01)] * count, arms)
        assert found == speed_up_over_seeds([line(0.01)] * count, arms)
        return found.high - found.low

    assert width(60) < width(6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([line(1)] * 3, [line(1)] * 2), "3 seeds of the baseline and 2 of the arm"),
        (([line(1)], [line(1)]), "at least 2"),
        (([line(1)] * 2, [line(1)] * 2, 95), "level is 95"),
    ],
)
def test_what_has_no_interval_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        speed_up_over_seeds(*arguments)
