"""Streams, CUDA graphs and compilation change no answer; what needs no GPU of it is tested without."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from repro import snapshots
from repro.cuda import replay, side_by_side
from repro.guidance import Guided
from repro.inference import fold
from repro.networks import Precond
from repro.sampling.batches import sample_batch
from repro.sampling.pairs import Configuration, Solver, load_pair

CUDA = torch.device("cuda")
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def network(golden: Path) -> Precond:
    return fold(snapshots.load(golden / "guide.pkl").network)


def inputs(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 16, 16, generator=generator)
    return x, torch.rand([], generator=generator) + 0.1, torch.eye(10)[:count]


@torch.no_grad()
def test_replayed_evaluations_are_those_that_were_asked_for_each_shape_recorded_once(network: Precond) -> None:
    recordings = 0

    def record(work: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, Callable[[], Tensor]]:
        nonlocal recordings
        recordings += 1
        answer = work()
        return answer, lambda: answer.copy_(work())  # as a graph does: on the same places, without new ones

    plain = network.forward
    asked = [inputs(2, 0), inputs(3, 1), inputs(2, 2), (*inputs(2, 3)[:2], None)]
    expected = [plain(*arguments) for arguments in asked]
    replay(network, record)
    found = [network(*arguments) for arguments in asked]
    assert recordings == 3
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_calls_on_streams_of_their_own_begin_after_what_was_before_and_end_before_what_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def record_event(self) -> str:
            said.append(f"{self.name} notes")
            return "note"

        def wait_event(self, event: str) -> None:
            said.append(f"{self.name} waits for {event}")

        def wait_stream(self, other: "Stream") -> None:
            said.append(f"{self.name} waits for {other.name}")

    class Answer:
        def record_stream(self, stream: Stream) -> None:
            said.append(f"answer kept for {stream.name}")

    on = ["main"]

    @contextmanager
    def entered(stream: Stream) -> Iterator[None]:
        on.append(stream.name)
        yield
        on.pop()

    def call(name: str) -> Callable[[], Answer]:
        def ask() -> Answer:
            said.append(f"{name} on {on[-1]}")
            return answers.setdefault(name, Answer())

        return ask

    answers: dict[str, Answer] = {}
    monkeypatch.setattr("repro.cuda._stream", lambda device, number: Stream(f"side{number}"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", entered)
    found = side_by_side([call("network"), call("guide")], CUDA)  # type: ignore[list-item]
    assert found == [answers["network"], answers["guide"]]
    assert said == [
        "main notes",
        "side0 waits for note",
        "guide on side0",
        "network on main",
        "main waits for side0",
        "answer kept for main",
    ]


@torch.no_grad()
def test_a_network_is_compiled_whole_to_the_same_answers(network: Precond) -> None:
    expected = [network(*inputs(2, seed)) for seed in range(2)]
    network.compile(backend="aot_eager", fullgraph=True)
    for seed, answer in enumerate(expected):
        torch.testing.assert_close(network(*inputs(2, seed)), answer, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("setting", [pytest.param(name, marks=GPU) for name in ("STREAMS", "GRAPHS")])
def test_streams_and_graphs_change_no_bit_on_a_gpu(golden: Path, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    guided = Guided(str(golden / "main.pkl"), str(golden / "guide.pkl"), 2.1)
    configuration = Configuration(guided, Solver(num_steps=8, batch_size=4))
    plain, _ = sample_batch(load_pair(configuration, CUDA), range(4))
    monkeypatch.setenv(f"REPRO_{setting}", "yes")
    pair = load_pair(configuration, CUDA)
    assert pair.digest == load_pair(configuration, CUDA).digest
    for _ in range(2):
        assert torch.equal(sample_batch(pair, range(4))[0], plain)


@pytest.mark.parametrize("device", [pytest.param(CUDA, marks=GPU)])
def test_compiled_networks_sample_the_same_within_the_budget_of_float16(golden: Path, device: torch.device) -> None:
    guided = Guided(str(golden / "main.pkl"), str(golden / "guide.pkl"), 2.1)
    configuration = Configuration(guided, Solver(num_steps=8, batch_size=4))
    plain, _ = sample_batch(load_pair(configuration, device), range(4))
    compiled = replace(configuration, solver=replace(configuration.solver, compile=True))
    found, _ = sample_batch(load_pair(compiled, device), range(4))
    assert (found - plain).norm() < 4e-3 * plain.norm()
