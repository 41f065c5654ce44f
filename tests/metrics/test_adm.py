"""The ADM evaluator's precision and recall: by hand, in NumPy's float16, and where they meet the plain ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import adm
from metrics.adm import adm_precision_recall
from metrics.files import InputError
from metrics.neighbours import neighbour_metrics

LINE = np.array([[0.0], [1], [2], [10]])  # k = 1 balls: [-1,1], [0,2], [1,3], [2,18]


def test_worked_by_hand() -> None:
    fake = np.array([[0.5], [2.5], [-3.0], [30.0]])  # k = 1 balls: [-1.5,2.5], [0.5,4.5], [-6.5,0.5], [2.5,57.5]
    assert adm_precision_recall(LINE, fake, k=1) == {"adm_precision": 0.5, "adm_recall": 1.0}
    assert adm_precision_recall(LINE, fake[:2], k=1) == {"adm_precision": 1.0, "adm_recall": 0.75}
    assert adm_precision_recall(LINE, np.array([[-1.0], [18.0]]), k=1)["adm_precision"] == 1.0  # on the border


def halves(real: np.ndarray, fake: np.ndarray, k: int) -> dict[str, float]:
    """All distances as matrices of NumPy's float16, in float32 where one of them is not finite."""

    def distances(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        for dtype in (np.float16, np.float32):
            with np.errstate(over="ignore", invalid="ignore"):
                a, b = u.astype(dtype), v.astype(dtype)
                norms = [np.square(x).astype(np.float32).sum(axis=1).astype(dtype) for x in (a, b)]
                product = (a.astype(np.float32) @ b.astype(np.float32).T).astype(dtype)
                found = np.maximum(norms[0][:, None] - dtype(2) * product + norms[1][None], dtype(0))
            if np.isfinite(found).all():
                break
        return found.astype(np.float32)

    radii = [np.sort(distances(x, x), axis=1)[:, k] for x in (real, fake)]
    across = distances(real, fake)
    precise, recalled = (across <= radii[0][:, None]).any(axis=0), (across <= radii[1][None]).any(axis=1)
    return {"adm_precision": float(precise.mean()), "adm_recall": float(recalled.mean())}


@settings(max_examples=30, deadline=None)
@given(
    st.integers(4, 60), st.integers(4, 60), st.integers(1, 20), st.sampled_from([0.3, 3.0, 300.0]), st.integers(0, 99)
)
def test_equals_numpy_s_float16(n: int, m: int, dim: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    real = (scale * rng.standard_normal((n, dim))).astype(np.float32)
    fake = (scale * (0.8 * rng.standard_normal((m, dim)) + 1)).astype(np.float32)
    fake[:2] = real[:2]
    assert adm_precision_recall(real, fake) == halves(real, fake, 3)


def test_is_plain_precision_and_recall_where_float16_is_exact() -> None:
    rng = np.random.default_rng(0)
    real, fake = (rng.integers(-4, 5, (80, 3)).astype(np.float32) for _ in range(2))
    real, fake = np.unique(real, axis=0), np.unique(fake, axis=0)
    plain = neighbour_metrics(real, fake, 3, None)
    assert adm_precision_recall(real, fake) == {f"adm_{name}": value for name, value in plain.items()}


def test_float16_blurs_what_is_far_from_the_origin() -> None:
    # Distances of about 1 at |x|^2 of 40,000, where float16 has steps of 32: nothing can be told apart.
    rng = np.random.default_rng(1)
    real, fake = 200 + rng.uniform(0, 1, (50, 1)), 202 + rng.uniform(0, 1, (50, 1))
    assert adm_precision_recall(real, fake) != {"adm_precision": 0.0, "adm_recall": 0.0}
    assert neighbour_metrics(real, fake, 3, None) == {"precision": 0.0, "recall": 0.0}


def test_blocks_change_nothing_where_all_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    real, fake = rng.standard_normal((50, 6)), rng.standard_normal((43, 6))
    whole = adm_precision_recall(real, fake)
    for size in (7, 2):
        monkeypatch.setattr(adm, "BLOCK", size)
        assert adm_precision_recall(real, fake) == whole


def test_unusable_features_are_refused() -> None:
    with pytest.raises(InputError, match="k = 3 nearest neighbours need more than 3 images, found 3"):
        adm_precision_recall(np.zeros((9, 2)), np.zeros((3, 2)))
    with pytest.raises(InputError, match="NaN"):
        adm_precision_recall(np.zeros((9, 2)), np.full((9, 2), np.nan))
