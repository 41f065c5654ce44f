"""Shards: bits that depend on configuration and seed alone, resume, refusal of what is not ours."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from metrics.files import InputError
from repro.sampling import shards as generate
from repro.sampling.shards import Configuration, Pair
from repro.study import Sampler

CPU = torch.device("cpu")


@pytest.fixture
def configuration(golden: Path) -> Configuration:
    return Configuration(
        main=str(golden / "main.pkl"),
        guide=str(golden / "guide.pkl"),
        guidance=2.1,
        sampler=Sampler(num_steps=3, batch_size=4, shard_size=6),
    )


@pytest.fixture
def pair(configuration: Configuration) -> Pair:
    return generate.load_pair(configuration, CPU)


def test_shards_hold_the_golden_images(golden: Path, tmp_path: Path) -> None:
    configuration = Configuration(
        main=str(golden / "main.pkl"), guide=str(golden / "guide.pkl"), guidance=2.1, sampler=Sampler(batch_size=4)
    )
    pair = generate.load_pair(configuration, CPU)
    (path,) = generate.generate(pair, range(1, 5), tmp_path / "shards")
    manifest, images = generate.read_shard(path)
    expected = np.load(golden / "sampler-autoguidance.npz")
    difference = images.astype(int) - expected["images"].transpose(0, 2, 3, 1).astype(int)
    assert np.abs(difference).max() <= 1
    assert manifest["seeds"] == [1, 2, 3, 4]
    assert manifest["labels"] == expected["labels"].argmax(axis=1).tolist()


def test_bytes_do_not_depend_on_resume_point_or_on_what_else_was_asked(pair: Pair, tmp_path: Path) -> None:
    whole = generate.generate(pair, range(12), tmp_path / "whole")
    generate.generate(pair, range(6), tmp_path / "parts")
    parts = generate.generate(pair, range(12), tmp_path / "parts")
    assert [p.read_bytes() for p in whole] == [p.read_bytes() for p in parts]
    (single,) = generate.generate(pair, [7], tmp_path / "single")
    _, images = generate.read_shard(single)
    _, second = generate.read_shard(whole[1])
    np.testing.assert_array_equal(images[0], second[1])


def test_bits_do_not_depend_on_shard_size(pair: Pair, tmp_path: Path) -> None:
    other = replace(pair, configuration=replace(pair.configuration, sampler=Sampler(3, batch_size=4, shard_size=5)))
    assert other.digest == pair.digest
    a = np.concatenate([generate.read_shard(p)[1] for p in generate.generate(pair, range(10), tmp_path / "a")])
    b = np.concatenate([generate.read_shard(p)[1] for p in generate.generate(other, range(10), tmp_path / "b")])
    np.testing.assert_array_equal(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bits_on_cuda_do_not_depend_on_what_else_was_asked(configuration: Configuration) -> None:
    pair = generate.load_pair(configuration, torch.device("cuda"))
    whole = {
        s: image
        for seeds, images, _ in generate.sample_images(pair, range(12))
        for s, image in zip(seeds, images, strict=True)
    }
    assert len({image.tobytes() for image in whole.values()}) == 12
    for seeds in (range(8, 12), [3, 9], [0]):
        for members, images, _ in generate.sample_images(pair, list(seeds)):
            for seed, image in zip(members, images, strict=True):
                np.testing.assert_array_equal(image, whole[seed])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_float16_images_on_cuda_stay_close_to_float32(configuration: Configuration) -> None:
    device = torch.device("cuda")
    pair = generate.load_pair(configuration, device)
    exact = replace(pair, main=copy_in_float32(pair.main), guide=copy_in_float32(pair.guide))
    half, _ = generate.sample_batch(pair, range(4))
    full, _ = generate.sample_batch(exact, range(4))
    assert half.isfinite().all()
    assert (half - full).norm() / full.norm() < 0.02


def copy_in_float32(network: generate.Denoiser | None) -> generate.Precond:
    """The same prepared network without float16."""
    assert isinstance(network, generate.Precond)
    copied = network.share_weights().float()
    copied.use_fp16 = False
    return copied


def test_finished_shards_are_not_made_again(pair: Pair, tmp_path: Path) -> None:
    paths = generate.generate(pair, range(12), tmp_path)
    before = [p.stat().st_mtime_ns for p in paths]
    generate.generate(pair, range(12), tmp_path)
    assert [p.stat().st_mtime_ns for p in paths] == before


@pytest.mark.parametrize("damage", ["truncated", "altered", "emptied"])
def test_a_damaged_shard_is_made_again(pair: Pair, tmp_path: Path, damage: str) -> None:
    paths = generate.generate(pair, range(6), tmp_path)
    sound = paths[0].read_bytes()
    if damage == "altered":
        with zipfile.ZipFile(paths[0]) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        entries["000002.png"] = entries["000003.png"]
        with zipfile.ZipFile(paths[0], "w") as archive:
            for name, data in entries.items():
                archive.writestr(name, data)
    else:
        paths[0].write_bytes(sound[:-100] if damage == "truncated" else b"")
    generate.generate(pair, range(6), tmp_path)
    assert paths[0].read_bytes() == sound


def test_a_shard_of_another_configuration_is_refused_and_kept(pair: Pair, tmp_path: Path) -> None:
    (path,) = generate.generate(pair, range(6), tmp_path)
    before = path.read_bytes()
    other = pair.with_guidance(1.5)
    with pytest.raises(InputError, match="another configuration"):
        generate.generate(other, range(6), tmp_path)
    assert path.read_bytes() == before


def test_a_manifest_tells_how_the_images_were_made(pair: Pair, tmp_path: Path) -> None:
    (path,) = generate.generate(pair, range(6), tmp_path)
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    assert manifest["configuration"]["guidance"] == 2.1
    assert manifest["device_type"] == "cpu"
    assert len(manifest["main_sha256"]) == 64
    assert manifest["versions"]["torch"] == torch.__version__


def test_compiling_networks_is_part_of_the_configuration(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[generate.Precond] = []
    monkeypatch.setattr(generate.Precond, "compile", lambda network: compiled.append(network))
    plain = generate.load_pair(configuration, CPU)
    assert compiled == []
    sampler = replace(configuration.sampler, compile=True)
    pair = generate.load_pair(replace(configuration, sampler=sampler), CPU)
    assert compiled == [pair.main, pair.guide]
    assert pair.digest != plain.digest


def test_the_same_network_as_its_own_guide_is_refused(configuration: Configuration) -> None:
    with pytest.raises(InputError, match="same network"):
        generate.load_pair(replace(configuration, guide=configuration.main), CPU)


def test_networks_that_do_not_fit_are_refused(configuration: Configuration, golden: Path) -> None:
    with pytest.raises(InputError, match="img_channels"):
        generate.load_pair(replace(configuration, guide=str(golden / "latent-guide.pkl")), CPU)


def test_a_missing_network_is_named(configuration: Configuration) -> None:
    with pytest.raises(InputError, match="no such network file"):
        generate.load_pair(replace(configuration, main="nowhere.pkl"), CPU)


def test_an_interval_beyond_the_sampler_is_refused(configuration: Configuration) -> None:
    with pytest.raises(InputError, match="steps 0 to 2"):
        generate.load_pair(replace(configuration, interval=(1, 3)), CPU)


def test_a_foreign_model_is_welcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "foreign.py").write_text(
        "from repro.encoders import RGBEncoder\n"
        "class Model:\n"
        "    img_resolution, img_channels, label_dim, sigma_data, encoder = 8, 1, 0, 0.5, RGBEncoder()\n"
        "    def __call__(self, x, sigma, labels=None):\n"
        "        return x * 0.25 / (0.25 + sigma**2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    pair = generate.load_pair(Configuration("foreign:Model", sampler=Sampler(3, batch_size=2)), CPU)
    (path,) = generate.generate(pair, range(4), tmp_path / "out")
    assert generate.read_shard(path)[1].shape == (4, 8, 8, 1)


def test_what_is_no_denoiser_is_refused() -> None:
    with pytest.raises(InputError, match="does not return a Denoiser"):
        generate.load_pair(Configuration("collections:OrderedDict"), CPU)
    with pytest.raises(InputError, match="cannot import"):
        generate.load_pair(Configuration("no_such_module:thing"), CPU)


def test_overflow_names_the_seed(tmp_path: Path, configuration: Configuration) -> None:
    class Overflowing:
        img_resolution, img_channels, label_dim, sigma_data, encoder = 8, 1, 0, 0.5, None

        def __call__(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            return x * float("inf")

    pair = Pair(replace(configuration, guidance=1.0), Overflowing(), None, "0", None, CPU)
    with pytest.raises(InputError, match="seed 8 at step 0"):
        generate.generate(pair, [9], tmp_path)
