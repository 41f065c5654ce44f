"""The digits distribution and its detector: determinism, extent of the transformations, usefulness of the features."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from metrics import detectors, statistics
from metrics.files import InputError, sha256_file
from metrics.frechet import frechet_distance
from repro.data.digits import Digits, DigitSettings, prepare

STILL = DigitSettings(shift=0, rotation=0, log_scale=0, shear=0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    prepare(folder, DigitSettings(num_reference=1024, classifier_steps=80))
    return folder


def test_an_image_depends_on_seed_and_position_alone():
    digits = Digits()
    images, classes = digits.draw(3, np.arange(1000, 1064))
    for order in (np.arange(1063, 999, -1), np.array([1005])):
        again, labels = digits.draw(3, order)
        assert torch.equal(again, images[order - 1000])
        np.testing.assert_array_equal(labels, classes[order - 1000])
    assert not torch.equal(images, digits.draw(4, np.arange(1000, 1064))[0])


def test_without_transformations_every_image_is_an_original():
    images, classes = Digits(STILL).draw(0, np.arange(200))
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
        (DigitSettings(shift=0.18, rotation=0, log_scale=0, shear=0), {"shift": 0.18}),
        (DigitSettings(shift=0, rotation=0.35, log_scale=0, shear=0), {"rotation": 0.35}),
        (DigitSettings(shift=0, rotation=0, log_scale=0.2, shear=0), {"log_scale": 0.2}),
        (DigitSettings(shift=0, rotation=0, log_scale=0, shear=0.25), {"shear": 0.25}),
    ],
)
def test_transformations_are_uniform_within_their_extent(settings, expected):
    theta = Digits(settings)._transformations(0, np.arange(20_000)).double().numpy()
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
        if extent:
            assert values.std() == pytest.approx(extent / np.sqrt(3), rel=0.02)
            assert values.mean() == pytest.approx(0, abs=0.02 * extent)


def test_training_batches_are_images_with_one_hot_labels():
    digits = Digits()
    images, labels = digits.batch(0, np.arange(32))
    drawn, classes = digits.draw(0, np.arange(32))
    assert torch.equal(images, drawn)
    assert labels.dtype == torch.float32
    np.testing.assert_array_equal(labels.argmax(dim=1).numpy(), classes)
    assert torch.equal(labels.sum(dim=1), torch.ones(32))


def test_prepared_reference_is_close_to_fresh_images_and_far_from_damaged_ones(prepared):
    detector = detectors.load("digits", weights=prepared / "digits.safetensors")
    reference = statistics.load(prepared / "digits.npz")
    assert reference.num_images == 1024
    assert reference.tags["weights_sha256"] == sha256_file(prepared / "digits.safetensors")
    features = np.load(prepared / "digits-features.npy")
    np.testing.assert_allclose(features.astype(np.float64).mean(axis=0), reference.mu, rtol=1e-9, atol=1e-9)

    images, _ = Digits().draw(17, np.arange(1024))
    fresh = statistics.from_features(detector(images))
    blurred = statistics.from_features(detector(torch.nn.functional.avg_pool2d(images.float(), 5, 1, 2).byte()))
    real, damaged = frechet_distance(fresh, reference), frechet_distance(blurred, reference)
    assert 0 < real < 0.1 * np.trace(reference.sigma)
    assert damaged > 5 * real


def test_features_depend_neither_on_the_batch_nor_on_grey_being_stored_as_rgb(prepared):
    detector = detectors.load("digits", weights=prepared / "digits.safetensors")
    images, _ = Digits().draw(18, np.arange(33))
    whole = detector(images)
    assert whole.shape == (33, detector.dim)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(torch.cat([detector(part) for part in images.split(5)]), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(detector(images.repeat(1, 3, 1, 1)), whole, rtol=1e-5, atol=1e-5)


def test_the_detector_refuses_other_weights_and_other_images(prepared, tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not the digits classifier"):
        detectors.load("digits", weights=tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="needs its weights"):
        detectors.load("digits")
    detector = detectors.load("digits", weights=prepared / "digits.safetensors")
    with pytest.raises(InputError, match="takes uint8"):
        detector(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))
