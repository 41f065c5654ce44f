"""Training of the 2D example: schedules, averaging, interruption."""

import dataclasses
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from repro.ema import PowerFunctionEMA, beta
from repro.toy.mixture import fractal
from repro.toy.settings import ToyNetworkSettings, ToyTrainingSettings
from repro.toy.training import Trainer, draw, train
from tests.repro.toy.plain import moments

NETWORK = ToyNetworkSettings("A", width=8, iterations=20)
TRAINING = ToyTrainingSettings(batch_size=64, ref_iterations=4)
EVERY = 6  # iterations between checkpoints


class Interrupted(Exception):
    pass


@pytest.fixture
def interrupt_at(monkeypatch: pytest.MonkeyPatch):
    def arm(iteration: int) -> list[int]:
        steps: list[int] = []
        original = Trainer.step

        def step(self: Trainer) -> float:
            if self.iteration == iteration:
                raise Interrupted
            steps.append(self.iteration)
            return original(self)

        monkeypatch.setattr(Trainer, "step", step)
        return steps

    return arm


def test_interrupted_training_goes_on_from_its_checkpoint_to_the_same_bits(tmp_path, interrupt_at, monkeypatch) -> None:
    train(tmp_path / "whole.safetensors", NETWORK, TRAINING, EVERY)
    interrupt_at(15)
    with pytest.raises(Interrupted):
        train(tmp_path / "resumed.safetensors", NETWORK, TRAINING, EVERY)
    monkeypatch.undo()
    assert not (tmp_path / "resumed.safetensors").exists()
    steps = interrupt_at(-1)
    train(tmp_path / "resumed.safetensors", NETWORK, TRAINING, EVERY)
    assert steps == list(range(12, 20))
    assert (tmp_path / "resumed.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["resumed.safetensors", "whole.safetensors"]


@pytest.mark.slow
def test_killed_process_leaves_a_checkpoint_that_leads_to_the_same_bits(tmp_path) -> None:
    network = dataclasses.replace(NETWORK, iterations=400)
    train(tmp_path / "whole.safetensors", network, TRAINING, EVERY)
    path = tmp_path / "killed.safetensors"
    code = f"""
import time
from pathlib import Path
from repro.toy.settings import ToyNetworkSettings, ToyTrainingSettings
from repro.toy.training import Trainer, train
step = Trainer.step
def slow(self):
    time.sleep(0.01)
    return step(self)
Trainer.step = slow
train(Path({str(path)!r}), {network!r}, {TRAINING!r}, {EVERY})
"""
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    checkpoint = path.with_suffix(".checkpoint.pt")
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.exists()
    assert not path.exists()
    train(path, network, TRAINING, EVERY)
    assert path.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_checkpoint_and_network_of_other_settings_are_not_used(tmp_path, interrupt_at, monkeypatch) -> None:
    path = tmp_path / "net.safetensors"
    interrupt_at(15)
    with pytest.raises(Interrupted):
        train(path, NETWORK, TRAINING, EVERY)
    monkeypatch.undo()
    other = dataclasses.replace(TRAINING, seed=1)
    steps = interrupt_at(-1)
    trained = train(path, NETWORK, other)
    assert steps == list(range(20))
    train(path, NETWORK, other)  # stands, and is not trained again
    assert len(steps) == 20
    again = train(path, dataclasses.replace(NETWORK, iterations=4), other)
    assert len(steps) == 24
    assert not torch.equal(trained.layers[0].weight, again.layers[0].weight)


def test_result_does_not_depend_on_how_often_checkpoints_are_written(tmp_path) -> None:
    train(tmp_path / "a.safetensors", NETWORK, TRAINING, 6)
    train(tmp_path / "b.safetensors", NETWORK, TRAINING, 7)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_learning_rate_is_constant_then_falls_with_the_root_of_time() -> None:
    trainer = Trainer(NETWORK, TRAINING)
    rates = []
    for _ in range(17):
        trainer.step()
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates[:5] == [0.01] * 5
    assert rates[16] == pytest.approx(0.01 / math.sqrt(16 / 4))


def test_kept_network_is_the_power_function_average_of_all_iterations() -> None:
    trainer = Trainer(NETWORK, TRAINING)
    weight = trainer.network.layers[0].weight
    expected = torch.zeros_like(weight)
    for iteration in range(1, 13):
        trainer.step()
        decay = float(beta(0.010, iteration, 1))
        expected = decay * expected + (1 - decay) * weight.detach()
    assert isinstance(trainer.ema, PowerFunctionEMA)
    torch.testing.assert_close(trainer.ema.networks()[TRAINING.ema_std].layers[0].weight, expected)


def test_noise_levels_are_log_normal_and_points_noisy_by_them() -> None:
    settings = ToyTrainingSettings(batch_size=50_000)
    mixture = fractal("A")
    x, sigma = draw(mixture, settings, torch.Generator().manual_seed(0))
    assert sigma.log().mean().item() == pytest.approx(-2.3, abs=0.03)
    assert sigma.log().std().item() == pytest.approx(1.5, abs=0.03)
    mean, covariance = moments(mixture)
    wide = (sigma > 1).squeeze(1)
    expected = covariance.diag().sum() + 2 * (sigma[wide].double() ** 2).mean()
    assert (x[wide] - mean).square().sum(1).mean().item() == pytest.approx(expected.item(), rel=0.1)


def test_training_learns_the_score() -> None:
    trainer = Trainer(ToyNetworkSettings("A", width=16, iterations=1), ToyTrainingSettings(batch_size=512))
    losses = [trainer.step() for _ in range(200)]
    assert sum(losses[-10:]) / 10 < 0.5 * losses[0]


def test_training_leaves_the_global_random_stream_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Trainer(NETWORK, TRAINING).step()
    assert torch.equal(torch.rand(3), expected)
