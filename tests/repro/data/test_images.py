"""Image files as a data set: what networks train on, and the reference that is made of them."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics import detectors, features, references
from metrics.files import Downloads, InputError
from repro.data import FEATURES, REFERENCE, ImageDataset, kinds
from repro.data.archives import item_names, labels_entry
from repro.data.cifar10 import Cifar10
from repro.data.digits import Digits
from repro.data.kinds import ImageFiles, ImageReference
from repro.pixels import encode_png, write_zip
from tests.metrics.images.cifar10_in_small import COUNT, photographs


class Thumbnails:
    """Images shrunk to 2 x 2: 12 numbers that mean something; counts what it is given."""

    name, dim, seen = "thumbnails", 12, 0
    tags: Mapping[str, Any] = {"detector": "thumbnails", "weights_sha256": "-", "resize": "area", "dtype": "float32"}

    def __init__(self, weights: object = None, device: object = "cpu") -> None: ...

    def __call__(self, images: Tensor) -> Tensor:
        Thumbnails.seen += len(images)
        return F.adaptive_avg_pool2d(images.float(), 2).flatten(1)


class Reds(Thumbnails):
    """The means of the red channel's halves."""

    name, dim = "reds", 2
    tags: Mapping[str, Any] = {**Thumbnails.tags, "detector": "reds"}

    def __call__(self, images: Tensor) -> Tensor:
        return super().__call__(images)[:, :2]


detectors.register("thumbnails", Thumbnails)
detectors.register("reds", Reds)


def write(path: Path, images: np.ndarray, labels: np.ndarray | None) -> Path:
    names = item_names(len(images))
    pngs = [(name, encode_png(pixels)) for name, pixels in zip(names, images, strict=True)]
    write_zip(path, [*pngs, labels_entry(names, labels)])
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write(tmp_path / "own.zip", *photographs())


def measure(archive: Path, *names: str, num_images: int | None = None) -> Path:
    """Folder of the reference."""
    target, settings = archive.parent / "reference", ImageReference(num_images)
    ImageFiles(str(archive)).measure(archive.parent / "unused", target, names, settings, Downloads())
    return target


def test_all_images_are_measured_with_their_classes_in_another_order(archive: Path) -> None:
    folder = measure(archive, "thumbnails")
    assert sorted(path.name for path in folder.iterdir()) == [FEATURES, REFERENCE]  # no chunks of the extraction
    found, kept = references.load(folder / REFERENCE), features.read(folder / FEATURES)
    assert found is not None
    rows, statistics = kept.features["thumbnails"], found.require("thumbnails")
    assert (statistics.num_images, rows.shape) == (COUNT, (COUNT, 12))
    np.testing.assert_allclose(statistics.mu, rows.mean(axis=0, dtype=np.float64), rtol=1e-6)
    images, classes = photographs()
    expected = Thumbnails()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert (rows != expected).any()
    np.testing.assert_array_equal(
        sorted([*row, label] for row, label in zip(rows, kept.labels, strict=True)),
        sorted([*row, label] for row, label in zip(expected, classes, strict=True)),
    )


def test_what_is_measured_is_not_measured_again_unless_images_classes_or_numerics_change(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = measure(archive, "thumbnails")
    before, seen = [(folder / name).stat().st_mtime_ns for name in (FEATURES, REFERENCE)], Thumbnails.seen
    measure(archive, "thumbnails")
    assert [(folder / name).stat().st_mtime_ns for name in (FEATURES, REFERENCE)] == before
    assert Thumbnails.seen == seen
    with monkeypatch.context() as patch:
        patch.setattr(kinds, "numerics", lambda _: {"numerics": 2})
        measure(archive, "thumbnails")
        measure(archive, "thumbnails")
    assert Thumbnails.seen == seen + COUNT
    measure(archive, "thumbnails", "reds")
    assert sorted(features.read(folder / FEATURES).features) == ["reds", "thumbnails"]
    images, classes = photographs()
    old = features.read(folder / FEATURES)
    measure(write(archive, images, classes[::-1]), "thumbnails")
    assert sorted(features.read(folder / FEATURES).labels) == sorted(classes)
    assert (features.read(folder / FEATURES).labels != old.labels).any()
    measure(write(archive, 255 - images, classes), "thumbnails")
    new = features.read(folder / FEATURES)
    np.testing.assert_allclose(new.features["thumbnails"], 255 - old.features["thumbnails"], rtol=1e-5)
    assert list(new.features) == ["thumbnails"]


def test_chunks_of_an_interrupted_extraction_count_for_the_same_numerics_only(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    seen = Thumbnails.seen
    with monkeypatch.context() as patch:
        patch.setattr(kinds, "write_reference", lambda *given: [given[4](), interrupted()])  # behind the last chunk
        with pytest.raises(KeyboardInterrupt):
            measure(archive, "thumbnails")
    assert Thumbnails.seen == seen + COUNT
    with monkeypatch.context() as patch:
        patch.setattr(kinds, "numerics", lambda _: {"numerics": 2})
        measure(archive, "thumbnails")
    assert Thumbnails.seen == seen + 2 * COUNT


def test_a_number_of_images_is_a_fair_sample_that_is_told_from_all(archive: Path) -> None:
    folder = measure(archive, "thumbnails")
    whole, every, seen = references.load(folder / REFERENCE), features.read(folder / FEATURES), Thumbnails.seen
    folder = measure(archive, "thumbnails", num_images=COUNT // 2)
    found, kept = references.load(folder / REFERENCE), features.read(folder / FEATURES)
    assert Thumbnails.seen == seen + COUNT // 2
    assert whole is not None
    assert found is not None
    assert found.digest != whole.digest
    assert found.require("thumbnails").num_images == len(kept.labels) == COUNT // 2
    rows = {row.tobytes(): label for row, label in zip(every.features["thumbnails"], every.labels, strict=True)}
    assert [rows[row.tobytes()] for row in kept.features["thumbnails"]] == kept.labels.tolist()
    assert len(set(kept.labels)) == 10
    measure(archive, "thumbnails", num_images=COUNT // 2)
    assert Thumbnails.seen == seen + COUNT // 2
    with pytest.raises(InputError, match=rf"own.zip: holds {COUNT} images, expected the 1000 of reference.num_images"):
        measure(archive, "thumbnails", num_images=1000)


def test_a_damaged_reference_is_made_again(archive: Path) -> None:
    path = measure(archive, "thumbnails") / FEATURES
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    measure(archive, "thumbnails")
    assert path.read_bytes() == content


def test_the_first_features_are_a_fair_sample_of_images_sorted_by_class(archive: Path) -> None:
    images, classes = photographs()
    order = np.argsort(images.mean(axis=(1, 2, 3)))
    folder = measure(write(archive.with_name("sorted.zip"), images[order], classes[order]), "thumbnails")
    rows = features.read(folder / FEATURES).features["thumbnails"]
    scale = rows.std(axis=0) / (COUNT / 2) ** 0.5
    assert np.abs((rows[: COUNT // 2].mean(axis=0) - rows.mean(axis=0)) / scale).max() < 4


def test_labels_can_be_left_out(archive: Path) -> None:
    labelled, plain = (ImageFiles(str(archive), use_labels=use).training(archive.parent) for use in (True, False))
    assert (labelled.label_dim, plain.label_dim) == (10, 0)
    assert labelled.digest != plain.digest
    positions = np.arange(8)
    assert torch.equal(labelled.batch(0, positions)[0], plain.batch(0, positions)[0])


def test_the_digest_is_that_of_the_images_wherever_they_lie(archive: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(archive, tmp_path / "folder")
    digests = {ImageFiles(str(path)).prepare(tmp_path, Downloads()) for path in (archive, tmp_path / "folder")}
    assert digests == {ImageDataset(archive).digest}


def test_latents_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "latents").mkdir()
    np.save(tmp_path / "latents" / "0.npy", np.zeros((8, 4, 4), np.float32))
    with pytest.raises(InputError, match="holds float32 arrays, expected images"):
        ImageFiles(str(tmp_path / "latents")).prepare(tmp_path, Downloads())


def test_what_networks_will_see_is_known_ahead(archive: Path, tmp_path: Path) -> None:
    """So that a study's cost can be counted: of files as soon as they are there, of the other kinds before."""
    assert ImageFiles(str(archive)).data_shape() == (32, 3, 10)
    assert ImageFiles(str(archive), use_labels=False).data_shape() == (32, 3, 0)
    assert ImageFiles(str(tmp_path / "not-yet.zip")).data_shape() is None
    assert Cifar10().data_shape() == (32, 3, 10)
    digits = Digits()
    assert digits.data_shape() == (digits.img_resolution, digits.img_channels, digits.label_dim)
