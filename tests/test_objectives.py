"""The terms that are minimised, against values worked out apart."""

import math

import numpy as np
import pytest
import torch

from gear_studio import readout
from gear_studio.analysis.codebook import entropy
from gear_studio.models.discriminator import hinge_loss
from gear_studio.models.projector import alignment_loss, patch_cosine
from gear_studio.readout import Assignment
from gear_studio.training.objectives import (
    entropy_loss,
    mean_assignment,
    next_token_loss,
    perceptual_loss,
    straight_through_next_token_loss,
)


def test_entropy_loss_against_numpy():
    scores = np.random.default_rng(0).normal(size=(2, 5, 7)) * 0.02
    p = np.exp(scores / 0.01)
    p = (p / p.sum(-1, keepdims=True)).reshape(10, 7)
    of_each = -(p * np.log(p)).sum(-1).mean()
    mean = p.mean(0)
    expected = of_each + (mean * np.log(mean + 1e-5)).sum()
    assert entropy_loss(torch.tensor(scores)).item() == pytest.approx(expected, rel=1e-5)


def test_entropy_loss_is_lowest_when_each_token_is_sure_and_all_codes_are_used():
    sure = torch.eye(4)[None]
    assert entropy_loss(sure).item() == pytest.approx(-math.log(4), abs=1e-4)
    collapsed = torch.eye(4)[None, :1].expand(1, 4, 4)
    assert entropy_loss(collapsed).item() == pytest.approx(0, abs=1e-4)
    assert entropy_loss(torch.zeros(1, 4, 4)).item() == pytest.approx(math.log(1 + 4e-5), abs=1e-6)


def plain_entropy_loss(scores: torch.Tensor) -> torch.Tensor:
    log_p = torch.log_softmax(scores / 0.01, -1).flatten(0, 1)
    mean = log_p.exp().mean(0)
    return (mean * (mean + 1e-5).log()).sum() - (log_p.exp() * log_p).sum(-1).mean()


@pytest.mark.parametrize("at_once", [1, 14, 10**6])  # elements: one row, two of seven rows, all
def test_entropy_loss_in_pieces_equals_the_plain_one_gradient_included(at_once, monkeypatch):
    scores = (torch.randn(2, 5, 7, dtype=torch.float64) * 0.02).requires_grad_()
    scores.data[0, 0, 0] = 1.0  # a sure token: its other probabilities are far below the guard
    expected = plain_entropy_loss(scores)
    (to_scores,) = torch.autograd.grad(3 * expected, scores)
    monkeypatch.setattr(readout, "AT_ONCE", at_once)
    found = entropy_loss(scores)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(torch.autograd.grad(3 * found, scores)[0], to_scores, rtol=1e-12, atol=1e-14)


def test_entropy_losses_of_parts_average_to_that_of_the_whole_gradient_included():
    scores = (torch.randn(6, 5, 7, dtype=torch.float64) * 0.02).requires_grad_()
    mean = mean_assignment(scores)
    parts = torch.stack([entropy_loss(part, mean) for part in scores.chunk(3)]).mean()
    whole = plain_entropy_loss(scores)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-14)
    gradients = [torch.autograd.grad(loss, scores)[0] for loss in (parts, whole)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)
    alone = torch.stack([entropy_loss(part) for part in scores.chunk(3)]).mean()
    assert abs(alone - whole) > 1e-3  # each part on its own would ask for something else


def test_entropy_of_hand_worked_distributions():
    p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    assert entropy(p).tolist() == pytest.approx([math.log(2), 0, math.log(3)])


def test_hinge_loss_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    # relu(1 - real) = 0, 0.5, 2; relu(1 + fake) = 0, 1, 2
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * (2.5 / 3 + 3 / 3))


def test_perceptual_loss_is_zero_for_the_same_features_whatever_their_length_and_two_for_opposite():
    features = [torch.randn(2, 4, 8), torch.randn(2, 4, 8)]
    assert perceptual_loss(features, [3 * f for f in features]).item() == pytest.approx(0, abs=1e-6)
    assert perceptual_loss(features, [-f for f in features]).item() == pytest.approx(2, abs=1e-6)
    # One block the same, one opposite: blocks count alike.
    assert perceptual_loss(features, [features[0], -features[1]]).item() == pytest.approx(1, abs=1e-6)


def test_next_token_loss_is_the_mean_surprise_of_the_right_tokens():
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3)]]])
    assert next_token_loss(logits, torch.tensor([[0, 1]])).item() == pytest.approx(
        (math.log(2) + math.log(4 / 3)) / 2
    )


def test_straight_through_next_token_loss_keeps_the_value_and_favours_codes_that_are_expected():
    scores = torch.tensor([[[0.0, 0.1, 0.2]]], requires_grad=True)
    assignment = Assignment(scores, scores.argmax(-1))
    logits = torch.tensor([[[3.0, 0.0, -3.0]]], requires_grad=True)
    loss = straight_through_next_token_loss(logits, assignment)
    assert loss.item() == pytest.approx(next_token_loss(logits, assignment.indices).item())
    to_scores, to_logits = torch.autograd.grad(loss, [scores, logits])
    # d/dA sum_k softmax(A)_k surprise_k: a descent step raises the score of the least surprising code.
    p, surprise = scores.detach().softmax(-1), -logits.detach().log_softmax(-1)
    torch.testing.assert_close(to_scores, p * (surprise - (p * surprise).sum(-1, keepdim=True)))
    assert to_scores.argmin() == 0
    (expected,) = torch.autograd.grad(next_token_loss(logits, assignment.indices), logits)
    torch.testing.assert_close(to_logits, expected)


def test_alignment_is_minus_the_mean_patch_cosine():
    projected = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]])
    teacher = torch.tensor([[[5.0, 0.0], [0.0, -1.0], [1.0, 0.0]]])
    assert patch_cosine(projected, teacher)[0].tolist() == pytest.approx([1, -1, 0.5**0.5])
    assert alignment_loss(projected, teacher).item() == pytest.approx(-(0.5**0.5) / 3)
