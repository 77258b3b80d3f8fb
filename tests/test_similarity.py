"""CKA, CKNNA and mutual k-NN against their formulas written out, and their chance level and interval."""

from functools import partial

import numpy as np
import pytest
import torch

from gear_studio.analysis import similarity
from gear_studio.analysis.similarity import (
    cka,
    cknna,
    interval,
    mutual_knn,
    neighbours,
    null_baseline,
    sample_rows,
)

MEASURES = [cka, partial(cka, debiased=False), cknna, mutual_knn]
NAMES = ["cka", "biased", "cknna", "mutual_knn"]


def related(n: int, wide: int = 12, narrow: int = 7, noise: float = 0.5, seed: int = 0):
    """Two views of the same hidden numbers, float64 (n, wide) and (n, narrow)."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, 5))
    views = [hidden @ rng.normal(size=(5, d)) + noise * rng.normal(size=(n, d)) + 1 for d in (wide, narrow)]
    return views[0], views[1]


# The formulas, dense and in NumPy


def dense_hsic(k: np.ndarray, m: np.ndarray) -> float:
    n, one = len(k), np.ones(len(k))
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    inner = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (inner - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


def dense_cka(x: np.ndarray, y: np.ndarray, debiased: bool = True) -> float:
    def hsic(k, m):
        if debiased:
            return dense_hsic(k, m)
        centre = np.eye(len(k)) - 1 / len(k)
        return np.trace(k @ centre @ m @ centre)

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def nearest_mask(kernel: np.ndarray, k: int) -> np.ndarray:
    mask = np.zeros_like(kernel)
    for i, row in enumerate(kernel):
        others = [j for j in np.argsort(-row, kind="stable") if j != i]
        mask[i, others[:k]] = 1
    return mask


def dense_cknna(x: np.ndarray, y: np.ndarray, k: int = 10, added: float = 0.0) -> float:
    x, y = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (x, y))
    kx, ky = x @ x.T, y @ y.T
    mx, my = nearest_mask(kx, k), nearest_mask(ky, k)
    both = mx * my
    hsic = dense_hsic(both * kx, both * ky)
    return hsic / (np.sqrt(dense_hsic(mx * kx, mx * kx) * dense_hsic(my * ky, my * ky)) + added)


@pytest.fixture(params=[2**24, 700], ids=["whole", "chunked"])
def at_once(request, monkeypatch) -> int:
    """How much is worked on at a time: everything, or a few rows."""
    monkeypatch.setattr(similarity, "AT_ONCE", request.param)
    return request.param


@pytest.mark.parametrize("sizes", [(60, 12, 7), (23, 300, 150), (40, 200, 3)], ids=["tall", "wide", "mixed"])
def test_cka_is_the_dense_formula(at_once, sizes):
    x, y = related(*sizes)
    for debiased in (True, False):
        assert cka(x, y, debiased) == pytest.approx(dense_cka(x, y, debiased), rel=1e-9)


@pytest.mark.parametrize("k", [1, 4, 10, 58])
def test_cknna_is_the_dense_formula(at_once, k):
    x, y = related(60)
    assert cknna(x, y, k) == pytest.approx(dense_cknna(x, y, k), rel=1e-9)


@pytest.mark.parametrize(("wide", "least", "most"), [(2048, 0.01, 0.02), (16, 0.0, 0.001)])
def test_the_published_code_s_1e_6_lowers_cknna_as_documented(wide, least, most):
    x, y = np.random.default_rng(0).normal(size=(2, 500, wide))
    lowered = 1 - dense_cknna(x, y, added=1e-6) / cknna(x, y)
    assert least < lowered < most


def test_mutual_knn_is_the_share_of_common_neighbours(at_once):
    x, y = related(60)
    kernels = [part @ part.T for part in (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))]
    common = np.mean([(nearest_mask(kernels[0], 5) * nearest_mask(kernels[1], 5)).sum(1) / 5])
    assert mutual_knn(x, y, 5) == pytest.approx(common)
    assert 0.2 < common < 0.9


def test_float32_is_close_and_half_precision_is_raised():
    x, y = related(300)
    for measure in MEASURES[:2]:
        exact = measure(x, y)
        assert measure(x.astype(np.float32), torch.from_numpy(y).float()) == pytest.approx(exact, abs=1e-6)
        halves = measure(torch.from_numpy(x).bfloat16(), torch.from_numpy(y).half())
        assert halves == pytest.approx(exact, abs=1e-2)
    shifted = (x + 300).astype(np.float32)  # a mean far larger than the spread
    assert cka(shifted, y.astype(np.float32)) == pytest.approx(cka(x, y), abs=1e-4)


# What is known beforehand


def test_neighbours_by_hand():
    """Five directions by their angle: 0, 10, 25, 70 and 160 degrees; lengths do not matter."""
    angles = np.radians([0, 10, 25, 70, 160])
    rows = np.stack([np.cos(angles), np.sin(angles)], 1) * np.array([[1], [9], [0.1], [2], [1e-30]])
    found = neighbours(rows, 2)
    assert found.indices[:, :2].tolist() == [[1, 2], [0, 2], [1, 0], [2, 1], [3, 2]]
    np.testing.assert_allclose(found.cosines[0, :2], np.cos(np.radians([10, 25])))
    moved = np.radians([0, 10, 25, 70, 4])  # only the last: its neighbours and those of 0, 1 and 2 change
    assert mutual_knn(rows, np.stack([np.cos(moved), np.sin(moved)], 1), 2) == (0.5 + 0.5 + 0.5 + 1 + 0) / 5


def test_cknna_by_hand():
    """Three pairs of rows at right angles to one another, each row nearest to its partner alone.

    Each masked kernel has the two entries of each pair, c or d, so that with n = 6 the formula's terms are
    2 S, 4 (sum c)(sum d) / 20 and -2 * 2 S / 4, where S = sum c d."""

    def pairs(cosines):
        rows = np.zeros((6, 6))
        for i, c in enumerate(cosines):
            rows[2 * i, 2 * i] = 3
            rows[2 * i + 1, [2 * i, 2 * i + 1]] = c, np.sqrt(1 - c**2)
        return rows

    c, d = np.array([0.9, 0.4, 0.2]), np.array([0.1, 0.5, 0.8])
    hsic = [(a * b).sum() + a.sum() * b.sum() / 5 for a, b in ((c, d), (c, c), (d, d))]
    assert cknna(pairs(c), pairs(d), k=1) == pytest.approx(hsic[0] / np.sqrt(hsic[1] * hsic[2]))


@pytest.mark.parametrize("measure", MEASURES, ids=NAMES)
def test_equal_turned_and_scaled_features_are_alike(measure):
    x, y = related(80)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
    assert measure(x, x) == pytest.approx(1)
    assert measure(x, 3 * x @ turn) == pytest.approx(1)
    assert measure(0.01 * x @ turn, y) == pytest.approx(measure(x, y))
    assert 0.1 < measure(x, y) < 0.99
    stretched = x * np.geomspace(1, 30, 12)
    assert measure(stretched, y) != pytest.approx(measure(x, y), abs=1e-3)


def test_cka_ignores_shifts_and_cknna_lengths():
    x, y = related(80)
    for debiased in (True, False):
        assert cka(x + 5, y, debiased) == pytest.approx(cka(x, y, debiased))
    lengths = np.random.default_rng(2).uniform(0.1, 10, size=(80, 1))
    assert cknna(x * lengths, y) == pytest.approx(cknna(x, y))
    assert cknna(x + 5, y) != pytest.approx(cknna(x, y), abs=1e-2)


def test_cka_of_two_columns_is_their_squared_correlation():
    x, y = related(50, 1, 1)
    correlation = np.corrcoef(x[:, 0], y[:, 0])[0, 1]
    assert cka(x, y, debiased=False) == pytest.approx(correlation**2)


def test_cknna_of_all_neighbours_is_debiased_cka_of_the_scaled_rows():
    x, y = related(30)
    scaled = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (x, y)]
    assert cknna(x, y, k=29) == pytest.approx(cka(*scaled))


def test_cknna_sees_neighbours_where_cka_sees_the_far_directions():
    """Ten clusters that lie alike in both, rows inside them at random; then the other way round."""
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.normal(size=(10, 8)), 20, axis=0)
    far = [centres + 0.3 * rng.normal(size=(200, 8)) for _ in range(2)]
    inside = 0.3 * rng.normal(size=(200, 8))
    near = [np.repeat(rng.normal(size=(10, 8)), 20, axis=0) + inside for _ in range(2)]
    assert cka(*far) > 0.8 and cknna(*far, k=5) < 0.5
    assert cka(*near) < cka(*far) - 0.2 and cknna(*near, k=5) > cknna(*far, k=5) + 0.1


def test_searched_neighbours_stand_for_their_rows():
    x, y = related(100)
    of_x = neighbours(x, 10)
    for measure in (cknna, mutual_knn):
        assert measure(of_x, y) == measure(x, y) == measure(of_x, neighbours(y, 20))
    with pytest.raises(ValueError, match="k is 15, but 11 neighbours of x were searched"):
        cknna(of_x, y, k=15)
    order = torch.from_numpy(np.random.default_rng(0).permutation(100))
    torch.testing.assert_close(of_x.permuted(order).indices, neighbours(x[order], 10).indices)


@pytest.mark.parametrize("held", [6, 40], ids=["searched again", "read off"])
def test_neighbours_within_a_part_are_those_of_the_part(held):
    x, _ = related(100)
    chosen = torch.from_numpy(np.random.default_rng(0).random(100) < 0.5)
    part, expected = neighbours(x, held).within(chosen, 6), neighbours(x[chosen], 6)
    torch.testing.assert_close(part.indices, expected.indices[:, :6])
    torch.testing.assert_close(part.cosines, expected.cosines[:, :6])


# Chance


def test_chance_is_zero_but_for_biased_cka_of_wide_features():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 400)), rng.normal(size=(60, 300))
    assert abs(null_baseline(cka, x, y, 50).mean) < 0.02
    assert null_baseline(partial(cka, debiased=False), x, y, 50).mean > 0.8
    few, many = (null_baseline(cknna, *rng.normal(size=(2, n, 20)), 20).mean for n in (100, 400))
    assert 0 < many < few < 0.15 and many < 0.05
    knn = null_baseline(partial(mutual_knn, k=5), x, y, 200)
    assert knn.low < 5 / 59 < knn.high and knn.mean == pytest.approx(5 / 59, abs=0.01)


@pytest.mark.parametrize("measure", MEASURES, ids=NAMES)
def test_chance_is_of_shuffled_rows_and_of_its_seed(measure):
    x, y = related(60)
    null = null_baseline(measure, x, y, permutations=3, seed=4)
    source = torch.Generator().manual_seed(4)
    by_hand = [measure(x, y[torch.randperm(60, generator=source).numpy()]) for _ in range(3)]
    assert null.mean == pytest.approx(np.mean(by_hand)) and null.low < null.mean < null.high < measure(x, y)
    assert null == null_baseline(measure, x, y, permutations=3, seed=4)
    assert null != null_baseline(measure, x, y, permutations=3, seed=5)


# Uncertainty


@pytest.mark.parametrize("measure", MEASURES, ids=NAMES)
def test_interval_spreads_as_halves_do(measure):
    x, y = related(60)
    found = interval(measure, x, y, halves=6, permutations=3, seed=1)
    source, halves = torch.Generator().manual_seed(1), []
    for _ in range(6):
        kept = torch.randperm(60, generator=source)[:30].sort().values.numpy()
        halves.append(measure(x[kept], y[kept]))
    assert found.value == pytest.approx(measure(x, y))
    reach = 2.000995 * np.std(halves, ddof=1)  # Student's t of 59 degrees of freedom
    assert found.high - found.value == pytest.approx(reach, rel=1e-5)
    assert found.value - found.low == pytest.approx(reach, rel=1e-5)
    assert found.null == null_baseline(measure, x, y, 3, seed=1)
    assert str(found).startswith(f"{found.value:.3f} [") and "chance" in str(found)


def correlated(rng: np.random.Generator, images: int, patches: int) -> np.ndarray:
    """Two matrices (n, 2) of a population whose CKA is 0.5; patches of an image share most of themselves."""
    shared, own = (rng.normal(size=(2, images, count, 2)) for count in (1, patches))
    x, noise = (np.sqrt(0.9) * shared + np.sqrt(0.1) * own).reshape(2, -1, 2)
    return np.stack([x, np.sqrt(0.5) * (x + noise)])


@pytest.mark.slow
def test_interval_covers_and_needs_to_know_what_belongs_together():
    rng = np.random.default_rng(0)
    known = unaware = 0
    groups = np.repeat(np.arange(40), 4)
    for _ in range(60):
        x, y = correlated(rng, 40, 4)
        grouped = interval(cka, x, y, groups, halves=20, permutations=0)
        single = interval(cka, x, y, halves=20, permutations=0)
        known += grouped.low < 0.5 < grouped.high
        unaware += single.low < 0.5 < single.high
    assert known >= 52 and unaware <= 47


def test_interval_narrows_with_rows_and_widens_with_level():
    def width(n, **settings):
        found = interval(cknna, *related(n), permutations=0, **settings)
        return found.high - found.low

    assert width(400) < width(100) < width(100, level=0.99)


# Rows


def test_rows_of_patches_and_of_images():
    a, b = torch.arange(2 * 3 * 4.0).view(2, 3, 4), torch.arange(2 * 3.0).view(2, 3, 1)
    (x, y), groups = sample_rows(a, b)
    assert x.tolist() == a.reshape(6, 4).tolist() and y[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert groups.tolist() == [0, 0, 0, 1, 1, 1]
    (x, y), groups = sample_rows(a.numpy(), b, level="image")
    assert torch.equal(x, a.mean(1)) and y[:, 0].tolist() == [1, 4] and groups.tolist() == [0, 1]


def test_sampled_rows_are_the_same_patches_of_all():
    numbers = torch.arange(50 * 16.0).view(50, 16, 1)
    (x, y), groups = sample_rows(numbers, -numbers, count=100, seed=3)
    assert torch.equal(x, -y) and len(x.unique()) == 100 and torch.equal(groups, (x[:, 0] // 16).long())
    assert torch.equal(sample_rows(numbers, count=100, seed=3)[0][0], x)
    assert not torch.equal(sample_rows(numbers, count=100, seed=4)[0][0], x)
    assert len(groups.unique()) > 30  # across images


# What is refused


GOOD = related(40)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cka(GOOD[0], GOOD[1][:30]), "x has 40 rows and y 30; row i of both"),
        (
            lambda: cka(np.ones((4, 3, 2)), GOOD[1]),
            r"x has shape \(4, 3, 2\); expected \(N, d\).*sample_rows",
        ),
        (lambda: cka(np.ones((0, 3)), np.ones((0, 3))), r"x has shape \(0, 3\)"),
        (lambda: cka(GOOD[0][:3], GOOD[1][:3]), "CKA of 3 rows was asked for; it takes at least 4"),
        (lambda: cknna(GOOD[0][:3], GOOD[1][:3], 2), "CKNNA of 3 rows"),
        (lambda: cknna(GOOD[0], GOOD[1], 40), "k is 40 and x has 40 rows, each with 39 others"),
        (lambda: mutual_knn(GOOD[0], GOOD[1], 0), "k is 0"),
        (lambda: cka(np.ones((40, 3)), GOOD[1]), "all 40 rows of x are equal"),
        (lambda: cka(GOOD[0], np.eye(40)[:, :1]), "the rows of y hardly vary"),
        (
            lambda: cknna(GOOD[0], GOOD[1] * (np.arange(40) % 20 > 0)[:, None]),
            "2 rows of y are all zero, the first of them row 0",
        ),
        (lambda: cknna(np.repeat(GOOD[0][:8], 5, 0), GOOD[1], 2), "for 100 % of the rows of x the 2 nearest"),
        (
            lambda: cka(np.where(np.arange(40)[:, None] == 7, np.nan, GOOD[0]), GOOD[1]),
            "x holds values that are not finite in 1 of its 40 rows, the first of them row 7",
        ),
        (lambda: interval(cka, *GOOD, groups=np.arange(40) // 8), "the rows come from 5 images"),
        (lambda: interval(cka, *GOOD, groups=np.arange(39)), r"groups have shape \(39,\); expected \(40,\)"),
        (lambda: interval(cka, *GOOD, level=95), "level is 95"),
        (lambda: interval(cka, *GOOD, halves=1), "halves is 1"),
        (lambda: interval(partial(cknna, k=20), *GOOD), "k is 20 and a half has 20 rows"),
        (lambda: null_baseline(cka, *GOOD, permutations=0), "permutations is 0"),
        (lambda: sample_rows(np.ones((4, 3))), r"features have shapes \(4, 3\); expected one or more"),
        (lambda: sample_rows(np.ones((4, 3, 2)), level="token"), "level is 'token'; choose image"),
        (
            lambda: sample_rows(np.ones((4, 3, 2)), np.ones((4, 5, 2))),
            r"images and patches: .*on the same grid",
        ),
        (lambda: sample_rows(np.ones((4, 3, 2)), count=13), "13 rows were asked for; there are 12 at patch"),
    ],
)
def test_what_has_no_answer_is_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_few_ties_pass():
    x, y = related(200)
    x[:4] = x[4:8]
    assert 0 < cknna(x, y, 1) < 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same():
    x, y = (torch.from_numpy(part).cuda() for part in related(200))
    for measure in MEASURES:
        here = interval(measure, *(part.cpu() for part in (x, y)), halves=4, permutations=2)
        there = interval(measure, x, y, halves=4, permutations=2)
        assert (there.value, there.low) == pytest.approx((here.value, here.low))
        assert there.null.mean == pytest.approx(here.null.mean)
