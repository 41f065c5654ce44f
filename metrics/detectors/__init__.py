"""Detectors: what turns images into the features that distances are measured in, and their registry."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from metrics.detectors import dinov2, inception
from metrics.files import InputError, one_line


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
        InputError: unknown name or device, or weights that are missing or do not fit.
    """
    if name not in _factories:
        raise InputError(f"unknown detector '{name}', expected one of {', '.join(names())}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as err:
        raise InputError(f"device '{device}' cannot be used ({one_line(err)}); try cpu") from err
    return _factories[name](weights=weights, device=device, **options)


register("inception", inception.load)
for _name in dinov2.HEADS:
    register(_name, partial(dinov2.load, _name))
