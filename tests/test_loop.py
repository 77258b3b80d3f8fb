"""The loop: resuming after SIGKILL, damaged checkpoints, folders of other runs, divergence, validation."""

import io
import json
import math
import os
import pickle
import shutil
import signal
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator, tracking
from PIL import Image
from safetensors.torch import load_file

from gear_studio import Run, cli, places
from gear_studio.analysis.fidelity import EvaluationOptions, evaluate
from gear_studio.data.prompts import ClassLabels
from gear_studio.training import build, checkpoints, loop, stages, trackers
from gear_studio.training.checkpoints import Checkpoints, drop_metrics_after
from gear_studio.training.execution import Execution
from gear_studio.training.recipes import Recipe, small_recipe, with_captions
from gear_studio.training.request import Training
from gear_studio.training.sampled_distance import SampledDistance

STAGES = {  # name: stage, arm, parent, changes to the recipe
    "warmup": ("warmup", "warmup", None, {"gan_weight": 0.1}),
    "joint": ("joint", "gear", "warmup", {}),
    "generator": ("generator", "gear", "joint", {}),
    "latent": ("joint", "latent", "warmup", {}),
}


def train(
    name: str, folder: Path, teacher: Path, out: str | None = None, extend: bool = False, **changes
) -> Run:
    stage, arm, parent, own = STAGES[name]
    recipe = tiny.recipe(teacher, **own | changes)
    parent = folder / parent if parent else None
    out = folder / (out or name)
    training = Training("digits", stage, arm, recipe, out=out, parent=parent, extend=extend)
    return loop.train(training, progress=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, teacher_folder) -> Path:
    """The three stages, trained without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    for name in STAGES:
        train(name, folder, teacher_folder)
    return folder


@pytest.fixture
def again(whole, tmp_path) -> Path:
    """A copy of the finished runs, to be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "again"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*/model.safetensors"))
    return {f"{path.parent.name}.{k}": v for path in files for k, v in load_file(path).items()}


def assert_same_run(one: Path, other: Path) -> None:
    assert not tiny.metric_differences(tiny.metrics(one), tiny.metrics(other))
    assert weights(one).keys() == weights(other).keys() and weights(one)
    assert not [name for name, value in weights(one).items() if not torch.equal(value, weights(other)[name])]
    newest = [torch.load(Checkpoints(f / "checkpoints").paths()[-1]) for f in (one, other)]
    assert_same_state(*({k: v for k, v in state.items() if k != "seconds"} for state in newest))


def assert_same_state(one, other) -> None:
    """Two states are equal to the last bit, names and numbers included."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other) and one.dtype == other.dtype
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_state(one[key], other[key])
    elif isinstance(one, list | tuple):
        for here, there in zip(one, other, strict=True):
            assert_same_state(here, there)
    else:
        assert one == other


# A run


@pytest.fixture
def tensorboard(tmp_path, monkeypatch) -> list[tuple]:
    """A package in the place of tensorboardX that keeps what it is told: (method, name, value, step)."""
    told: list[tuple] = []

    class SummaryWriter:
        def __init__(self, folder, **options):
            told.append(("open", folder, options, None))

        def __getattr__(self, method):
            def tell(name=None, value=None, global_step=None, **options):
                told.append((method, name, value, global_step))

            return tell

        def add_hparams(self, values, metric_dict):
            told.append(("add_hparams", None, values, None))

    found = tracking.LoggerType.TENSORBOARD
    monkeypatch.setattr(tracking, "_available_trackers", [found])
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    package = ModuleType("tensorboardX")
    package.SummaryWriter, package.__spec__ = SummaryWriter, ModuleSpec("tensorboardX", None)
    monkeypatch.setitem(sys.modules, "tensorboardX", package)
    return told


def test_a_tracker_is_told_what_the_run_s_folder_holds(again, whole, teacher_folder, tensorboard):
    def tracked(name: str, out: str) -> list[tuple]:
        tensorboard.clear()
        stage, arm, parent, own = STAGES[name]
        recipe = tiny.recipe(teacher_folder, **own, steps=4)
        options = {"out": again / out, "parent": again / parent, "track": ("tensorboard",)}
        loop.train(Training("digits", stage, arm, recipe, **options), progress=False)
        return list(tensorboard)

    told = tracked("joint", "seen")
    assert told[0] == ("open", str(again / "seen/tensorboard/gear-studio"), {"purge_step": 1}, None)
    (hparams,) = [value for method, _, value, _ in told if method == "add_hparams"]
    assert hparams["recipe.tau"] == 0.1 and hparams["arm"] == "gear"
    scalars = [(step, name, value) for method, name, value, step in told if method == "add_scalar"]
    rows = [json.loads(line) for line in (again / "seen/metrics.jsonl").read_text().splitlines()]
    assert scalars == [(row["step"], name, row[name]) for row in rows for name in row if name != "step"]
    pictures = {(name, step): value for method, name, value, step in told if method == "add_images"}
    assert pictures.keys() == {("reconstructions", 4), ("samples", 4)}
    for name in ("reconstructions", "samples"):
        with Image.open(again / f"seen/{name}.png") as held:
            assert np.array_equal(pictures[name, 4][0], np.asarray(held.convert("RGB")))
    assert told[-1][0] == "close"
    assert not tracked("joint", "seen")  # finished before
    assert not (whole / "joint/samples.png").exists() and not (whole / "joint/tensorboard").exists()


def test_a_tracker_whose_package_is_missing_is_refused_in_words(whole, tmp_path, teacher_folder, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    recipe, out = tiny.recipe(teacher_folder), tmp_path / "run"
    for name in ("tensorboard", "wandb"):
        with pytest.raises(
            FileNotFoundError, match=f"tracker {name} needs the package {name}.*uv pip install"
        ):
            loop.train(Training("digits", recipe=recipe, out=out, track=(name,)), progress=False)
    assert not out.exists()


def test_a_run_holds_what_its_readers_expect(whole, teacher_folder):
    for name, parts in (
        ("warmup", {"tokenizer"}),
        ("joint", {"tokenizer", "generator", "projector"}),
        ("generator", {"generator", "projector"}),
        ("latent", {"tokenizer", "latent-projector"}),
    ):
        run = Run.from_pretrained(whole / name)
        held = ("tokenizer", "generator", "projector", "latent-projector")
        assert run.finished and {part for part in held if run.has(part)} == parts
        assert run.config["stage"] == STAGES[name][0] and run.config["seed"] == 0
        assert run.config["recipe"]["teacher"] == str(teacher_folder)
        assert [row["step"] for row in run.metrics] == [2, 4, 6, 8, 10, 12]
        assert run.record["device"] and run.record["command"] and run.record["versions"]["torch"]
        assert all(math.isfinite(value) for row in run.metrics for value in row.values())
    assert Run.from_pretrained(whole / "generator").parent.name == "joint"
    pictures = {path.relative_to(whole).as_posix(): Image.open(path) for path in whole.glob("*/*.png")}
    assert set(pictures) == {
        "warmup/reconstructions.png",
        "joint/reconstructions.png",
        "latent/reconstructions.png",
        "generator/samples.png",
    }
    assert all(np.asarray(picture).std() > 1 for picture in pictures.values())


def test_metrics_say_everything_that_is_promised(whole):
    codebook = {"usage", "perplexity"} | {
        f"{name}{suffix}"
        for name in ("entropy", "effective_size", "mass_1", "mass_10", "mass_100")
        for suffix in ("", "_tau")
    }
    always = {"step", "images_per_second", "seconds"} | codebook
    tokenizer = {"l1", "quantizer", "code_entropy", "perceptual", "tokenizer", "grad_norm_tokenizer"}
    gan = {"gan", "discriminator", "grad_norm_discriminator"}
    generator = {"ntp", "alignment_hard", "generator", "grad_norm_generator"}
    expected = {
        "warmup": tokenizer | gan,
        "joint": tokenizer | generator | {"alignment_soft"},
        "generator": generator,
        "latent": tokenizer | {"alignment_latent", "grad_norm_latent"},
    }
    validated = {"warmup": {"val_psnr"}, "generator": {"val_ntp", "val_alignment"}}
    validated["latent"] = {"val_psnr", "val_alignment_latent"}
    validated["joint"] = validated["warmup"] | validated["generator"]
    for name, losses in expected.items():
        first, second, *_ = Run.from_pretrained(whole / name).metrics
        assert set(first) == always | losses
        assert set(second) == always | losses | validated[name]  # step 4 is a checkpoint


def test_validation_measures_the_saved_weights_on_held_out_pictures(whole):
    from gear_studio import data
    from gear_studio.models.projector import alignment_loss
    from gear_studio.training.objectives import next_token_loss

    run = Run.from_pretrained(whole / "joint")
    source = data.load("digits", "val", 32)
    batch = source.read(data.choose_pictures(len(source), 8)[0])
    images = data.to_float(batch["image"])
    with torch.no_grad():
        assignment = run.tokenizer.assign(images)
        error = (run.tokenizer.decode(assignment.indices) - images).square().mean((1, 2, 3))
        embedded = run.generator.token_table[assignment.indices[:, :-1]]
        logits, hidden = run.generator(embedded, batch["label"], tap=2)
        aligned = alignment_loss(run.projector(hidden), run.teacher(images))
    last = run.metrics[-1]
    assert last["val_psnr"] == pytest.approx((10 * torch.log10(4 / error)).mean().item(), rel=1e-4)
    assert last["val_ntp"] == pytest.approx(next_token_loss(logits, assignment.indices).item(), rel=1e-4)
    assert last["val_alignment"] == pytest.approx(aligned.item(), rel=1e-4)


def test_validation_sees_all_classes_of_a_finite_source_and_the_start_of_an_endless_one():
    class Sorted:
        """Pictures in the order of their classes, a hundred of each; a picture is its number."""

        def __init__(self, length: int):
            self.length = length

        def __len__(self) -> int:
            return self.length

        def read(self, indices):
            return {"image": torch.tensor(list(indices)), "label": torch.tensor(list(indices)) // 100}

    def seen(length: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = build.read_validation_images(
            Sorted(length), ClassLabels(10), tiny.recipe(validation_images=200), Accelerator(cpu=True)
        )
        assert [len(images) for images, _ in found] == [64, 64, 64, 8]
        return tuple(map(torch.cat, zip(*found, strict=True)))

    images, labels = seen(1000)
    assert len(set(images.tolist())) == 200 and len(set(labels.tolist())) == 10
    assert seen(2**40)[0].tolist() == list(range(200))


def test_training_learns(tmp_path, teacher_folder):
    """Loss on held-out pictures falls: a sign error in any update would show."""
    longer = {"steps": 60, "log_every": 20, "checkpoint_every": 20, "batch_size": 16}
    warmup = train("warmup", tmp_path, teacher_folder, gan_weight=0.0, tokenizer_lr=3e-3, **longer).metrics
    assert warmup[-1]["val_psnr"] > warmup[0]["val_psnr"] + 1
    joint = train("joint", tmp_path, teacher_folder, generator_lr=3e-3, **longer).metrics
    assert joint[-1]["val_ntp"] < joint[0]["val_ntp"] - 0.1 < math.log(64)
    assert joint[-1]["val_alignment"] < joint[0]["val_alignment"] - 0.1
    assert joint[-1]["alignment_soft"] < joint[0]["alignment_soft"] - 0.1


def test_a_seed_decides_everything_and_another_seed_differs(whole, tmp_path, teacher_folder):
    short = {"steps": 4}
    train("warmup", tmp_path, teacher_folder, out="same", **short)
    assert not tiny.metric_differences(tiny.metrics(tmp_path / "same"), tiny.metrics(whole / "warmup")[:2])
    stage, arm, _, own = STAGES["warmup"]
    recipe = tiny.recipe(teacher_folder, **own, **short)
    loop.train(Training("digits", stage, arm, recipe, seed=1, out=tmp_path / "other"), progress=False)
    assert tiny.metrics(tmp_path / "other")[0]["l1"] != tiny.metrics(whole / "warmup")[0]["l1"]


def test_the_distance_of_samples_is_measured_while_training_and_changes_nothing(again, whole, teacher_folder):
    from gear_studio import data, sampling
    from gear_studio.analysis.statistics import Moments, frechet_distance
    from gear_studio.data.images import to_uint8

    run = train("generator", again, teacher_folder, out="measured", fd_every=6, fd_samples=40)
    steps, distances = run.series("val_fd")
    assert steps.tolist() == [6, 12] and np.isfinite(distances).all()
    source = data.load("digits", "val", 32)
    real = source.read(data.choose_pictures(len(source), 40)[0])["image"]
    with torch.no_grad():
        indices = sampling.sample(run.generator, torch.arange(40) % 10, cfg_scale=1.0, seed=0)
        moments = [Moments(run.teacher.dim) for _ in range(2)]
        for kept, pictures in zip(moments, (to_uint8(run.tokenizer.decode(indices)), real), strict=True):
            kept.add(0, run.teacher(data.to_float(pictures)).mean(1))
    assert distances[-1] == pytest.approx(frechet_distance(*(kept.result() for kept in moments)), rel=1e-3)

    others = [{k: v for k, v in row.items() if k != "val_fd"} for row in tiny.metrics(again / "measured")]
    assert not tiny.metric_differences(others, tiny.metrics(whole / "generator"))
    unmeasured = weights(whole / "generator")
    assert all(torch.equal(value, unmeasured[k]) for k, value in weights(again / "measured").items())


OPTION = "--set inception_weights=FILE"


class SmallInception(torch.nn.Module):
    def __init__(self, weights: str | None, option: str):
        super().__init__()
        assert (weights, option) == ("inception.pth", OPTION)

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"fid": torch.nn.functional.adaptive_avg_pool2d(pictures.float(), 2).flatten(1)}


def test_fid_is_measured_while_training_beside_fd(again, whole, teacher_folder, monkeypatch):
    from gear_studio import data, sampling
    from gear_studio.analysis.statistics import Moments, frechet_distance
    from gear_studio.data.images import to_uint8
    from gear_studio.models import inception

    monkeypatch.setattr(inception, "Inception", SmallInception)
    monkeypatch.setitem(inception.DIMS, "fid", 12)
    measured = {"fd_every": 12, "fid_every": 6, "fd_samples": 40, "inception_weights": "inception.pth"}
    run = train("generator", again, teacher_folder, out="measured", **measured)
    steps, distances = run.series("val_fid")
    assert steps.tolist() == [6, 12] and run.series("val_fd")[0].tolist() == [12]
    source = data.load("digits", "val", 32)
    real = source.read(data.choose_pictures(len(source), 40)[0])["image"]
    with torch.no_grad():
        indices = sampling.sample(run.generator, torch.arange(40) % 10, cfg_scale=1.0, seed=0)
        moments = [Moments(12) for _ in range(2)]
        for kept, pictures in zip(moments, (to_uint8(run.tokenizer.decode(indices)), real), strict=True):
            kept.add(0, torch.nn.functional.adaptive_avg_pool2d(pictures.float(), 2).flatten(1))
    assert distances[-1] == pytest.approx(frechet_distance(*(kept.result() for kept in moments)), rel=1e-3)
    unmeasured = weights(whole / "generator")
    assert all(torch.equal(value, unmeasured[k]) for k, value in weights(again / "measured").items())


def test_a_run_goes_on_with_what_measures_it_wherever_that_lies_and_with_nothing_else(
    again, teacher_folder, tmp_path, monkeypatch
):
    from gear_studio.models import inception

    def measured() -> Run:
        places = {"inception_weights": str(weights_file), "fd_teacher": str(judge)}
        return train("generator", again, teacher_folder, out="m", steps=4, fd_samples=40, **often, **places)

    monkeypatch.setattr(inception, "Inception", lambda weights, _: SmallInception("inception.pth", OPTION))
    monkeypatch.setitem(inception.DIMS, "fid", 12)
    weights_file, judge = tmp_path / "inception.pth", tmp_path / "judge"
    weights_file.write_bytes(b"weights")
    shutil.copytree(teacher_folder, judge)
    often = {"log_every": 2, "checkpoint_every": 2, "fd_every": 2, "fid_every": 2}
    measured()
    weights_file, judge = weights_file.rename(tmp_path / "moved.pth"), judge.rename(tmp_path / "moved")
    unfinish(again / "m")
    recipe = measured().config["recipe"]
    assert (recipe["inception_weights"], recipe["fd_teacher"]) == (str(weights_file), str(judge))
    weights_file.write_bytes(b"others")
    with pytest.raises(ValueError, match="already holds another run .inception_weights_sha256"):
        measured()


@pytest.mark.parametrize(("how", "asked"), [("reference", {0: 1, 1: 3}), ("equal", {0: 2, 1: 2})])
def test_samples_are_measured_in_the_proportions_of_the_pictures(
    tmp_path, teacher_folder, how, asked, monkeypatch
):
    from gear_studio.training import sampled_distance

    pictures = tmp_path / "pictures"
    tiny.pngs(pictures, {"train": 8, "val": 2})
    for i in range(2):
        shutil.copy(pictures / "val" / "kind1" / "1.png", pictures / "val" / "kind1" / f"more{i}.png")
    labels, real = [], sampled_distance.sampling.sample

    def spy(generator, condition, **settings):
        labels.extend(condition.tolist())
        return real(generator, condition, **settings)

    train_on(pictures, tmp_path / "tokenizer", teacher_folder, steps=2)
    monkeypatch.setattr(sampled_distance.sampling, "sample", spy)
    recipe = tiny.recipe(teacher_folder, steps=2, fd_every=2, fd_classes=how)
    out, parent = tmp_path / "run", tmp_path / "tokenizer"
    training = Training("folder", "generator", "baseline", recipe, out=out, parent=parent, folder=pictures)
    loop.train(training, progress=False)
    assert Counter(labels[:4]) == asked  # what follows is the grid to look at
    assert Run(out).config["recipe"]["fd_classes"] == how


@pytest.mark.parametrize(("size", "most"), [(64, 250), (65, 32)])
def test_large_pictures_are_measured_few_at_a_time(size, most):
    class Source:
        image_size = size

        def __len__(self) -> int:
            return 300

        def read(self, indices):
            read.append(len(indices))
            return {"image": torch.zeros(len(indices), 3, 32, 32, dtype=torch.uint8)}

    read: list[int] = []
    SampledDistance(Source(), ClassLabels(10), tiny.teacher(), 300, Accelerator(cpu=True))
    assert max(read) == most and sum(read) == 300


def test_no_distance_is_measured_where_nothing_is_sampled(again, teacher_folder):
    for name in ("warmup", "latent"):
        with pytest.raises(ValueError, match="fd_every=4 measures what a generator samples, and arm"):
            train(name, again, teacher_folder, out="never", fd_every=4)
    with pytest.raises(ValueError, match="fid_every=4 measures what a generator samples, and arm"):
        train("warmup", again, teacher_folder, out="never", fid_every=4)
    for name in ("fd_every", "fid_every"):
        with pytest.raises(ValueError, match=f"{name} 3 is not a multiple of log_every 2"):
            tiny.recipe(**{name: 3})


def test_a_run_from_before_a_setting_came_is_continued_with_its_default(again, teacher_folder):
    path = again / "joint" / "config.json"
    config = json.loads(path.read_text())
    for name in ("fd_every", "keep_every"):
        del config["recipe"][name]
    path.write_text(json.dumps(config))
    assert train("joint", again, teacher_folder).finished
    with pytest.raises(ValueError, match="fd_every is 0, asked for 4"):
        train("joint", again, teacher_folder, fd_every=4)


# Snapshots


def test_what_is_kept_on_the_way_is_the_run_it_would_have_been(again, whole, teacher_folder):
    shorter = train("generator", again, teacher_folder, out="shorter", steps=8)
    kept = train("generator", again, teacher_folder, out="kept", keep_every=4)
    assert_same_run(kept.folder, whole / "generator")
    folders = sorted((kept.folder / "snapshots").iterdir())
    assert [path.name for path in folders] == ["step-000000004", "step-000000008", "step-000000012"]
    run = Run.from_pretrained(folders[1])
    assert run.finished and run.config["recipe"] == shorter.config["recipe"] | {"keep_every": 4}
    assert not tiny.metric_differences(tiny.metrics(run.folder), tiny.metrics(shorter.folder))
    theirs = weights(shorter.folder)
    assert all(torch.equal(value, theirs[name]) for name, value in weights(run.folder).items())
    assert run.tokenizer.config == kept.tokenizer.config and run.parent.name == "joint"
    for command in (
        ["sample", str(run.folder), "--out", str(again / "samples.png"), "--count", "2"],
        ["evaluate", str(run.folder), "--samples", "16", "--seeds", "1"],
    ):
        cli.run(command)
    assert (again / "samples.png").is_file() and Run(run.folder).evaluation["fd"]["mean"] > 0
    assert not kept.evaluation


def test_a_snapshot_of_a_tokenizer_holds_what_the_next_stage_starts_from(again, teacher_folder):
    kept = train("warmup", again, teacher_folder, out="kept", steps=4, keep_every=4)
    run = Run.from_pretrained(kept.folder / "snapshots" / "step-000000004")
    assert run.parent is None and run.has("discriminator")
    assert weights(run.folder).keys() == weights(kept.folder).keys()
    with pytest.raises(ValueError, match="keep_every 6 is not a multiple of checkpoint_every 4"):
        tiny.recipe(keep_every=6)


# Resuming


def photos(folder: Path, seed: int) -> Path:
    """Twelve pictures of two classes; the last is broken."""
    dice = np.random.default_rng(seed)
    for i in range(12):
        path = folder / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        side = dice.integers(32, 64)
        Image.fromarray(dice.integers(0, 255, (side, 40, 3), np.uint8)).save(path)
    path.write_bytes(b"broken")
    return folder


def train_on(pictures: Path, out: Path, teacher: Path, steps: int = 4, **options) -> Run:
    recipe = tiny.recipe(teacher, steps=steps)
    training = Training("folder", "warmup", "warmup", recipe, out=out, folder=pictures, **options)
    return loop.train(training, progress=False)


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_run_goes_on_with_the_pictures_it_began_with_and_no_others(tmp_path, teacher_folder):
    out, here, other = tmp_path / "run", photos(tmp_path / "here", 0), photos(tmp_path / "other", 1)
    train_on(here, out, teacher_folder)
    config = json.loads((out / "config.json").read_text())
    assert config["pictures"]["folder"] == str(here)
    for finished in (True, False):
        if not finished:
            unfinish(out)
        with pytest.raises(ValueError, match=f"that were in {here}; those now in {other} are others"):
            train_on(other, out, teacher_folder)
    there = shutil.copytree(here, tmp_path / "there", copy_function=shutil.copyfile)
    assert train_on(there, out, teacher_folder).finished
    assert json.loads((out / "config.json").read_text()) == config

    unfinish(out)
    del config["pictures"]  # a run from before it was written down
    (out / "config.json").write_text(json.dumps(config))
    assert train_on(other, out, teacher_folder).finished
    assert json.loads((out / "config.json").read_text()) == config


def test_a_run_on_pictures_that_are_no_files_names_none(whole):
    assert not [name for name in STAGES if "pictures" in Run.from_pretrained(whole / name).config]


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_files_are_recorded_and_said_at_the_end(tmp_path, teacher_folder, capsys, workers):
    pictures = photos(tmp_path / "pictures", 0)
    run = train_on(pictures, tmp_path / "run", teacher_folder, workers=workers)
    broken = str(pictures / "b" / "11.png")
    assert run.record["skipped"] == [broken]
    assert f"1 file could not be read and was skipped: {broken}\n" in capsys.readouterr().out
    assert Run.from_pretrained(tmp_path / "run").finished


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train_and_die(name: str, folder: Path, teacher: Path, moment: str) -> None:
    """Train until SIGKILL comes at a moment chosen to hurt. Runs in a process of its own."""
    torch.set_num_threads(1)
    if moment == "while writing the second checkpoint":
        really_save, saves = torch.save, []

        def save(state, path):
            saves.append(path)
            really_save(state, path)
            if len(saves) == 2:
                os.truncate(path, path.stat().st_size // 2)
                die()

        checkpoints.torch.save = save
    else:
        last, torn = {
            "in the middle of step 7": (7, b""),
            "while writing the metrics of step 10": (11, None),
        }[moment]
        really_step = stages.Stage.step

        def step(self, number, *batch):
            if number == last:
                if torn is None:  # what a kill between two blocks of the file leaves
                    path = folder / name / "metrics.jsonl"
                    path.write_bytes(path.read_bytes()[:-20])
                die()
            return really_step(self, number, *batch)

        stages.Stage.step = step
    train(name, folder, teacher)


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        ("warmup", "while writing the second checkpoint"),
        ("joint", "in the middle of step 7"),
        ("generator", "while writing the metrics of step 10"),
        ("latent", "in the middle of step 7"),
    ],
)
def test_a_killed_run_continues_exactly(name, moment, again, whole, teacher_folder):
    shutil.rmtree(again / name)
    assert tiny.run_apart(train_and_die, name, again, teacher_folder, moment) == -signal.SIGKILL
    died = Run.from_pretrained(again / name)
    assert not died.finished and not weights(again / name)
    torn = list((again / name / "checkpoints").glob(".*"))
    assert len(torn) == (moment == "while writing the second checkpoint")
    train(name, again, teacher_folder)
    assert not list((again / name / "checkpoints").glob(".*"))
    assert Run.from_pretrained(again / name).finished
    assert_same_run(again / name, whole / name)


def test_killed_before_its_first_checkpoint_a_run_begins_again(again, whole, teacher_folder, monkeypatch):
    shutil.rmtree(again / "warmup")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def interrupted(*_):
            raise KeyboardInterrupt

        patch.setattr(Checkpoints, "save", interrupted)
        train("warmup", again, teacher_folder)
    assert [row["step"] for row in tiny.metrics(again / "warmup")] == [2, 4]
    train("warmup", again, teacher_folder)
    assert_same_run(again / "warmup", whole / "warmup")


def test_what_takes_long_to_its_first_checkpoint_has_one_before(again, whole, teacher_folder, monkeypatch):
    """Written between two, without validation; the run that goes on from it ends as any."""
    monkeypatch.setattr(loop, "FIRST_CHECKPOINT", 0.0)
    saved = []
    save = Checkpoints.save

    def save_and_stop(self, step: int, state: dict) -> None:
        save(self, step, state)
        saved.append(step)
        if step == 2:
            raise KeyboardInterrupt

    shutil.rmtree(again / "warmup")
    monkeypatch.setattr(Checkpoints, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train("warmup", again, teacher_folder)
    train("warmup", again, teacher_folder)
    assert saved == [2, 4, 8, 12]
    assert_same_run(again / "warmup", whole / "warmup")


def test_asked_to_pause_it_writes_a_checkpoint_and_goes_on_exactly(again, whole, teacher_folder, monkeypatch):
    really_step, before = stages.Stage.step, signal.getsignal(signal.SIGUSR1)

    def step(self, number, *batch):
        if number == 5:
            os.kill(os.getpid(), signal.SIGUSR1)
        return really_step(self, number, *batch)

    shutil.rmtree(again / "warmup")
    with monkeypatch.context() as patch:
        patch.setattr(stages.Stage, "step", step)
        with pytest.raises(RuntimeError, match="warmup is paused after step 6 of 12; the same command"):
            train("warmup", again, teacher_folder)
    assert signal.getsignal(signal.SIGUSR1) == before
    newest = Checkpoints(again / "warmup" / "checkpoints").newest()
    assert newest and newest.name == "step-00000006.pt"  # between two that are due
    assert not Run.from_pretrained(again / "warmup").finished
    train("warmup", again, teacher_folder)
    assert_same_run(again / "warmup", whole / "warmup")


@pytest.mark.parametrize("told", [4, None])
def test_which_checkpoint_is_gone_on_from_the_main_process_says(told, tmp_path, monkeypatch):
    """Others may see a network disk as it was before, or hear of a new file first."""
    folder = Checkpoints(tmp_path / "checkpoints")
    for step in (4, 8):
        folder.save(step, {"modules": {}, "ema": {}, "optimizers": {}, "seconds": 0.0})
    path = told and tmp_path / "checkpoints" / f"step-{told:08d}.pt"
    monkeypatch.setattr(loop, "broadcast_object_list", lambda answer: answer.__setitem__(0, path))
    other, loaded = SimpleNamespace(is_main_process=False), []
    trainee = SimpleNamespace(load_state_dict=loaded.append)
    here = loop.Loop(trainee, None, 0, tmp_path, other, progress=False)
    here.restore()
    assert here.start == (told or 0) and [state["step"] for state in loaded] == ([told] if told else [])


def test_metrics_after_the_checkpoint_and_a_torn_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"step": 8, "l1": 0.')
    drop_metrics_after(8, path)
    assert path.read_text() == '{"step": 2}\n{"step": 4}\n{"step": 6}\n'
    drop_metrics_after(4, path)
    assert path.read_text() == '{"step": 2}\n{"step": 4}\n'


@pytest.mark.parametrize("name", ["joint", "generator"])
def test_a_finished_run_is_extended_as_if_it_had_been_asked_for_more_at_once(
    name, again, whole, teacher_folder, monkeypatch
):
    shutil.rmtree(again / name)
    short = train(name, again, teacher_folder, steps=4)
    (short.folder / "evaluation.json").write_text("{}")
    with pytest.raises(ValueError, match=r"\(steps is 4, asked for 12\); go on with it by --extend"):
        train(name, again, teacher_folder)
    assert Run(short.folder).finished
    for child in [child for child, (_, _, parent, _) in STAGES.items() if parent == name]:
        shutil.rmtree(again / child)
    really_step = stages.Stage.step

    def killed_at_7(self, number, *batch):
        if number == 7:
            raise KeyboardInterrupt
        return really_step(self, number, *batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages.Stage, "step", killed_at_7)
        train(name, again, teacher_folder, extend=True)
    halfway = Run(short.folder)
    assert not halfway.finished and halfway.config["recipe"]["steps"] == 12
    train(name, again, teacher_folder)  # by now it is a run like any other
    assert Run(short.folder).finished
    assert_same_run(again / name, whole / name)
    assert [path.name for path in short.folder.glob("evaluation*")] == ["evaluation-step-4.json"]


def test_runs_that_cannot_be_extended_are_refused_and_left_alone(again, teacher_folder):
    for name, changes, named in (
        ("joint", {"steps": 8}, "steps is 12, asked for 8"),
        ("joint", {"steps": 16, "tau": 0.2}, "steps is 12, asked for 16, tau is 0.1, asked for 0.2"),
        ("joint", {"steps": 16}, "cannot go on: generator started from what it is now"),
    ):
        with pytest.raises(ValueError, match=named):
            train(name, again, teacher_folder, extend=True, **changes)
    train("generator", again, teacher_folder, out="odd", steps=6)
    with pytest.raises(ValueError, match="asked for 6 steps, no multiple of checkpoint_every 4: longer"):
        train("generator", again, teacher_folder, out="odd", extend=True)
    shutil.rmtree(again / "generator" / "checkpoints")
    with pytest.raises(ValueError, match="cannot go on: its checkpoints were deleted"):
        train("generator", again, teacher_folder, steps=16, extend=True)
    for name, steps in (("joint", 12), ("odd", 6), ("generator", 12)):
        run = Run(again / name)
        assert run.finished and run.config["recipe"]["steps"] == steps == run.metrics[-1]["step"]


def test_a_finished_run_started_again_does_nothing(again, teacher_folder):
    before = {path: path.read_bytes() for path in again.rglob("*") if path.is_file()}
    run = train("generator", again, teacher_folder)
    assert run.finished
    after = {path: path.read_bytes() for path in again.rglob("*") if path.is_file()}
    assert not [path for path in after.keys() | before.keys() if after.get(path) != before.get(path)]


def test_only_the_last_two_checkpoints_are_kept(whole):
    names = [path.name for path in sorted((whole / "warmup" / "checkpoints").iterdir())]
    assert names == ["step-00000008.pt", "step-00000012.pt"]


# Damage


class Stranger:
    """Something that weights-only reading does not build."""


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    torch.save({"step": 12, "modules": {}, "ema": {}, "optimizers": Stranger()}, path)


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Stranger()))


def other_content(path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, path)


@pytest.mark.parametrize("damage", [truncated, empty, foreign, plain_pickle, other_content])
def test_a_damaged_or_foreign_checkpoint_is_refused_by_name_and_the_one_before_serves(
    damage, again, whole, teacher_folder
):
    newest = again / "joint" / "checkpoints" / "step-00000012.pt"
    unfinish(again / "joint")
    damage(newest)
    with pytest.raises(
        ValueError, match=r"step-00000012\.pt is not a complete checkpoint.*delete it"
    ) as refusal:
        train("joint", again, teacher_folder)
    assert "\n" not in str(refusal.value)
    newest.unlink()
    train("joint", again, teacher_folder)
    assert_same_run(again / "joint", whole / "joint")


def unfinish(folder: Path) -> None:
    """As it is when the kill comes after the last checkpoint and before the weights are written."""
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"finished": False}))


def test_reading_a_checkpoint_runs_no_code(again, teacher_folder, tmp_path):
    unfinish(again / "joint")

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    torch.save({"step": Trap()}, again / "joint" / "checkpoints" / "step-00000012.pt")
    with pytest.raises(ValueError, match="step-00000012.pt"):
        train("joint", again, teacher_folder)
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"generator_lr": 0.5}, "generator_lr is 0.001, asked for 0.5"),
        ({"steps": 16}, "steps is 12, asked for 16"),
        ({"generator": tiny.replace(tiny.GENERATOR, dim=64)}, "generator is "),
    ],
)
def test_a_folder_that_holds_another_run_is_refused_naming_what_differs(
    changes, named, again, teacher_folder
):
    before = (again / "joint" / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="already holds another run") as refusal:
        train("joint", again, teacher_folder, **changes)
    assert named in str(refusal.value)
    with pytest.raises(ValueError, match="stage is 'joint', asked for 'generator'"):
        train("generator", again, teacher_folder, out="joint")
    assert (again / "joint" / "metrics.jsonl").read_bytes() == before


# Divergence


def test_nan_stops_the_run_naming_step_loss_and_checkpoint_and_the_run_can_go_on(
    again, whole, teacher_folder, monkeypatch
):
    shutil.rmtree(again / "joint")
    really, calls = stages.next_token_loss, []

    def spoilt(logits, indices):
        calls.append(1)
        loss = really(logits, indices)
        # Each step asks once; each checkpoint's validation once more. The seventh step is the eighth call.
        return loss * math.nan if len(calls) == 8 else loss

    with monkeypatch.context() as patch:
        patch.setattr(stages, "next_token_loss", spoilt)
        with pytest.raises(loop.DivergedError) as stop:
            train("joint", again, teacher_folder)
    message = str(stop.value)
    assert "'ntp'" in message and "step 7" in message
    good = again / "joint" / "checkpoints" / "step-00000004.pt"
    assert str(good) in message
    assert [path.name for path in good.parent.iterdir()] == [good.name]
    state = torch.load(good, weights_only=True)
    assert all(v.isfinite().all() for m in state["modules"].values() for v in m.values())
    assert [row["step"] for row in tiny.metrics(again / "joint")] == [2, 4, 6]
    train("joint", again, teacher_folder)
    assert_same_run(again / "joint", whole / "joint")


def test_infinity_before_any_checkpoint_says_that_there_is_none(tmp_path, teacher_folder):
    with pytest.raises(loop.DivergedError, match="last good checkpoint is none yet"):
        train("warmup", tmp_path, teacher_folder, tokenizer_lr=1e30)


# What is asked for


def test_arms_and_parents_that_do_not_fit_are_refused(whole, tmp_path, teacher_folder):
    recipe = tiny.recipe(teacher_folder)
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="stage joint has no arm 'baseline'; choose one of gear"):
        loop.train(Training("digits", "joint", "baseline", recipe, out=out, parent=whole / "warmup"))
    missing = tmp_path / "digits-warmup-s0"
    with pytest.raises(FileNotFoundError, match=f"joint builds on {missing}, which holds no finished tokeni"):
        loop.train(Training("digits", "joint", "gear", recipe, out=out))
    with pytest.raises(ValueError, match=r"warmup holds another tokenizer .*\(codes is 64, asked for 128\)"):
        other = tiny.recipe(teacher_folder, tokenizer=tiny.replace(tiny.TOKENIZER, codes=128))
        training = Training("digits", "warmup", "warmup", other, out=whole / "run", parent=whole / "warmup")
        loop.train(training)
    assert not (whole / "run").exists()
    with pytest.raises(ValueError, match="unknown data source"):
        loop.train(Training("cats", "warmup", "warmup", recipe, out=out))
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "changes", "source", "error", "message"),
    [
        ("warmup", {"teacher": "nobody"}, "digits", FileNotFoundError, "teacher 'nobody'"),
        ("joint", {"perceptual": "vgg16.pth"}, "digits", FileNotFoundError, "vgg16.pth"),
        ("generator", {"token_views": 2}, "shapes", ValueError, "shapes has no end of new pictures"),
    ],
)
def test_a_training_that_is_refused_leaves_no_folder_behind(
    name, changes, source, error, message, again, teacher_folder
):
    stage, arm, parent, _ = STAGES[name]
    recipe = tiny.recipe(teacher_folder, **changes) if "teacher" not in changes else tiny.recipe(**changes)
    before = sorted(again.rglob("*"))
    with pytest.raises(error, match=message):
        parent = again / parent if parent else None
        loop.train(Training(source, stage, arm, recipe, out=again / "new", parent=parent), progress=False)
    assert sorted(again.rglob("*")) == before


def test_a_batch_that_does_not_divide_among_the_processes_is_refused(teacher_folder):
    training = Training("digits", recipe=tiny.recipe(teacher_folder))
    with pytest.raises(ValueError, match="batch_size 8 does not divide among 3 processes"):
        build.check_share(training, SimpleNamespace(num_processes=3))


@pytest.mark.parametrize("name", ["joint", "generator"])
def test_the_run_it_builds_on_keeps_its_models_as_they_are(name, again, teacher_folder, monkeypatch):
    """A training changes how its tokenizer is run, and its weights: a copy's."""
    parent = Run.from_pretrained(again / STAGES[name][2])
    before = {key: value.clone() for key, value in parent.tokenizer.state_dict().items()}
    modules = list(map(type, parent.tokenizer.modules()))
    monkeypatch.setattr(build.Run, "from_pretrained", lambda folder: parent)
    stage, arm, _, _ = STAGES[name]
    recipe = tiny.recipe(teacher_folder, steps=2)
    execution = Execution(recompute=True)
    training = Training(
        "digits", stage, arm, recipe, out=again / "new", parent=parent.folder, execution=execution
    )
    loop.train(training, progress=False)
    assert list(map(type, parent.tokenizer.modules())) == modules
    assert all(torch.equal(value, before[key]) for key, value in parent.tokenizer.state_dict().items())
    assert all(parameter.requires_grad for parameter in parent.tokenizer.parameters())


def test_the_baseline_is_trained_on_the_warm_up_s_tokenizer(again, teacher_folder):
    recipe = tiny.recipe(teacher_folder, steps=4)
    parent = again / "warmup"
    training = Training("digits", "generator", "baseline", recipe, out=again / "base", parent=parent)
    run = loop.train(training, progress=False)
    assert run.parent.name == "warmup" and not run.has("tokenizer")
    theirs = Run.from_pretrained(again / "warmup").tokenizer.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in run.tokenizer.state_dict().items())


def test_recipes_that_cannot_resume_exactly_or_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="checkpoint_every 5 is not a multiple of log_every 2"):
        Recipe(steps=1, batch_size=1, log_every=2, checkpoint_every=5)
    with pytest.raises(ValueError, match="unknown stage 'cool-down'"):
        small_recipe("cool-down")
    with pytest.raises(ValueError, match="unknown budget 'lavish'"):
        small_recipe("warmup", "lavish")


def newest_state(folder: Path) -> dict:
    checkpoints = Checkpoints(folder)
    return checkpoints.load(checkpoints.newest())


def test_the_joint_stage_starts_from_the_warm_up_s_discriminator(again, teacher_folder):
    train("joint", again, teacher_folder, out="at-rest", gan_weight=0.1, tokenizer_lr=0.0)
    before, after = (
        load_file(again / name / "discriminator" / "model.safetensors") for name in ("warmup", "at-rest")
    )
    learnt = [key for key in before if key.endswith((".weight", ".bias"))]
    assert learnt and not [key for key in learnt if not torch.equal(before[key], after[key])]


def test_the_joint_stage_goes_on_with_the_live_tokenizer_and_its_average(again, teacher_folder):
    train("warmup", again, teacher_folder, out="kept", keep_live=True)
    kept = Run.from_pretrained(again / "kept")
    live = load_file(again / "kept/live-tokenizer/model.safetensors")
    assert_same_state(live, newest_state(kept.folder / "checkpoints")["modules"]["tokenizer"])
    recipe = tiny.recipe(teacher_folder, steps=4, tokenizer_lr=0.0, ema=0.5, ema_climbs=False)
    for parent, start in (("kept", live), ("warmup", Run(again / "warmup").tokenizer.state_dict())):
        training = Training(
            "digits", "joint", "gear", recipe, out=again / f"on-{parent}", parent=again / parent
        )
        loop.train(training, progress=False)
        state = newest_state(again / f"on-{parent}/checkpoints")
        assert_same_state(dict(state["modules"]["tokenizer"]), dict(start))
        average = kept.tokenizer.state_dict() if parent == "kept" else start
        for key, value in state["ema"][
            "tokenizer"
        ].items():  # half way to the live weights in each of 4 steps
            assert torch.allclose(value, start[key] + (average[key] - start[key]) / 16, atol=1e-6)
    assert any(not torch.equal(value, live[key]) for key, value in kept.tokenizer.state_dict().items())


def init(
    folder: Path, teacher: Path, out: str, parent: str = "joint", start: str = "joint", **changes
) -> Run:
    recipe = tiny.recipe(teacher, start=start, **changes)
    training = Training("digits", "generator", "gear", recipe, out=folder / out, parent=folder / parent)
    return loop.train(training, progress=False)


def test_the_joint_stage_s_generator_trains_on(again, teacher_folder):
    """At a learning rate of 0, generator, average and projector stay what the joint stage has left."""
    run = init(again, teacher_folder, "still", generator_lr=0.0, steps=4)
    state = newest_state(run.folder / "checkpoints")
    joint = Run.from_pretrained(again / "joint")
    expected = {f"generator.{key}": value for key, value in joint.generator.state_dict().items()}
    expected |= {f"projectors.0.{key}": value for key, value in joint.projector.state_dict().items()}
    for held in (state["modules"]["aligned"], state["ema"]["aligned"]):
        assert held.keys() == expected.keys()
        assert all(torch.allclose(held[key], value, atol=1e-7) for key, value in expected.items())
    assert run.metrics[-1]["val_ntp"] == pytest.approx(joint.metrics[-1]["val_ntp"], abs=1e-5)
    fresh = init(again, teacher_folder, "fresh", start="fresh", generator_lr=0.0, steps=4)
    assert fresh.metrics[-1]["val_ntp"] == pytest.approx(math.log(64), abs=1e-3)
    assert not run.has("tokenizer") and run.parent.name == "joint"


def test_a_generator_that_trains_on_resumes_exactly(again, teacher_folder):
    changes = {"lr_warmup": 2, "lr_schedule": "cosine", "ema_climbs": False}
    init(again, teacher_folder, "one", **changes)
    shutil.copytree(again / "one", again / "other")
    unfinish(again / "other")
    Checkpoints(again / "other/checkpoints").paths()[-1].unlink()
    init(again, teacher_folder, "other", **changes)
    assert_same_run(again / "one", again / "other")


def test_a_generator_of_captions_starts_from_one_of_classes(again, teacher_folder):
    run = Run.from_pretrained(again / "generator")
    recipe = with_captions(tiny.recipe(teacher_folder, steps=4, generator_lr=0.0, start=str(run.folder)))
    training = Training("shapes", "generator", "gear", recipe, out=again / "t2i", parent=again / "joint")
    found, theirs = loop.train(training, progress=False).generator.state_dict(), run.generator.state_dict()
    names = {key: key.replace("_text.", ".") for key in found if not key.startswith("condition.")}
    assert len([key for key, its in names.items() if key != its]) == 3
    assert all(torch.allclose(found[key], theirs[its], atol=1e-7) for key, its in names.items())


def test_pictures_of_another_size_on_the_same_tokenizer(again, teacher_folder):
    """A warm-up at 32 px; a joint stage at 48 and a generator on it; a generator at 48 on the warm-up."""
    sized = tiny.recipe(teacher_folder, steps=4, image_size=48)

    def trained(stage: str, out: str, parent: str, recipe: Recipe) -> Run:
        training = Training("digits", stage, "gear", recipe, out=again / out, parent=again / parent)
        return Run(loop.train(training, progress=False).folder)

    joint = trained("joint", "large", "warmup", sized)
    assert joint.tokenizer.config.image_size == 48 and joint.generator.config.grid == 6
    on = trained("generator", "large-on", "large", tiny.replace(sized, image_size=0, start="joint"))
    alone = trained("generator", "large-alone", "warmup", sized)
    for run in (on, alone):
        assert (run.tokenizer.config.image_size, run.tokenizer.grid, run.generator.config.grid) == (48, 6, 6)
    assert Run(again / "warmup").tokenizer.config.image_size == 32


def test_what_cannot_train_on_is_refused_in_words(again, teacher_folder, capsys):
    with pytest.raises(
        FileNotFoundError, match=r"start=joint .* holds none; name the run of a joint.*--start fresh"
    ):
        init(again, teacher_folder, "none", parent="warmup")
    with pytest.raises(ValueError, match=r"another than the recipe's \(dim is 32, asked for 48\)"):
        init(again, teacher_folder, "wide", generator=tiny.replace(tiny.GENERATOR, dim=48))
    with pytest.raises(ValueError, match="start=joint is of the generator stage, and this is stage joint"):
        train("joint", again, teacher_folder, out="odd", start="joint")
    assert not any((again / name).exists() for name in ("none", "wide", "odd"))
    init(again, teacher_folder, "falls", steps=4, lr_schedule="cosine")
    with pytest.raises(ValueError, match="falls ended its learning rate with its last step"):
        recipe = tiny.recipe(teacher_folder, start="joint", steps=8, lr_schedule="cosine")
        loop.train(
            Training(
                "digits",
                "generator",
                "gear",
                recipe,
                out=again / "falls",
                parent=again / "joint",
                extend=True,
            ),
            progress=False,
        )


def test_a_generator_may_start_from_any_run_wherever_it_lies_by_then(again, teacher_folder, tmp_path):
    other = Path(shutil.copytree(again / "generator", tmp_path / "elsewhere"))
    run = init(again, teacher_folder, "on", start=str(other), generator_lr=0.0, steps=4)
    theirs = Run.from_pretrained(other).generator.state_dict()
    assert all(torch.allclose(v, theirs[k], atol=1e-7) for k, v in run.generator.state_dict().items())
    moved = other.rename(tmp_path / "moved")
    again_run = init(again, teacher_folder, "on", start=str(moved), generator_lr=0.0, steps=4)
    assert again_run.config["start_sha256"] == run.config["start_sha256"]
    with pytest.raises(ValueError, match="start_sha256|start is"):
        init(again, teacher_folder, "on", start=str(again / "joint"), generator_lr=0.0, steps=4)


def test_a_parent_s_discriminator_is_not_the_warm_up_s(again, teacher_folder):
    start = tiny.replace(tiny.recipe(teacher_folder, gan_weight=0.1), tokenizer_lr=0.0, steps=4)
    training = Training("digits", "warmup", "warmup", start, out=again / "new", parent=again / "warmup")
    run = loop.train(training, progress=False)
    theirs, ours = (load_file(f / "discriminator/model.safetensors") for f in (again / "warmup", run.folder))
    assert not all(torch.equal(value, theirs[key]) for key, value in ours.items() if key.endswith(".weight"))


def test_a_parent_that_lies_elsewhere_is_refused(again, teacher_folder, tmp_path):
    with pytest.raises(ValueError, match="does not lie beside"):
        train("joint", again, teacher_folder, out=tmp_path / "elsewhere" / "joint")


@pytest.mark.parametrize("start", ["fresh", "joint", "gear"])
def test_a_training_builds_on_a_shipped_run_and_writes_nothing_into_it(
    start, whole, teacher_folder, tmp_path, monkeypatch
):
    zoo = tmp_path / "zoo"
    shutil.copytree(whole / "joint", zoo / "gear")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(places, "ZOO", zoo)
    before = {path: path.stat().st_mtime_ns for path in [zoo, *zoo.rglob("*")]}
    changes = {"token_views": 1, "keep_every": 4} if start == "fresh" else {"generator_lr": 0.0, "steps": 4}
    recipe = tiny.recipe(teacher_folder, **changes)
    asked = Training("digits", "generator", "gear", recipe, parent=Path("gear"), start=start)
    run = loop.train(asked, progress=False)
    assert {path: path.stat().st_mtime_ns for path in [zoo, *zoo.rglob("*")]} == before
    shutil.copytree(run.folder, "runs/gear")  # another run of that name
    gear = Run.from_pretrained("gear")
    folders = [run.folder, *run.folder.glob("snapshots/*")]
    assert len(folders) == (4 if start == "fresh" else 1)
    for each in map(Run, folders):
        ours, theirs = each.tokenizer.state_dict(), gear.tokenizer.state_dict()
        assert each.config["parent"] == "shipped:gear"
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    if start == "fresh":
        assert Path("runs/shipped/gear/tokens/digits-1/tokens.npy").is_file()
    else:
        assert run.metrics[-1]["val_ntp"] == pytest.approx(gear.metrics[-1]["val_ntp"], abs=1e-5)


def test_optimizers_go_on_from_a_checkpoint_that_numbers_their_parameters(again, whole, teacher_folder):
    """As checkpoints did before they named them."""
    joint = again / "joint"
    unfinish(joint)
    last, path = reversed(Checkpoints(joint / "checkpoints").paths())
    last.unlink()
    state = torch.load(path)
    for held in state["optimizers"].values():
        names = held["param_groups"][0]["params"]
        held["param_groups"][0]["params"] = list(range(len(names)))
        held["state"] = {names.index(name): value for name, value in held["state"].items()}
    torch.save(state, path)
    train("joint", again, teacher_folder)
    assert_same_run(joint, whole / "joint")


def test_every_stage_trains_and_is_measured_on_captions_alone(tmp_path, teacher_folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "gpic_train_00000.tar", "w") as tar:  # KEY.json and KEY.png, as published
        for i in range(40):
            picture = io.BytesIO()
            Image.new("RGB", (32, 32), (6 * i, 90, 255 - 6 * i)).save(picture, "PNG")
            said = json.dumps({"caption": f"a red ring number {i}", "caption_type": "short"}).encode()
            for kind, content in (("json", said), ("png", picture.getvalue())):
                member = tarfile.TarInfo(f"{i:08}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    parent = None
    for stage in ("warmup", "joint", "generator"):
        recipe = tiny.recipe(teacher_folder, steps=2, log_every=2, checkpoint_every=2, validation_images=2)
        training = Training("shards", stage, recipe=recipe, condition="caption", folder=tmp_path)
        run = loop.train(replace(training, out=tmp_path / stage, parent=parent), progress=False)
        parent = run.folder
        assert run.finished and run.config["classes"] == []
        assert math.isfinite(run.metrics[-1]["ntp" if stage != "warmup" else "l1"])
        options = EvaluationOptions(samples=2, seeds=1, metrics=("fd",), batch_size=2, cache=tmp_path)
        assert evaluate(run, options)["psnr"] > 0
