"""Writing: a file is there whole or not at all, a folder is held by one process at a time."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import ArrayLike

from metrics.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame

_held = set[tuple[str, int]]()  # folders that are locked, and the threads that did it
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on error it is removed.

    What processes that are no more have left there is removed too. The temporary name ends in `.tmp`: writers that
    choose the format by suffix need to be told. InputError: the disk is full or the place cannot be written.
    """
    path = Path(path)
    prefix = f".{path.name}.{socket.gethostname()}-"
    temporary = path.with_name(f"{prefix}{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(".*.tmp"):
            pid = stale.stem.removeprefix(prefix)
            if stale.name.startswith(prefix) and not (pid.isdigit() and _is_alive(int(pid))):
                stale.unlink(missing_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as err:
        raise_if_full(path, err)
        number, place = getattr(err, "errno", None), getattr(err, "filename", None)
        if number in NOT_WRITABLE and place and Path(place) in (temporary, path, *path.parents):
            raise InputError(f"{path}: cannot be written ({os.strerror(number)})") from err
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def raise_if_full(path: Path, err: Exception) -> None:
    """Raise InputError if an error says that the disk or the quota is full; safetensors says it in words only."""
    if getattr(err, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(err):
        raise InputError(f"{path}: no space left on the disk; free some and run again") from err


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError) as err:
        return not isinstance(err, ProcessLookupError)
    return True


@contextlib.contextmanager
def folder_lock(folder: str | Path, wait: bool = True) -> Iterator[None]:
    """Hold `folder` against other processes through an OS lock on `<folder>.lock`, released even by kill -9.

    Where another process holds it and `wait` is False, an InputError says who; and always where this very thread does,
    which would wait for itself.
    """
    folder = Path(folder)
    key = (os.path.realpath(folder), threading.get_ident())
    if key in _held:
        raise InputError(f"{folder} is in use by this very command; name another folder")
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
        _held.add(key)
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}\n")
        yield
    finally:
        _held.discard(key)
        holder.unlink(missing_ok=True)
        lock.release()


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON, indented, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_csv(path: str | Path, table: "DataFrame") -> None:
    """Write a table as CSV, without its index, atomically."""
    write_text(path, table.to_csv(index=False))


def write_npz(path: str | Path, arrays: Mapping[str, ArrayLike]) -> None:
    """Write arrays of numbers or text, atomically."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, atomically; a copy where the file system has no links."""
    with atomic_write(target) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
