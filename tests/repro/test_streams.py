"""Counter-based random numbers: uniform, uncorrelated, and those of the published generator."""

import numpy as np

from repro.streams import mix, uniform


def test_hashed_numbers_are_uniform_and_uncorrelated():
    values = uniform(0, np.arange(4)[:, None], np.arange(50_000))
    assert values.min() >= 0
    assert values.max() < 1
    np.testing.assert_allclose(values.mean(axis=1), 0.5, atol=0.005)
    np.testing.assert_allclose(values.var(axis=1), 1 / 12, atol=0.002)
    correlation = np.corrcoef(np.concatenate([values, np.roll(values, 1, axis=1)]))
    assert np.abs(correlation - np.eye(8)).max() < 0.02


def test_hash_is_splitmix64():
    # First outputs of the reference generator with state 0 and 0x9e3779b97f4a7c15 (Vigna, splitmix64.c).
    assert int(mix(0)) == 0xE220A8397B1DCDAF
    assert int(mix(0x9E3779B97F4A7C15)) == 0x6E789E6AA1B965F4
