"""Loss, schedule, optimiser steps and the training loop: golden steps, exact resumption, independence of processes."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from metrics.files import InputError
from repro import ema, snapshots
from repro.data import mix
from repro.data.digits import Digits
from repro.networks import Precond
from repro.training import (
    CHECKPOINT,
    LOG,
    Batch,
    EDM2Loss,
    Trainer,
    TrainingConfig,
    draw,
    learning_rate,
    train,
)

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden"

TINY = TrainingConfig(
    name="tiny",
    network=dict(
        model_channels=8, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[8], channels_per_head=8, dropout=0.1
    ),
    total_nimg=96,
    batch_size=8,
    ref_lr=0.01,
    ref_batches=4,
    rampup_Mimg=16e-6,
    snapshot_nimg=96,
    checkpoint_nimg=16,
    log_nimg=32,
)


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


@pytest.fixture(scope="module")
def oracle() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "training.npz"))


def test_twelve_steps_match_the_golden_run(oracle):
    facts = json.loads((GOLDEN / "manifest.json").read_text())["training"]
    network = Precond(**facts["kw"])
    network.load_state_dict({k[5:]: torch.from_numpy(v) for k, v in oracle.items() if k.startswith("init/")})
    schedule = {k: facts[k] for k in ("ref_lr", "ref_batches", "rampup_Mimg", "P_mean", "P_std")}
    batch = facts["batch"]
    config = TrainingConfig(
        name="golden",
        network={},
        total_nimg=facts["steps"] * batch,
        batch_size=batch,
        ema_stds=tuple(facts["ema_stds"]),
        snapshot_nimg=facts["steps"] * batch,
        checkpoint_nimg=batch,
        log_nimg=batch,
        **schedule,
    )
    trainer = Trainer(network, config)
    for step in range(facts["steps"]):
        data = [torch.from_numpy(oracle[k][step]) for k in ("images", "labels", "sigma", "noise")]
        per_pixel = trainer.loss(network, *data)
        np.testing.assert_allclose(per_pixel.detach().numpy(), oracle["loss"][step], rtol=2e-4, atol=2e-4)
        lr = learning_rate(trainer.cur_nimg, batch, facts["ref_lr"], facts["ref_batches"], facts["rampup_Mimg"])
        assert lr == pytest.approx(oracle["lr"][step], rel=1e-12, abs=0)
        loss = trainer.step([Batch(*data)])
        assert loss.item() == pytest.approx(oracle["loss"][step].sum(dtype=np.float64), rel=1e-5)
    states = {"final": network.state_dict()}
    states |= {f"ema{std:.3f}": net.state_dict() for std, net in trainer.ema.networks().items()}
    for prefix, state in states.items():
        expected = {k.split("/", 1)[1]: v for k, v in oracle.items() if k.startswith(prefix + "/")}
        assert expected.keys() == state.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(state[name].numpy(), value, rtol=1e-4, atol=1e-4, err_msg=f"{prefix}/{name}")


def test_loss_without_noise_given_draws_sigma_then_noise():
    network = Precond(16, 1, 0, model_channels=8, channel_mult=[1], num_blocks=1, channels_per_head=8)
    images, loss = torch.rand(4, 1, 16, 16), EDM2Loss(-0.8, 1.6, 0.5)
    torch.manual_seed(7)
    drawn = loss(network, images)
    torch.manual_seed(7)
    sigma = (torch.randn(4, 1, 1, 1) * 1.6 - 0.8).exp()
    assert torch.equal(drawn, loss(network, images, None, sigma, torch.randn_like(images)))


def test_loss_of_a_perfect_denoiser_is_the_log_variance_and_its_optimum_is_one():
    def off_by(error: float, logvar: float):
        return lambda x, sigma, labels, return_logvar: (images + error, torch.full([2, 1, 1, 1], logvar))

    images, sigma = torch.zeros(2, 3, 4, 4), torch.full([2, 1, 1, 1], 2.0)
    loss = EDM2Loss(sigma_data=0.5)
    args = (images, None, sigma, torch.zeros_like(images))
    assert torch.allclose(loss(off_by(0, 0.3), *args), torch.tensor(0.3))
    weight = (4 + 0.25) / 1.0**2
    best = math.log(weight * 0.1**2)  # the log variance that minimises the loss of this error
    values = [loss(off_by(0.1, best + shift), *args).mean().item() for shift in (-0.1, 0, 0.1)]
    assert values[1] == pytest.approx(1 + best, rel=1e-5)
    assert values[1] < min(values[0], values[2])


def test_learning_rate_ramps_up_and_decays():
    args = dict(batch_size=100, ref_lr=0.01, ref_batches=50, rampup_Mimg=0.002)
    assert learning_rate(0, **args) == 0
    assert learning_rate(1000, **args) == pytest.approx(0.005)
    assert learning_rate(5000, **args) == pytest.approx(0.01)
    assert learning_rate(20000, **args) == pytest.approx(0.005)
    assert learning_rate(0, 100, 0.01, 0, 0) == 0.01


def test_gradients_that_are_not_finite_do_not_reach_the_weights():
    torch.manual_seed(0)
    network = Precond(16, 1, 0, model_channels=8, channel_mult=[1], num_blocks=1, channels_per_head=8)
    trainer = Trainer(network, replace(TINY, rampup_Mimg=0))
    images = torch.rand(8, 1, 16, 16)
    images[0, 0, 0, 0] = math.nan
    trainer.step([Batch(images, None, torch.ones(8, 1, 1, 1), torch.randn_like(images))])
    assert all(p.isfinite().all() for p in network.parameters())


def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(tmp_path):
    train(TINY, Digits(), tmp_path / "straight")
    train(TINY, Digits(), tmp_path / "cut", stop_nimg=40)
    assert torch.load(tmp_path / "cut" / CHECKPOINT, weights_only=True)["nimg"] == 40
    train(TINY, Digits(), tmp_path / "cut")
    assert_same_bits(tmp_path / "straight", tmp_path / "cut")
    names = {path.name for path in (tmp_path / "cut").glob("*.safetensors")}
    assert names == {f"tiny-0000000-{std}.safetensors" for std in ("0.050", "0.100")}
    lines = [json.loads(line) for line in (tmp_path / "cut" / LOG).read_text().splitlines()]
    assert [line["nimg"] for line in lines] == [32, 40, 64, 96]


KILLED = """
import os, sys
from tests_config import config
from repro.digits import Digits
from repro.training import train
class Digits(Digits):
    def batch(self, seed, positions):
        if positions[0] >= 64:
            os.kill(os.getpid(), 9)
        return super().batch(seed, positions)
train(config, Digits(), sys.argv[1])
"""


def run_script(text: str, tmp_path: Path, *arguments: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a script that can import `config` from `tests_config`, alone or under torchrun."""
    (tmp_path / "tests_config.py").write_text(
        f"from repro.training import TrainingConfig\nconfig = TrainingConfig(**{vars(TINY)!r})\n"
    )
    (tmp_path / "script.py").write_text(text)
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run(
        [*launcher, str(tmp_path / "script.py"), *arguments], env=env, capture_output=True, text=True, timeout=120
    )


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    killed = run_script(KILLED, tmp_path, str(tmp_path / "cut"))
    assert killed.returncode == -9, killed.stderr
    assert 16 <= torch.load(tmp_path / "cut" / CHECKPOINT, weights_only=True)["nimg"] <= 64
    train(TINY, Digits(), tmp_path / "cut")
    train(TINY, Digits(), tmp_path / "straight")
    assert_same_bits(tmp_path / "straight", tmp_path / "cut")


DISTRIBUTED = """
import sys
from dataclasses import replace
from tests_config import config
from metrics import distributed
from repro.digits import Digits
from repro.training import train
distributed.init()
network = {**config.network, "dropout": 0}
config = replace(config, network=network, total_nimg=160, snapshot_nimg=160, checkpoint_nimg=160)
train(config, Digits(), sys.argv[1], device="cpu")
"""


def relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over all weights, relative to their norm."""
    names = [name for name, tensor in a.items() if tensor.is_floating_point()]
    difference = sum(float((a[name].double() - b[name].double()).square().sum()) for name in names)
    return math.sqrt(difference / sum(float(a[name].double().square().sum()) for name in names))


def test_two_processes_and_accumulation_agree_with_one_process(tmp_path):
    finished = run_script(DISTRIBUTED, tmp_path, str(tmp_path / "two"), processes=2)
    assert finished.returncode == 0, finished.stderr[:3000]
    config = replace(
        TINY, network={**TINY.network, "dropout": 0}, total_nimg=160, snapshot_nimg=160, checkpoint_nimg=160
    )
    train(config, Digits(), tmp_path / "one")
    train(replace(config, device_batch_size=3), Digits(), tmp_path / "pieces")
    one = final_weights(tmp_path / "one")
    assert relative_difference(one, final_weights(tmp_path / "two")) < 1e-4
    assert relative_difference(one, final_weights(tmp_path / "pieces")) < 1e-4


def test_draws_depend_on_seed_and_position_alone():
    whole = draw(TINY, Digits(), np.arange(100, 108))
    part = draw(TINY, Digits(), np.array([105, 101]))
    for a, b in zip(whole, part, strict=True):
        assert torch.equal(a[[5, 1]], b)
    other = draw(replace(TINY, seed=1), Digits(), np.arange(100, 108))
    assert not torch.equal(whole.noise, other.noise)
    assert not torch.equal(whole.raw, other.raw)


def test_noise_levels_follow_the_log_normal():
    config = replace(TINY, P_mean=-0.8, P_std=1.6)
    log_sigma = draw(config, Digits(), np.arange(4096)).sigma.log()
    assert log_sigma.mean().item() == pytest.approx(-0.8, abs=0.1)
    assert log_sigma.std().item() == pytest.approx(1.6, abs=0.08)


def test_another_run_in_the_folder_is_refused(tmp_path):
    config = replace(TINY, total_nimg=16, snapshot_nimg=16)
    train(config, Digits(), tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(InputError, match=r"seed = 0.*has 1"):
        train(replace(config, seed=1), Digits(), tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    (tmp_path / CHECKPOINT).write_bytes(before[:1000])
    with pytest.raises(InputError, match="not a readable checkpoint"):
        train(config, Digits(), tmp_path)


def test_a_finished_run_is_left_as_it_is_and_a_longer_one_goes_on(tmp_path):
    config = replace(TINY, total_nimg=48)
    train(config, Digits(), tmp_path / "a")
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("*.*t*")}
    train(config, Digits(), tmp_path / "a")
    assert stamps == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("*.*t*")}
    train(TINY, Digits(), tmp_path / "a")
    train(TINY, Digits(), tmp_path / "b")
    assert_same_bits(tmp_path / "a", tmp_path / "b")


def test_snapshots_carry_their_time_and_length(tmp_path):
    calls = []
    config = replace(TINY, total_nimg=1040, batch_size=80, snapshot_nimg=1040, checkpoint_nimg=1040, log_nimg=1040)
    config = replace(config, total_nimg=2080)
    train(config, Digits(), tmp_path, on_snapshot=lambda nimg, files: calls.append((nimg, files)))
    assert [nimg for nimg, _ in calls] == [1040, 2080]
    for nimg, files in calls:
        for std, path in files.items():
            assert path.name == f"tiny-{nimg // 1000:07d}-{std:.3f}.safetensors"
            assert ema.snapshot_time(path) == (nimg, std)
            assert snapshots.load(path).network.label_dim == 10


def test_bfloat16_trains_to_about_the_same_loss(tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        config = replace(TINY, precision=precision, log_nimg=96)
        train(config, Digits(), tmp_path / precision)
        losses[precision] = json.loads((tmp_path / precision / LOG).read_text().splitlines()[-1])["loss"]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)


def test_an_unconditional_run_has_no_labels(tmp_path):
    config = replace(TINY, conditional=False, total_nimg=16, snapshot_nimg=16)
    train(config, Digits(), tmp_path)
    assert snapshots.load(tmp_path / "tiny-0000000-0.100.safetensors").network.label_dim == 0


@pytest.mark.parametrize("key", ["total_nimg", "snapshot_nimg", "checkpoint_nimg", "log_nimg"])
def test_counts_that_no_step_reaches_are_refused(key):
    with pytest.raises(InputError, match=rf"{key} is 12, expected a positive multiple of batch_size \(8\)"):
        replace(TINY, **{key: 12})


def test_snapshots_too_close_to_tell_by_name_are_refused():
    with pytest.raises(InputError, match="snapshot_nimg is 48, expected 1000 or more"):
        replace(TINY, snapshot_nimg=48)


def test_streams_for_different_purposes_do_not_repeat():
    keys = {int(mix(seed, kind, position)) for seed in range(8) for kind in range(8) for position in range(64)}
    assert len(keys) == 8 * 8 * 64
