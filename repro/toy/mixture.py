"""The fractal mixture of the paper's 2D example: density and score at any noise level, and samples.

Two classes, each a tree of 127 branches; a branch is a straight row of 8 Gaussians that share weight and shape
(arXiv:2406.02507 appendix C). Noise of level sigma adds sigma^2 I to every covariance.

Training asks for the score of 4,096 points under 1,016 or 2,032 Gaussians in every iteration. By its definition, with
einsum over all components, that would be most of an iteration; as it is rearranged here, with `InputGradient` of
`repro.toy.model`, an iteration on two cores takes 20 ms instead of 130, and is more exact (`benchmarks/toy.py`).

With S = covariance + sigma^2 I, the logarithm of N(x; centre + t span, S) is, up to its normalisation, quadratic in
the offset t within a branch: a + b t + c t^2. Since S^-1 = (adj(covariance) + sigma^2 I) / D with D = det S, each of
D, a D, b D and c D is a polynomial in x and sigma^2, so that one small matrix product gives them for all branches.
In float64 nothing is lost by expanding the squares. For every single component there remain a quadratic and an
exponential, in float32. The sums over components return to branches and end in small matrix products as well.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

SEED = 2
DEPTH = 6  # subdivisions: 2^(DEPTH + 1) - 1 branches per class
ROOT_ANGLES = {"A": math.pi / 4, "B": math.pi * 5 / 4}
ORIGIN = (0.0030, 0.0325)  # with SCALE: both classes together have mean 0 and standard deviation 0.5 per axis
SCALE = (1.3136, 1.3844)
EXTENT = 0.06  # standard deviation of a component along its branch, in branch lengths
OFFSETS = torch.linspace(0.07, 0.93, 8, dtype=torch.float64) - 0.5  # of a branch's components from its middle
CHUNK = 512  # points at a time, so that intermediate results stay in the processor's cache
EXP_FLOOR = -80.0  # below it float32 exponentials are denormal: slow, and nothing beside the largest term, 1


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
        return (mean + (torch.linalg.cholesky(self.covariances)[branch] @ noise).squeeze(2)).float()

    def log_density(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """log p(x; sigma) in float64, differentiable: [N, 2] -> [N]."""
        return torch.cat([self._logits(p, sigma).flatten(1).logsumexp(1) for p in x.double().split(CHUNK)])

    def assign(self, x: Tensor) -> Tensor:
        """Index of the component that most probably made each point, in the order of `means`: [N, 2] -> int64 [N]."""
        return torch.cat([self._logits(p).transpose(1, 2).flatten(1).argmax(1) for p in x.double().split(CHUNK)])

    @torch.no_grad()
    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Gradient of log p(x; sigma), exact to 1e-6 / sigma, in the dtype of `x`.

        Args:
            x: [N, 2].
            sigma: noise level, more than 0: a number, or one per point ([N] or [N, 1]).
        """
        s = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1).expand(len(x)) ** 2
        workspace = torch.empty([CHUNK, len(OFFSETS), len(self.weights)])
        chunks = zip(x.double().split(CHUNK), s.split(CHUNK), strict=True)
        return torch.cat([self._score(*chunk, workspace[: len(chunk[0])]) for chunk in chunks]).to(x.dtype)

    @cached_property
    def _coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of D, a D, b D and c D over the monomials of x and sigma^2, [11, 4 B].

        And of what the score sums over branches, weighted by responsibility / D: from the centre, [B, 8], and along
        the span, [B, 4].
        """
        m, d, C = self.centres, self.spans, self.covariances
        J = C.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] * torch.eye(2).double() - C  # adjugates, [B, 2, 2]
        Jm, Jd = torch.einsum("bij,bj->bi", J, m), torch.einsum("bij,bj->bi", J, d)
        zero, one = torch.zeros_like(self.weights), torch.ones_like(self.weights)
        D = [J.det(), *[zero] * 5, J.diagonal(dim1=1, dim2=2).sum(1), *[zero] * 3, one]
        squares = [J[:, 0, 0], 2 * J[:, 0, 1], J[:, 1, 1]]
        a = [_dot(m, Jm), *(-2 * Jm).unbind(1), *squares, _dot(m, m), *(-2 * m).unbind(1), one, zero]
        b = [_dot(m, Jd), *(-Jd).unbind(1), *[zero] * 3, _dot(m, d), *(-d).unbind(1), zero, zero]
        c = [_dot(d, Jd), *[zero] * 5, _dot(d, d), *[zero] * 4]
        terms = torch.cat([torch.stack(D), -0.5 * torch.stack(a), -torch.stack(b), -0.5 * torch.stack(c)], dim=1)
        return terms, torch.cat([J[:, 0], J[:, 1, 1:], one[:, None], Jm, m], dim=1), torch.cat([Jd, d], dim=1)

    def _branch_terms(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """1/D, a, b, c, each float64 [N, B], of points [N, 2] float64 at sigma^2 = `s` [N]."""
        x0, x1 = x.unbind(1)
        powers = [torch.ones_like(s), x0, x1, x0**2, x0 * x1, x1**2, s, s * x0, s * x1, s * _dot(x, x), s**2]
        D, aD, bD, cD = (torch.stack(powers, dim=1) @ self._coefficients[0]).chunk(4, dim=1)
        scale = D.reciprocal()
        return scale, aD * scale, bD * scale, cD * scale

    def _logits(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """Log of weight times density of every component: [N, 2] -> [N, 8, B], both float64, differentiable."""
        scale, a, b, c = self._branch_terms(x, torch.full_like(x[:, 0], sigma**2))
        a = a + (self.weights * scale.sqrt() / (2 * math.pi * len(OFFSETS))).log()
        t = OFFSETS[:, None]
        return a[:, None] + t * (b[:, None] + t * c[:, None])

    def _score(self, x: Tensor, s: Tensor, E: Tensor) -> Tensor:
        """`score` of a chunk [N, 2] at sigma^2 = `s` [N], all float64; `E` is a workspace, float32 [N, 8, B]."""
        scale, a, b, c = self._branch_terms(x, s)
        t = OFFSETS.float()[:, None]

        # The exponents' maximum over the segment, not the 8 points on it: 8 times cheaper, as good against overflow.
        scale, b, c = scale.float(), b.float(), c.float()
        top = (b / c).mul_(-0.5).clamp_(t[0].item(), t[-1].item())
        highest = (a + torch.addcmul(b, c, top).mul_(top)).amax(1, keepdim=True)
        a = a.sub_(highest).float()
        torch.mul(c[:, None], t, out=E).add_(b[:, None]).mul_(t).add_(a[:, None]).clamp_min_(EXP_FLOOR).exp_()

        # Sums over a branch's components of E and of t E, then over branches of S^-1 (x - mean).
        E_sum, tE_sum = torch.matmul(torch.cat([torch.ones_like(t), t], dim=1).T, E).unbind(1)  # [N, B]
        _, from_centre, along_span = self._coefficients
        density = scale.sqrt() * self.weights.float()
        pull = density * scale
        J00, J01, J11, one, Jm0, Jm1, m0, m1 = ((E_sum * pull).double() @ from_centre).unbind(1)
        Jd0, Jd1, d0, d1 = ((tE_sum * pull).double() @ along_span).unbind(1)
        x0, x1 = x.unbind(1)
        pull0 = J00 * x0 + J01 * x1 - Jm0 - Jd0 + s * (one * x0 - m0 - d0)
        pull1 = J01 * x0 + J11 * x1 - Jm1 - Jd1 + s * (one * x1 - m1 - d1)
        return -torch.stack([pull0, pull1], dim=1) / (E_sum * density).sum(1, keepdim=True)


def _dot(u: Tensor, v: Tensor) -> Tensor:
    return (u * v).sum(1)


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
