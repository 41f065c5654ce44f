"""Training archives: what becomes of every kind of image, the same bytes however they are made, latents of a VAE."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metrics.files import InputError
from repro.__main__ import main
from repro.data import ImageDataset, archives, center_crop_dhariwal
from repro.encoders import StabilityVAEEncoder

SIZE = 16


def pixels(seed: int, height: int = 40, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, image: Image.Image, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes of sound images in ImageNet's layout."""
    root = tmp_path / "tree"
    for i in range(5):
        save(root / f"n0{i % 2}" / f"{i}.JPEG", Image.fromarray(pixels(i)), format="JPEG")
    return root


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def image(path: Path, index: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(entries(path)[f"00000/img{index:08d}.png"])))


def test_a_tree_becomes_cropped_pngs_with_its_classes(tree: Path, tmp_path: Path) -> None:
    path = archives.convert(tree, tmp_path / "a.zip", SIZE, num_workers=0)
    dataset = ImageDataset(path)
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1]  # sorted: n00/0, n00/2, n00/4, n01/1, n01/3
    expected = center_crop_dhariwal(np.asarray(Image.open(tree / "n01" / "1.JPEG")), SIZE)
    np.testing.assert_array_equal(dataset.image(3), expected.transpose(2, 0, 1))
    with zipfile.ZipFile(path) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
    facts = json.loads(entries(path)["preparation.json"])
    assert (facts["images"], facts["size"], facts["skipped"]) == (5, SIZE, [])
    assert not (tmp_path / "a.zip.parts").exists()


def test_bytes_do_not_depend_on_the_processes(tree: Path, tmp_path: Path) -> None:
    alone = archives.convert(tree, tmp_path / "a.zip", SIZE, num_workers=0)
    two = archives.convert(tree, tmp_path / "b.zip", SIZE, num_workers=2)
    assert alone.read_bytes() == two.read_bytes()


def test_every_kind_of_source_gives_the_same_images(tree: Path, tmp_path: Path) -> None:
    expected = entries(archives.convert(tree, tmp_path / "tree.zip", SIZE, num_workers=0))
    with zipfile.ZipFile(tmp_path / "source.zip", "w") as archive:
        for path in sorted(tree.rglob("*.JPEG")):
            archive.write(path, path.relative_to(tree))
    found = entries(archives.convert(tmp_path / "source.zip", tmp_path / "zip.zip", SIZE, num_workers=0))
    assert {k: v for k, v in found.items() if k.startswith("0")} == {
        k: v for k, v in expected.items() if k.startswith("0")
    }
    assert found["dataset.json"] == expected["dataset.json"]
    arrays = np.stack([pixels(i, 20, 24) for i in range(3)])
    np.savez(tmp_path / "adm.npz", arrays, np.array([2, 0, 1]))
    npz = archives.convert(tmp_path / "adm.npz", tmp_path / "npz.zip", SIZE, num_workers=0)
    np.testing.assert_array_equal(image(npz, 1), center_crop_dhariwal(arrays[1], SIZE))
    assert [label for _, label in json.loads(entries(npz)["dataset.json"])["labels"] or []] == [2, 0, 1]
    again = archives.convert(npz, tmp_path / "again.zip", SIZE, num_workers=0)  # labels of dataset.json
    assert entries(again)["dataset.json"] == entries(npz)["dataset.json"]


def test_unusual_images_become_what_the_docstring_says(tmp_path: Path) -> None:
    root = tmp_path / "odd"
    rgb = pixels(0, SIZE, SIZE)
    alpha = np.dstack([rgb, pixels(1, SIZE, SIZE)[:, :, 0]])
    save(root / "a-alpha.png", Image.fromarray(alpha, "RGBA"))
    save(root / "b-cmyk.jpg", Image.fromarray(rgb).convert("CMYK"), format="JPEG", quality=95)
    save(root / "c-grey.png", Image.fromarray(rgb[:, :, 0]))
    save(root / "d-one-pixel.png", Image.fromarray(rgb[:1, :1]))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    save(root / "e-turned.png", Image.fromarray(rgb), exif=exif)
    (root / "notes.txt").write_text("no image")
    path = archives.convert(root, tmp_path / "a.zip", SIZE, num_workers=0)
    np.testing.assert_array_equal(image(path, 0), rgb)
    expected = np.asarray(Image.open(root / "b-cmyk.jpg").convert("RGB"))
    np.testing.assert_array_equal(image(path, 1), expected)
    np.testing.assert_array_equal(image(path, 2), np.repeat(rgb[:, :, :1], 3, axis=2))
    np.testing.assert_array_equal(image(path, 3), np.broadcast_to(rgb[0, 0], (SIZE, SIZE, 3)))
    np.testing.assert_array_equal(image(path, 4), rgb)
    facts = json.loads(entries(path)["preparation.json"])
    assert facts["ignored_files"] == ["notes.txt"]
    assert any("alpha" in note for note in facts["notes"])
    assert archives.check(path)["images"] == 5


def broken(tree: Path) -> list[str]:
    """Add images that cannot be used; their names."""
    whole = (tree / "n00" / "0.JPEG").read_bytes()
    (tree / "n00" / "cut.JPEG").write_bytes(whole[: len(whole) // 2])
    (tree / "n00" / "text.png").write_text("this is text")
    save(tree / "n01" / "deep.png", Image.fromarray(np.zeros((8, 8), np.uint16)))
    return ["n00/cut.JPEG", "n00/text.png", "n01/deep.png"]


def test_unusable_images_are_all_named_and_nothing_is_written(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = broken(tree)
    target = tmp_path / "a.zip"
    arguments = ["data", "convert", str(tree), "--out", str(target), "--resolution", str(SIZE), "--workers", "0"]
    monkeypatch.setattr(sys, "argv", ["repro", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert all(name in message for name in names)
    assert "--skip-bad" in message
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_skipped_images_are_listed_and_the_others_keep_their_labels(tree: Path, tmp_path: Path) -> None:
    names = broken(tree)
    path = archives.convert(tree, tmp_path / "a.zip", SIZE, skip_bad=True, num_workers=0)
    skipped = json.loads(entries(path)["preparation.json"])["skipped"]
    assert [text.split()[0] for text in skipped] == names
    labels = ImageDataset(path).labels
    assert labels is not None
    assert labels.tolist() == [0, 0, 0, 1, 1]


def test_an_existing_archive_is_never_overwritten(tree: Path, tmp_path: Path) -> None:
    path = archives.convert(tree, tmp_path / "a.zip", SIZE, num_workers=0)
    before, stamp = path.read_bytes(), path.stat().st_mtime_ns
    archives.convert(tree, path, SIZE, num_workers=0)  # what is there is what is asked for
    with pytest.raises(InputError, match="is there already, made from something else"):
        archives.convert(tree, path, 2 * SIZE, num_workers=0)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, stamp)
    other = tmp_path / "other.zip"
    other.write_bytes(b"of the user")
    with pytest.raises(InputError, match="is there already; remove it"):
        archives.convert(tree, other, SIZE)
    assert other.read_bytes() == b"of the user"


def test_a_killed_conversion_goes_on_where_it_stopped(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = archives.convert(tree, tmp_path / "whole.zip", SIZE, num_workers=0)
    script = (
        "import time; from repro.data import archives; archives.PART = 2; cropped_png = archives.cropped_png\n"
        "def slow(*a, **k): time.sleep(0.2); return cropped_png(*a, **k)\n"
        "archives.cropped_png = slow\n"
        f"archives.convert({str(tree)!r}, {str(tmp_path / 'a.zip')!r}, {SIZE}, num_workers=0)"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    first = tmp_path / "a.zip.parts" / "00000000.zip"
    deadline = time.monotonic() + 60
    while not first.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "a.zip").exists()
    stamp = first.stat().st_mtime_ns
    monkeypatch.setattr(archives, "PART", 2)
    monkeypatch.setattr(archives.shutil, "rmtree", lambda _: None)  # keep the parts
    path = archives.convert(tree, tmp_path / "a.zip", SIZE, num_workers=0)
    assert first.stat().st_mtime_ns == stamp
    assert path.read_bytes() == expected.read_bytes()


def test_parts_of_another_source_are_refused(tree: Path, tmp_path: Path) -> None:
    parts = tmp_path / "a.zip.parts"
    parts.mkdir()
    (parts / "preparation.json").write_text(json.dumps({"made_from": "something else"}))
    with pytest.raises(InputError, match="was begun with made_from 'something else'"):
        archives.convert(tree, tmp_path / "a.zip", SIZE, num_workers=0)


def test_check_names_everything_that_is_wrong(tree: Path, tmp_path: Path) -> None:
    path = archives.convert(tree, tmp_path / "a.zip", SIZE, num_workers=0)
    found = archives.check(path)
    assert {k: found[k] for k in ("images", "shape", "dtype", "classes", "smallest_class", "largest_class")} == {
        "images": 5,
        "shape": [3, SIZE, SIZE],
        "dtype": "uint8",
        "classes": 2,
        "smallest_class": 2,
        "largest_class": 3,
    }
    contents = entries(path)
    contents["00000/img00000002.png"] = contents["00000/img00000002.png"][:60]
    other = io.BytesIO()
    Image.fromarray(pixels(0, 8, 8)).save(other, "png")
    contents["00000/img00000004.png"] = other.getvalue()
    bad = tmp_path / "bad.zip"
    with zipfile.ZipFile(bad, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    with pytest.raises(InputError, match=r"2 problems: .*img00000002.*img00000004"):
        archives.check(bad)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny VAE on the disk, with the eightfold reduction of the real one."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8, 8, 8, 8],
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=SIZE,
    )
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    return folder


def test_latents_are_the_posterior_of_the_vae(tree: Path, vae: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    images = archives.convert(tree, tmp_path / "a.zip", SIZE, num_workers=0)
    path = archives.encode(images, tmp_path / "latents.zip", StabilityVAEEncoder(str(vae), batch_size=2))
    dataset = ImageDataset(path, StabilityVAEEncoder(str(vae)))
    assert (dataset.img_resolution, dataset.img_channels, dataset.label_dim) == (SIZE // 8, 4, 2)
    np.testing.assert_array_equal(dataset.labels, ImageDataset(images).labels)
    model = AutoencoderKL.from_pretrained(vae)
    with torch.no_grad():
        raw = torch.from_numpy(np.stack([ImageDataset(images).image(i) for i in range(5)])).float() / 255
        posterior = model.encode(raw).latent_dist
    stored = torch.from_numpy(np.stack([dataset.image(i) for i in range(5)]))
    torch.testing.assert_close(stored, torch.cat([posterior.mean, posterior.std], dim=1), rtol=1e-4, atol=1e-5)
    assert archives.check(path)["shape"] == [8, SIZE // 8, SIZE // 8]


def test_a_round_trip_through_the_vae_has_the_published_scale_and_bias(vae: Path) -> None:
    from diffusers import AutoencoderKL

    encoder = StabilityVAEEncoder(str(vae))
    images = torch.from_numpy(np.stack([pixels(i, SIZE, SIZE) for i in range(3)])).permute(0, 3, 1, 2)
    stored = encoder.encode_pixels(images)
    noise = torch.randn(3, 4, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(0))
    latents = encoder.encode_latents(stored, noise)
    mean, std = stored.double().chunk(2, dim=1)
    scale = torch.tensor([0.5 / s for s in (4.17, 4.62, 3.71, 3.28)], dtype=torch.float64).reshape(1, 4, 1, 1)
    bias = -torch.tensor([5.81, 3.25, 0.12, -2.15], dtype=torch.float64).reshape(1, 4, 1, 1) * scale
    drawn = mean + std * noise
    torch.testing.assert_close(latents.double(), drawn * scale + bias, rtol=1e-5, atol=1e-6)
    model = AutoencoderKL.from_pretrained(vae)
    with torch.no_grad():
        expected = (model.decode(drawn.float()).sample.clamp(0, 1) * 255).to(torch.uint8)
    difference = encoder.decode(latents).int() - expected.int()
    assert difference.abs().max() <= 1  # truncation turns rounding into a grey level
    assert (difference != 0).float().mean() < 0.01


def test_archives_that_a_vae_cannot_take_are_refused(tree: Path, vae: Path, tmp_path: Path) -> None:
    images = archives.convert(tree, tmp_path / "a.zip", 12, num_workers=0)
    with pytest.raises(InputError, match="multiple of 8"):
        archives.encode(images, tmp_path / "latents.zip", StabilityVAEEncoder(str(vae)))
