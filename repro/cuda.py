"""What a GPU can do to the same bits in less time: networks side by side on streams, and replayed as CUDA graphs."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from repro.networks import Precond

#: Work on tensors that keep their places, and their device -> its result, which keeps its place, and what repeats it.
Record = Callable[[Callable[[], Tensor], torch.device], tuple[Tensor, Callable[[], Any]]]


@functools.cache
def _stream(device: torch.device, number: int) -> torch.cuda.Stream:
    """Always the same one, since each keeps memory of its own."""
    return torch.cuda.Stream(device)


def side_by_side(calls: Sequence[Callable[[], Tensor]], device: torch.device) -> list[Tensor]:
    """Answers of independent calls, all but the first on a CUDA stream of their own.

    The current stream goes on when all are there, as if they had been called one after the other.
    """
    current = torch.cuda.current_stream(device)
    begun = current.record_event()
    first, *others = calls
    answers, streams = [], [_stream(device, number) for number in range(len(others))]
    for call, stream in zip(others, streams, strict=True):
        stream.wait_event(begun)
        with torch.cuda.stream(stream):
            answers.append(call())
    answers.insert(0, first())
    for answer, stream in zip(answers[1:], streams, strict=True):
        current.wait_stream(stream)
        answer.record_stream(current)
    return answers


def replay(network: Precond, record: Record | None = None) -> None:
    """Let all evaluations of a network be replayed as a CUDA graph from now on, one per shape of what it is given.

    They are the same kernels, without the time that the host takes to launch them. Not for networks that draw random
    numbers, nor for several threads at once. `record` makes the graphs, by default those of CUDA.
    """
    network.forward = Replayed(network.forward, record or recorded)  # type: ignore[assignment, method-assign]


class Replayed:
    """Calls of `forward`, replayed."""

    def __init__(self, forward: Callable[..., Tensor], record: Record) -> None:
        self.forward, self.record = forward, record
        self.graphs: dict[Any, tuple[list[Tensor], Tensor, Callable[[], Any]]] = {}

    def __call__(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """D(x; sigma, labels), [N, C, H, W] float32, as `Precond.forward` gives it."""
        sigma = torch.as_tensor(sigma, device=x.device)
        given = [x, sigma] if labels is None else [x, sigma, labels]
        key = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in given)
        if key not in self.graphs:
            places = [tensor.clone() for tensor in given]
            self.graphs[key] = places, *self.record(lambda: self.forward(*places), x.device)
        places, answer, again = self.graphs[key]
        for place, tensor in zip(places, given, strict=True):
            place.copy_(tensor)
        again()
        return answer.clone()  # its place is written to by the next call


def recorded(work: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, Callable[[], Any]]:
    """`Record` by CUDA; other threads may use the GPU meanwhile."""
    with torch.cuda.device(device):
        current, stream = torch.cuda.current_stream(), _stream(device, -1)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries set themselves up in the first calls, which cannot be recorded
                work()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            answer = work()
        return answer, graph.replay
