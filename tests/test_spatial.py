"""Moran's I, the high-frequency ratio and similarity by distance on maps whose answers are known."""

import numpy as np
import pytest
import torch

from gear_studio.analysis import spatial
from gear_studio.analysis.spatial import high_frequency_ratio, local_similarity, morans_i, white_ratio

SIDE = 8
ROW, COLUMN = np.divmod(np.arange(SIDE**2), SIDE)
CHECKERBOARD = (-1.0) ** (ROW + COLUMN)


def maps(*channels) -> torch.Tensor:
    """One picture (1, N, d) of these channels (N,)."""
    return torch.from_numpy(np.stack(channels, -1).astype(float))[None]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def morans_by_hand(values: np.ndarray, height: int, width: int, queen: bool) -> float:
    z, agreement, weight = values - values.mean(), 0.0, 0
    for i in range(len(z)):
        for j in range(len(z)):
            away = abs(i // width - j // width), abs(i % width - j % width)
            if max(away) == 1 if queen else sum(away) == 1:
                agreement += z[i] * z[j]
                weight += 1
    return len(z) / weight * agreement / (z**2).sum()


# Moran's I


@pytest.mark.parametrize("neighbours", ["rook", "queen"])
def test_morans_i_is_the_double_sum(neighbours):
    features = noise(2, 15, 3)
    found = morans_i(features, (3, 5), neighbours)
    for picture, value in zip(features.numpy(), found, strict=True):
        by_hand = [morans_by_hand(picture[:, c], 3, 5, neighbours == "queen") for c in range(3)]
        assert value.item() == pytest.approx(np.mean(by_hand))


def test_morans_i_of_known_maps():
    assert morans_i(maps(CHECKERBOARD), SIDE).item() == pytest.approx(-1)
    halves = np.where(COLUMN < 4, 1.0, -1.0)  # of 112 edges the 8 across the middle disagree
    assert morans_i(maps(halves), SIDE).item() == pytest.approx((104 - 8) / 112)
    # Edges agree 2 * 56 = 112 times -1, corners 98 times +1.
    assert morans_i(maps(CHECKERBOARD), SIDE, "queen").item() == pytest.approx((98 - 112) / 210)
    assert morans_i(noise(4, 64, 500), SIDE).mean().item() == pytest.approx(-1 / 63, abs=0.01)


def test_morans_i_ignores_shift_and_scale_and_averages_channels():
    one, two = noise(1, 64, 1), maps(CHECKERBOARD)
    each = morans_i(one, SIDE), morans_i(two, SIDE)
    both = morans_i(torch.cat([1e3 * one - 7, two], 2), SIDE)
    assert both.item() == pytest.approx((each[0] + each[1]).item() / 2)


# Frequencies


def test_high_frequency_ratio_of_waves():
    def wave(cycles_down, cycles_right):
        return np.cos(2 * np.pi * (cycles_down * ROW + cycles_right * COLUMN) / SIDE + 0.3)

    def ratio(*channels):
        return high_frequency_ratio(maps(*channels), SIDE).item()

    assert ratio(CHECKERBOARD) == pytest.approx(1) and ratio(wave(0, 3)) == pytest.approx(1)
    assert ratio(wave(1, 0)) == pytest.approx(0, abs=1e-12)
    assert ratio(wave(0, 2)) == pytest.approx(0, abs=1e-12)  # half of Nyquist itself is not above it
    assert ratio(wave(2, 2)) == pytest.approx(1)  # its length is
    assert ratio(wave(1, 0) + 2 * wave(3, 1) + 100) == pytest.approx(4 / 5)
    assert ratio(wave(1, 0), wave(3, 1)) == pytest.approx(1 / 2)


def test_high_frequency_ratio_of_noise_is_the_share_of_frequencies():
    # Of the 64 frequencies of an 8 x 8 grid, 13 lie within 1/4: (0, 0), and 12 others.
    assert white_ratio(SIDE) == pytest.approx((64 - 13) / 63)
    assert high_frequency_ratio(noise(4, 64, 500), SIDE).mean().item() == pytest.approx(51 / 63, abs=0.01)


# Distance


def test_local_similarity_by_hand():
    """Two columns of patches pointing right, two pointing up."""
    features = torch.tensor([[1.0, 0], [1, 0], [0, 2], [0, 2]]).repeat(4, 1)[None]
    found = local_similarity(features, 4)
    # 24 edges, 4 of them between the halves; pairs at least 2 apart, by distance in rows and columns.
    pairs = [(a, b) for a in range(16) for b in range(16)]
    far = [(a, b) for a, b in pairs if np.hypot(a // 4 - b // 4, a % 4 - b % 4) >= 2]
    same = np.mean([(a % 4 < 2) == (b % 4 < 2) for a, b in far])
    assert found.near.item() == pytest.approx(20 / 24) and found.far.item() == pytest.approx(same)
    assert found.difference.item() == pytest.approx(20 / 24 - same)
    diagonal = local_similarity(features, 4, radius=1.5)  # 18 diagonals more, 6 of them between the halves
    assert diagonal.near.item() == pytest.approx(32 / 42)


def test_local_similarity_of_each_picture_and_of_turned_features():
    features = noise(3, 16, 6)
    turn = torch.linalg.qr(noise(6, 6)).Q
    found, turned = local_similarity(features, 4), local_similarity(5 * features @ turn, 4)
    torch.testing.assert_close(found.near, turned.near)
    torch.testing.assert_close(found.far[1], local_similarity(features[1:2], 4).far[0])
    assert local_similarity(torch.zeros(1, 16, 2), 4).near.item() == 0


def test_pictures_a_few_at_a_time_are_the_same(monkeypatch):
    features = noise(5, 16, 6)

    def measured():
        return torch.stack(
            [morans_i(features, 4), high_frequency_ratio(features, 4), *local_similarity(features, 4)]
        )

    whole = measured()
    monkeypatch.setattr(spatial, "AT_ONCE", 200)
    torch.testing.assert_close(measured(), whole)
    assert whole.shape == (4, 5)


# Constant channels and what is refused


@pytest.mark.parametrize("measure", [morans_i, high_frequency_ratio], ids=["moran", "frequency"])
def test_constant_channels_are_left_out(measure):
    varying = noise(2, 64, 1)
    nearly = 0.1 + 1e-9 * noise(2, 64, 1)  # constant but for rounding
    expected = measure(varying, SIDE)
    torch.testing.assert_close(measure(torch.cat([varying, torch.full((2, 64, 1), 7.3)], 2), SIDE), expected)
    torch.testing.assert_close(measure(torch.cat([nearly, varying], 2), SIDE), expected)
    blank = torch.cat([varying, varying])
    blank[0] = 3.0
    found = measure(blank, SIDE)
    assert found.isnan().tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: morans_i(noise(64, 3), 8), r"features have shape \(64, 3\); expected \(B, N, d\)"),
        (lambda: morans_i(noise(1, 60, 3), 8), "a grid of 8 x 8 was asked for and there are 60 patches"),
        (lambda: morans_i(noise(1, 4, 3), (1, 4)), "a grid of 1 x 4"),
        (lambda: morans_i(noise(1, 64, 3), 8, "bishop"), "neighbours is 'bishop'; choose one of rook, queen"),
        (
            lambda: high_frequency_ratio(noise(3, 64, 1).log(), 8),
            "3 of 3 pictures have features that are not finite, the first of them number 0",
        ),
        (lambda: local_similarity(noise(1, 64, 3), 8, radius=5), "radius is 5 and far 4.0"),
        (
            lambda: local_similarity(noise(1, 64, 3), 8, far=10),
            "no two patches of 8 x 8 are at least 10",
        ),
        (lambda: local_similarity(noise(1, 64, 3), 8, radius=0.5), "are at most 0.5 apart"),
    ],
)
def test_what_has_no_answer_is_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()
