"""Log densities and score of the 2D example's mixture, rearranged by hand for speed.

Training asks for the score of 4,096 points under 1,016 or 2,032 Gaussians in every iteration. By its definition, with
einsum over all components, that would be most of an iteration; with this and `repro.toy.gradient` an iteration on two
cores takes 20 ms instead of 130, and is more exact (`benchmarks/toy.py`).

With S = covariance + sigma^2 I, the logarithm of N(x; centre + t span, S) is, up to its normalisation, quadratic in
the offset t within a branch: a + b t + c t^2. Since S^-1 = (adj(covariance) + sigma^2 I) / D with D = det S, each of
D, a D, b D and c D is a polynomial in x and sigma^2, so that one small matrix product gives them for all branches.
In float64 nothing is lost by expanding the squares. For every single component there remain a quadratic and an
exponential, in float32. The sums over components return to branches and end in small matrix products as well.
"""

import math

import torch
from torch import Tensor

CHUNK = 512  # points at a time, so that intermediate results stay in the processor's cache
EXP_FLOOR = -80.0  # below it float32 exponentials are denormal: slow, and nothing beside the largest term, 1


class FastScore:
    """A mixture of B branches of K Gaussians, prepared; arguments as of `repro.toy.mixture.Mixture`, float64.

    Args:
        offsets: [K] places of a branch's components, ascending, in spans from its centre.
    """

    def __init__(self, weights: Tensor, centres: Tensor, spans: Tensor, covariances: Tensor, offsets: Tensor) -> None:
        self.weights, self.offsets = weights, offsets
        m, d = centres, spans
        trace = covariances.diagonal(dim1=1, dim2=2).sum(1)
        J = trace[:, None, None] * torch.eye(2, dtype=torch.float64) - covariances  # their adjugates, [B, 2, 2]
        Jm, Jd = torch.einsum("bij,bj->bi", J, m), torch.einsum("bij,bj->bi", J, d)
        zero, one = torch.zeros_like(weights), torch.ones_like(weights)

        # Coefficients over `monomials` of D, a D, b D and c D.
        D = [J.det(), *[zero] * 5, J.diagonal(dim1=1, dim2=2).sum(1), *[zero] * 3, one]
        squares = [J[:, 0, 0], 2 * J[:, 0, 1], J[:, 1, 1]]
        a = [_dot(m, Jm), *(-2 * Jm).unbind(1), *squares, _dot(m, m), *(-2 * m).unbind(1), one, zero]
        b = [_dot(m, Jd), *(-Jd).unbind(1), *[zero] * 3, _dot(m, d), *(-d).unbind(1), zero, zero]
        c = [_dot(d, Jd), *[zero] * 5, _dot(d, d), *[zero] * 4]
        terms = [torch.stack(D), -0.5 * torch.stack(a), -torch.stack(b), -0.5 * torch.stack(c)]
        self.coefficients = torch.cat(terms, dim=1)  # [11, 4 B]

        # What the score sums over branches, weighted by responsibility / D.
        self.from_centre = torch.cat([J[:, 0], J[:, 1, 1:], one[:, None], Jm, m], dim=1)  # [B, 8]
        self.along_span = torch.cat([Jd, d], dim=1)  # [B, 4]

    def branch_terms(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """1/D, a, b, c, each float64 [N, B], of points [N, 2] float64 at sigma^2 = `s` [N]."""
        D, aD, bD, cD = (monomials(x, s) @ self.coefficients).chunk(4, dim=1)
        scale = D.reciprocal()
        return scale, aD * scale, bD * scale, cD * scale

    def logits(self, x: Tensor, sigma: float) -> Tensor:
        """Log of weight times density of every component: [N, 2] -> float64 [N, K, B], differentiable."""
        x = x.double()
        scale, a, b, c = self.branch_terms(x, torch.full_like(x[:, 0], sigma**2))
        a = a + (self.weights * scale.sqrt() / (2 * math.pi * len(self.offsets))).log()
        t = self.offsets[:, None]
        return a[:, None] + t * (b[:, None] + t * c[:, None])

    @torch.no_grad()
    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Gradient of the log density, exact to 1e-6 / sigma: [N, 2] at sigma [N] float64 -> float64 [N, 2]."""
        workspace = torch.empty([CHUNK, len(self.offsets), len(self.weights)])
        chunks = zip(x.split(CHUNK), sigma.split(CHUNK), strict=True)
        return torch.cat([self._score(points, levels, workspace[: len(points)]) for points, levels in chunks])

    def _score(self, x: Tensor, sigma: Tensor, E: Tensor) -> Tensor:
        """`score` of a chunk; `E` is a workspace, float32 [N, K, B]."""
        x, s = x.double(), sigma**2
        scale, a, b, c = self.branch_terms(x, s)
        t = self.offsets.float()[:, None]

        # The exponents' maximum over the segment, not the 8 points on it: 8 times cheaper, as good against overflow.
        b, c = b.float(), c.float()
        top = (b / c).mul_(-0.5).clamp_(t[0].item(), t[-1].item())
        highest = (a + torch.addcmul(b, c, top).mul_(top)).amax(1, keepdim=True)
        a = a.sub_(highest).float()
        torch.mul(c[:, None], t, out=E).add_(b[:, None]).mul_(t).add_(a[:, None]).clamp_min_(EXP_FLOOR).exp_()

        # Sums over a branch's components of E and of t E, then over branches of S^-1 (x - mean).
        E_sum, tE_sum = torch.matmul(torch.cat([torch.ones_like(t), t], dim=1).T, E).unbind(1)  # [N, B]
        scale = scale.float()
        density = scale.sqrt() * self.weights.float()
        pull = density * scale
        J00, J01, J11, one, Jm0, Jm1, m0, m1 = ((E_sum * pull).double() @ self.from_centre).unbind(1)
        Jd0, Jd1, d0, d1 = ((tE_sum * pull).double() @ self.along_span).unbind(1)
        x0, x1 = x.unbind(1)
        pull0 = J00 * x0 + J01 * x1 - Jm0 - Jd0 + s * (one * x0 - m0 - d0)
        pull1 = J01 * x0 + J11 * x1 - Jm1 - Jd1 + s * (one * x1 - m1 - d1)
        return -torch.stack([pull0, pull1], dim=1) / (E_sum * density).sum(1, keepdim=True)


def monomials(x: Tensor, s: Tensor) -> Tensor:
    """[N, 11] of points [N, 2] and sigma^2 [N]: D, a D, b D and c D are linear in them."""
    x0, x1 = x.unbind(1)
    one = torch.ones_like(x0)
    return torch.stack([one, x0, x1, x0**2, x0 * x1, x1**2, s, s * x0, s * x1, s * _dot(x, x), s**2], dim=1)


def _dot(u: Tensor, v: Tensor) -> Tensor:
    return (u * v).sum(1)
