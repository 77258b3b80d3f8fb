"""Vector quantization: scores against their definition, and where the quantizer loss pushes."""

import pytest
import torch
import torch.nn.functional as F

from gear_studio.quantizers import VectorQuantizer


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
