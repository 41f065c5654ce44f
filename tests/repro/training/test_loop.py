"""The training loop: exact resumption, independence of processes, and what a run leaves behind."""

import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metrics.files import InputError
from repro import ema, snapshots
from repro.data.digits import Digits
from repro.strict import facts
from repro.training import TrainingConfig, loop
from repro.training.loop import CHECKPOINT, LOG, train

ROOT = Path(__file__).parents[3]
DIGITS = Digits()


@pytest.fixture(scope="module")
def straight(tiny: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    return train(tiny, DIGITS, tmp_path_factory.mktemp("straight"))


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Everything a finished run leaves behind, by name."""
    state = torch.load(folder / CHECKPOINT, weights_only=True)
    weights = {f"network/{k}": v for k, v in state["network"].items()}
    for std, average in state["ema"].items():
        weights |= {f"{std}/{k}": v for k, v in average.items()}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= {f"{path.name}/{k}": v for k, v in snapshots.load(path).network.state_dict().items()}
    return weights


def assert_same_bits(a: Path, b: Path) -> None:
    first, second = final_weights(a), final_weights(b)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(
    tiny: TrainingConfig, straight: Path, tmp_path: Path
) -> None:
    train(tiny.changed(total_nimg=40), DIGITS, tmp_path)
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["nimg"] == 40
    train(tiny, DIGITS, tmp_path)
    assert_same_bits(straight, tmp_path)
    names = {path.name for path in tmp_path.glob("*.safetensors")}
    assert names == {f"tiny-0000000-{std}.safetensors" for std in ("0.050", "0.100")}
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [line["nimg"] for line in lines] == [32, 40, 64, 96]


def test_files_that_are_links_to_dvcs_cache_stay_as_they_are(
    tiny: TrainingConfig, straight: Path, tmp_path: Path
) -> None:
    """Logs above all: nothing is written into a file that has another name."""
    run, cache = train(tiny.changed(total_nimg=40), DIGITS, tmp_path / "run"), tmp_path / "cache"
    cache.mkdir()
    for path in run.iterdir():
        os.link(path, cache / path.name)
        path.chmod(0o444)
    kept = {path.name: path.read_bytes() for path in cache.iterdir()}
    assert LOG in kept
    train(tiny, DIGITS, run)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == kept
    assert (run / LOG).read_text().count("\n") == 4
    assert_same_bits(straight, run)


def test_a_checkpoint_of_version_0_1_is_continued(tiny: TrainingConfig, straight: Path, tmp_path: Path) -> None:
    train(tiny.changed(total_nimg=40), DIGITS, tmp_path)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    state["identity"]["network"] = facts(tiny.settings.network)  # it kept what was given only
    torch.save(state, tmp_path / CHECKPOINT)
    train(tiny, DIGITS, tmp_path)
    assert_same_bits(straight, tmp_path)


def test_what_may_differ_on_going_on_does(tiny: TrainingConfig, straight: Path, tmp_path: Path) -> None:
    train(tiny.changed(total_nimg=48, log_nimg=8, checkpoint_nimg=24), DIGITS, tmp_path)
    train(tiny, DIGITS, tmp_path)
    assert_same_bits(straight, tmp_path)


KILLED = """
import os, sys
from tests_config import config
from repro.data.digits import Digits
from repro.training.loop import train
class Digits(Digits):
    def batch(self, seed, positions):
        if positions[0] >= 64:
            os.kill(os.getpid(), 9)
        return super().batch(seed, positions)
train(config, Digits(), sys.argv[1])
"""


def run_script(text: str, config: TrainingConfig, folder: Path, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a script on a folder; it can import `config` from `tests_config`, alone or under torchrun."""
    tmp_path = folder.parent
    (tmp_path / "tests_config.py").write_text(
        "from repro.strict import build\nfrom repro.training import TrainingConfig\n"
        f"config = build(TrainingConfig, {config.values()!r})\n"
    )
    (tmp_path / "script.py").write_text(text)
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [*launcher, str(tmp_path / "script.py"), str(folder)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(tiny: TrainingConfig, straight: Path, tmp_path: Path) -> None:
    killed = run_script(KILLED, tiny, tmp_path / "cut")
    assert killed.returncode == -9, killed.stderr
    assert 16 <= torch.load(tmp_path / "cut" / CHECKPOINT, weights_only=True)["nimg"] <= 64
    train(tiny, DIGITS, tmp_path / "cut")
    assert_same_bits(straight, tmp_path / "cut")


DISTRIBUTED = """
import sys
from tests_config import config
from metrics import distributed
from repro.data.digits import Digits
from repro.training.loop import train
distributed.init()
train(config, Digits(), sys.argv[1], device="cpu")
"""


ONE_KILLED = DISTRIBUTED.replace(
    "distributed.init()",
    """
import os
class Digits(Digits):
    def batch(self, seed, positions):
        if positions[0] >= 64 and distributed.rank() == 1:
            os.kill(os.getpid(), 9)
        return super().batch(seed, positions)
distributed.init()
""",
)


@pytest.mark.slow
def test_a_killed_rank_ends_the_training_of_all_and_is_named(tiny: TrainingConfig, tmp_path: Path) -> None:
    ended = run_script(ONE_KILLED, tiny, tmp_path / "two", processes=2)
    assert ended.returncode != 0
    assert re.search(r"rank +: 1 .*\n.*exitcode +: -9", ended.stderr), ended.stderr[-3000:]


def relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over all weights, relative to their norm."""
    names = [name for name, tensor in a.items() if tensor.is_floating_point()]
    difference = sum(float((a[name].double() - b[name].double()).square().sum()) for name in names)
    return math.sqrt(difference / sum(float(a[name].double().square().sum()) for name in names))


@pytest.mark.slow
def test_two_processes_and_accumulation_agree_with_one_process(tiny: TrainingConfig, tmp_path: Path) -> None:
    config = tiny.changed(network={"dropout": 0.0}, total_nimg=160, snapshot_nimg=160, checkpoint_nimg=160)
    finished = run_script(DISTRIBUTED, config, tmp_path / "two", processes=2)
    assert finished.returncode == 0, finished.stderr[:3000]
    assert "Warning" not in finished.stderr, finished.stderr[:3000]
    train(config, DIGITS, tmp_path / "one")
    train(config.changed(device_batch_size=3), DIGITS, tmp_path / "pieces")
    one = final_weights(tmp_path / "one")
    assert relative_difference(one, final_weights(tmp_path / "two")) < 1e-4
    assert relative_difference(one, final_weights(tmp_path / "pieces")) < 1e-4


def test_a_batch_too_large_for_the_gpu_is_said(
    tiny: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("repro.training.trainer.EDM2Loss.__call__", run_out)
    with pytest.raises(InputError, match=r"8 images at once do not fit .*; set device_batch_size to less than 8"):
        train(tiny, DIGITS, tmp_path)


def test_another_run_in_the_folder_is_refused(
    tiny: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.changed(total_nimg=16, snapshot_nimg=16)
    train(config, DIGITS, tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()
    for key, there, here in (("seed", 0, 1), ("network.dropout", 0.1, 0.2), ("conditional", True, False)):
        holder, _, name = key.rpartition(".")
        other = config.changed(**({holder: {name: here}} if holder else {name: here}))
        with pytest.raises(InputError, match=rf"a run with {key} = {there}, this one has {here}; train in another"):
            train(other, DIGITS, tmp_path)
    with pytest.raises(InputError, match=r"a run with data = 'digits .*, this one has 'digits "):
        train(config, Digits(shift=0.1), tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr(loop, "numerics", lambda _: {"numerics": 2})
        with pytest.raises(InputError, match="a run with numerics = None, this one has 2; train in another"):
            train(config, DIGITS, tmp_path)
    (tmp_path / CHECKPOINT).write_bytes(before[:1000])
    with pytest.raises(InputError, match="not a readable checkpoint"):
        train(config, DIGITS, tmp_path)
    state = torch.load(io.BytesIO(before), weights_only=True)
    torch.save(state | {"network": {}}, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="not a sound checkpoint"):
        train(config, DIGITS, tmp_path)


def test_a_run_cut_short_is_refused_and_what_is_missing_at_its_end_is_written(
    tiny: TrainingConfig, tmp_path: Path
) -> None:
    config = tiny.changed(total_nimg=24, snapshot_nimg=24, checkpoint_nimg=8)
    train(config, DIGITS, tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    told = (tmp_path / "config.json").read_bytes()
    with pytest.raises(InputError, match=r"of 24 images, expected at most total_nimg, 16; train in another"):
        train(config.changed(total_nimg=16), DIGITS, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == told
    for name in written:
        (tmp_path / name).unlink()
    train(config, DIGITS, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")} == written
    (tmp_path / LOG).write_text("[]\n")
    with pytest.raises(InputError, match=rf"{LOG}: not a sound log"):
        train(config, DIGITS, tmp_path)


def test_a_finished_run_is_left_as_it_is(tiny: TrainingConfig, straight: Path) -> None:
    stamps = {path.name: path.stat().st_mtime_ns for path in straight.glob("*.*t*")}
    assert CHECKPOINT in stamps
    train(tiny, DIGITS, straight)
    assert stamps == {path.name: path.stat().st_mtime_ns for path in straight.glob("*.*t*")}


def test_training_leaves_the_switches_of_the_process_alone(tiny: TrainingConfig, tmp_path: Path) -> None:
    def switches() -> tuple[bool, bool, str]:
        cudnn = torch.backends.cudnn
        return cudnn.benchmark, cudnn.allow_tf32, torch.get_float32_matmul_precision()

    before = switches()
    train(tiny.changed(total_nimg=8), DIGITS, tmp_path)
    assert switches() == before


@pytest.mark.slow
def test_snapshots_carry_their_time_and_length(tiny: TrainingConfig, tmp_path: Path) -> None:
    calls = []
    config = tiny.changed(total_nimg=1040, batch_size=80, snapshot_nimg=1040, checkpoint_nimg=1040, log_nimg=1040)
    config = config.changed(total_nimg=2080)
    train(config, DIGITS, tmp_path, on_snapshot=lambda nimg, files: calls.append((nimg, files)))
    assert [nimg for nimg, _ in calls] == [1040, 2080]
    for nimg, files in calls:
        for std, path in files.items():
            assert path.name == f"tiny-{nimg // 1000:07d}-{std:.3f}.safetensors"
            assert ema.snapshot_time(path) == (nimg, std)
            assert snapshots.load(path).network.label_dim == 10


def test_bfloat16_trains_to_about_the_same_loss(tiny: TrainingConfig, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        config = tiny.changed(precision=precision, log_nimg=96)
        train(config, DIGITS, tmp_path / precision)
        losses[precision] = json.loads((tmp_path / precision / LOG).read_text().splitlines()[-1])["loss"]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)


def test_an_unconditional_run_has_no_labels(tiny: TrainingConfig, tmp_path: Path) -> None:
    config = tiny.changed(conditional=False, total_nimg=16, snapshot_nimg=16)
    train(config, DIGITS, tmp_path)
    assert snapshots.load(tmp_path / "tiny-0000000-0.100.safetensors").network.label_dim == 0
