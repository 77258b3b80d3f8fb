"""The explorer's tab Convergence: grouping by seed and what is read off, on runs written by hand."""

import html
import json
import sys
from pathlib import Path

import pytest

from gear_studio.analysis.convergence import speed_up_over_seeds
from gear_studio.plots.style import OKABE_ITO
from gear_studio.runs import Run

sys.path.insert(0, str(Path(__file__).parents[1] / "apps"))
from convergence_arms import Measured, group_by_arm, same_but_seed  # noqa: E402
from convergence_chart import describe_chart, draw_chart  # noqa: E402
from convergence_look import Asked, Look  # noqa: E402
from runs_on_offer import RunsOnOffer  # noqa: E402

pytestmark = pytest.mark.slow  # training, or the app

HOSTILE = "<img src=x onerror=window.ran=1>"


def write(
    folder: Path, name: str, arm: str, slope: float, seed: int = 0, recipe: dict | None = None
) -> tuple[str, Run]:
    """A Run whose `loss` falls from 10 by `slope` a step, as `score` rises; a step takes 6 s."""
    path = folder / name
    path.mkdir()
    config = {"stage": "generator", "arm": arm, "seed": seed, "recipe": {"batch_size": 4} | (recipe or {})}
    (path / "config.json").write_text(json.dumps(config))
    rows = [
        {"step": step, "loss": 10 - slope * step, "score": slope * step, "seconds": 6.0 * step}
        for step in range(10, 101, 10)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name, Run(path)


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Run]:
    return dict([write(tmp_path, "slow", "continued", 0.02), write(tmp_path, "fast", "gear", 0.05)])


def look(runs, /, **asked) -> Look:
    return Look(runs, Asked.of(**{"runs": list(runs), "metric": "loss"} | asked))


def test_the_level_starts_where_the_control_ends_and_moves(pair):
    seen = look(pair)
    assert (seen.pair, seen.level, seen.low, seen.high) == (("fast", "slow"), 8, 5, 9.8)
    expected = "loss falls to 8: fast gets there after 40 steps, slow gets there after 100 steps. "
    assert seen.sentence == expected + "Speed-up of fast over slow: 2.50x."
    lower = look(pair, level=7.0)
    assert "slow never gets there within 100 steps" in lower.sentence
    assert lower.sentence.endswith("control not reached.")
    swapped = look(pair, level=7.0, arm="slow", control="fast")
    assert swapped.sentence.endswith("Speed-up of slow over fast: not reached.")
    assert look(pair, level=-40.0).level == 5  # as far as the curves reach


def test_against_pictures_and_minutes_and_for_a_metric_that_rises(pair):
    assert "fast gets there after 160 pictures, slow" in look(pair, against="pictures").sentence
    assert "fast gets there after 4.0 minutes, slow" in look(pair, against="time").sentence
    rising = look(pair, metric="score").sentence
    assert rising.startswith("score rises to 2: fast gets there after 40 steps") and "2.50x" in rising


def test_smoothing_changes_what_is_read_off_and_not_what_tables_count(pair):
    seen = look(pair, smoothing="rolling", over=3)
    assert seen.level == pytest.approx(8.2) and "rolling mean over 3 measurements" in seen.notes
    assert seen.reached(seen.arms[1]) == pytest.approx(46)
    assert seen.compare_as_tables(seen.arms[1], seen.arms[0]) == "2.50x"


def test_runs_that_differ_in_their_seed_alone_are_one_line_with_a_band(tmp_path: Path):
    slopes = (0.02, 0.03, 0.05)
    runs = dict(write(tmp_path, f"a-s{seed}", "gear", slope, seed) for seed, slope in enumerate(slopes))
    runs |= [write(tmp_path, "a-s7", "gear", 0.02, 7, {"tau": 0.5}), write(tmp_path, "copy", "gear", 0.02)]
    assert group_by_arm(runs, list(runs)) == [["a-s0", "a-s1", "a-s2"], ["a-s7"], ["copy"]]
    assert same_but_seed(runs["a-s0"], write(tmp_path, "a-s3", "gear", 1, 3, {"captions": 0})[1])
    seen = look(runs, runs=["a-s1"])
    (arm,) = seen.arms
    assert arm.label == "a" and [line.seed for line in arm.lines] == [0, 1, 2]
    assert arm.median()[-1] == {"arm": "a", "x": 100, "y": 7, "low": 5, "high": 8}
    assert [each.label for each in look(runs, runs=["a-s1"], all_seeds=False).arms] == ["a-s1"]


def test_a_run_that_cannot_be_read_is_named(tmp_path: Path, pair):
    for name, text in (("torn", '{"step": 10, "loss": 3}\n{"step": 2'), ("damaged", "no\nno\n")):
        pair |= [write(tmp_path, name, "gear", 1)]
        (tmp_path / name / "metrics.jsonl").write_text(text)
    pair |= [write(tmp_path, name, "gear", 1) for name in ("missing", "other", "gaps")]
    (tmp_path / "missing" / "metrics.jsonl").unlink()
    (tmp_path / "other" / "metrics.jsonl").write_text('{"step": 10, "psnr": 3}\n')
    rows = '{"step": 10, "loss": NaN}\n{"step": 20, "loss": null}\n{"step": 30, "loss": 9}\n'
    (tmp_path / "gaps" / "metrics.jsonl").write_text(rows)
    seen = look(pair, runs=[*pair, "gone"])
    assert [arm.label for arm in seen.arms] == ["slow", "fast", "torn", "gaps"]
    for said in ("damaged is left out:", "line 1", "missing is left out: it holds no metrics"):
        assert said in seen.notes
    for said in ("other is left out: it has no loss", "gaps: 2 of 3 values", "gone is not among the runs"):
        assert said in seen.notes
    json.dumps(describe_chart(seen), allow_nan=False)
    nothing = look(pair, runs=["missing"])
    assert draw_chart(nothing) is None and "Nothing to show" in nothing.answer and "missing" in nothing.notes


def test_names_are_shown_as_text(tmp_path: Path, pair):
    pair[HOSTILE] = write(tmp_path, "hostile", HOSTILE, 0.05)[1]
    seen = look(pair, runs=[HOSTILE, "slow", f"no {HOSTILE}"], arm=HOSTILE)
    for shown in (seen.answer, seen.table, seen.notes):
        assert "<img" not in shown and html.escape(HOSTILE) in shown


def test_logarithmic_axes_leave_out_what_they_cannot_show(tmp_path: Path, pair):
    both = describe_chart(look(pair, logarithmic=["horizontal", "vertical"]))["layer"][0]["encoding"]
    assert [both[axis]["scale"]["type"] for axis in ("x", "y")] == ["log", "log"]
    pair |= [write(tmp_path, "below", "gear", 0.2)]
    seen = look(pair, logarithmic=["vertical"])
    assert "not positive" in seen.notes
    layers = describe_chart(seen)["layer"]
    assert min(row["y"] for layer in layers for row in layer["data"]["values"]) > 0


def test_values_that_cannot_be_are_refused():
    for wrong in ({"against": "miles"}, {"over": 0}, {"runs": ["x"] * 65}, {"level": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Asked.of(**{"runs": []} | wrong)


def test_the_studies_runs_are_there_and_agree_with_their_tables():
    runs = Measured(RunsOnOffer(None))
    names = [f"generator-{arm}-s1 (studies)" for arm in ("gear", "continued", "baseline")]
    seen = look(runs, runs=names, metric="val_ntp")
    gear, continued, baseline = seen.arms
    assert [arm.label for arm in seen.arms] == [name.replace("-s1", "") for name in names]
    assert (baseline.color, continued.color, gear.color) == OKABE_ITO[:3]
    series = [
        [runs[f"generator-{arm}-s{seed} (studies)"].series("val_ntp") for seed in range(3)]
        for arm in ("continued", "gear")
    ]
    assert seen.compare_as_tables(gear, continued) == str(speed_up_over_seeds(*series))
    assert "The paper, on its own data" in seen.notes
