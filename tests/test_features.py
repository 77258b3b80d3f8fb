"""The explorer's computing: patch features, single codes, uploads, and the figures made of them."""

import io
import math
import shutil
import struct
import sys
import types
import zlib
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from gear_studio import plots, readout, runs
from gear_studio.analysis import codes, features
from gear_studio.analysis.features import extract, to_function
from gear_studio.analysis.similarity import Estimate, Null
from gear_studio.data import to_float
from gear_studio.data.upload import MAX_BYTES, UploadError, read_upload
from gear_studio.files import write_json
from gear_studio.models.projector import Projector, ProjectorConfig
from gear_studio.models.tokenizer import Tokenizer
from gear_studio.readout import Assignment

TOKENS = tiny.GENERATOR.grid**2


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(tiny.TOKENIZER).eval()


def some_indices(seed: int = 0, size: int = 2) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randint(0, tiny.GENERATOR.codes, (size, TOKENS), generator=source)


# features


def test_tokenizer_features_after_quantization_are_the_chosen_code_vectors(tokenizer):
    images, _ = tiny.batch()
    z = features.tokenizer_features(tokenizer, images)
    torch.testing.assert_close(z, tokenizer.encode(images))
    codebook = torch.nn.functional.normalize(tokenizer.quantizer.codebook, dim=-1)
    nearest = torch.cdist(torch.nn.functional.normalize(z, dim=-1), codebook[None]).argmin(-1)
    torch.testing.assert_close(features.tokenizer_features(tokenizer, images, True), codebook[nearest])


def test_generator_features_are_those_of_the_training_pass():
    generator, indices, labels = tiny.generator(), some_indices(), torch.tensor([3, 7])
    embedded = readout.hard(Assignment(torch.zeros(0), indices), generator.token_table)[:, :-1]
    _, expected = generator(embedded, labels, tap=2)
    first, second = features.generator_features(generator, indices, [1, 2], labels)
    torch.testing.assert_close(second, expected)
    assert not torch.allclose(first, second)


def test_generator_position_sees_only_the_tokens_before_it():
    generator, indices = tiny.generator(), some_indices()
    (before,) = features.generator_features(generator, indices, [3])
    changed = indices.clone()
    changed[:, 5] = (changed[:, 5] + 1) % tiny.GENERATOR.codes
    (after,) = features.generator_features(generator, changed, [3])
    same = (before == after).all(-1).all(0)
    assert same[:6].all() and not same[6:].any()


def test_no_label_is_the_null_condition():
    generator, indices = tiny.generator(), some_indices()
    nulls = torch.full((2,), generator.condition.null)
    (without,) = features.generator_features(generator, indices, [1])
    torch.testing.assert_close(without, features.generator_features(generator, indices, [1], nulls)[0])
    labelled = features.generator_features(generator, indices, [1], torch.tensor([0, 0]))[0]
    assert not torch.allclose(without, labelled)


def test_the_alignment_matrix_holds_the_cosines_of_the_projected_tap():
    torch.manual_seed(1)
    generator, indices, labels = tiny.generator(), some_indices(), torch.tensor([1, 2])
    projector = Projector(ProjectorConfig(dim=32, teacher_dim=6, hidden=8))
    teacher = torch.randn(2, TOKENS, 6)
    (tap,) = features.generator_features(generator, indices, [tiny.GENERATOR.tap], labels)
    a, b = projector(tap).detach().double().numpy(), teacher.double().numpy()
    lengths = np.linalg.norm(a, axis=-1)[:, :, None] * np.linalg.norm(b, axis=-1)[:, None]
    expected = np.einsum("bid,bjd->bij", a, b) / lengths
    found = features.alignment_matrix(generator, projector, indices, teacher, labels)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_pca_finds_the_directions_of_most_variance():
    source = torch.Generator().manual_seed(0)
    latent = torch.rand(400, 3, generator=source) * torch.tensor([16.0, 4.0, 1.0])
    turn, _ = torch.linalg.qr(torch.randn(10, 10, generator=source))
    colors = features.pca_rgb(latent @ turn[:3] + 5)
    assert colors.shape == (400, 3) and colors.min() == 0 and colors.max() == 1
    for channel in range(3):  # up to the sign, which the direction alone does not fix
        correlation = np.corrcoef(colors[:, channel], latent[:, channel])[0, 1]
        assert abs(correlation) > 0.97


def test_pca_of_features_along_one_line_leaves_two_channels_grey():
    colors = features.pca_rgb(torch.linspace(0, 1, 16)[:, None] * torch.tensor([[1.0, 2.0, 0.5, 0.0]]))
    assert (colors[:, 0].diff() >= 0).all() and colors[0, 0] == 0 and colors[-1, 0] == 1
    assert (colors[:, 1:] == 0.5).all()


def test_similarity_by_hand():
    found = features.similarity(torch.tensor([[1.0, 0], [3, 0], [0, 2], [-1, 0], [1, 1]]), 0)
    torch.testing.assert_close(found, torch.tensor([1, 1, 0, -1, 2**-0.5]))
    with pytest.raises(ValueError, match=r"patch 5 is not one of 0\.\.4"):
        features.similarity(torch.ones(5, 2), 5)


# extract


@pytest.fixture(scope="module")
def modules(tokenizer) -> list:
    torch.manual_seed(2)
    projector = Projector(ProjectorConfig(dim=32, teacher_dim=32, hidden=8)).eval()
    return [tokenizer, tiny.generator(), projector, tiny.teacher()]


@pytest.fixture(scope="module")
def run(tmp_path_factory, modules) -> runs.Run:
    """A Run with those modules."""
    folder = tmp_path_factory.mktemp("runs") / "generator"
    for name, module in zip(("tokenizer", "generator", "projector", "teacher"), modules, strict=True):
        module.save_pretrained(folder / name)
    recipe = {"teacher": str(folder / "teacher")}
    write_json(folder / "config.json", {"stage": "generator", "parent": None, "recipe": recipe})
    return runs.Run(folder)


EVERYWHERE = ["teacher", "generator.3", "tokenizer.c_q", "generator.1", "tokenizer.z", "teacher.1"]


def test_extract_is_each_model_run_by_hand(modules):
    tokenizer, generator, projector, teacher = modules
    images, labels = tiny.batch(size=5)
    found = extract(modules, images, EVERYWHERE, batch_size=2)
    with torch.no_grad():
        indices = tokenizer.assign(images).indices
        embedded = generator.tokens(indices[:, :-1])
        states = {
            name: dict(zip((1, 2, 3), generator.hidden(embedded, asked, [1, 2, 3]), strict=True))
            for name, asked in (("null", torch.full((5,), generator.condition.null)), ("label", labels))
        }
        expected = {
            "teacher": teacher(images),
            "teacher.1": teacher.features(images, [1])[0],
            "tokenizer.z": tokenizer.encode(images),
            "tokenizer.c_q": tokenizer.quantizer.codes(indices),
            "generator.1": states["null"][1],
            "generator.3": states["null"][3],
        }
        projected = projector(states["label"][2])
    assert list(found) == EVERYWHERE and len(found) == 6
    for place, features_there in found.items():
        torch.testing.assert_close(features_there, expected[place])
    labelled = extract(modules, images, "generator.3", labels, batch_size=3)
    torch.testing.assert_close(labelled["generator.3"], states["label"][3])
    after = extract(modules, images, ["generator.2"], labels, projector="after")
    torch.testing.assert_close(after["generator.2"], projected)
    with pytest.raises(KeyError, match="no features of 'generator.2' were taken; there are generator.3"):
        labelled["generator.2"]


def test_extract_of_a_run_is_that_of_its_modules(run, modules):
    images, _ = tiny.batch()
    here, there = (extract(model, images, ["generator.2", "teacher"]) for model in (run, modules))
    torch.testing.assert_close(here["generator.2"], there["generator.2"])
    torch.testing.assert_close(here["teacher"], there["teacher"], atol=1e-2, rtol=1e-2)  # stored as float16
    torch.testing.assert_close(to_function(run, "generator.2")(images), here["generator.2"])
    after = to_function(run, "generator.2", projector="after")(images)
    assert after.shape == (4, 16, 32) and not torch.allclose(after, here["generator.2"])


def test_the_teacher_s_features_are_those_that_the_run_was_aligned_with(run, modules, tmp_path):
    images, _ = tiny.batch()
    shutil.copytree(run.folder, tmp_path / "run")
    recipe = {"teacher": str(run.folder / "teacher"), "teacher_block": 1}
    write_json(tmp_path / "run" / "config.json", {"stage": "generator", "parent": None, "recipe": recipe})
    inner = runs.Run(tmp_path / "run")
    found = extract(inner, images, ["teacher", "teacher.1", "teacher.2"])
    torch.testing.assert_close(found["teacher"], inner.teacher(images))
    last = extract(run, images, ["teacher", "teacher.2"])
    assert torch.equal(last["teacher"], last["teacher.2"]) and torch.equal(
        last["teacher"], found["teacher.2"]
    )
    assert not torch.allclose(found["teacher"], last["teacher"], atol=0.1)
    assert not torch.allclose(found["teacher"], found["teacher.1"], atol=0.1)  # which has been normed


def test_protocol_says_how_features_were_taken(run, tokenizer):
    images, labels = tiny.batch(size=6)
    found = extract(run, images, ["generator.2", "teacher"], labels, "after", source="shapes, val")
    said = "6 images (shapes, val); generator teacher-forced, conditioned on the label, after the projector"
    assert found.protocol == said
    assert found.rows("image").protocol == f"{said}; image level (mean of patches)"
    assert found.rows(count=20, seed=3).protocol == f"{said}; patch level, 20 drawn (seed 3)"
    assert "null condition, before the projector" in extract(run, images, "generator.1").protocol
    assert extract(tokenizer, images, "tokenizer.z").protocol == "6 images"


def test_rows_of_features_are_the_same_patches_everywhere(run):
    images, _ = tiny.batch(size=6)
    found = extract(run, images, ["tokenizer.z", "generator.1"])
    patches = found.rows("patch", count=20, seed=3)
    again = extract(run, images, "generator.1").rows(count=20, seed=3)
    assert torch.equal(patches["generator.1"], again["generator.1"]) and len(patches["tokenizer.z"]) == 20
    flat = found["tokenizer.z"].flatten(0, 1)
    at = [(flat == row).all(1).nonzero()[0, 0].item() // 16 for row in patches["tokenizer.z"]]
    assert patches.groups.tolist() == at
    torch.testing.assert_close(found.rows("image")["generator.1"], found["generator.1"].mean(1))


IMAGES, LABELS = tiny.batch()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IMAGES, "generator"), "unknown place 'generator'; choose of tokenizer.z, tokenizer.c_q"),
        ((IMAGES, "tokenizer.q"), "unknown place 'tokenizer.q'"),
        ((IMAGES, []), r"where is \[\]; give one or more places, each once"),
        ((IMAGES, ["teacher", "teacher"]), "each once"),
        ((IMAGES, "generator.4"), "generator.4 was asked for; this generator has blocks 1 to 3"),
        ((IMAGES, "teacher.0"), "teacher has blocks 1 to 2"),
        ((IMAGES.to(torch.uint8), "teacher"), "type torch.uint8; expected .* data.to_float makes them"),
        ((IMAGES[0], "teacher"), r"images have shape \(3, 32, 32\)"),
        ((IMAGES, "generator.1", LABELS[:3]), r"labels have shape \(3,\); expected \(4,\)"),
        ((IMAGES, "generator.1", LABELS + 9), r"labels are 9\.\.12; .* classes are 0\.\.9"),
        ((IMAGES, "teacher", LABELS), "condition and projector are the generator's, and none of teacher"),
        ((IMAGES, "generator.1", None, "beside"), "projector is 'beside'; choose before or after"),
        (
            (IMAGES, ["generator.2", "generator.3"], None, "after"),
            "generator.3 was asked for after the projector, .* on the tap alone; take generator.2",
        ),
        (
            (IMAGES, "teacher", None, "after"),
            "condition and projector are the generator's, and none of teacher",
        ),
    ],
)
def test_extract_refuses_what_makes_no_sense(modules, arguments, message):
    with pytest.raises(ValueError, match=message):
        extract(modules, *arguments)


def test_extract_says_which_module_is_missing(tokenizer, modules):
    with pytest.raises(ValueError, match="a Tokenizer is needed and Generator was given; give a Run, or"):
        extract(modules[1], IMAGES, "generator.1")
    with pytest.raises(ValueError, match="a Tokenizer is needed and Tokenizer, Tokenizer was given"):
        extract([tokenizer, tokenizer], IMAGES, "tokenizer.z")
    with pytest.raises(ValueError, match="a Projector is needed"):
        extract(modules[:2], IMAGES, "generator.2", projector="after")
    with pytest.raises(ValueError, match="the generator is in train mode, where dropout acts; call its eval"):
        extract([tokenizer, tiny.generator().train()], IMAGES, "generator.1")


def test_umap_layout_asks_for_one_seed_and_one_thread(monkeypatch):
    """What UMAP is asked for, without it."""
    asked = []

    class Umap:
        def __init__(self, **settings):
            asked.append(settings)

        def fit_transform(self, rows):
            return rows[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Umap))
    rows = torch.randn(9, 6)
    np.testing.assert_array_equal(features.umap_layout(rows, seed=3), rows[:, :2].numpy())
    counts = np.array([3, 0, 1, 1, 1, 1, 1, 1, 2])
    laid_out = codes.code_layout(rows.numpy(), counts, limit=7)  # 1 is unused, 7 among the least
    np.testing.assert_array_equal(np.isnan(laid_out[:, 0]).nonzero()[0], [1, 7])
    np.testing.assert_array_equal(laid_out[[0, 2, 8]], rows[[0, 2, 8], :2].numpy())
    settings = {"n_neighbors": 8, "metric": "cosine", "random_state": 3, "n_jobs": 1}
    assert asked == [settings, {**settings, "random_state": 0, "n_neighbors": 6}]
    with pytest.raises(ValueError, match=r"features have shape \(3, 6\); a layout takes"):
        features.umap_layout(rows[:3])


@pytest.mark.slow
@tiny.minutes
def test_umap_layout_is_a_function_of_features_and_seed():
    """Umap itself, which compiles first; notebook 05 and the explorer use it, too."""
    rows = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    first, again, other = (features.umap_layout(rows, seed) for seed in (3, 3, 4))
    assert first.shape == (60, 2) and np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert torch.get_num_threads() == 1  # as conftest.py set it: sums of what comes next depend on it


# codes


class Pictures:
    """Twelve random pictures of the tiny tokenizer's size."""

    def __len__(self) -> int:
        return 12

    def read(self, indices, rngs=None) -> dict[str, torch.Tensor]:
        images = [np.random.default_rng(i).integers(0, 256, (3, 32, 32), np.uint8) for i in indices]
        return {"image": torch.from_numpy(np.stack(images)), "label": torch.zeros(len(images)).long()}


@pytest.fixture(scope="module")
def found(tokenizer) -> codes.Survey:
    return codes.survey(tokenizer, Pictures(), pictures=40)


def test_survey_counts_every_token_and_averages_its_colors(tokenizer, found):
    images = Pictures().read(range(12))["image"]
    assert torch.equal(found.indices, tokenizer.assign(to_float(images)).indices)
    totals, sums = np.zeros(64), np.zeros((64, 3))
    for image, indices in zip(images.numpy(), found.indices.numpy(), strict=True):
        for token, code in enumerate(indices):
            row, column = divmod(token, 4)
            patch = image[:, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
            totals[code] += 1
            sums[code] += patch.mean((1, 2)) / 255
    assert (found.counts.numpy() == totals).all() and totals.sum() == 12 * 16
    used = totals > 0
    np.testing.assert_allclose(found.colors.numpy()[used], sums[used] / totals[used, None], atol=1e-5)
    assert (found.colors.numpy()[~used] == 0.5).all() and (~used).any()


def test_a_survey_grows(tokenizer, monkeypatch):
    monkeypatch.setattr(Pictures, "__len__", lambda self: 70)
    grown = list(codes.grow_survey(tokenizer, Pictures()))
    assert [len(each.images) for each in grown] == [32, 64, 70]
    for part in grown:
        indices = grown[-1].indices[: len(part.images)]
        assert torch.equal(part.indices, indices)
        assert torch.equal(part.counts, indices.flatten().bincount(minlength=64))


def test_gallery_shows_the_patches_of_the_code(found):
    code = int(found.counts.argmax())
    crops, total = codes.gallery(found, code, count=5)
    assert total == found.counts[code] and crops.shape == (5, 3, 24, 24)
    patches = found.images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    of_code = patches[found.indices == code]
    for crop in crops:
        assert (of_code == crop[:, 8:16, 8:16]).flatten(1).all(1).any()
    assert len(crops.flatten(1).unique(dim=0)) == 5
    unused = int((found.counts == 0).nonzero()[0])
    assert codes.gallery(found, unused)[0].shape == (0, 3, 24, 24)
    with pytest.raises(ValueError, match=r"code 64 is not one of 0\.\.63"):
        codes.gallery(found, 64)


def test_top_codes_by_hand():
    scores = torch.tensor([-2.0, -0.5, -4.0, -0.3])
    best = codes.top_codes(scores, tau=0.1, count=3)
    weights = np.exp(scores.double().numpy() / 0.1)
    weights /= weights.sum()
    assert [c.code for c in best] == [3, 1, 0] and [c.hard for c in best] == [1, 0, 0]
    np.testing.assert_allclose([c.soft for c in best], weights[[3, 1, 0]], rtol=1e-4)
    np.testing.assert_allclose([c.score for c in best], [-0.3, -0.5, -2], rtol=1e-6)
    assert codes.top_codes(scores, tau=0.001)[0].soft == pytest.approx(1)


def test_token_entropy_spans_certain_to_undecided():
    scores = torch.stack([torch.zeros(64), torch.arange(64.0) * -100])
    torch.testing.assert_close(codes.token_entropy(scores, 0.1), torch.tensor([math.log(64), 0.0]))
    two = torch.tensor([0.0, 0.0, -1e4])
    assert codes.token_entropy(two, 1.0).item() == pytest.approx(math.log(2))


def test_replaced_codes_change_only_what_was_asked():
    indices = torch.arange(16)
    edited = codes.with_codes(indices, {3: 40, 9: 0}, codes=64)
    assert edited[3] == 40 and edited[9] == 0 and (edited != indices).sum() == 2
    assert torch.equal(indices, torch.arange(16))
    with pytest.raises(ValueError, match=r"code 64 is not one of 0\.\.63"):
        codes.with_codes(indices, {0: 64}, codes=64)
    with pytest.raises(ValueError, match=r"token 16 is not one of 0\.\.15"):
        codes.with_codes(indices, {16: 1}, codes=64)


# uploads


def saved(path: Path, picture: Image.Image, **settings) -> Path:
    picture.save(path, **settings)
    return path


def halves(mode: str = "RGB") -> Image.Image:
    """Red left, blue right, 80 x 40."""
    picture = Image.new("RGB", (80, 40), "red")
    picture.paste("blue", (40, 0, 80, 40))
    return picture.convert(mode)


def test_upload_is_the_middle_square(tmp_path):
    image = read_upload(saved(tmp_path / "a.png", halves()), 64)
    assert image.shape == (3, 64, 64) and image.dtype == torch.uint8
    assert image[:, 32, 4].tolist() == [255, 0, 0] and image[:, 32, 60].tolist() == [0, 0, 255]


def test_upload_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: what is on the left comes to the top
    picture = halves().crop((20, 0, 60, 40))
    image = read_upload(saved(tmp_path / "a.jpg", picture, exif=exif, quality=95), 64).float()
    assert image[0, 8].mean() > 200 and image[2, 8].mean() < 60
    assert image[2, 56].mean() > 200 and image[0, 56].mean() < 60


def test_upload_transparency_becomes_white(tmp_path):
    picture = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    picture.paste((0, 128, 0, 255), (0, 0, 20, 40))
    image = read_upload(saved(tmp_path / "a.png", picture), 32)
    assert image[:, 16, 4].tolist() == [0, 128, 0] and image[:, 16, 28].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16"])
def test_upload_of_any_mode_is_rgb(tmp_path, mode):
    if mode == "I;16":
        picture = Image.fromarray(np.full((20, 20), 257 * 200, np.uint16))
    else:
        picture = Image.new("RGB", (20, 20), (255, 255, 255)).convert(mode)
    path = saved(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"), picture)
    image = read_upload(path, 16)
    assert image.shape == (3, 16, 16) and image.float().mean() == (200 if mode == "I;16" else 255)


@pytest.mark.parametrize("size", [(1, 1), (4096, 1), (1, 4096), (4096, 4096)])
def test_upload_of_extreme_sizes(tmp_path, size):
    assert read_upload(saved(tmp_path / "a.png", Image.new("RGB", size, "teal")), 64).shape == (3, 64, 64)


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG that claims a size; its pixels never come."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 9) + b"IDAT"


def truncated() -> bytes:
    """Half of a PNG whose pixels do not compress."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    return stream.getvalue()[: stream.tell() // 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.png", b"", "none.png is empty"),
        ("note.png", b"just words, not a picture", "note.png is not a picture"),
        ("vector.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "vector.eps is not a picture"),
        ("half.png", truncated(), "half.png is damaged"),
        ("wide.png", png_header(4097, 8), "wide.png is 4097 x 8 px; the limit is 4096 px"),
        ("bomb.png", png_header(60000, 60000), "bomb.png unpacks into far too many pixels"),
        ("large.png", bytes(MAX_BYTES + 1), "large.png is 20.0 MB; the limit is 20 MB"),
    ],
    ids=["empty", "text", "eps", "truncated", "wide", "bomb", "large"],
)
def test_bad_upload_is_refused_in_words(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UploadError, match=message):
        read_upload(tmp_path / name, 64)


# figures


def test_convergence_draws_each_seed_thin_and_their_mean_bold():
    def run(*values):
        series = np.array([10.0, 20, 30][: len(values)]), np.array(values)
        return types.SimpleNamespace(series=lambda key: {"ntp": series}[key])

    settings = dict(matplotlib.rcParams)
    runs_by_arm = {"gear": [run(4.0, 2.0, 1.0), run(6.0, 4.0)], "baseline": [run(5.0, 5.0, 5.0)]}
    (axes,) = plots.convergence(runs_by_arm, "ntp", "next-token loss (nats)").axes
    widths = [line.get_linewidth() for line in axes.lines]
    means = [line for line in axes.lines if line.get_linewidth() == max(widths)]
    assert len(axes.lines) == 4 and [line.get_ydata().tolist() for line in means] == [[5, 3], [5, 5, 5]]
    assert axes.get_ylabel() == "next-token loss (nats)" and axes.get_xlabel() == "training step"
    assert dict(matplotlib.rcParams) == settings


def test_sample_grid_shows_every_picture():
    images = torch.stack([torch.full((3, 8, 8), value) for value in (-1.0, 0.0, 1.0)])
    figure = plots.sample_grid(images, columns=2, titles=["a", "b", "c"])
    shown = [axes.get_images()[0].get_array() for axes in figure.axes if axes.get_images()]
    assert [pixels[0, 0].tolist() for pixels in shown] == [[0] * 3, [128] * 3, [255] * 3]
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c", ""]


def test_a_panel_of_estimates_shows_interval_chance_and_protocol():
    null = Null(0.05, 0.0, 0.1)
    with_null = {block: Estimate(block / 10, block / 10 - 0.1, block / 10 + 0.2, null) for block in (3, 1, 2)}
    without = {1: Estimate(0.5, 0.4, 0.6), 3: Estimate(0.2, 0.1, 0.3)}
    said = "512 images (shapes, val); generator teacher-forced, null condition, before the projector; patches"
    panels = {"CKNNA (k = 10)": {"gear": with_null, "baseline": without}}
    figure = plots.estimate_panels(panels, said, tap=2)
    (axes,) = figure.axes
    lines = [(line.get_label(), line.get_linestyle(), list(line.get_xdata())) for line in axes.lines]
    assert lines[0] == ("gear", "-", [1, 2, 3]) and lines[2] == ("baseline", "-", [1, 3])
    assert lines[1][1] == ":" and list(axes.lines[1].get_ydata()) == [0.05] * 3
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0) and band[:, 1].max() == pytest.approx(0.5)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["gear", "baseline", "chance"] and axes.get_ylabel() == "CKNNA (k = 10)"
    assert figure._supxlabel.get_text().replace("\n", " ") == said
    assert axes.get_xticks().tolist() == [1, 2, 3] and rendered(figure).std() > 5


def test_panels_of_estimates_share_one_legend_and_mark_zero():
    null = Null(0.05, 0.0, 0.1)
    above = {0: Estimate(0.3, 0.2, 0.4, null), 2: Estimate(0.5, 0.4, 0.6, null)}
    around = {2: Estimate(-0.1, -0.2, 0.1)}
    panels = {"CKNNA": {"gear": above, "baseline": above}, "difference": {"gear": around, "baseline": around}}
    figure = plots.estimate_panels(panels, "64 images", tap=2, names={0: "z"})
    left, right = figure.axes
    assert [axes.get_ylabel() for axes in (left, right)] == list(panels)
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["z", "2"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["gear", "baseline", "chance"]
    zero = [[0, 0] == list(line.get_ydata()) for line in right.lines]
    assert any(zero) and not any([0, 0] == list(line.get_ydata()) for line in left.lines)
    assert figure._supxlabel.get_text() == "64 images" and rendered(figure).std() > 5
    counts = {"cka": {32: above[0], 1024: above[2]}}
    others = {"CKA": counts, "difference": {"gear": around}}
    axes, other = plots.estimate_panels(others, xlabel="rows", logarithmic=True).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["cka", "chance"]
    assert [text.get_text() for text in other.get_legend().get_texts()] == ["gear"]
    assert axes.get_xscale() == "log" and [t.get_text() for t in axes.get_xticklabels()] == ["32", "1024"]


def test_layouts_show_every_row_in_the_colour_of_its_group():
    places = np.random.default_rng(0).random((9, 2))
    figure = plots.layouts({"teacher": places, "gear": -places}, [0, 1, 2] * 3, ["a", "b", "c"], "said")
    for axes, shown in zip(figure.axes, (places, -places), strict=True):
        assert [len(each.get_offsets()) for each in axes.collections] == [3, 3, 3]
        np.testing.assert_allclose(axes.collections[1].get_offsets(), shown[1::3])
        assert len({tuple(each.get_facecolor()[0]) for each in axes.collections}) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]


def test_interval_bars_stand_by_task_and_model():
    values = {
        "gear": {"shape": (0.8, 0.7, 0.85), "texture": (0.9, 0.9, 0.9)},
        "warmup": {"texture": (0.5, 0.4, 0.6)},
    }
    figure = plots.interval_bars(values, "accuracy", chance={"texture": 0.25})
    (axes,) = figure.axes
    heights = {container.get_label(): [bar.get_height() for bar in container] for container in axes.containers
               if isinstance(container, matplotlib.container.BarContainer)}  # fmt: skip
    assert heights == {"gear": [0.8, 0.9], "warmup": [0.5]}
    bars = [bar.get_center()[0] for c in axes.containers if hasattr(c, "patches") for bar in c.patches]
    assert bars == pytest.approx([-0.2, 0.8, 1.2])
    assert "chance" in [text.get_text() for text in axes.get_legend().get_texts()]
    assert rendered(figure).std() > 5


@pytest.mark.filterwarnings("error")
def test_interval_bars_without_an_interval_are_bare():
    values = {"gear": {"ours": (0.8, 0.7, 0.85), "paper": (0.9, math.nan, math.nan)}}
    figure = plots.interval_bars(values, "CKA")
    (lines,) = figure.axes[0].collections
    ends = [segment[:, 1].tolist() for segment in lines.get_segments() if len(segment)]
    assert ends == [pytest.approx([0.7, 0.85])]
    assert rendered(figure).std() > 5


def test_map_grid_puts_colours_and_numbers_beside_their_picture():
    images = torch.stack([torch.full((3, 16, 16), value) for value in (-1.0, 1.0)])
    colors = torch.rand(2, 16, 3, generator=torch.Generator().manual_seed(0))
    numbers = torch.arange(32.0).view(2, 16)
    figure = plots.map_grid(images, {"teacher": colors, "gear": numbers}, "cosine", protocol="two images")
    shown = [axes.get_images()[0].get_array() for axes in figure.axes[:6]]
    assert (shown[0] == 0).all() and (shown[3] == 255).all()
    np.testing.assert_array_equal(shown[4][2::4, 2::4].reshape(16, 3), (colors[1] * 255).round().byte())
    scale = (matplotlib.colormaps["viridis"](numbers[1].numpy() / 31)[:, :3] * 255).round()
    np.testing.assert_array_equal(shown[5][2::4, 2::4].reshape(16, 3), scale)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["picture", "teacher", "gear"]
    assert figure.axes[6].get_ylabel() == "cosine" and figure.axes[6].get_ylim() == (0, 31)
    assert len(plots.map_grid(images, {"teacher": colors}).axes) == 4 and rendered(figure).std() > 5
    framed = plots.map_grid(images, {"teacher": colors}, patch=6).axes[1]
    assert {frame.get_xy() for frame in framed.patches} == {(7.5, 3.5)}  # row 1, column 2 of 4 x 4 cells


def rendered(figure) -> np.ndarray:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return np.asarray(Image.open(stream).convert("L"))


def test_charts_of_a_codebook_render_and_point_out_a_code(found):
    layout = np.random.default_rng(0).normal(size=(64, 2))
    layout[10:] = np.nan
    used = int(found.counts.argmax())
    laid = found.counts, found.colors, "UMAP"
    for figure, pointed_out, pair in (
        (plots.usage_histogram(found.counts), plots.PointedOut.usage(found.counts), (used, 12)),
        (plots.code_map(layout, *laid), plots.PointedOut.map(layout, *laid), (3, 5)),
    ):
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi="figure")
        plain = np.asarray(Image.open(stream).convert("RGB")).astype(int)
        first, then, again = (np.asarray(pointed_out.draw(code)).astype(int) for code in (*pair, pair[0]))
        assert plain.std() > 5 and plain.shape == first.shape and np.array_equal(first, again)
        marked = np.abs(first - plain).max(-1) > 40
        assert 50 < marked.sum() < 0.02 * marked.size  # a mark and a word, all else in its place
        assert (first[marked] - first[marked].min(-1, keepdims=True))[:, 0].max() > 150  # vermilion
        assert (first != then).any()


def test_codes_that_are_not_laid_out_are_left_out_of_the_chart(found):
    layout = np.random.default_rng(0).normal(size=(64, 2))
    layout[10:] = np.nan
    laid = layout, found.counts, found.colors, "UMAP"
    figure, pointed_out = plots.code_map(*laid), plots.PointedOut.map(*laid)
    assert [len(axes.collections[0].get_offsets()) for axes in figure.axes[:2]] == [10, 10]
    absent = np.asarray(pointed_out.draw(12))
    assert np.array_equal(absent, np.asarray(pointed_out.draw(13)))
    assert (absent != np.asarray(pointed_out.draw(3))).any()


def test_maps_have_one_crisp_cell_a_token():
    values = torch.arange(16.0)
    pixels = np.asarray(plots.heat_map(values, 0, 15, "viridis", side=64))
    expected = (matplotlib.colormaps["viridis"](np.linspace(0, 1, 16))[:, :3] * 255).round()
    for token in range(16):
        cell = pixels[token // 4 * 16 :, token % 4 * 16 :][:16, :16]
        assert (cell == expected[token]).all()


def test_mark_frames_one_cell():
    blank = Image.new("RGB", (64, 64))
    changed = np.asarray(plots.mark(blank, 6, 4)).any(-1)
    rows, columns = np.nonzero(changed)
    assert (rows.min() // 16, columns.min() // 16) == (1, 2) and rows.max() <= 32 and columns.max() <= 48
    assert not np.asarray(plots.mark(blank, None, 4)).any()


def test_index_map_writes_on_the_codes_colors():
    colors = torch.rand(64, 3, generator=torch.Generator().manual_seed(0))
    indices = torch.arange(16) + 7
    pixels = np.asarray(plots.index_map(indices, colors, side=256))
    corners = pixels[2::64, 2::64].reshape(16, 3)
    np.testing.assert_array_equal(corners, (colors[indices] * 255).round().byte().numpy())
    assert (pixels[16:48, 16:48] != corners[0]).any()


def test_sample_sheet_is_grey_where_nothing_is_decoded():
    images = torch.ones(3, 3, 32, 32)
    part, whole = (
        np.asarray(plots.sample_sheet(images, torch.zeros(3, 16), torch.zeros(3, 16), done, 64))
        for done in (8, 16)
    )
    assert part.shape == whole.shape
    tile = part[:384, :384]  # the first of 2 x 2 pictures
    assert (tile[:192] == 255).all() and (tile[192:] == plots.PENDING).all()
    assert (whole[:384, :384] == 255).all()


def test_legend_names_quantity_and_ends():
    text = plots.legend("entropy <nats>", 0, 6.93)
    assert "entropy &lt;nats&gt;" in text and "<span>0.0</span>" in text and "<span>6.9</span>" in text


# runs


def test_runs_listed_are_those_one_can_look_at(tmp_path, tokenizer):
    for name, config in {
        "warmup": {"stage": "warmup", "parent": None},
        "underway": {"stage": "joint", "parent": "warmup"},
        "generator": {"stage": "generator", "parent": "warmup"},
        "orphan": {"stage": "generator", "parent": "lost"},
        "teacher": {"kind": "teacher"},
    }.items():
        write_json(tmp_path / name / "config.json", config)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    tokenizer.save_pretrained(tmp_path / "warmup" / "tokenizer")
    for name in ("generator", "orphan"):
        tiny.generator().save_pretrained(tmp_path / name / "generator")
    assert list(runs.list_runs(tmp_path)) == ["generator", "warmup"]
