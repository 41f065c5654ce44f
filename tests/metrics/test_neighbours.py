"""Precision/recall and density/coverage on cases worked by hand and against plain float64 loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import neighbours
from metrics.files import InputError
from metrics.neighbours import neighbour_metrics

LINE = np.array([[0.0], [1], [2], [10]])  # k = 1 balls: [-1,1], [0,2], [1,3], [2,18]


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> dict[str, float]:
    return neighbour_metrics(real, fake, k, None)


def density_coverage(real: np.ndarray, fake: np.ndarray, k: int = 5) -> dict[str, float]:
    return neighbour_metrics(real, fake, None, k)


def test_precision_and_recall_worked_by_hand() -> None:
    fake = np.array([[0.5], [2.6], [-3.0], [30.0]])  # k = 1 balls: [-1.6,2.6], [0.5,4.7], [-6.5,0.5], [2.6,57.4]
    assert precision_recall(LINE, fake, k=1) == {"precision": 0.5, "recall": 1.0}
    assert precision_recall(LINE, fake[:2], k=1) == {"precision": 1.0, "recall": 0.75}


def test_density_and_coverage_worked_by_hand() -> None:
    # 0.5 lies in two balls, 2.6 in two, -3 and 30 in none; every ball but none of [-1,1] is missed.
    fake = np.array([[0.5], [2.6], [-3.0], [30.0]])
    assert density_coverage(LINE, fake, k=1) == {"density": 1.0, "coverage": 1.0}
    assert density_coverage(LINE, fake[2:], k=1) == {"density": 0.0, "coverage": 0.0}
    assert density_coverage(LINE, fake[:1], k=1) == {"density": 2.0, "coverage": 0.5}


def test_a_point_on_the_border_is_inside() -> None:
    assert precision_recall(LINE, np.array([[-1.0], [18.0]]), k=1)["precision"] == 1.0


def plain(real: np.ndarray, fake: np.ndarray, k_pr: int, k_dc: int) -> dict[str, float]:
    """All distances as a float64 matrix of explicit differences."""

    def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.square(x[:, None].astype(np.float64) - y[None].astype(np.float64)).sum(-1)

    def radii(x: np.ndarray, k: int) -> np.ndarray:
        return np.sort(distances(x, x), axis=1)[:, k]

    cross = distances(real, fake)
    in_balls = cross <= radii(real, k_dc)[:, None]
    return {
        "precision": float((cross <= radii(real, k_pr)[:, None]).any(0).mean()),
        "recall": float((cross <= radii(fake, k_pr)[None]).any(1).mean()),
        "density": float(in_balls.sum(0).mean() / k_dc),
        "coverage": float(in_balls.any(1).mean()),
    }


@settings(max_examples=30, deadline=None)
@given(st.integers(7, 60), st.integers(7, 60), st.integers(1, 20), st.integers(0, 2**16), st.sampled_from([0.0, 1e3]))
def test_equals_plain_float64_differences(n: int, m: int, dim: int, seed: int, offset: float) -> None:
    rng = np.random.default_rng(seed)
    real = (offset + rng.standard_normal((n, dim))).astype(np.float32)
    fake = (offset + 0.8 * rng.standard_normal((m, dim))).astype(np.float32)
    fake[:3] = real[:3]  # duplicates: distances that vanish
    ours = {**precision_recall(real, fake), **density_coverage(real, fake)}
    assert ours == pytest.approx(plain(real, fake, 3, 5), rel=1e-12)


def test_decisions_are_exact_where_float32_products_cannot_tell() -> None:
    # A tight cluster far from the rest: its distances, 1e-3, drown in the rounding of |x|^2 ~ 1e6.
    rng = np.random.default_rng(0)
    far = np.array([1e3] * 8)
    real = np.concatenate([far + 1e-3 * rng.standard_normal((40, 8)), -far + rng.standard_normal((40, 8))])
    fake = np.concatenate([far + 1e-3 * rng.standard_normal((30, 8)), -far + rng.standard_normal((30, 8))])
    assert neighbour_metrics(real, fake) == pytest.approx(plain(real, fake, 3, 5), rel=1e-12)


def test_result_does_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    real, fake = rng.standard_normal((100, 6)), rng.standard_normal((90, 6))
    whole = precision_recall(real, fake) | density_coverage(real, fake)
    monkeypatch.setattr(neighbours, "CHUNK", 7)
    monkeypatch.setattr(neighbours, "PAIRS", 3)
    assert precision_recall(real, fake) | density_coverage(real, fake) == whole


def test_a_set_against_itself_is_fully_covered() -> None:
    x = np.random.default_rng(2).standard_normal((50, 4)).astype(np.float32)
    assert precision_recall(x, x) == {"precision": 1.0, "recall": 1.0}
    assert density_coverage(x, x)["coverage"] == 1.0


@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [
        (np.zeros((3, 2)), np.zeros((9, 2)), "k = 3 nearest neighbours need more than 3 images, found 3"),
        (np.zeros((9, 2)), np.zeros((9, 3)), "use the same detector"),
        (np.full((9, 2), np.nan), np.zeros((9, 2)), "NaN"),
    ],
)
def test_unusable_features_are_refused(real: np.ndarray, fake: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        precision_recall(real, fake)
