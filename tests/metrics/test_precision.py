"""The TF32 switches belong to the process: whoever needs the other setting waits."""

import threading

import torch

from metrics.precision import full_precision, tf32


def test_settings_are_restored_behind_it() -> None:
    torch.backends.cudnn.allow_tf32 = True
    before = torch.get_float32_matmul_precision()
    with full_precision():
        assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == before


def test_threads_that_want_the_same_share_it_and_the_others_wait() -> None:
    inside, leave, found = threading.Event(), threading.Event(), []

    def other() -> None:
        inside.wait(10)
        with tf32(True):
            found.append(("other", torch.backends.cudnn.allow_tf32, leave.is_set()))

    def same() -> None:
        inside.wait(10)
        with tf32(False):
            found.append(("same", torch.backends.cudnn.allow_tf32, leave.is_set()))

    threads = [threading.Thread(target=target) for target in (other, same)]
    for thread in threads:
        thread.start()
    with tf32(False):
        inside.set()
        threads[1].join(10)
        assert found == [("same", False, False)]  # did not wait, and left the setting to its holder
        assert not torch.backends.cudnn.allow_tf32
        leave.set()
    threads[0].join(10)
    assert found[1] == ("other", True, True)
