"""Optimiser steps against the recorded ones of the authors' implementation, and what they are trained with."""

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

from repro.data.digits import Digits
from repro.networks import Precond
from repro.streams import mix
from repro.training import NetworkSettings, TrainingConfig, TrainingSettings, learning_rate
from repro.training.trainer import Batch, Trainer, draw

DIGITS = Digits()


@pytest.fixture(scope="module")
def oracle(golden: Path) -> dict[str, np.ndarray]:
    return dict(np.load(golden / "training.npz"))


def test_twelve_steps_match_the_golden_run(golden, oracle):
    facts = json.loads((golden / "manifest.json").read_text())["training"]
    network = Precond(**facts["kw"])
    network.load_state_dict({k[5:]: torch.from_numpy(v) for k, v in oracle.items() if k.startswith("init/")})
    schedule = {k: facts[k] for k in ("ref_lr", "ref_batches", "rampup_Mimg", "P_mean", "P_std")}
    batch = facts["batch"]
    settings = TrainingSettings(
        name="golden", network=NetworkSettings(), batch_size=batch, ema_stds=tuple(facts["ema_stds"]), **schedule
    )
    trainer = Trainer(network, settings)
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


def test_gradients_that_are_not_finite_do_not_reach_the_weights():
    torch.manual_seed(0)
    network = Precond(16, 1, 0, model_channels=8, channel_mult=[1], num_blocks=1, channels_per_head=8)
    trainer = Trainer(network, TrainingSettings("mini", NetworkSettings(), batch_size=8, rampup_Mimg=0))
    images = torch.rand(8, 1, 16, 16)
    images[0, 0, 0, 0] = math.nan
    trainer.step([Batch(images, None, torch.ones(8, 1, 1, 1), torch.randn_like(images))])
    assert all(p.isfinite().all() for p in network.parameters())


def test_draws_depend_on_seed_and_position_alone(tiny: TrainingConfig) -> None:
    whole = draw(tiny.settings, DIGITS, np.arange(100, 108))
    part = draw(tiny.settings, DIGITS, np.array([105, 101]))
    for a, b in zip(whole, part, strict=True):
        assert torch.equal(a[[5, 1]], b)
    other = draw(replace(tiny.settings, seed=1), DIGITS, np.arange(100, 108))
    assert not torch.equal(whole.noise, other.noise)
    assert not torch.equal(whole.raw, other.raw)


def test_noise_levels_follow_the_log_normal(tiny: TrainingConfig) -> None:
    settings = replace(tiny.settings, P_mean=-0.8, P_std=1.6)
    log_sigma = draw(settings, DIGITS, np.arange(4096)).sigma.log()
    assert log_sigma.mean().item() == pytest.approx(-0.8, abs=0.1)
    assert log_sigma.std().item() == pytest.approx(1.6, abs=0.08)


def test_streams_for_different_purposes_do_not_repeat() -> None:
    keys = {int(mix(seed, kind, position)) for seed in range(8) for kind in range(8) for position in range(64)}
    assert len(keys) == 8 * 8 * 64


def test_draws_leave_the_step_its_threads() -> None:
    # in a new process, whose threads of torch's are not settled yet
    code = """
import torch
from repro.data.digits import Digits
from repro.training import NetworkSettings, Pace, TrainingConfig, TrainingSettings
from repro.training.trainer import drawn_ahead

class Noted(Digits):
    def batch(self, *args):
        print(torch.get_num_threads())
        return super().batch(*args)

settings = TrainingSettings("run", NetworkSettings(), batch_size=8, ref_batches=1, rampup_Mimg=0)
list(drawn_ahead(TrainingConfig(settings, Pace(16, 8, 8)), Noted(), range(0, 16, 8)))
print(torch.get_num_threads())
"""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["1", "1", "2"]
