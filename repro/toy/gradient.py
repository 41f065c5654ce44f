"""The score of the 2D example's network and its derivative by the weights, written out by hand.

The score is the gradient of a log density by the point, and score matching differentiates it once more, by the weights.
`torch.autograd.grad(..., create_graph=True)` does the same, but walks through the SiLU's derivatives operation by
operation; written out, little is left beside the matrix products, and both together take half the time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class InputGradient(torch.autograd.Function):
    """Gradient by the first two inputs of scale |F|^2, F an MLP of SiLU: what a score is when F^2 is a log density.

    apply(scale [N, 1], inputs [N, 4], *weights [out, in]) -> [N, 2]; has gradients by `scale` and `weights`.
    """

    @staticmethod
    def forward(ctx: Any, scale: Tensor, inputs: Tensor, *weights: Tensor) -> Tensor:
        tape = []
        output = F.linear(inputs, weights[0])
        for weight in weights[1:]:
            sigmoid = output.sigmoid()
            a = output * sigmoid  # SiLU
            rest = 1 - sigmoid
            slope = torch.addcmul(sigmoid, a, rest)  # its derivative
            tape.append((a, rest, slope))
            output = F.linear(a, weight)

        grad = 2 * scale * output  # by the output, then by what enters each SiLU
        grads, grads_a = [grad], []
        for weight, (_, _, slope) in zip(reversed(weights[1:]), reversed(tape), strict=True):
            grads_a.append(grad @ weight)  # by what leaves it
            grad = grads_a[-1] * slope
            grads.append(grad)
        ctx.save_for_backward(scale, inputs, output, *weights)
        ctx.tape = tape, grads[::-1], grads_a[::-1]
        return grad @ weights[0][:, :2]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (direction,) = grad_outputs  # [N, 2]
        scale, inputs, output, *weights = ctx.saved_tensors
        tape, grads, grads_a = ctx.tape

        # Through `forward`'s second half, which ran from the output to the input.
        by_weights = [torch.zeros_like(weights[0])]
        by_weights[0][:, :2] = grads[0].T @ direction
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
