"""Kept pictures: what is kept is what would be computed, once, whoever asks; and trainings on it."""

import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator

from gear_studio import Run, data
from gear_studio.data import kept_pictures
from gear_studio.data.kept_pictures import KeptPictures
from gear_studio.data.tokens import view_rng
from gear_studio.models.teachers import Teacher
from gear_studio.models.tokenizer import Tokenizer
from gear_studio.training import loop, stages
from gear_studio.training.execution import Execution, compile_parts
from gear_studio.training.frozen_networks import keep_pictures
from gear_studio.training.request import Training
from gear_studio.training.stages import Stage

pytestmark = pytest.mark.slow  # training, or the app

COUNT = 10


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, tmp_path_factory) -> Path:
    """Three blocks, the last one smaller, in a cache of the test's own."""
    monkeypatch.setattr(kept_pictures, "BLOCK", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


class Mean:
    """A network to keep the answers of: the mean of each channel. Counts the pictures it was shown."""

    def __init__(self, sign: int = 1, fails_at: int | None = None):
        self.sign, self.fails_at, self.shown = sign, fails_at, 0

    def __call__(self, batch: dict) -> torch.Tensor:
        if self.fails_at is not None and self.shown >= self.fails_at:
            raise KeyboardInterrupt
        self.shown += len(batch["image"])
        return self.sign * batch["image"].float().mean((2, 3))


def shapes(**options) -> data.Source:
    return data.load("shapes", image_size=32, **options)


def keep(source: data.Source, compute: Mean, network: str = "mean", count: int = COUNT) -> KeptPictures:
    """The pictures with a column "means"; one more is shown to find out how large a row is."""
    pictures = KeptPictures(source, count)
    pictures.keep("means", network, compute, 2, progress=False)
    return pictures


def test_columns_are_of_the_pictures_they_stand_beside():
    pictures = keep(shapes(), Mean())
    batch = pictures.read([9, 0, 4])
    assert torch.equal(batch["image"], shapes().read([9, 0, 4])["image"])
    assert torch.equal(batch["means"], batch["image"].float().mean((2, 3)))
    pictures.keep("codes", "", lambda batch: batch["label"].to(torch.int16), 4, progress=False)
    codes = pictures.read([9, 0, 4])["codes"]
    assert torch.equal(codes, batch["label"]) and codes.dtype == torch.int64


def test_without_pixels_nothing_is_drawn_and_captions_are_still_told(monkeypatch):
    source = shapes(captions=True)
    pictures = KeptPictures(source, COUNT, captions=True, pixels=False)
    pictures.keep("means", "mean", Mean(), 2, progress=False)
    expected = source.read([3, 8])["caption"]
    monkeypatch.setattr(source, "read", lambda *_: pytest.fail("drawn"))
    batch = pictures.read([3, 8])
    assert batch["caption"] == expected and batch.keys() == {"caption", "means"}


def test_a_source_with_an_end_gives_views_of_every_picture():
    source = data.load("digits", image_size=32)
    count = 2 * len(source) + 3
    pictures = KeptPictures(source, count)
    places = [pictures._place(j) for j in range(count)]
    assert len(set(places)) == count and {view for _, view in places[-3:]} == {2}
    assert sorted(number for number, view in places if view == 1) == list(range(len(source)))
    some = [0, len(source), count - 1]
    views = source.read([places[j][0] for j in some], [view_rng(*places[j]) for j in some])
    assert torch.equal(pictures.read(some)["image"], views["image"])
    assert torch.equal(pictures.read(some, [np.random.default_rng(5)] * 3)["image"], views["image"])


def test_what_was_computed_is_found_by_all_who_ask_for_the_same():
    first, again, other, seen, more = (Mean() for _ in range(5))
    means = keep(shapes(), first).read(range(COUNT))["means"]
    assert first.shown == COUNT + 1
    assert torch.equal(keep(shapes(), again).read(range(COUNT))["means"], means) and again.shown == 0
    keep(shapes(), other, network="another")
    assert other.shown == COUNT + 1
    keep(shapes(combinations="seen"), seen, count=400)
    keep(shapes(), more, count=400)
    assert seen.shown == more.shown == 401


def test_one_that_is_killed_costs_its_block_alone():
    with pytest.raises(KeyboardInterrupt):
        keep(shapes(), Mean(fails_at=7))  # in the second block
    rest = Mean()
    pictures = keep(shapes(), rest)
    assert rest.shown == COUNT - 4 + 1
    batch = pictures.read(range(COUNT))
    assert torch.equal(batch["means"], batch["image"].float().mean((2, 3)))
    assert not list(pictures.columns["means"].blocks[0].parent.glob("*.lock"))


def test_two_at_once_share_the_work():
    def slow(batch: dict) -> torch.Tensor:
        time.sleep(0.01)
        shown.append(len(batch["image"]))
        return batch["image"].float().mean((2, 3))

    shown: list[int] = []
    found: list[torch.Tensor] = []

    def ask() -> None:
        pictures = keep(shapes(), slow)
        found.append(pictures.read(range(COUNT))["means"])

    both = [threading.Thread(target=ask) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sum(shown) <= COUNT + 2 and torch.equal(*found)  # each looks at one picture beforehand


def test_there_is_room_for_so_much_and_what_is_unused_for_longest_goes(monkeypatch):
    size = COUNT * 3 * 4
    monkeypatch.setattr(kept_pictures, "LARGEST", 3 * size + 3000)  # files have headers and descriptions
    for network in ("a", "b", "a", "c"):
        held = keep(shapes(), Mean(), network)
        time.sleep(0.01)
    in_use, folders = keep(shapes(), Mean(), "a"), held.columns["means"].blocks[0].parent.parent
    assert len(list(folders.iterdir())) == 3
    monkeypatch.setattr(kept_pictures, "LARGEST", size)
    keep(shapes(), Mean(), "d")
    assert len(in_use.read(range(COUNT))["means"]) == COUNT  # deleted, and still mapped
    assert [path.name[:5] for path in folders.iterdir()] == ["means"]
    monkeypatch.setattr(kept_pictures, "LARGEST", size - 1)
    with pytest.raises(ValueError, match="kept_pictures=10: means-.* would take .* set it lower, or to 0"):
        keep(shapes(), Mean(), "e")


def test_numbers_that_do_not_fit_are_refused():
    pictures = KeptPictures(shapes(), COUNT)
    with pytest.raises(ValueError, match="go beyond the numbers of torch.float16; set kept_pictures=0"):
        pictures.keep(
            "means", "", lambda batch: batch["image"].float().mean((2, 3)).half() * 1e9, 2, progress=False
        )


# In training


def train(folder: Path, teacher: Path, name: str, stage: str, arm: str, parent: str | None, **changes) -> Run:
    recipe = tiny.recipe(teacher, **{"kept_pictures": 12, **changes})
    at = folder / parent if parent else None
    training = Training("shapes", stage, arm, recipe, out=folder / name, parent=at)
    return loop.train(training, progress=False)


@pytest.fixture(scope="module")
def warmup(tmp_path_factory, teacher_folder) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train(folder, teacher_folder, "warmup", "warmup", "warmup", None, steps=4)
    return folder


def count_passes(monkeypatch) -> dict[str, int]:
    """How many pictures a teacher and a tokenizer's assignment are shown from now on."""
    passes = {"features": 0, "assign": 0}
    for kind, name in ((Teacher, "features"), (Tokenizer, "assign")):
        real = getattr(kind, name)

        def spy(self, images, *rest, real=real, name=name, **named):
            passes[name] += len(images)
            return real(self, images, *rest, **named)

        monkeypatch.setattr(kind, name, spy)
    return passes


def test_frozen_networks_see_each_picture_once_and_later_runs_none(warmup, teacher_folder, monkeypatch):
    passes = count_passes(monkeypatch)
    train(warmup, teacher_folder, "first", "generator", "baseline", "warmup", steps=4)
    assert passes == dict.fromkeys(passes, 1 + 12 + 8)  # the size of a row, the pictures, validation
    passes.update(features=0, assign=0)
    train(warmup, teacher_folder, "second", "generator", "baseline", "warmup", generator_lr=1e-4)
    assert passes == dict.fromkeys(passes, 8)  # validation's, once for all three times


@pytest.mark.parametrize("stage", ["generator", "joint"])
@pytest.mark.parametrize("micro_batch", [0, 2])
def test_a_step_on_kept_features_is_one_on_their_pictures(stage, micro_batch):
    images, labels = tiny.batch()
    losses = []
    for known in (False, True):
        made = tiny.stage(stage, "gear", 0, Execution(micro_batch), spatial_norm="zscore")
        features = [made.teacher(images).half().float()] if known else []
        indices = made.tokenizer.assign(images).indices if stage == "generator" and known else None
        torch.manual_seed(0)
        shown = None if indices is not None else images
        losses.append(made.step(1, shown, labels, indices, features))
    assert losses[0].keys() == losses[1].keys() and "alignment_hard" in losses[0]
    for name, value in losses[0].items():
        assert losses[1][name] == pytest.approx(value.item(), rel=1e-2, abs=1e-4), name


@pytest.mark.parametrize("stage", ["generator", "joint"])
def test_validation_is_the_same_with_what_frozen_networks_have_said(stage):
    images, labels = tiny.batch()
    made = tiny.stage(stage, "gear")
    expected = made.validate(images, labels)
    known = made.ask_frozen(images)
    assert (known[0] is None) == (stage == "joint")
    assert {k: v.item() for k, v in made.validate(images, labels, known).items()} == {
        k: v.item() for k, v in expected.items()
    }


def test_only_what_a_stage_learns_from_is_kept(teacher_folder):
    def columns(stage: str, arm: str, **changes) -> set[str]:
        made = tiny.stage(stage, arm, kept_pictures=6, **changes)
        pictures = keep_pictures(shapes(), False, made, progress=False)
        return set(pictures.read([0]))

    assert columns("generator", "gear") == {"label", "tokens", "features_0"}
    assert columns("generator", "gear", alignment_weight=0.0) == {"label", "tokens"}
    assert columns("joint", "gear") == {"image", "label", "features_0"}
    assert columns("joint", "latent") == {"image", "label", "features_0"}
    assert columns("joint", "continued") == columns("warmup", "warmup") == {"image", "label"}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("generator", {}),
        ("generator", {"text_encoder": "words", "held_out_combinations": True}),
        ("generator", {"alignment_weight": 0.0}),
        ("joint", {}),
    ],
    ids=["labels", "captions", "unaligned", "joint"],
)
def test_a_killed_run_continues_exactly(name, changes, warmup, teacher_folder, tmp_path, monkeypatch):
    arm = {"generator": "baseline", "joint": "gear"}[name]
    shutil.copytree(warmup / "warmup", tmp_path / "warmup")
    whole = train(tmp_path, teacher_folder, "whole", name, arm, "warmup", **changes)
    really_step = stages.Stage.step

    def killed(self, number, *rest):
        if number == 7:
            raise KeyboardInterrupt
        return really_step(self, number, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages.Stage, "step", killed)
        train(tmp_path, teacher_folder, "again", name, arm, "warmup", **changes)
    again = train(tmp_path, teacher_folder, "again", name, arm, "warmup", **changes)
    assert not tiny.metric_differences(tiny.metrics(again.folder), tiny.metrics(whole.folder))
    state, expected = again.generator.state_dict(), whole.generator.state_dict()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert ("alignment_hard" in again.metrics[-1]) == ("alignment_weight" not in changes)


def test_each_epoch_has_an_order_of_its_own_from_the_seed():
    pictures = KeptPictures(shapes(), COUNT)
    pictures.keep("item", "", lambda batch: batch["image"].double().sum((1, 2, 3)), 2, progress=False)

    def orders(seed: int) -> list[list[float]]:
        return [batch["item"].tolist() for batch in data.stream(pictures, COUNT, seed, steps=2)]

    first, second = orders(0)
    assert sorted(first) == sorted(second) and len(set(first)) == COUNT
    assert first != second and orders(1)[0] not in (first, second) and orders(0) == [first, second]


def test_two_ways_to_keep_tokens_are_refused(warmup, teacher_folder):
    with pytest.raises(ValueError, match="token_views=2 and kept_pictures=12 are two ways to keep tokens"):
        train(warmup, teacher_folder, "x", "generator", "baseline", "warmup", token_views=2)
    assert not (warmup / "x").exists()


@pytest.mark.slow
def test_two_processes_train_as_one(warmup, teacher_folder):
    steady = replace(tiny.GENERATOR, dropout=0.0, label_drop=0.0)
    recipe = {"steps": 4, "generator": steady}
    arguments = warmup, teacher_folder, "by-two", "generator", "baseline", "warmup"
    tiny.in_two(train_together, arguments, recipe)
    one = train(warmup, teacher_folder, "by-one", "generator", "baseline", "warmup", **recipe)
    for here, there in zip(one.metrics, Run.from_pretrained(warmup / "by-two").metrics, strict=True):
        assert there["generator"] == pytest.approx(here["generator"], abs=1e-4)


def train_together(_: int, arguments: tuple, recipe: dict) -> None:
    kept_pictures.BLOCK = 4
    train(*arguments, **recipe)


# The networks of a training


def test_fd_is_taken_in_the_features_that_the_recipe_names(warmup, teacher_folder):
    values = {}
    for name in ("teacher", "tiny"):
        run = train(
            warmup,
            teacher_folder,
            f"fd-{name}",
            "generator",
            "baseline",
            "warmup",
            steps=4,
            fd_every=4,
            fd_samples=8,
            fd_teacher=name,
        )
        values[name] = run.metrics[-1].pop("val_fd")
        values[f"{name} ntp"] = run.metrics[-1]["ntp"]
    assert values["teacher"] != values["tiny"] and values["teacher ntp"] == values["tiny ntp"]


def test_a_teacher_that_is_also_the_perceptual_network_is_loaded_once():
    for name, one in (("tiny", True), ("random", False), ("folder/tiny", False)):
        recipe = tiny.recipe(name, perceptual="tiny")
        teacher = Teacher.from_pretrained("tiny", tiny.TOKENIZER.grid)
        made = Stage("joint", "gear", recipe, teacher, Accelerator(cpu=True), Tokenizer(tiny.TOKENIZER))
        assert (made.perceiver is made.teacher) == one


def test_only_what_a_step_runs_is_compiled(monkeypatch):
    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(type(self).__name__))

    def parts(stage: str, kept_pictures: int) -> set[str]:
        compiled.clear()
        tiny.stage(stage, "gear", execution=Execution(compile=True), kept_pictures=kept_pictures)
        return set(compiled)

    own = {"Block"}  # a generator's; a ViT's are called the same
    assert parts("generator", 4) == own and len(compiled) == tiny.GENERATOR.blocks
    assert parts("joint", 4) == own | {"Encoder", "Decoder"} and len(compiled) == tiny.GENERATOR.blocks + 2
    assert parts("generator", 0) > own and len(compiled) == tiny.GENERATOR.blocks + 2 + tiny.teacher().depth
    compiled.clear()
    compile_parts(None, [Teacher.from_pretrained("efficientnet-lite0", 4)], None)
    assert len(compiled) == 1
