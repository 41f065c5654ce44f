"""Detectors: what turns images into the features that distances are measured in, and their registry."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from metrics import distributed
from metrics.detectors.dinov2 import DINOv2
from metrics.detectors.inception import InceptionSpatial, InceptionV3
from metrics.detectors.weights import build
from metrics.names import SPACES, Name, Space
from metrics.registry import Registry


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


DETECTORS: Registry[Callable[..., Detector]] = Registry("detector")


def register(
    name: str,
    factory: Callable[..., Detector],
    distance: str | None = None,
    label: str | None = None,
    distance_name: Name | None = None,
) -> None:
    """Make `load(name)` call `factory(weights=..., device=..., **options)`; raises InputError if the name is taken.

    The Fréchet distance in its features is called `distance` in files, by default fd_NAME, and `distance_name` for
    readers, by default FD_NAME; `label` is the detector's name for readers, by default NAME.
    """
    DETECTORS.register(name, factory)
    SPACES.register(name, Space(label or name, distance or f"fd_{name}", distance_name or Name(f"FD_{name}", -1)))


def look(detectors: Mapping[str, Detector], images: Tensor) -> dict[str, Tensor]:
    """Features [N, dim] of images uint8 [N, 3, H, W] under every detector.

    Two of them take one pass where the first has a method `beside` that gives, for the second, what does the work of
    both: their features side by side.
    """
    passes: list[tuple[Detector, list[str]]] = []
    for name, detector in detectors.items():
        for i, (other, names) in enumerate(passes):
            if joint := getattr(other, "beside", lambda _: None)(detector):
                passes[i] = joint, [*names, name]
                break
        else:
            passes.append((detector, [name]))
    found: dict[str, Tensor] = {}
    for detector, names in passes:
        *edges, _ = accumulate(detectors[name].dim for name in names)
        found |= zip(names, detector(images).tensor_split(edges, dim=1), strict=True)
    return {name: found[name] for name in detectors}


def load(name: str, weights: str | Path | None = None, device: torch.device | str = "cpu", **options: Any) -> Detector:
    """A detector by name, ready on `device`, with `options` of its own, such as resize.

    `weights` is a file of its weights; None lets the detector find or fetch them. Raises InputError on an unknown name
    or device, and on weights that are missing or do not fit.
    """
    factory = DETECTORS[name]
    return factory(weights=weights, device=distributed.device(str(device)), **options)


register("inception", partial(build, InceptionV3, "inception"), "fid", "Inception", Name("FID", -1, 2))
register(
    "inception-spatial",
    partial(build, InceptionSpatial, "inception-spatial"),
    *("sfid", "Inception, spatial", Name("sFID", -1, 2)),
)
for _name, _label in {"dinov2": "DINOv2", "dinov2-b": "DINOv2-B", "dinov2-s": "DINOv2-S"}.items():
    _distance = Name(f"FD_{_label}", -1, 2, rf"FD$_\mathrm{{{_label}}}$")
    register(_name, partial(build, DINOv2, _name, name=_name), None, _label, _distance)
# The other resize, where both are measured side by side; `resize=` of dinov2 is for one at a time.
register(
    "dinov2-pil",
    partial(build, DINOv2, "dinov2", name="dinov2-pil", resize="pil"),
    None,
    "DINOv2 (PIL resize)",
    Name("FD_DINOv2 (PIL resize)", -1, 2, r"FD$_\mathrm{DINOv2}$ (PIL resize)"),
)
