"""Image files to train on: the same stream from every container, and what is wrong named."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics.files import InputError
from repro.data import ImageDataset
from repro.data.archives import shuffled
from repro.encoders import StabilityVAEEncoder


def png(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    PIL.Image.fromarray(pixels).save(data, format="PNG")
    return data.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, [6, 8, 8, 3], dtype=np.uint8)
FILES = {f"0000{i // 3}/img{i}.png": png(pixels) for i, pixels in enumerate(PIXELS)}
LABELS = {"labels": [[name, i % 4] for i, name in enumerate(FILES)]}


def write_dataset(path: Path, files: dict[str, bytes], labels: object = None) -> Path:
    """A zip or tar where the name says so, else a folder."""
    if labels is not None:
        files = {**files, "dataset.json": json.dumps(labels).encode()}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as tape:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tape.addfile(entry, io.BytesIO(data))
        return path
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["data.zip", "data.tar", "data"])
def test_folders_and_archives_give_the_same_stream(tmp_path: Path, name: str) -> None:
    dataset = ImageDataset(write_dataset(tmp_path / name, FILES, LABELS))
    assert (len(dataset), dataset.img_resolution, dataset.img_channels, dataset.label_dim) == (6, 8, 3, 4)
    for _ in range(2):  # decoded, then from memory
        images, labels = dataset.batch(3, np.arange(4, 10))
        items = shuffled(3, np.arange(4, 10), 6)
        np.testing.assert_array_equal(images.numpy(), PIXELS[items].transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(labels.numpy(), np.eye(4)[items % 4])


def test_digest_tells_contents_and_labels_apart_but_not_the_container(tmp_path: Path) -> None:
    last = list(FILES)[-1]
    altered = {**FILES, last: FILES[last][:-1] + b"?"}  # another content of the same size under the same name
    digests = [
        ImageDataset(write_dataset(tmp_path / name, files, labels)).digest
        for name, files, labels in (
            ("a", FILES, LABELS),
            ("b.zip", FILES, LABELS),
            ("c.tar", FILES, LABELS),
            ("d", FILES, {"labels": [[name, 0] for name in FILES]}),
            ("e", dict(list(FILES.items())[:5]), LABELS),
            ("f.zip", altered, LABELS),
            ("g", altered, LABELS),
        )
    ]
    assert len(set(digests[:3])) == 1
    assert digests[5] == digests[6]
    assert len(set(digests[2:6])) == 4


def test_grey_images_keep_their_one_channel(tmp_path: Path) -> None:
    grey = {name: png(pixels[:, :, 0]) for name, pixels in zip(FILES, PIXELS, strict=True)}
    dataset = ImageDataset(write_dataset(tmp_path / "grey.zip", grey))
    assert dataset.img_channels == 1
    np.testing.assert_array_equal(dataset.image(2), PIXELS[2, None, :, :, 0])


def test_data_without_labels_are_unconditional(tmp_path: Path) -> None:
    for name, labels in (("none", None), ("null", {"labels": None})):
        dataset = ImageDataset(write_dataset(tmp_path / name, FILES, labels))
        assert dataset.label_dim == 0
        assert dataset.batch(0, np.arange(2))[1].shape == (2, 0)


def test_stored_latents_are_read_as_float(tmp_path: Path) -> None:
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
        ({"00001/bad.png": b"not a png"}, None, r"00001/bad.png is no PNG"),
        ({"00001/small.png": png(PIXELS[0, :4, :4])}, None, r"small.png is uint8 \[3, 4, 4\], expected"),
        (
            {"00001/deep.png": png(PIXELS[0, :, :, 0].astype(np.uint16))},
            None,
            r"deep.png has more than 8 bits a channel",
        ),
        ({"00001/new.png": png(PIXELS[0])}, LABELS, r"no label of 00001/new.png"),
        ({"00001/bad.npy": b"not an array"}, None, r"00001/bad.npy cannot be read"),
        ({}, {"labels": [["a", "b", "c"]]}, r"dataset.json is not"),
        ({}, {"labels": [[name, -1] for name in FILES]}, r"has the class -1"),
    ],
)
def test_broken_data_sets_are_refused_by_name(
    tmp_path: Path, extra: dict[str, bytes], labels: object, message: str
) -> None:
    path = write_dataset(tmp_path / "data", {**FILES, **extra}, labels)
    with pytest.raises(InputError, match=message):
        ImageDataset(path).batch(0, np.arange(7))


def test_a_damaged_zip_is_named_with_its_entry(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "data.zip", FILES)
    content = bytearray(path.read_bytes())
    content[content.find(b"IDAT", len(content) // 2) + 8] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"img\d.png cannot be read \(Bad CRC-32"):
        ImageDataset(path).batch(0, np.arange(6))


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images or latents"):
        ImageDataset(tmp_path / "empty")
    with pytest.raises(InputError, match="no such file or folder"):
        ImageDataset(tmp_path / "absent")
    (tmp_path / "several").mkdir()
    for name in ("a.zip", "b.zip"):
        write_dataset(tmp_path / "several" / name, FILES)
    with pytest.raises(InputError, match="holds 2 archives"):
        ImageDataset(tmp_path / "several")


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
