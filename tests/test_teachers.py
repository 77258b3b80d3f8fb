"""Published teachers, with random weights and few blocks: what they see, what they answer, where their
weights come from, and how one or several of them align a training."""

import copy
import functools
import json
import math
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import tiny
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from gear_studio import cli
from gear_studio.files import read_json, write_json
from gear_studio.models.projector import Projector, alignment_loss
from gear_studio.models.teachers import (
    TEACHERS,
    KnownTeacher,
    Teacher,
    TeacherConfig,
    build_encoder,
    load_teachers,
    spatial_norm,
    teachers_of,
)
from gear_studio.models.tokenizer import Tokenizer
from gear_studio.runs import Run
from gear_studio.training import loop
from gear_studio.training.request import Training
from gear_studio.training.stages import Stage, frozen

# name: patch size, width, prefix tokens, mean of red
FAMILIES = {
    "dinov2-s": (14, 384, 1, 0.485),
    "dinov2-s-reg": (14, 384, 5, 0.485),
    "dinov2-g": (14, 1536, 1, 0.485),
    "dinov3-s": (16, 384, 5, 0.485),
    "siglip2-b": (16, 768, 0, 0.5),
    "clip-b": (16, 768, 1, 0.48145466),
    "timm:vit_tiny_patch16_224": (16, 192, 1, 0.5),
    "eva02_tiny_patch14_224.mim_in22k": (14, 192, 1, 0.48145466),  # averages, then norms
}
SMALL = "vit_tiny_patch16_224"  # for what has nothing to do with the family


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    """timm builds every model with two blocks, the giant with one: everything else is as published."""
    create = timm.create_model

    def cut(name: str, **options):
        return create(name, **{"depth": 1 if "giant" in name else 2} | options)

    monkeypatch.setattr(timm, "create_model", cut)


@functools.cache
def _teacher(name: str) -> Teacher:
    teacher = Teacher.random(0, name, grid=4)
    torch.manual_seed(1)
    for parameter in teacher.encoder.parameters():  # as drawn, layer scales of 1e-5 hide every block
        parameter.add_(0.05 * torch.randn_like(parameter))
    return teacher


@pytest.fixture(params=FAMILIES)
def family(request) -> tuple[str, Teacher]:
    return request.param, copy.deepcopy(_teacher(request.param))


def pictures(size: int = 64, count: int = 2) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


# What they see


def test_every_published_name_is_a_model_of_timm_with_weights():
    names = [TEACHERS[name].timm for name in teachers_of("published")]
    missing = [name for name in names if not timm.is_model_pretrained(name)]
    assert names and not missing


def test_each_family_sees_one_patch_a_token_and_learns_nothing(family):
    name, teacher = family
    patch, dim, prefix, red = FAMILIES[name]
    assert (teacher.grid, teacher.config.image_size, teacher.config.patch_size) == (4, 4 * patch, patch)
    assert (teacher.dim, teacher.encoder.num_prefix_tokens) == (dim, prefix)
    assert teacher.mean[0, 0, 0, 0] == pytest.approx(red) and "random" in teacher.note
    assert teacher.name == name.removeprefix("timm:")
    images = pictures().requires_grad_()
    teacher.train()(images).square().mean().backward()
    assert teacher(images).shape == (2, 16, dim)
    assert (images.grad.abs().amax((1, 2, 3)) > 0).all()
    assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize(
    ("name", "grid", "size"),
    [("dinov2-s", 16, 224), ("dinov2-s", 24, 336), ("dinov2-s", 32, 448), ("siglip2-b", 16, 256)],
)
def test_the_paper_s_sizes(name, grid, size):
    assert Teacher.random(0, name, grid).config.image_size == size


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def shown(teacher: Teacher, image: Tensor) -> Tensor:
    """What the encoder is given."""
    seen = []
    handle = teacher.encoder.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    teacher(image)
    handle.remove()
    return seen[0]


def keys_cubic(places: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel that reaches over two pixels, a = -0.75."""
    d = np.abs(places)
    near, far = (1.25 * d - 2.25) * d * d + 1, ((-0.75 * d + 3.75) * d - 6) * d + 3
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


@pytest.mark.parametrize("size", [96, 40, 64])
def test_published_vits_see_pictures_resized_without_antialiasing_as_released(size):
    image = pictures(size, 1)
    places = (np.arange(64) + 0.5) * size / 64 - 0.5  # in pixels of the picture, whose edge goes on
    weights = np.zeros((64, size))
    for offset in range(-1, 3):
        pixel = np.floor(places) + offset
        at = pixel.clip(0, size - 1).astype(int)
        np.add.at(weights, (np.arange(64), at), keys_cubic(places - pixel))
    found = shown(copy.deepcopy(_teacher("clip-b")), image)
    for channel, (mean, std) in enumerate(zip(CLIP_MEAN, CLIP_STD, strict=True)):
        unit = (image[0, channel].double().numpy() + 1) / 2
        np.testing.assert_allclose(found[0, channel], (weights @ unit @ weights.T - mean) / std, atol=5e-5)


@pytest.mark.parametrize("size", [96, 40])
def test_the_small_world_s_teachers_see_pictures_resized_as_pillow_does(size):
    image, found = pictures(size, 1), shown(Teacher.random(0), pictures(size, 1))
    for channel in range(3):
        unit = image[0, channel].numpy()
        resized = Image.fromarray(unit, mode="F").resize((64, 64), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(found[0, channel], np.asarray(resized), atol=2e-5)


def test_position_embeddings_are_resampled_and_prefix_positions_kept():
    torch.manual_seed(0)
    native = timm.create_model(TEACHERS["dinov2-s"].timm, num_classes=0).pos_embed.detach()
    ours = Teacher.random(0, "dinov2-s", 16).encoder.pos_embed
    assert native.shape == (1, 1 + 37 * 37, 384) and ours.shape == (1, 1 + 16 * 16, 384)
    assert torch.equal(ours[:, 0], native[:, 0])
    old = native[0, 1:].T.reshape(384, 37, 37)
    channel = Image.fromarray(old[5].numpy(), mode="F").resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(ours[0, 1:, 5].reshape(16, 16), channel, atol=1e-6)
    assert torch.equal(Teacher.random(0, "dinov2-s").encoder.pos_embed, native)  # no grid: as it is


# What they answer, against a forward written out here in float64


def layer_norm(x: Tensor, p: dict, name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
    return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(x: Tensor, p: dict, name: str) -> Tensor:
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def rotated(x: Tensor, grid: int, prefix: int) -> Tensor:
    """DINOv3's rotary positions on (B, heads, tokens, d): row and column centres in [-1, 1], a quarter of
    the channels' pairs turning at each of d/4 frequencies."""
    d = x.shape[-1]
    centres = (torch.arange(grid, dtype=x.dtype) + 0.5) / grid * 2 - 1
    rows, columns = centres.repeat_interleave(grid), centres.repeat(grid)
    periods = 100 ** (torch.arange(d // 4, dtype=x.dtype) / (d // 4))
    angle = 2 * math.pi * torch.cat([rows[:, None] / periods, columns[:, None] / periods], -1)
    real, imaginary = x[..., prefix:, : d // 2], x[..., prefix:, d // 2 :]
    turned = torch.cat(
        [real * angle.cos() - imaginary * angle.sin(), imaginary * angle.cos() + real * angle.sin()], -1
    )
    return torch.cat([x[..., :prefix, :], turned], -2)


def by_hand(name: str, teacher: Teacher, images: Tensor, normed: bool = True) -> list[Tensor]:
    """Patches after each block, from the weights alone. images: of the teacher's own size."""
    p = {key: value.double() for key, value in teacher.encoder.state_dict().items()}
    eps = 1e-5 if name in ("clip-b", "dinov3-s") else 1e-6
    patch, dim, prefix, _ = FAMILIES[name]
    heads, grid = teacher.config.heads, teacher.grid
    x = ((images.double() + 1) / 2 - teacher.mean.double()) / teacher.std.double()
    kernel = p["patch_embed.proj.weight"]
    x = F.unfold(x, patch, stride=patch).transpose(1, 2) @ kernel.reshape(dim, -1).T
    x = x + p.get("patch_embed.proj.bias", 0)
    front = [p[key].expand(len(x), -1, -1) for key in ("cls_token", "reg_token") if key in p]
    if "reg" in name:  # registers have no position, and in these neither has the class token
        x = torch.cat([*front, x + p["pos_embed"]], 1)
    else:
        x = torch.cat([*front, x], 1) + p.get("pos_embed", 0)
    if "norm_pre.weight" in p:
        x = layer_norm(x, p, "norm_pre", eps)
    answers = []
    for i in range(teacher.depth):
        b = f"blocks.{i}."
        qkv = linear(layer_norm(x, p, b + "norm1", eps), p, b + "attn.qkv")
        q, k, v = qkv.reshape(*x.shape[:2], 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
        if "dinov3" in name:
            q, k = rotated(q, grid, prefix), rotated(k, grid, prefix)
        mixed = (q @ k.mT / math.sqrt(dim // heads)).softmax(-1) @ v
        y = linear(mixed.transpose(1, 2).flatten(2), p, b + "attn.proj")
        x = x + y * p.get(b + "ls1.gamma", p.get(b + "gamma_1", 1))
        y = linear(layer_norm(x, p, b + "norm2", eps), p, b + "mlp.fc1")
        if name == "dinov2-g":
            gate, up = y.chunk(2, -1)
            y = gate * gate.sigmoid() * up
        elif name == "clip-b":
            y = y * (1.702 * y).sigmoid()
        else:
            y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
        y = linear(y, p, b + "mlp.fc2")
        x = x + y * p.get(b + "ls2.gamma", p.get(b + "gamma_2", 1))
        answers.append((layer_norm(x, p, "norm", eps) if normed else x)[:, prefix:])
    return answers


@pytest.mark.parametrize("name", list(FAMILIES)[:-1])
def test_features_are_the_normed_patches_of_the_asked_blocks(name):
    teacher = _teacher(name)
    images = pictures(teacher.config.image_size)
    expected = by_hand(name, teacher, images)
    blocks = [teacher.depth, 1, teacher.depth]
    for found, block in zip(teacher.features(images, blocks), blocks, strict=True):
        torch.testing.assert_close(found.double(), expected[block - 1], atol=2e-4, rtol=2e-4)
    *seen, own = teacher.features(images, [1, teacher.depth], own=True)
    assert torch.equal(teacher(images), own)
    if name == "clip-b":  # released code leaves its last norm out
        expected = by_hand(name, teacher, images, normed=False)
    torch.testing.assert_close(own.double(), expected[-1], atol=5e-4, rtol=5e-4)
    assert torch.equal(own, seen[-1]) == (name != "clip-b")


@pytest.mark.parametrize("name", ["dinov2-s-reg", "clip-b"])
def test_an_inner_block_is_taken_as_it_is(name):
    teacher = _teacher(name)
    inner = Teacher(teacher.config, copy.deepcopy(teacher.encoder), teacher.grid, name, block=1)
    images = pictures(teacher.config.image_size)
    expected = by_hand(name, teacher, images, normed=False)[0]
    torch.testing.assert_close(inner(images).double(), expected, atol=2e-4, rtol=2e-4)
    assert torch.equal(inner.features(images, [2])[0], teacher.features(images, [2])[0])
    assert "block 1 of 2" in inner.note
    with pytest.raises(ValueError, match="teacher_block is 3; teacher .* has blocks 1 to 2"):
        Teacher(teacher.config, copy.deepcopy(teacher.encoder), teacher.grid, name, block=3)


def test_a_norm_that_follows_the_pooling_is_found_all_the_same():
    teacher = _teacher("eva02_tiny_patch14_224.mim_in22k")
    assert not isinstance(teacher.encoder.norm, torch.nn.Identity)
    teacher.encoder.norm.weight.data.fill_(1), teacher.encoder.norm.bias.data.fill_(0)
    first, last = teacher.features(pictures(), [1, 2])
    for found in (first, last):
        torch.testing.assert_close(found.mean(-1), torch.zeros(2, 16), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.std(-1), torch.ones(2, 16), atol=0.02, rtol=0)


def test_a_saved_one_comes_back_and_any_folder_takes_another_grid(tmp_path):
    teacher = _teacher("dinov3-s")
    teacher.save_pretrained(tmp_path / "a")
    loaded = Teacher.from_pretrained(tmp_path / "a")
    torch.testing.assert_close(loaded(pictures()), teacher(pictures()), atol=0.05, rtol=0.05)
    assert asdict(loaded.config) == asdict(teacher.config) | {
        "mean": list(teacher.config.mean),
        "std": list(teacher.config.std),
    }
    coarse = Teacher.from_pretrained(tmp_path / "a", grid=2)
    assert coarse(pictures()).shape == (2, 4, 384)
    assert coarse.fingerprint() == loaded.fingerprint() != Teacher.random(0, "dinov3-s").fingerprint()
    shipped = Teacher.from_pretrained("tiny", grid=16)
    assert shipped.config.image_size == 128 and shipped(pictures()).shape == (2, 256, 128)
    with pytest.raises(ValueError, match="'tiny' brings its own weights.*x.safetensors"):
        Teacher.from_pretrained("tiny", weights="x.safetensors")


# Where weights come from


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """The small model's weights, head included, as its authors might publish them."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("published") / "model.safetensors"
    save_file(timm.create_model(SMALL, depth=2).state_dict(), path)
    return path


def test_a_weights_file_is_read_whatever_its_format(tmp_path, published):
    state = load_file(published)
    torch.save({"model": state}, tmp_path / "checkpoint.pth")
    one = Teacher.from_pretrained(SMALL, 4, published)
    other = Teacher.from_pretrained(f"timm:{SMALL}", 4, tmp_path / "checkpoint.pth")
    assert torch.equal(one(pictures()), other(pictures()))
    assert torch.equal(one.encoder.blocks[1].mlp.fc1.weight, state["blocks.1.mlp.fc1.weight"])
    assert one.fingerprint() == other.fingerprint() and "model.safetensors" in one.note


@pytest.mark.parametrize("name", [pytest.param("dinov2-g", marks=pytest.mark.slow), "dinov2-s-reg"])
def test_the_authors_own_files_of_dinov2_are_converted(name, tmp_path):
    teacher = Teacher.random(3, name)
    theirs = {}
    for key, value in teacher.encoder.state_dict().items():
        if name == "dinov2-g":
            key = key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        theirs[key] = value.clone()
    if name == "dinov2-s-reg":  # they add a position to the class token, timm's file holds the sum
        position = torch.ones(1, 1, 384)
        theirs["register_tokens"] = theirs.pop("reg_token")
        theirs["cls_token"] -= position
        theirs["pos_embed"] = torch.cat([position, theirs["pos_embed"]], 1)
    torch.save(theirs | {"mask_token": torch.zeros(1, 8)}, tmp_path / "theirs.pth")
    loaded = Teacher.from_pretrained(name, weights=tmp_path / "theirs.pth")
    assert loaded.fingerprint() == teacher.fingerprint()
    for key, value in teacher.encoder.state_dict().items():
        torch.testing.assert_close(loaded.encoder.state_dict()[key], value, msg=key)


class Trap:
    """Unpickled, it would create the file `sprung`."""

    def __reduce__(self):
        return (open, ("sprung", "w"))


def test_files_that_do_not_fit_are_refused_and_never_run(tmp_path, published, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = load_file(published)
    short = {key: value for key, value in state.items() if key != "blocks.1.norm2.bias"}
    save_file(short, tmp_path / "short.safetensors")
    save_file(Teacher.random(0, "dinov2-s").encoder.state_dict(), tmp_path / "other.safetensors")
    save_file(state | {"colour": torch.zeros(1)}, tmp_path / "more.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(published.read_bytes()[:5000])
    torch.save({"model": Trap()}, tmp_path / "trap.pth")
    for name, says in {
        "short.safetensors": "Missing.*blocks.1.norm2.bias",
        "other.safetensors": "size mismatch",
        "more.safetensors": "Unexpected.*colour",
        "torn.safetensors": "",
        "trap.pth": "",
    }.items():
        with pytest.raises(ValueError, match=f"{name} does not hold the weights of {SMALL}.*{says}"):
            Teacher.from_pretrained(SMALL, 4, tmp_path / name)
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(FileNotFoundError, match=f"{SMALL}.*nowhere.pth, which is not there; .*--teacher-w"):
        Teacher.from_pretrained(SMALL, 4, tmp_path / "nowhere.pth")


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Path:
    """No network, and an empty cache, returned."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_offline_the_message_names_the_model_and_the_ways_out(offline):
    model = TEACHERS["dinov2-b"].timm
    with pytest.raises(FileNotFoundError) as caught:
        Teacher.from_pretrained("dinov2-b", 16)
    for part in ("'dinov2-b'", f"timm/{model}", "--teacher-weights FILE", "HF_HUB_CACHE", "hf download"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_offline_the_hub_s_cache_serves(offline, published):
    model = f"{SMALL}.augreg_in21k_ft_in1k"
    repository, commit = offline / f"models--timm--{model}", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "model.safetensors").write_bytes(published.read_bytes())
    cached, given = Teacher.from_pretrained(model, 4), Teacher.from_pretrained(model, 4, published)
    assert torch.equal(cached(pictures()), given(pictures()))


@pytest.mark.slow
def test_importing_the_package_imports_no_timm():
    code = "import sys; from gear_studio.models import projector, teachers; sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# The spatial norm


def test_spatial_norms_are_the_paper_s():
    z = torch.randn(2, 16, 5) * torch.tensor([1, 2, 3, 4, 0.01]) + torch.tensor([9, 0, -3, 1, 2.0])
    x = z.double().numpy()
    for alpha in (0.6, 1.0):
        centred = x - alpha * x.mean(axis=1, keepdims=True)
        deviation = np.sqrt(((x - x.mean(1, keepdims=True)) ** 2).sum(1, keepdims=True) / 15)
        np.testing.assert_allclose(spatial_norm(z, "demean", alpha), centred, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            spatial_norm(z, "zscore", alpha), centred / deviation, rtol=1e-3, atol=1e-4
        )
    assert torch.equal(spatial_norm(z, "none"), z)
    assert spatial_norm(z.bfloat16(), "zscore").dtype == torch.float32
    assert spatial_norm(torch.ones(1, 4, 2), "zscore").isfinite().all()


def test_each_family_has_its_own_norm_and_a_recipe_overrides_it():
    teacher, z = tiny.teacher(), torch.randn(1, 16, 5) + 3
    arches = {name: f"timm:{TEACHERS[name].timm}" for name in teachers_of("published")}
    unlisted = ("vit_huge_patch14_gap_224.in1k_ijepa", "vit_base_patch16_siglip_384.v2_webli", SMALL)
    arches |= {name: f"timm:{name}" for name in unlisted} | {"a folder": "vit", "pixels": "pixels"}
    for name, arch in arches.items():
        teacher.config = replace(teacher.config, arch=arch)
        wanted = "zscore" if any(family in name for family in ("clip", "siglip", "jepa")) else "none"
        assert torch.equal(teacher.alignment_target(z), spatial_norm(z, wanted)), name
        assert torch.equal(teacher.alignment_target(z, "demean", 0.3), spatial_norm(z, "demean", 0.3))
    with pytest.raises(ValueError, match="unknown spatial_norm 'whiten'; choose one of auto, none, demean"):
        teacher.alignment_target(z, "whiten")


def test_a_new_teacher_is_one_line_in_the_table(monkeypatch):
    """Its norm is what the line says, and nobody guesses it from the name."""
    line = KnownTeacher(SMALL, spatial_norm="zscore")
    monkeypatch.setitem(TEACHERS, "mine", line)
    teacher, z = Teacher.random(0, "mine", grid=4), torch.randn(1, 16, 5) + 3
    assert torch.equal(teacher.alignment_target(z), spatial_norm(z, "zscore"))
    assert (line.kind, line.patch_size, teacher.config.patch_size) == ("published", 16, 16)


def test_the_table_knows_what_each_teacher_is():
    assert teachers_of("shipped") == ["tiny"] and teachers_of("control") == ["random", "pixels"]
    assert [TEACHERS[name].patch_size for name in ("dinov2-b", "dinov3-b", "clip-l", "tiny")] == [
        14,
        16,
        14,
        None,
    ]


# Training with them


def wide() -> Teacher:
    """A second tiny teacher, of another width, that looks at larger pictures."""
    torch.manual_seed(5)
    config = TeacherConfig(image_size=64, patch_size=8, dim=48, depth=1, heads=2)
    return Teacher(config, build_encoder(config), grid=4, name="wide")


def two_teachers(stage: str = "joint", arm: str = "gear", **changes) -> Stage:
    torch.manual_seed(0)
    first = tiny.teacher()
    first.name = "narrow"
    made = Stage(
        stage,
        arm,
        tiny.recipe(**changes),
        first,
        Accelerator(cpu=True),
        Tokenizer(tiny.TOKENIZER),
        more_teachers=[wide()],
    )
    tiny.wake(made.modules["aligned"].generator)
    return made


@pytest.mark.parametrize(
    ("stage", "arm", "names"),
    [
        ("joint", "gear", ["alignment_soft", "alignment_hard"]),
        ("joint", "straight-through", ["alignment_straight_through", "alignment_hard"]),
        ("generator", "gear", ["alignment_hard"]),
    ],
)
def test_several_teachers_are_aligned_with_side_by_side(stage, arm, names):
    training = two_teachers(stage, arm, spatial_norm="zscore")
    projectors = training.modules["aligned"].projectors
    before = copy.deepcopy(projectors.state_dict())
    images, labels = tiny.batch()
    losses = training.step(1, images, labels)
    for name in names:
        each = [losses[f"{name}_narrow"].item(), losses[f"{name}_wide"].item()]
        assert losses[name].item() == pytest.approx(sum(each) / 2)
        assert each[0] != each[1]
    moved = {key for key, value in projectors.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == set(before)
    assert [projector.config.teacher_dim for projector in projectors] == [32, 48]
    saved = training.gather_parts()
    assert {"projector", "projector-wide"} <= set(saved)
    assert saved["projector"].config.teacher_dim == 32 and saved["projector-wide"].config.teacher_dim == 48
    held_out = training.validate(images, labels)
    assert {"alignment", "alignment_narrow", "alignment_wide"} <= set(held_out)


def test_each_projection_is_compared_with_its_own_teacher_s_normed_features():
    training = two_teachers(spatial_norm="demean", spatial_norm_alpha=0.3)
    images, labels = tiny.batch()
    targets = training.compute_targets(images, training.teacher(images))
    for teacher, target in zip(training.teachers, targets, strict=True):
        torch.testing.assert_close(target, spatial_norm(teacher(images), "demean", 0.3))
    losses: dict[str, Tensor] = {}
    aligned = training.modules["aligned"]
    with frozen(aligned):
        training.compute_guidance(training.tokenizer.assign(images), labels, targets, losses)
    aligned.eval()
    projected = aligned.project_tap(
        training.tokenizer.assign(images), labels, lambda a, table: (a.scores / 0.1).softmax(-1) @ table
    )
    for name, ours, theirs in zip(("narrow", "wide"), projected, targets, strict=True):
        torch.testing.assert_close(losses[f"alignment_soft_{name}"], alignment_loss(ours, theirs))


def test_with_one_teacher_nothing_is_logged_twice():
    losses = tiny.stage("joint", "gear").step(1, *tiny.batch())
    assert [name for name in losses if name.startswith("alignment")] == ["alignment_soft", "alignment_hard"]


def test_teachers_of_a_recipe_are_read_in_order(tmp_path, published):
    wide().save_pretrained(tmp_path / "wide")
    names = f"{SMALL}+{tmp_path / 'wide'}"
    with pytest.raises(ValueError, match="1 weights files for 2 teachers"):
        load_teachers(names, 4, [published])
    both = load_teachers(f"{SMALL}+{SMALL}.augreg_in21k", 4, [published, published])
    assert [teacher.name for teacher in both] == [SMALL, f"{SMALL}.augreg_in21k"]
    assert [teacher.grid for teacher in both] == [4, 4]
    with pytest.raises(ValueError, match="wide, wide: .*name each one once"):
        load_teachers(f"{tmp_path / 'wide'}+{tmp_path / 'wide'}", 4)


def test_a_run_with_two_teachers_of_any_grid(tmp_path, teacher_folder):
    wide().save_pretrained(tmp_path / "wide")
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["image_size"] == 32
    recipe = tiny.recipe(f"{teacher_folder}+{tmp_path / 'wide'}", steps=2, checkpoint_every=2)
    warmup = loop.train(Training("digits", "warmup", recipe=recipe, out=tmp_path / "warmup"), progress=False)
    training = Training("digits", "joint", "gear", recipe, out=tmp_path / "joint", parent=warmup.folder)
    joint = loop.train(training, progress=False)
    assert {"alignment_hard_wide", "val_alignment_wide"} <= set(joint.metrics[-1])
    assert joint.teacher.dim == joint.projector.config.teacher_dim == 32
    assert Projector.from_pretrained(tmp_path / "joint" / "projector-wide").config.teacher_dim == 48
    assert len(joint.config["teacher_sha256"]) == 2


def test_a_run_finds_its_weights_file_again_or_says_what_is_missing(tmp_path, published):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(published.read_bytes())
    recipe = tiny.recipe(SMALL, teacher_weights=(str(weights),), steps=2, checkpoint_every=2)
    loop.train(Training("digits", recipe=recipe, out=tmp_path / "run"), progress=False)
    run = Run.from_pretrained(tmp_path / "run")
    assert run.teacher.grid == 4
    assert torch.equal(run.teacher(pictures()), Teacher.from_pretrained(SMALL, 4, published)(pictures()))

    other = {key: value + 1 for key, value in load_file(published).items()}
    save_file(other, weights)
    with pytest.raises(ValueError, match="run run was trained with other weights of teacher"):
        _ = Run.from_pretrained(tmp_path / "run").teacher
    with pytest.raises(ValueError, match="another run .teacher_sha256"):
        loop.train(Training("digits", recipe=recipe, out=tmp_path / "run"), progress=False)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="weights.safetensors, which is not there"):
        _ = Run.from_pretrained(tmp_path / "run").teacher


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_training_goes_on_with_a_teacher_that_lies_elsewhere_by_now(
    kind, tmp_path, published, teacher_folder
):
    def training(place: Path) -> Training:
        asked = (
            {"teacher": SMALL, "teacher_weights": (str(place),)}
            if kind == "file"
            else {"teacher": str(place)}
        )
        return Training(
            "digits", recipe=tiny.recipe(**asked, steps=2, checkpoint_every=2), out=tmp_path / "run"
        )

    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    if kind == "file":
        old.write_bytes(published.read_bytes())
    else:
        shutil.copytree(teacher_folder, old)
    loop.train(training(old), progress=False)
    old.rename(new)
    record = read_json(tmp_path / "run" / "record.json", "a run")
    write_json(tmp_path / "run" / "record.json", record | {"finished": False})
    run = loop.train(training(new), progress=False)
    assert run.finished and run.teacher.grid == 4  # it is found where it lies now


def test_a_recipe_s_block_is_what_training_and_its_run_align_with(tmp_path, teacher_folder):
    recipe = tiny.recipe(teacher_folder, teacher_block=1, steps=2)
    run = loop.train(Training("digits", "warmup", recipe=recipe, out=tmp_path / "w"), progress=False)
    joint = Training("digits", "joint", "gear", recipe, out=tmp_path / "j", parent=run.folder)
    run = loop.train(joint, progress=False)
    images = pictures(32)
    whole = Teacher.from_pretrained(teacher_folder, run.tokenizer.grid)
    (raw,) = whole.encoder.forward_intermediates(
        images, indices=[0], norm=False, output_fmt="NLC", intermediates_only=True
    )
    assert run.teacher.block == 1 and torch.equal(run.teacher(images), raw)
    assert not torch.allclose(raw, whole(images))
    stage = tiny.stage("joint", "gear", perceptual_blocks=(1, 2))
    stage.teacher.block, stage.teacher.normed = 1, False
    seen, targets = stage.ask_teachers(images)
    assert len(seen) == 2 and torch.equal(targets[0], stage.teacher(images))


@pytest.mark.parametrize("name", ["vjepa2.1-b", "timm:vit_base_patch16_vjepa21"])
def test_v_jepa_says_that_no_installed_package_has_it(name):
    with pytest.raises(FileNotFoundError, match=f"{name}.*timm .* has no V-JEPA.*not V-JEPA 2.1.*timm:NAME"):
        Teacher.from_pretrained(name, 4)


def test_a_run_s_target_is_the_normed_features(tmp_path, teacher_folder):
    config = {"stage": "joint", "parent": None}
    z = torch.randn(1, 16, 32)
    for name, changes in {
        "plain": {},
        "normed": {"spatial_norm": "zscore", "spatial_norm_alpha": 0.2},
    }.items():
        recipe = asdict(tiny.recipe(teacher_folder, **changes))
        Tokenizer(tiny.TOKENIZER).save_pretrained(tmp_path / name / "tokenizer")
        (tmp_path / name / "config.json").write_text(json.dumps(config | {"recipe": recipe}))
    assert torch.equal(Run.from_pretrained(tmp_path / "plain").alignment_target(z), z)
    normed = Run.from_pretrained(tmp_path / "normed").alignment_target(z)
    assert torch.equal(normed, spatial_norm(z, "zscore", 0.2))


def test_the_command_line_hands_the_file_on_with_its_whole_path(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        loop, "train", lambda training: seen.append(training.resolved) or Run.from_pretrained("gear")
    )
    monkeypatch.chdir(tmp_path)
    words = "--teacher-weights a.pth b.safetensors --set teacher=dinov2-b+siglip2-b spatial_norm=none"
    monkeypatch.setattr(sys, "argv", ["gear-studio", "train", "shapes", *words.split()])
    cli.main()
    assert seen[0].teacher_weights == (str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors"))
    assert (seen[0].teacher, seen[0].spatial_norm) == ("dinov2-b+siglip2-b", "none")
