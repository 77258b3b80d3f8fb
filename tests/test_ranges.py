"""Values out of range: refused in words, before anything is loaded or a folder is claimed."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from gear_studio import cli, inspection, ranges, sampling
from gear_studio.analysis.metrics import EvaluationOptions
from gear_studio.inspection import Inspection
from gear_studio.models.discriminator import DiscriminatorConfig
from gear_studio.models.projector import ProjectorConfig
from gear_studio.models.teachers import TeacherConfig
from gear_studio.studies.world import World
from gear_studio.training import build, jobs, loop
from gear_studio.training.execution import Execution
from gear_studio.training.recipes import small_recipe, with_settings
from gear_studio.training.request import Training

SETTINGS = {  # as `--set` takes them: what the message says
    "steps=0": "steps is 0; it has to be greater than or equal to 1",
    "steps=-1": "steps is -1",
    "steps=2.9": "steps is 2.9; it has to be a valid integer",
    "steps=True": "steps is True; it has to be a valid integer",
    "steps=1e400": "steps is inf; it has to be a valid integer",
    "batch_size=0": "batch_size is 0",
    "projector_hidden=0": "projector_hidden is 0",
    "spatial_norm_alpha=-0.1": "spatial_norm_alpha is -0.1",
    "spatial_norm=whiten": "unknown spatial_norm 'whiten'; choose one of auto, none",
    "tokenizer_lr=-1": "tokenizer_lr is -1.0",
    "generator_lr=1e400": "generator_lr is inf; it has to be a finite number",
    "betas=(0.9,)": "betas is (0.9,); it has too few values",
    "betas=(0.9, 1)": "betas is (0.9, 1); its value 2 has to be less than 1",
    "betas=(0.9, 0.9, 0.9)": "betas is (0.9, 0.9, 0.9); it has to have at most 2 of them",
    "clip=0": "clip is 0.0; it has to be greater than 0",
    "ema=2": "ema is 2.0; it has to be less than 1",
    "tau=0": "tau is 0.0",
    "alignment_weight=-1": "alignment_weight is -1.0; it has to be greater than or equal to 0",
    "perceptual_weight=-1": "perceptual_weight is -1.0",
    "perceptual_blocks=()": "perceptual_blocks is (); it has to have at least 1 of them",
    "perceptual_blocks=(0,)": "perceptual_blocks is (0,); its value 1 has to be greater",
    "entropy_weight=-1": "entropy_weight is -1.0",
    "gan_weight=-1": "gan_weight is -1.0",
    "token_views=-1": "token_views is -1",
    "log_every=-1": "log_every is -1",
    "log_every=0": "log_every is 0",
    "checkpoint_every=0": "checkpoint_every is 0",
    "keep_every=-1": "keep_every is -1",
    "validation_images=0": "validation_images is 0",
    "fd_every=-25": "fd_every is -25",
    "fd_samples=1": "fd_samples is 1",
    "held_out_combinations=2": "held_out_combinations is 2",
    "generator=4": "setting 'generator' has parts; write generator.PART=VALUE with one of classes, codes",
    "generator.dim=0": "generator: dim is 0",
    "generator.blocks=1000000": "blocks is 1000000; it has to be less than or equal to 1024",
    "generator.heads=0": "heads is 0",
    "generator.heads=3": "dim 128 with 3 heads",
    "generator.tap=7": "tap 7 is not one of the blocks 1..6",
    "generator.dropout=1": "dropout is 1.0",
    "generator.label_drop=1.5": "label_drop is 1.5",
    "generator.caption_dim=-4": "caption_dim is -4",
    "tokenizer.codes=0": "tokenizer: codes is 0",
    "tokenizer.codes=10**9": "expected a int like 1024",
    "tokenizer.codes=1000000000": "codes is 1000000000; it has to be less than or equal to 1048576",
    "tokenizer.multipliers=()": "multipliers is (); it has to have at least 1 of them",
    "tokenizer.multipliers=(1, 0)": "multipliers is (1, 0); its value 2 has to be greater",
    "tokenizer.channels=0": "channels is 0",
    "tokenizer.channels=20": "channels is 20; it has to be a multiple of 32",
    "tokenizer.res_blocks=0": "res_blocks is 0",
    "tokenizer.patch=0": "patch is 0",
    "tokenizer.code_dim=0": "code_dim is 0",
    "tokenizer.latent=0": "latent is 0",
    "tokenizer.image_size=60": "image_size is 60, and a token covers f = 8 px",
    "log_every=10": "checkpoint_every 125 is not a multiple of log_every 10",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_out_of_range_is_refused_before_anything_is_loaded(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "gather_parts", None)
    with pytest.raises(ValueError) as refused:
        loop.train(Training("shapes", set=(setting,), out=tmp_path / "run"))
    assert SETTINGS[setting] in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "order", [("log_every=10", "checkpoint_every=100"), ("checkpoint_every=40", "log_every=8")]
)
def test_settings_given_together_are_judged_together(order):
    both = with_settings(small_recipe("warmup"), order)
    assert both == with_settings(small_recipe("warmup"), order[::-1]) and both.log_every in (10, 8)
    sizes = with_settings(small_recipe("joint"), ("generator.heads=3", "generator.dim=96", "generator.tap=1"))
    assert (sizes.generator.heads, sizes.generator.dim, sizes.generator.tap) == (3, 96, 1)


OPTIONS = {  # command lines: what the message says
    "train shapes --steps 0": "steps is 0",
    "train shapes --steps -1": "steps is -1",
    "train shapes --batch-size 0": "batch_size is 0",
    "train shapes --seed -1": "seed is -1",
    "train shapes --workers -1": "workers is -1",
    "train shapes --workers 1000000": "workers is 1000000; it has to be less than or equal to 256",
    "train shapes --micro-batch -4": "micro_batch is -4",
    "import weights.pt name --image-size 0": "image_size is 0",
    "import weights.pt name --heads 0": "heads is 0",
    "supervise judge --steps 0": "steps is 0",
    "supervise judge --seed -1": "seed is -1",
    "evaluate gear --samples 0": "samples is 0",
    "evaluate gear --samples 1": "samples is 1; it has to be greater than or equal to 2",
    "evaluate gear --seeds 0": "seeds is 0",
    "evaluate gear --cfg-scale nan": "cfg_scale is nan; it has to be a finite number",
    "evaluate gear --batch-size 0": "batch_size is 0",
    "inspect gear --out x --count 0": "count is 0",
    "inspect gear --out x --tau 0": "tau is 0.0; it has to be greater than 0",
    "inspect gear --out x --patches 0": "patches is 0",
    "inspect gear --out x --image-size 0": "image_size is 0",
    "inspect gear --out x --seed -1": "seed is -1",
    "sample generator-gear --out x.png --count 0": "count is 0",
    "sample generator-gear --out x.png --temperature inf": "temperature is inf",
    "sample generator-gear --out x.png --temperature -1": "temperature is -1.0",
    "sample generator-gear --out x.png --cfg-scale nan": "cfg_scale is nan",
    "sample generator-gear --out x.png --top-k -1": "top_k is -1",
    "sample generator-gear --out x.png --top-p 0": "top_p is 0.0",
    "sample generator-gear --out x.png --seed -1": "seed is -1",
    "study convergence --at-once -1": "at_once is -1",
    "study convergence --at-once 0": "at_once is 0",
    "study convergence --seeds 0 -1": "seeds is (0, -1); its value 2",
    "study convergence --workers -1": "workers is -1",
    "recipe small --image-size 0": "image_size is 0",
    "reproduce --at-once 0": "at_once is 0",
    "reproduce --seed -1": "seed is -1",
}


@pytest.mark.parametrize("words", OPTIONS)
def test_an_option_out_of_range_is_refused_before_anything_is_done(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as refused:
        cli.run(words.split())
    assert OPTIONS[words] in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Training("shapes", steps=True), "steps is True"),
        (Training("shapes", execution=Execution(micro_batch=-1)), "execution.micro_batch is -1"),
        (Training("shapes", execution=4), "execution is 4; set its parts"),
        (Execution(recompute=1), "recompute is 1"),
        (EvaluationOptions(seeds=2.5), "seeds is 2.5"),
        (World(workers=-1), "workers is -1"),
        (Inspection("x", tau=float("nan")), "tau is nan"),
        (sampling.SamplingSettings(temperature=float("inf")), "temperature is inf"),
    ],
)
def test_in_python_as_on_the_command_line(settings: Any, message):
    with pytest.raises(ValueError, match=message):
        ranges.check(settings)


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (TeacherConfig, {"image_size": 0}),
        (TeacherConfig, {"depth": 10**6}),
        (TeacherConfig, {"std": (0.5, 0.5, 0.0)}),
        (DiscriminatorConfig, {"layers": 0}),
        (ProjectorConfig, {"dim": 32, "teacher_dim": 0}),
    ],
)
def test_configs_of_models_are_refused_where_they_are_made(make, values):
    name = list(values)[-1]
    with pytest.raises(ValueError, match=f"{name} is"):
        make(**values)


def test_numpy_s_whole_numbers_count_as_such():
    ranges.check(Training("shapes", seed=np.int64(3), steps=np.int32(5)))
    with pytest.raises(ValueError, match="steps is .*valid integer"):
        ranges.check(Training("shapes", steps=np.float64(5.5)))


def test_where_settings_are_used_they_are_judged():
    generator, labels = tiny.generator(), tiny.batch()[1]
    with pytest.raises(ValueError, match="cfg_scale is nan; it has to be a finite number"):
        sampling.sample(generator, labels, cfg_scale=float("nan"))
    with pytest.raises(ValueError, match="count is 0"):
        inspection.inspect(["gear"], Inspection("nowhere", count=0))
    with pytest.raises(ValueError, match="at_once is -1"):
        jobs.share_cores(-1)
    with pytest.raises(ValueError, match="workers is -1"):
        World(workers=-1).check()


def test_the_help_shows_ranges(capsys):
    with pytest.raises(SystemExit):
        cli.run(["evaluate", "--help"])
    said = capsys.readouterr().out
    assert "--samples INT>=2" in said and "--batch-size {None}|INT>=1" in said


def test_a_recipe_is_judged_where_it_is_made():
    with pytest.raises(ValueError, match="steps is 0.*ema is 1"):
        tiny.recipe(steps=0, ema=1.0)
    assert replace(tiny.recipe(), ema=0.0).ema == 0


def test_the_explorer_refuses_a_port_that_there_is_not(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "apps"))
    explorer = importlib.import_module("explorer")
    with pytest.raises(SystemExit, match="explorer: port is 99999; it has to be less than or equal to 65535"):
        explorer.main(explorer.Options(port=99999))


def test_names_are_left_to_the_tables_that_know_them():
    ranges.check(Training("cats", recipe=tiny.recipe(), tokenizer="mine"))
    with pytest.raises(ValueError, match="unknown data source 'cats'"):
        loop.train(Training("cats", out=Path("nowhere")))
