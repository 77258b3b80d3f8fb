"""Codebook statistics against hand-worked values."""

import math

import pytest
import torch

from gear_studio.analysis.codebook import assignment_statistics, usage_statistics


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
