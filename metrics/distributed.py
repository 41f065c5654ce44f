"""torchrun: set-up and rank helpers. Alone in the world, every call is a no-op."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from metrics.files import InputError, explained, on_one_line
from metrics.machine import machine
from metrics.peers import Peers

#: How long an exchange may take, for which all processes have come together.
LIMIT = timedelta(minutes=10)
#: Seconds of silence after which a process counts as dead: longer than the longest write that keeps Python's lock.
PATIENCE = 180.0

_peers: Peers | None = None

#: What torch raises for a device that it does not know, or has not.
NOT_HERE = (RuntimeError, AssertionError, NotImplementedError, ValueError)


def init() -> None:
    """Join the process group that torchrun's environment describes: nccl on CUDA, gloo on the CPU.

    From then on the processes watch over each other (`metrics.peers`).
    """
    global _peers
    if "RANK" not in os.environ or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    store, number, world = next(dist.rendezvous("env://", timeout=LIMIT))
    if world > 1:
        patience = float(machine().patience or PATIENCE)
        _peers = Peers(dist.PrefixStore("peers", store), number, world, patience, LIMIT.total_seconds())
    atexit.register(_leave)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    group = dist.PrefixStore("group", store)
    dist.init_process_group(backend, store=group, rank=number, world_size=world, timeout=LIMIT)


def _leave() -> None:
    """End gloo's threads before Python ends, which they might otherwise abort (PyTorch's issue 190489).

    The others are told first, since it may wait for them.
    """
    if _peers is not None:
        _peers.leave()
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def device(chosen: str = "") -> torch.device:
    """This process's device: the `chosen` one, else the machine's setting, else its own GPU, else the CPU.

    Raises InputError for one that is not here.
    """
    if name := chosen or machine().device:
        with explained(f"device '{on_one_line(name, 80)}' is not here", "expected cpu, cuda, cuda:1", NOT_HERE):
            found = torch.device(name)
            if found.type != "meta":  # which holds nothing
                torch.empty(0, device=found)
                return found
        raise InputError(f"device '{name}' holds no numbers; expected cpu, cuda, cuda:1")
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise InputError(f"process {local} has no GPU of its own: {torch.cuda.device_count()} here; start fewer")
    return torch.device("cuda", local)


def barrier() -> None:
    """Wait until every process is here, as long as all are alive."""
    if _peers is not None:
        _peers.meet()


@contextmanager
def exchange() -> Iterator[None]:
    """Around work of all processes together that brings collective operations of its own, of at most `LIMIT`."""
    if _peers is None:
        yield
    else:
        with _peers.exchange():
            yield


def all_reduce_sum(array: np.ndarray, together: bool = False) -> np.ndarray:
    """Sum of every process's float64 array, the same bits everywhere.

    The processes wait for each other first, unless they come `together`, within `LIMIT`.
    """
    if not dist.is_initialized():
        return array
    if not together:
        barrier()
    tensor = torch.tensor(array)
    with exchange():
        dist.all_reduce(tensor)
    return tensor.numpy()


def all_gather(mine: Any) -> list[Any]:
    """What every process has, in all of them, by rank."""
    everyone = [mine] * world_size()
    if dist.is_initialized():
        barrier()
        with exchange():
            dist.all_gather_object(everyone, mine)
    return everyone


def print0(*values: object) -> None:
    """Print in the first process only."""
    if rank() == 0:
        print(*values, flush=True)
