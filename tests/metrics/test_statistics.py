"""Moments and statistics files against NumPy and closed forms."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import statistics
from metrics.files import InputError
from metrics.statistics import Moments, Statistics, check_tags, from_features


def features(count: int, dim: int, seed: int = 0, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return offset + rng.standard_normal((count, dim)) @ rng.standard_normal((dim, dim))


def assert_same(stats: Statistics, x: np.ndarray) -> None:
    sigma = np.cov(x, rowvar=False)
    np.testing.assert_allclose(stats.mu, x.mean(axis=0), rtol=1e-12, atol=1e-12 * np.abs(x).max())
    np.testing.assert_allclose(stats.sigma, sigma, rtol=0, atol=1e-12 * np.abs(sigma).max())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 2**16), st.sampled_from([0.0, 3.0, 100.0]))
def test_batches_of_any_size_give_numpys_covariance(sizes: list[int], seed: int, offset: float) -> None:
    x = features(sum(sizes) + 2, 7, seed, offset)
    moments = Moments(7)
    for part in np.split(x, np.cumsum(sizes)):
        moments.update(part)
    assert_same(moments.finalize(), x)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 50), st.integers(0, 2**16))
def test_merged_moments_equal_those_of_all_features(split: int, seed: int) -> None:
    x = features(50, 5, seed, 10.0)
    merged = Moments(5).update(x[:split]).merge(Moments(5).update(x[split:]))
    assert_same(merged.finalize(), x)


def test_covariance_of_float32_features_is_computed_in_float64() -> None:
    x = features(3000, 64, offset=20.0).astype(np.float32)
    moments = Moments(64)
    for part in torch.from_numpy(x).split(100):
        moments.update(part)
    assert_same(moments.finalize(), x.astype(np.float64))


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(InputError, match="at least 2 images, found 1"):
        Moments(3).update(np.ones((1, 3))).finalize()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_features_are_refused(value: float) -> None:
    with pytest.raises(InputError, match="NaN or infinity"):
        Moments(2).update(np.array([[0.0, value]]))


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(2, 3\), expected \[N, 4\]"):
        Moments(4).update(np.ones((2, 3)))


def test_files_keep_every_bit_and_all_tags(tmp_path: Path) -> None:
    stats = from_features(features(20, 6), {"detector": "inception", "dtype": "float32", "num_images": 20})
    statistics.save(stats, tmp_path / "a.npz")
    back = statistics.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(back.mu, stats.mu)
    np.testing.assert_array_equal(back.sigma, stats.sigma)
    assert back.num_images == 20
    assert dict(back.tags) == {**stats.tags, "source": str(tmp_path / "a.npz")}


def test_tags_that_differ_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="tag 'resize' differs: 'torch' in a against 'pil' in b"):
        check_tags({"resize": "torch", "source": "a"}, {"resize": "pil", "source": "b"})


def test_tags_may_be_missing_and_provenance_may_differ() -> None:
    check_tags({"detector": "x", "resize": "pil", "num_images": 3}, {"detector": "x", "num_images": 4})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mu": np.zeros(3)}, r"sigma \(2, 2\)"),
        ({"mu": np.zeros(2, np.float32)}, "float32"),
        ({"sigma": np.array([[1.0, np.nan], [np.nan, 1.0]])}, "NaN"),
        ({"sigma": np.array([[1.0, 0.5], [-0.5, 1.0]])}, "not symmetric"),
        ({"tags": np.array("{broken")}, "not readable"),
        ({"num_images": np.array(1)}, "at least 2"),
    ],
)
def test_broken_statistics_files_are_refused(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    arrays = statistics.to_arrays(Statistics(10, np.zeros(2), np.eye(2)))
    np.savez(tmp_path / "x.npz", **{**arrays, **change})
    with pytest.raises(InputError, match=message):
        statistics.load(tmp_path / "x.npz")


def test_statistics_file_without_an_entry_names_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", mu=np.zeros(2))
    with pytest.raises(InputError, match=r"no entry 'sigma'.*metrics reference"):
        statistics.load(tmp_path / "x.npz")
