"""Order, hashing and cropping of training images: golden crops, exact passes, independence of who asks."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics.files import InputError
from repro.data import ImageDataset, center_crop_dhariwal, mix, one_hot, shuffled, uniform
from repro.encoders import StabilityVAEEncoder

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.mark.parametrize("index", range(4))
def test_crops_match_the_golden_bytes(index):
    image = np.asarray(PIL.Image.open(GOLDEN / f"crop-{index}.png").convert("RGB"))
    expected = np.load(GOLDEN / "center-crop-dhariwal-64.npz")[f"out{index}"]
    np.testing.assert_array_equal(center_crop_dhariwal(image, 64), expected)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([16, 64]))
def test_crops_have_the_size_asked_for(height, width, size):
    if max(height, width) > 60 * min(height, width):
        return  # a sliver that no data set holds; bicubic enlargement of it takes long
    crop = center_crop_dhariwal(np.zeros((height, width, 3), dtype=np.uint8), size)
    assert crop.shape == (size, size, 3)


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(0, 5))
def test_every_pass_visits_every_item_once_in_another_order(seed, length, epoch):
    positions = np.arange(epoch * length, (epoch + 1) * length)
    items = shuffled(seed, positions, length)
    assert sorted(items) == list(range(length))
    np.testing.assert_array_equal(shuffled(seed, positions[::-1], length), items[::-1])


def test_passes_differ_and_seeds_differ():
    first, second = shuffled(0, np.arange(200), 100).reshape(2, 100)
    assert (first != second).any()
    assert (first != shuffled(1, np.arange(100), 100)).any()


def test_a_batch_across_two_passes_takes_from_both():
    whole = shuffled(5, np.arange(30), 10)
    np.testing.assert_array_equal(shuffled(5, np.arange(7, 14), 10), whole[7:14])


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


def test_one_hot_marks_the_class():
    np.testing.assert_array_equal(one_hot([2, 0], 3), [[0, 0, 1], [1, 0, 0]])


def png(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    PIL.Image.fromarray(pixels).save(data, format="PNG")
    return data.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, [6, 8, 8, 3], dtype=np.uint8)
FILES = {f"0000{i // 3}/img{i}.png": png(pixels) for i, pixels in enumerate(PIXELS)}
LABELS = {"labels": [[name, i % 4] for i, name in enumerate(FILES)]}


def write_dataset(path: Path, files: dict[str, bytes], labels: object = None) -> Path:
    """A zip where the name says so, else a folder."""
    if labels is not None:
        files = {**files, "dataset.json": json.dumps(labels).encode()}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["data.zip", "data"])
def test_folders_and_zips_give_the_same_stream(tmp_path, name):
    dataset = ImageDataset(write_dataset(tmp_path / name, FILES, LABELS))
    assert (len(dataset), dataset.img_resolution, dataset.img_channels, dataset.label_dim) == (6, 8, 3, 4)
    for _ in range(2):  # decoded, then from memory
        images, labels = dataset.batch(3, np.arange(4, 10))
        items = shuffled(3, np.arange(4, 10), 6)
        np.testing.assert_array_equal(images.numpy(), PIXELS[items].transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(labels.numpy(), np.eye(4)[items % 4])


def test_digest_tells_labels_and_files_apart_but_not_the_container(tmp_path):
    other = {"labels": [[name, 0] for name in FILES]}
    digests = [
        ImageDataset(write_dataset(tmp_path / name, files, labels)).digest
        for name, files, labels in (
            ("a", FILES, LABELS),
            ("b.zip", FILES, LABELS),
            ("c", FILES, other),
            ("d", dict(list(FILES.items())[:5]), LABELS),
        )
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_data_without_labels_are_unconditional(tmp_path):
    for name, labels in (("none", None), ("null", {"labels": None})):
        dataset = ImageDataset(write_dataset(tmp_path / name, FILES, labels))
        assert dataset.label_dim == 0
        assert dataset.batch(0, np.arange(2))[1].shape == (2, 0)


def test_stored_latents_are_read_as_float(tmp_path):
    latents = np.random.default_rng(1).standard_normal([3, 8, 4, 4]).astype(np.float32)
    files = {}
    for i, latent in enumerate(latents):
        data = io.BytesIO()
        np.save(data, latent)
        files[f"{i}.npy"] = data.getvalue()
    dataset = ImageDataset(write_dataset(tmp_path / "latents.zip", files), StabilityVAEEncoder())
    assert (dataset.img_resolution, dataset.img_channels) == (4, 4)
    images, _ = dataset.batch(0, np.arange(3))
    np.testing.assert_array_equal(images.numpy(), latents[shuffled(0, np.arange(3), 3)])


@pytest.mark.parametrize(
    ("extra", "labels", "message"),
    [
        ({"00001/bad.png": b"not a png"}, None, r"00001/bad.png cannot be read"),
        ({"00001/small.png": png(PIXELS[0, :4, :4])}, None, r"small.png is uint8 \[3, 4, 4\], expected"),
        ({"00001/deep.png": png(PIXELS[0, :, :, 0].astype(np.uint16))}, None, r"deep.png is neither RGB nor 8-bit"),
        ({"00001/new.png": png(PIXELS[0])}, LABELS, r"no label to 00001/new.png"),
        ({}, {"labels": [["a", "b", "c"]]}, r"dataset.json is not"),
        ({}, {"labels": [[name, -1] for name in FILES]}, r"negative classes"),
    ],
)
def test_broken_data_sets_are_refused_by_name(tmp_path, extra, labels, message):
    path = write_dataset(tmp_path / "data", {**FILES, **extra}, labels)
    with pytest.raises(InputError, match=message):
        ImageDataset(path).batch(0, np.arange(7))


def test_an_empty_or_absent_data_set_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no \.png or \.npy files"):
        ImageDataset(tmp_path)
    with pytest.raises(InputError, match="expected a folder or zip"):
        ImageDataset(tmp_path / "absent")
