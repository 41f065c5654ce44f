"""The digits distribution and its detector: determinism, extent of the transformations, usefulness of the features."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor

from metrics import detectors, features, references, statistics
from metrics.detectors import Detector
from metrics.files import Downloads, InputError, sha256_file
from metrics.frechet import frechet_distance
from repro.data import FEATURES, REFERENCE
from repro.data.digits import MAPS, DigitReference, Digits, affine, originals, render

STILL = Digits(shift=0, rotation=0, log_scale=0, shear=0)
SETTINGS = DigitReference(num_images=1100, classifier_steps=80)


class ColourMeans:
    """A detector that asks for colour, as the published ones do."""

    name, dim = "colour-means", 3
    tags: Mapping[str, Any] = {"detector": "colour-means", "weights_sha256": "-", "resize": "none", "dtype": "float32"}

    def __init__(self, weights: object = None, device: object = "cpu") -> None: ...

    def __call__(self, images: Tensor) -> Tensor:
        assert images.shape[1:] == (3, 16, 16)
        return images.float().mean(dim=(2, 3))


detectors.register("colour-means", ColourMeans)


def measure(folder: Path, names: list[str], settings: DigitReference = SETTINGS) -> None:
    Digits().measure(folder / "unused", folder, names, settings, Downloads())


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    measure(folder, ["digits"])
    return folder


@pytest.fixture(scope="module")
def detector(measured: Path) -> Detector:
    return detectors.load("digits", weights=measured / "digits.safetensors")


def test_an_image_depends_on_seed_and_position_alone():
    digits = Digits()
    images, classes = digits.draw(3, np.arange(1000, 1064))
    for order in (np.arange(1063, 999, -1), np.array([1005])):
        again, labels = digits.draw(3, order)
        assert torch.equal(again, images[order - 1000])
        np.testing.assert_array_equal(labels, classes[order - 1000])
    assert not torch.equal(images, digits.draw(4, np.arange(1000, 1064))[0])


def test_without_transformations_every_image_is_an_original():
    images, classes = STILL.draw(0, np.arange(200))
    originals = load_digits()
    small = torch.nn.functional.interpolate(images[:, :, 2:14, 2:14].float(), size=8, mode="area").flatten(1)
    nearest = torch.cdist(small, torch.from_numpy(originals.data).float() * 255 / 16).argmin(dim=1)
    np.testing.assert_array_equal(originals.target[nearest], classes)
    assert images.shape == (200, 1, 16, 16)
    assert images.dtype == torch.uint8
    assert images[:, :, [0, 1, 14, 15]].sum() == 0
    assert images.max() > 240


def test_classes_and_originals_are_drawn_evenly():
    _, classes = Digits().draw(0, np.arange(20_000))
    counts = np.bincount(classes, minlength=10) / 20_000
    np.testing.assert_allclose(counts, np.bincount(load_digits().target) / 1797, atol=0.012)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Digits(shift=0.18, rotation=0, log_scale=0, shear=0), {"shift": 0.18}),
        (Digits(shift=0, rotation=0.35, log_scale=0, shear=0), {"rotation": 0.35}),
        (Digits(shift=0, rotation=0, log_scale=0.2, shear=0), {"log_scale": 0.2}),
        (Digits(shift=0, rotation=0, log_scale=0, shear=0.25), {"shear": 0.25}),
    ],
)
def test_transformations_are_uniform_within_their_extent(settings, expected):
    _, maps = settings.factors(0, np.arange(20_000))
    theta = affine(maps).double().numpy()
    linear = theta[:, :, :2]
    found = {
        "shift": theta[:, 0, 2],
        "rotation": np.arctan2(-linear[:, 1, 0], linear[:, 0, 0]),
        "log_scale": -0.5 * np.log(np.linalg.det(linear)),
        "shear": linear[:, 0, 1] * linear[:, 0, 0] + linear[:, 1, 1] * linear[:, 1, 0],
    }
    for name, values in found.items():
        extent = expected.get(name, 0)
        assert np.abs(values).max() <= extent + 1e-6
        np.testing.assert_allclose(
            values, maps[MAPS.index("shift x" if name == "shift" else name.replace("_", " "))], atol=1e-6
        )
        if extent:
            assert values.std() == pytest.approx(extent / np.sqrt(3), rel=0.02)
            assert values.mean() == pytest.approx(0, abs=0.02 * extent)


def test_factors_are_those_that_images_were_drawn_with():
    digits, positions = Digits(), np.arange(50, 82)
    items, maps = digits.factors(6, positions)
    images, classes = digits.draw(6, positions)
    torch.testing.assert_close(render(items, maps) * 255, images.float(), rtol=0, atol=0.51)
    np.testing.assert_array_equal(originals()[1][items], classes)
    assert (np.abs(maps) <= digits.extents[:, None]).all()
    again = digits.factors(6, positions[::-1])
    np.testing.assert_array_equal(again[0][::-1], items)
    np.testing.assert_array_equal(again[1][:, ::-1], maps)


def test_training_batches_are_images_with_one_hot_labels():
    digits = Digits()
    images, labels = digits.batch(0, np.arange(32))
    drawn, classes = digits.draw(0, np.arange(32))
    assert torch.equal(images, drawn)
    assert labels.dtype == torch.float32
    np.testing.assert_array_equal(labels.argmax(dim=1).numpy(), classes)
    assert torch.equal(labels.sum(dim=1), torch.ones(32))


def test_reference_is_close_to_fresh_images_and_far_from_damaged_ones(measured: Path, detector: Detector) -> None:
    found = references.load(measured / REFERENCE)
    assert found is not None
    reference = found.require("digits")
    assert reference.num_images == 1100
    assert reference.tags["weights_sha256"] == sha256_file(measured / "digits.safetensors")
    kept = features.read(measured / FEATURES)
    np.testing.assert_allclose(kept.features["digits"].mean(axis=0, dtype=np.float64), reference.mu, atol=1e-9)

    images, classes = Digits().draw(SETTINGS.seed, np.arange(64))
    torch.testing.assert_close(detector(images), torch.from_numpy(kept.features["digits"][:64]))
    np.testing.assert_array_equal(kept.labels[:64], classes)

    images, _ = Digits().draw(17, np.arange(1024))
    fresh = statistics.from_features(detector(images))
    blurred = statistics.from_features(detector(torch.nn.functional.avg_pool2d(images.float(), 5, 1, 2).byte()))
    real, damaged = frechet_distance(fresh, reference), frechet_distance(blurred, reference)
    assert 0 < real < 0.1 * np.trace(reference.sigma)
    assert damaged > 5 * real


def test_what_stands_is_kept_and_what_is_new_is_added(measured: Path, tmp_path: Path) -> None:
    for name in ("digits.safetensors", "digits.json", REFERENCE, FEATURES):
        shutil.copy2(measured / name, tmp_path / name)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    measure(tmp_path, ["digits"])
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    measure(tmp_path, ["digits", "colour-means"])
    assert (tmp_path / "digits.safetensors").stat().st_mtime_ns == before["digits.safetensors"]
    old, new = features.read(measured / FEATURES), features.read(tmp_path / FEATURES)
    np.testing.assert_array_equal(new.features["digits"], old.features["digits"])
    np.testing.assert_array_equal(*new.features["colour-means"].T[:2])  # grey in all three channels


def test_other_settings_make_another_reference(measured: Path, tmp_path: Path) -> None:
    for name in ("digits.safetensors", "digits.json", REFERENCE, FEATURES):
        shutil.copy2(measured / name, tmp_path / name)
    measure(tmp_path, ["digits"], DigitReference(num_images=1100, classifier_steps=80, seed=5))
    first, second = (features.read(folder / FEATURES) for folder in (measured, tmp_path))
    assert (first.features["digits"] != second.features["digits"]).any()
    assert (tmp_path / "digits.safetensors").read_bytes() == (measured / "digits.safetensors").read_bytes()
    measure(tmp_path, ["digits"], DigitReference(num_images=1100, classifier_steps=3))
    assert (tmp_path / "digits.safetensors").read_bytes() != (measured / "digits.safetensors").read_bytes()


def test_features_depend_neither_on_the_batch_nor_on_grey_being_stored_as_rgb(detector: Detector) -> None:
    images, _ = Digits().draw(18, np.arange(33))
    whole = detector(images)
    assert whole.shape == (33, detector.dim)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(torch.cat([detector(part) for part in images.split(5)]), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(detector(images.repeat(1, 3, 1, 1)), whole, rtol=1e-5, atol=1e-5)


def test_the_detector_refuses_other_weights_and_other_images(detector: Detector, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not the digits classifier"):
        detectors.load("digits", weights=tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="needs its weights"):
        detectors.load("digits")
    with pytest.raises(InputError, match="takes uint8"):
        detector(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("settings", [{"shift": -0.1}, {"rotation": float("inf")}, {"shear": float("nan")}])
def test_transformations_without_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(settings))} is .*, expected a finite number from 0"):
        Digits(**settings)


@pytest.mark.parametrize("settings", [{"num_images": 1}, {"classifier_steps": 0}, {"seed": -1}])
def test_references_without_sense_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(settings))} is .*, expected a finite number from"):
        DigitReference(**settings)
