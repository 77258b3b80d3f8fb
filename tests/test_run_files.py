"""Damaged and hostile folders of runs: passed over where runs are listed, named where one is asked for."""

import json
import os
import shutil
import struct

import pytest
import tiny
import torch
from safetensors.torch import save_file
from test_runs import write_run

from gear_studio import Generator, Run, Tokenizer
from gear_studio.models.quantizers import LookupFreeQuantizer
from gear_studio.models.teachers import Teacher
from gear_studio.run_files import read_shared, run_folders, small_files, write_shared
from gear_studio.runs import find_runs, list_runs
from gear_studio.training.checkpoints import drop_metrics_after

CONFIGS = {  # what a config.json holds: what is said of it
    b"": "is not valid JSON",
    b"null": "holds no JSON object",
    b"[]": "holds no JSON object",
    b"{": "is not valid JSON",
    b"\xff\xfe{": "is not UTF-8",
    b'{"a":' * 100_000: "is not valid JSON",
    b'{"stage": 3}': "stage is 3; it has to be a valid string",
    b'{"stage": "joint", "classes": "abc"}': "classes is 'abc'; it has to be a valid list",
    b'{"stage": "joint", "classes": [1]}': "classes.0 is 1; it has to be a valid string",
    b'{"stage": "joint", "recipe": []}': "recipe is []",
    b'{"stage": "joint", "recipe": {"tau": "x"}}': "recipe.tau is 'x'",
    b'{"stage": "joint", "recipe": {"teacher": 3}}': "recipe.teacher is 3",
    b'{"stage": "joint", "recipe": {"generator": 5}}': "recipe.generator is 5",
    b'{"stage": "joint", "parent": 5}': "parent is 5",
    b'{"stage": "generator", "parent": "damaged"}': "names a parent that is built on the run itself",
    b'{"stage": "generator", "parent": "gone"}': "run damaged is built on gone, which is not there",
    b'{"stage": "generator"}': "holds no tokenizer",
}


@pytest.mark.parametrize("content", CONFIGS, ids=range(len(CONFIGS)))
def test_a_damaged_folder_is_passed_over_and_named_once(content, tmp_path):
    write_run(tmp_path / "good", "joint")
    (tmp_path / "damaged" / "generator").mkdir(parents=True)
    (tmp_path / "damaged" / "config.json").write_bytes(content)
    with pytest.warns(UserWarning, match="passed over") as warned:
        assert list(list_runs(tmp_path)) == ["good"]
    assert len(warned) == 1 and "damaged" in str(warned[0].message)
    _, damaged = find_runs(tmp_path)
    assert damaged.keys() == {"damaged"} and CONFIGS[content] in damaged["damaged"]
    assert "\n" not in damaged["damaged"]


def test_a_pipe_is_no_config(tmp_path):
    write_run(tmp_path / "good", "joint")
    (tmp_path / "pipe" / "tokenizer").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe" / "config.json")
    runs, damaged = find_runs(tmp_path)
    assert list(runs) == ["good"] and "has no config.json" in damaged["pipe"]


def test_two_that_are_built_on_each_other_are_named(tmp_path):
    for name, parent in (("a", "b"), ("b", "a")):
        (tmp_path / name / "generator").mkdir(parents=True)
        config = {"stage": "generator", "parent": parent}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="names a parent that is built on the run itself"):
        _ = Run.from_pretrained(tmp_path / "a").tokenizer
    assert find_runs(tmp_path)[1].keys() == {"a", "b"}


def test_what_is_no_run_is_no_damaged_run(tmp_path, teacher_folder):
    (tmp_path / "teacher").symlink_to(teacher_folder)
    assert find_runs(tmp_path) == ({}, {})


@pytest.mark.parametrize(
    "line", ['{"step": "2"}', "5", "null", '{"l1": 2}', '{"step": 2, "l1": "x"}', "{", "\udcff"]
)
def test_a_damaged_line_of_metrics_is_named(line, tmp_path):
    run = Run(write_run(tmp_path / "run", "joint"))
    path = run.folder / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line.encode(errors="surrogateescape") + b'\n{"step": 3}\n')
    with pytest.raises(ValueError, match="metrics.jsonl (is damaged: line 2 holds|is not UTF-8)"):
        _ = run.metrics
    before = path.read_bytes()
    with pytest.raises(ValueError, match="metrics.jsonl"):
        drop_metrics_after(3, path)
    assert path.read_bytes() == before


def test_a_last_line_that_is_being_written_is_left_out(tmp_path):
    run = Run(write_run(tmp_path / "run", "joint"))
    (run.folder / "metrics.jsonl").write_text('{"step": 1, "l1": 0.5}\n{"step": 2, "l')
    assert run.metrics == [{"step": 1, "l1": 0.5}]


@pytest.mark.parametrize("content", ['{"seconds": 1}', '{"finished": "yes"}', "null", "{"])
def test_a_damaged_record_is_named(content, tmp_path):
    run = Run(write_run(tmp_path / "run", "joint"))
    (run.folder / "record.json").write_text(content)
    with pytest.raises(ValueError, match="record.json .*[Rr]estore"):
        _ = run.finished


# Runs in a shared file


def share(folder, *names: str, file: str = "some.runs.jsonl") -> None:
    """Move Runs from their folders into one file; their weights are gone."""
    write_shared(
        folder / file, read_shared(folder / file) | {name: small_files(folder / name) for name in names}
    )
    for name in names:
        shutil.rmtree(folder / name)


def test_a_run_in_a_shared_file_says_what_it_said_in_its_folder(tmp_path):
    write_run(tmp_path / "a", "joint")
    write_run(tmp_path / "b", "generator", parent="a")
    (tmp_path / "b" / "evaluation.json").write_text('{"fd": {"mean": 0.1}}')
    before = {name: Run(tmp_path / name) for name in ("a", "b")}
    said = {
        name: (run.config, run.record, run.metrics, run.evaluation, run.finished)
        for name, run in before.items()
    }
    share(tmp_path, "b")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "some.runs.jsonl"}
    share(tmp_path, "a", file="others.runs.jsonl")
    for name, expected in said.items():
        run = Run.from_pretrained(str(tmp_path / name))
        assert (run.config, run.record, run.metrics, run.evaluation, run.finished) == expected
        assert "no weights" in repr(run) and repr(run).endswith("finished>")
    assert Run(tmp_path / "b").parent.name == "a" and Run(tmp_path / "a").parent is None
    assert run_folders(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert run_folders(tmp_path, "evaluation.json") == [tmp_path / "b"]
    with pytest.raises(FileNotFoundError, match=r"run b \(generator\) holds no generator"):
        _ = Run(tmp_path / "b").generator
    assert list_runs(tmp_path) == {}

    Run(tmp_path / "b").save_pretrained(tmp_path / "c")
    own = Run(tmp_path / "c")
    assert (own.config, own.record, own.metrics, own.evaluation, own.finished) == said["b"]


def test_a_folder_comes_before_a_line_and_a_file_that_changes_is_read_anew(tmp_path):
    write_run(tmp_path / "a", "joint")
    share(tmp_path, "a")
    Run(tmp_path / "a").config["arm"] = "changed"
    assert Run(tmp_path / "a").config["arm"] == "gear"
    files = read_shared(tmp_path / "some.runs.jsonl")
    files["a"]["config.json"]["arm"] = "continued"
    write_shared(tmp_path / "some.runs.jsonl", files)
    assert Run(tmp_path / "a").config["arm"] == "continued"
    write_run(tmp_path / "a", "joint")
    assert Run(tmp_path / "a").config["arm"] == "gear" and Run(tmp_path / "a").has("tokenizer")
    write_shared(tmp_path / "some.runs.jsonl", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "name"),
        ("[]", "valid dictionary"),
        ('{"name": "../a", "config.json": {"stage": "joint"}}', "name is '../a'"),
        ('{"name": "x"}', "config.json; field required"),
        ('{"name": "x", "config.json": {"stage": 3}}', "config.json.stage is 3"),
        (
            '{"name": "x", "config.json": {"stage": "joint"}, "metrics.jsonl": [{"step": 1, "l1": "?"}]}',
            "metrics.jsonl.0.l1 is '?'",
        ),
        ("\udcff", "is not UTF-8"),
    ],
)
def test_a_damaged_line_of_a_shared_file_is_named_and_passed_over_where_runs_are_listed(line, said, tmp_path):
    write_run(tmp_path / "a", "joint")
    write_run(tmp_path / "b", "joint")
    share(tmp_path, "b")
    path = tmp_path / "some.runs.jsonl"
    path.write_bytes(path.read_bytes() + line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(ValueError, match="some.runs.jsonl (is damaged in line 2|is not UTF-8)") as error:
        Run(tmp_path / "b")
    assert said in str(error.value) and "estore" in str(error.value)
    with pytest.warns(UserWarning, match="passed over: .*some.runs.jsonl"):
        assert run_folders(tmp_path) == [tmp_path / "a"]
    assert list(list_runs(tmp_path)) == ["a"]


@pytest.mark.parametrize(
    "content", ["null", "[", '{"psnr": "<img>"}', '{"fd": 3}', '{"class_agreement": {"1": 0.5}}']
)
def test_a_damaged_evaluation_is_named(content, tmp_path):
    run = Run(write_run(tmp_path / "run", "joint"))
    (run.folder / "evaluation.json").write_text(content)
    with pytest.raises(ValueError, match="evaluation.json .*[Rr]estore"):
        _ = run.evaluation


def test_what_a_recipe_lacks_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"stage": "joint", "recipe": {}}')
    with pytest.raises(ValueError, match="config.json has no teacher in its recipe"):
        _ = Run(tmp_path).teacher


# Small files that claim huge models


def claim(folder, part: str, **values) -> None:
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_model_is_not_built_before_its_file_is_looked_at(tmp_path, monkeypatch):
    """Half a terabyte, within what a config may say: the weights' header tells otherwise."""
    run = write_run(tmp_path / "run", "joint")
    claim(run, "generator", codes=2**20, dim=65536, blocks=2, tap=1)
    with pytest.raises(ValueError, match="does not fit Generator .* has shape"):
        Generator.from_pretrained(run)
    claim(run, "tokenizer", codes=2**20, code_dim=20, quantizer="lfq")
    monkeypatch.setattr(LookupFreeQuantizer, "codes", None)
    with pytest.raises(ValueError, match="does not fit Tokenizer"):
        Tokenizer.from_pretrained(run)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("tokenizer", {"codes": 10**9}, "codes is 1000000000; it has to be less than"),
        ("tokenizer", {"codes": 2**28, "code_dim": 28, "quantizer": "lfq"}, "codes is 268435456"),
        ("tokenizer", {"multipliers": [1] * 60}, "multipliers is .*at most 16"),
        ("generator", {"blocks": 10**6}, "blocks is 1000000"),
        ("generator", {"dim": "wide"}, "dim is 'wide'; it has to be a valid integer"),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_the_config(part, values, message, tmp_path):
    run = write_run(tmp_path / "run", "joint")
    claim(run, part, **values)
    kind = {"tokenizer": Tokenizer, "generator": Generator}[part]
    with pytest.raises(ValueError, match=f"{part}/config.json does not describe .*{message}"):
        kind.from_pretrained(run)


def test_a_teacher_is_not_built_before_its_file_is_looked_at(tmp_path):
    tiny.teacher().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dim": 65536, "depth": 64}))
    with pytest.raises(ValueError, match="does not fit"):
        Teacher.from_pretrained(tmp_path)


def test_a_header_that_lies_is_damage(tmp_path):
    run = write_run(tmp_path / "run", "joint")
    path = run / "tokenizer" / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        Tokenizer.from_pretrained(run)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="does not fit Tokenizer"):
        Tokenizer.from_pretrained(run)
