"""Codebook statistics against hand-worked values."""

import math

import pytest
import tiny
import torch

from gear_studio import readout
from gear_studio.analysis.codebook import assignment_statistics, measure_assignment, usage_statistics
from gear_studio.models.quantizers import QUANTIZERS


def test_usage_and_perplexity_by_hand():
    found = usage_statistics(torch.tensor([3.0, 3.0, 0.0, 0.0]))
    assert found["usage"].item() == pytest.approx(0.5)
    assert found["perplexity"].item() == pytest.approx(2)
    uneven = usage_statistics(torch.tensor([3.0, 1.0, 0.0]))
    assert uneven["usage"].item() == pytest.approx(2 / 3)
    nats = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert uneven["perplexity"].item() == pytest.approx(math.exp(nats))
    assert usage_statistics(torch.full((64,), 5.0))["perplexity"].item() == pytest.approx(64, rel=1e-5)


def test_concentration_by_hand():
    # Token 1: softmax = (1/2, 1/4, 1/4). Token 2: uniform over 3.
    scores = torch.log(torch.tensor([[[2.0, 1.0, 1.0], [1.0, 1.0, 1.0]]]))
    found = {name: value.item() for name, value in assignment_statistics(scores, tau=0.5).items()}
    first = 0.5 * math.log(2) + 0.5 * math.log(4)
    assert found["entropy"] == pytest.approx((first + math.log(3)) / 2)
    assert found["effective_size"] == pytest.approx((math.exp(first) + 3) / 2)
    assert found["mass_1"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found["mass_10"] == pytest.approx(1) and found["mass_100"] == pytest.approx(1)
    # tau = 0.5 squares the odds: token 1 becomes (4, 1, 1) / 6.
    assert found["mass_1_tau"] == pytest.approx((4 / 6 + 1 / 3) / 2)
    sharper = -(4 / 6) * math.log(4 / 6) - 2 / 6 * math.log(1 / 6)
    assert found["entropy_tau"] == pytest.approx((sharper + math.log(3)) / 2)


def test_top_masses_count_codes():
    found = assignment_statistics(torch.zeros(2, 3, 1000), tau=0.1)
    for suffix in ("", "_tau"):
        masses = [found[f"mass_{k}{suffix}"].item() for k in (1, 10, 100)]
        assert masses == pytest.approx([0.001, 0.01, 0.1], rel=1e-4)
        assert found[f"effective_size{suffix}"].item() == pytest.approx(1000, rel=1e-3)


def latents(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 2


@pytest.mark.parametrize("at_once", [1, 5 * 64, 2**24])
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_in_pieces_assignments_are_what_they_are_as_a_whole(kind, at_once, monkeypatch):
    torch.manual_seed(0)
    quantizer, z = QUANTIZERS[kind](64, 6), latents(3, 7, 6)
    whole = quantizer.assign(z)
    expected = assignment_statistics(whole.scores, tau=0.1)
    monkeypatch.setattr(readout, "AT_ONCE", at_once)
    indices, counts, found = measure_assignment(z, quantizer, tau=0.1)
    assert torch.equal(indices, whole.indices) and torch.equal(quantizer.indices(z), whole.indices)
    assert torch.equal(counts, torch.bincount(whole.indices.flatten(), minlength=64))
    assert found == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_quarter_of_a_million_codes_are_never_scored_all_at_once(kind, monkeypatch):
    torch.manual_seed(0)
    quantizer, z = QUANTIZERS[kind](2**18, 18), latents(2, 20, 18)
    whole = quantizer.assign(z)
    expected = assignment_statistics(whole.scores, tau=0.1)
    monkeypatch.setattr(readout, "AT_ONCE", 2**20)  # 4 rows of 40
    seen, score, softmax = [], quantizer.scores, torch.softmax

    def spy(function):
        def spied(*arguments, **options):
            answer = function(*arguments, **options)
            seen.append(answer.numel())
            return answer

        return spied

    monkeypatch.setattr(quantizer, "scores", spy(score))
    monkeypatch.setattr(torch, "softmax", spy(softmax))
    indices, counts, found = measure_assignment(z, quantizer, tau=0.1)
    assert len(seen) == 30 and set(seen) == {2**20}  # ten pieces: scores, and softmax at two temperatures
    assert torch.equal(indices, whole.indices) and torch.equal(quantizer.indices(z), whole.indices)
    assert counts.sum() == 40 and counts.shape == (2**18,)
    assert found == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-4)
    assert max(seen) == 2**20
    held = whole.scores.numel() * 4  # bytes of all scores; the codebook itself is nearly half as many
    assert tiny.peak_bytes(lambda: quantizer.indices(z)) < held
