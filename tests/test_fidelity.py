"""Distances, scores and their sums against independent arithmetic, and the evaluation of a whole Run."""

import dataclasses
import json
import pickle
import shutil
import sys
from collections import Counter
from pathlib import Path
from urllib.error import URLError

import huggingface_hub.constants
import numpy as np
import pytest
import scipy.linalg
import timm
import tiny
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from gear_studio import Run, cli, data, sampling
from gear_studio.analysis import agreement, fidelity, reference
from gear_studio.analysis.fidelity import METRICS, EvaluationOptions, evaluate
from gear_studio.analysis.metrics import MetricName
from gear_studio.analysis.networks import FeatureNetworks
from gear_studio.analysis.reconstruction import EXACT, psnr
from gear_studio.analysis.statistics import (
    Moments,
    Points,
    Predictions,
    Statistics,
    frechet_distance,
    kernel_distance,
    precision_recall,
    precision_recall_density_coverage,
)
from gear_studio.data.images import SUFFIXES, to_uint8
from gear_studio.data.prompts import ClassLabels
from gear_studio.files import read_json, write_json
from gear_studio.models import dinov2, inception, text_encoders
from gear_studio.models.judges import AttributeJudge
from gear_studio.models.tokenizer import Tokenizer


def rows(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def statistics_of(features: torch.Tensor) -> Statistics:
    """All at once, by NumPy."""
    x = features.double().numpy()
    return Statistics(x.mean(0), np.cov(x, rowvar=False))


def frechet_by_scipy(a: Statistics, b: Statistics) -> float:
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    traces = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.trace(root).real
    return float(((a.mean - b.mean) ** 2).sum() + traces)


# Statistics


@pytest.mark.parametrize(("generated", "real"), [(300, 200), (120, 1500)])
def test_overlap_and_kernel_distance_against_plain_numpy(generated, real):
    fake, true = rows(generated, 8) * 1.2 + 0.3, rows(real, 8, seed=1)
    count = min(generated, real)
    x, y = (p.double().numpy()[np.arange(count) * len(p) // count] for p in (fake, true))
    distances = np.linalg.norm(y[:, None] - x[None], axis=-1)  # real, generated
    reach_y, reach_x = (np.sort(np.linalg.norm(p[:, None] - p[None], axis=-1))[:, 5] for p in (y, x))
    expected = {
        "precision": (distances < reach_y[:, None]).any(0).mean(),
        "recall": (distances < reach_x).any(1).mean(),
        "density": (distances < reach_y[:, None]).sum(0).mean() / 5,
        "coverage": (distances.min(1) < reach_y).mean(),
    }
    assert precision_recall_density_coverage(fake, true) == pytest.approx(expected)
    assert 0.1 < expected["precision"] < 1 and 0.1 < expected["coverage"] < 1
    size = min(count, 150)
    rng, parts = np.random.default_rng(0), []
    for _ in range(3):
        a = fake.double().numpy()[rng.choice(generated, size, replace=False)]
        b = true.double().numpy()[rng.choice(real, size, replace=False)]
        ka, kb, kab = ((u @ v.T / 8 + 1) ** 3 for u, v in ((a, a), (b, b), (a, b)))
        off = ~np.eye(size, dtype=bool)
        parts.append(ka[off].mean() + kb[off].mean() - 2 * kab.mean())
    assert kernel_distance(fake, true, 3, size) == pytest.approx(np.mean(parts))
    assert abs(kernel_distance(true, true.flip(0), 20, size)) < np.mean(parts)


def test_overlap_and_kernel_distance_take_a_few_points():
    with pytest.raises(ValueError, match="of 5 generated and 9 real pictures .* more than 5 of each"):
        precision_recall_density_coverage(rows(5, 3), rows(9, 3))
    with pytest.raises(ValueError, match="kernel distance of 1 pictures .* at least 2"):
        kernel_distance(rows(1, 3), rows(9, 3))


def test_the_frechet_distance_against_scipy():
    mix = rows(20, 20, seed=9)
    a, b = statistics_of(rows(500, 20) @ mix + 1), statistics_of(rows(400, 20, seed=1) * 3)
    assert frechet_distance(a, b) == pytest.approx(frechet_by_scipy(a, b), rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_by_hand_where_covariances_commute():
    a = Statistics(np.array([0.0, 0.0]), np.diag([4.0, 9.0]))
    b = Statistics(np.array([3.0, 4.0]), np.diag([1.0, 0.0]))  # singular, as from too few pictures
    assert frechet_distance(a, b) == pytest.approx(25 + (2 - 1) ** 2 + 3**2)


@pytest.mark.parametrize("count", [20, 400])
def test_the_distance_of_a_set_with_itself_is_not_below_zero(count):
    features = 10 * rows(count, 300) * torch.logspace(0, -6, 300)  # of most directions only rounding is left
    same = statistics_of(features)
    assert 0 <= frechet_distance(same, same) < 1e-6 * np.trace(same.covariance)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("summary", [Moments(4), Points(8, 4), Predictions(20, 4)])
def test_a_feature_that_is_no_number_is_said_to_be_one(summary, wrong):
    features = rows(8, 4)
    features[3, 2] = wrong
    summary.add(0, features)
    with pytest.raises(ValueError, match="features of some pictures are NaN or infinite"):
        summary.result()


def test_cached_statistics_that_are_no_numbers_are_taken_again(tmp_path):
    cache, mean = reference.StatisticsCache(tmp_path), np.full(3, np.nan)
    cache.store(tmp_path / "fd.npz", "fd", Statistics(mean, np.eye(3)))
    assert cache.load(tmp_path / "fd.npz", "fd") is None


def test_equal_pictures_have_a_psnr():
    images = torch.rand(2, 3, 4, 4)
    assert psnr(images, images).tolist() == [EXACT] * 2


def test_moments_added_up_in_batches_and_processes_are_those_of_all_rows():
    features = rows(301, 30) @ rows(30, 30, seed=1) + 100  # far from the origin
    here, there = Moments(30), Moments(30)
    for number, batch in enumerate(features.split(64)):
        (here, there)[number % 2].add(number * 64, batch)
    here.sums += there.sums
    found, expected = here.result(), statistics_of(features)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-8, atol=1e-8)
    assert found.covariance.dtype == np.float64
    with pytest.raises(ValueError, match="1 pictures"):
        one = Moments(30)
        one.add(0, features[:1])
        one.result()


def test_the_inception_score_is_that_of_torch_fidelity():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = rows(57, 12) * 3  # 57: the ten parts are not equally long
    here, there = Predictions(57, 12), Predictions(57, 12)
    for number, batch in enumerate(logits.split(8)):
        (here, there)[number % 2].add(number * 8, batch)
    here.sums += there.sums
    expected = isc_features_to_metric(logits, splits=10, shuffle=False)["inception_score_mean"]
    assert here.result() == pytest.approx(expected, rel=1e-9) and expected > 1.5


def test_the_inception_score_by_hand():
    """Sure of a class, each as often: the number of classes. Always the same answer: 1."""
    every, same = Predictions(40, 4), Predictions(40, 4)
    every.add(0, 1e3 * torch.eye(4).repeat(10, 1))
    same.add(0, torch.zeros(40, 4))
    assert every.result() == pytest.approx(4) and same.result() == pytest.approx(1)
    with pytest.raises(ValueError, match="5 pictures"):
        Predictions(5, 4).result()


@pytest.mark.parametrize("stride", [1, 3, 7])
def test_points_are_every_so_manieth_row_whatever_the_batches(stride):
    features = rows(50, 4)
    here, there = Points(50, 4, stride), Points(50, 4, stride)
    for number, batch in enumerate(features.split(6)):
        (here, there)[number % 2].add(number * 6, batch)
    here.sums += there.sums
    assert torch.equal(here.result(), features[::stride])


def test_precision_and_recall_of_points_on_a_line():
    real, generated = torch.tensor([[0.0], [1], [2], [10]]), torch.tensor([[0.5], [100], [101], [102]])
    # Real balls reach 1, 1, 1 and 8 far: they hold 0.5 alone. The generated point 0.5 reaches to 100.
    assert precision_recall(generated, real, neighbours=1) == {"precision": 0.25, "recall": 1.0}
    assert precision_recall(real, generated, neighbours=1) == {"precision": 1.0, "recall": 0.25}
    with pytest.raises(ValueError, match="3 generated and 4 real"):
        precision_recall(generated[:3], real)


# Inception


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory) -> Path:
    """As torch-fidelity publishes it, with random weights."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        net = theirs.FeatureExtractorInceptionV3("random", ["2048"])
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    path = tmp_path_factory.mktemp("inception") / "weights-inception-2015-12-05-6726825d.pth"
    torch.save(net.state_dict(), path)
    return path


def test_inception_gives_the_features_of_torch_fidelity_and_adm_s_spatial_ones(inception_file):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    names = ["2048", "logits_unbiased"]
    theirs = FeatureExtractorInceptionV3("random", names, str(inception_file))
    before = []
    theirs.Mixed_6d.register_forward_hook(lambda module, given, result: before.append(result))
    pictures = to_uint8(tiny.batch(size=2)[0])
    pooled, logits = theirs(pictures)
    found = inception.Inception(inception_file)(pictures)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "fid": (2, 2048),
        "sfid": (2, 2023),
        "is": (2, 1008),
    }
    assert torch.equal(found["fid"], pooled) and torch.equal(found["is"], logits)
    # The block's output begins with its 1 x 1 branch. ADM's rows run over y, x, then channel.
    expected = before[0][:, :7].permute(0, 2, 3, 1).reshape(2, -1)
    assert torch.equal(found["sfid"], expected) and expected.std() > 0
    assert (pooled[0] - pooled[1]).abs().max() > 1e-3


def test_offline_inception_says_what_to_fetch(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(FileNotFoundError) as caught:
        inception.Inception()
    for part in (inception.WEIGHTS, str(tmp_path / "hub" / "checkpoints"), "--inception-weights FILE"):
        assert part in str(caught.value)


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(ValueError, match=r"linear\.pth does not fit Inception"):
        inception.Inception(tmp_path / "linear.pth")


# DINOv2


@pytest.fixture(scope="module")
def dinov2_file(tmp_path_factory):
    """As timm publishes it, with random weights, and timm that builds it with one block of 32 channels."""
    create = timm.create_model

    def cut(name: str, **options):
        return create(name, **{"depth": 1, "embed_dim": 32, "num_heads": 2} | options)

    torch.manual_seed(0)
    state = cut("vit_large_patch14_dinov2").state_dict()
    for value in state.values():  # as drawn, layer scales of 1e-5 hide the block
        value.add_(0.1 * torch.randn_like(value))
    path = tmp_path_factory.mktemp("dinov2") / "model.safetensors"
    save_file(state, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", cut)
        yield path


def seen_by(net: dinov2.DINOv2, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the network is given of pictures, and what it answers."""
    given = []
    hook = net.net.patch_embed.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    answer = net(pictures)
    hook.remove()
    return given[0], answer


@pytest.mark.parametrize("shape", [(32, 32), (300, 250), (224, 224)])
def test_dinov2_is_given_what_pillow_makes_of_8_bit_pictures(dinov2_file, shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found, _ = seen_by(dinov2.DINOv2(dinov2_file), torch.from_numpy(picture).permute(2, 0, 1)[None])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    levels = (found[0].permute(1, 2, 0).numpy() * std + mean) * 255
    expected = np.asarray(Image.fromarray(picture).resize((224, 224), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(levels, levels.round(), atol=1e-3)
    assert np.abs(levels - expected).max() < 2.01 and np.abs(levels - expected).mean() < 0.02


def cubic(count: int, size: int, scale: float) -> torch.Tensor:
    """Cubic convolution (Keys, a = -0.75) from `size` points to `count`, at a scale that is told: (count,
    size)."""
    weights = torch.zeros(count, size, dtype=torch.float64)
    for i in range(count):
        at = (i + 0.5) / scale - 0.5
        for j in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            t = abs(at - j)
            near, far = 1.25 * t**3 - 2.25 * t**2 + 1, -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
            weights[i, min(max(j, 0), size - 1)] += near if t <= 1 else far
    return weights


def test_fd_dinov2_is_taken_in_the_class_token_by_dinov2_s_own_positions(dinov2_file):
    """Against a forward written out in float64."""
    p = {key: value.double() for key, value in load_file(dinov2_file).items()}
    net = dinov2.DINOv2(dinov2_file)
    given, found = seen_by(net, to_uint8(tiny.batch(size=3)[0]))
    assert found.shape == (3, 32) and net.dim == 32 and not net.net.training
    resize = cubic(16, 37, 16.1 / 37)
    patches = torch.einsum("ai,bj,ijd->abd", resize, resize, p["pos_embed"][0, 1:].view(37, 37, 32))
    positions = torch.cat([p["pos_embed"][0, :1], patches.flatten(0, 1)])
    x = F.conv2d(given.double(), p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], stride=14)
    x = torch.cat([p["cls_token"].expand(3, -1, -1), x.flatten(2).mT], 1) + positions

    def layer(kind, x: torch.Tensor, name: str) -> torch.Tensor:
        return kind(x, p[f"{name}.weight"], p[f"{name}.bias"])

    def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (32,), weight, bias, eps=1e-6)

    y = layer(F.linear, layer(norm, x, "blocks.0.norm1"), "blocks.0.attn.qkv")
    y = F.scaled_dot_product_attention(*y.view(3, 257, 3, 2, 16).permute(2, 0, 3, 1, 4))
    y = layer(F.linear, y.transpose(1, 2).flatten(2), "blocks.0.attn.proj")
    x = x + y * p["blocks.0.ls1.gamma"]
    y = F.gelu(layer(F.linear, layer(norm, x, "blocks.0.norm2"), "blocks.0.mlp.fc1"))
    x = x + layer(F.linear, y, "blocks.0.mlp.fc2") * p["blocks.0.ls2.gamma"]
    expected = layer(norm, x[:, 0], "norm")
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-2


def test_dinov2_s_weights_are_asked_for_by_name(dinov2_file, monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="'dinov2-l' .*nowhere.pth.*--dinov2-weights FILE"):
        dinov2.DINOv2(tmp_path / "nowhere.pth")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(ValueError, match=r"linear\.pth does not hold the weights of vit_large"):
        dinov2.DINOv2(tmp_path / "linear.pth")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(FileNotFoundError) as caught:
        dinov2.DINOv2()
    for part in ("timm/vit_large_patch14_dinov2.lvd142m", "hf download", "--dinov2-weights FILE"):
        assert part in str(caught.value)


# Evaluating a Run


class SmallInception(nn.Module):
    """Has the interface of the real one, of a size whose distances take no time."""

    looked = 0

    def __init__(self, weights: object = None):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleDict({name: nn.Linear(3 * 64, dim) for name, dim in SMALL.items()})

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        SmallInception.looked += len(pictures)
        small = nn.functional.adaptive_avg_pool2d(pictures.float() / 64 - 2, 8).flatten(1)
        return {name: layer(small) for name, layer in self.layers.items()}


class SmallDINOv2(nn.Module):
    dim = 7

    def __init__(self, weights: object = None):
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Linear(3 * 64, self.dim)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.layer(F.adaptive_avg_pool2d(pictures.float() / 64 - 2, 8).flatten(1))


SMALL = {"fid": 6, "sfid": 5, "is": 8}


def shrink(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dinov2, "DINOv2", SmallDINOv2)
    patch.setattr(inception, "Inception", SmallInception)
    patch.setattr(inception, "CLASSES", SMALL["is"])
    for name in inception.DIMS:
        patch.setitem(inception.DIMS, name, SMALL[name])


@pytest.fixture
def small_inception(monkeypatch) -> type[SmallInception]:
    shrink(monkeypatch)
    SmallInception.looked = 0
    return SmallInception


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, teacher_folder) -> Path:
    """A generator's Run on `digits`, with random weights."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_json(
        folder / "config.json",
        {
            "source": "digits",
            "stage": "generator",
            "arm": "gear",
            "seed": 0,
            "parent": None,
            "classes": [str(digit) for digit in range(10)],
            "recipe": {"teacher": str(teacher_folder), "tau": 0.1},
        },
    )
    torch.manual_seed(0)
    Tokenizer(tiny.TOKENIZER).save_pretrained(folder / "tokenizer")
    tiny.generator().save_pretrained(folder / "generator")
    return folder


FEATURES = ("fd", "fd-dinov2", "fid", "sfid", "is", "pr")
COUNT = 24


def options(cache: Path, **changes) -> EvaluationOptions:
    return EvaluationOptions(**{"samples": COUNT, "seeds": 2, "metrics": FEATURES, "cache": cache} | changes)


def drawn(run: Run, seed: int, scale: float) -> torch.Tensor:
    """The evaluation's samples, drawn in one go: uint8."""
    with torch.no_grad():
        indices = sampling.sample(run.generator, torch.arange(COUNT) % 10, cfg_scale=scale, seed=seed)
        return to_uint8(run.tokenizer.decode(indices))


def test_the_figures_of_a_run_are_those_of_arithmetic_in_one_go(run_folder, small_inception, tmp_path):
    run = Run.from_pretrained(run_folder)
    found = evaluate(run, options(tmp_path, batch_size=7))
    source = data.load("digits", "val", 32)
    numbers = data.choose_pictures(len(source), COUNT)
    real, others = (source.read(part)["image"] for part in numbers)
    net, other = small_inception(), SmallDINOv2()
    with torch.no_grad():

        def patches(pictures: torch.Tensor) -> Statistics:
            return statistics_of(run.teacher(data.to_float(pictures)).mean(1))

        for name, scale in (("", 1.0), ("_guided", 1.5)):
            pictures = [drawn(run, seed, scale) for seed in (0, 1)]
            fd = [frechet_by_scipy(patches(p), patches(real)) for p in pictures]
            assert found[f"fd{name}"]["values"] == pytest.approx(fd, rel=1e-3)
            assert found[f"fd{name}"]["mean"] == pytest.approx(np.mean(fd), rel=1e-3)
            assert found[f"fd{name}"]["std"] == pytest.approx(np.std(fd, ddof=1), rel=1e-2)
            fd = [frechet_distance(statistics_of(other(p)), statistics_of(other(real))) for p in pictures]
            assert found[f"fd_dinov2{name}"]["values"] == pytest.approx(fd, rel=1e-6)
            for metric in ("fid", "sfid"):
                expected = [
                    frechet_distance(statistics_of(net(p)[metric]), statistics_of(net(real)[metric]))
                    for p in pictures
                ]
                assert found[metric + name]["values"] == pytest.approx(expected, rel=1e-6)
            points = precision_recall(net(pictures[0])["fid"], net(real)["fid"])
            assert {key: found[key + name]["values"][0] for key in points} == points
            score = Predictions(COUNT, SMALL["is"])
            score.add(0, net(pictures[1])["is"])
            assert found[f"is{name}"]["values"][1] == pytest.approx(score.result())
        reconstructed = to_uint8(run.tokenizer.reconstruct(data.to_float(real)))
        assert found["rfd"] == pytest.approx(
            frechet_distance(patches(reconstructed), patches(real)), rel=1e-4
        )
        assert found["real_fd"] == pytest.approx(frechet_distance(patches(others), patches(real)), rel=1e-4)
        for name, pictures in (("rfd_dinov2", reconstructed), ("real_fd_dinov2", others)):
            expected = frechet_distance(statistics_of(other(pictures)), statistics_of(other(real)))
            assert found[name] == pytest.approx(expected, rel=1e-4)
    error = (reconstructed.double() - real.double()).square().flatten(1).mean(1)
    assert found["psnr"] == pytest.approx((10 * torch.log10(255**2 / error)).mean().item(), rel=1e-4)
    assert found["samples"] == found["generated"] == COUNT and found["cfg_scale"] == 1.5
    assert 0 < found["usage"] <= 1 and found["mass_1_tau"] > found["mass_1"]
    assert "fid" not in evaluate(run, EvaluationOptions(samples=12, seeds=1, cache=tmp_path))  # never unasked


class ArithmeticJudge(nn.Module):
    """Names the last digit of the sum of all bytes: no two pictures are alike to it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        total = ((images.double() + 1) * 127.5).round().sum((1, 2, 3)).long()
        return nn.functional.one_hot(total % 10, 10)


def asked_for(monkeypatch, run: Run, **changes) -> tuple[list[int], str]:
    """The labels of an evaluation's samples in order, and what the result says of them."""
    asked, real = [], sampling.sample

    def spy(generator, condition, **settings):
        asked.extend(condition.tolist())
        return real(generator, condition, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(fidelity.sampling, "sample", spy)
        found = evaluate(run, EvaluationOptions(samples=40, seeds=1, cfg_scale=1.0, **changes))
    return asked[: found["generated"]], found["classes"]


def test_classes_are_asked_for_in_the_proportions_of_the_reference(run_folder, monkeypatch, tmp_path):
    pictures, folder = tmp_path / "pictures", tmp_path / "run"
    tiny.pngs(pictures, {"train": 4, "val": 4})
    for i in range(14):  # of kind1 there are 8 times as many as of kind0
        shutil.copy(pictures / "val" / "kind1" / "1.png", pictures / "val" / "kind1" / f"more{i}.png")
    shutil.copytree(run_folder, folder)
    config = read_json(folder / "config.json", "a run")
    write_json(folder / "config.json", config | {"source": "folder", "classes": ["kind0", "kind1"]})
    run = Run.from_pretrained(folder)
    here = {"folder": pictures, "cache": tmp_path / "cache"}

    own, said = asked_for(monkeypatch, run, **here)
    assert Counter(own) == {0: 2, 1: 16} and said == "reference"
    assert Counter(own[:9]) == {0: 1, 1: 8}  # spread evenly: no part has one class alone
    equal, said = asked_for(monkeypatch, run, **here, classes="equal")
    assert equal == [0, 1] * 9 and said == "equal"
    theirs, said = asked_for(monkeypatch, run, **here, reference=pictures / "val")
    assert Counter(theirs[:36]) == {0: 4, 1: 32} and said == "reference"
    unnamed, said = asked_for(monkeypatch, run, **here, reference=pictures)
    assert unnamed == [0, 1] * 20 and said == "equal"


def test_classes_that_are_equally_likely_are_asked_for_in_turn(run_folder, monkeypatch, tmp_path):
    asked, said = asked_for(monkeypatch, Run.from_pretrained(run_folder), cache=tmp_path)
    assert asked == [i % 10 for i in range(40)] and said == "equal"


@pytest.mark.parametrize("counts", [[5] * 4, [6, 6, 5, 5]])
def test_classes_of_equal_counts_come_in_turn(counts):
    labels = ClassLabels(4, counts).for_samples(range(2 * sum(counts)))
    assert labels[:22].tolist() == ClassLabels(4).for_samples(range(22)).tolist()


def test_classes_at_random_are_the_same_however_the_samples_are_split(run_folder, monkeypatch, tmp_path):
    conditions = ClassLabels(10, at_random=True)
    labels = conditions.for_samples(range(2000))
    assert torch.equal(torch.cat([conditions.for_samples([i]) for i in range(50)]), labels[:50])
    counts = labels.bincount(minlength=10)
    assert len(counts) == 10 and counts.min() > 150 and len(set(counts.tolist())) > 1
    run, changes = Run.from_pretrained(run_folder), {"cache": tmp_path, "classes": "random"}
    labels, said = asked_for(monkeypatch, run, **changes)
    assert said == "random" and labels == conditions.for_samples(range(40)).tolist()


def test_samples_are_drawn_as_the_options_say(run_folder, tmp_path):
    run = Run.from_pretrained(run_folder)
    asked = {"temperature": 0.5, "top_k": 9, "top_p": 0.8, "cfg_interval": 3}
    drawing = fidelity.Evaluation(run, options(tmp_path, metrics=("fd",), **asked))
    ((_, pictures, _),) = drawing.draw_samples(COUNT, 2.0, 5, ClassLabels(10))
    with torch.no_grad():
        indices = sampling.sample(run.generator, torch.arange(COUNT) % 10, cfg_scale=2.0, seed=5, **asked)
        assert torch.equal(pictures, to_uint8(run.tokenizer.decode(indices)))
    found = evaluate(run, options(tmp_path, metrics=("fd",), seeds=1, cfg_scale=1.0, top_k=9))
    assert found["drawing"] == {"top_k": 9} and "fd" in found and "fd_guided" not in found


def test_samples_of_another_size_than_the_reference_are_resized_as_asked(run_folder, photos, tmp_path):
    run = Run.from_pretrained(run_folder)
    asked = {"metrics": ("fd",), "seeds": 1, "cfg_scale": 1.0, "size": 20}
    where = tmp_path / "samples.npz"
    found = evaluate(run, options(tmp_path / "c", reference=photos, save_samples=where, **asked))
    with torch.no_grad():
        indices = sampling.sample(run.generator, torch.arange(COUNT) % 10, cfg_scale=1.0, seed=0)
        pictures = F.interpolate(run.tokenizer.decode(indices), (20, 20), mode="bicubic")
    (saved,) = tmp_path.glob("samples-cfg*.npz")
    expected = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.load(saved)["arr_0"], expected) and found["size"] == 20
    with pytest.raises(ValueError, match="--size 20 is for samples that are compared with a --reference"):
        evaluate(run, options(tmp_path / "c", **asked))


def test_agreement_counts_samples_that_show_what_was_asked(run_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(fidelity, "AGREEMENT_SAMPLES", COUNT)
    run = Run.from_pretrained(run_folder)
    settings = EvaluationOptions(samples=COUNT, seeds=2, cache=tmp_path, batch_size=7)
    evaluation = fidelity.Evaluation(run, settings)
    evaluation.judge = ArithmeticJudge()
    found = {scale: evaluation.measure_class_agreement(scale)["values"] for scale in (1.0, 4.0)}
    for scale, values in found.items():
        for seed, share in enumerate(values):
            named = evaluation.judge(data.to_float(drawn(run, 1000 + seed, scale))).argmax(1)
            asked = torch.arange(COUNT) % 10
            assert share == pytest.approx((named == asked).float().mean().item())
    assert found[1.0] != found[4.0] and max(found[1.0]) > 0  # guidance is passed on


def test_caption_agreement_scores_samples_against_their_own_and_other_captions(
    teacher_folder, monkeypatch, tmp_path
):
    monkeypatch.setattr(fidelity, "AGREEMENT_SAMPLES", COUNT)
    words = text_encoders.Words(20)
    recipe = {"text_encoder": "words", "generator": {"caption_length": 20}, "tau": 0.1}
    config = {"source": "shapes", "stage": "generator", "arm": "gear", "seed": 0, "parent": None}
    config |= {"classes": ["ring"], "recipe": recipe | {"teacher": str(teacher_folder)}}
    write_json(tmp_path / "run" / "config.json", config)
    torch.manual_seed(0)
    Tokenizer(tiny.TOKENIZER).save_pretrained(tmp_path / "run" / "tokenizer")
    generator = tiny.generator(caption_dim=words.dim, caption_length=20)
    generator.save_pretrained(tmp_path / "run" / "generator")
    run = Run(tmp_path / "run")
    settings = EvaluationOptions(samples=COUNT, seeds=2, cache=tmp_path, batch_size=7, metrics=())
    found = fidelity.Evaluation(run, settings).measure_caption_agreement("unseen")
    captions, wanted = agreement.make_prompts("unseen", COUNT)
    judge = AttributeJudge.from_pretrained()
    for seed in (0, 1):
        with torch.no_grad():
            condition = words(captions)
            indices = sampling.sample(run.generator, condition, cfg_scale=1.5, seed=1000 + seed)
            seen = judge.says(data.to_float(to_uint8(run.tokenizer.decode(indices))))
        for against, ids in (("asked", wanted), ("shuffled", agreement.shuffle(wanted))):
            expected = agreement.score(seen, ids)
            assert {name: spread["values"][seed] for name, spread in found[against].items()} == expected


def test_ssim_and_lpips_compare_reconstructions_with_originals(run_folder, monkeypatch, tmp_path):
    class Grey(nn.Module):
        """Stands in for LPIPS."""

        def __init__(self, weights: object):
            super().__init__()

        def forward(self, images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
            return (images - reference).abs().flatten(1).mean(1)

    monkeypatch.setattr(fidelity, "LPIPS", Grey)
    run = Run.from_pretrained(run_folder)
    found = fidelity.Evaluation(
        run, options(tmp_path, metrics=("ssim", "lpips"), batch_size=5)
    ).measure_reconstructions()
    source = data.load("digits", "val", 32)
    real = data.to_float(source.read(data.choose_pictures(len(source), COUNT)[0])["image"])
    with torch.no_grad():
        reconstructed = data.to_float(to_uint8(run.tokenizer.reconstruct(real)))
    assert found["lpips"] == pytest.approx((reconstructed - real).abs().mean().item(), rel=1e-4)
    # Wang et al. 2004, from the definition: Gaussian-weighted moments at every pixel whose window is inside.
    x = np.arange(-5, 6)
    window = np.exp(-(x**2) / (2 * 1.5**2))
    window = torch.tensor(np.outer(window, window) / window.sum() ** 2)[None, None]

    def blurred(images: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(images.double(), (5, 5, 5, 5), mode="reflect")
        return nn.functional.conv2d(padded.flatten(0, 1)[:, None], window).view_as(images)

    a, b = (reconstructed + 1) / 2, (real + 1) / 2
    ma, mb = blurred(a), blurred(b)
    va, vb, vab = blurred(a * a) - ma**2, blurred(b * b) - mb**2, blurred(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    assert found["ssim"] == pytest.approx(expected.mean().item(), abs=1e-4)
    assert not {"rfd", "fd"} & found.keys()


def test_a_tokenizer_is_measured_on_pictures_resized_as_asked(teacher_folder, tmp_path):
    batch = data.load("shapes", "val", 64).read(range(60))
    for i, picture in enumerate(batch["image"]):
        (tmp_path / "pictures" / f"kind{i % 2}").mkdir(parents=True, exist_ok=True)
        file = tmp_path / "pictures" / f"kind{i % 2}" / f"{i}.png"
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file)
    config = {"source": "folder", "stage": "imported", "arm": "x", "seed": 0, "parent": None, "classes": []}
    write_json(
        tmp_path / "run" / "config.json", config | {"recipe": {"teacher": str(teacher_folder), "tau": 0.1}}
    )
    Tokenizer(tiny.TOKENIZER).save_pretrained(tmp_path / "run" / "tokenizer")
    run = Run.from_pretrained(tmp_path / "run")
    for interpolation in ("bicubic", "bilinear"):
        asked = options(
            tmp_path,
            folder=tmp_path / "pictures",
            metrics=("l1", "fd"),
            interpolation=interpolation,
            batch_size=5,
        )
        evaluation = fidelity.Evaluation(run, asked)
        files = [Path(evaluation.source._name(i)) for i in evaluation.numbers[0]]
        resampling = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[
            interpolation
        ]
        originals = data.to_float(
            torch.stack(
                [
                    torch.from_numpy(np.array(Image.open(file).resize((32, 32), resampling))).permute(2, 0, 1)
                    for file in files
                ]
            )
        )
        again = data.to_float(to_uint8(run.tokenizer.reconstruct(originals)))
        found = evaluate(run, asked)
        assert found["l1"] == pytest.approx((again - originals).abs().mean().item(), rel=1e-5)
        assert found.get("interpolation", "bicubic") == interpolation
    assert len(list(tmp_path.glob("fd-*.npz"))) == 2 * len(evaluation.real)  # neither for the other
    run.config["source"] = "digits"
    with pytest.raises(
        ValueError, match="--interpolation bilinear is for pictures in files; those of digits"
    ):
        fidelity.Evaluation(run, options(tmp_path, metrics=("l1",), interpolation="bilinear"))


def test_a_single_picture_held_out_is_said_to_be_too_few(run_folder, teacher_folder, tmp_path):
    tiny.pngs(tmp_path / "pictures", {"train": 2, "val": 1}, classes=1)
    folder = tmp_path / "run"
    Run(run_folder).tokenizer.save_pretrained(folder / "tokenizer")
    config = Run(run_folder).config | {"source": "folder", "stage": "warmup"}
    write_json(folder / "config.json", config)
    given = options(tmp_path, metrics=("fd",), folder=tmp_path / "pictures", seeds=1)
    with pytest.raises(ValueError, match="has 1 held-out picture, and fd takes at least 2; add pictures"):
        evaluate(Run(folder), given)


def test_a_tokenizer_s_run_has_no_samples_to_measure(run_folder, teacher_folder, tmp_path):
    folder = tmp_path / "tokenizer-run"
    config = json.loads((run_folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"stage": "warmup"})
    Tokenizer(tiny.TOKENIZER).save_pretrained(folder / "tokenizer")
    found = evaluate(Run.from_pretrained(folder), EvaluationOptions(samples=20, cache=tmp_path / "cache"))
    assert {"rfd", "psnr", "real_fd"} <= found.keys() and not {"fd", "reference"} & found.keys()


# References


@pytest.fixture
def photos(tmp_path) -> Path:
    """Pictures of several sizes, some in a sub-folder, beside a file that is none."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    dice = np.random.default_rng(0)
    for i in range(20):
        name = f"more/{i}.jpg" if i % 4 == 0 else f"{i}.png"
        noise = dice.integers(0, 255, size=(40 + i, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_a_folder_of_pictures_and_the_same_pictures_in_an_npz_are_the_same_reference(
    run_folder, small_inception, photos, tmp_path
):
    run = Run.from_pretrained(run_folder)
    opened = reference.open_reference(photos, 32)
    pictures = opened.read(range(20))
    assert opened.count == 20 and pictures.shape == (20, 3, 32, 32) and pictures.dtype == torch.uint8
    array = npz(tmp_path / "photos.npz", arr_0=pictures.permute(0, 2, 3, 1).numpy())
    chosen = {"seeds": 1, "metrics": FEATURES}
    by_folder = evaluate(run, options(tmp_path / "cache", reference=photos, **chosen))
    by_array = evaluate(run, options(tmp_path / "cache", reference=array, **chosen))
    assert by_folder["reference"] == str(photos) and by_array["reference"] == str(array)
    own = evaluate(run, options(tmp_path / "cache", **chosen))
    for name in ("fd", "fd_dinov2", "fid", "sfid", "precision", "recall"):
        assert by_folder[name]["mean"] == pytest.approx(by_array[name]["mean"])
    assert by_folder["fd"] != own["fd"] and by_folder["rfd"] == own["rfd"]


@pytest.mark.parametrize("size", [(48, 48), (24, 24), (40, 30)])
def test_pictures_of_an_npz_of_another_size_are_resized_as_those_of_files_are(tmp_path, size):
    rng = np.random.default_rng(0)
    pictures = rng.integers(256, size=(3, size[1], size[0], 3), dtype=np.uint8)
    (tmp_path / "files").mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / "files" / f"{i}.png")
    path = npz(tmp_path / "r.npz", arr_0=pictures)
    opened, files = (reference.open_reference(each, 32) for each in (path, tmp_path / "files"))
    assert torch.equal(opened.read(range(3)), files.read(range(3)))
    assert opened.name == f"{path}, resized from {size[0]} x {size[1]} to 32 x 32 px"
    assert opened.fingerprint != reference.open_reference(path, 16).fingerprint


def test_a_reference_is_read_in_every_format_that_a_data_set_may_have(tmp_path):
    suffixes = [suffix for suffix in SUFFIXES if suffix != ".pgm"] + [".TIF"]  # pgm: of grays alone
    for shade, suffix in enumerate(suffixes):
        Image.new("RGB", (40, 30), (20 * shade, 0, 0)).save(tmp_path / f"{shade:02}{suffix}")
    Image.new("L", (40, 30), 7).save(tmp_path / "99.pgm")
    Image.new("RGB", (40, 30)).save(tmp_path / ".hidden.tif")
    (tmp_path / ".thumbnails").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / ".thumbnails" / "small.png")
    opened = reference.open_reference(tmp_path, 32)
    assert opened.count == len(SUFFIXES) + 1 and {".tif", ".gif", ".ppm"} < set(suffixes)
    red = opened.read(range(opened.count))[:, 0].float().mean((1, 2))
    expected = [20.0 * shade for shade in range(len(suffixes))] + [7.0]
    assert red.tolist() == pytest.approx(expected, abs=3)  # some formats lose a little


def test_gpic_s_statistics_are_a_reference_in_dinov2_s_features(
    run_folder, small_inception, monkeypatch, tmp_path
):
    monkeypatch.setattr(dinov2, "DIM", SmallDINOv2.dim)
    run, real = Run.from_pretrained(run_folder), rows(60, 7) * 2
    known = statistics_of(real)
    arrays = {"dino_mu": known.mean, "dino_sigma": known.covariance, "key": np.array(["a", "b"])}
    arrays |= {"dino_embeddings": real.half().numpy(), "tar_idx": np.array([0, 1])}
    metrics = ("fd-dinov2", "prdc-dinov2", "mmd-dinov2")
    asked = {"metrics": metrics, "seeds": 1, "cfg_scale": 1.0}
    found = evaluate(run, options(tmp_path, reference=npz(tmp_path / "test_stats.npz", **arrays), **asked))
    with torch.no_grad():
        features = SmallDINOv2()(drawn(run, 0, 1.0))
    real = real.half().float()
    expected = {
        "fd": frechet_distance(statistics_of(features), known),
        "mmd": kernel_distance(features, real),
    }
    expected |= precision_recall_density_coverage(features, real)
    assert {f"{k}_dinov2": pytest.approx([v], rel=1e-5) for k, v in expected.items()} == {
        f"{k}_dinov2": found[f"{k}_dinov2"]["values"] for k in expected
    }
    del arrays["dino_embeddings"]  # as in a file of statistics alone
    alone = npz(tmp_path / "alone.npz", **arrays)
    assert "fd_dinov2" in evaluate(
        run, options(tmp_path, reference=alone, **asked | {"metrics": metrics[:1]})
    )
    with pytest.raises(ValueError, match="only statistics for fd-dinov2; prdc-dinov2, mmd-dinov2 cannot be"):
        evaluate(run, options(tmp_path, reference=alone, **asked))


def test_pictures_are_compared_in_dinov2_s_features_and_their_points_kept(
    run_folder, small_inception, photos, tmp_path
):
    run = Run.from_pretrained(run_folder)
    asked = options(tmp_path, reference=photos, metrics=("prdc-dinov2", "mmd-dinov2"), seeds=1, cfg_scale=1.0)
    first = evaluate(run, asked)
    assert len(list(tmp_path.glob("*-dinov2-*.npz"))) == 2
    assert evaluate(run, asked) == first and 0 <= first["coverage_dinov2"]["mean"] <= 1


def test_published_statistics_are_a_reference_for_fid_and_sfid_only(run_folder, small_inception, tmp_path):
    run = Run.from_pretrained(run_folder)
    a, b = statistics_of(rows(50, 6)), statistics_of(rows(50, 5))
    path = npz(tmp_path / "r.npz", mu=a.mean, sigma=a.covariance, mu_s=b.mean, sigma_s=b.covariance)
    found = evaluate(run, options(tmp_path / "c", reference=path, metrics=("fid", "sfid", "is"), seeds=1))
    net = small_inception()
    with torch.no_grad():
        features = net(drawn(run, 0, 1.0))
    for metric, published in (("fid", a), ("sfid", b)):
        expected = frechet_distance(statistics_of(features[metric]), published)
        assert found[metric]["values"] == [pytest.approx(expected, rel=1e-6)]
    for metric in ("fd", "fd-dinov2", "pr"):
        with pytest.raises(ValueError, match=rf"r\.npz has no pictures.*{metric} cannot be measured"):
            evaluate(run, options(tmp_path / "c", reference=path, metrics=(metric,), seeds=1))


@pytest.mark.parametrize(
    "arrays, complaint",
    [
        ({"mu": np.zeros(2048)}, "holds mu"),
        ({"mu": np.zeros(100), "sigma": np.eye(100)}, r"\(100,\).*expected \(2048,\)"),
        ({"dino_mu": np.zeros(100), "dino_sigma": np.eye(100)}, r"expected \(1024,\) .* of DINOv2 features"),
        ({"dino_embeddings": np.zeros((5, 8))}, r"dino_embeddings is \(5, 8\), expected .* \(N, 1024\)"),
        ({"mu": np.full(2048, np.nan), "sigma": np.eye(2048)}, "mu or sigma holds NaN"),
        ({"arr_0": np.zeros((2, 8, 8, 3))}, "arr_0 is float64"),
        ({"arr_0": np.zeros((2, 3, 8, 8), np.uint8)}, "arr_0 is uint8"),
        ({"arr_0": np.array([{"a": 1}], dtype=object)}, "bad.npz"),
        (None, "not a complete .npz"),
    ],
)
def test_a_bad_npz_is_refused_by_name(arrays, complaint, tmp_path):
    path = tmp_path / "bad.npz"
    path.write_bytes(pickle.dumps("no archive")) if arrays is None else npz(path, **arrays)
    with pytest.raises(ValueError, match=complaint) as caught:
        reference.open_reference(path, 32)
    assert str(path) in str(caught.value)


def test_a_reference_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        reference.open_reference(tmp_path / "nowhere", 32)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no pictures"):
        reference.open_reference(tmp_path / "empty", 32)


def test_reference_statistics_are_looked_up_until_something_changes(
    run_folder, small_inception, photos, tmp_path, monkeypatch
):
    run = Run.from_pretrained(run_folder)

    def looks(**changes) -> int:
        """How many pictures Inception had to look at, beyond the samples."""
        small_inception.looked = 0
        chosen = {"metrics": ("fid", "pr"), "seeds": 1, "reference": photos} | changes
        evaluation = fidelity.Evaluation(run, options(tmp_path / "cache", **chosen))
        with torch.no_grad():
            evaluation.measure_samples()
        return small_inception.looked - 2 * COUNT

    assert [looks(), looks()] == [20, 0]
    entries = sorted((tmp_path / "cache").iterdir())
    assert [path.name.split("-")[0] for path in entries] == ["fid", "pr"]
    with np.load(entries[0]) as arrays:  # a file that can be given as a reference itself
        assert set(arrays.files) == {"mu", "sigma"} and arrays["mu"].dtype == np.float64
    assert looks(metrics=("sfid",)) == 20  # what has not been kept yet
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(photos / "1.png")
    assert [looks(), looks()] == [20, 0]
    (photos / "2.png").unlink()
    assert [looks(), looks()] == [19, 0]
    entries = sorted((tmp_path / "cache").glob("fid-*"))
    assert len(entries) == 3
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:100])  # damaged
    assert looks(metrics=("fid",)) == 19
    weights = small_inception.__init__

    def other(self, given: object = None) -> None:
        weights(self)
        self.layers["fid"].weight.data[0, 0] += 1

    monkeypatch.setattr(small_inception, "__init__", other)
    assert [looks(), looks()] == [19, 0]


def test_statistics_in_the_features_of_one_block_are_not_taken_for_another_s(run_folder, tmp_path):
    run, asked = Run.from_pretrained(run_folder), {"metrics": ("fd",), "seeds": 1, "cfg_scale": 1.0}
    inner = Run.from_pretrained(run_folder)
    inner.config["recipe"]["teacher_block"] = 1
    last = evaluate(run, options(tmp_path / "cache", **asked))["fd"]
    found = evaluate(inner, options(tmp_path / "cache", **asked))["fd"]
    assert found == evaluate(inner, options(tmp_path / "another", **asked))["fd"] != last


def test_the_cache_of_a_source_without_files_knows_its_pictures_and_their_number():
    digits = data.load("digits", "val", 32)
    one = reference.reference_of(digits, range(20))
    assert reference.reference_of(digits, range(20)).fingerprint == one.fingerprint
    others = {
        reference.reference_of(digits, range(21)).fingerprint,
        reference.reference_of(digits, range(1, 21)).fingerprint,
        reference.reference_of(data.load("digits", "train", 32), range(20)).fingerprint,
        reference.reference_of(data.load("digits", "val", 64), range(20)).fingerprint,
    }
    assert len(others) == 4 and one.fingerprint not in others


def test_a_finite_source_is_drawn_from_and_its_others_are_not_the_same():
    first, second = data.choose_pictures(1000, 400)
    assert len(set(first) | set(second)) == 800 and first == sorted(first)
    assert 350 < np.median(first) < 650  # a source in the order of its classes shows all of them
    assert len(data.choose_pictures(1000, 501)) == 1
    assert data.choose_pictures(2**40, 3) == [[0, 1, 2], [3, 4, 5]]


# Several processes, the command line


def evaluate_together(rank: int, folder: Path, out: Path) -> None:
    """One of two processes."""
    shrink(pytest.MonkeyPatch())
    # Caches of their own, as on two machines, of which one already knows the reference.
    given = options(out / f"cache-{rank % 2}", batch_size=5, save_samples=out / "by-two.npz")
    result = evaluate(Run.from_pretrained(folder), given)
    if rank == 0:
        write_json(out / "by-two.json", result)


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(run_folder, small_inception, tmp_path):
    run = Run.from_pretrained(run_folder)
    one = evaluate(run, options(tmp_path / "cache-0", batch_size=5, save_samples=tmp_path / "by-one.npz"))
    tiny.in_two(evaluate_together, run_folder, tmp_path)
    two = json.loads((tmp_path / "by-two.json").read_text())
    assert one.keys() == two.keys()
    for name, value in one.items():
        expected = value["values"] if isinstance(value, dict) else value
        found = two[name]["values"] if isinstance(value, dict) else two[name]
        assert found == (expected if isinstance(expected, str) else pytest.approx(expected, rel=1e-6)), name
    for scale in ("1.0", "1.5"):
        alone, together = (np.load(tmp_path / f"by-{who}-cfg{scale}.npz") for who in ("one", "two"))
        assert together.files == ["arr_0"] and together["arr_0"].shape == (COUNT, 32, 32, 3)
        assert np.array_equal(alone["arr_0"], together["arr_0"])
    assert not list(tmp_path.glob("*.part"))


def gear_studio(monkeypatch, *words: object) -> object:
    monkeypatch.setattr(sys, "argv", ["gear-studio", *map(str, words)])
    try:
        cli.main()
    except SystemExit as end:
        return end.code
    return 0


def test_the_command_measures_and_writes_samples(run_folder, small_inception, photos, monkeypatch, tmp_path):
    words = ["evaluate", run_folder, "--samples", COUNT, "--seeds", 1, "--cache", tmp_path / "cache"]
    more = ["--metrics", "fd", "is", "fd-dinov2", "--dinov2-weights", "x.safetensors"]
    more += ["--reference", photos, "--save-samples", tmp_path / "samples"]
    assert gear_studio(monkeypatch, *words, *more) == 0
    written = Run.from_pretrained(run_folder).evaluation
    assert {"rfd", "fd", "fd_guided", "is", "is_guided", "teacher_note"} <= written.keys()
    assert {"rfd_dinov2", "fd_dinov2", "fd_dinov2_guided", "real_fd_dinov2"} <= written.keys()
    assert written["reference"] == str(photos) and not {"fid", "precision"} & written.keys()
    files = sorted((tmp_path / "samples-cfg1.5").iterdir())
    assert [file.name for file in files] == [f"{i:06d}.png" for i in range(COUNT)]
    assert (tmp_path / "samples-cfg1.0" / "000000.png").is_file()
    third = torch.from_numpy(np.array(Image.open(files[2]))).permute(2, 0, 1)
    assert torch.equal(third, drawn(Run.from_pretrained(run_folder), 0, 1.5)[2])
    two = ["evaluate", run_folder, *words[1:], "--save-samples", tmp_path / "s"]
    assert "one place" in gear_studio(monkeypatch, *two)
    assert "nowhere" in gear_studio(monkeypatch, *words, "--reference", tmp_path / "nowhere")


def test_the_command_and_the_module_name_the_same_metrics():
    assert MetricName.__args__ == tuple(METRICS)
    with pytest.raises(ValueError, match="unknown metrics kid; choose from fd, fd-dinov2, fid"):
        EvaluationOptions(metrics=("fd", "kid")).check()


def test_the_command_line_can_print_what_every_option_means(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(EvaluationOptions, args=["--help"], console_outputs=True)
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for field in dataclasses.fields(EvaluationOptions):
        assert f"--{field.name.replace('_', '-')}" in printed
    for metric in METRICS.values():
        assert metric.help in printed
    for words in ("Sampling seeds, for the spread.", "The file of VGG-16, where it cannot be downloaded."):
        assert words in printed


def test_a_network_is_loaded_for_the_metrics_that_are_taken_in_it(small_inception):
    def networks(*metrics: str) -> FeatureNetworks:
        return FeatureNetworks(metrics, tiny.teacher, EvaluationOptions(), torch.device("cpu"))

    of_network = {
        "teacher": ("fd",),
        "dinov2": ("fd-dinov2", "prdc-dinov2", "mmd-dinov2"),
        "inception": ("fid", "sfid", "is", "pr"),
    }
    pictures = to_uint8(tiny.batch(size=2)[0])
    for network, metrics in of_network.items():
        for metric in metrics:
            assert METRICS[metric].network == network
            loaded = networks(metric)
            assert list(loaded.networks) == [network] and list(loaded(pictures, [metric])) == [metric]
    for metric in set(METRICS) - {metric for metrics in of_network.values() for metric in metrics}:
        assert not networks(metric).networks
        with pytest.raises(ValueError, match=f"metric {metric} is not taken in the features"):
            networks(metric).fingerprint(metric)
