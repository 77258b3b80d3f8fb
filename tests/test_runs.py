"""Runs: what is read out of a folder, and what is shipped."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from gear_studio import Generator, Run, Tokenizer, sampling
from gear_studio.files import write_json
from gear_studio.models.projector import Projector, ProjectorConfig
from gear_studio.places import ZOO


def write_run(folder: Path, stage: str, parent: str | None = None, teacher: Path | str = "") -> Path:
    """A finished run with random weights, written without the training loop."""
    folder.mkdir()
    torch.manual_seed(1)
    config = {"stage": stage, "arm": "gear", "parent": parent, "recipe": asdict(tiny.recipe(teacher))}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "record.json").write_text(json.dumps({"finished": True, "command": "gear-studio train"}))
    rows = [{"step": 2, "l1": 0.5}, {"step": 4, "l1": 0.25, "val_psnr": 20.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if stage != "generator":
        Tokenizer(tiny.TOKENIZER).save_pretrained(folder / "tokenizer")
    if stage != "warmup":
        tiny.generator().save_pretrained(folder / "generator")
        Projector(ProjectorConfig(32, 32, 16)).save_pretrained(folder / "projector")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-00000004.pt").write_bytes(b"state")
    (folder / "samples.png").write_bytes(b"picture")
    return folder


@pytest.fixture
def runs(tmp_path, teacher_folder) -> Path:
    write_run(tmp_path / "joint", "joint", teacher=teacher_folder)
    write_run(tmp_path / "generator", "generator", parent="joint", teacher=teacher_folder)
    return tmp_path


def test_a_run_reads_its_parts_metrics_and_teacher(runs):
    run = Run.from_pretrained(runs / "joint")
    assert (run.name, run.finished, run.config["stage"]) == ("joint", True, "joint")
    assert isinstance(run.generator, Generator) and isinstance(run.projector, Projector)
    assert run.tokenizer.config.codes == 64 and run.teacher.dim == 32
    assert run.metrics[1]["val_psnr"] == 20.0 and run.parent is None and run.evaluation == {}
    steps, values = run.series("l1")
    assert (steps.tolist(), values.tolist()) == ([2, 4], [0.5, 0.25])
    assert [v.tolist() for v in run.series("val_psnr")] == [[4], [20.0]]
    assert isinstance(values, np.ndarray)


def test_a_generator_run_uses_the_tokenizer_of_the_run_beside_it(runs):
    run = Run.from_pretrained(runs / "generator")
    assert run.parent.name == "joint"
    theirs = Run.from_pretrained(runs / "joint").tokenizer.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in run.tokenizer.state_dict().items())


def test_models_can_be_taken_out_of_a_run_s_folder(runs):
    assert Tokenizer.from_pretrained(runs / "joint").config.codes == 64
    assert Generator.from_pretrained(str(runs / "generator")).config.dim == 32
    with pytest.raises(ValueError, match="does not describe a Tokenizer"):
        Tokenizer.from_pretrained(runs / "generator")


def test_what_a_run_lacks_is_named(runs):
    write_run(runs / "warmup", "warmup")
    run = Run.from_pretrained(runs / "warmup")
    with pytest.raises(FileNotFoundError, match=r"run warmup \(warmup\) holds no generator"):
        _ = run.generator
    (runs / "alone").mkdir()
    (runs / "alone" / "config.json").write_text('{"stage": "generator"}')
    with pytest.raises(FileNotFoundError, match=r"run alone \(generator\) holds no tokenizer"):
        _ = Run.from_pretrained(runs / "alone").tokenizer
    with pytest.raises(KeyError, match="no metric 'ntp'; it has l1, val_psnr"):
        run.series("ntp")
    (runs / "generator" / "config.json").write_text(
        (runs / "generator" / "config.json").read_text().replace('"joint"', '"gone"')
    )
    with pytest.raises(FileNotFoundError, match="gone"):
        _ = Run.from_pretrained(runs / "generator").tokenizer


def test_a_run_says_what_it_is(runs):
    joint, generator = (Run.from_pretrained(runs / name) for name in ("joint", "generator"))
    steps = joint.config["recipe"]["steps"]
    parts = "tokenizer, generator, projector"
    assert repr(joint) == f"<Run joint: stage joint, arm gear; {parts}; {steps} steps, finished>"
    assert "; generator, projector, built on joint; " in repr(generator)
    (runs / "joint" / "record.json").write_text('{"finished": false}')
    assert repr(joint).endswith(f"{steps} steps, not finished>")
    (runs / "joint" / "record.json").write_text("{")
    assert repr(joint).endswith("its record.json is damaged>")
    shipped = repr(Run.from_pretrained("generator-gear"))
    assert "stage generator, arm gear, shapes, seed 0; " in shipped and "built on gear" in shipped
    (runs / "imported").mkdir()
    (runs / "imported" / "config.json").write_text('{"stage": "joint"}')
    assert (
        repr(Run.from_pretrained(runs / "imported"))
        == "<Run imported: stage joint; no weights; not finished>"
    )


def test_a_run_samples_the_classes_it_is_asked_for(runs):
    run = Run.from_pretrained(runs / "generator")
    run.config["classes"] = [f"kind {i}" for i in range(tiny.GENERATOR.classes)]
    drawn = run.sample(["kind 3", 7], cfg_scale=2.0, seed=5)
    indices = sampling.sample(run.generator, [3, 7], cfg_scale=2.0, seed=5)
    assert torch.equal(drawn, run.tokenizer.decode(indices)) and not drawn.requires_grad
    torch.testing.assert_close(run.sample("kind 3", cfg_scale=2.0, seed=5), drawn[:1])
    with pytest.raises(ValueError, match="unknown class 'kind 10'"):
        run.sample("kind 10")
    with pytest.raises(ValueError, match="cfg_scale"):
        run.sample(3, cfg_scale=math.nan)


def test_a_run_of_captions_samples_what_it_is_told():
    name = "generator-gear+text_encoder=words-held_out_combinations=True-s0"
    run = Run.from_pretrained(ZOO / "studies" / "runs" / name)
    drawn = run.sample("a red ring", seed=5)
    indices = sampling.sample(run.generator, run.encode(["a red ring"]), seed=5)
    assert torch.equal(drawn, run.tokenizer.decode(indices))


def test_a_run_reconstructs_images(runs):
    run, (images, _) = Run.from_pretrained(runs / "generator"), tiny.batch()
    made = run.reconstruct(images)
    assert torch.equal(made, run.tokenizer.reconstruct(images)) and not made.requires_grad
    with pytest.raises(ValueError, match="images have type torch.uint8; .*data.to_float"):
        run.reconstruct(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_folders_that_are_no_runs_are_refused(runs):
    with pytest.raises(FileNotFoundError, match="no folder 'nowhere'.*shipped"):
        Run.from_pretrained("nowhere")
    with pytest.raises(ValueError, match="is not a run: its config.json names no stage"):
        Run.from_pretrained(runs / "joint" / "tokenizer")
    (runs / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty is not a run: it has no config.json"):
        Run.from_pretrained(runs / "empty")
    (runs / "joint" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not valid JSON"):
        Run.from_pretrained(runs / "joint")


def test_pictures_that_have_moved_are_asked_for(runs):
    def run_on(place: str) -> Run:
        (folder / "config.json").write_text(
            json.dumps(config | {"pictures": {"folder": place, "sha256": ""}})
        )
        return Run(folder)

    folder, config = runs / "joint", Run(runs / "joint").config
    for lost in (runs / "pictures", runs / "shards" / "{000..999}.tar"):
        with pytest.raises(FileNotFoundError, match=f"pictures in {lost}, which is not there; .* --folder"):
            run_on(str(lost)).pictures_folder()
    for there in (runs, runs / "{000..999}.tar", runs / "*.tar"):
        assert run_on(str(there)).pictures_folder() == there


def test_a_run_without_a_record_is_not_finished(runs):
    (runs / "joint" / "record.json").unlink()
    assert not Run.from_pretrained(runs / "joint").finished


def test_shipping_halves_the_weights_and_leaves_checkpoints_behind(runs):
    run = Run.from_pretrained(runs / "joint")
    (runs / "shipped").mkdir()
    (runs / "shipped" / "stale.json").write_text("{}")
    run.save_pretrained(runs / "shipped", parts=("tokenizer", "generator"))
    names = {path.name for path in (runs / "shipped").iterdir()}
    assert names == {
        "config.json",
        "record.json",
        "metrics.jsonl",
        "samples.png",
        "tokenizer",
        "generator",
    }
    shipped = Run.from_pretrained(runs / "shipped")
    assert shipped.metrics == run.metrics
    for name, value in run.generator.state_dict().items():
        assert torch.equal(shipped.generator.state_dict()[name], value.half().float())


def test_what_is_no_number_in_json_is_written_as_null(tmp_path):
    write_json(tmp_path / "a.json", {"mean": math.inf, "values": (math.nan, 1.5), "of": {"x": -math.inf}})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "mean": None,
        "values": [None, 1.5],
        "of": {"x": None},
    }


@pytest.mark.parametrize(
    ("names", "asked", "number"),
    [
        (["1", "2", "3"], "1", 0),
        (["0", "1", "10", "11", "2"], "2", 4),
        (["1", "2", "3"], "number:1", 1),
        (["1", "2", "3"], 1, 1),
        (["ring", "star"], "1", 1),
        (["star", "number:0"], "number:0", 1),
        (["crane", "crane"], "number:1", 1),
    ],
)
def test_a_class_is_asked_for_by_name_before_it_is_by_number(runs, names, asked, number):
    run = Run.from_pretrained(runs / "joint")
    run.config["classes"] = names
    assert run.class_numbers([asked]) == [number]


@pytest.mark.parametrize(
    ("names", "asked", "said"),
    [
        (["1", "2", "3"], "0", "unknown class '0'; choose from 1, 2, 3, or a number, number:0 to number:2"),
        (["ring", "star"], "2", "unknown class '2'"),
        (["ring", "star"], 2, "unknown class 2"),
        (["crane", "ring", "crane"], "crane", "called 'crane'; write number:0 or number:2"),
    ],
)
def test_a_class_that_is_not_there_or_could_be_several_is_refused(runs, names, asked, said):
    run = Run.from_pretrained(runs / "joint")
    run.config["classes"] = names
    with pytest.raises(ValueError, match=said):
        run.class_numbers([asked])
