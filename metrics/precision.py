"""Arithmetic as it is asked for: TF32 allowed or not, whatever else the process does at the same time."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_condition = threading.Condition()
_holders: list[bool] = []  # the setting of every context that is open, in any thread: all the same
_waiting: list[list[bool]] = []  # who wants in, the longest first, each a setting
_before = ExitStack()  # brings back what was set before
_own = threading.local()  # settings that this thread holds


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """TF32 in convolutions on CUDA, allowed or not, and off in matrix products; what was set before comes back.

    The switches are the process's: threads that want the same setting share it, one that wants the other waits, behind
    whoever came before. Contexts of different settings, one within the other, are a RuntimeError: they would wait for
    themselves.
    """
    held = _own.__dict__.setdefault("held", [])
    if held and held[0] != allowed:
        raise RuntimeError(f"tf32({allowed}) within tf32({not allowed})")
    with _condition:
        if not held:
            _take_turn(allowed)
        if not _holders:
            _before.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            _before.callback(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = allowed
        _holders.append(allowed)
    held.append(allowed)
    try:
        yield
    finally:
        held.pop()
        with _condition:
            _holders.pop()
            if not _holders:
                _before.close()
                _condition.notify_all()


def _take_turn(allowed: bool) -> None:
    """Wait until nobody holds the other setting, nor has waited for it for longer."""
    turn = [allowed]
    _waiting.append(turn)

    def free() -> bool:
        before = itertools.takewhile(lambda other: other is not turn, _waiting)
        return all(setting == allowed for setting in itertools.chain(_holders, *before))

    try:
        _condition.wait_for(free)
    finally:
        _waiting[:] = [other for other in _waiting if other is not turn]
        _condition.notify_all()


@contextmanager
def full_precision() -> Iterator[None]:
    """Arithmetic as the tensors' type says: TF32 and autocast are off, whoever switched them on."""
    with tf32(False), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield
