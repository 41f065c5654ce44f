"""The campaign results/variation: what images are made of, estimated, and how much it varies."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from repro.data.digits import MAPS, NUM_CLASSES, Digits

FOLDER = Path(__file__).parents[1] / "results" / "variation"
IMAGES = np.arange(64)
EXACT = {"slope": np.ones([NUM_CLASSES, len(MAPS)]), "error": np.zeros([NUM_CLASSES, len(MAPS)])}


@pytest.fixture(scope="module")
def factors() -> Any:
    return imported("factors")


@pytest.fixture(scope="module")
def measure() -> Any:
    return imported("measure")


def imported(name: str) -> Any:
    """A script as it imports its neighbours when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        try:
            return importlib.import_module(name)
        finally:
            for other in ("factors", "measure"):
                sys.modules.pop(other, None)


def made(factors: Any, seed: int, count: int, width: float = 1.0, kept: int = 1797) -> Any:
    """What real images are made of, of maps of so many times the width and of the first `kept` originals."""
    items, maps = Digits().factors(seed, np.arange(count))
    return factors.Made(load_digits().target[items % kept], maps * width, items % kept)


def test_the_original_is_found_under_the_map_and_another_one_where_it_does_not_count(factors: Any) -> None:
    digits = Digits()
    (items, maps), (images, classes) = digits.factors(1, IMAGES), digits.draw(1, IMAGES)
    np.testing.assert_array_equal(factors.nearest(images, classes, maps), items)
    others = factors.nearest(images, classes, maps, items)
    assert (others != items).all()
    np.testing.assert_array_equal(load_digits().target[others], classes)


def test_the_chance_of_the_same_original_is_that_of_all_pairs_and_without_bias(factors: Any) -> None:
    draws = np.random.default_rng(0).integers(0, 20, [2000, 12])
    pairs = draws[0][:, None] == draws[0]
    assert factors.same_original(draws[0]) == pytest.approx((pairs.sum() - 12) / (12 * 11))
    assert np.mean([factors.same_original(each) for each in draws]) == pytest.approx(1 / 20, rel=0.05)


def test_spreads_of_real_images_are_those_of_the_distribution(factors: Any) -> None:
    found = factors.spreads(made(factors, 2, 40_000), factors.Calibration(**EXACT))
    np.testing.assert_allclose(found[:-1, -1], Digits().extents / np.sqrt(3), rtol=0.01)
    np.testing.assert_allclose(found[-1, :-1], np.bincount(load_digits().target), rtol=0.03)


def test_spreads_do_not_depend_on_how_badly_maps_are_estimated(factors: Any) -> None:
    generator, digits = np.random.default_rng(0), Digits()

    def estimated(true: Any) -> Any:
        slope = np.linspace(0.6, 1, NUM_CLASSES)[true.classes]
        noise = generator.normal(size=true.maps.shape) * 0.3 * digits.extents[:, None]
        return factors.Made(true.classes, 0.02 + slope * true.maps + noise, true.items)

    real = made(factors, 3, 40_000)
    calibration = factors.Calibration.of(real, estimated(real))
    for width in (1.0, 0.5):
        found = factors.spreads(estimated(made(factors, 4, 40_000, width)), calibration)
        np.testing.assert_allclose(found[:-1, -1], width * digits.extents / np.sqrt(3), rtol=0.04)


def test_the_standard_error_is_how_much_the_ratio_varies(factors: Any, measure: Any) -> None:
    real = factors.spreads(made(factors, 5, 40_000), factors.Calibration(**EXACT))
    rows = [list(measure.point(made(factors, 100 + i, 1024), factors.Calibration(**EXACT), real)) for i in range(100)]
    for k, factor in enumerate(factors.FACTORS):
        index = k * (NUM_CLASSES + 1) + NUM_CLASSES
        assert {(each[index]["factor"], each[index]["class"]) for each in rows} == {(factor, "all")}
        values = [each[index]["ratio"] for each in rows]
        assert np.mean(values) == pytest.approx(1, abs=0.05)
        error = np.mean([each[index]["standard_error"] for each in rows])
        # a chance that is the same for all is a degenerate U-statistic, whose jackknife variance is twice too large
        assert error == pytest.approx(np.std(values) * (np.sqrt(2) if factor == "original" else 1), rel=0.4)
    assert sum(row["num_images"] for row in rows[0][:NUM_CLASSES]) == rows[0][NUM_CLASSES]["num_images"] == 1024


def test_the_regressor_learns_maps_and_is_the_same_every_time(factors: Any) -> None:
    digits = Digits()
    first, second = (factors.train(digits, 7, 3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    network = factors.train(digits, 7, 80)
    positions = np.arange(256)
    found = factors.estimate(network, digits, *digits.draw(8, positions))
    for k in (0, 1):  # shifts come first
        assert np.corrcoef(found.maps[k], digits.factors(8, positions)[1][k])[0, 1] > 0.7
