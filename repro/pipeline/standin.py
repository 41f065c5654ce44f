"""Stand-in detectors for rehearsals: small, quick, without weights to download, and their numbers mean nothing."""

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics import detectors
from repro.pipeline.evaluate import STAND_INS

GRID = 8  # images are averaged to GRID x GRID before they are projected
DIMS = {"stand-in-inception": 24, "stand-in-dinov2": 16}


class StandIn:
    """A fixed random projection of tiny thumbnails: uint8 [N, C, H, W] -> float32 [N, dim]. No weights are read."""

    def __init__(self, name: str, weights: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        self.name, self.dim, self.device = name, DIMS[name], torch.device(device)
        matrix = np.random.default_rng(self.dim).normal(size=(3 * GRID * GRID, self.dim)).astype(np.float32)
        self.projection = torch.from_numpy(matrix).to(self.device)
        self.tags: Mapping[str, Any] = {
            "detector": name,
            "weights_sha256": hashlib.sha256(matrix.tobytes()).hexdigest(),
            "resize": "area",
            "dtype": "float32",
        }

    def __call__(self, images: Tensor) -> Tensor:
        x = images.to(self.device, torch.float32) / 255
        x = F.adaptive_avg_pool2d(x.expand(-1, 3, -1, -1), GRID)
        return x.flatten(1) @ self.projection


def register() -> None:
    """Make the stand-ins known to `metrics.detectors.load`."""
    for name in STAND_INS:
        detectors.register(name, partial(StandIn, name))
