"""What notebooks are made of: figures that follow controls, and studies that are trained anew."""

import base64
import io
import re
import signal
import sys
import time
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ipywidgets
import numpy as np
import pytest
import test_studies
import tiny
from matplotlib.figure import Figure
from PIL import Image

from gear_studio import notebook, studies
from gear_studio.notebook import Interactive, Retrain
from gear_studio.runs import Run
from gear_studio.training import jobs
from gear_studio.training.execution import Execution


def drawn(value: int, kind: str) -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().bar([kind], [value])
    return figure


def test_a_figure_follows_its_controls_and_shows_without_them():
    value = ipywidgets.IntSlider(3, 1, 9)
    kind = ipywidgets.Dropdown(options=["a", "b"])
    shown = Interactive(drawn, value=value, kind=kind)
    first = shown.picture.value
    bundle = shown._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]) == first
    assert "application/vnd.jupyter.widget-view+json" in bundle
    value.value = 7
    second = shown.picture.value
    kind.value = "b"
    assert len({first, second, shown.picture.value}) == 3
    value.value, kind.value = 3, "a"
    assert shown.picture.value == first


def test_an_error_while_drawing_is_not_swallowed():
    value = ipywidgets.FloatSlider(1.0, min=0.0, max=2.0)
    shown = Interactive(lambda value: drawn(int(1 / value), "a"), value=value)
    with pytest.raises(ZeroDivisionError):
        value.value = 0.0
    assert bytes(shown.picture.value).startswith(b"\x89PNG")


def until(true: Callable[[], bool], seconds: float = 1200) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@tiny.minutes
def test_a_study_is_retrained_stopped_and_goes_on_to_its_end(tmp_path: Path, monkeypatch):
    python = tmp_path / "python"  # as `python -m gear_studio`, without a new Python for every training
    hurried = (
        "import sys, test_studies; test_studies.hurry(); from gear_studio import cli; cli.run(sys.argv[3:])"
    )
    places = f"{Path(__file__).parent}:{Path(__file__).parents[1]}"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={places} exec {sys.executable} -c "{hurried}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(notebook, "sys", types.SimpleNamespace(executable=str(python)))
    short = replace(test_studies.PLUMBING, arms=test_studies.PLUMBING.arms[:1])
    monkeypatch.setitem(studies.STUDIES, "plumbing", short)
    shown = Retrain("plumbing", tmp_path, every=0.2)
    assert not shown.folder.exists() and not shown.picture.value and shown.stop.disabled

    shown.start.click()
    assert shown.start.disabled and not shown.stop.disabled
    until(lambda: shown.picture.value or shown.process.poll() is not None)
    shown.stop.click()
    assert shown.process.returncode == -signal.SIGTERM and "goes on from here" in shown.status.value
    assert shown.stop.disabled and not shown.start.disabled and not shown.table.outputs
    first = shown.picture.value
    assert len(np.unique(np.asarray(Image.open(io.BytesIO(first)).convert("RGB")))) > 3
    assert not (shown.folder / "plumbing").exists()
    for lock in (shown.folder / "logs").glob("*.lock"):  # nothing it had started goes on
        jobs.lock_file(lock).close()

    shown.start.click()
    until(lambda: shown.process.poll() is not None)
    shown.watcher.join(60)
    assert shown.process.returncode == 0 and shown.status.value == "Finished.", shown.status.value
    assert shown.picture.value != first and not shown.start.disabled
    written = shown.folder / "plumbing"
    (table,) = shown.table.outputs
    assert table["data"]["text/markdown"] == (written / "summary.md").read_text()
    assert shown.picture.value == (written / "figure.png").read_bytes()
    assert all(Run(path.parent).finished for path in (shown.folder / "runs").glob("*/config.json"))


@pytest.mark.parametrize("code", [0, 1])
def test_a_retrain_whose_folder_goes_away_says_so(code: int, tmp_path: Path, monkeypatch):
    python, begun = tmp_path / "python", tmp_path / "begun"  # that waits, and ends well or not
    python.write_text(f"#!/bin/sh\ntouch {begun}; while [ -e {begun} ]; do sleep 0.1; done; exit {code}\n")
    python.chmod(0o755)
    monkeypatch.setattr(notebook, "sys", types.SimpleNamespace(executable=str(python)))
    shown = Retrain("lambda", tmp_path, every=0.1)
    link = studies.chain_of(shown.study.arms[0])[0]
    run = shown.folder / "runs" / f"{link.name}-s0"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1, "perplexity": 2.0}\n')  # its config.json is gone already
    shown.start.click()
    until(lambda: "config.json" in shown.status.value, 60)
    assert "Training; its curves cannot be read" in shown.status.value
    begun.unlink()
    shown.watcher.join(60)
    said = "Finished, but its results are gone" if code == 0 else "Ended with an error (1)"
    assert said in shown.status.value and not shown.start.disabled and shown.stop.disabled


def test_a_study_of_another_world_is_retrained_as_its_command_says(tmp_path: Path, monkeypatch):
    python = tmp_path / "python"  # that says what it is asked, each word in brackets
    python.write_text("#!/bin/sh\nprintf '[%s]' \"$@\"\n")
    python.chmod(0o755)
    monkeypatch.setattr(notebook, "sys", types.SimpleNamespace(executable=str(python)))
    folder = ("--folder", str(tmp_path))
    execution = Execution(micro_batch=8, recompute=True)
    for world, name, *words in (
        (
            studies.World("folder", tmp_path, "imagenet-b-vq", execution=execution),
            "folder-imagenet-b-vq",
            *(
                "--source",
                "folder",
                *folder,
                "--recipe",
                "imagenet-b-vq",
                "--micro-batch",
                "8",
                "--recompute",
            ),
        ),
        (
            studies.World("folder", tmp_path),
            "folder-smoke",
            *("--source", "folder", *folder, "--budget", "smoke"),
        ),
        (None, "smoke", "--budget", "smoke"),
    ):
        shown = Retrain("lambda", tmp_path, every=0.1, world=world)
        shown.start.click()
        shown.process.wait()
        shown.watcher.join(60)
        asked = ["-m", "gear_studio", "study", "lambda", *words]
        asked += ["--out", str(tmp_path / f"studies-{name}"), "--seeds", "0"]
        assert shown.lines == ["".join(f"[{word}]" for word in asked)]
    with pytest.raises(ValueError, match="source 'folder' needs the place of its pictures"):
        Retrain("lambda", world=studies.World("folder"))
    with pytest.raises(ValueError, match="study tap has generator.tap=4"):
        Retrain("tap", world=studies.World("folder", tmp_path, "imagenet-b-vq"))


def test_beside_the_budget_stands_how_long_a_seed_takes_by_what_ships(tmp_path: Path, monkeypatch):
    shown = Retrain("alignment-place", tmp_path)
    assert shown.duration.value == "minutes"
    shown.budget.value = "quick"
    (minutes,) = re.findall(r"about (\d+) minutes of training a seed, on two cores", shown.duration.value)
    chains = [studies.chain_of(arm) for arm in shown.study.arms]
    names = {f"{link.name}-s1" for links in chains for link in links}
    seconds = sum(Run(studies.SHIPPED / "runs" / name).record["seconds"] for name in names)
    assert 0.5 < int(minutes) / (seconds / 120) < 2
    monkeypatch.setattr(studies.shipped, "SHIPPED", tmp_path)
    monkeypatch.setattr(studies.shipped, "ZOO", tmp_path)
    shown.budget.value = "shipped"
    assert shown.duration.value == "longer than smoke; not measured"
