"""Vendi score on cases worked by hand, against the definition, and its bounds."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import vendi
from metrics.files import InputError
from metrics.vendi import vendi_score


def definition(x: np.ndarray) -> float:
    """From the whole matrix of cosines, image by image."""
    unit = [row / np.sqrt(sum(float(v) ** 2 for v in row)) for row in x.astype(np.float64)]
    cosines = np.array([[float(a @ b) for b in unit] for a in unit])
    shares = scipy.linalg.eigvalsh(cosines / len(x))
    return float(np.exp(-sum(p * np.log(p) for p in shares if p > 0)))


def test_alike_counts_one_and_orthogonal_ones_count_each() -> None:
    assert vendi_score(np.tile([[3.0, 4.0, 0.0]], (9, 1)) * np.arange(1, 10)[:, None]) == pytest.approx(1, rel=1e-12)
    assert vendi_score(5 * np.eye(6)) == pytest.approx(6, rel=1e-12)
    assert vendi_score(np.repeat(np.eye(3), 4, axis=0)) == pytest.approx(3, rel=1e-12)


def test_unequal_groups_worked_by_hand() -> None:
    # Three images of one kind, one of another: eigenvalues 3/4 and 1/4.
    expected = (4 / 3) ** (3 / 4) * 4 ** (1 / 4)
    assert vendi_score(np.array([[1.0, 0], [2, 0], [3, 0], [0, 1]])) == pytest.approx(expected, rel=1e-12)


def test_two_images_at_an_angle_worked_by_hand() -> None:
    # Cosine 0.6: eigenvalues (1 + 0.6) / 2 and (1 - 0.6) / 2.
    expected = np.exp(-(0.8 * np.log(0.8) + 0.2 * np.log(0.2)))
    assert vendi_score(np.array([[1.0, 0], [0.6, 0.8]])) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 2**16))
def test_equals_the_definition_whichever_matrix_is_smaller(n: int, dim: int, seed: int) -> None:
    x = (np.random.default_rng(seed).standard_normal((n, dim)) + 1).astype(np.float32)
    found = vendi_score(x)
    assert found == pytest.approx(definition(x), rel=1e-9)
    assert 1 - 1e-9 <= found <= min(n, dim) + 1e-9


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((100, 7)).astype(np.float32)
    whole = vendi_score(x)
    monkeypatch.setattr(vendi, "CHUNK", 9)
    assert vendi_score(x) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.array([[1.0, 0], [0, 0]]), "features of image 1 are all zero"),
        (np.full((3, 2), np.nan), "NaN"),
        (np.zeros((0, 4)), "at least one image"),
        (np.zeros(4), r"\[4\], expected \[N, D\]"),
    ],
)
def test_unusable_features_are_refused(features: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        vendi_score(features)
