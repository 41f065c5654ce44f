"""The TF32 switches belong to the process: whoever needs the other setting waits, and has a turn."""

import threading
import time

import pytest
import torch

from metrics.precision import full_precision, tf32


class Holder(threading.Thread):
    """A thread that notes that it has a setting, and holds it until it is let go."""

    def __init__(self, allowed: bool, found: list[tuple[bool, bool]]) -> None:
        super().__init__(daemon=True)
        self.allowed, self.found = allowed, found
        self.inside, self.go = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        with tf32(self.allowed):
            self.found.append((self.allowed, torch.backends.cudnn.allow_tf32))
            self.inside.set()
            assert self.go.wait(20)
            self.found.append((self.allowed, torch.backends.cudnn.allow_tf32))

    def end(self) -> None:
        self.go.set()
        self.join(10)


def test_settings_are_restored_behind_it() -> None:
    torch.backends.cudnn.allow_tf32 = True
    before = torch.get_float32_matmul_precision()
    with full_precision():
        assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == before


def test_threads_that_want_the_same_share_it_and_the_others_wait() -> None:
    before, found = torch.backends.cudnn.allow_tf32, list[tuple[bool, bool]]()
    first, same = Holder(False, found), Holder(False, found)
    assert first.inside.wait(10)
    assert same.inside.wait(10)  # although the first one is still there
    other = Holder(True, found)
    first.end()
    assert not other.inside.wait(0.2)
    same.end()
    assert other.inside.wait(10)
    other.end()
    assert found == [(False, False)] * 4 + [(True, True)] * 2
    assert torch.backends.cudnn.allow_tf32 == before


def test_whoever_waits_for_the_other_setting_comes_before_those_that_come_later() -> None:
    """Else threads that relay a setting to each other would keep one out for ever that needs the other."""
    found = list[tuple[bool, bool]]()
    first = Holder(False, found)
    assert first.inside.wait(10)
    other = Holder(True, found)
    time.sleep(0.2)  # it waits now
    later = Holder(False, found)
    assert not later.inside.wait(0.2)
    first.end()
    assert other.inside.wait(10)
    assert not later.inside.is_set()
    other.end()
    assert later.inside.wait(10)
    later.end()


def test_the_same_setting_may_be_nested_and_the_other_one_is_refused_instead_of_waiting_for_itself() -> None:
    found = list[tuple[bool, bool]]()
    with tf32(False):
        other = Holder(True, found)
        time.sleep(0.1)
        with tf32(False):  # waits for nobody, since nobody can come before it
            assert not torch.backends.cudnn.allow_tf32
        with pytest.raises(RuntimeError, match="within"), tf32(True):
            pass
        assert not torch.backends.cudnn.allow_tf32
    assert other.inside.wait(10)  # nothing of it is left behind
    other.end()
