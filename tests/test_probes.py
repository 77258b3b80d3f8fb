"""Probes: each on features whose answer is known, at chance on features that hold nothing, at any size."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from gear_studio import Run, data
from gear_studio.analysis import probes
from gear_studio.analysis.features import to_function
from gear_studio.analysis.probes import (
    knn_probe,
    linear_probe,
    probe_images,
    probe_patches,
    segmentation_iou,
)


def separable(rows: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=rows)
    return 1000 + 50 * (np.eye(16)[labels] + 0.1 * rng.standard_normal((rows, 16))), labels


def test_probe_reads_off_what_is_linearly_there():
    train, test = separable(300, 4, 0), separable(400, 4, 1)
    assert linear_probe(*train, *test) > 0.99
    assert linear_probe(*map(torch.tensor, train), *map(torch.tensor, test)) > 0.99


def test_probe_is_at_chance_on_shuffled_labels():
    (train_x, train_y), (test_x, test_y) = separable(300, 4, 0), separable(400, 4, 1)
    shuffled = np.random.default_rng(2).permutation(train_y)
    rotated = np.random.default_rng(3).permutation(test_y)
    assert linear_probe(train_x, shuffled, test_x, rotated) == pytest.approx(0.25, abs=0.08)


def test_neighbours_vote():
    train_x = np.array([[1.0, 0], [5, 0.5], [9, 2], [0, 1], [0.1, 3], [-1, 0.1]])
    train_y = np.array([0, 0, 1, 1, 1, 2])
    test_x = np.array([[0.01, 0], [0.001, 7], [-3, 0]])  # by cosine, not by distance
    assert knn_probe(train_x, train_y, test_x, np.array([0, 1, 2]), k=1) == 1
    assert knn_probe(train_x, train_y, test_x, np.array([0, 1, 1]), k=3) == 1
    assert knn_probe(train_x, train_y, test_x, np.array([1, 0, 2]), k=3) == 0
    assert knn_probe(*separable(300, 4, 0), *map(torch.tensor, separable(400, 4, 1))) > 0.99
    with pytest.raises(ValueError, match="k is 7; there are 6 training rows"):
        knn_probe(train_x, train_y, test_x, train_y[:3], k=7)


def oracle(shift: int, *pictures: range, image_size: int = 64):
    """Features that are the truth of each patch, of these pictures in turn, moved on by some patches."""
    world, parts = data.load("shapes", "probe", image_size), iter(pictures)

    def features(images):
        truth = world.truth(next(parts))
        assert torch.equal(data.to_float(truth["image"]), images)
        codes = [truth["patch_foreground"][..., None].float()]
        codes += [nn.functional.one_hot(truth[f"patch_{k}"] + 1).float() for k in ("shape", "texture")]
        return torch.cat(codes, -1).flatten(1, 2).roll(shift, 1)

    return features


SAMPLE = {"seed": 0, "train_images": 60, "test_images": 40}
PARTS = range(60), range(60, 100)


def test_patch_probe_matches_features_with_their_own_patch():
    """Features that are the truth probe at 1; the same features one patch further do not."""
    sample = {**SAMPLE, "patches": 3}
    exact = probe_patches(oracle(0, *PARTS), **sample)
    assert exact == {"foreground": 1.0, "texture": 1.0, "shape": 1.0}
    shifted = probe_patches(oracle(3, *PARTS), **sample)
    assert shifted["foreground"] < 0.95 and shifted["shape"] < 1.0


def test_patch_probe_by_neighbours():
    """Not all at 1: of the 24 pairs of shape and texture some are not among so few training pictures."""
    found = probe_patches(oracle(0, *PARTS), **SAMPLE, patches=3, probe=functools.partial(knn_probe, k=1))
    assert found["foreground"] == 1 and found["texture"] > 0.8 and found["shape"] > 0.8


def test_image_probe_names_classes_from_the_mean_of_patches():
    sample = {"train_images": 120, "test_images": 60}
    parts = range(100), range(100, 120), range(120, 180)
    assert probe_images(oracle(0, *parts), **sample) > 0.9
    assert probe_images(oracle(9, *parts), **sample) > 0.9  # a mean does not ask where
    assert probe_images(lambda x: torch.ones(len(x), 64, 2), **sample) < 0.2


def test_segmentation_is_exact_for_the_truth_and_a_share_for_guesses():
    assert segmentation_iou(oracle(0, *PARTS), **SAMPLE) == 1
    world, there = data.load("shapes", split="probe"), PARTS[1]
    true = world.truth(there)["patch_foreground"].flatten(1)

    answers = iter(PARTS)

    def turned(images):  # right in training; in the test wrong about the first patch of every picture
        found = oracle(0, next(answers))(images)
        if len(images) == 40:
            found[:, 0] = torch.where(true[:, :1], 0.0, 1.0)
        return found[..., :1]

    changed = true.clone()
    changed[:, 0] = ~changed[:, 0]
    expected = (changed & true).sum() / (changed | true).sum()
    assert 0.5 < expected < 1 and segmentation_iou(turned, **SAMPLE) == pytest.approx(expected.item())


def test_segmentation_by_hand(monkeypatch):
    """Counts are added over pictures: 2 of 6 patches and 1 of 1 make 3 of 7, not the mean of their ratios."""
    true, found = torch.zeros(2, 8, 8, dtype=torch.bool), torch.zeros(2, 8, 8, dtype=torch.bool)
    true[0, :2, :2] = True
    found[0, :2, 1:3] = True
    true[1, 7, 7] = found[1, 7, 7] = True
    parts = iter([true, found])  # what features say: the truth in training, something else in the test

    class World:
        def truth(self, pictures):
            same = dict.fromkeys(("patch_shape", "patch_texture"), torch.zeros(2, 8, 8, dtype=torch.int64))
            image = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
            return {"image": image, "patch_foreground": true, **same}

    monkeypatch.setattr(probes, "Shapes", lambda *arguments: World())
    iou = segmentation_iou(lambda x: next(parts).flatten(1)[..., None], train_images=2, test_images=2)
    assert iou == pytest.approx(3 / 7)


def test_the_truth_is_of_the_size_that_is_asked_for():
    sample = {**SAMPLE, "image_size": 32}
    exact = probe_patches(oracle(0, *PARTS, image_size=32), **sample, patches=3)
    assert exact == {"foreground": 1.0, "texture": 1.0, "shape": 1.0}
    assert segmentation_iou(oracle(0, *PARTS, image_size=32), **sample) == 1
    assert probe_images(oracle(0, *PARTS, image_size=32), **sample) > 0.5


def test_a_shipped_study_run_is_probed_at_its_own_size():
    run = Run.from_pretrained("studies/runs/generator-gear-s0")
    size = run.tokenizer.config.image_size
    assert size == 32
    sample = {"train_images": 100, "test_images": 60}
    place = to_function(run, "generator.2")
    assert probe_patches(place, **sample, image_size=size)["foreground"] > 0.75
    with pytest.raises(ValueError, match=r"\(B, 3, 32, 32\)"):
        probe_patches(place, **sample)


def test_probes_refuse_features_of_another_grid():
    with pytest.raises(
        ValueError, match=r"features of 60 images have shape \(60, 16, 3\); expected \(60, 64, d"
    ):
        segmentation_iou(lambda x: torch.ones(len(x), 16, 3), **SAMPLE)


def test_patch_probe_is_at_chance_on_features_without_the_picture():
    rng = torch.Generator().manual_seed(0)
    found = probe_patches(
        lambda x: torch.randn(len(x), 64, 8, generator=rng), train_images=200, test_images=200
    )
    for task, chance in {"foreground": 0.5, "texture": 0.25, "shape": 1 / 6}.items():
        assert found[task] == pytest.approx(chance, abs=0.08)
