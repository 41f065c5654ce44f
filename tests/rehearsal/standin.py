"""A plugin with stand-in detectors: small, quick, without weights to download, and their numbers mean nothing."""

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.detectors import register
from metrics.names import Name

GRID = 8  # images are averaged to GRID x GRID before they are projected
DIMS = {"stand-in-inception": 24, "stand-in-dinov2": 16}
DISTANCES = {"stand-in-inception": "fid_meaningless", "stand-in-dinov2": "fd_dinov2_meaningless"}
"""The names that say in every table what their numbers are worth."""


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


for _name, _distance in DISTANCES.items():
    register(_name, partial(StandIn, _name), _distance, distance_name=Name(_distance.replace("_", " "), -1))
