"""What is locked is held, and free again when its holder is no more."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from metrics.files import InputError, folder_lock

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_lock_held_by_oneself_is_an_error_and_not_a_wait(tmp_path: Path) -> None:
    with (
        folder_lock(tmp_path / "out"),
        pytest.raises(InputError, match="in use by this very command"),
        folder_lock(tmp_path / "x" / ".." / "out"),
    ):
        raise AssertionError
    with folder_lock(tmp_path / "out"), folder_lock(tmp_path / "other"):
        pass


HOLD = """
import sys, time
from metrics.files import folder_lock
with folder_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_says_who_holds_it_and_ends_with_its_holder_even_by_kill(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out" / "stage"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=rf"out/stage is in use by process {process.pid} on .* since "):
        folder_lock(folder, wait=False).__enter__()

    waited = threading.Event()

    def wait() -> None:
        with folder_lock(folder):
            waited.set()

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    assert not waited.is_set()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    thread.join(timeout=20)
    assert waited.is_set()
    assert f"in use by process {process.pid}" in capsys.readouterr().err


def test_lock_is_beside_the_folder_and_free_again_after_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    folder.mkdir()
    seen = []

    def fail_inside() -> None:
        with folder_lock(folder):
            seen.extend([names(tmp_path), names(folder)])
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert seen == [["stage", "stage.holder", "stage.lock"], []]
    with folder_lock(folder, wait=False):
        pass
    assert "stage.holder" not in names(tmp_path)
