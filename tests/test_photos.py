"""Photos: every photograph is installed, real, credited, and looked at only."""

import numpy as np
import pytest
import torch

from gear_studio import data
from gear_studio.data.photos import PHOTOS, Photos


def test_every_photograph_is_there_in_colour_and_credited():
    photos = Photos()
    assert len(photos) >= 10 and len({photo.name for photo in PHOTOS}) == len(PHOTOS)
    for number, photo in enumerate(PHOTOS):
        whole = np.asarray(photos.open(number)).astype(float)
        assert min(whole.shape[:2]) >= 256 and whole.shape[2] == 3
        assert np.abs(whole[..., 0] - whole[..., 2]).mean() > 1, f"{photo.name} is grey"
        assert photo.credit and photo.licence in ("CC0", "CC BY 2.0", "public domain")


def test_it_is_a_source_like_the_others():
    photos = data.load("photos", "val", 64, captions=True)
    batch = photos.read([3, 0])
    assert batch["image"].shape == (2, 3, 64, 64) and batch["image"].dtype == torch.uint8
    assert batch["label"].tolist() == [0, 0] and batch["caption"] == [PHOTOS[3].caption, PHOTOS[0].caption]
    assert torch.equal(batch["image"][1], photos.read([0])["image"][0])
    views = photos.read([3, 3], [np.random.default_rng(seed) for seed in (1, 2)])["image"]
    assert not torch.equal(views[0], views[1])
    assert photos.fingerprint() == data.load("photos", "val", 32).fingerprint()


def test_nothing_trains_on_it():
    with pytest.raises(ValueError, match="no split 'train'.*too few to train on.*'folder'"):
        data.load("photos", "train")


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("gear_studio.data.photos.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="'coffee' comes with the package skimage"):
        PHOTOS[1].path  # noqa: B018
