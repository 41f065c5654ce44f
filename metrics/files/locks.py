"""Locks between processes."""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from metrics.errors import InputError


@contextlib.contextmanager
def folder_lock(folder: str | Path, wait: bool = True) -> Iterator[None]:
    """Hold `folder` against other processes through an OS lock on `<folder>.lock`, released even by kill -9.

    Where another process holds it and `wait` is False, an InputError says who.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(f"{folder}.lock"), Path(f"{folder}.holder")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = "another process"
        with contextlib.suppress(OSError):
            who = holder.read_text().strip() or who
        if not wait:
            raise InputError(f"{folder} is in use by {who}; wait for it or stop it") from None
        print(f"waiting for {folder}, in use by {who}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
