"""The pictures looked at, and what is computed of each: once, by whoever asks first."""

import json
import shutil
import threading
import time

import pytest
import tiny
import torch
from PIL import Image

from gear_studio import Run, data, readout
from gear_studio.analysis import codes, features
from gear_studio.analysis.probes import linear_probe
from gear_studio.analysis.reconstruction import EXACT, psnr
from gear_studio.analysis.similarity import cka
from gear_studio.analysis.spatial import high_frequency_ratio, morans_i, white_ratio
from gear_studio.data.upload import UploadError
from gear_studio.looking.by_block import HIGH, MORAN, TOKENIZER, grow_by_block
from gear_studio.looking.likeness import compare
from gear_studio.looking.pictures import (
    Picture,
    Upload,
    pictures_of,
    pictures_of_folder,
    pictures_of_source,
)
from gear_studio.looking.view import Kept, View, count_bytes
from gear_studio.models.tokenizer import Tokenizer
from gear_studio.places import ZOO


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """An imported Run, a tokenizer of 32 px and a generator, with random weights."""
    return make_run(tmp_path_factory.mktemp("runs") / "tiny")


def make_run(folder, **changes) -> Run:
    torch.manual_seed(0)
    Tokenizer(tiny.TOKENIZER).save_pretrained(folder / "tokenizer")
    tiny.generator().save_pretrained(folder / "generator")
    classes = [str(number) for number in range(10)]
    config = {"stage": "imported", "arm": "imported", "source": "folder", "classes": classes, "recipe": {}}
    (folder / "config.json").write_text(json.dumps(config | {"parent": None} | changes))
    return Run(folder)


# Pictures


@pytest.mark.parametrize("name", ["shapes", "digits", "photos"])
def test_pictures_of_a_source_are_those_it_holds_out(name):
    pictures, source = pictures_of_source(name), data.load(name, "val", 32)
    assert 0 < len(pictures) <= 1000 and pictures.key == (name,)
    batch = source.read([3])
    assert torch.equal(pictures.tensor(3, 32), data.to_float(batch["image"]))
    if name == "photos":
        assert pictures.label(3) is None and pictures.class_names == []
        assert pictures.caption(3) == "Photo 3: an orange dahlia (vultilion, CC BY 2.0)."
    else:
        assert pictures.label(3) == int(batch["label"][0]) and pictures.class_names == source.classes
        assert "3" in pictures.caption(3)


def test_only_a_source_with_the_same_classes_has_a_class_for_a_model():
    digit = Picture(pictures_of_source("digits"), 5)
    assert digit.class_number([str(n) for n in range(10)]) == digit.pictures.label(5)
    assert digit.class_number(["0"]) is None
    assert Picture(pictures_of_source("photos")).class_number(["photograph"]) is None


def test_any_folder_is_looked_at_and_damaged_files_are_passed_over_and_counted(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for file, color in (("a.png", "red"), ("deep/er/c.jpg", "blue")):
        Image.new("RGB", (40, 30), color).save(tmp_path / file)
    (tmp_path / "b.png").write_text("no picture")
    (tmp_path / "words.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_text("no picture")
    pictures = pictures_of_folder(tmp_path)
    assert len(pictures) == 3 and pictures.class_names == [] and pictures.passed_over == 0
    with pytest.warns(UserWarning, match="b.png"):
        shown = pictures.tensor(1, 16)
    torch.testing.assert_close(shown, pictures.tensor(2, 16))  # stands in for it
    assert shown.shape == (1, 3, 16, 16) and shown[0, 2].min() > 0.9 and shown[0, 0].max() < -0.9
    assert pictures.passed_over == 1
    assert pictures.caption(1) == f"Picture 1 of {tmp_path.name}: deep/er/c.jpg."
    assert pictures.tensor(0, 8).shape == (1, 3, 8, 8) and pictures.passed_over == 1


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a folder"):
        pictures_of_folder(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no picture files"):
        pictures_of_folder(tmp_path)
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match="none of the 1"), pytest.warns(UserWarning):
        pictures_of_folder(tmp_path)


def test_an_upload_is_one_picture_and_equal_files_have_equal_keys(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "mine.png")
    upload, again = (Upload(tmp_path / "mine.png", 32) for _ in range(2))
    assert len(upload) == 1 and upload.key == again.key and upload.label(0) is None
    assert upload.tensor(0, 16).shape == (1, 3, 16, 16) and "mine.png" in upload.caption(0)
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "mine.png")
    assert Upload(tmp_path / "mine.png", 32).key != upload.key
    (tmp_path / "mine.png").write_text("no picture")
    with pytest.raises(UploadError, match="not a picture"):
        Upload(tmp_path / "mine.png", 32)


def test_some_pictures_are_the_first_of_the_world_and_drawn_of_a_folder():
    world, digits = pictures_of_source("shapes"), pictures_of_source("digits")
    source = data.load("shapes", "val", 32)
    assert torch.equal(world.some(32, 4).read(range(4))["image"], source.read(range(4))["image"])
    drawn = digits.some(16, 20)
    assert len(drawn) == 20 and len(digits.some(16, 10**6)) == len(digits)
    assert not torch.equal(drawn.read(range(20))["image"], digits.source(16).read(range(20))["image"])


def test_a_run_starts_with_what_it_was_trained_on_where_that_is_at_hand(tmp_path):
    tiny.pngs(tmp_path / "mine", {"train": 4, "val": 2})
    own = {"stage": "warmup", "pictures": {"folder": str(tmp_path / "mine"), "sha256": "0"}}
    trained = make_run(tmp_path / "trained", **own)
    assert pictures_of(trained).key == ("folder", str(tmp_path / "mine")) and len(pictures_of(trained)) == 2
    shutil.rmtree(tmp_path / "mine")
    assert pictures_of(trained).key == ("photos",)
    assert pictures_of(make_run(tmp_path / "older", stage="warmup")).key == ("photos",)
    assert pictures_of(make_run(tmp_path / "imported")).key == ("photos",)
    assert pictures_of(Run(ZOO / "gear")).key == ("shapes",)


# Views


def test_a_view_is_what_the_models_say(run: Run):
    view = View(Kept(), run, Picture(pictures_of_source("digits"), 2))
    tokenizer, image = run.tokenizer, view.picture.tensor(32)
    expected = tokenizer.assign(image)
    assert torch.equal(view.image, image) and torch.equal(view.indices, expected.indices[0])
    assert torch.equal(view.assignment.scores, expected.scores)
    assert torch.equal(view.z, features.tokenizer_features(tokenizer, image)[0])
    assert torch.equal(view.c_q, features.tokenizer_features(tokenizer, image, quantized=True)[0])
    rebuilt = tokenizer.decode(expected.indices)
    assert torch.equal(view.reconstruction, rebuilt[0])
    assert view.psnr == pytest.approx(float(psnr(rebuilt.detach(), image)))
    assert torch.equal(view.entropy(0.3), codes.token_entropy(expected.scores[0], 0.3))
    label = torch.tensor([view.picture.pictures.label(2)])
    (state,) = features.generator_features(run.generator, expected.indices, [2], label)
    assert torch.equal(view.condition(), label) and torch.equal(view.hidden(2), state[0])
    teacher = tiny.teacher()
    assert torch.equal(view.teacher_features("tiny", teacher), teacher(image)[0])
    assert not view.image.requires_grad and not view.reconstruction.requires_grad


def test_an_exact_reconstruction_has_a_psnr(run: Run, monkeypatch):
    view = View(Kept(), run, Picture(pictures_of_source("photos"), 1))
    monkeypatch.setattr(run.tokenizer, "decode", lambda _: view.image)
    assert view.psnr == EXACT


def test_a_click_decodes_only_what_changed(run: Run, monkeypatch):
    kept, decoded, encoded = Kept(), [], []
    decode, encode = run.tokenizer.decode, run.tokenizer.encode
    monkeypatch.setattr(run.tokenizer, "decode", lambda x: decoded.append(x) or decode(x))
    monkeypatch.setattr(run.tokenizer, "encode", lambda x: encoded.append(x) or encode(x))

    def look(edits):
        view = View(kept, run, Picture(pictures_of_source("digits"), 2))  # a new one at each click
        view.entropy(0.1), view.c_q, view.reconstruction
        return view.decode(edits)

    rebuilt = look({})
    code = (int(View(kept, run, Picture(pictures_of_source("digits"), 2)).indices[3]) + 1) % 64
    other = look({3: code})
    assert (len(encoded), len(decoded)) == (1, 2) and not torch.equal(rebuilt, other)
    assert look({3: code}) is other and look({}) is rebuilt
    assert look({3: (code - 1) % 64}) is rebuilt  # the code it has anyway
    assert (len(encoded), len(decoded)) == (1, 2)
    with pytest.raises(ValueError, match="code 64"):
        look({3: 64})


def test_only_large_tokenizers_take_every_core_and_it_is_known_how_long_they_took(run: Run, monkeypatch):
    threads, decode = [], run.tokenizer.decode
    monkeypatch.setattr(
        run.tokenizer, "decode", lambda x: threads.append(torch.get_num_threads()) or decode(x)
    )
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    before = torch.get_num_threads()
    for smallest in (32, 31):
        monkeypatch.setattr("gear_studio.looking.view.SMALL", smallest)
        view = View(Kept(), run, Picture(pictures_of_source("digits"), 2))
        assert view.seconds("decoded") is None
        view.decode({3: 1})
        assert 0 < view.seconds("decoded") < 60 and torch.get_num_threads() == before
    assert threads == [before, 3]


def test_views_of_other_pictures_and_runs_are_apart(run: Run, tmp_path):
    kept, other = Kept(), make_run(tmp_path / "other")
    digits, photos = pictures_of_source("digits"), pictures_of_source("photos")
    keys = [View(kept, r, Picture(p, i)).key for r in (run, other) for p in (digits, photos) for i in (0, 1)]
    assert len(set(keys)) == 8
    assert View(kept, run, Picture(pictures_of_source("digits"), 1)).key == keys[1]


# Kept


def test_the_first_to_ask_computes_and_others_wait_for_that_key_only():
    kept, going, let_go, computed = Kept(), threading.Event(), threading.Event(), []

    def slow():
        computed.append(1)
        going.set()
        assert let_go.wait(20)
        return "slow"

    answers = []
    threads = [threading.Thread(target=lambda: answers.append(kept.get("a", slow))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert going.wait(20)
    assert kept.get("b", lambda: "quick") == "quick" and "b" in kept and "a" not in kept
    time.sleep(0.05)
    assert answers == []
    let_go.set()
    for thread in threads:
        thread.join(20)
    assert answers == ["slow"] * 4 and computed == [1]


def test_failures_reach_all_who_wait_and_are_not_kept():
    kept = Kept()

    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        kept.get("a", fail)
    assert "a" not in kept and kept.get("a", lambda: 3) == 3


def test_what_was_used_longest_ago_leaves():
    kept, made = Kept(limit=1000), []

    def ask(name: str, count: int = 100):
        return kept.get(name, lambda: made.append(name) or torch.zeros(count))  # 4 bytes each

    for name in ("a", "b", "a", "c", "a", "b"):
        ask(name)
    assert made == ["a", "b", "c", "b"] and kept.bytes == 800
    assert ask("large", 1000).numel() == 1000 and kept.bytes <= 1000


def test_bytes_are_counted_inside_of_what_is_kept():
    assignment = readout.Assignment(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64))
    assert count_bytes((assignment, torch.zeros(5).numpy())) == 24 + 16 + 20


def test_a_measure_that_cannot_be_taken_says_why_beside_the_others():
    torch.manual_seed(0)
    tokenizer = Tokenizer(tiny.TOKENIZER).eval()
    tokenizer.quantizer.codebook.data[1:] = tokenizer.quantizer.codebook.data[0]  # c_q is constant
    pictures = pictures_of_source("digits").some(tokenizer.config.image_size, 12)
    found = compare(tokenizer, tiny.teacher(), pictures, "digits")
    assert found.protocol.startswith("12 images (digits)")
    assert found.values["z"]["CKA"].low <= found.values["z"]["CKA"].value
    assert "rows that are equal" in found.values["c_q"]["CKNNA"]


# Many pictures


def grow(run: Run, count: int = 40, pictures: str = "digits", generator: bool = True, teacher=None) -> list:
    models = run.tokenizer.eval(), run.generator if generator else None, teacher
    return list(grow_by_block(*models, pictures_of_source(pictures), count))


def test_measures_grow_and_are_those_of_the_features_themselves(run: Run):
    teacher = tiny.teacher()
    items = grow(run, teacher=teacher)
    assert [read for read, _ in items] == [16, 16, 32, 40, 40]
    assert [found.count for _, found in items] == [0, 16, 16, 16, 40]
    last = items[-1][1]
    assert all(found.patches is None for _, found in items[:-1])
    source = pictures_of_source("digits").some(32, 40).read(range(40))
    places = [*TOKENIZER, *(f"generator.{block}" for block in (1, 2, 3)), "teacher"]
    whole = features.extract([run.tokenizer, run.generator, teacher], data.to_float(source["image"]), places)
    for place in places:
        assert last.values[MORAN][place].value == pytest.approx(float(morans_i(whole[place], 4).mean()))
        high = last.values[HIGH][place]
        assert high.value == pytest.approx(float(high_frequency_ratio(whole[place], 4).mean()))
        assert high.low < high.value < high.high and high.null.mean == white_ratio(4)
    patches = last.patches  # all of them, in an order of their own
    assert len(patches) == 40 * 16 and torch.equal(patches.images, source["image"])
    assert sorted(patches.features) == sorted([*TOKENIZER, "generator.2", "teacher"])
    for place, rows in patches.features.items():
        torch.testing.assert_close(rows, whole[place][patches.picture, patches.token])
    for place in (TOKENIZER[0], "generator.2"):
        found = last.values["CKA"][place]
        assert found.value == pytest.approx(cka(patches.features[place], patches.features["teacher"]), 1e-4)
        assert found.low < found.value < found.high and abs(found.null.mean) < 0.1
    assert "40 pictures of digits; teacher" in last.protocol and "CKA of 640 patches" in last.protocol


def test_a_probe_learns_from_one_half_and_is_tested_on_the_other(run: Run):
    last = grow(run, generator=False)[-1][1]
    assert list(last.values) == [MORAN, HIGH, "probe of class"] and list(last.values[HIGH]) == [*TOKENIZER]
    source = pictures_of_source("digits").some(32, 40).read(range(40))
    z = features.tokenizer_features(run.tokenizer, data.to_float(source["image"])).mean(1)
    labels = source["label"]
    halves = [linear_probe(z[i::2], labels[i::2], z[1 - i :: 2], labels[1 - i :: 2]) for i in (0, 1)]
    found = last.values["probe of class"]["tokenizer.z"]
    assert (found.low, found.high) == (min(halves), max(halves)) and found.null.mean == 0.1
    assert found.value == pytest.approx(sum(halves) / 2)


def test_of_the_world_texture_and_shape_are_probed_patch_by_patch():
    shipped = Run(ZOO / "generator-gear")
    last = grow(shipped, 16, "shapes", generator=False, teacher=shipped.teacher)[-1][1]
    for task, chance in (("texture", 1 / 4), ("shape", 1 / 6)):
        found = last.values[f"probe of {task}"]
        assert found["teacher"].null.mean == chance < found["teacher"].low
        assert found["teacher"].value > found["tokenizer.z"].value
    assert "ties" in last.values["CKNNA"]["tokenizer.c_q"]  # equal rows: the reason stands for the value


def test_photographs_have_nothing_to_probe_and_a_constant_place_no_value(run: Run, monkeypatch):
    monkeypatch.setattr(run.tokenizer.quantizer, "codes", lambda indices: torch.ones(*indices.shape, 8))
    last = grow(run, 10, "photos", generator=False)[-1][1]
    assert list(last.values) == [MORAN, HIGH] and last.count == 10
    assert "constant" in last.values[MORAN]["tokenizer.c_q"]


def test_the_colours_of_all_blocks_are_those_of_each(run: Run):
    view = View(Kept(), run, Picture(pictures_of_source("digits"), 2))
    for block, colors in enumerate(view.block_colors(), 1):
        torch.testing.assert_close(colors, features.pca_rgb(view.hidden(block)))
    assert block == 3
