"""Published statistics as a data set: fetched, converted, and refused where they lack what is asked for."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from metrics import references
from metrics.files import Downloads, InputError
from repro.data import KINDS, REFERENCE
from repro.data.published import PublishedReference

SETTINGS = PublishedReference("refs/small.pkl", {"inception": "fid", "dinov2": "fd_dinov2"})


@pytest.fixture
def downloads(tmp_path: Path) -> Downloads:
    """From a folder with statistics in EDM2's format."""
    generator = np.random.default_rng(0)
    content: dict[str, object] = {"num_images": 100}
    for key, dim in {"fid": 6, "fd_dinov2": 4}.items():
        rows = generator.standard_normal((20, dim))
        content[key] = {"mu": rows.mean(axis=0), "sigma": np.cov(rows.T)}
    (tmp_path / "site" / "refs").mkdir(parents=True)
    (tmp_path / "site" / "refs" / "small.pkl").write_bytes(pickle.dumps(content))
    return Downloads(bases=[(tmp_path / "site").as_uri()], lock=tmp_path / "fetch.lock")


@pytest.fixture(autouse=True)
def weights(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Detectors whose weights were looked for, and whether without a network."""
    asked: list[tuple[str, bool]] = []
    monkeypatch.setattr("metrics.detectors.weights.ensure", lambda name, offline: asked.append((name, offline)))
    return asked


def test_statistics_of_the_detectors_asked_for_are_converted(
    downloads: Downloads, tmp_path: Path, weights: list[tuple[str, bool]]
) -> None:
    digest = SETTINGS.prepare(tmp_path / "data", downloads)
    assert digest == SETTINGS.prepare(tmp_path / "again", downloads)
    SETTINGS.measure(tmp_path / "data", tmp_path / "reference", ["dinov2"], None, downloads)
    found = references.load(tmp_path / "reference" / REFERENCE)
    assert found is not None
    assert list(found.statistics) == ["dinov2"]
    content = pickle.loads((tmp_path / "site" / "refs" / "small.pkl").read_bytes())
    statistics = found.require("dinov2")
    np.testing.assert_array_equal(statistics.mu, content["fd_dinov2"]["mu"])
    np.testing.assert_array_equal(statistics.sigma, content["fd_dinov2"]["sigma"])
    assert (statistics.num_images, statistics.tags["detector"]) == (100, "dinov2")
    assert weights == [("dinov2", False)]


def test_a_detector_without_statistics_is_refused(downloads: Downloads, tmp_path: Path) -> None:
    SETTINGS.prepare(tmp_path / "data", downloads)
    with pytest.raises(InputError, match="names no statistics of detector 'dinov2-b'; did you mean 'dinov2'"):
        SETTINGS.measure(tmp_path / "data", tmp_path / "reference", ["dinov2-b"], None, downloads)
    assert not (tmp_path / "reference").exists()


def test_settings_that_name_no_statistics_are_refused() -> None:
    with pytest.raises(InputError, match=r"detectors.inception: 'fidd' is unknown; did you mean 'fid'"):
        PublishedReference("refs/small.pkl", {"inception": "fidd"})
    with pytest.raises(InputError, match="detector 'incepton' is unknown"):
        PublishedReference("refs/small.pkl", {"incepton": "fid"})


def test_published_statistics_are_no_training_data(tmp_path: Path) -> None:
    assert KINDS["reference"] is PublishedReference
    with pytest.raises(InputError, match="no images to train on"):
        SETTINGS.training(tmp_path)


def test_statistics_that_do_not_say_of_how_many_images_are_refused_before_anything_is_sampled(
    downloads: Downloads, tmp_path: Path
) -> None:
    place = tmp_path / "site" / "refs" / "small.pkl"
    content = pickle.loads(place.read_bytes())
    content.pop("num_images")
    place.write_bytes(pickle.dumps(content))
    for _ in range(2):  # nor is its digest recorded
        with pytest.raises(InputError, match=r"'num_images' is 0 for inception, expected that of the images"):
            SETTINGS.prepare(tmp_path / "data", downloads)
    (tmp_path / "data" / "small.pkl").write_bytes(place.read_bytes())  # put there by hand
    with pytest.raises(InputError, match="'num_images' is 0"):
        SETTINGS.prepare(tmp_path / "data", downloads)
