"""What training the 2D example takes most of its time for, derived by hand: the score, and a second derivative.

Training asks for the score of 4,096 points under 1,016 or 2,032 Gaussians in every iteration. By its definition, with
einsum over all components, that would be most of an iteration; as it is rearranged here, with `InputGradient` in
place of two passes of autograd, an iteration on two cores takes 20 ms instead of 130, and is more exact
(`benchmarks/toy.py`). Tests hold both to the plain equations.

With S = covariance + sigma^2 I, the logarithm of N(x; centre + t span, S) is, up to its normalisation, quadratic in
the offset t within a branch: a + b t + c t^2. Since S^-1 = (adj(covariance) + sigma^2 I) / D with D = det S, each of
D, a D, b D and c D is a polynomial in x and sigma^2, so that one small matrix product gives them for all branches.
In float64 nothing is lost by expanding the squares. For every single component there remain a quadratic and an
exponential, in float32. The sums over components return to branches and end in small matrix products as well.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

OFFSETS = torch.linspace(0.07, 0.93, 8, dtype=torch.float64) - 0.5  # of a branch's components from its middle
CHUNK = 512  # points at a time, so that intermediate results stay in the processor's cache
EXP_FLOOR = -80.0  # below it float32 exponentials are denormal: slow, and nothing beside the largest term, 1


@dataclass(frozen=True)
class FastMixture:
    """Rows of Gaussians in the plane, B branches of 8, and their score; all tensors float64.

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


class InputGradient(torch.autograd.Function):
    """Gradient by the first two inputs of scale |F|^2, F an MLP of SiLU: what a score is when F^2 is a log density.

    apply(scale [N, 1], inputs [N, 4], *weights [out, in]) -> [N, 2]; has gradients by `scale` and `weights`.

    Score matching differentiates the score once more, by the weights. `torch.autograd.grad(..., create_graph=True)`
    walks through the SiLU's derivatives operation by operation; written out by hand, little is left beside the matrix
    products, and both derivatives together take half the time.
    """

    @staticmethod
    def forward(ctx: Any, scale: Tensor, inputs: Tensor, *weights: Tensor) -> Tensor:
        tape = []
        output = F.linear(inputs, weights[0])
        for weight in weights[1:]:
            sigmoid = output.sigmoid()
            a, rest = output * sigmoid, 1 - sigmoid  # a: SiLU
            tape.append((a, rest, torch.addcmul(sigmoid, a, rest)))  # the last one: its derivative
            output = F.linear(a, weight)

        grads, grads_a = [2 * scale * output], []  # by the output, then by what enters each SiLU
        for weight, (_, _, slope) in zip(reversed(weights[1:]), reversed(tape), strict=True):
            grads_a.append(grads[-1] @ weight)  # by what leaves it
            grads.append(grads_a[-1] * slope)
        ctx.save_for_backward(scale, inputs, output, *weights)
        ctx.tape = tape, grads[::-1], grads_a[::-1]
        return grads[-1] @ weights[0][:, :2]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (direction,) = grad_outputs  # [N, 2]
        scale, inputs, output, *weights = ctx.saved_tensors
        tape, grads, grads_a = ctx.tape

        # Through `forward`'s second half, which ran from the output to the input.
        by_weights = [F.pad(grads[0].T @ direction, (0, 2))]
        tangent = direction @ weights[0][:, :2].T  # by grads[0], then by grads[1] ...
        bends = []  # by what enters each SiLU: second derivative 2 rest (slope - a / 2), times what it multiplied
        for weight, (a, rest, slope), grad_a, grad in zip(weights[1:], tape, grads_a, grads[1:], strict=True):
            bends.append(torch.sub(slope, a, alpha=0.5).mul_(rest).mul_(grad_a).mul_(tangent))
            tangent.mul_(slope)
            by_weights.append(grad.T @ tangent)
            tangent = F.linear(tangent, weight)
        by_scale = 2 * (tangent * output).sum(1, keepdim=True)

        # Through its first half.
        back = tangent.mul_(2 * scale)
        for i, (a, _, slope) in reversed(list(enumerate(tape))):
            by_weights[i + 1].addmm_(back.T, a)
            back = (back @ weights[i + 1]).mul_(slope).add_(bends[i], alpha=2)
        by_weights[0].addmm_(back.T, inputs)
        return by_scale, None, *by_weights


def _dot(u: Tensor, v: Tensor) -> Tensor:
    return (u * v).sum(1)
