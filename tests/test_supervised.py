"""The frozen teacher, the judge, and how they are trained."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gear_studio import data
from gear_studio.analysis.probes import probe_patches
from gear_studio.models.judges import ATTRIBUTES, AttributeJudge, Judge
from gear_studio.models.teachers import Teacher
from gear_studio.training import loop
from gear_studio.training import supervised as training

QUICK = {"batch_size": 4, "log_every": 1, "checkpoint_every": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher.random(0)


def pictures(count: int, split: str = "val") -> torch.Tensor:
    return data.to_float(data.load("shapes", split=split).read(range(count))["image"])


def metrics(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "seconds")} for line in lines]


# The teacher


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (96, 128)])
def test_any_size_gives_one_feature_per_token(teacher, size):
    features = teacher(torch.rand(2, 3, *size) * 2 - 1)
    assert features.shape == (2, teacher.grid**2, teacher.dim)
    assert (teacher.grid, teacher.dim) == (8, 128)


def test_patches_come_in_raster_order():
    teacher = Teacher.random(0)
    # Without attention a patch sees itself only: changing row 2, column 5 may change feature 2 * 8 + 5 alone.
    for block in teacher.encoder.blocks:
        nn.init.zeros_(block.attn.proj.weight)
    images = torch.zeros(1, 3, 64, 64)
    changed = images.clone()
    changed[..., 16:24, 40:48] = torch.randn(3, 8, 8)
    moved = (teacher(images) - teacher(changed)).abs().sum(-1)[0].nonzero()
    assert moved.flatten().tolist() == [21]


def test_blocks_are_one_based_and_returned_in_the_order_asked(teacher):
    images = pictures(2)
    last, first, again = teacher.features(images, [teacher.depth, 1, teacher.depth])
    assert torch.equal(last, teacher(images)) and torch.equal(last, again)
    assert not torch.allclose(first, last)
    short = Teacher.random(0)
    short.encoder.blocks = short.encoder.blocks[:1]
    assert torch.equal(first, short.features(images, [1])[0])


@pytest.mark.parametrize("blocks", [[0], [6], [1, 9], []])
def test_a_block_that_is_not_there_is_refused(teacher, blocks):
    with pytest.raises(ValueError, match="has blocks 1 to 5"):
        teacher.features(pictures(1), blocks)


def test_pictures_without_three_channels_are_refused(teacher):
    with pytest.raises(ValueError, match=r"\(1, 1, 64, 64\).*expected \(B,3,H,W\)"):
        teacher(torch.zeros(1, 1, 64, 64))


def test_gradient_reaches_the_picture_and_no_parameter(teacher):
    parent = nn.ModuleDict({"teacher": teacher}).train()
    assert not any(module.training for module in teacher.modules())
    images = pictures(2).requires_grad_()
    sum(f.square().mean() for f in parent["teacher"].features(images, [2, 4])).backward()
    assert (images.grad.abs().amax((1, 2, 3)) > 0).all()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_random_teacher_is_its_seed_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    images = pictures(1)
    assert torch.equal(Teacher.random(1)(images), Teacher.random(1)(images))
    assert not torch.equal(Teacher.random(1)(images), Teacher.random(2)(images))
    assert torch.equal(torch.rand(1), expected)


def test_saved_and_loaded_teacher_is_the_same(tmp_path, teacher):
    teacher.save_pretrained(tmp_path / "a")
    loaded = Teacher.from_pretrained(tmp_path / "a")
    images = pictures(2)
    # Half precision on disk: close to what was saved, and from then on exact.
    assert torch.allclose(loaded(images), teacher(images), atol=0.02)
    assert next(loaded.parameters()).dtype == torch.float32
    loaded.save_pretrained(tmp_path / "b")
    assert torch.equal(Teacher.from_pretrained(str(tmp_path / "b"))(images), loaded(images))
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["config.json", "model.safetensors"]


def test_controls_have_names_and_pixels_are_the_patches_themselves():
    images = pictures(2)
    random, raw = Teacher.from_pretrained("random", grid=4), Teacher.from_pretrained("pixels")
    assert random.name == "random" and torch.equal(random(images), Teacher.random(0, grid=4)(images))
    features = raw(images)
    assert features.shape == (2, 64, 192) and raw.name == "pixels" and "no network" in raw.note
    # Patch 8 * row + column, channel by channel.
    assert torch.allclose(features[1, 8 * 3 + 5], images[1, :, 24:32, 40:48].flatten(), atol=1e-6)
    assert Teacher.from_pretrained("pixels", grid=4)(images).shape == (2, 16, 192)
    assert raw.fingerprint() == Teacher.from_pretrained("pixels", grid=4).fingerprint()
    with pytest.raises(ValueError, match="'pixels' brings its own weights"):
        Teacher.from_pretrained("pixels", weights="file.pt")


def test_an_unknown_name_is_refused_with_the_way_out():
    with pytest.raises(FileNotFoundError, match="'dinov9' is neither shipped .*tiny.*train_teacher"):
        Teacher.from_pretrained("dinov9")


def test_damaged_or_foreign_folders_are_refused(tmp_path, teacher):
    folder = tmp_path / "teacher"
    teacher.save_pretrained(folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole, settings = weights.read_bytes(), json.loads(config.read_text())

    for content in (whole[: len(whole) // 2], b"not a tensor file", b""):
        weights.write_bytes(content)
        with pytest.raises(ValueError, match="model.safetensors"):
            Teacher.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        Teacher.from_pretrained(folder)

    weights.write_bytes(whole)
    config.write_text(json.dumps(settings | {"dim": 64}))
    with pytest.raises(ValueError, match="does not fit"):
        Teacher.from_pretrained(folder)
    config.write_text(json.dumps(settings | {"arch": "resnet"}))
    with pytest.raises(ValueError, match="'resnet'"):
        Teacher.from_pretrained(folder)
    config.write_text(json.dumps(settings | {"colour": 1}))
    with pytest.raises(ValueError, match="colour"):
        Teacher.from_pretrained(folder)
    config.write_text('{"kind": "teach')
    with pytest.raises(ValueError, match="config.json"):
        Teacher.from_pretrained(folder)
    config.unlink()
    with pytest.raises(FileNotFoundError, match="config.json"):
        Teacher.from_pretrained(folder)

    Judge().save_pretrained(tmp_path / "judge")
    with pytest.raises(ValueError, match="'judge', expected a 'teacher'"):
        Teacher.from_pretrained(tmp_path / "judge")
    shutil.copy(tmp_path / "judge" / "model.safetensors", weights)
    config.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="does not fit"):
        Teacher.from_pretrained(folder)


def test_the_shipped_teacher_says_what_it_was_trained_on():
    teacher = Teacher.from_pretrained("tiny")
    assert "labels" in teacher.note and "stand-in" in teacher.note
    assert "random" in Teacher.random(0).note


def test_the_shipped_teacher_knows_what_random_weights_do_not():
    sample = {"train_images": 240, "test_images": 120, "patches": 4}
    trained = probe_patches(Teacher.from_pretrained("tiny"), **sample)
    control = probe_patches(Teacher.random(0), **sample)
    assert trained["foreground"] > 0.93
    for task in ("texture", "shape"):
        assert trained[task] > control[task] + 0.2


# The judge


def test_the_shipped_judge_names_held_out_pictures_clean_and_softened():
    judge = Judge.from_pretrained("shipped")
    world = data.load("shapes", split="val")
    truth = world.read(range(240))
    images = data.to_float(truth["image"])
    with torch.inference_mode():
        logits = judge(images)
        assert logits.shape == (240, len(world.classes))
        clean = (logits.argmax(1) == truth["label"]).float().mean()
        soft = (judge(training.blur(images)).argmax(1) == truth["label"]).float().mean()
    assert clean > 0.98 and soft > 0.98


def test_the_shipped_judge_of_attributes_tells_them_apart():
    judge = AttributeJudge.from_pretrained("shipped")
    truth = data.load("shapes", split="val").truth(range(240))
    said = judge.says(data.to_float(truth["image"]))
    assert set(said) == set(ATTRIBUTES)
    right = {name: (said[name] == truth[name]).float().mean().item() for name in said}
    assert min(right.values()) > 0.95, right
    small = judge.says(data.to_float(data.load("shapes", "val", 32).read(range(240))["image"]))
    assert (small["shape"] == truth["shape"]).float().mean() > 0.95


def test_saved_and_loaded_judge_is_the_same_and_small(tmp_path):
    judge = Judge(classes=10).eval()
    judge.save_pretrained(tmp_path / "a")
    loaded = Judge.from_pretrained(tmp_path / "a")
    images = pictures(2)
    assert not loaded.training and loaded(images).shape == (2, 10)
    assert torch.allclose(loaded(images), judge(images), atol=0.02)
    assert (tmp_path / "a" / "model.safetensors").stat().st_size < 2**20
    Teacher.random(0).save_pretrained(tmp_path / "t")
    with pytest.raises(ValueError, match="expected a 'judge'"):
        Judge.from_pretrained(tmp_path / "t")
    with pytest.raises(FileNotFoundError, match="supervise judge --out FOLDER"):
        Judge.from_pretrained(tmp_path / "nowhere")


# Training


@pytest.mark.parametrize("kind", [Teacher, Judge, AttributeJudge])
def test_an_interrupted_run_continues_exactly(tmp_path, monkeypatch, kind):
    run = training.train_teacher if kind is Teacher else partial(training.train_judge, kind=kind)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(whole, steps=6, seed=3, **QUICK)

    augment, calls = training.augment, []

    def dies_in_step_six(images, seed, step):
        calls.append(step)
        if step == 5:
            raise KeyboardInterrupt
        return augment(images, seed, step)

    monkeypatch.setattr(training, "augment", dies_in_step_six)
    with pytest.raises(KeyboardInterrupt):
        run(broken, steps=6, seed=3, **QUICK)
    # Killed after step 5 was logged and after the checkpoint of step 4. A half-written line may be left too.
    assert [line["step"] for line in metrics(broken)] == [1, 2, 3, 4, 5]
    with open(broken / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "sha')
    monkeypatch.setattr(training, "augment", lambda *a: (calls.append(a[2]), augment(*a))[1])
    calls.clear()
    run(broken, steps=6, seed=3, **QUICK)

    assert calls == [4, 5]
    assert metrics(broken) == metrics(whole)
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not (broken / "checkpoints").exists()

    calls.clear()
    assert isinstance(run(broken, steps=6, seed=3, **QUICK), kind)
    assert calls == []


def test_a_run_records_what_it_did_and_refuses_other_settings(tmp_path):
    training.train_teacher(tmp_path, steps=2, seed=1, **QUICK)
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["settings"] == {"model": "teacher", "steps": 2, "seed": 1, "batch_size": 4}
    assert record["finished"] and record["seconds"] > 0
    assert {"command", "versions", "device"} < set(record)
    assert set(metrics(tmp_path)[0]) == {"step", "shape", "texture", "coverage", "colour"}
    with pytest.raises(ValueError, match="'seed': 1.*another folder"):
        training.train_teacher(tmp_path, steps=2, seed=2, **QUICK)
    with pytest.raises(ValueError, match="multiple of log_every"):
        training.train_teacher(tmp_path, steps=2, seed=1, **QUICK | {"log_every": 3})


def test_training_learns(tmp_path):
    training.train_teacher(tmp_path, steps=30, batch_size=8, log_every=5, checkpoint_every=30, device="cpu")
    first, *_, last = metrics(tmp_path)
    assert last["coverage"] < 0.7 * first["coverage"] and last["colour"] < 0.5 * first["colour"]


def test_a_loss_that_is_not_finite_stops_the_run_by_name(tmp_path, monkeypatch):
    augment = training.augment
    monkeypatch.setattr(
        training,
        "augment",
        lambda images, seed, step: augment(images, seed, step) * (1 if step < 3 else np.nan),
    )
    with pytest.raises(loop.DivergedError, match="'shape'.*step 4 .*checkpoint is .*step-00000002.pt"):
        training.train_teacher(tmp_path, steps=6, **QUICK)


def test_batches_and_augmentation_depend_on_seed_and_step_alone():
    images = data.load("shapes").read(range(4))["image"]
    same = training.augment(images, 0, 7)
    assert torch.equal(same, training.augment(images, 0, 7))
    assert not torch.equal(same, training.augment(images, 0, 8))
    assert not torch.equal(same, training.augment(images, 1, 7))
    # Still the same pictures: whatever was done, each is closest to its own original.
    distance = torch.cdist(same.flatten(1), data.to_float(images).flatten(1))
    assert distance.argmin(1).tolist() == [0, 1, 2, 3]
