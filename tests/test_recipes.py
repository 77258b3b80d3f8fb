"""The paper's recipes, number by number, as they are printed and as training takes them."""

import sys
from pathlib import Path

import pytest
import tiny
import torch
from accelerate import Accelerator

from gear_studio import Run, cli, commands
from gear_studio.models.generator import Generator
from gear_studio.models.tokenizer import PRESETS, Tokenizer
from gear_studio.training import build, recipes
from gear_studio.training.request import Training
from gear_studio.training.stages import Stage

PROTOCOL = {  # the paper's, of every size, quantizer and stage
    "batch_size": "256",
    "tokenizer.image_size": "256",
    "downsampling": "f = 16",
    "tokens": "N = 256 (16 x 16)",
    "tokenizer.codes": "16384",
    "generator.codes": "16384",
    "generator.grid": "16",
    "generator.classes": "1000",
    "generator.dropout": "0.1",
    "generator.label_drop": "0.1",
    "projector_hidden": "2048",
    "teacher": "dinov2-b",
    "teacher sees": "16 x 16 patches of an image of 224 px",
    "alignment_weight": "0.5",
    "tau": "0.1",
    "tokenizer_lr": "0.0001",
    "generator_lr": "0.0001",
    "optimizer": "AdamW, weight decay 0, learning rate constant",
    "lr_schedule": "constant",
    "ema_climbs": "False",
    "betas": "(0.9, 0.999)",
    "clip": "1.0",
    "ema": "0.9999",
    "perceptual": "lpips",
    "perceptual_weight": "1.0",
    "gan_weight": "0.1",
    "entropy_weight": "0.05",
}
SIZES = {  # blocks, width, heads, tap
    "b": ("12", "768", "12", "4"),
    "l": ("24", "1024", "16", "8"),
    "xl": ("36", "1280", "20", "12"),
}
DIMENSIONS = {"vq": "8", "lfq": "14", "ibq": "256"}  # of a code
STEPS = {"warmup": "400000", "joint": "400000", "generator": "3600000"}  # the last on top of the joint ones
RELEASED = {  # what the released scripts do by default
    "warmup": {"lr_warmup": "1", "keep_live": "True"},
    "joint": {"lr_warmup": "1", "keep_live": "False"},
    "generator": {"lr_warmup": "0", "start": "joint"},
}
KNOWN = [quantizer for quantizer in DIMENSIONS if f"{quantizer}-16" in PRESETS]


def printed(name: str, stage: str, monkeypatch, capsys) -> tuple[str, dict[str, str]]:
    monkeypatch.setattr(sys, "argv", ["gear-studio", "recipe", name, "--stage", stage])
    cli.main()
    first, _, *rest = capsys.readouterr().out.splitlines()
    pairs = (line.split("  ", 1) for line in rest if line)
    return first, {key: value.split("#")[0].strip() for key, value in pairs}


@pytest.mark.parametrize("stage", STEPS)
@pytest.mark.parametrize("quantizer", KNOWN)
@pytest.mark.parametrize("size", SIZES)
def test_the_printed_recipe_is_the_paper_s_line_by_line(size, quantizer, stage, monkeypatch, capsys):
    first, found = printed(f"imagenet-{size}-{quantizer}", stage, monkeypatch, capsys)
    trains = {
        "warmup": "tokenizer, discriminator",
        "joint": "tokenizer, discriminator, generator, projector",
        "generator": "generator, projector",
    }[stage]
    assert first == f"imagenet-{size}-{quantizer}, stage {stage}: trains {trains}"
    shape = ("generator.blocks", "generator.dim", "generator.heads", "generator.tap")
    expected = PROTOCOL | dict(zip(shape, SIZES[size], strict=True)) | {"steps": STEPS[stage]}
    expected |= {"tokenizer.code_dim": DIMENSIONS[quantizer], **RELEASED[stage]}
    assert {key: found.get(key) for key in expected} == expected


@pytest.mark.parametrize("stage", STEPS)
def test_what_is_printed_is_what_training_is_given(stage, monkeypatch, capsys):
    """Every field of the recipe is printed; optimizers, averages and modules are made of them."""
    recipe = recipes.recipe_of("imagenet-b-vq", stage)
    _, found = printed("imagenet-b-vq", stage, monkeypatch, capsys)
    for key, value in recipe.asdict().items():
        parts = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        assert {k: found[k] for k in parts} == {k: str(v) for k, v in parts.items()}
    toy = tiny.replace(
        recipe,
        tokenizer=tiny.TOKENIZER,
        generator=tiny.GENERATOR,
        perceptual="teacher",
        perceptual_blocks=(1,),
    )
    arm = "warmup" if stage == "warmup" else "gear"
    made = Stage(stage, arm, toy, tiny.teacher(), Accelerator(cpu=True), Tokenizer(toy.tokenizer))
    parts = {"tokenizer", "discriminator"} if stage == "warmup" else {"aligned"}
    parts |= {"tokenizer", "discriminator"} if stage == "joint" else set()
    assert set(made.optimizers) == parts
    for optimizer in made.optimizers.values():
        assert isinstance(optimizer, torch.optim.AdamW)
        (group,) = optimizer.param_groups
        assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-4, (0.9, 0.999), 0.0)
    assert {ema.get_decay(10**6) for ema in made.ema.values()} == {0.9999}
    assert not recipe.ema_climbs and [recipe.lr_factor(n) for n in (1, 2, 3)] == [
        float(stage == "generator"),
        1,
        1,
    ]
    if "aligned" in made.modules:
        projector = made.modules["aligned"].projectors[0].layers
        assert [projector[0].out_features, projector[2].out_features] == [2048, 2048]


@pytest.mark.parametrize(("size", "millions"), [("b", 111), ("l", 343), ("xl", 775)])
def test_the_generators_have_the_paper_s_number_of_weights(size, millions):
    with torch.device("meta"):
        generator = Generator(recipes.recipe_of(f"imagenet-{size}-vq", "generator").generator)
    assert sum(p.numel() for p in generator.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_what_a_generator_starts_from_decides_its_steps():
    fresh = recipes.recipe_of("imagenet-b-vq", "generator", start="fresh")
    assert (fresh.start, fresh.steps) == ("fresh", 4_000_000)
    assert (
        recipes.recipe_of("gpic-1b", "generator").start
        == recipes.recipe_of("small", "generator").start
        == "fresh"
    )

    def asked(**options) -> tuple[str, int]:
        recipe = Training("folder", "generator", recipe="imagenet-b-vq", **options).resolved
        return recipe.start, recipe.steps

    assert asked() == asked(arm="gear") == ("joint", 3_600_000)
    assert asked(start="fresh") == asked(arm="baseline") == asked(arm="continued") == ("fresh", 4_000_000)
    assert asked(arm="baseline", start="joint") == ("joint", 3_600_000)
    joint = Training("folder", "joint", recipe="imagenet-b-vq", start="joint").completed()
    with pytest.raises(ValueError, match="start=joint is of the generator stage, and this is stage joint"):
        build.check(joint)
    with pytest.raises(ValueError, match="start is 'joint' of stage joint; the generator stage has fresh"):
        commands.recipe("small", "joint", start="joint")


@pytest.mark.parametrize(("size", "grid", "teacher"), [(384, 24, 336), (512, 32, 448)])
def test_other_sizes_of_pictures_are_an_option(size, grid, teacher, monkeypatch, capsys):
    words = ["recipe", "imagenet-b-vq", "--stage", "joint", "--image-size", str(size)]
    monkeypatch.setattr(sys, "argv", ["gear-studio", *words])
    cli.main()
    said = capsys.readouterr()
    found = {
        key: value.split("#")[0].strip()
        for key, value in (line.split("  ", 1) for line in said.out.splitlines() if "  " in line)
    }
    assert found["image_size"] == found["tokenizer.image_size"] == str(size)
    assert found["tokens"] == f"N = {grid**2} ({grid} x {grid})" and found["generator.grid"] == str(grid)
    assert found["teacher sees"] == f"{grid} x {grid} patches of an image of {teacher} px"
    assert f"--image-size {size}" in said.err
    asked = Training("folder", "joint", recipe="imagenet-b-vq", image_size=size)
    assert asked.resolved.tokenizer.grid == grid
    assert asked.completed().out == Path(f"runs/folder-{size}px-joint-gear-s0")
    with pytest.raises(ValueError, match="image_size is 380, and a token covers f = 16 px"):
        Training("folder", "joint", recipe="imagenet-b-vq", image_size=380).completed()


def test_learning_rates_rise_and_fall_by_the_number_of_the_step():
    recipe = tiny.replace(tiny.recipe(), steps=104, lr_warmup=4)
    assert [recipe.lr_factor(n) for n in (1, 2, 3, 4, 5, 104)] == [0, 0.25, 0.5, 0.75, 1, 1]
    cosine = tiny.replace(recipe, lr_schedule="cosine", lr_end=0.2)
    found = [cosine.lr_factor(n) for n in (1, 3, 5, 30, 55, 80, 105)]
    half = 0.5**0.5
    assert found == pytest.approx([0, 0.5, 1, 0.6 + 0.4 * half, 0.6, 0.6 - 0.4 * half, 0.2])
    with pytest.raises(ValueError, match="lr_schedule is 'linear'; choose constant or cosine"):
        tiny.recipe(lr_schedule="linear")


def test_the_small_recipe_is_the_one_that_trains_when_none_is_named(monkeypatch, capsys):
    assert recipes.recipe_of("small", "joint", "quick") == recipes.small_recipe("joint", "quick")
    _, found = printed("small", "warmup", monkeypatch, capsys)
    assert found["tokenizer.image_size"] == "64" and found["teacher"] == "tiny" and "images" not in found


def test_a_named_recipe_trains_with_single_values_changed(tmp_path, teacher_folder, monkeypatch):
    """`train --recipe imagenet-b-vq` with the models shrunk by `--set`: the rest is the paper's."""
    shrunk = [f"tokenizer.{k}={v}" for k, v in vars(tiny.TOKENIZER).items() if not isinstance(v, str)]
    shrunk += [f"generator.{k}={getattr(tiny.GENERATOR, k)}" for k in ("dim", "blocks", "heads", "tap")]
    shrunk += [f"teacher={teacher_folder}", "perceptual=teacher", "perceptual_blocks=(1,)"]
    shrunk += ["log_every=1", "checkpoint_every=1", "validation_images=4"]
    words = ["train", "digits", "--recipe", "imagenet-b-vq", "--steps", "1", "--batch-size", "4"]
    words += ["--micro-batch", "2", "--recompute", "--out", str(tmp_path / "run"), "--set", *shrunk]
    monkeypatch.setattr(sys, "argv", ["gear-studio", *words])
    cli.main()
    run = Run.from_pretrained(tmp_path / "run")
    assert run.finished and run.config["recipe"]["gan_weight"] == 0.1
    assert run.config["recipe"]["betas"] == [0.9, 0.999]
    asked = {"micro_batch": 2, "recompute": True, "compile": False, "shard": False, "device": None}
    assert run.record["execution"] == asked
    assert {"gan", "discriminator"} <= run.metrics[0].keys()


def test_recipes_that_do_not_exist_are_refused():
    with pytest.raises(
        ValueError, match="unknown recipe 'imagenet-s-vq'; choose one of small, imagenet-b-vq"
    ):
        recipes.recipe_of("imagenet-s-vq", "joint")
    with pytest.raises(ValueError, match="unknown stage 'cool-down'"):
        recipes.recipe_of("imagenet-b-vq", "cool-down")
    with pytest.raises(ValueError, match="budget 'quick' is of the small recipe"):
        recipes.recipe_of("imagenet-b-vq", "joint", "quick")


def test_the_budget_long_differs_from_quick_in_few_settings():
    def differing(stage: str) -> dict:
        long, quick = (recipes.small_recipe(stage, budget).asdict() for budget in ("long", "quick"))
        return {name: value for name, value in long.items() if value != quick[name]}

    kept = {"teacher": "efficientnet-lite0", "perceptual": "tiny", "fd_teacher": "tiny"}
    kept |= {"kept_pictures": 40_000}
    assert differing("warmup") == {} and differing("joint") == kept | {"steps": 2000}
    assert differing("generator") == kept | {"steps": 8000, "batch_size": 32}
    recipe = recipes.small_recipe("generator", "long")
    values = recipe.batch_size, recipe.generator_lr, recipe.betas, recipe.alignment_weight, recipe.ema
    assert values == (32, 1.5e-3, (0.9, 0.99), 0.5, 0.995) and recipe.clip == 1
    assert recipes.small_tokenizer("long") == recipes.small_tokenizer("quick") == "mini"
