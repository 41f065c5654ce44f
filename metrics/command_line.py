"""The edges of both command lines: what goes wrong inside ends in one line and an exit code; outputs cost nothing."""

import contextlib
import itertools
import os
import signal
import stat
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from metrics.errors import lacking
from metrics.files import InputError, explained, folder_lock, on_one_line, write_text
from metrics.memory import keep_freed_memory
from metrics.results import version

#: By which a CSV and a page, at their beginnings, and a JSON file are known as results of the command line.
PAGE = b"<!doctype html><!-- made by metrics neighbours -->"
CSV, JSON = b"metric,detector,subset,num_images,value,error,error_kind,", b'"versions": "autoguidance-repro '
#: Exit code where something that was asked for is missing and the rest is there.
INCOMPLETE = 3

#: Of both command lines.
show_version = click.version_option(version(), prog_name="autoguidance-repro", message="%(prog)s %(version)s")


@contextlib.contextmanager
def imports(program: str) -> Iterator[None]:
    """Make an import that lacks something end the program as `run` does, with a line that says what to install."""
    try:
        yield
    except ModuleNotFoundError as err:
        if not (said := lacking(err)):
            raise
        click.echo(f"{program}: error: {said}", err=True)
        raise SystemExit(2) from None


def run(cli: click.Group, program: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit code: 0, or what the command returns, such as INCOMPLETE.

    Else it is 2 for bad input, 70 for a fault of ours, 130 when interrupted.

    SIGTERM ends work in the same orderly way as Ctrl-C, so that temporary files and child processes go.
    """
    keep_freed_memory()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.unraisablehook = _again
    try:
        code = cli.main(arguments, program, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (click.Abort, KeyboardInterrupt):
        code, said = 130, "stopped; what is finished is kept, and the same command goes on from there"
    except click.ClickException as err:
        code, said = 2, err.format_message()
    except (InputError, OSError, MemoryError) as err:
        code, said = 2, str(err) or "not enough memory; use smaller batches or fewer workers"
    except Exception as err:
        if "REPRO_DEBUG" in os.environ:
            raise
        code, said = 70, f"unexpected {type(err).__name__} ({err}); please report it, with what REPRO_DEBUG=1 shows"
        if isinstance(err, ModuleNotFoundError) and (missing := lacking(err)):
            code, said = 2, missing
    click.echo(f"{program}: error: {on_one_line(said)}", err=True)
    return code


def _again(lost: Any) -> None:
    """Send a signal again that Python has dropped because it came while an object was being finalised."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()
    else:
        sys.__unraisablehook__(lost)


def check_outputs(
    outputs: Iterable[Path | None],
    inputs: Sequence[str],
    force: bool,
    text: bool = True,
    appended: Path | None = None,
) -> None:
    """Find out before the work that its results can be written, and that nothing is lost by it.

    Texts may go to `-`, a pipe or a character device, which are written to. Whatever else is there is replaced if it
    is a result of ours, or with `force`; never if it is one of the `inputs` or a link. `appended` is not replaced but
    added to: see `check_append`. Raises InputError.
    """
    given = [path for path in outputs if path]
    for a, b in itertools.combinations(given, 2):
        if os.path.realpath(a) == os.path.realpath(b):
            raise InputError(f"{a}: two results would be written to it; name two files")
    for path in given:
        with explained(f"{path}: cannot be written"):
            if not (text and _is_stream(path)):
                _check_file(path, inputs, force or path == appended)


def _check_file(path: Path, inputs: Sequence[str], force: bool) -> None:
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        tempfile.TemporaryFile(dir=parent).close()  # what permissions say is not true of every file system and user
    except OSError:
        raise InputError(f"{path}: nothing can be written to {parent}; name another path") from None
    if not os.path.lexists(path) and str(path) != "-":
        return
    if path.is_symlink() or not path.is_file():
        raise InputError(f"{path}: is a link, a folder or no file; name a file to write")
    ours = _is_ours(path)
    for source in (Path(given) for given in inputs if os.path.exists(given)):
        if os.path.samefile(source, path) or (not ours and source.resolve() in path.resolve().parents):
            raise InputError(f"{path}: is part of the input {source}; name another file to write")
    if not ours and not force:
        raise InputError(f"{path}: is there already, and no result of this tool; name another file, or pass --force")


def _is_ours(path: Path) -> bool:
    if zipfile.is_zipfile(path):  # tags stand beside the statistics or features that they are of
        names = {*zipfile.ZipFile(path).namelist()}
        tagged = [name.removesuffix("tags.npy") for name in names if name.endswith("tags.npy")]
        return any({f"{prefix}mu.npy", f"{prefix}features.npy"} & names for prefix in tagged)
    with open(path, "rb") as file:
        head = file.read(2**24)
    return head.startswith((CSV, PAGE)) or (head.startswith(b"{") and JSON in head)


def _is_stream(path: Path) -> bool:
    mode = path.stat().st_mode if path.exists() else 0
    return str(path) == "-" or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def check_append(path: Path, columns: Sequence[str]) -> None:
    """Find out before the work that rows can be added to a CSV, if it is there; raises InputError."""
    if _is_stream(path) or not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        found = file.readline(2**16).rstrip("\r\n").split(",")
    if found != [*columns]:
        strange = sorted({*found} ^ {*columns}) or ["their order"]
        raise InputError(
            f"{path}: has other columns ({', '.join(strange[:4])}), so nothing can be added; name a new file"
        )


def append(path: Path, text: str) -> None:
    """Add the rows of a CSV to one that `check_append` found to have its columns, or make it; whole or not at all."""
    if _is_stream(path):
        return deliver(path, text)
    with folder_lock(path.with_name(f".{path.name}")):  # of several that add to it, none is lost
        if path.exists():
            header, _, rows = text.partition("\n")
            check_append(path, header.split(","))
            before = path.read_text(encoding="utf-8")
            text = before + ("" if before.endswith("\n") else "\n") + rows
        write_text(path, text)


def deliver(path: Path, text: str) -> None:
    """Write a text where `check_outputs` found that it can go; to a file, whole or not at all."""
    if str(path) == "-":
        click.echo(text, nl=False)
    elif _is_stream(path):
        with explained(f"{path}: cannot be written", "a pipe needs a reader"):
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            os.set_blocking(descriptor, True)
            with open(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
    else:
        write_text(path, text)
