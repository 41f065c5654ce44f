"""Exact score matching: training the 2D example's networks, interruptible at any time."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from metrics.files import atomic_write, explained
from metrics.progress import progress
from repro.ema import PowerFunctionEMA
from repro.numerics import numerics
from repro.strict import digest
from repro.toy.mixture import Mixture, fractal
from repro.toy.model import ToyNetwork
from repro.toy.settings import ToyNetworkSettings, ToyTrainingSettings


class Trainer:
    """Everything that training changes: network, optimiser, average, random stream, iteration."""

    def __init__(self, network: ToyNetworkSettings, training: ToyTrainingSettings) -> None:
        self.settings, self.mixture = training, fractal(network.classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            self.network = ToyNetwork(network.width, training.num_layers).train()
        self.optimizer = torch.optim.Adam(self.network.parameters(), betas=(0.9, 0.99))
        self.ema = PowerFunctionEMA(self.network, [training.ema_std])
        self.iteration, self.generator = 0, torch.Generator().manual_seed(training.seed)

    def step(self) -> float:
        """One iteration; returns its loss (appendix C)."""
        decay = max(self.iteration / self.settings.ref_iterations, 1) ** 0.5
        self.optimizer.param_groups[0]["lr"] = self.settings.ref_lr / decay
        self.optimizer.zero_grad(set_to_none=True)
        x, sigma = draw(self.mixture, self.settings, self.generator)
        loss = (sigma * (self.network.score(x, sigma) - self.mixture.score(x, sigma))).square().sum(1).mean()
        loss.backward()
        self.optimizer.step()
        self.iteration += 1
        self.ema.update(self.iteration, 1)
        return float(loss.detach())

    def state_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).state_dict() for name in ("network", "optimizer", "ema")}
        return parts | {"generator": self.generator.get_state(), "iteration": self.iteration}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("network", "optimizer", "ema"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        self.iteration = state["iteration"]


def draw(mixture: Mixture, settings: ToyTrainingSettings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One batch of noisy points [N, 2] and their noise levels [N, 1], ln(sigma) normally distributed."""
    clean = mixture.sample(settings.batch_size, generator)
    sigma = (torch.randn([len(clean), 1], generator=generator) * settings.P_std + settings.P_mean).exp()
    return clean + sigma * torch.randn(clean.shape, generator=generator), sigma


def train(
    path: Path, network: ToyNetworkSettings, training: ToyTrainingSettings, checkpoint_every: int = 512
) -> ToyNetwork:
    """The trained network with averaged weights, from `path` if it is there, else trained and written there.

    A checkpoint beside `path` loses at most `checkpoint_every` iterations to an interruption and changes no bit of
    the result. Files of other settings are replaced.
    """
    made_of = digest(network, training, numerics("toy"))
    if path.exists() and _read_metadata(path).get("digest") == made_of:
        return load(path)
    checkpoint = path.with_suffix(".checkpoint.pt")
    trainer = Trainer(network, training)
    if checkpoint.exists():
        with explained(f"{checkpoint}: not a sound checkpoint", "remove it to start anew"):
            if (state := torch.load(checkpoint, weights_only=True))["digest"] == made_of:
                trainer.load_state_dict(state)
    start, total = trainer.iteration, network.iterations
    bar = progress(f"toy {path.stem}", range(start, total), total, "it", start)
    for _ in bar:
        loss = trainer.step()
        if trainer.iteration % checkpoint_every == 0:
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            with atomic_write(checkpoint) as temporary:
                torch.save(trainer.state_dict() | {"digest": made_of}, temporary)
    averaged = trainer.ema.networks()[training.ema_std].state_dict()
    metadata = {"digest": made_of, "network": vars(network), "training": vars(training)}
    with atomic_write(path) as temporary:
        save_file(averaged, temporary, metadata={"repro": json.dumps(metadata)})
    checkpoint.unlink(missing_ok=True)
    return load(path)


def load(path: Path) -> ToyNetwork:
    """A trained network, ready for sampling."""
    metadata = _read_metadata(path)
    network = ToyNetwork(metadata["network"]["width"], metadata["training"]["num_layers"])
    network.load_state_dict(load_file(path))
    return network.eval().requires_grad_(False)


def _read_metadata(path: Path) -> dict[str, Any]:
    with explained(f"{path}: not a sound network", "remove it"), safe_open(path, framework="pt") as file:
        return dict(json.loads((file.metadata() or {}).get("repro", "{}")))
