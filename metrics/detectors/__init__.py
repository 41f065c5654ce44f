"""Detectors: what turns images into the features that distances are measured in, and their registry."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from metrics.files import InputError


class Detector(Protocol):
    """A feature network. A user's own is one small class with these members, made known by `register`.

    `tags` says how features are made (detector, weights_sha256, resize, dtype): features and statistics with
    different tags are never compared.
    """

    name: str
    dim: int
    tags: Mapping[str, Any]

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, dim]."""
        ...


Factory = Callable[..., Detector]
_factories: dict[str, Factory] = {}


def register(name: str, factory: Factory) -> None:
    """Make `load(name)` call `factory(weights=..., device=..., **options)`."""
    _factories[name] = factory


def names() -> list[str]:
    """Names of all registered detectors."""
    return sorted(_factories)


def load(name: str, weights: str | Path | None = None, device: torch.device | str = "cpu", **options: Any) -> Detector:
    """A detector by name, ready on `device`.

    Args:
        name: a registered name.
        weights: file of its weights; None lets the detector find or fetch them.
        device: where it runs.
        options: of the detector, such as resize.

    Raises:
        InputError: unknown name, or weights that are missing or do not fit.
    """
    if name not in _factories:
        raise InputError(f"unknown detector '{name}', expected one of {', '.join(names())}")
    return _factories[name](weights=weights, device=device, **options)
