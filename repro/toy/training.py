"""Exact score matching: training the 2D example's networks, interruptible at any time."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from metrics.files import atomic_write
from repro.ema import PowerFunctionEMA
from repro.toy.mixture import Mixture, fractal
from repro.toy.model import ToyNetwork
from repro.toy.settings import ToyNetworkSettings, ToyTrainingSettings


class Trainer:
    """Everything that training changes: network, optimiser, average, random stream, iteration."""

    def __init__(self, network: ToyNetworkSettings, training: ToyTrainingSettings) -> None:
        self.settings = training
        self.mixture = fractal(network.classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            self.network = ToyNetwork(network.width, training.num_layers).train()
        self.optimizer = torch.optim.Adam(self.network.parameters(), betas=(0.9, 0.99))
        self.ema = PowerFunctionEMA(self.network, [training.ema_std])
        self.generator = torch.Generator().manual_seed(training.seed)
        self.iteration = 0

    def step(self) -> float:
        """One iteration; returns its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.ref_lr / max(self.iteration / self.settings.ref_iterations, 1) ** 0.5
        self.optimizer.zero_grad(set_to_none=True)
        x, sigma = draw(self.mixture, self.settings, self.generator)
        loss = score_matching_loss(self.network, x, sigma, self.mixture.score(x, sigma))
        loss.backward()
        self.optimizer.step()
        self.iteration += 1
        self.ema.update(self.iteration, 1)
        return float(loss.detach())

    def averaged(self) -> ToyNetwork:
        """The network with its averaged weights."""
        network = self.ema.networks()[self.settings.ema_std]
        assert isinstance(network, ToyNetwork)
        return network

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "generator": self.generator.get_state(),
            "iteration": self.iteration,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.generator.set_state(state["generator"])
        self.iteration = state["iteration"]


def keep_freed_memory() -> None:
    """Make the C library keep freed blocks for the next iteration.

    glibc hands large freed blocks back to the system, and page faults to get them again would be a third of an
    iteration. Once it has freed a block of some size, it keeps all smaller ones (mallopt(3), M_MMAP_THRESHOLD).
    """
    torch.empty(24 * 2**20, dtype=torch.uint8)


def draw(mixture: Mixture, settings: ToyTrainingSettings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One batch of noisy points [N, 2] and their noise levels [N, 1], ln(sigma) normally distributed."""
    num = settings.batch_size
    clean = mixture.sample(num, generator)
    sigma = (torch.randn([num, 1], generator=generator) * settings.P_std + settings.P_mean).exp()
    return clean + sigma * torch.randn([num, 2], generator=generator), sigma


def score_matching_loss(network: ToyNetwork, x: Tensor, sigma: Tensor, true_score: Tensor) -> Tensor:
    """Mean over the batch of sigma^2 |score - true score|^2 (appendix C)."""
    return (sigma * (network.score(x, sigma) - true_score)).square().sum(1).mean()


def train(path: Path, network: ToyNetworkSettings, training: ToyTrainingSettings) -> ToyNetwork:
    """The trained network with averaged weights, from `path` if it is there, else trained and written there.

    A checkpoint beside `path` loses at most `checkpoint_every` iterations to an interruption and changes no bit of
    the result. Files of other settings are replaced.
    """
    digest = _digest(network, training)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and _read_metadata(path).get("digest") == digest:
        return load(path)
    keep_freed_memory()
    checkpoint = path.with_suffix(".checkpoint.pt")
    trainer = Trainer(network, training)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["digest"] == digest:
            trainer.load_state_dict(state)
    with tqdm(total=network.iterations, initial=trainer.iteration, desc=f"toy {path.stem}", mininterval=2) as progress:
        while trainer.iteration < network.iterations:
            loss = trainer.step()
            progress.update()
            if trainer.iteration % training.checkpoint_every == 0:
                progress.set_postfix(loss=f"{loss:.4f}", refresh=False)
                with atomic_write(checkpoint) as temporary:
                    torch.save(trainer.state_dict() | {"digest": digest}, temporary)
    _save(path, trainer.averaged(), digest, network, training)
    checkpoint.unlink(missing_ok=True)
    return load(path)


def load(path: Path) -> ToyNetwork:
    """A trained network, ready for sampling."""
    metadata = _read_metadata(path)
    network = ToyNetwork(metadata["network"]["width"], metadata["training"]["num_layers"])
    network.load_state_dict(safetensors.torch.load_file(path))
    return network.eval().requires_grad_(False)


def _save(
    path: Path, network: ToyNetwork, digest: str, settings: ToyNetworkSettings, training: ToyTrainingSettings
) -> None:
    facts = {"digest": digest, "network": dataclasses.asdict(settings), "training": dataclasses.asdict(training)}
    with atomic_write(path) as temporary:
        tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
        safetensors.torch.save_file(tensors, temporary, metadata={"repro": json.dumps(facts)})


def _read_metadata(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, framework="pt") as file:
        return dict(json.loads((file.metadata() or {}).get("repro", "{}")))


def _digest(network: ToyNetworkSettings, training: ToyTrainingSettings) -> str:
    """Of everything that the trained weights depend on."""
    facts = dataclasses.asdict(network) | dataclasses.asdict(training)
    facts.pop("checkpoint_every")
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
