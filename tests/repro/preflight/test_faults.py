"""Every check fails on a fault that is made for it, with the remedy, and passes without."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metrics.files import InputError
from repro.preflight import addresses, exactness, host, processes, speeds, standins
from repro.preflight.checks import Check, Setting, _answered, run
from repro.study.rates import Finding, Measured
from tests.repro.preflight.conftest import small_study

GOLDEN = Path(__file__).resolve().parents[2] / "data" / "golden"


def findings(check: Check, setting: Setting, seconds: float = 60.0) -> dict[str, Finding]:
    setting.deadline = time.monotonic() + seconds
    return {found.about: found for found in check(setting) if isinstance(found, Finding)}


def test_the_oracles_that_come_along_are_the_tests_own() -> None:
    names = sorted(path.name for path in exactness.GOLDEN.iterdir())
    assert names == ["dinov2-tiny.npz", "dinov2-tiny.pth", "guide.pkl", "main.pkl", "sampler-autoguidance.npz"]
    assert all((exactness.GOLDEN / name).read_bytes() == (GOLDEN / name).read_bytes() for name in names)


@pytest.fixture
def oracles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies that may be damaged."""
    folder = tmp_path / "golden"
    shutil.copytree(exactness.GOLDEN, folder)
    monkeypatch.setattr(exactness, "GOLDEN", folder)
    return folder


def test_a_wrong_golden_file(setting: Setting, oracles: Path) -> None:
    assert {f.status for f in findings(exactness.check_golden, setting).values()} == {"pass"}
    for name, key in (("sampler-autoguidance.npz", "latents"), ("dinov2-tiny.npz", "features_torch0")):
        arrays = dict(np.load(oracles / name))
        arrays[key] = arrays[key] * 1.01
        np.savez(oracles / name, **arrays)
    found = findings(exactness.check_golden, setting)
    assert [(about, f.status) for about, f in found.items()] == [("sample on cpu", "fail"), ("features on cpu", "fail")]
    assert all("relative difference 9.9e-03" in f.text for f in found.values())
    assert "no result of this device can be trusted" in found["features on cpu"].text
    (oracles / "main.pkl").unlink()
    missing = findings(exactness.check_golden, setting)["sample on cpu"]
    assert (missing.status, "main.pkl: no such network file; install the package" in missing.text) == ("fail", True)


def test_tf32_would_be_seen_in_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights and images rounded to TF32's ten bits, they are off by more than the limit."""

    def rounded(state: dict[str, torch.Tensor], **options: Any) -> Any:
        cut = {key: (x.view(torch.int32) & ~0x1FFF).view(torch.float32) for key, x in state.items()}
        return made(cut, **options)

    made = exactness.DINOv2
    monkeypatch.setattr(exactness, "DINOv2", rounded)
    assert exactness.golden_features(torch.device("cpu")) > exactness.FEATURES


def test_float16_that_is_off(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exactness, "SIZES", ("xxs", "xs"))
    monkeypatch.setattr(exactness, "float16_error", lambda size, device: {"xxs": 1e-3, "xs": 2e-2}[size])
    found = findings(exactness.check_float16, setting)
    assert {about: f.status for about, f in found.items()} == {"EDM2-XXS": "pass", "EDM2-XS": "fail"}
    assert "2.0e-02 (limit 5e-03); sampling in float16 cannot be trusted here" in found["EDM2-XS"].text
    monkeypatch.setattr(exactness, "free_bytes", lambda device: 2.5e9)
    found = findings(exactness.check_float16, setting)
    assert {about: f.status for about, f in found.items()} == {"EDM2-XXS": "pass", "EDM2-XS": "skip"}
    assert found["EDM2-XS"].text == "needs 3 GB of memory, 2 are free"


@pytest.mark.slow
def test_float16_of_a_published_shape_is_within_the_limit() -> None:
    assert 1e-5 < exactness.float16_error("xxs", torch.device("cpu")) < exactness.FLOAT16


def test_a_full_disk(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "WRITTEN", 2**23)
    found = findings(host.check_disk, setting)
    assert [f.status for f in found.values()] == ["pass"] * 3
    usage = shutil.disk_usage(setting.study.out)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    space = findings(host.check_disk, setting)["space"]
    assert space.status == "fail"
    assert "0.0 are free or hold what is made already; make room, put out on a larger disk, or set" in space.text
    (setting.study.out / "samples").mkdir()
    (setting.study.out / "samples" / "large").write_bytes(bytes(10**7))  # what is made need not fit again
    assert findings(host.check_disk, setting)["space"].status == "pass"
    assert not list(setting.study.out.glob(".speed*"))


def test_a_disk_that_is_full_while_it_is_written(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="no space left on the disk; free some"):
        findings(host.check_disk, setting)


def test_a_slow_disk(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "SPEED_SECONDS", 0.3)
    synchronise = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (time.sleep(0.3), synchronise(file)))
    found = findings(host.check_disk, setting)
    assert (found["writing"].status, found["reading"].status) == ("fail", "pass")
    assert "MB a second; expected 30 or more: put out on a local disk" in found["writing"].text


def test_a_gpu_that_cannot_be_used(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(host, "NODES", tmp_path)
    assert findings(host.check_devices, setting)["GPU"].status == "skip"
    (tmp_path / "nvidia0").touch()
    found = findings(host.check_devices, setting)["GPU"]
    assert found.status == "fail"
    assert "install a torch build with CUDA" in found.text
    monkeypatch.setattr(host, "free_bytes", lambda device: 10.0)
    assert findings(host.check_devices, setting)["memory"].status == "fail"


DYING = """
import os
from metrics import distributed
from repro.preflight import processes

distributed.init()
if distributed.rank() == 1:
    os._exit(9)
processes.train_together()
"""
PARTED = """
import torch
from metrics import distributed
from repro.preflight import processes

distributed.init()
after = distributed.all_reduce_sum
distributed.all_reduce_sum = lambda array: after(array * (1 + 1e-6 * distributed.rank()))
processes.train_together()
"""
HANGING = "import time\ntime.sleep(600)\n"


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module in the place of the real processes'."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(GOLDEN.parents[2]), str(tmp_path)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(processes, "WORKER", "faulty_worker")
    return tmp_path / "faulty_worker.py"


def test_a_dead_process(setting: Setting, worker: Path) -> None:
    worker.write_text(DYING)
    (found,) = findings(processes.check_processes, setting).values()
    assert found.status == "fail"
    assert "ended with 1: failed (exitcode: 9) local_rank: 1" in found.text
    assert "NCCL_DEBUG=INFO" in found.text


@pytest.mark.slow
def test_processes_that_disagree(setting: Setting, worker: Path) -> None:
    worker.write_text(PARTED)
    (found,) = findings(processes.check_processes, setting).values()
    assert found.status == "fail"
    assert "AssertionError: weights differ between processes" in found.text


def test_processes_that_hang(setting: Setting, worker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 5.0)
    worker.write_text(HANGING)
    began = time.monotonic()
    (found,) = findings(processes.check_processes, setting).values()
    assert time.monotonic() - began < 40
    assert (found.status, "did not end within 5 s" in found.text) == ("fail", True)


@pytest.mark.slow
def test_two_processes_that_are_well(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(GOLDEN.parents[2]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (found,) = findings(processes.check_processes, setting).values()
    assert (found.status, found.text) == ("pass", "2 processes agree on the weights after 3 steps")


def fetching(**networks: Any) -> Any:
    """The small study with published networks, from the folder `site`."""
    return small_study(networks=networks, sources=[(Path("site").absolute()).as_uri()])


def test_a_missing_file(setting: Setting) -> None:
    Path("site").mkdir()
    Path("site/raw-snapshots/x").mkdir(parents=True)
    shutil.copy(GOLDEN / "main.pkl", "site/ready.pkl")
    setting.study = fetching(
        ready={"fetch": ["ready.pkl", "absent.pkl"]},
        raw={"raw": {"run": "x", "until_Mi": 32}},
        unproven={"raw": {"run": "y", "until_Mi": 32}, "optional": True},
    )
    found = findings(addresses.check_addresses, setting)
    assert found["ready-made network ready.pkl"].status == "pass"
    raw = found["raw snapshot x-0033554-0.050.pkl"]
    assert raw.status == "fail"
    assert "No such file" in raw.text
    assert "`repro doctor` says which hosts can be reached" in raw.text
    unproven = found["raw snapshot of unproven, y-0033554-0.050.pkl"]
    assert unproven.status == "skip"
    assert unproven.text.endswith("what needs it will be called not possible, and the rest goes on")
    assert (setting.study.out / "networks/ready/ready.safetensors").exists()  # where the study wants it
    Path("site/ready.pkl").unlink()
    again = findings(addresses.check_addresses, setting)["ready-made network ready.pkl"]
    assert again.text == "is here already, and sound"


def test_a_file_that_is_something_else(setting: Setting) -> None:
    Path("site").mkdir()
    Path("site/ready.pkl").write_text("<html><body>Log in to the network</body></html>")
    setting.study = fetching(ready={"fetch": ["ready.pkl"]})
    found = findings(addresses.check_addresses, setting)["ready-made network ready.pkl"]
    assert (found.status, "sent a web page instead of the file" in found.text) == ("fail", True)


def test_offline_asks_nothing(setting: Setting) -> None:
    setting.study = fetching(ready={"fetch": ["ready.pkl"]})
    setting.offline = True
    assert findings(addresses.check_addresses, setting)["all"].status == "skip"


def test_a_network_that_is_broken_fails_where_it_is_measured(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate is not kept of a sampler that gives no numbers."""

    def nan(arguments: dict[str, Any], seed: int, device: torch.device) -> Any:
        network = made(arguments, seed, device)
        network.unet.out_gain.data.fill_(torch.nan)
        return network

    made = speeds.random_network
    monkeypatch.setattr(speeds, "random_network", nan)
    setting.deadline = time.monotonic() + 60
    said: list[str] = []
    record, healthy = run({"sampling": speeds.SPEEDS["sampling"]}, setting, said.append)
    assert not healthy
    assert "non-finite latents: seed 0 at step 0" in said[-1]
    assert record.rates == []


def full(_: int) -> None:
    raise OSError(28, "No space left on device")


def memory(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")


def noise(_: object, images: np.ndarray) -> list[bytes]:
    return [b"\x89PNG and no more"] * len(images)


@pytest.mark.parametrize(
    ("part", "place", "fault", "said"),
    [
        ("training", "repro.preflight.speeds.Trainer.step", memory, "a smaller sampler.batch_size, or a larger GPU"),
        ("png", "os.fsync", full, "no space left on the disk; free some"),
        ("decoding", "repro.sampling.shards.ImageShards.encode", noise, "is no PNG"),
        ("features", "repro.data.digits.Classifier.forward", lambda *_: torch.full([1, 64], torch.nan), "NaN"),
    ],
)
def test_a_part_of_the_work_that_cannot_be_done(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, part: str, place: str, fault: Any, said: str
) -> None:
    check = speeds.SPEEDS[part]
    monkeypatch.setattr("repro.preflight.speeds.MEASURED_FOR", 0.05)
    lines: list[str] = []
    with monkeypatch.context() as faulty:
        faulty.setattr(place, fault)
        setting.deadline = time.monotonic() + 60
        answered = list(_answered(part, check, setting))
    assert [f.status for f in answered if isinstance(f, Finding)] == ["fail"]
    assert said in str(answered[-1])
    assert run({part: check}, setting, lines.append)[1], lines


def test_a_vae_is_measured_and_needs_diffusers(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    small = standins.VAE | {"block_out_channels": (4,) * 4, "norm_num_groups": 2, "layers_per_block": 1}
    monkeypatch.setattr(standins, "VAE", small)
    monkeypatch.setattr(speeds, "MEASURED_FOR", 0.05)
    rate, note = speeds.vae_rate(setting, (64, 3), 10.0)
    assert (rate > 0, note) == (True, "sixteenths of images")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r"the VAE needs diffusers.*pip install 'autoguidance-repro\[vae\]'"):
        speeds.vae_rate(setting, (64, 3), 10.0)


def test_weights_that_are_damaged(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "pt_inception-2015-12-05-6726825d.pth").write_bytes(b"a broken download")
    monkeypatch.setenv("REPRO_WEIGHTS", str(weights))
    setting.study = small_study(evaluate={"detectors": ["inception"], "metrics": ["fd"]}, claims=[])
    setting.deadline = time.monotonic() + 60
    (found,) = _answered("features", speeds.SPEEDS["features"], setting)
    assert isinstance(found, Finding)
    assert (found.status, "sha256 is" in found.text) == ("fail", True)
    assert findings(addresses.check_addresses, setting)["weights of inception"].status == "fail"
    assert len([*weights.iterdir()]) == 1  # which may be a folder that nobody can write to
    assert not Path(f"{weights}.lock").exists()


def test_weights_that_are_missing_are_said(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "locate", lambda name: None)
    setting.study = small_study(evaluate={"detectors": ["inception"], "metrics": ["fd"]}, claims=[])
    found = findings(speeds.SPEEDS["features"], setting)["inception, 16 x 16 x 1"]
    assert (found.status, found.text) == ("skip", "its weights are not here; `repro fetch` brings them")


def test_measured_rates_come_with_their_finding(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "MEASURED_FOR", 0.05)
    setting.deadline = time.monotonic() + 60
    rate, finding = speeds.SPEEDS["png"](setting)
    assert isinstance(rate, Measured)
    assert isinstance(finding, Finding)
    assert f"{rate.per_second:,.4g} images written a second" in finding.text
    assert list(setting.study.out.iterdir()) == []  # in which the shard was written
