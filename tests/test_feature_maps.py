"""Convolutional teachers: a real network without a download, and any model of timm that has a feature map."""

from dataclasses import replace

import pytest
import torch

from gear_studio import Teacher, data
from gear_studio.analysis.similarity import cka
from gear_studio.data.photos import PHOTOS
from gear_studio.models import feature_maps
from gear_studio.models.feature_maps import LITE0
from gear_studio.training.loop import train
from gear_studio.training.request import Training


def normalised(index: int) -> torch.Tensor:
    """A photograph as the network was trained to see it, (1, 3, 224, 224)."""
    picture = data.load("photos", "val", 224).read([index])["image"].float() / 255
    return (picture - 0.498) / 0.502


def test_the_packaged_network_knows_a_cat_and_a_cup_of_espresso():
    from torchvision.models import ResNet50_Weights

    names = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    seen = {}
    for number, photo in enumerate(PHOTOS[:2]):
        with torch.no_grad():
            best = feature_maps.load_lite0_classifier()(normalised(number)).topk(3).indices[0].tolist()
        seen[photo.name] = [names[index] for index in best]
    assert any("cat" in name for name in seen["chelsea"]) and "espresso" in seen["coffee"]


def test_its_features_are_one_vector_a_token():
    teacher = Teacher.from_pretrained("efficientnet-lite0", grid=16)
    assert (teacher.dim, teacher.config.patch_size, teacher.config.image_size) == (112, 16, 256)
    images = data.to_float(data.load("photos", "val", 256).read([0, 1])["image"])
    features = teacher(images)
    assert features.shape == (2, 256, 112) and not features.requires_grad
    # A change in one corner moves the features there, and nearly none far away.
    changed = images.clone()
    changed[:, :, :32, :32] = 0
    moved = (teacher(changed) - features).norm(dim=-1).unflatten(1, (16, 16))
    assert moved[:, :2, :2].mean() > 20 * moved[:, -4:, -4:].mean()
    assert teacher.alignment_target(features).mean(1).abs().max() < features.mean(1).abs().max()
    assert "Apache-2.0" in teacher.note and "ImageNet" in teacher.note


def test_it_differs_from_random_weights_and_is_told_apart_on_disk(tmp_path):
    teacher, control = Teacher.from_pretrained("efficientnet-lite0", 8), Teacher.random(0, LITE0)
    assert teacher.fingerprint() != control.fingerprint()
    teacher.save_pretrained(tmp_path)
    again = Teacher.from_pretrained(tmp_path, 8)
    images = data.to_float(data.load("photos", "val", 128).read(range(4))["image"])
    one, other = teacher(images).flatten(0, 1), again(images).flatten(0, 1)
    assert cka(one, other) > 0.999 and tuple(again.config.mean) == teacher.config.mean


def test_any_model_with_a_feature_map_is_a_teacher():
    teacher = Teacher.random(0, "resnet18", grid=4)
    assert teacher.config.patch_size == 16 and teacher(torch.zeros(1, 3, 64, 64)).shape == (1, 16, 256)


def test_a_model_that_cannot_be_one_is_refused_in_words(monkeypatch):
    with pytest.raises(
        ValueError, match="timm's swin_tiny_patch4_window7_224 takes pictures of one size only"
    ):
        Teacher.random(0, "timm:swin_tiny_patch4_window7_224")
    monkeypatch.setattr(feature_maps, "STRIDE", 1)
    with pytest.raises(
        ValueError, match="resnet18 is neither a plain ViT nor has it a feature map of stride 1"
    ):
        Teacher.random(0, "resnet18")


def test_another_file_in_the_package_s_place_is_refused(monkeypatch):
    feature_maps.lite0_state.cache_clear()
    monkeypatch.setattr(feature_maps, "_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="is not the file that was published"):
        feature_maps.load_lite0_encoder()
    monkeypatch.setattr(feature_maps, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="install it with"):
        feature_maps.load_lite0_encoder()
    feature_maps.lite0_state.cache_clear()


@pytest.mark.slow
def test_it_guides_a_tokenizer(tmp_path):
    settings = ("teacher=efficientnet-lite0", "perceptual=tiny")
    for stage in ("warmup", "joint"):
        training = Training("shapes", stage, budget="smoke", set=settings, out=tmp_path / stage)
        run = train(
            replace(training, parent=tmp_path / "warmup" if stage == "joint" else None), progress=False
        )
    assert (
        run.finished and run.teacher.name == "efficientnet-lite0" and run.projector.config.teacher_dim == 112
    )
    assert -1 <= run.series("alignment_soft")[1][-1] < 1
