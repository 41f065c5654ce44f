"""Shards: bits that depend on configuration and seed alone, resume, refusal of what is not ours."""

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from metrics.files import InputError
from metrics.precision import tf32
from repro.degradations import degrade
from repro.guidance import Guided
from repro.missing import NOTE, read_missing
from repro.networks import Precond
from repro.sampler import SeedStreams, draw_inputs, sample
from repro.sampling import batches
from repro.sampling.batches import _count_ahead, ahead, sample_batch, sample_images
from repro.sampling.pairs import Configuration, Pair, Solver, load_pair
from repro.sampling.shards import IMAGES, generate, read_shard

CPU = torch.device("cpu")


@pytest.fixture
def configuration(golden: Path) -> Configuration:
    guided = Guided(str(golden / "main.pkl"), str(golden / "guide.pkl"), 2.1)
    return Configuration(guided, Solver(num_steps=3, batch_size=4))


def named(configuration: Configuration, **changes: object) -> Configuration:
    return replace(configuration, guided=replace(configuration.guided, **changes))  # type: ignore[arg-type]


@pytest.fixture
def pair(configuration: Configuration) -> Pair:
    return load_pair(configuration, CPU)


def test_shards_hold_the_golden_images(golden: Path, tmp_path: Path) -> None:
    guided = Guided(str(golden / "main.pkl"), str(golden / "guide.pkl"), 2.1)
    configuration = Configuration(guided, Solver(batch_size=4))
    pair = load_pair(configuration, CPU)
    (path,) = generate(pair, range(1, 5), tmp_path / "shards", 6)
    manifest, images = read_shard(path)
    expected = np.load(golden / "sampler-autoguidance.npz")
    difference = images.astype(int) - expected["images"].transpose(0, 2, 3, 1).astype(int)
    assert np.abs(difference).max() <= 1
    assert manifest.seeds == [1, 2, 3, 4]
    assert manifest.labels == expected["labels"].argmax(axis=1).tolist()


def test_bytes_do_not_depend_on_resume_point_or_on_what_else_was_asked(pair: Pair, tmp_path: Path) -> None:
    whole = generate(pair, range(12), tmp_path / "whole", 6)
    generate(pair, range(6), tmp_path / "parts", 6)
    parts = generate(pair, range(12), tmp_path / "parts", 6)
    assert [p.read_bytes() for p in whole] == [p.read_bytes() for p in parts]
    (single,) = generate(pair, [7], tmp_path / "single", 6)
    _, images = read_shard(single)
    _, second = read_shard(whole[1])
    np.testing.assert_array_equal(images[0], second[1])


def test_bits_do_not_depend_on_shard_size(pair: Pair, tmp_path: Path) -> None:
    a = np.concatenate([read_shard(p)[1] for p in generate(pair, range(10), tmp_path / "a", 6)])
    b = np.concatenate([read_shard(p)[1] for p in generate(pair, range(10), tmp_path / "b", 5)])
    np.testing.assert_array_equal(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bits_on_cuda_do_not_depend_on_what_else_was_asked(configuration: Configuration) -> None:
    pair = load_pair(configuration, torch.device("cuda"))
    whole = {
        s: image for seeds, images, _ in sample_images(pair, range(12)) for s, image in zip(seeds, images, strict=True)
    }
    assert len({image.tobytes() for image in whole.values()}) == 12
    for seeds in (range(8, 12), [3, 9], [0]):
        for members, images, _ in sample_images(pair, list(seeds)):
            for seed, image in zip(members, images, strict=True):
                np.testing.assert_array_equal(image, whole[seed])


CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_float16_images_stay_close_to_float32(
    configuration: Configuration, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replace(configuration, solver=Solver(batch_size=2))
    exact = load_pair(whole, CPU)
    monkeypatch.setattr(Precond, "precision", torch.float16)  # what the networks of a GPU have by themselves
    half = load_pair(whole, torch.device(device))
    noise, labels = draw_inputs(exact.main, range(2))
    full, found = (
        sample(pair.main, *(t.to(pair.device) for t in (noise, labels)), guide=pair.guide, guidance=2.1).cpu()
        for pair in (exact, half)
    )
    assert 1e-5 * full.norm() < (found - full).norm() < 2e-3 * full.norm()
    levels = [exact.main.encoder.decode(latents).float() for latents in (full, found)]
    assert (levels[0] - levels[1]).abs().max() <= 2
    assert (levels[0] - levels[1]).abs().mean() <= 0.1


def test_networks_in_float32_are_sampled_without_tf32_on_cuda_and_those_in_float16_do_not_wait_for_the_vae(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spied(*_: object, **__: object) -> torch.Tensor:
        seen.append(torch.backends.cudnn.allow_tf32)
        return torch.zeros(4, 3, 16, 16)

    def inputs(network: Precond, streams: SeedStreams, device: torch.device) -> tuple[torch.Tensor, None]:
        return torch.zeros(4, 3, 16, 16), None

    monkeypatch.setattr(batches, "sample", spied)
    monkeypatch.setattr(batches, "draw_inputs", inputs)
    monkeypatch.setattr(batches, "SeedStreams", lambda device, seeds: SeedStreams("cpu", seeds))
    assert isinstance(pair.main, Precond)
    assert pair.guide is not None
    degraded = replace(pair, guide=degrade(pair.guide, {"dropout": 0.1}), device=torch.device("cuda"))
    with tf32(True):
        sample_batch(degraded, range(4))
    pair.main.use_fp16 = False
    torch.backends.cudnn.allow_tf32 = True
    sample_batch(degraded, range(4))
    assert seen == [True, False]
    assert torch.backends.cudnn.allow_tf32


def test_finished_shards_are_not_made_again(pair: Pair, tmp_path: Path) -> None:
    paths = generate(pair, range(12), tmp_path, 6)
    before = [p.stat().st_mtime_ns for p in paths]
    generate(pair, range(12), tmp_path, 6)
    assert [p.stat().st_mtime_ns for p in paths] == before


@pytest.mark.parametrize("damage", ["truncated", "altered", "emptied"])
def test_a_damaged_shard_is_made_again(pair: Pair, tmp_path: Path, damage: str) -> None:
    paths = generate(pair, range(6), tmp_path, 6)
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
    generate(pair, range(6), tmp_path, 6)
    assert paths[0].read_bytes() == sound


def test_a_shard_of_another_configuration_is_refused_and_kept(pair: Pair, tmp_path: Path) -> None:
    (path,) = generate(pair, range(6), tmp_path, 6)
    before = path.read_bytes()
    other = pair.at(1.5)
    with pytest.raises(InputError, match="another configuration"):
        generate(other, range(6), tmp_path, 6)
    assert path.read_bytes() == before


@pytest.mark.parametrize("manifest", [b"[" * 200_000, bytes(300 * 2**20)], ids=["nested", "swelling"])
def test_a_hostile_manifest_is_that_of_a_torn_shard(tmp_path: Path, manifest: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", manifest)
    assert IMAGES.manifest(tmp_path / "x.zip") is None
    with pytest.raises(InputError, match="not a sound shard"):
        read_shard(tmp_path / "x.zip")


def test_a_note_without_end_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"[" * 200_000)
    assert read_missing(tmp_path / "x.safetensors") == {}
    (tmp_path / NOTE).write_bytes(b"[" * 200_000)
    with pytest.raises(InputError, match="not a note of what is missing"):
        read_missing(tmp_path / NOTE)


def test_a_manifest_tells_how_the_images_were_made(pair: Pair, tmp_path: Path) -> None:
    (path,) = generate(pair, range(6), tmp_path, 6)
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    assert manifest["configuration"]["guided"]["guidance"] == 2.1
    assert manifest["device_type"] == "cpu"
    assert len(manifest["main_sha256"]) == 64
    assert manifest["versions"]["torch"] == torch.__version__


def test_compiling_networks_is_part_of_the_configuration(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Precond] = []
    monkeypatch.setattr(Precond, "compile", lambda network: compiled.append(network))
    plain = load_pair(configuration, CPU)
    assert compiled == []
    pair = load_pair(replace(configuration, solver=replace(configuration.solver, compile=True)), CPU)
    assert compiled == [pair.main, pair.guide]
    assert pair.digest != plain.digest


def test_the_same_network_as_its_own_guide_is_refused(configuration: Configuration, tmp_path: Path) -> None:
    twin = shutil.copy(configuration.guided.main, tmp_path / "twin.pkl")
    with pytest.raises(InputError, match="same network"):
        load_pair(named(configuration, guide=twin), CPU)


def test_networks_that_do_not_fit_are_refused(configuration: Configuration, golden: Path) -> None:
    with pytest.raises(InputError, match="img_channels"):
        load_pair(named(configuration, guide=str(golden / "latent-guide.pkl")), CPU)


def test_a_missing_network_is_named(configuration: Configuration) -> None:
    with pytest.raises(InputError, match="no such network file"):
        load_pair(named(configuration, main="nowhere.pkl"), CPU)


def test_an_interval_beyond_the_sampler_is_refused(configuration: Configuration) -> None:
    with pytest.raises(InputError, match="steps 0 to 2"):
        named(configuration, interval=(1, 3))


class Overflowing:
    img_resolution, img_channels, label_dim, sigma_data, encoder = 8, 1, 0, 0.5, None

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return x * float("inf")


def test_overflow_names_the_seed(tmp_path: Path, configuration: Configuration) -> None:
    pair = Pair(named(configuration, guidance=1.0), Overflowing(), None, "0", None, CPU)
    with pytest.raises(InputError, match="seed 8 at step 0"):
        generate(pair, [9], tmp_path)


def test_a_batch_too_large_for_the_gpu_is_said(tmp_path: Path, configuration: Configuration) -> None:
    class TooLarge(Overflowing):
        def __call__(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            raise torch.OutOfMemoryError

    pair = Pair(named(configuration, guidance=1.0), TooLarge(), None, "0", None, CPU)
    with pytest.raises(InputError, match="4 images at once do not fit the GPU's memory; lower batch_size"):
        generate(pair, [9], tmp_path)


def test_a_batch_per_thread_changes_no_bit_and_no_number_of_threads(pair: Pair) -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append([*sample_images(pair, range(1, 18))])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for (seeds, images, classes), (others, same, too) in zip(*found, strict=True):
        assert (seeds, classes) == (others, too)
        np.testing.assert_array_equal(images, same)


def test_large_networks_and_unknown_ones_have_all_threads_for_a_batch(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert _count_ahead(pair, 20) == 8
    assert _count_ahead(pair, 3) == 3
    assert _count_ahead(pair, 1) == 0
    assert _count_ahead(replace(pair, main=Overflowing()), 20) == 0
    layer = 4 * pair.main.img_resolution**2 * pair.main.init_kwargs["model_channels"]  # type: ignore[attr-defined]
    monkeypatch.setattr(batches, "MAX_LAYER", 5 * layer)
    assert _count_ahead(pair, 20) == 5
    monkeypatch.setattr(batches, "MAX_LAYER", layer)
    assert _count_ahead(pair, 20) == 0


def test_batches_ahead_come_in_order() -> None:
    for count in (0, 1, 3):
        items = [range(i) for i in range(5)]
        assert list(ahead(len, items, count)) == [0, 1, 2, 3, 4]


def test_what_anybody_has_made_is_borrowed(pair: Pair, tmp_path: Path) -> None:
    (path,) = generate(pair, range(6), tmp_path / "a", 6)

    def borrow(target: Path, is_same: Callable[[Path], bool]) -> bool:
        assert is_same(path)
        shutil.copy(path, target)
        return True

    (other,) = generate(replace(pair, main=Overflowing()), range(6), tmp_path / "b", 6, borrow=borrow)
    assert other.read_bytes() == path.read_bytes()


def test_a_shard_of_version_0_1_is_refused_and_kept(pair: Pair, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "000000-000005.zip", "w") as archive:
        archive.writestr("manifest.json", json.dumps({"digest": "0" * 64, "configuration": {"main": "a"}, "seeds": []}))
    before = (tmp_path / "000000-000005.zip").read_bytes()
    with pytest.raises(InputError, match=r"its manifest is of another version .* move it away"):
        generate(pair, range(6), tmp_path, 6)
    assert (tmp_path / "000000-000005.zip").read_bytes() == before
