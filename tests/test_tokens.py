"""Tokens encoded ahead: equal to those encoded on the fly, made once, and made anew when they must be."""

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator
from PIL import Image

from gear_studio import Run, data, locks
from gear_studio.data import tokens
from gear_studio.data.folder import Folder
from gear_studio.data.tokens import EncodedSource, encode, view_rng
from gear_studio.models.tokenizer import Tokenizer
from gear_studio.training import loop
from gear_studio.training.request import Training

VIEWS = 3
HELD = [locks.LOCK, "labels.npy", "tokens.json", "tokens.npy"]  # by a folder of tokens


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of 23 pictures of noise to train on, in two classes."""
    dice = np.random.default_rng(0)
    for i in range(23):
        path = tmp_path / "pictures" / "train" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 255, size=(40, 60, 3), dtype=np.uint8)).save(path)
    for name in "ab":
        path = tmp_path / "pictures" / "val" / name / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (40, 40), "red").save(path)
    return tmp_path / "pictures"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch) -> None:
    """Two pictures a batch, two batches a block: six blocks, the last one smaller."""
    monkeypatch.setattr(tokens, "_BATCH", 2 * VIEWS)
    monkeypatch.setattr(tokens, "_BLOCK", 2)


def new_tokenizer(seed: int = 0, **changes) -> Tokenizer:
    torch.manual_seed(seed)
    return Tokenizer(replace(tiny.TOKENIZER, **changes)).eval()


def source(folder: Path) -> Folder:
    return Folder(folder, image_size=32)


def encoded_by(tokenizer: Tokenizer, of: data.Source, folder: Path, views: int = VIEWS, **options) -> int:
    """Fill `folder`; how many views the tokenizer was shown."""
    shown = 0
    real = tokenizer.assign

    def spy(images):
        nonlocal shown
        shown += len(images)
        return real(images)

    tokenizer.assign = spy
    try:
        encode(of, tokenizer, views, folder, Accelerator(cpu=True), progress=False, **options)
    finally:
        del tokenizer.assign
    return shown


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_tokens_are_those_of_the_same_view_encoded_on_the_fly(pictures, tmp_path):
    tokenizer, of = new_tokenizer(), source(pictures)
    assert encoded_by(tokenizer, of, tmp_path / "kept") == 23 * VIEWS
    kept = EncodedSource(of, tmp_path / "kept", pixels=True)
    stored = np.load(tmp_path / "kept" / "tokens.npy")
    assert stored.shape == (23, VIEWS, 16) and stored.dtype == np.uint16 and len(kept) == 23
    batch = kept.read(range(23), [np.random.default_rng(i) for i in range(23)])
    with torch.no_grad():
        again = tokenizer.assign(data.to_float(batch["image"])).indices
    assert torch.equal(batch["tokens"], again) and batch["tokens"].dtype == torch.int64
    assert torch.equal(batch["label"], of.read(range(23))["label"])
    chosen = [int(np.random.default_rng(i).integers(VIEWS)) for i in range(23)]
    assert set(chosen) == set(range(VIEWS))
    views = of.read(range(23), [view_rng(i, v) for i, v in enumerate(chosen)])
    assert torch.equal(batch["image"], views["image"])
    with pytest.raises(ValueError, match="only training views of folder are encoded"):
        kept.read([0])
    assert len({stored[0, v].tobytes() for v in range(VIEWS)}) == VIEWS  # and the views are different ones


def test_without_pixels_no_picture_is_opened(pictures, tmp_path, monkeypatch):
    of = source(pictures)
    encoded_by(new_tokenizer(), of, tmp_path / "kept")
    rngs = [[np.random.default_rng(i) for i in range(9)] for _ in range(2)]
    expected = EncodedSource(of, tmp_path / "kept", pixels=True).read(range(9), rngs[0])
    monkeypatch.setattr(of, "read", None)
    batch = EncodedSource(of, tmp_path / "kept", pixels=False).read(range(9), rngs[1])
    assert equal(batch, {key: expected[key] for key in ("tokens", "label")})


def test_encoded_pictures_are_streamed_as_exactly_as_any(pictures, tmp_path):
    of = source(pictures)
    encoded_by(new_tokenizer(), of, tmp_path / "kept")
    kept = EncodedSource(of, tmp_path / "kept", pixels=True)
    whole = list(data.stream(kept, 6, seed=2, steps=8))  # two epochs
    rest = data.stream(EncodedSource(of, tmp_path / "kept", True), 6, seed=2, start=3, steps=5, workers=2)
    assert all(equal(a, b) for a, b in zip(whole[3:], rest, strict=True))
    parts = [data.stream(kept, 6, seed=2, steps=8, process=r, processes=2) for r in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert equal(batch, {key: torch.cat([share[key] for share in shares]) for key in batch})


def test_of_two_trainings_that_want_the_same_tokens_one_makes_them(pictures, tmp_path, monkeypatch):
    folder, began, go_on = tmp_path / "kept", threading.Event(), threading.Event()
    merged = []

    def merge(*arguments):
        began.set()
        assert go_on.wait(60)
        merged.append(really_merge(*arguments))

    def train() -> int:
        return encoded_by(new_tokenizer(), source(pictures), folder)

    really_merge = tokens._merge
    monkeypatch.setattr(tokens, "_merge", merge)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(train)
        assert began.wait(60)
        second = pool.submit(train)
        assert not wait([second], 0.5).done  # not beside the first
        go_on.set()
        assert (first.result(60), second.result(60)) == (23 * VIEWS, 0) and len(merged) == 1


def test_they_are_made_once_and_anew_when_anything_changes(pictures, tmp_path):
    kept, of = tmp_path / "kept", source(pictures)
    tokenizer = new_tokenizer()
    all_views = 23 * VIEWS
    assert encoded_by(tokenizer, of, kept) == all_views
    assert encoded_by(new_tokenizer(), source(pictures), kept) == 0  # another object, the same weights
    before = np.load(kept / "tokens.npy")

    with torch.no_grad():
        tokenizer.to_code.weight.mul_(-1)
    assert encoded_by(tokenizer, of, kept) == all_views and encoded_by(tokenizer, of, kept) == 0
    assert not np.array_equal(np.load(kept / "tokens.npy"), before)

    assert encoded_by(tokenizer, of, kept, views=1) == 23
    assert EncodedSource(of, kept, False).read([0], [np.random.default_rng(0)])["tokens"].shape == (1, 16)
    assert encoded_by(tokenizer, of, kept) == all_views
    before = np.load(kept / "tokens.npy")

    Image.new("RGB", (40, 60), "blue").save(pictures / "train" / "a" / "00.png")
    assert encoded_by(tokenizer, source(pictures), kept) == all_views
    changed = (np.load(kept / "tokens.npy") != before).any(axis=(1, 2))
    assert changed.tolist() == [True] + [False] * 22

    (pictures / "train" / "b" / "01.png").unlink()
    assert encoded_by(tokenizer, source(pictures), kept) == 22 * VIEWS
    assert len(EncodedSource(source(pictures), kept, False)) == 22
    assert sorted(path.name for path in kept.iterdir()) == HELD


def test_killed_while_encoding_it_goes_on(pictures, tmp_path, monkeypatch):
    of, tokenizer = source(pictures), new_tokenizer()
    encoded_by(tokenizer, of, tmp_path / "whole")
    (tmp_path / "kept" / "unfinished-of-another").mkdir(parents=True)
    real, calls = tokens._encode, 0

    def fails(*arguments):
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(tokens, "_encode", fails)
    with pytest.raises(KeyboardInterrupt):
        encoded_by(tokenizer, of, tmp_path / "kept")
    assert not (tmp_path / "kept" / "tokens.json").exists()
    monkeypatch.setattr(tokens, "_encode", real)
    assert (
        encoded_by(tokenizer, of, tmp_path / "kept", workers=2) == (23 - 8) * VIEWS
    )  # two blocks were whole
    for name in ("tokens.npy", "labels.npy"):
        one, other = (np.load(tmp_path / folder / name) for folder in ("whole", "kept"))
        assert np.array_equal(one, other)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == HELD


def test_a_merge_that_is_killed_does_not_leave_old_tokens_in_use(pictures, tmp_path, monkeypatch):
    of = source(pictures)
    encoded_by(new_tokenizer(), of, tmp_path / "kept")

    def fails(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(tokens, "write_json", fails)
    with pytest.raises(KeyboardInterrupt):
        encoded_by(new_tokenizer(1), of, tmp_path / "kept")
    monkeypatch.undo()
    monkeypatch.setattr(tokens, "_BATCH", 2 * VIEWS)
    assert encoded_by(new_tokenizer(), of, tmp_path / "kept") > 0  # what lies there is the other one's


@pytest.mark.filterwarnings("ignore:skipped")
def test_an_unreadable_picture_is_stood_in_for_with_its_label(pictures, tmp_path):
    (pictures / "train" / "a" / "22.png").write_bytes(b"")  # the last of its class
    of, tokenizer = source(pictures), new_tokenizer()
    last = of._labels.tolist().index(1) - 1
    encoded_by(tokenizer, of, tmp_path / "kept")
    with_pixels = EncodedSource(of, tmp_path / "kept", True).read([last], [np.random.default_rng(0)])
    assert with_pixels["label"].tolist() == of.read([last])["label"].tolist() == [1]
    with torch.no_grad():
        assert torch.equal(
            with_pixels["tokens"], tokenizer.assign(data.to_float(with_pixels["image"])).indices
        )


def test_a_large_codebook_is_kept_in_four_bytes(pictures, tmp_path):
    tokenizer = new_tokenizer(codes=2**16 + 1)
    encoded_by(tokenizer, source(pictures), tmp_path / "kept", views=1)
    assert np.load(tmp_path / "kept" / "tokens.npy").dtype == np.int32


def test_what_cannot_be_encoded_ahead_says_so(teacher_folder, tmp_path):
    with pytest.raises(ValueError, match="shapes has no end of new pictures.*token_views=0"):
        encode(data.load("shapes"), new_tokenizer(), 2, tmp_path, Accelerator(cpu=True))
    with pytest.raises(ValueError, match="token_views=2: stage warmup trains the tokenizer"):
        loop.train(Training("digits", "warmup", "warmup", tiny.recipe(teacher_folder, token_views=2)))


# In training


def train(folder: Path, teacher: Path, pictures: Path, name: str, **changes) -> Run:
    steady = replace(tiny.GENERATOR, dropout=0.0, label_drop=0.0)
    stage = "warmup" if name == "warmup" else "generator"
    recipe = tiny.recipe(teacher, steps=6, log_every=1, checkpoint_every=3, generator=steady, **changes)
    arm, parent = ("warmup", None) if stage == "warmup" else ("baseline", folder / "warmup")
    training = Training("folder", stage, arm, recipe, out=folder / name, parent=parent, folder=pictures)
    return loop.train(training, progress=False)


def train_together(rank: int, *arguments) -> None:
    tokens._BATCH, tokens._BLOCK = 2 * VIEWS, 2
    for name, weight in (("aligned-by-two", 0.5), ("free-by-two", 0.0)):
        train(*arguments, name, token_views=VIEWS, alignment_weight=weight)


@pytest.mark.slow
def test_training_on_kept_tokens_alone_and_together(pictures, tmp_path, teacher_folder):
    train(tmp_path, teacher_folder, pictures, "warmup")
    tiny.in_two(train_together, tmp_path, teacher_folder, pictures)
    kept = tmp_path / "warmup" / "tokens" / f"folder-{VIEWS}"
    together = np.load(kept / "tokens.npy")
    tokenizer = Run.from_pretrained(tmp_path / "warmup").tokenizer
    encoded_by(tokenizer, source(pictures), tmp_path / "alone")
    assert np.array_equal(together, np.load(tmp_path / "alone" / "tokens.npy"))

    tokens_of = kept / "tokens.npy"
    written = tokens_of.stat().st_mtime_ns
    for name, weight in (("aligned", 0.5), ("free", 0.0)):
        one = train(
            tmp_path, teacher_folder, pictures, name, token_views=VIEWS, alignment_weight=weight
        ).metrics
        two = Run.from_pretrained(tmp_path / f"{name}-by-two").metrics
        assert len(one) == len(two) == 6
        assert all(("alignment_hard" in row) == (name == "aligned") for row in one + two)
        for here, there in zip(one, two, strict=True):
            assert there["ntp"] == pytest.approx(here["ntp"], abs=1e-4)
            assert there["generator"] == pytest.approx(here["generator"], abs=1e-4)
    assert tokens_of.stat().st_mtime_ns == written  # made by the two, used by the one
    assert one[-1]["ntp"] < one[0]["ntp"]
    with pytest.raises(ValueError, match="token_views is 3, asked for 0"):
        train(tmp_path, teacher_folder, pictures, "aligned")
