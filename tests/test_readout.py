"""The dual read-out: values, limits and gradients."""

import pytest
import tiny
import torch

from gear_studio import readout
from gear_studio.readout import Assignment
from gear_studio.training.objectives import entropy_loss


def assignment(dtype: torch.dtype = torch.float32, grad: bool = False) -> tuple[Assignment, torch.Tensor]:
    """Scores of 2 images x 3 positions x 5 codes, and a table of 5 x 4."""
    source = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 5, generator=source, dtype=dtype).requires_grad_(grad)
    table = torch.randn(5, 4, generator=source, dtype=dtype)
    return Assignment(scores, scores.argmax(-1)), table


def test_hard_looks_up_the_chosen_code():
    scores = torch.tensor([[[0.0, 2.0, 1.0], [5.0, -1.0, 0.0]]])
    table = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    chosen = readout.hard(Assignment(scores, scores.argmax(-1)), table)
    assert chosen.tolist() == [[[3.0, 4.0], [1.0, 2.0]]]


def test_soft_is_the_expected_embedding():
    # softmax([0, ln 3]) = [1/4, 3/4]
    scores = 0.5 * torch.tensor([[[1.0, 3.0]]]).log()
    table = torch.tensor([[4.0], [8.0]])
    assert readout.soft(Assignment(scores, scores.argmax(-1)), table, tau=0.5).item() == pytest.approx(7.0)


def test_soft_tends_to_hard_as_tau_goes_to_zero():
    a, table = assignment()
    distance = [
        (readout.soft(a, table, tau) - readout.hard(a, table)).abs().max().item() for tau in (1, 0.3, 0.1)
    ]
    assert distance[0] > distance[1] > distance[2] > 0
    torch.testing.assert_close(readout.soft(a, table, 1e-3), readout.hard(a, table))


def test_soft_gradient_matches_finite_differences():
    a, table = assignment(torch.float64)
    weight = torch.randn(2, 3, 4, dtype=torch.float64)
    tau = 0.7

    def loss(scores: torch.Tensor) -> torch.Tensor:
        return (torch.softmax(scores / tau, -1) @ table * weight).sum()

    scores = a.scores.clone().float().requires_grad_()
    (readout.soft(Assignment(scores, a.indices), table.float(), tau) * weight.float()).sum().backward()
    step = 1e-6
    for place in [(0, 0, 0), (0, 2, 3), (1, 1, 4)]:
        moved = torch.zeros_like(a.scores)
        moved[place] = step
        slope = (loss(a.scores + moved) - loss(a.scores - moved)) / (2 * step)
        assert scores.grad[place].item() == pytest.approx(slope.item(), rel=1e-4, abs=1e-6)


def test_straight_through_has_the_value_of_hard_and_the_gradient_of_softmax():
    a, table = assignment(grad=True)
    assert torch.equal(readout.straight_through(a, table), readout.hard(a, table))
    weight = torch.randn(2, 3, 4)
    assert torch.equal(readout.straight_through(a, table, 0.1), readout.hard(a, table))
    (through,) = torch.autograd.grad((readout.straight_through(a, table) * weight).sum(), a.scores)
    (smooth,) = torch.autograd.grad((torch.softmax(a.scores, -1) @ table * weight).sum(), a.scores)
    assert smooth.abs().max() > 0.01
    torch.testing.assert_close(through, smooth)


def test_hard_lets_no_gradient_reach_the_scores():
    a, table = assignment(grad=True)
    table.requires_grad_()
    chosen = readout.hard(a, table).sum()
    scores_grad, table_grad = torch.autograd.grad(chosen, [a.scores, table], allow_unused=True)
    assert scores_grad is None
    times_chosen = torch.bincount(a.indices.flatten(), minlength=5).float()
    assert torch.equal(table_grad, times_chosen[:, None].expand(5, 4))


@pytest.mark.parametrize("at_once", [1, 12, 10**6])  # elements: one row, two of five rows, all
def test_reading_in_pieces_equals_the_whole_gradients_included(at_once, monkeypatch):
    a, table = assignment(torch.float64, grad=True)
    table.requires_grad_()
    weight = torch.randn(2, 3, 4, dtype=torch.float64)
    whole = torch.softmax(a.scores / 0.3, -1) @ table
    expected = torch.autograd.grad((whole * weight).sum(), [a.scores, table])
    monkeypatch.setattr(readout, "AT_ONCE", at_once)
    pieces = readout.soft(a, table, 0.3)
    found = torch.autograd.grad((pieces * weight).sum(), [a.scores, table])
    torch.testing.assert_close([pieces, *found], [whole, *expected], rtol=1e-12, atol=1e-14)


def test_reading_in_pieces_computes_the_same_again_under_autocast(monkeypatch):
    """The backward pass runs outside `autocast`; what it computes again must be rounded as before."""
    a, table = assignment(grad=True)
    table.requires_grad_()
    monkeypatch.setattr(readout, "AT_ONCE", 10)
    with torch.autocast("cpu", torch.bfloat16):
        whole = torch.softmax(a.scores / 0.3, -1) @ table
        pieces = readout.soft(a, table, 0.3)
    assert pieces.dtype == whole.dtype == torch.bfloat16 and torch.equal(pieces, whole)
    expected = torch.autograd.grad(whole.float().square().sum(), [a.scores, table])
    found = torch.autograd.grad(pieces.float().square().sum(), [a.scores, table])
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=0.02, atol=0.02)  # sums of other bf16 pieces


def test_what_is_computed_again_has_gradients_in_its_own_precision():
    """Also where the backward pass runs inside autocast."""
    a, table = assignment(grad=True)
    table.requires_grad_()

    def gradients() -> list[torch.Tensor]:
        with torch.autocast("cpu", enabled=False):
            read = readout.soft(a, table, 0.3)
        return torch.autograd.grad(read.square().sum(), [a.scores, table])

    expected = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients()
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("what", ["soft read-out", "entropy loss"])
def test_no_more_than_two_tensors_of_the_scores_size_are_held(what, monkeypatch):
    """The scores and their gradient, through forward and backward; a softmax of them would be a third."""
    monkeypatch.setattr(readout, "AT_ONCE", 2**14)
    scores, table = torch.randn(2, 64, 2**13), torch.randn(2**13, 4)
    one = scores.nbytes

    def lean():
        leaf = Assignment(scores.clone().requires_grad_(), torch.zeros(2, 64).long())
        loss = readout.soft(leaf, table).sum() if what == "soft read-out" else entropy_loss(leaf.scores)
        loss.backward()

    def plain():
        p = torch.softmax(scores.clone().requires_grad_() / 0.1, -1)
        ((p @ table).sum() + (p * p.log()).sum()).backward()

    assert 2 * one <= tiny.peak_bytes(lean) < 2.25 * one
    assert tiny.peak_bytes(plain) > 4 * one


@pytest.mark.parametrize("tau", [0, -0.1, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(tau):
    a, table = assignment()
    with pytest.raises(ValueError, match="above 0"):
        readout.soft(a, table, tau)
