"""Watching a run leaves its bits alone, and shows what it promises."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metrics import detectors, statistics
from metrics.files import InputError
from repro.data import archives
from repro.strict import build
from repro.training import NetworkSettings, Pace, TrainingConfig, TrainingSettings, watching
from repro.training.config import MI
from repro.training.loop import CHECKPOINT
from repro.training.watching import Evaluation, Watch, tensorboard, train_watched

TINY = TrainingConfig(
    TrainingSettings(
        name="tiny",
        network=NetworkSettings(model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=(), dropout=0.1),
        batch_size=8,
        ref_batches=20,
        rampup_Mimg=0.00002,
        snapshot_nimg=64,
    ),
    Pace(total_nimg=64, checkpoint_nimg=64, log_nimg=16),
)
SHAPE = (8, 3)


class Mean:
    """The mean colour of an image: a detector in one line."""

    name, dim = "mean-colour", 3
    tags = {"detector": "mean-colour", "weights_sha256": "0" * 64, "resize": "none", "dtype": "float32"}  # noqa: RUF012

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=(2, 3))


detectors.register("mean-colour", lambda **_: Mean())


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for i in range(12):
        path = root / "tree" / str(i % 2) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return archives.convert(root / "tree", root / "data.zip", 8, num_workers=0)


@pytest.fixture
def reference(tmp_path: Path) -> str:
    features = np.random.default_rng(0).normal(128, 20, (64, 3)).astype(np.float32)
    path = tmp_path / "reference.npz"
    statistics.save(statistics.from_features(features, Mean.tags), path)
    return str(path)


def snapshots(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_a_watched_run_has_the_same_bits(archive: Path, reference: str, tmp_path: Path) -> None:
    train_watched(TINY, archive, "", tmp_path / "plain", SHAPE, Watch())
    watch = Watch(4, True, reference, num_images=40, every_nimg=64, detectors=("mean-colour",))
    train_watched(TINY, archive, "", tmp_path / "watched", SHAPE, watch)
    assert snapshots(tmp_path / "plain") == snapshots(tmp_path / "watched") != {}
    assert Image.open(tmp_path / "watched" / "samples-0000000.png").size == (16, 16)
    (line,) = [json.loads(text) for text in (tmp_path / "watched" / "evaluation.jsonl").read_text().splitlines()]
    assert {k: line[k] for k in ("nimg", "num_images", "detector")} == {
        "nimg": 64,
        "num_images": 40,
        "detector": "mean-colour",
    }
    assert line["value"] > 0
    assert scalars(tmp_path / "watched").keys() >= {"loss", "lr", "images_per_second", line["metric"]}
    assert not list((tmp_path / "plain").glob("events*"))


def scalars(folder: Path) -> dict[str, list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_an_evaluation_is_the_same_whenever_it_is_made(archive: Path, reference: str, tmp_path: Path) -> None:
    train_watched(TINY, archive, "", tmp_path, SHAPE, Watch())
    watch = Watch(reference=reference, num_images=40, every_nimg=64, detectors=("mean-colour",))
    network = next(tmp_path.glob("*.safetensors"))
    evaluation = Evaluation(watch, tmp_path, torch.device("cpu"), TINY)
    first = evaluation(64, network)
    assert evaluation(64, network) == first
    assert evaluation(32, network) == []
    assert len((tmp_path / "evaluation.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("every", "due"), [(64 * MI, [3072]), (2048, [2048, 3072]), (1280, [2048, 3072]), (1536, [2048, 3072])]
)
def test_evaluations_that_fall_between_snapshots_and_the_last_one_are_made(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, due: list[int]
) -> None:
    monkeypatch.setattr(watching, "samples", lambda *_: iter([torch.zeros(4, 3, 8, 8, dtype=torch.uint8)]))
    watch = Watch(reference=reference, num_images=4, every_nimg=every, detectors=("mean-colour",))
    config = TINY.changed(total_nimg=3072, snapshot_nimg=1024, checkpoint_nimg=1024)
    evaluation = Evaluation(watch, tmp_path, torch.device("cpu"), config)
    assert [nimg for nimg in (1024, 2048, 3072) if evaluation(nimg, tmp_path)] == due


def test_other_data_than_the_recipe_is_for_is_said(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_watched(TINY, archive, "", tmp_path, (64, 4), Watch())
    assert "8 x 8, 3 channels; the recipe is for 64 x 64, 4 channels" in capsys.readouterr().out


def test_tensorboard_that_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="TensorBoard is not installed"):
        tensorboard(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_images": 1}, "num_images is 1, expected a finite number of at least 2"),
        ({"every_nimg": 0}, "every_nimg is 0"),
        ({"grid": -1}, "grid is -1"),
        ({"refrence": "img64"}, "unknown key refrence; did you mean 'reference'?"),
    ],
)
def test_what_cannot_be_watched_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        build(Watch, values)


SET = (
    *("network.model_channels=16", "network.channel_mult=[1, 2]", "network.num_blocks=1", "network.dropout=0.1"),
    *("total_nimg=640", "batch_size=8", "checkpoint_nimg=1Mi"),
)
COMMAND = ("-m", "repro", "train", "--preset", "edm2-img64-xs", *(a for pair in SET for a in ("--set", pair)))


def start(archive: Path, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, *COMMAND, "--data", str(archive), "--out", str(folder)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE)


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_saves_itself_and_goes_on_to_the_same_bits(archive: Path, tmp_path: Path) -> None:
    undisturbed = start(archive, tmp_path / "a")
    assert undisturbed.wait(120) == 0
    begun = tmp_path / "b" / "config.json"
    for number in (signal.SIGTERM, signal.SIGINT):
        begun.unlink(missing_ok=True)
        process = start(archive, tmp_path / "b")
        deadline = time.monotonic() + 60
        while not begun.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 128 + number, output
        assert b"stopped at" in output
        assert (tmp_path / "b" / CHECKPOINT).exists()
        assert snapshots(tmp_path / "b") == {}
    assert start(archive, tmp_path / "b").wait(120) == 0
    assert snapshots(tmp_path / "a") == snapshots(tmp_path / "b") != {}
