"""The probes that evaluation.json holds are those that anyone takes with `features` and `similarity`."""

import pytest
from scipy.stats import ttest_rel

from gear_studio import Run, data
from gear_studio.analysis import features, fidelity, likeness
from gear_studio.analysis.fidelity import EvaluationOptions, evaluate
from gear_studio.analysis.similarity import cka, cknna


def test_every_place_is_measured_on_the_same_rows(monkeypatch):
    monkeypatch.setattr(likeness, "PATCHES", 60)
    run = Run.from_pretrained("generator-gear")
    pictures = data.to_float(data.load("shapes", "val").read(range(16))["image"])
    found = likeness.measure_likeness([run.tokenizer, run.generator, run.teacher], pictures, "shapes")
    places = ["tokenizer.z", "tokenizer.c_q", *(f"generator.{block}" for block in range(1, 7))]
    assert list(found["patch"]) == list(found["image"]) == places
    assert "cknna" not in found["patch"]["tokenizer.c_q"]
    taken = features.extract(run, pictures, ["teacher", "generator.3", "tokenizer.c_q"])
    for level, count in (("patch", 60), ("image", None)):
        rows = taken.rows(level, count)
        at_tap = found[level]["generator.3"]
        assert at_tap["cka"] == pytest.approx(cka(rows["generator.3"], rows["teacher"]), abs=1e-6)
        if level == "patch":
            assert at_tap["cknna"] == pytest.approx(cknna(rows["generator.3"], rows["teacher"]), abs=1e-6)
        code = cka(rows["tokenizer.c_q"], rows["teacher"])
        assert found[level]["tokenizer.c_q"]["cka"] == pytest.approx(code, abs=1e-6)
    assert "60 drawn" in found["protocol"] and "null condition" in found["protocol"]


def test_a_tokenizer_alone_has_no_generator_s_places():
    run = Run.from_pretrained("gear")
    pictures = data.to_float(data.load("shapes", "val").read(range(12))["image"])
    found = likeness.measure_likeness([run.tokenizer, run.teacher], pictures)
    assert list(found["patch"]) == ["tokenizer.z", "tokenizer.c_q"]


def test_evaluate_measures_it_where_it_is_asked_for(tmp_path):
    run = Run.from_pretrained("gear")
    given = {"samples": 16, "seeds": 1, "cache": tmp_path, "batch_size": 16}
    assert "likeness" not in evaluate(run, EvaluationOptions(**given))
    found = evaluate(run, EvaluationOptions(metrics=("likeness",), **given))
    assert "rfd" not in found and -1 <= found["likeness"]["patch"]["tokenizer.z"]["cka"] <= 1
    assert "16 images (shapes, held out)" in found["likeness"]["protocol"]


@pytest.mark.slow
def test_a_generator_s_evaluation_holds_it_beside_the_distances(tmp_path, monkeypatch):
    monkeypatch.setattr(fidelity, "AGREEMENT_SAMPLES", 4)
    run = Run.from_pretrained("generator-gear")
    given = {"samples": 16, "seeds": 1, "cache": tmp_path, "batch_size": 16, "metrics": ("fd", "likeness")}
    found = evaluate(run, EvaluationOptions(**given))
    assert found["fd"]["mean"] > 0 and "generator.6" in found["likeness"]["patch"]


def test_a_change_over_seeds_is_the_paired_t_test_s():
    ours, controls = [0.31, 0.42, 0.38], [0.30, 0.33, 0.35]
    found = likeness.change_over_seeds(ours, controls)
    expected = ttest_rel(ours, controls).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.value == pytest.approx((0.01 + 0.09 + 0.03) / 3)
    for wrong in (([1.0], [0.0]), ([1.0, 2.0], [1.0])):
        with pytest.raises(ValueError, match="takes the same number, at least 2"):
            likeness.change_over_seeds(*wrong)
