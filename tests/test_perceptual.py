"""LPIPS in the real file's format with random weights, alone and as a term of the tokenizer's objective."""

from pathlib import Path
from urllib.error import URLError

import pytest
import tiny
import torch
import torchvision
from torch import nn

from gear_studio.models import published
from gear_studio.models.perceptual import LPIPS
from gear_studio.training import loop
from gear_studio.training.request import Training

pytestmark = pytest.mark.slow  # a VGG in its own size


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory) -> Path:
    """As torchvision publishes it, with random weights and a classifier that LPIPS has no use for."""
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    torch.manual_seed(0)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    state = {f"features.{name}": value for name, value in layers.state_dict().items()}
    path = tmp_path_factory.mktemp("vgg") / "vgg16-397923af.pth"
    torch.save(state | {"classifier.6.bias": torch.zeros(1000)}, path)
    return path


@pytest.fixture(scope="module")
def lpips(vgg_file) -> LPIPS:
    return LPIPS(vgg_file)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    return tiny.batch(1, 2)[0] * 1.5, tiny.batch(2, 2)[0]  # the first leaves [-1, 1], as a decoder may


def test_it_is_the_published_formula(lpips, vgg_file, pair):
    """Zhang et al., equation 1, in float64: unit-length channels, squared difference, weighted, averaged."""
    state = torch.load(vgg_file)
    linear = [layer.model[-1].weight.double().flatten() for layer in lpips.net.lins]
    assert [len(weights) for weights in linear] == [64, 128, 256, 512, 512]
    assert all((weights >= 0).all() and weights.sum() > 0 for weights in linear)  # the published, not random

    def features(x: torch.Tensor) -> list[torch.Tensor]:
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).double()[..., None, None]
        x = ((x.double() + 1) / 2 - mean) / std
        found = []
        for i in range(30):
            if f"features.{i}.weight" in state:
                weight, bias = (state[f"features.{i}.{part}"].double() for part in ("weight", "bias"))
                x = nn.functional.conv2d(x, weight, bias, padding=1)
            elif i in (4, 9, 16, 23):
                x = nn.functional.max_pool2d(x, 2)
            else:
                x = x.relu()
            if i in (3, 8, 15, 22, 29):
                found.append(x / x.norm(dim=1, keepdim=True).clamp_min(1e-9))
        return found

    expected = sum(
        ((a - b).square() * weights[:, None, None]).sum(1).mean((1, 2))
        for a, b, weights in zip(*map(features, pair), linear, strict=True)
    )
    assert expected.min() > 1e-3
    torch.testing.assert_close(lpips(*pair).double(), expected, rtol=2e-3, atol=0)
    assert lpips(pair[0], pair[0]).abs().max() == 0


def test_under_autocast_it_stays_in_single_precision(lpips, pair):
    expected = lpips(*pair)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lpips(*pair), expected)
        assert lpips(pair[0].bfloat16(), pair[1]).dtype == torch.float32


def test_gradient_reaches_the_reconstruction_only(lpips, pair):
    reconstruction, images = pair[0].requires_grad_(), pair[1]
    (gradient,) = torch.autograd.grad(lpips(reconstruction, images).mean(), reconstruction)
    assert gradient.isfinite().all() and gradient.flatten(1).norm(dim=1).min() > 0
    assert not any(parameter.requires_grad for parameter in lpips.parameters())
    lpips.train()  # as part of something that is trained
    assert not any(module.training for module in lpips.net.modules())


def test_black_images_have_a_finite_gradient(lpips):
    """Where no channel responds, the length that features are divided by is zero."""
    black = torch.full((1, 3, 32, 32), -1.0, requires_grad=True)
    lpips(black, black.detach()).sum().backward()
    assert black.grad.isfinite().all()


def test_under_bf16_autocast_it_stays_close_and_returns_float32(lpips, pair):
    reconstruction = pair[0].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        low = lpips(reconstruction, pair[1])
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, lpips(*pair), rtol=0.03, atol=0)
    (gradient,) = torch.autograd.grad(low.mean(), reconstruction)
    (exact,) = torch.autograd.grad(lpips(*pair).mean(), reconstruction)
    assert torch.cosine_similarity(gradient.flatten(), exact.flatten(), dim=0) > 0.95


def test_as_the_perceptual_term_of_a_stage(lpips, vgg_file, monkeypatch):
    stage = tiny.stage("warmup", "warmup", perceptual=str(vgg_file), perceptual_weight=0.7)
    images, labels = tiny.batch()
    with torch.no_grad():
        reconstruction, _ = stage.tokenizer(images)
    asked = []
    whole = stage.teacher.features
    monkeypatch.setattr(stage.teacher, "features", lambda x, blocks: asked.append(blocks) or whole(x, blocks))
    found = stage.step(1, images, labels)
    torch.testing.assert_close(found["perceptual"].detach(), lpips(reconstruction, images).mean())
    terms = found["l1"] + found["quantizer"] + 0.05 * found["code_entropy"] + 0.7 * found["perceptual"]
    torch.testing.assert_close(found["tokenizer"], terms)
    assert not asked  # the teacher is only the target of alignment, and a warm-up aligns nothing
    without = tiny.stage("warmup", "warmup", perceptual_weight=0.0)
    without.step(1, images, labels)
    assert without.lpips is None
    same = map(torch.equal, stage.tokenizer.decoder.parameters(), without.tokenizer.decoder.parameters())
    assert not all(same)
    assert tiny.stage("generator", "gear", perceptual=str(vgg_file)).lpips is None


@pytest.mark.slow
def test_a_training_goes_on_with_a_file_that_lies_elsewhere_and_with_no_other(
    vgg_file, teacher_folder, tmp_path
):
    def train(place: Path) -> None:
        recipe = tiny.recipe(teacher_folder, perceptual=str(place), steps=1, log_every=1, checkpoint_every=1)
        loop.train(Training("digits", recipe=recipe, out=tmp_path / "run"), progress=False)

    train(vgg_file)
    moved, other = tmp_path / "moved.pth", tmp_path / "other.pth"
    moved.write_bytes(vgg_file.read_bytes())
    torch.save(torch.load(vgg_file) | {"classifier.6.bias": torch.ones(1000)}, other)
    train(moved)
    with pytest.raises(ValueError, match="already holds another run .perceptual is .*perceptual_sha256 is"):
        train(other)


@pytest.fixture
def offline(monkeypatch, tmp_path) -> Path:
    """No internet, and nothing in torch.hub's folder, which is returned."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def refuse(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path / "torch" / "hub" / "checkpoints"


def test_offline_it_says_what_to_fetch_and_where_to_put_it(offline, vgg_file):
    with pytest.raises(FileNotFoundError) as caught:
        LPIPS()
    for part in ("https://download.pytorch.org/models/vgg16-397923af.pth", str(offline), "--lpips-weights"):
        assert part in str(caught.value)
    with pytest.raises(FileNotFoundError, match="--set perceptual=FILE"):
        tiny.stage("warmup", "warmup", perceptual="lpips")
    (offline / "vgg16-397923af.pth").write_bytes(vgg_file.read_bytes())
    assert published.load_state_dict("https://x.org/vgg16-397923af.pth", None, "LPIPS", "-").keys()


def test_a_download_is_kept_and_checked_by_the_hash_in_its_name(offline, vgg_file, monkeypatch):
    asked = []

    def download(url: str, path: str, digest: str, **_) -> None:
        asked.append((url, digest))
        Path(path).write_bytes(vgg_file.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    url = "https://x.org/vgg16-397923af.pth"
    for _ in range(2):
        assert published.load_state_dict(url, None, "LPIPS", "-").keys()
    assert asked == [(url, "397923af")] and (offline / "vgg16-397923af.pth").is_file()


@pytest.mark.parametrize("content", ["nothing", "text", "other", "list"])
def test_a_file_that_is_no_vgg_is_refused_by_name(content, tmp_path):
    path = tmp_path / "weights.pth"
    match content:
        case "text":
            path.write_text("not weights")
        case "other":
            torch.save(nn.Linear(2, 2).state_dict(), path)
        case "list":
            torch.save([torch.zeros(2)], path)
    error = FileNotFoundError if content == "nothing" else ValueError
    with pytest.raises(error, match="weights.pth"):
        LPIPS(path)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("went-off"),)


def test_a_file_with_code_in_it_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": Bomb()}, "weights.pth")
    with pytest.raises(ValueError, match="weights.pth"):
        published.load_state_dict("https://x.org/y-00.pth", "weights.pth", "LPIPS", "-")
    assert not Path("went-off").exists()
