"""The fractal mixture of the paper's 2D example: density and score at any noise level, and samples.

Two classes, each a tree of 127 branches; a branch is a straight row of 8 Gaussians that share weight and shape
(arXiv:2406.02507 appendix C). Noise of level sigma adds sigma^2 I to every covariance.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from repro.toy.fast_score import CHUNK, FastScore

SEED = 2
DEPTH = 6  # subdivisions: 2^(DEPTH + 1) - 1 branches per class
ROOT_ANGLES = {"A": math.pi / 4, "B": math.pi * 5 / 4}
ORIGIN = (0.0030, 0.0325)  # with SCALE: both classes together have mean 0 and standard deviation 0.5 per axis
SCALE = (1.3136, 1.3844)
EXTENT = 0.06  # standard deviation of a component along its branch, in branch lengths
OFFSETS = torch.linspace(0.07, 0.93, 8, dtype=torch.float64) - 0.5  # of a branch's components from its middle


@dataclass(frozen=True)
class Mixture:
    """Rows of Gaussians in the plane, B branches of 8; all tensors float64.

    Args:
        weights: [B] probability of each branch, shared equally by its components.
        centres: [B, 2] middle of each branch.
        spans: [B, 2] from its beginning to its end; component j lies at centre + OFFSETS[j] * span.
        covariances: [B, 2, 2] of each of its components.
    """

    weights: Tensor
    centres: Tensor
    spans: Tensor
    covariances: Tensor

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
        return (mean + (self._cholesky[branch] @ noise).squeeze(2)).float()

    def log_density(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """log p(x; sigma) in float64, differentiable: [N, 2] -> [N]."""
        chunks = [self._fast.logits(points, sigma).flatten(1).logsumexp(1) for points in x.split(CHUNK)]
        return torch.cat(chunks)

    def assign(self, x: Tensor) -> Tensor:
        """Index of the component that most probably made each point, in the order of `means`: [N, 2] -> int64 [N]."""
        chunks = [self._fast.logits(points, 0.0).transpose(1, 2).flatten(1).argmax(1) for points in x.split(CHUNK)]
        return torch.cat(chunks)

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Gradient of log p(x; sigma), exact to 1e-6 / sigma, in the dtype of `x`.

        Args:
            x: [N, 2].
            sigma: noise level, more than 0: a number, or one per point ([N] or [N, 1]).
        """
        sigma = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1).expand(len(x))
        return self._fast.score(x, sigma).to(x.dtype)

    @cached_property
    def _cholesky(self) -> Tensor:
        return torch.linalg.cholesky(self.covariances)

    @cached_property
    def _fast(self) -> FastScore:
        return FastScore(self.weights, self.centres, self.spans, self.covariances, OFFSETS)


def fractal(classes: str = "AB") -> Mixture:
    """The mixture of class "A", of class "B", or of both ("AB"): 1,016 components per class.

    The draws follow the order of the published example, by which its random tree is reproduced: depth first, the
    branch's length, then each child's angle just before that child; a last level of angles is drawn in vain.
    """
    rnd = np.random.RandomState(SEED)
    branches: list[tuple[float, ...]] = []  # depth, angle, length, beginning

    def grow(label: str, depth: int, angle: float, start: np.ndarray) -> None:
        if depth > DEPTH:
            return
        length = 0.292 * 0.8**depth * (1 + 0.2 * rnd.randn())
        if label in classes:
            branches.append((depth, angle, length, *start))
        end = start + length * np.array([math.cos(angle), math.sin(angle)])
        for side in (1, -1):
            grow(label, depth + 1, angle + side * 0.7**depth * (1 + 0.2 * rnd.randn()), end)

    for label, root in ROOT_ANGLES.items():
        grow(label, 0, root, np.array(ORIGIN))
    table = torch.tensor(branches, dtype=torch.float64)
    (depths, angles, lengths), start = table[:, :3].unbind(1), table[:, 3:]  # [B] each, [B, 2]
    cos, sin = torch.cos(angles), torch.sin(angles)
    along, across = torch.stack([cos, sin], dim=1), torch.stack([-sin, cos], dim=1)  # [B, 2]
    scale = torch.tensor(SCALE, dtype=torch.float64)
    span = lengths[:, None] * along
    thickness = 0.2 * 0.8**depths
    axes = EXTENT * torch.stack([span * scale, thickness[:, None] * across * scale], dim=2)  # [B, 2, 2]
    weights = lengths * 0.5**depths
    return Mixture(weights / weights.sum(), (start + span / 2) * scale, span * scale, axes @ axes.mT)
