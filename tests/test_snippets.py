"""What *Show me the code* gives: every snippet runs as it stands and makes what the page shows."""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gear_studio import Run, sampling
from gear_studio.looking.pictures import Picture, Upload, pictures_of, pictures_of_source
from gear_studio.looking.view import Kept, View

sys.path.insert(0, str(Path(__file__).parents[1] / "apps"))
import numbers_file  # noqa: E402
import snippets  # noqa: E402
from convergence_arms import Measured  # noqa: E402
from convergence_look import Asked, Look  # noqa: E402
from pictures import Choice  # noqa: E402
from runs_on_offer import RunsOnOffer  # noqa: E402

HOW = {"cfg_scale": 1.5, "temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": 3}


@pytest.fixture(scope="module")
def runs() -> RunsOnOffer:
    return RunsOnOffer(None)


@pytest.fixture
def run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def run(code: str) -> dict[str, Any]:
        names: dict[str, Any] = {}
        exec(code, names)
        return names

    return run


@pytest.mark.parametrize("asked", ["striped star", None])
def test_samples(runs: RunsOnOffer, run_code, asked: str | None):
    made = run_code(snippets.of_samples(runs, ["generator-baseline", "generator-gear"], asked, 2, HOW))
    run = runs["generator-gear"]
    condition = run.generator.condition.nulls(2) if asked is None else run.class_numbers([asked] * 2)
    with torch.no_grad():
        expected = run.tokenizer.decode(sampling.sample(run.generator, condition, **HOW))
    torch.testing.assert_close(made["pictures"], expected)
    assert Path("generator-baseline.png").exists() and Path("generator-gear.png").exists()


def test_samples_of_a_prompt_that_holds_quotes(runs: RunsOnOffer, run_code):
    prompt = """it's "red" \\ {x}\n"""
    made = run_code(snippets.of_samples(runs, runs.captioned[:1], prompt, 1, HOW))
    assert made["pictures"].shape == (1, 3, *made["pictures"].shape[-1:] * 2)


@pytest.mark.parametrize("source", ["this run's own", "photos"])
def test_a_codebook_view(runs: RunsOnOffer, run_code, source: str, capsys):
    edits = {3: 7, 40: 1000}
    made = run_code(snippets.of_codebook(runs, "gear", Choice(source, 4), 5, edits, 0.1))
    run = runs["gear"]
    pictures = pictures_of(run) if source.startswith("this") else pictures_of_source(source)
    view = View(Kept(), run, Picture(pictures, 4))
    torch.testing.assert_close(made["edited"], view.decode(edits))
    assert made["weights"].argmax() == view.indices[5] and "PSNR" in capsys.readouterr().out
    assert Path("codebook.png").exists()


def test_a_view_of_ones_own_picture(runs: RunsOnOffer, run_code):
    Image.new("RGB", (80, 64), "red").save("my 'own'.png")
    chosen = Choice().with_upload(Upload("my 'own'.png", 64))
    assert run_code(snippets.of_codebook(runs, "gear", chosen, 0, {}, 1.0))["view"].indices.shape == (64,)


@pytest.mark.parametrize(("name", "last"), [("generator-gear", "h after block 2"), ("warmup", "c_q")])
def test_alignment(runs: RunsOnOffer, run_code, name: str, last: str):
    made = run_code(snippets.of_alignment(runs, name, Choice(index=1), None, 2, 9))
    assert list(made["features"]) == ["f(x)", "z", last]
    assert made["similarity"].shape == (64,) and float(made["similarity"][9]) == pytest.approx(1)


@pytest.mark.parametrize("asked", ["striped star", None])
def test_an_edit(runs: RunsOnOffer, run_code, asked: str | None):
    name, region = "generator-gear", [10, 11, 20]
    tokens = list(range(100, 164))
    made = run_code(snippets.of_edit(runs, name, Choice(), tokens, region, asked, 3, HOW))
    kept = [place for place in range(64) if place not in region]
    assert made["answers"].shape == (3, 64)
    assert (made["answers"][:, kept] == torch.tensor(tokens)[kept]).all()
    assert (made["answers"][:, region] != torch.tensor(tokens)[region]).any()


@pytest.mark.slow
def test_features(runs: RunsOnOffer, run_code, capsys):
    chosen = Choice("photos", 2, surveyed="this run's own")
    made = run_code(snippets.of_features(runs, ["warmup", "generator-gear"], chosen, None, 16))
    assert list(made["colors"]) == ["f(x)", "z", "c_q", *(f"h{block}" for block in range(1, 7))]
    assert made["colors"]["h6"].shape == (64, 3) and made["found"].count == 16
    said = capsys.readouterr().out
    assert "generator-gear 16 pictures of shapes" in said and "CKNNA generator.6 " in said


def test_convergence(runs: RunsOnOffer, run_code, capsys):
    measured = Measured(runs)
    look = Look(measured, Asked(runs=["generator-gear", "generator-baseline"], metric="val_alignment"))
    made = run_code(
        snippets.of_convergence(look.runs_by_arm(measured), look.metric, look.level, look.sign > 0)
    )
    assert list(made["arms"]) == look.labels and Path("convergence.png").exists()
    lines = capsys.readouterr().out.splitlines()
    for arm, line in zip(look.arms, lines, strict=True):
        assert float(line.split()[-1]) == pytest.approx(look.reached(arm))


def test_a_run_is_named_as_from_pretrained_finds_it(runs: RunsOnOffer):
    for name in ("gear", runs.tokenizers[-1]):
        assert Run.from_pretrained(snippets.name_of(runs[name])).folder == runs[name].folder


def test_numbers_are_saved_as_arrays_or_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    arrays = {"z": torch.randn(4, 2), "cos(g(h), f(x))": torch.arange(4)}
    with np.load(numbers_file.write(arrays, "alignment")) as read:
        assert set(read) == set(arrays)
        assert all((read[name] == values.numpy()).all() for name, values in arrays.items())
    rows = [{"run": 'a,"b"', "value": 0.5}, {"run": "c", "value": 2, "tap": 3}]
    file = numbers_file.write(rows, "features")
    assert file.name == "features.csv" and file.is_relative_to(tmp_path)
    with file.open() as text:
        first, second = csv.DictReader(text)
    assert first == {"run": 'a,"b"', "value": "0.5", "tap": ""} and second["tap"] == "3"
    with pytest.raises(ValueError, match="no numbers here yet"):
        numbers_file.write([], "features")
