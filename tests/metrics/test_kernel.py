"""KID against a plain double loop, its unbiasedness, and its refusals."""

import itertools

import numpy as np
import pytest
import torch

from metrics.files import InputError
from metrics.kernel import kernel_distance, unbiased_mmd2


def test_equals_the_definition_summed_pair_by_pair() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 3)), rng.standard_normal((5, 3)) + 1

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    within_x = np.mean([kernel(x[i], x[j]) for i, j in itertools.permutations(range(6), 2)])
    within_y = np.mean([kernel(y[i], y[j]) for i, j in itertools.permutations(range(5), 2)])
    across = np.mean([kernel(a, b) for a in x for b in y])
    ours = unbiased_mmd2(torch.from_numpy(x), torch.from_numpy(y))
    assert ours == pytest.approx(within_x + within_y - 2 * across, rel=1e-12)


def test_expectation_over_all_outcomes_is_the_true_distance() -> None:
    # Coins of value +-1: k(x, y) = (xy + 1)^3 = 4 (1 + xy), so MMD^2 = 4 (difference of means)^2.
    heads = {"x": 0.5, "y": 0.8}
    expectation = 0.0
    for outcome in itertools.product([-1.0, 1.0], repeat=6):
        x, y = torch.tensor(outcome[:3]).double(), torch.tensor(outcome[3:]).double()
        chance = np.prod([heads["x"] if v > 0 else 1 - heads["x"] for v in outcome[:3]])
        chance *= np.prod([heads["y"] if v > 0 else 1 - heads["y"] for v in outcome[3:]])
        expectation += chance * unbiased_mmd2(x[:, None], y[:, None])
    assert expectation == pytest.approx(4 * 0.6**2, rel=1e-12)


def test_equal_distributions_scatter_around_zero() -> None:
    rng = np.random.default_rng(2)
    value, spread = kernel_distance(rng.standard_normal((400, 8)), rng.standard_normal((400, 8)), subset_size=50)
    assert spread > 0
    assert abs(value) < 5 * spread / 10 + 1e-3


def test_is_the_same_on_every_run_and_follows_the_seed() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((60, 4)), rng.standard_normal((70, 4))
    first = kernel_distance(x, y, subset_size=20)
    assert first == kernel_distance(x, y, subset_size=20)
    assert first != kernel_distance(x, y, subset_size=20, seed=1)


@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [
        (np.zeros((30, 2)), np.zeros((9, 2)), "subsets of 20 images needs as many on both sides, found 30 and 9"),
        (np.zeros((30, 2)), np.zeros((30, 3)), "use the same detector"),
        (np.full((30, 2), np.nan), np.zeros((30, 2)), "NaN"),
    ],
)
def test_unusable_features_are_refused(real: np.ndarray, fake: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kernel_distance(real, fake, subset_size=20)
