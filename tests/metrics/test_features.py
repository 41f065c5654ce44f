"""Extraction: chunk cache, resume, batching, feature files."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metrics import features
from metrics.features import FeatureSet, detect, extract
from metrics.files import InputError
from metrics.sizes import Extent


class MeanColour:
    """A detector of three features: the mean of each colour plane, plus `shift`."""

    name = "mean"
    dim = 3

    def __init__(self, shift: float = 0.0, **tags: Any) -> None:
        self.shift = shift
        self.tags = {"detector": "mean", "weights_sha256": "0" * 64, "resize": "none", "dtype": "float32", **tags}
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        self.calls.append(tuple(images.shape))
        return images.float().mean(dim=(2, 3)) + self.shift


def digest_of(digest: str, pixels: np.ndarray) -> bytes:
    return hashlib.sha256(digest.encode() + str(pixels.shape).encode() + pixels.tobytes()).digest()


class ImageList:
    """Random images in memory, all or some of them of another size."""

    def __init__(self, count: int, digest: str = "d", sizes: Sequence[int] = (4,), fail_at: int | None = None) -> None:
        rng = np.random.default_rng(0)
        self.pixels = [rng.integers(0, 256, (sizes[i % len(sizes)], 4, 3), dtype=np.uint8) for i in range(count)]
        self.names = [f"{i:05d}.png" for i in range(count)]
        self.sizes = [image.shape[:2] for image in self.pixels]
        self.size = Extent.of(self.sizes)
        self.digests = np.frombuffer(b"".join(digest_of(digest, x) for x in self.pixels), np.uint8).reshape(-1, 32)
        self.digest, self.fail_at = digest, fail_at
        self.labels: np.ndarray | None = np.arange(count) % 3

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, batches: Sequence[Sequence[int]], num_workers: int | None) -> Iterator[list[np.ndarray]]:
        for members in batches:
            if self.fail_at is not None and members[-1] >= self.fail_at:
                raise KeyboardInterrupt
            yield [self.pixels[i] for i in members]

    def expected(self) -> np.ndarray:
        return np.stack([x.astype(np.float32).mean(axis=(0, 1)) for x in self.pixels])


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "CHUNK", 10)


def test_features_follow_the_order_of_the_images_in_batches_of_any_size(tmp_path: Path) -> None:
    images = ImageList(37, sizes=(4, 6, 5))
    for batch_size in (1, 4, 64):
        found = extract(images, {"mean": MeanColour()}, tmp_path / str(batch_size), batch_size)["mean"]
        np.testing.assert_allclose(found.gather(), images.expected(), rtol=1e-5)
        assert found.labels is images.labels


def test_images_of_equal_size_share_a_call_and_others_do_not() -> None:
    detector, images = MeanColour(), ImageList(6, sizes=(4, 5))
    detect([images.pixels], {"mean": detector})
    assert detector.calls == [(3, 3, 4, 4), (3, 3, 5, 4)]


def test_a_batch_is_bounded_by_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "MAX_PIXELS", 3 * 4 * 4)
    detector, images = MeanColour(), ImageList(12, sizes=(4, 4, 4, 4, 40, 4))
    found = extract(images, {"mean": detector}, tmp_path, 64)["mean"]
    np.testing.assert_allclose(found.gather(), images.expected(), rtol=1e-5)
    assert [shape[:3] for shape in detector.calls] == [
        *[(3, 3, 4), (1, 3, 4), (1, 3, 40), (3, 3, 4), (2, 3, 4)],  # ten images are a chunk
        *[(1, 3, 40), (1, 3, 4)],
    ]


def test_kept_features_are_not_made_again(tmp_path: Path) -> None:
    images, first, second = ImageList(25), MeanColour(), MeanColour()
    a = extract(images, {"mean": first}, tmp_path)["mean"].gather()
    b = extract(images, {"mean": second}, tmp_path)["mean"].gather()
    assert second.calls == []
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("change", ["content", "tags", "count"])
def test_changed_images_or_settings_never_meet_old_features(tmp_path: Path, change: str) -> None:
    extract(ImageList(12), {"mean": MeanColour()}, tmp_path)
    detector = MeanColour(1.0, resize="other") if change == "tags" else MeanColour(1.0)
    images = ImageList(12 + (change == "count"), "e" if change == "content" else "d")
    found = extract(images, {"mean": detector}, tmp_path)["mean"]
    np.testing.assert_allclose(found.gather(), images.expected() + 1, rtol=1e-5)


def test_interrupted_extraction_goes_on_at_the_first_missing_chunk(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract(ImageList(45, fail_at=27), {"mean": MeanColour()}, tmp_path, 4)
    resumed, images = MeanColour(), ImageList(45)
    found = extract(images, {"mean": resumed}, tmp_path, 4)["mean"]
    assert sum(call[0] for call in resumed.calls) == 25
    undisturbed = extract(images, {"mean": MeanColour()}, None, 4)["mean"]
    np.testing.assert_array_equal(found.gather(), undisturbed.gather())


def test_a_second_detector_leaves_the_first_ones_features_alone(tmp_path: Path) -> None:
    images, again = ImageList(12), MeanColour()
    extract(images, {"mean": MeanColour()}, tmp_path)
    other = MeanColour(5.0, detector="other")
    found = extract(images, {"mean": again, "other": other}, tmp_path)
    assert again.calls == []
    np.testing.assert_allclose(found["other"].gather(), images.expected() + 5, rtol=1e-5)


def test_nan_features_name_the_images_and_keep_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"NaN.*00000.png.*00007.png"):
        extract(ImageList(8), {"mean": MeanColour(float("nan"))}, tmp_path, 4)
    assert not list(tmp_path.rglob("*.npz"))


def test_statistics_of_a_range_are_those_of_its_rows() -> None:
    images = ImageList(37)
    found = extract(images, {"mean": MeanColour()})["mean"]
    stats = found.statistics(7, 29)
    assert stats.num_images == 22
    np.testing.assert_allclose(stats.sigma, np.cov(images.expected()[7:29], rowvar=False), rtol=1e-6)
    assert stats.tags["detector"] == "mean"
    assert stats.tags["num_images"] == 22


def test_feature_files_keep_values_tags_and_labels(tmp_path: Path) -> None:
    found = extract(ImageList(23), {"a": MeanColour(), "b": MeanColour(2.0)})
    features.save(found, tmp_path / "f.npz")
    back = features.load(tmp_path / "f.npz")
    for name in ("a", "b"):
        np.testing.assert_array_equal(back[name].gather(), found[name].gather())
        assert dict(back[name].tags) == {**found[name].tags, "source": str(tmp_path / "f.npz")}
        np.testing.assert_array_equal(back[name].labels, np.arange(23) % 3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3)}, "no entry 'DETECTOR/features'"),
        ({"a/features": np.zeros((4, 2), np.float32)}, "tags, facts or checksum are missing"),
        ({"a/features": np.zeros((4, 2)), "a/tags": np.array("{}")}, "float64"),
        ({"a/features": np.full((4, 2), np.nan, np.float32), "a/tags": np.array("{}")}, "NaN"),
        ({"a/features": np.zeros((4, 2), np.float32), "a/tags": np.array("{}"), "labels": np.zeros(3)}, "labels for 4"),
    ],
)
def test_broken_feature_files_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "f.npz", allow_pickle=False, **arrays)
    with pytest.raises(InputError, match=message):
        features.load(tmp_path / "f.npz")


def test_features_given_directly_are_gathered_unchanged_and_without_a_copy() -> None:
    x = np.random.default_rng(0).standard_normal((33, 2)).astype(np.float32)
    found = FeatureSet.of(x, {}).gather()
    np.testing.assert_array_equal(found, x)
    assert np.shares_memory(found, x)


def test_a_damaged_chunk_is_named_rather_than_served(tmp_path: Path) -> None:
    found = extract(ImageList(12), {"mean": MeanColour()}, tmp_path)["mean"]
    chunk = sorted(tmp_path.rglob("*.npz"))[0]
    chunk.write_bytes(chunk.read_bytes()[:-90])
    with pytest.raises(InputError, match=r"chunk-000000\.npz: not a sound npz file"):
        found.statistics()


def test_a_flipped_bit_is_an_error_and_never_another_value(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    x = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    features.write(path, features.FeatureFile({"a": x}, {"a": {"detector": "a"}}, facts={"of": "mine"}))
    sound, refused = path.read_bytes(), 0
    for place in range(0, len(sound), 41):
        data = bytearray(sound)
        data[place] ^= 1
        path.write_bytes(data)
        try:
            found = features.read(path)
        except InputError:
            refused += 1
        else:  # of a time stamp, say
            np.testing.assert_array_equal(found.features["a"], x)
            assert (dict(found.facts), dict(found.tags["a"])) == ({"of": "mine"}, {"detector": "a"})
    assert refused > x.nbytes // 41


def test_the_checksum_is_of_what_is_in_the_file(tmp_path: Path) -> None:
    x = np.zeros((4, 2), np.float32)
    features.write(tmp_path / "f.npz", features.FeatureFile({"a": x}, {"a": {}}))
    arrays = dict(np.load(tmp_path / "f.npz"))
    np.savez(tmp_path / "f.npz", **arrays | {"a/features": x + 1})  # whole for zip, but not what was written
    with pytest.raises(InputError, match="the checksum does not fit"):
        features.read(tmp_path / "f.npz")


def test_a_grey_image_is_shown_to_a_detector_as_three_equal_channels() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), dtype=np.uint8)
    detector = MeanColour()
    found = detect([list(grey[:3]), list(grey[3:])], {"mean": detector})["mean"]
    assert detector.calls == [(3, 3, 4, 4), (2, 3, 4, 4)]
    assert np.array_equal(found, np.repeat(grey, 3, axis=3).mean(axis=(1, 2), dtype=np.float32))
