"""The fractal mixture of the paper's 2D example: density and score at any noise level, and samples.

Two classes, each a tree of 127 branches; a branch is a straight row of 8 Gaussians that share weight and shape
(arXiv:2406.02507 appendix C). Noise of level sigma adds sigma^2 I to every covariance.
"""

import math

import numpy as np
import torch
from torch import Tensor

from repro.toy.by_hand import CHUNK, OFFSETS, FastMixture

SEED = 2
DEPTH = 6  # subdivisions: 2^(DEPTH + 1) - 1 branches per class
ROOT_ANGLES = {"A": math.pi / 4, "B": math.pi * 5 / 4}
ORIGIN = (0.0030, 0.0325)  # with SCALE: both classes together have mean 0 and standard deviation 0.5 per axis
SCALE = (1.3136, 1.3844)
EXTENT = 0.06  # standard deviation of a component along its branch, in branch lengths


class Mixture(FastMixture):
    """The mixture as a distribution; arguments as of `FastMixture`."""

    @property
    def means(self) -> Tensor:
        """Means of the components, branch by branch: [8 B, 2]."""
        return (self.centres[:, None] + OFFSETS[:, None] * self.spans[:, None]).flatten(0, 1)

    @property
    def component_weights(self) -> Tensor:
        """Probability of each component, branch by branch: [8 B]."""
        return self.weights.repeat_interleave(len(OFFSETS)) / len(OFFSETS)

    def sample(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Points of the mixture without noise: [num, 2] float32."""
        branch = torch.multinomial(self.weights, num, replacement=True, generator=generator)
        offset = OFFSETS[torch.randint(len(OFFSETS), [num], generator=generator)]
        noise = torch.randn([num, 2, 1], generator=generator, dtype=torch.float64)
        mean = self.centres[branch] + offset[:, None] * self.spans[branch]
        return (mean + (torch.linalg.cholesky(self.covariances)[branch] @ noise).squeeze(2)).float()

    def log_density(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """log p(x; sigma) in float64, differentiable: [N, 2] -> [N]."""
        return torch.cat([self._logits(p, sigma).flatten(1).logsumexp(1) for p in x.double().split(CHUNK)])

    def assign(self, x: Tensor) -> Tensor:
        """Index of the component that most probably made each point, in the order of `means`: [N, 2] -> int64 [N]."""
        return torch.cat([self._logits(p).transpose(1, 2).flatten(1).argmax(1) for p in x.double().split(CHUNK)])


def fractal(classes: str = "AB") -> Mixture:
    """The mixture of class "A", of class "B", or of both ("AB"): 1,016 components per class.

    The draws follow the order of the published example, by which its random tree is reproduced: depth first, the
    branch's length, then each child's angle just before that child; a last level of angles is drawn in vain.
    """
    rnd = np.random.RandomState(SEED)
    branches: list[tuple[float, ...]] = []  # depth, angle, length, beginning

    def grow(label: str, depth: int, angle: float, start: np.ndarray) -> None:
        length = 0.292 * 0.8**depth * (1 + 0.2 * rnd.randn())
        if label in classes:
            branches.append((depth, angle, length, *start))
        end = start + length * np.array([math.cos(angle), math.sin(angle)])
        for side in (1, -1):
            child = angle + side * 0.7**depth * (1 + 0.2 * rnd.randn())
            if depth < DEPTH:
                grow(label, depth + 1, child, end)

    for label, root in ROOT_ANGLES.items():
        grow(label, 0, root, np.array(ORIGIN))
    table = torch.tensor(branches, dtype=torch.float64)
    (depths, angles, lengths), start = table[:, :3].unbind(1), table[:, 3:]  # [B] each, [B, 2]
    along = torch.stack([torch.cos(angles), torch.sin(angles)], dim=1)  # [B, 2]
    across = along.flip(1) * torch.tensor([-1, 1])
    scale = torch.tensor(SCALE, dtype=torch.float64)
    span = lengths[:, None] * along
    axes = EXTENT * torch.stack([span * scale, (0.2 * 0.8**depths)[:, None] * across * scale], dim=2)  # [B, 2, 2]
    weights = lengths * 0.5**depths
    return Mixture(weights / weights.sum(), (start + span / 2) * scale, span * scale, axes @ axes.mT)
