"""torchrun: set-up and rank helpers. Alone in the world, every call is a no-op."""

import os
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from metrics.files import InputError
from metrics.machine import machine


def init() -> None:
    """Join the process group that torchrun's environment describes: nccl on CUDA, gloo on the CPU."""
    if "RANK" not in os.environ or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    # Processes share out shards, so one may wait long for another; torchrun ends a group of which one has died.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(days=1))


def rank() -> int:
    """This process's number, 0 alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def device() -> torch.device:
    """This process's device: the machine's setting, else its own GPU, else the CPU."""
    if chosen := machine().device:
        return torch.device(chosen)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise InputError(f"process {local} has no GPU of its own: {torch.cuda.device_count()} here; start fewer")
    return torch.device("cuda", local)


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def all_reduce_sum(array: np.ndarray) -> np.ndarray:
    """Sum of every process's float64 array, the same bits everywhere."""
    if not dist.is_initialized():
        return array
    tensor = torch.tensor(array)
    dist.all_reduce(tensor)
    return tensor.numpy()


def print0(*values: object) -> None:
    """Print in the first process only."""
    if rank() == 0:
        print(*values, flush=True)
