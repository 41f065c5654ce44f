"""Arithmetic as it is asked for: TF32 allowed or not, whatever else the process does at the same time."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_condition = threading.Condition()
_holders: list[bool] = []  # the setting of every context that is open, in any thread: all the same
_before = ExitStack()  # brings back what was set before


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """TF32 in convolutions on CUDA, allowed or not, and off in matrix products; what was set before comes back.

    The switches are the process's: threads that want the same setting share it, one that wants the other waits, so
    contexts of different settings are not to be nested.
    """
    with _condition:
        _condition.wait_for(lambda: all(held == allowed for held in _holders))
        if not _holders:
            _before.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            _before.callback(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = allowed
        _holders.append(allowed)
    try:
        yield
    finally:
        with _condition:
            _holders.pop()
            if not _holders:
                _before.close()
                _condition.notify_all()


@contextmanager
def full_precision() -> Iterator[None]:
    """Arithmetic as the tensors' type says: TF32 and autocast are off, whoever switched them on."""
    with tf32(False), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield
