"""Quantizers: scores, indices and losses against their definitions, and where the losses push."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F

from gear_studio import readout
from gear_studio.models.quantizers import (
    QUANTIZERS,
    EuclideanQuantizer,
    IndexBackpropagationQuantizer,
    LookupFreeQuantizer,
    Quantizer,
    VectorQuantizer,
)
from gear_studio.models.tokenizer import PRESETS, Tokenizer, TokenizerConfig, preset
from gear_studio.training import recipes, stages


@pytest.fixture
def quantizer() -> VectorQuantizer:
    torch.manual_seed(0)
    made = VectorQuantizer(codes=16, dim=4)
    with torch.no_grad():
        made.codebook.mul_(torch.rand(16, 1) * 3 + 0.1)  # lengths must not matter
    return made


@pytest.fixture
def latent() -> torch.Tensor:
    return torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(1)) * 5


def test_scores_are_minus_the_squared_distance_on_the_unit_sphere(quantizer, latent):
    z = latent.double() / latent.double().norm(dim=-1, keepdim=True)
    codes = quantizer.codebook.double() / quantizer.codebook.double().norm(dim=-1, keepdim=True)
    expected = -(z[:, :, None] - codes).square().sum(-1)
    torch.testing.assert_close(quantizer.scores(latent).double(), expected, atol=1e-5, rtol=0)
    assert torch.equal(quantizer.assign(latent).indices, expected.argmax(-1))


def test_scores_keep_single_precision_under_autocast(quantizer, latent):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = quantizer.scores(latent)
    assert torch.equal(scores, quantizer.scores(latent))


def test_codes_are_the_unit_vectors_of_the_indices(quantizer):
    indices = torch.tensor([[3, 0], [15, 3]])
    codes = quantizer.codes(indices)
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(2, 2))
    assert torch.equal(codes[0, 0], codes[1, 1])
    assert F.cosine_similarity(codes[1, 0], quantizer.codebook[15], dim=0).item() == pytest.approx(1)


def test_a_code_vector_is_assigned_to_itself(quantizer):
    indices = torch.arange(16)[None]
    assert torch.equal(quantizer.assign(quantizer.codes(indices)).indices, indices)


def test_loss_and_decoder_input_by_hand():
    quantizer = VectorQuantizer(codes=2, dim=2)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    result = quantizer(torch.tensor([[[6.0, 8.0]]]))  # on the sphere (0.6, 0.8), nearest (0, 1)
    assert result.assignment.indices.tolist() == [[1]]
    torch.testing.assert_close(result.assignment.scores, torch.tensor([[[-0.8, -0.4]]]))
    torch.testing.assert_close(result.decoder_input, torch.tensor([[[0.0, 1.0]]]))
    assert result.loss.item() == pytest.approx(1.25 * (0.6**2 + 0.2**2) / 2)


def test_quantizer_loss_pulls_code_to_latent_and_a_quarter_as_hard_latent_to_code():
    quantizer = VectorQuantizer(codes=2, dim=2)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    latent = torch.tensor([[[0.6, 0.8]]], requires_grad=True)
    to_latent, to_codes = torch.autograd.grad(quantizer(latent).loss, [latent, quantizer.codebook])
    # On the sphere d/dc mean (c - z)^2 = c - z = (-0.6, 0.2); normalising loses what points along the code.
    torch.testing.assert_close(to_codes, torch.tensor([[0.0, 0.0], [-0.6, 0.0]]))
    along = torch.tensor([0.6, -0.2])  # z - c
    expected = 0.25 * (along - (along @ latent[0, 0].detach()) * latent[0, 0].detach())
    torch.testing.assert_close(to_latent[0, 0], expected)


def test_decoder_gradient_goes_straight_to_the_latent_and_not_to_the_codes(quantizer, latent):
    latent = F.normalize(latent, dim=-1).requires_grad_()
    weight = torch.randn(2, 9, 4)
    decoder_loss = (quantizer(latent).decoder_input * weight).sum()
    to_latent, to_codes = torch.autograd.grad(decoder_loss, [latent, quantizer.codebook], allow_unused=True)
    assert to_codes is None
    unit = latent.detach()
    # Identity but for the normalisation, which drops the part along z.
    torch.testing.assert_close(to_latent, weight - (weight * unit).sum(-1, keepdim=True) * unit)


# All


def make(kind: str, codes: int = 64, dim: int = 6) -> Quantizer:
    torch.manual_seed(0)
    return QUANTIZERS[kind](codes, dim)


def latents() -> torch.Tensor:
    return torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(1)) * 3


def defined_scores(kind: str, z: np.ndarray, c: np.ndarray) -> np.ndarray:
    """A, as the table in `quantizers` says, one pair at a time."""
    scores = np.empty((*z.shape[:2], len(c)))
    for b, n, k in np.ndindex(scores.shape):
        one, code = z[b, n], c[k]
        if kind == "vq":
            apart = one / np.sqrt((one**2).sum()) - code / np.sqrt((code**2).sum())
            scores[b, n, k] = -(apart**2).sum()
        elif kind == "euclidean":
            scores[b, n, k] = -((one - code) ** 2).sum()
        else:
            scores[b, n, k] = (2 if kind == "lfq" else 1) * (one * code).sum()
    return scores


def arrays(quantizer: Quantizer, z: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    return z.detach().double().numpy(), quantizer.codebook.detach().double().numpy()


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_scores_and_indices_are_those_of_the_table(kind):
    quantizer, z = make(kind), latents()
    expected = defined_scores(kind, *arrays(quantizer, z))
    assignment = quantizer.assign(z)
    np.testing.assert_allclose(assignment.scores.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(assignment.indices, torch.tensor(expected.argmax(-1)))
    assert torch.equal(quantizer.indices(z), assignment.indices)
    assert torch.equal(quantizer(z).assignment.indices, assignment.indices)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_losses_are_those_of_the_paper(kind):
    quantizer, latent = make(kind), latents()
    z, c = arrays(quantizer, latent)
    scores = defined_scores(kind, z, c)
    chosen = scores.argmax(-1)
    if kind == "vq":
        z = z / np.sqrt((z**2).sum(-1, keepdims=True))
        c = c / np.sqrt((c**2).sum(-1, keepdims=True))
    distance = ((c[chosen] - z) ** 2).mean()
    expected = {"vq": 1.25, "lfq": 0.25, "ibq": 2.25, "euclidean": 1.25}[kind] * distance
    result = quantizer(latent)
    assert result.loss.item() == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(result.decoder_input.detach().numpy(), c[chosen], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(quantizer.codes(result.assignment.indices).detach(), c[chosen], rtol=1e-4)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_everything_keeps_single_precision_under_autocast(kind):
    quantizer, z = make(kind), latents()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, low = quantizer(z), quantizer(z.bfloat16())
    plain = quantizer(z)
    assert torch.equal(found.assignment.scores, plain.assignment.scores)
    assert torch.equal(found.loss, plain.loss) and torch.equal(found.decoder_input, plain.decoder_input)
    assert low.assignment.scores.dtype == low.decoder_input.dtype == low.loss.dtype == torch.float32


@pytest.mark.parametrize("read", [readout.soft, readout.straight_through])
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_soft_read_outs_reach_the_latent_and_a_learned_codebook(kind, read):
    quantizer, z = make(kind), latents().requires_grad_()
    (read(quantizer.assign(z), torch.randn(64, 5)) * torch.randn(5)).sum().backward()
    assert z.grad.abs().sum() > 0
    assert [p.grad.abs().sum() > 0 for p in quantizer.parameters()] == ([] if kind == "lfq" else [True])


# Lookup-free quantization


def test_bit_d_of_an_lfq_index_is_the_sign_of_channel_d_and_zero_is_negative():
    quantizer = LookupFreeQuantizer(8, 3)
    z = torch.tensor([[[0.1, -2.0, 3.0], [-1.0, 5.0, -1.0], [0.0, 0.0, 1e-30], [0.0, -0.0, 0.0]]])
    assert quantizer.indices(z).tolist() == [[1 + 4, 2, 4, 0]]
    assert quantizer.codes(quantizer.indices(z))[0].tolist() == [
        [1, -1, 1],
        [-1, 1, -1],
        [-1, -1, 1],
        [-1, -1, -1],
    ]
    assert torch.equal(quantizer.indices(quantizer.codebook[None]), torch.arange(8)[None])


def test_lfq_at_the_paper_s_size_and_beyond():
    for bits in (14, 18):
        quantizer, z = LookupFreeQuantizer(2**bits, bits), torch.randn(1, 16, bits)
        assignment = quantizer.assign(z)
        assert torch.equal(assignment.indices, assignment.scores.argmax(-1))
        best = 2 * z.double().abs().sum(-1)
        torch.testing.assert_close(assignment.scores.amax(-1).double(), best, rtol=1e-5, atol=0)
        assert not quantizer.state_dict()  # nothing to learn, nothing to store


def test_indices_of_lfq_need_no_scores(monkeypatch):
    monkeypatch.setattr(LookupFreeQuantizer, "scores", None)
    tokenizer, (images, _) = Tokenizer(SMALL["lfq"]).eval(), tiny.batch()
    assert torch.equal(tokenizer.reconstruct(images), tokenizer.decode(tokenizer.indices(images)))


def test_codes_that_are_no_power_of_two_of_the_channels_are_refused():
    with pytest.raises(ValueError, match=r"LFQ with 8 channels has 2\^8 = 256 codes, not 1024"):
        LookupFreeQuantizer(1024, 8)


def test_lfq_passes_the_decoder_s_gradient_straight_to_the_latent():
    quantizer, z, weight = make("lfq"), latents().requires_grad_(), torch.randn(2, 9, 6)
    (to_latent,) = torch.autograd.grad((quantizer(z).decoder_input * weight).sum(), z)
    torch.testing.assert_close(to_latent, weight)
    (of_loss,) = torch.autograd.grad(quantizer(z).loss, z)
    torch.testing.assert_close(of_loss, 0.5 * (z - z.sign()).detach() / z.numel())


# Index backpropagation


def test_ibq_s_gradients_are_those_of_its_definition():
    """Against the straight-through one-hot written out, in double precision."""
    quantizer, latent, weight = make("ibq"), latents(), torch.randn(2, 9, 6)
    z, c = (t.detach().double().requires_grad_() for t in (latent, quantizer.codebook))
    scores = z @ c.T
    s, o = scores.softmax(-1), F.one_hot(scores.argmax(-1), 64).double()
    fed = (o - s.detach() + s) @ c
    loss = ((fed - z) ** 2).mean() + (((o @ c).detach() - z) ** 2).mean()
    loss = loss + 0.25 * ((o @ c - z.detach()) ** 2).mean()
    expected = torch.autograd.grad(loss + (fed * weight).sum(), [z, c])

    latent.requires_grad_()
    result = quantizer(latent)
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-4)
    found = torch.autograd.grad(
        result.loss + (result.decoder_input * weight).sum(), [latent, quantizer.codebook]
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)
    assert (expected[1].abs().sum(-1) > 0).all()  # every code is moved, not only the chosen ones


# Euclidean


def test_the_nearest_code_wins_however_long():
    quantizer = EuclideanQuantizer(3, 2)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[1.0, 0.0], [3.0, 3.0], [10.0, 0.0]]))
    z = torch.tensor([[[1.4, 0.2], [2.4, 1.8], [6.0, 0.0]]])
    assert quantizer.indices(z).tolist() == [[0, 1, 2]]
    assert quantizer.scores(z)[0, 0].tolist() == pytest.approx([-0.2, -10.4, -74.0], rel=1e-5)
    assert torch.equal(quantizer(z).decoder_input, quantizer.codebook[None])


def test_a_euclidean_decoder_s_gradient_goes_to_the_latent_and_the_loss_moves_the_chosen_codes():
    quantizer, z, weight = make("euclidean"), latents().requires_grad_(), torch.randn(2, 9, 6)
    fed = (quantizer(z).decoder_input * weight).sum()
    to_latent, to_codes = torch.autograd.grad(fed, [z, quantizer.codebook], allow_unused=True)
    torch.testing.assert_close(to_latent, weight)
    assert to_codes is None
    result = quantizer(z)
    (moved,) = torch.autograd.grad(result.loss, quantizer.codebook)
    chosen = result.assignment.indices.unique()
    assert moved.abs().sum(-1).nonzero()[:, 0].tolist() == chosen.tolist()


# Index backpropagation: lengths


def test_ibq_indices_depend_on_lengths():
    quantizer = IndexBackpropagationQuantizer(2, 2)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[1.0, 0.0], [3.0, 3.0]]))
    assert quantizer.indices(torch.tensor([[[1.0, 0.0], [1.0, -1.0]]])).tolist() == [[1, 0]]


# In a tokenizer

SMALL = {
    "vq": tiny.TOKENIZER,
    "lfq": replace(tiny.TOKENIZER, quantizer="lfq", code_dim=6),
    "ibq": replace(tiny.TOKENIZER, quantizer="ibq", code_dim=16),
    "euclidean": replace(tiny.TOKENIZER, quantizer="euclidean"),
}


@pytest.mark.parametrize("arm", ["gear", "straight-through", "continued"])
@pytest.mark.parametrize("kind", SMALL)
def test_one_joint_step_moves_encoder_codebook_and_decoder(kind, arm):
    torch.manual_seed(0)
    recipe = tiny.recipe(tokenizer=SMALL[kind])
    accelerator = stages.Accelerator(cpu=True)
    stage = stages.Stage("joint", arm, recipe, tiny.teacher(), accelerator, Tokenizer(SMALL[kind]))
    before = {name: value.clone() for name, value in stage.tokenizer.named_parameters()}
    losses = stage.step(1, *tiny.batch())
    assert all(value.isfinite() for value in losses.values())
    parts = {
        name.split(".")[0]
        for name, value in stage.tokenizer.named_parameters()
        if not torch.equal(value, before[name])
    }
    learned = set() if kind == "lfq" else {"quantizer"}
    assert parts == {"encoder", "to_code", "from_code", "decoder"} | learned
    assert stage.measure_codes()["usage"] > 0


@pytest.mark.parametrize("kind", SMALL)
def test_guidance_alone_reaches_the_encoder(kind):
    torch.manual_seed(0)
    recipe = tiny.recipe(tokenizer=SMALL[kind])
    stage = stages.Stage(
        "joint", "gear", recipe, tiny.teacher(), stages.Accelerator(cpu=True), Tokenizer(SMALL[kind])
    )
    images, labels = tiny.batch()
    with stages.frozen(stage.modules["aligned"]):
        loss = stage.compute_guidance(stage.tokenizer.assign(images), labels, [stage.teacher(images)], {})
    gradients = torch.autograd.grad(loss, list(stage.tokenizer.encoder.parameters()), allow_unused=True)
    assert sum(g.abs().sum() for g in gradients if g is not None) > 0


@pytest.mark.parametrize("name", PRESETS)
def test_presets_encode_and_decode(name):
    config = preset(name)
    with torch.device("meta"):
        tokenizer = Tokenizer(config)
        images = torch.zeros(1, 3, config.image_size, config.image_size)
        latent = tokenizer.encode(images)
        assert latent.shape == (1, config.grid**2, config.code_dim)
        assert tokenizer.decode_codes(latent).shape == images.shape
        assert tokenizer.quantizer.codebook.shape == (config.codes, config.code_dim)
    small = {"small": 1024, "mini": 512}.get(name.split("-")[0], 16384)
    assert config.codes == (256 if name == "lfq-8" else small)


def test_the_small_presets_are_the_table_of_quantizers_at_two_sizes():
    sizes = {
        name: (c.codes, c.code_dim, c.quantizer)
        for name, c in PRESETS.items()
        if not name.endswith(("-16", "-8"))
    }
    assert sizes == {
        "small": (1024, 8, "vq"),
        "small-lfq": (1024, 10, "lfq"),
        "small-ibq": (1024, 64, "ibq"),
        "small-euclidean": (1024, 8, "euclidean"),
        "mini": (512, 8, "vq"),
        "mini-lfq": (512, 9, "lfq"),
        "mini-ibq": (512, 64, "ibq"),
        "mini-euclidean": (512, 8, "euclidean"),
    }
    assert PRESETS["small"] == TokenizerConfig()
    for budget, size in (("shipped", "small"), ("quick", "mini")):
        for quantizer in QUANTIZERS:
            config = preset(recipes.small_tokenizer(budget, quantizer))
            expected = replace(PRESETS[size], quantizer=quantizer, code_dim=config.code_dim)
            assert config == expected


def test_a_tokenizer_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="unknown tokenizer 'vq-17'; choose one of small, small-lfq"):
        preset("vq-17")
    for wrong, message in (
        ({"quantizer": "fsq"}, "unknown quantizer 'fsq'; choose one of vq, lfq, ibq, euclidean"),
        ({"architecture": "unet"}, "unknown architecture 'unet'; choose vqgan or magvit2"),
        ({"architecture": "magvit2"}, "latent 32, code_dim 8 and patch 4: it needs latent = code_dim"),
    ):
        with pytest.raises(ValueError, match=message):
            Tokenizer(replace(tiny.TOKENIZER, **wrong))


# Any size


WIDE = {
    "vq": replace(tiny.TOKENIZER, image_size=32),
    "vq-16": replace(
        PRESETS["vq-16"], image_size=64, channels=32, multipliers=(1, 1, 1, 1, 1), latent=32, codes=64
    ),
    "lfq-16": replace(
        PRESETS["lfq-16"], image_size=32, channels=32, multipliers=(1, 1, 1), latent=6, codes=64, code_dim=6
    ),
}


@pytest.mark.parametrize("name", WIDE)
def test_a_tokenizer_takes_any_size_that_f_divides(name, monkeypatch):
    torch.manual_seed(0)
    tokenizer = Tokenizer(WIDE[name]).eval()
    f, grid = tokenizer.config.factor, tokenizer.grid
    assert f == {"vq": 8, "vq-16": 16, "lfq-16": 4}[name] and grid == tokenizer.config.image_size // f
    for rows, columns in ((2, 5), (5, 2), (grid, grid), (1, 3)):
        images = torch.rand(2, 3, rows * f, columns * f) * 2 - 1
        assert tokenizer.grid_of(images) == tokenizer.grid_of((rows * f, columns * f)) == (rows, columns)
        with torch.no_grad():
            assignment, indices = tokenizer.assign(images), tokenizer.indices(images)
            assert assignment.scores.shape == (2, rows * columns, 64)
            assert torch.equal(assignment.indices, indices)
            with monkeypatch.context() as patch:
                patch.setattr(readout, "AT_ONCE", 3 * 64)
                assert torch.equal(tokenizer.indices(images), indices)
            # Raster order: row by row as `encode` flattens.
            z = tokenizer.to_code(tokenizer.encoder(images))
            assert torch.equal(tokenizer.encode(images)[:, columns * (rows - 1)], z[:, :, rows - 1, 0])
            back = tokenizer.decode(indices, (rows, columns))
            assert torch.equal(tokenizer.reconstruct(images), back) and back.shape == images.shape
            assert tokenizer(images)[0].shape == images.shape
            whole = tokenizer.from_code(
                tokenizer.quantizer.codes(indices).transpose(1, 2).unflatten(2, (rows, columns))
            )
            assert torch.equal(back, tokenizer.decoder(whole).clamp(-1, 1))
            if rows == columns == grid:
                assert torch.equal(tokenizer.decode(indices), back)


def test_a_size_that_f_does_not_divide_names_the_next_ones():
    tokenizer = Tokenizer(tiny.TOKENIZER)
    for size, message in (
        ((32, 36), "width 36, no multiple of f = 8; resize, crop or pad it to 32 or 40"),
        ((63, 64), "height 63, no multiple of f = 8; .* 56 or 64"),
        ((5, 8), "height 5, no multiple of f = 8; .* to 8$"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer.encode(torch.zeros(1, 3, *size))
        with pytest.raises(ValueError, match=message):
            tokenizer.grid_of(size)
    with pytest.raises(ValueError, match=r"shape \(1, 1, 32, 32\); expected \(B, 3, H, W\)"):
        tokenizer.encode(torch.zeros(1, 1, 32, 32))
    for indices, grid in ((torch.zeros(1, 12, dtype=torch.long), None), (torch.zeros(1, 16).long(), (3, 4))):
        with pytest.raises(
            ValueError, match=f"{indices.shape[1]} tokens are not .*how many rows and columns"
        ):
            tokenizer.decode(indices, grid)
