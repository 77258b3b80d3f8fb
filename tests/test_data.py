"""The data room: the shapes world and its truth, digits, folders of pictures, and the order of training."""

import colorsys
import errno
import hashlib
import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import warnings
import zlib
from collections import Counter
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
from PIL import Image

from gear_studio import data, files
from gear_studio.analysis.reference import open_reference
from gear_studio.data import prompts, shapes
from gear_studio.data.folder import Folder
from gear_studio.data.images import UnreadableImage, crop_and_resize, open_rgb
from gear_studio.data.shapes import Shapes
from gear_studio.data.source import Captioned, Fingerprinted, ListedSource, OnDisk, Ordered, Skipping
from gear_studio.data.stream import _TrainingBatches, collect_skipped, describe_skipped
from gear_studio.looking.pictures import pictures_of_folder
from gear_studio.models.text_encoders import Words

# Pictures 0 to 2 of val. Should these have to change, retrain everything that ships.
CAPTIONS = [
    "a small orange dotted triangle, bottom left, on a dark green background",
    "a small yellow solid square, bottom, on a light gray background",
    "a large orange striped cross, center, on a light green background",
]
MEANS = [47.8, 208.6, 167.0]


@pytest.fixture(scope="module")
def truth() -> dict[str, torch.Tensor]:
    return Shapes("val").truth(range(600))


def digest(batch: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(batch["image"].numpy().tobytes() + batch["label"].numpy().tobytes()).hexdigest()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# Shapes: the same pictures everywhere


def test_shapes_batch_is_its_pictures_one_by_one():
    world = Shapes("train")
    indices = [7, 0, 123_456_789_012, 31, 32, 5] + list(
        range(100, 130)
    )  # more than one internal chunk, any order
    together = world.read(indices)
    assert together["image"].dtype == torch.uint8 and together["image"].shape == (36, 3, 64, 64)
    for row, index in enumerate(indices):
        alone = world.read([index])
        assert torch.equal(alone["image"][0], together["image"][row])
        assert alone["label"][0] == together["label"][row]
    assert torch.equal(world.truth(indices)["image"], together["image"])


@pytest.mark.slow
def test_shapes_is_the_same_in_another_process():
    code = (
        "import hashlib; from gear_studio.data import Shapes; b = Shapes('val', seed=3).read(range(40));"
        "print(hashlib.sha256(b['image'].numpy().tobytes() + b['label'].numpy().tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(Shapes("val", seed=3).read(range(40)))


def test_shapes_splits_and_seeds_share_no_picture():
    pictures = set()
    for seed in (0, 1):
        for split in shapes.SPLITS:
            pictures |= {
                image.numpy().tobytes() for image in Shapes(split, seed=seed).read(range(8))["image"]
            }
    assert len(pictures) == 2 * 4 * 8
    with pytest.raises(
        IndexError, match="asked for"
    ):  # nor can a split be read past its end, into the next one
        Shapes("train").read([len(Shapes("train"))])


def test_shapes_is_still_the_world_that_the_shipped_models_know():
    world = Shapes("val")
    assert [world.caption(i) for i in range(3)] == CAPTIONS
    means = world.read(range(3))["image"].float().mean(dim=(1, 2, 3))
    torch.testing.assert_close(means, torch.tensor(MEANS), atol=0.2, rtol=0)


def test_shapes_refuses_what_it_has_not():
    with pytest.raises(ValueError, match="'test'.*train, val, probe, judge"):
        Shapes("test")
    with pytest.raises(ValueError, match="multiple of 8, got 60"):
        Shapes(image_size=60)


def test_shapes_at_another_size_shows_the_same_scene():
    small, large = Shapes("val", 64).truth(range(8)), Shapes("val", 128).truth(range(8))
    assert large["image"].shape == (8, 3, 128, 128)
    assert torch.equal(small["label"], large["label"])
    shrunk = torch.nn.functional.avg_pool2d(large["image"].float(), 2)
    assert (shrunk - small["image"]).abs().mean() < 12  # the noise differs, the scene does not
    assert (large["mask"][:, ::2, ::2] == small["mask"]).float().mean() > 0.97


# Shapes: the truth is true


def test_every_class_comes_up_about_equally_often(truth):
    counts = torch.bincount(truth["label"], minlength=24)
    assert len(Shapes().classes) == 24 and len(counts) == 24
    assert counts.min() >= 10 and counts.max() <= 45  # 25 expected
    assert torch.equal(truth["label"], truth["shape"] * 4 + truth["texture"])
    assert Shapes().classes[3 * 4 + 1] == "striped star"


def eroded(mask: torch.Tensor) -> torch.Tensor:
    """The mask without the pixels beside its edge, which are a mixture."""
    return torch.nn.functional.max_pool2d((~mask)[None].float(), 3, 1, 1)[0] == 0


def test_mask_is_where_the_picture_leaves_its_background(truth):
    at = torch.linspace(-1, 1, 64)
    plane = torch.stack([torch.ones(64, 64), at.expand(64, 64), at[:, None].expand(64, 64)], dim=-1)
    for image, mask in zip(truth["image"][:100].float(), truth["mask"][:100], strict=True):
        pixels = image.permute(1, 2, 0)
        core, ground = eroded(mask), eroded(~mask)
        fitted = plane @ torch.linalg.lstsq(plane[ground], pixels[ground]).solution
        residual = (pixels - fitted).pow(2).mean(dim=-1).sqrt()
        assert residual[ground].pow(2).mean().sqrt() < 9  # only the noise, of sigma 8, is left
        assert (residual[core] > 30).float().mean() > 0.98
        assert mask.sum() > 150


def test_texture_shows_in_the_pixels(truth):
    # The share of the second tone, and how far its edges all run in one direction (1) or in every one (0).
    expected = {"solid": (0.0, 0.0), "striped": (0.5, 0.9), "checkered": (0.5, 0.0), "dotted": (0.27, 0.0)}
    away = (truth["image"].float() - truth["color_rgb"][:, :, None, None]).norm(dim=1)
    shares, directions = [], []
    for tone, mask in zip(away, truth["mask"], strict=True):
        core = eroded(eroded(mask))
        shares.append((tone[core] > 70).float().mean())
        dy, dx = (slope[core] for slope in torch.gradient(tone))
        xx, yy, xy = (dx * dx).mean(), (dy * dy).mean(), (dx * dy).mean()
        directions.append(torch.hypot(xx - yy, 2 * xy) / (xx + yy))
    for texture, name in enumerate(shapes.TEXTURES):
        rows = truth["texture"] == texture
        share, direction = torch.stack(shares)[rows].mean(), torch.stack(directions)[rows].mean()
        assert share == pytest.approx(expected[name][0], abs=0.07), name
        assert direction == pytest.approx(expected[name][1], abs=0.25), name


def inside(truth: dict[str, torch.Tensor]) -> torch.Tensor:
    """Which pictures show the whole object: its mask touches no border."""
    mask = truth["mask"]
    return ~(mask[:, 0].any(1) | mask[:, -1].any(1) | mask[:, :, 0].any(1) | mask[:, :, -1].any(1))


def centroids(mask: torch.Tensor) -> torch.Tensor:
    at = torch.arange(64) + 0.5
    area = mask.sum(dim=(1, 2))
    return torch.stack(
        [(mask * at).sum(dim=(1, 2)) / area, (mask * at[:, None]).sum(dim=(1, 2)) / area], dim=1
    )


def test_shape_shows_in_the_mask(truth):
    # Area over that of the smallest circle around the same centre: a number of the outline alone.
    expected = {"circle": 1.0, "square": 0.64, "triangle": 0.41, "star": 0.46, "cross": 0.67, "ring": 0.79}
    whole = inside(truth)
    mask, shape = truth["mask"][whole], truth["shape"][whole]
    center = centroids(mask)
    at = torch.arange(64) + 0.5
    radius = torch.hypot(at - center[:, :1, None], at[:, None] - center[:, 1:, None])
    reach = (radius * mask).amax(dim=(1, 2))
    ratio = mask.sum(dim=(1, 2)) / (torch.pi * reach**2)
    for index, name in enumerate(shapes.SHAPES):
        assert ratio[shape == index].mean() == pytest.approx(expected[name], abs=0.05), name
    hole = torch.stack([m[int(y), int(x)] for m, (x, y) in zip(mask, center, strict=True)])
    assert torch.equal(~hole, shape == shapes.SHAPES.index("ring"))


def test_patch_labels_follow_the_mask(truth):
    share = torch.nn.functional.avg_pool2d(truth["mask"][:, None].float(), 8)[:, 0]
    assert torch.equal(truth["patch_foreground"], share >= 0.5)
    assert 0.1 < truth["patch_foreground"].float().mean() < 0.4
    for key in ("shape", "texture"):
        patches = truth[f"patch_{key}"]
        assert patches.shape == (600, 8, 8) and patches.dtype == torch.int64
        assert torch.equal(patches == -1, ~truth["patch_foreground"])
        assert torch.equal(patches.amax(dim=(1, 2)), truth[key])


def test_caption_says_what_the_picture_shows(truth):
    world = Shapes("val")
    hues = dict(red=0, orange=27, yellow=48, green=129, cyan=187, blue=223, purple=273, pink=328)
    whole, center = inside(truth), centroids(truth["mask"])
    areas: dict[str, list[float]] = {"small": [], "medium": [], "large": []}
    for i in range(200):
        what, where, ground = world.caption(i).split(", ")
        article, size, color, texture, shape = what.split()
        assert article == "a" and f"{texture} {shape}" == world.classes[truth["label"][i]]
        assert size == shapes.SIZES[truth["size"][i]] and where == shapes.POSITIONS[truth["position"][i]]

        hue = 360 * colorsys.rgb_to_hsv(*(truth["color_rgb"][i] / 255).tolist())[0]
        assert min(hues, key=lambda name: abs((hue - hues[name] + 180) % 360 - 180)) == color

        tone = ground.removeprefix("on a ").removesuffix(" background")
        assert tone == shapes.BACKGROUNDS[truth["background"][i]]
        outside = truth["image"][i].float()[:, ~truth["mask"][i]].mean(dim=1)
        assert (outside.mean() < 128) == tone.startswith("dark")
        channel = {"red": 0, "green": 1, "blue": 2}.get(tone.split()[1])
        assert channel is None or outside.argmax() == channel

        if whole[i]:
            if shape == "circle":
                areas[size].append(float(truth["mask"][i].sum()))
            x, y = center[i] - 32
            for offset, before, after in ((x, "left", "right"), (y, "top", "bottom")):
                if abs(abs(offset) - 5) > 0.5:  # not on the fence
                    assert (before in where.split()) == (offset < -5)
                    assert (after in where.split()) == (offset > 5)
    assert max(areas["small"]) < min(areas["medium"]) and max(areas["medium"]) < min(areas["large"])


# Captions


def test_captions_leave_the_pictures_as_they_are_and_repeat():
    plain, told = Shapes("train"), Shapes("train", captions=True)
    indices = [5, 0, 2**39, 7]
    batch = told.read(indices)
    assert equal(plain.read(indices), {key: batch[key] for key in ("image", "label")})
    assert batch["caption"] == told.captions(indices) == [told.captions([i])[0] for i in indices]
    assert told.captions(range(50)) != Shapes("train", seed=1).captions(range(50))
    assert told.captions(range(50)) != Shapes("val").captions(range(50))
    tellings = [told.captions([5, 7], telling) for telling in range(4)]
    assert tellings[0] == told.captions([5, 7]) and len(set(map(tuple, tellings))) == 4
    assert tellings[2] == told.captions([5, 7], 2) == [told.captions([i], 2)[0] for i in (5, 7)]


def test_captions_say_what_is_true_in_many_ways_and_leave_some_out(truth):
    world = Shapes("val")
    captions = world.captions(range(600))
    assert len(set(captions)) > 550 and max(len(c.split()) for c in captions) <= 18
    known = {
        "size": shapes.SIZES,
        "color": shapes.COLORS,
        "texture": shapes.TEXTURES,
        "shape": shapes.SHAPES,
    }
    said = dict.fromkeys([*known, "position", "background"], 0)
    orders = set()
    for i, caption in enumerate(captions):
        words = caption.replace(",", "").split()
        background = shapes.BACKGROUNDS[truth["background"][i]]
        if background in caption:
            said["background"] += 1
            at = words.index(background.split()[0])
            assert words[at + 1] == background.split()[1]
            del words[at : at + 2]
        found = {key: [w for w in words if w in names] for key, names in known.items()}
        for key, names in known.items():
            assert found[key] in ([], [names[truth[key][i]]])
            said[key] += len(found[key])
        orders.add(tuple(sorted(known, key=lambda key: words.index(*found[key]) if found[key] else 99)))
        place = shapes.POSITIONS[truth["position"][i]].replace("center", "middle").split()
        spoken = [w for w in words if w in ("top", "bottom", "left", "right", "middle", "center")]
        assert spoken in ([], place, ["center"] if place == ["middle"] else place)
        said["position"] += bool(spoken)
    assert len(orders) > 6
    assert 0.88 < said.pop("shape") / 600 < 0.97
    assert all(0.68 < count / 600 < 0.82 for count in said.values())


def test_describing_says_what_is_asked_and_no_more():
    asked = {"color": "orange", "shape": "ring", "position": "left"}
    assert shapes.describe(asked) == "an orange ring, left"
    assert shapes.describe({"texture": "dotted", "background": "dark red"}) == (
        "a dotted shape, on a dark red background"
    )
    assert shapes.describe({}) == "a shape"
    told = {shapes.describe(asked, np.random.default_rng(i)) for i in range(60)}
    assert {"a picture of an orange ring on the left", "on the left an orange ring"} <= told


def test_held_out_combinations_are_never_seen_and_otherwise_nothing_changes():
    seen, unseen = (Shapes("train", combinations=kind).truth(range(400)) for kind in ("seen", "unseen"))
    for truth, expected in ((seen, False), (unseen, True)):
        held = shapes.is_held_out(truth["texture"], truth["shape"], truth["color"])
        assert (held == expected).all()
    ordinary = Shapes("train").truth(range(400))
    kept = ~shapes.is_held_out(ordinary["texture"], ordinary["shape"], ordinary["color"])
    assert 0.8 < kept.float().mean() < 0.95
    assert torch.equal(seen["image"][kept], ordinary["image"][kept])  # where it fits, the very same picture
    assert not (seen["image"][~kept] == ordinary["image"][~kept]).flatten(1).all(1).any()
    some = Shapes("train", combinations="seen", captions=True)
    assert torch.equal(some.read([3])["image"][0], some.read([7, 3])["image"][1])


def test_any_two_of_a_held_out_combination_are_seen_together():
    assert len(shapes.HELD_OUT) == len(set(shapes.HELD_OUT)) == 24
    everything = {(t, s, c) for t in shapes.TEXTURES for s in shapes.SHAPES for c in shapes.COLORS}
    left = everything - set(shapes.HELD_OUT)
    for drop in range(3):
        pairs = {tuple(w for i, w in enumerate(each) if i != drop) for each in left}
        assert pairs == {tuple(w for i, w in enumerate(each) if i != drop) for each in everything}


def test_what_a_source_cannot_do_it_says():
    with pytest.raises(ValueError, match="no combinations 'some'; choose one of all, seen, unseen"):
        Shapes(combinations="some")
    with pytest.raises(ValueError, match="combinations 'seen' are of the source 'shapes'"):
        data.load("digits", combinations="seen")
    with pytest.raises(ValueError, match="'digits' has no captions"):
        data.load("digits", captions=True)


# The stream


class Counting:
    """Ten numbered pictures: the image is the number, the label what the generator says."""

    name, classes, image_size = "counting", ["only"], 1

    def __init__(self, length: int = 10) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def read(self, indices, rngs=None):
        images = torch.tensor([int(i) for i in indices])
        return {"image": images, "label": torch.tensor([int(rng.integers(2**40)) for rng in rngs])}


def test_stream_continues_where_it_was_cut():
    whole = list(data.stream(Counting(), 4, seed=5, steps=9))
    rest = list(data.stream(Counting(), 4, seed=5, start=6, steps=3))
    assert len(whole) == 9 and len(rest) == 3
    assert all(equal(a, b) for a, b in zip(whole[6:], rest, strict=True))


def test_processes_share_the_batch_that_one_would_read():
    whole = list(data.stream(Counting(), 6, seed=5, steps=4))
    parts = [list(data.stream(Counting(), 6, seed=5, steps=4, process=r, processes=3)) for r in range(3)]
    for step, batch in enumerate(whole):
        joined = {key: torch.cat([part[step][key] for part in parts]) for key in batch}
        assert equal(joined, batch)
    with pytest.raises(ValueError, match="batch_size 7 .* 3 processes"):
        next(data.stream(Counting(), 7, seed=0, steps=1, processes=3))


def test_every_epoch_shows_every_picture_once_in_its_own_order():
    order = torch.cat([batch["image"] for batch in data.stream(Counting(), 4, seed=0, steps=5)])  # two epochs
    first, second = order[:10].tolist(), order[10:].tolist()
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    other = torch.cat([batch["image"] for batch in data.stream(Counting(), 4, seed=1, steps=5)])
    assert order.tolist() != other.tolist()


def test_every_position_has_its_own_random_numbers():
    labels = torch.cat([batch["label"] for batch in data.stream(Counting(), 4, seed=0, steps=10)])
    assert len(labels.unique()) == 40


def test_an_endless_source_never_repeats_and_seeds_do_not_meet():
    def read(seed):
        return torch.cat([batch["image"] for batch in data.stream(Counting(2**40), 50, seed=seed, steps=4)])

    seen = torch.cat([read(0), read(1), read(2)])
    assert len(seen.unique()) == 600 and seen.max() < 2**40


@pytest.mark.parametrize("source", [Shapes("train"), data.Digits("train")], ids=["shapes", "digits"])
def test_workers_change_nothing(source):
    here = list(data.stream(source, 6, seed=1, start=3, steps=5))
    there = list(data.stream(source, 6, seed=1, start=3, steps=5, workers=2))
    assert len(there) == 5 and all(equal(a, b) for a, b in zip(here, there, strict=True))


def test_stream_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    list(data.stream(Counting(), 2, seed=0, steps=2))
    list(data.stream(Counting(), 2, seed=0, steps=2, workers=1))
    assert torch.equal(torch.get_rng_state(), before)


# Digits


def test_digits_are_split_resized_and_the_same_every_time():
    train, val = data.load("digits"), data.load("digits", "val")
    assert (len(train), len(val)) == (1500, 297) and train.classes == [str(d) for d in range(10)]
    everything = torch.cat([train.read(range(1500))["image"], val.read(range(297))["image"]])
    assert everything.dtype == torch.uint8 and everything.shape == (1797, 3, 64, 64)
    assert len(everything.flatten(1).unique(dim=0)) == 1797  # so the splits share none
    assert everything.max() == 255 and everything.float().mean() < 120  # light on dark
    assert equal(pickle.loads(pickle.dumps(val)).read([3, 1]), data.Digits("val").read([3, 1]))
    assert data.Digits("val", 32).read([0])["image"].shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match="'test'.*train, val"):
        data.Digits("test")


def test_digits_labels_belong_to_their_pictures():
    train, val = data.Digits("train").read(range(1500)), data.Digits("val").read(range(297))

    def small(batch):
        return torch.nn.functional.avg_pool2d(batch["image"][:, :1].float(), 8).flatten(1)

    nearest = torch.cdist(small(val), small(train)).argmin(dim=1)
    assert (train["label"][nearest] == val["label"]).float().mean() > 0.95


def test_digits_training_view_is_a_small_shift():
    digits = data.Digits("train")
    plain = digits.read([0] * 12)["image"]
    shifted = digits.read([0] * 12, [np.random.default_rng(i) for i in range(12)])["image"]
    again = digits.read([0] * 12, [np.random.default_rng(i) for i in range(12)])["image"]
    assert torch.equal(shifted, again) and len(shifted.flatten(1).unique(dim=0)) > 6
    for image in shifted:  # each is the plain one moved by at most 4 pixels: the middle is found again
        middle = plain[0, :, 16:48, 16:48]
        assert any(
            torch.equal(image[:, 16 + y : 48 + y, 16 + x : 48 + x], middle)
            for y in range(-4, 5)
            for x in range(-4, 5)
        )


# Folder


def paint(path, color, size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)


@pytest.fixture
def pets(tmp_path):
    """Twenty cats (reds) and twenty dogs (blues), each of its own shade, told apart by pixel [0, 0]."""
    for i in range(20):
        paint(tmp_path / "pets" / "cat" / f"{i:02}.png", (100 + i, 0, 0))
        paint(tmp_path / "pets" / "dog" / "deeper" / f"{i:02}.PNG", (0, 0, 100 + i), size=(30, 50))
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("not a picture, and not called one")
    (tmp_path / "pets" / "cat" / ".hidden.png").write_text("left by some file manager")
    return tmp_path / "pets"


def shades(source: data.Source) -> set[tuple[int, ...]]:
    return {tuple(image[:, 0, 0].tolist()) for image in source.read(range(len(source)))["image"]}


def names(source: Folder) -> list[str]:
    return [source._name(i) for i in range(len(source))]


def test_folder_splits_into_disjoint_halves_of_the_whole(pets):
    train, val = data.load("folder", folder=pets), data.load("folder", "val", folder=str(pets))
    assert train.classes == val.classes == ["cat", "dog"]
    assert (len(train), len(val)) == (38, 2)
    assert len(shades(train)) == 38 and len(shades(val)) == 2 and not shades(train) & shades(val)
    assert equal(train.read(range(38)), Folder(pets).read(range(38)))
    batch = train.read(range(38))
    assert batch["image"].shape == (38, 3, 64, 64) and batch["image"].dtype == torch.uint8
    assert torch.equal(batch["label"], (batch["image"][:, 2, 0, 0] > 0).long())
    with pytest.raises(IndexError, match="asked for 38"):
        train.read([38])


def test_folder_is_split_by_class_and_every_class_keeps_a_picture(tmp_path):
    for label in range(30):  # "00" has 40, "01" has 20, the others one each
        for i in range({0: 40, 1: 20}.get(label, 1)):
            paint(tmp_path / f"{label:02}" / f"{i}.png", (label, i, 0))
    with pytest.warns(UserWarning, match="28 of 30 classes in .* have a single picture.*first is '02'"):
        train = Folder(tmp_path, "train")
    val = Folder(tmp_path, "val")
    trained, held = (Counter(s.read(range(len(s)))["label"].tolist()) for s in (train, val))
    assert held == {0: 3, 1: 1} and trained.keys() == set(range(30))
    assert not shades(train) & shades(val)


def test_a_folder_with_a_single_picture_of_each_class_has_none_to_hold_out(tmp_path):
    for label in range(30):
        paint(tmp_path / f"{label:02}" / "x.png", (label, 0, 0))
    with pytest.raises(ValueError, match="a single picture of each class; it takes two .* for val"):
        Folder(tmp_path, "val")


def test_folder_split_does_not_depend_on_where_it_lies(pets, tmp_path):
    before = shades(Folder(pets, "val"))
    assert shades(Folder(pets.rename(tmp_path / "elsewhere"), "val")) == before


def test_folder_brings_its_own_split(tmp_path):
    for split, color in (("train", (9, 0, 0)), ("val", (0, 9, 0))):
        paint(tmp_path / split / "a" / "x.png", color)
    paint(tmp_path / "train" / "b" / "x.png", (9, 0, 9))
    train, val = Folder(tmp_path, "train"), Folder(tmp_path, "val")
    assert train.classes == val.classes == ["a", "b"]
    assert shades(train) == {(9, 0, 0), (9, 0, 9)} and shades(val) == {(0, 9, 0)}
    paint(tmp_path / "val" / "c" / "x.png", (1, 1, 1))
    with pytest.raises(ValueError, match="has not: c"):
        Folder(tmp_path, "val")


def test_folder_with_only_train_is_split(pets, tmp_path):
    (tmp_path / "outer").mkdir()
    pets.rename(tmp_path / "outer" / "train")
    train = Folder(tmp_path / "outer", "train")
    assert (
        train.classes == ["cat", "dog"] and len(train) == 38 and len(Folder(tmp_path / "outer", "val")) == 2
    )


@pytest.mark.parametrize(
    ("layout", "chosen"),
    [
        (("test",), "test"),
        (("validation", "test"), "validation"),
        (("test", "val", "validation"), "val"),
    ],
)
def test_the_folder_held_out_is_the_first_of_val_validation_and_test(tmp_path, layout, chosen):
    for i, part in enumerate(("train", *layout)):
        paint(tmp_path / part / "a" / "x.png", (9, i, 0))
    (tmp_path / "notes").mkdir()  # without pictures
    train, val = Folder(tmp_path, "train"), Folder(tmp_path, "val")
    assert train.classes == val.classes == ["a"] and shades(train) == {(9, 0, 0)}
    assert shades(val) == {(9, 1 + layout.index(chosen), 0)}


def test_hidden_folders_are_passed_over(pets, tmp_path):
    paint(pets / ".ipynb_checkpoints" / "x.png", "red")
    paint(pets / "cat" / ".thumbnails" / "x.png", "red")
    assert Folder(pets).classes == ["cat", "dog"] and len(Folder(pets)) == 38
    outer = tmp_path / "outer"
    paint(outer / ".ipynb_checkpoints" / "x.png", "red")
    pets.rename(outer / "train")
    assert Folder(outer).classes == ["cat", "dog"] and len(Folder(outer)) == 38


def test_pictures_beside_the_splits_are_refused_by_name(pets, tmp_path):
    pets.rename(tmp_path / "train")
    paint(tmp_path / "extra" / "deep" / "x.png", "red")
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=f"{tmp_path} has extra beside train.*move extra elsewhere"):
            Folder(tmp_path, split)
    (tmp_path / "extra").rename(tmp_path / "test")
    (tmp_path / "train").rename(tmp_path / ".train")
    with pytest.raises(ValueError, match="has test and no train beside it; name .*/test itself"):
        Folder(tmp_path)


def test_training_view_crops_and_mirrors_and_repeats(tmp_path):
    ramp = np.zeros((64, 128, 3), np.uint8)
    ramp[..., 0] = np.arange(128) * 2
    for name in "xy":
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(ramp).save(tmp_path / "a" / f"{name}.png")
    source = Folder(tmp_path, "train", 32)

    plain = source.read([0])["image"][0, 0].float()
    assert plain.mean() == pytest.approx(127, abs=1)  # the middle square of the ramp
    assert (plain[:, 1:] >= plain[:, :-1]).all()

    views = source.read([0] * 40, [np.random.default_rng(i) for i in range(40)])["image"][:, 0].float()
    again = source.read([0] * 40, [np.random.default_rng(i) for i in range(40)])["image"][:, 0].float()
    assert torch.equal(views, again)
    mirrored = views[:, 0, 0] > views[:, 0, -1]
    assert 8 < mirrored.sum() < 32
    means = views.mean(dim=(1, 2))  # 64 at the left end, 190 at the right
    assert means.min() < 80 and means.max() > 175


def test_a_corrupt_file_is_named_once_skipped_and_counted(pets):
    order = names(Folder(pets))
    whole = Folder(pets).read(range(38))
    last_cat = max(i for i, file in enumerate(order) if "/cat/" in file)
    open(order[3], "wb").write(b"this is no picture")
    truncated = open(order[last_cat], "rb").read()[:60]
    open(order[last_cat], "wb").write(truncated)

    source = Folder(pets)
    with pytest.warns(UserWarning) as caught:
        batch = source.read(range(38))
    assert sorted(str(w.message).split(": ")[0] for w in caught) == sorted(
        f"skipped {order[i]}" for i in (3, last_cat)
    )
    assert source.skipped == {order[3], order[last_cat]}
    stand_in = list(range(38))
    stand_in[3], stand_in[last_cat] = 4, last_cat + 1  # the second one's is a dog, and is labelled so
    assert equal(batch, {key: value[stand_in] for key, value in whole.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # not reported again
        assert equal(source.read(range(38)), batch)


@pytest.mark.parametrize("times", [1, 3])
def test_what_the_disk_does_not_give_is_asked_for_again(pets, times, monkeypatch):
    expected, source = Folder(pets).read(range(4)), Folder(pets)
    left = Counter({Path(names(source)[1]): times})
    really_read = Path.read_bytes

    def read(path: Path) -> bytes:
        if left[path] > 0:
            left[path] -= 1
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return really_read(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0, 0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert equal(source.read(range(4)), expected) and not source.skipped and not left.total()


@pytest.mark.parametrize(("number", "asked"), [(errno.EIO, 4), (errno.EACCES, 1), (errno.ENOENT, 1)])
def test_what_the_disk_never_gives_is_skipped(pets, number, asked, monkeypatch):
    source, reads = Folder(pets), []

    def read(path: Path) -> bytes:
        reads.append(path)
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(ValueError, match="none of the 38"):
        source.read([0])
    assert Counter(reads) == Counter(map(Path, names(source) * asked))


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_corrupt_file_changes_nothing_about_workers(pets):
    open(names(Folder(pets))[5], "wb").write(b"")
    here = list(data.stream(Folder(pets), 8, seed=0, steps=5))
    there = list(data.stream(Folder(pets), 8, seed=0, steps=5, workers=2))
    assert all(equal(a, b) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("name", ["shapes", "digits", "folder"])
def test_loading_processes_need_not_be_forked(name, pets):
    """Python 3.14 starts them anew: what they are given has to survive pickling."""
    source = data.load(name, "train", 32, pets)
    reader = _TrainingBatches(source, 4, seed=0, part=slice(4))
    assert equal(pickle.loads(pickle.dumps(reader))[3], reader[3])


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize("workers", [0, 2])
def test_what_loading_processes_could_not_read_is_known_to_the_one_that_trains(pets, workers):
    source = Folder(pets)
    bad = {names(source)[i] for i in (5, 20)}
    for path in bad:
        open(path, "wb").write(b"")
    for batch in data.stream(source, 8, seed=0, steps=5, workers=workers):  # all 38, and two once more
        assert batch.keys() == {"image", "label"}
    assert source.skipped == bad and collect_skipped(source, Counting()) == sorted(bad)


def test_what_was_skipped_is_said_in_a_line():
    assert describe_skipped(["a.jpg"]) == "1 file could not be read and was skipped: a.jpg"
    assert describe_skipped(list("abcd")) == "4 files could not be read and were skipped: a, b, c, ..."


def test_a_folder_is_known_by_names_and_sizes_wherever_it_lies(pets, tmp_path):
    before = Folder(pets).identity()
    copied = shutil.copytree(pets, tmp_path / "copied", copy_function=shutil.copyfile)  # new times of writing
    assert Folder(copied).identity() == before != Folder(copied, "val").identity()
    assert Folder(copied).fingerprint() != Folder(pets).fingerprint()
    path = names(Folder(copied))[7]
    paint(copied / path, "red", size=(90, 90))
    assert Folder(copied).identity() != before
    os.remove(path)
    os.symlink(tmp_path / "nowhere", path)  # like a corrupt one no reason to stop
    broken = Folder(copied).identity()
    assert broken != before
    os.remove(path)
    assert Folder(copied).identity() not in (before, broken)


@pytest.mark.filterwarnings("ignore:passed over")
def test_other_captions_make_other_data(album):
    before = Folder(album, captions=True).identity()
    (album / "00.txt").write_text("longer than it was, and in other words")
    assert Folder(album, captions=True).identity() != before


def test_folders_that_cannot_be_used_say_why(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a folder; expected .*CLASS"):
        Folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no pictures in class folders.*expected .*CLASS"):
        Folder(tmp_path)
    paint(tmp_path / "loose.png", "red")
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="no pictures in class folders.*expected .*CLASS"):
        Folder(tmp_path)
    for i in range(3):
        (tmp_path / "a" / f"{i}.jpg").write_text("nonsense")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=f"{tmp_path}: none of the 2 pictures"):
        Folder(tmp_path)
    with pytest.raises(ValueError, match="'test'.*train, val"):
        Folder(tmp_path, "test")


# Pictures from outside


@pytest.fixture
def album(tmp_path):
    """Twelve pictures without class folders, ten of them with captions: one empty, one not UTF-8."""
    for i in range(12):
        paint(tmp_path / "album" / ("a" if i % 2 else "") / f"{i:02}.png", (100 + i, 0, 0))
        if i < 10:
            file = tmp_path / "album" / ("a" if i % 2 else "") / f"{i:02}.txt"
            file.write_text(f"number {i}\n in words \u00e9\n", encoding="utf-8")
    (tmp_path / "album" / "04.txt").write_text(" \n")
    (tmp_path / "album" / "a" / "07.txt").write_bytes(b"caf\xe9")
    return tmp_path / "album"


def test_a_folder_with_captions_needs_no_classes(album):
    with pytest.warns(UserWarning, match="passed over 2 of 12 pictures in .*: they have no caption"):
        parts = [data.load("folder", split, folder=album, captions=True) for split in ("train", "val")]
    assert [len(part) for part in parts] == [9, 1] and parts[0].classes == []
    seen = {}
    for part in parts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            batch = part.read(range(len(part)))
        assert not batch["label"].any()
        seen |= dict(zip(batch["image"][:, 0, 0, 0].tolist(), batch["caption"], strict=True))
    assert {shade: caption for shade, caption in seen.items() if shade - 100 not in (4, 7)} == seen
    assert all(caption == f"number {shade - 100} in words \u00e9" for shade, caption in seen.items())


def test_a_caption_that_cannot_be_read_is_named_once_skipped_and_counted(album):
    with pytest.warns(UserWarning) as said:
        source = data.load("folder", "train", folder=album, captions=True)
        first = source.read(range(len(source)))
    bad = {str(album / "04.png"), str(album / "a" / "07.png")} & set(names(source))
    assert source.skipped == bad and bad
    messages = [str(w.message) for w in said if str(w.message).startswith("skipped")]
    assert len(messages) == len(bad)
    assert all("its caption is empty" in m or "its caption is not UTF-8" in m for m in messages)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = source.read(range(len(source)))
    assert again["caption"] == first["caption"] == source.captions(range(len(source)))
    for caption, shade in zip(again["caption"], again["image"][:, 0, 0, 0].tolist(), strict=True):
        assert caption.startswith(f"number {shade - 100} ")  # a stand-in brings its own caption


def test_a_folder_without_captions_says_what_is_expected(pets):
    with pytest.raises(
        ValueError, match="no pictures with captions to use for train; expected pictures with"
    ):
        with pytest.warns(UserWarning, match="passed over 40 of 40"):
            data.load("folder", folder=pets, captions=True)


def test_exif_orientation_is_applied(tmp_path):
    picture = Image.new("RGB", (60, 30), "blue")
    picture.paste("red", (0, 0, 30, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise: the left half comes to the top
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    seen = open_rgb(tmp_path / "turned.jpg")
    assert seen.size == (30, 60)
    assert seen.getpixel((15, 10))[0] > 200 and seen.getpixel((15, 50))[2] > 200


def png(rows: list[list[int]], bits: int, colour: int, transparent: tuple[int, ...]) -> bytes:
    """A PNG by hand: of grays (colour 0) or RGB (colour 2), with one colour that is transparent."""

    def chunk(kind: bytes, held: bytes) -> bytes:
        return struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))

    lines = ["".join(f"{value:0{bits}b}" for value in row) for row in rows]
    packed = [
        b"\0" + int(line.ljust(-(-len(line) // 8) * 8, "0"), 2).to_bytes(-(-len(line) // 8)) for line in lines
    ]
    width = len(rows[0]) // (3 if colour == 2 else 1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0))
        + chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
        + chunk(b"IDAT", zlib.compress(b"".join(packed)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("bits", "colour", "row", "transparent", "seen"),
    [
        (1, 0, [0, 1, 0], (0,), [255, 255, 255]),
        (2, 0, [0, 1, 2], (1,), [0, 255, 170]),
        (4, 0, [0, 1, 2], (2,), [0, 17, 255]),
        (8, 0, [0, 17, 34], (17,), [0, 255, 34]),
        (16, 0, [0, 25600, 25700], (25700,), [0, 100, 255]),
        (8, 2, [0, 0, 0, 100, 0, 0], (100, 0, 0), [0, 255]),
        (16, 2, [0, 0, 0, 25600, 0, 0], (25600, 0, 0), [0, 255]),
    ],
)
def test_a_transparent_colour_becomes_white_at_every_depth(bits, colour, row, transparent, seen):
    picture = np.asarray(open_rgb(io.BytesIO(png([row], bits, colour, transparent))))
    assert picture[0, :, 0].tolist() == seen


def test_transparency_becomes_white(tmp_path):
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("LA", (8, 8), (0, 128)).save(tmp_path / "half.png")
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png", transparency=1)
    assert open_rgb(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    assert open_rgb(tmp_path / "half.png").getpixel((0, 0)) == pytest.approx((127, 127, 127), abs=1)
    assert open_rgb(tmp_path / "palette.png").getpixel((0, 0)) == (255, 255, 255)


def test_gray_sixteen_bit_and_cmyk_become_rgb(tmp_path):
    Image.new("L", (8, 8), 90).save(tmp_path / "gray.png")
    Image.fromarray(np.full((8, 8), 128 * 257, np.uint16)).save(tmp_path / "deep.png")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=95)
    assert open_rgb(tmp_path / "gray.png").getpixel((0, 0)) == (90, 90, 90)
    assert open_rgb(tmp_path / "deep.png").getpixel((0, 0)) == (128, 128, 128)
    red, green, blue = open_rgb(tmp_path / "print.jpg").getpixel((0, 0))
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize(
    ("name", "stored", "seen"),
    [
        ("float.tif", np.full((8, 8), 0.5, np.float32), 128),
        ("float255.tif", np.full((8, 8), 128.2, np.float32), 128),
        ("deep.pgm", np.full((8, 8), 128 * 257, np.uint16), 128),
        ("deep.tif", np.full((8, 8), 128 * 257, np.uint16), 128),
        ("below.tif", np.full((8, 8), -0.5, np.float32), "lie in -0.5 to -0.5"),
        ("above.tif", np.full((8, 8), 700, np.float32), "lie in 700.0 to 700.0"),
        ("nan.tif", np.full((8, 8), np.nan, np.float32), "lie in nan to nan"),
        ("int.tif", np.full((8, 8), 128, np.int32), "32-bit integers of unknown range"),
    ],
)
def test_deep_grays_are_scaled_from_their_range_or_refused(tmp_path, name, stored, seen):
    Image.fromarray(stored).save(tmp_path / name)
    if isinstance(seen, int):
        assert open_rgb(tmp_path / name).getpixel((0, 0)) == (seen, seen, seen)
    else:
        with pytest.raises(UnreadableImage, match=f"{name}.*{seen}.*save it with 8 or 16 bits"):
            open_rgb(tmp_path / name)


def test_a_large_photo_may_be_decoded_smaller_but_not_too_small(tmp_path):
    Image.effect_noise((1600, 1200), 50).convert("RGB").save(tmp_path / "photo.jpg")
    assert open_rgb(tmp_path / "photo.jpg").size == (1600, 1200)
    assert open_rgb(tmp_path / "photo.jpg", at_least=64).size == (200, 150)
    assert crop_and_resize(open_rgb(tmp_path / "photo.jpg"), 64).shape == (3, 64, 64)


def test_a_very_long_picture_is_fitted():
    assert crop_and_resize(Image.new("RGB", (30_000, 1), "red"), 64).shape == (3, 64, 64)


def test_what_is_no_picture_says_so(tmp_path):
    (tmp_path / "words.png").write_text("words")
    with pytest.raises(UnreadableImage, match="words.png"):
        open_rgb(tmp_path / "words.png")


# load


def test_load_names_what_there_is():
    assert len(data.load("shapes", "val").classes) == 24
    assert not equal(data.load("shapes", seed=0).read([0]), data.load("shapes", seed=1).read([0]))
    with pytest.raises(ValueError, match="'cifar'.*shapes, digits, photos, folder"):
        data.load("cifar")
    with pytest.raises(ValueError, match="needs the path"):
        data.load("folder")


def test_what_is_special_about_a_source_is_in_the_table():
    assert list(data.SOURCES) == [
        "shapes",
        "digits",
        "photos",
        "folder",
        "shards",
    ]  # the order of the command line
    assert all(kind.name == name for name, kind in data.SOURCES.items())

    def having(trait: str) -> list[str]:
        return [name for name in data.SOURCES if getattr(data.find_source(name), trait)]

    assert having("on_disk") == having("place") == ["folder", "shards"]
    assert having("has_captions") == ["shapes", "photos", "folder", "shards"]
    assert having("trainable") == ["shapes", "digits", "folder", "shards"]
    assert having("has_combinations") == having("has_seeds") == having("embedded") == ["shapes"]
    with pytest.raises(ValueError, match="'cifar'; choose one of shapes, digits, photos, folder, shards"):
        data.find_source("cifar")


def test_a_source_is_a_class_and_a_line_in_the_table(monkeypatch, tmp_path):
    class Mine(ListedSource):
        name, on_disk, place, has_seeds = "mine", True, "a heap of pictures", True

        def __init__(self, **options) -> None:
            self.options = options

    monkeypatch.setitem(data.SOURCES, "mine", Mine)
    expected = {"split": "val", "image_size": 32, "folder": tmp_path, "seed": 4}
    assert data.load("mine", "val", 32, tmp_path, 4).options == expected
    with pytest.raises(ValueError, match="'mine' needs the path of a heap of pictures"):
        data.load("mine")
    with pytest.raises(ValueError, match="'mine' has no captions; choose shapes, photos, folder or shards"):
        data.load("mine", folder=tmp_path, captions=True)
    with pytest.raises(ValueError, match="combinations 'seen' are of the source 'shapes'; mine has all"):
        data.load("mine", folder=tmp_path, combinations="seen")


def test_sources_say_what_they_can_do(pets):
    parts = {
        Shapes("val"): {Captioned},
        data.Digits("val"): {Fingerprinted},
        Folder(pets): {Fingerprinted, Captioned, OnDisk, Skipping},
        Counting(): set(),
    }
    for source, able in parts.items():
        kinds = (Ordered, Fingerprinted, Captioned, OnDisk, Skipping)
        assert {kind for kind in kinds if isinstance(source, kind)} == able, source.name
    with pytest.raises(ValueError, match="'digits' has no captions"):
        prompts.SourceCaptions(Words(), data.Digits("val"))


def test_to_float_spans_the_models_range_and_to_uint8_is_its_inverse():
    levels = torch.arange(256).to(torch.uint8)
    assert data.to_float(levels)[[0, 255]].tolist() == [-1.0, 1.0]
    assert torch.equal(data.to_uint8(data.to_float(levels)), levels)
    assert data.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


@pytest.mark.parametrize("kind", ["jpeg", "mpo"])
def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded(kind, tmp_path):
    usual = hostile.jpeg_of_scans(tmp_path / "usual.jpg", 24, kind)
    assert open_rgb(usual).size == (64, 64)
    with pytest.raises(UnreadableImage, match="it has 4,000 scans, at most 64 are decoded"):
        open_rgb(hostile.jpeg_of_scans(tmp_path / "slow.jpg", 4000, kind))


@pytest.mark.parametrize("kind", ["eps", "pcx"])
def test_a_format_that_is_not_on_the_list_is_not_read_under_another_name(kind, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", kind)
    with pytest.raises(UnreadableImage, match="x.png: .*cannot identify"):
        open_rgb(tmp_path / "x.png")


@pytest.mark.parametrize("make", [hostile.pipe, lambda path: path.mkdir() or path])
def test_a_picture_s_name_of_a_pipe_or_a_folder_is_refused(make, tmp_path):
    path = make(tmp_path / "x.png")
    with pytest.raises(UnreadableImage, match=f"{path}: it is a folder, a pipe or a device"):
        open_rgb(path)


def test_links_back_and_pipes_add_nothing_to_a_folder(tmp_path):
    folder = hostile.folder_in_itself(tmp_path / "set")
    for name in "ab":
        for number in range(3):
            path = folder / name / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    hostile.pipe(folder / "a" / "pipe.png")
    (folder / "b" / "again").symlink_to(folder / "a")  # a link that is no way back
    train, val = (data.load("folder", split, 32, folder) for split in ("train", "val"))
    assert train.classes == ["a", "b"] and len(train) + len(val) == 9
    assert open_reference(folder, 32).count == 9
    assert len(pictures_of_folder(folder)) == 9
