"""A command line in a process of its own, forked from an idle one, with limits of address space and time."""

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path

import torch._dynamo  # noqa: F401  (imported by some commands: part of the idle process)

import metrics.__main__
import repro.__main__
from repro import report  # noqa: F401  (likewise)

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 20
ADDRESS_SPACE = 2 * 2**30  # beyond that of the idle process
PATIENCE = 600  # seconds that a command without limits may take
RESIDENT = 300 * 2**20  # beyond the idle process, for whatever is refused

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])
STARTING = threading.Lock()


@dataclass(frozen=True)
class Outcome:
    """How a command ended; `code` is None where the time limit ended it, and negative where a signal did."""

    code: int | None
    out: str
    err: str
    #: Bytes of memory at the highest, beyond the idle process.
    grown: int


def run(program: str, arguments: Sequence[str], folder: Path, stdin: str = os.devnull) -> Outcome:
    """Run `program` (metrics or repro) in `folder`."""
    with tempfile.TemporaryDirectory() as place:
        process = start(program, arguments, folder, place, stdin)
        process.join(SECONDS)
        code = process.exitcode
        if code is None:
            os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
        out, err = (Path(place, name).read_text(errors="replace") for name in ("out", "err"))
        usage = Path(place, "usage")
        return Outcome(code, out, err, int(usage.read_text()) if usage.exists() else 0)


def finish(program: str, arguments: Sequence[str], folder: Path) -> None:
    """Run a command that ends well, without limits of memory."""
    with tempfile.TemporaryDirectory() as place:
        process = start(program, arguments, folder, place, bounded=False)
        process.join(PATIENCE)
        said = Path(place, "err").read_text(errors="replace")
        assert process.exitcode == 0, f"{arguments} ends with {process.exitcode}: {said[-2000:]}"


def start(
    program: str, arguments: Sequence[str], folder: Path, place: str, stdin: str = os.devnull, bounded: bool = True
) -> multiprocessing.process.BaseProcess:
    """Begin to run `program` in `folder`; `place` receives what it says, and what it took. `bounded` limits memory."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the fork server, once
    with STARTING, contextlib.chdir(ROOT):  # in which it finds these modules, or every fork would import them again
        forkserver.ensure_running()
    process = CONTEXT.Process(target=_main, args=(program, list(arguments), str(folder), place, stdin, bounded))
    process.start()
    return process


def _main(program: str, arguments: list[str], folder: str, place: str, stdin: str, bounded: bool) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ["TMPDIR"] = place
    multiprocessing.set_start_method("fork", force=True)  # of its own children, as where a shell starts it
    for number, name in enumerate((stdin, f"{place}/out", f"{place}/err")):
        os.dup2(os.open(name, (os.O_WRONLY | os.O_CREAT) if number else os.O_RDONLY), number)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if bounded:
        limit = _status("VmSize") + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    idle = _status("VmHWM")  # of a process just forked: what it has now
    sys.argv = [program, *arguments]
    code: int | str | None = 1
    try:
        if program == "metrics":
            code = metrics.__main__.main(arguments)
        else:
            repro.__main__.main()
            code = 0
    except SystemExit as stop:
        code = stop.code
    finally:
        Path(place, "usage").write_text(str(_status("VmHWM") - idle))
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
