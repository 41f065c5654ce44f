"""Processes of a group end, and say why, when one of them is killed, ends early or hangs; long work is no silence."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from metrics.peers import EXIT_CODE

ROOT = Path(__file__).parents[2]
HEAD = """
import os, sys, time
import numpy as np
from datetime import timedelta
from pathlib import Path
from metrics import distributed
distributed.LIMIT = timedelta(seconds=float(os.environ["LIMIT"]))
distributed.init()
rank = distributed.rank()
distributed.barrier()
Path(f"ready{rank}").touch()
"""
BARRIER = "distributed.barrier() if rank == 0 else time.sleep(600)"
SUM = "while True: distributed.all_reduce_sum(np.ones(3), together=True)"
WAITING = [
    pytest.param(BARRIER, 1, id="barrier", marks=pytest.mark.slow),
    pytest.param(SUM, 0, id="sum"),  # who has the group's store, too
]


def start(script: str, folder: Path, limit: float = 600) -> list[subprocess.Popen[str]]:
    """Two processes of a group without torchrun, which would end both by itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "script.py").write_text(HEAD + script)
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LIMIT": str(limit)}
    common |= {"PYTHONPATH": str(ROOT), "REPRO_PATIENCE": "4", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipe, command = subprocess.PIPE, [sys.executable, "script.py"]
    return [
        subprocess.Popen(
            command, cwd=folder, env=os.environ | common | {"RANK": str(rank)}, text=True, stdout=pipe, stderr=pipe
        )
        for rank in range(2)
    ]


def wait_for(paths: Sequence[Path], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not all(path.exists() for path in paths):
        assert time.monotonic() < until, f"{paths} did not come"
        time.sleep(0.05)


def ending(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what was said of it."""
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.parametrize(("script", "victim"), WAITING)
def test_a_killed_process_ends_the_other_which_names_it(tmp_path: Path, script: str, victim: int) -> None:
    processes = start(script, tmp_path)
    wait_for([tmp_path / "ready0", tmp_path / "ready1"])
    processes[victim].send_signal(signal.SIGKILL)
    since = time.monotonic()
    code, said = ending(processes[1 - victim])
    assert code == EXIT_CODE
    assert time.monotonic() - since < 30
    who = rf"process {victim} \({re.escape(socket.gethostname())}, pid {processes[victim].pid}\)"
    assert re.search(rf"error: {who} gave no sign of life for 4 seconds, .*goes on from what is finished\n", said), said
    processes[victim].communicate()


def test_a_process_that_ends_early_ends_the_other_which_names_it(tmp_path: Path) -> None:
    processes = start("sys.exit(2) if rank else distributed.all_reduce_sum(np.ones(3))", tmp_path)
    assert ending(processes[1])[0] == 2
    code, said = ending(processes[0])
    assert code == EXIT_CODE
    assert re.search(r"error: process 1 \(.*, pid \d+\) ended before the others; ", said), said


def test_a_process_that_stays_away_is_named_and_long_work_before_a_meeting_is_not(tmp_path: Path) -> None:
    work = "time.sleep(5 * rank)\ndistributed.barrier()\n"  # longer than the limit, and longer than the patience
    hang = "time.sleep(600) if rank else distributed.all_reduce_sum(np.ones(3), together=True)"
    processes = start(f"{work}Path(f'met{{rank}}').touch()\n{hang}", tmp_path, limit=2)
    wait_for([tmp_path / "met0", tmp_path / "met1"])
    code, said = ending(processes[0])
    assert code != 0
    assert re.search(r"process 0 has waited for process 1 \(.*\) for 0 minutes\n", said), said
    assert re.search(r"error: process 1 \(.*\) stayed away from what all do together .*, so it hangs", said), said
    processes[1].kill()
    processes[1].communicate()
