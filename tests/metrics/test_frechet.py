"""Fréchet distance against closed forms and SciPy's matrix square root."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.files import InputError
from metrics.frechet import (
    _congruent,
    block_moments,
    fd_infinity,
    frechet_distance,
    frechet_with_error,
    jackknife,
    leave_one_out,
    paired_difference,
    per_class_distances,
)
from metrics.statistics import Statistics, from_features


def draw(count: int, dim: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return scale * rng.standard_normal((count, dim)) @ rng.standard_normal((dim, dim)) + rng.standard_normal(dim)


def scipy_distance(a: Statistics, b: Statistics) -> float:
    root = scipy.linalg.sqrtm(a.sigma @ b.sigma).real
    return float(np.square(a.mu - b.mu).sum() + np.trace(a.sigma + b.sigma - 2 * root))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 24), st.integers(0, 2**16))
def test_agrees_with_the_matrix_square_root_at_full_rank(dim: int, seed: int) -> None:
    a, b = from_features(draw(3 * dim + 2, dim, seed)), from_features(draw(3 * dim + 2, dim, seed + 1))
    assert frechet_distance(a, b) == pytest.approx(scipy_distance(a, b), rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(0, 2**16))
def test_commuting_covariances_have_the_closed_form(dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    p, q, delta = rng.uniform(0.1, 3, dim), rng.uniform(0.1, 3, dim), rng.standard_normal(dim)
    a, b = Statistics(9, delta, (basis * p**2) @ basis.T), Statistics(9, 0 * delta, (basis * q**2) @ basis.T)
    expected = np.square(delta).sum() + np.square(p - q).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(2, 30), st.integers(0, 2**16))
def test_rank_deficient_input_is_finite_never_negative_and_symmetric(n: int, m: int, seed: int) -> None:
    a, b = from_features(draw(n, 40, seed)), from_features(draw(m, 40, seed + 1))
    forward, backward = frechet_distance(a, b), frechet_distance(b, a)
    assert np.isfinite(forward)
    assert forward >= 0
    assert forward == pytest.approx(backward, rel=1e-8)


@pytest.mark.parametrize("dim", [4, 9, 11, 32])
def test_products_in_blocks_of_columns_have_the_value_of_the_whole(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (from_features(draw(4 * dim + 50, dim, seed, scale)) for seed, scale in ((1, 1.0), (2, 1.3)))
    whole = frechet_distance(a, b)
    monkeypatch.setattr("metrics.frechet.BLOCKED", 9)
    monkeypatch.setattr("metrics.frechet.BLOCK", 4)
    assert frechet_distance(a, b) == pytest.approx(whole, rel=1e-12)
    assert frechet_distance(a, b) == pytest.approx(scipy_distance(a, b), rel=1e-9)
    product = _congruent(torch.from_numpy(a.sigma), b.factor)
    np.testing.assert_allclose(np.tril(product), np.tril(b.factor.T.numpy() @ a.sigma @ b.factor.numpy()), rtol=1e-9)
    mixed = b.factor.flip(0)  # no triangle, as pivoting may leave it
    np.testing.assert_allclose(
        np.tril(_congruent(torch.from_numpy(a.sigma), mixed)),
        np.tril(mixed.T.numpy() @ a.sigma @ mixed.numpy()),
        rtol=1e-9,
    )


def test_orthogonal_subspaces_have_the_closed_form() -> None:
    a, b = Statistics(9, np.zeros(4), np.diag([1.0, 2, 0, 0])), Statistics(9, np.zeros(4), np.diag([0, 0, 3.0, 4]))
    assert frechet_distance(a, b) == pytest.approx(10, rel=1e-12)


@pytest.mark.parametrize("count", [2, 30, 500])
def test_distance_of_a_set_to_itself_is_zero_within_a_millionth_of_the_trace(count: int) -> None:
    stats = from_features(draw(count, 200))
    assert 0 <= frechet_distance(stats, stats) <= 1e-6 * np.trace(stats.sigma)


def test_constant_features_differ_by_their_means_only() -> None:
    a, b = from_features(np.zeros((5, 3))), from_features(np.ones((5, 3)))
    assert frechet_distance(a, b) == 3


def test_factor_reproduces_the_covariance_in_as_many_columns_as_its_rank() -> None:
    stats = from_features(draw(6, 20))
    factor = stats.factor.numpy()
    assert factor.shape == (20, 5)
    np.testing.assert_allclose(factor @ factor.T, stats.sigma, atol=1e-12 * np.trace(stats.sigma))


def test_an_indefinite_sigma_is_refused() -> None:
    with pytest.raises(InputError, match="negative eigenvalues"):
        _ = Statistics(9, np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]])).factor


def test_other_dimensions_and_other_tags_are_refused() -> None:
    a = from_features(draw(9, 2), {"resize": "torch"})
    with pytest.raises(InputError, match="2 and 3 dimensions"):
        frechet_distance(a, from_features(draw(9, 3)))
    with pytest.raises(InputError, match="tag 'resize'"):
        frechet_distance(a, from_features(draw(9, 2), {"resize": "pil"}))


def test_jackknife_of_a_mean_is_its_textbook_standard_error() -> None:
    x = np.random.default_rng(0).standard_normal(50)
    left_out = [float(np.delete(x, i).mean()) for i in range(50)]
    estimate = jackknife(float(x.mean()), left_out)
    assert estimate.standard_error == pytest.approx(x.std(ddof=1) / np.sqrt(50), rel=1e-12)


DIM = 16
TRUTH = Statistics(10**9, np.zeros(DIM), np.eye(DIM))


def shifted(count: int, rng: np.random.Generator, shift: float = 0.3) -> np.ndarray:
    """Samples of N(shift, 1.2^2 I), whose FD to N(0, I) is DIM (shift^2 + 0.2^2)."""
    return shift + 1.2 * rng.standard_normal((count, DIM))


def test_fd_infinity_recovers_the_known_distance_within_its_stated_error() -> None:
    known, rng = DIM * (0.3**2 + 0.2**2), np.random.default_rng(0)
    trials = [fd_infinity(shifted(800, rng), TRUTH) for _ in range(40)]
    scores = np.array([(t.value - known) / t.standard_error for t in trials])
    plain = np.array([frechet_distance(from_features(shifted(800, rng)), TRUTH) for _ in range(40)])
    assert 0.7 < scores.std() < 1.5
    assert abs(np.mean([t.value for t in trials]) - known) < 0.25 * abs(plain.mean() - known)


def test_jackknife_error_of_fd_matches_the_spread_of_independent_sets() -> None:
    rng = np.random.default_rng(1)
    trials = [frechet_with_error(shifted(600, rng), TRUTH) for _ in range(60)]
    spread = np.std([t.value for t in trials], ddof=1)
    assert np.mean([t.standard_error for t in trials]) == pytest.approx(spread, rel=0.3)


def test_paired_difference_is_surer_than_two_separate_errors() -> None:
    rng = np.random.default_rng(2)
    a = shifted(1000, rng)
    b = a + 0.02 + 0.05 * rng.standard_normal(a.shape)
    paired = paired_difference(a, b, TRUTH)
    separate = np.hypot(frechet_with_error(a, TRUTH).standard_error, frechet_with_error(b, TRUTH).standard_error)
    assert paired.value < -3 * paired.standard_error
    assert paired.standard_error < separate / 3


def test_paired_difference_refuses_sets_of_different_size() -> None:
    with pytest.raises(InputError, match="found 40 and 41"):
        paired_difference(np.zeros((40, DIM)), np.zeros((41, DIM)), TRUTH)


def test_too_few_images_for_the_blocks_is_an_error() -> None:
    with pytest.raises(InputError, match="10 blocks need at least 20 images, found 12"):
        frechet_with_error(np.zeros((12, DIM)), TRUTH)


def test_per_class_distances_compare_equal_classes_only() -> None:
    rng = np.random.default_rng(4)
    x, labels = rng.standard_normal((40, 3)), np.repeat([0, 1, 2, 9], 10)
    y = np.concatenate([x[:10], x[10:20] + 2, x[20:21]])
    distances = per_class_distances(x, labels, y, np.repeat([0, 1, 2], [10, 10, 1]))
    assert distances == {0: pytest.approx(0, abs=1e-9), 1: pytest.approx(12, rel=1e-9)}


@pytest.mark.parametrize(("dim", "kind"), [(4, "moments"), (4, "features"), (120, "moments"), (120, "features")])
def test_values_with_blocks_left_out_and_their_limits(dim: int, kind: str) -> None:
    """Of all, and of the features without each block, against direct computations."""
    rng = np.random.default_rng(0)
    x, reference = rng.standard_normal((96, dim)) + 0.1, from_features(rng.standard_normal((500, dim)))

    def limit(blocks: list[int]) -> float:
        values = [
            frechet_distance(from_features(np.concatenate([x[12 * i : 12 * i + 12] for i in of])), reference)
            for of in (blocks, [i for i in blocks if i % 2 == 0], [i for i in blocks if i % 2])
        ]
        return 2 * values[0] - (values[1] + values[2]) / 2

    parts = [torch.from_numpy(part) for part in np.split(x, 8)]
    found = leave_one_out(block_moments(x, 8) if kind == "moments" else parts, reference)
    assert len(found) == 9
    for number, (value, limited) in enumerate(found):
        kept = [i for i in range(8) if i != number - 1]
        rest = np.concatenate([x[12 * i : 12 * i + 12] for i in kept])
        assert value == pytest.approx(frechet_distance(from_features(rest), reference), rel=1e-9)
        assert limited == pytest.approx(limit(kept), rel=1e-9)
