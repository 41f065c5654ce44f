"""One file from the first address that gives it: over HTTP or from a folder, resumable and bounded.

An interrupted transfer leaves `FILE.part` and `FILE.part.json`. The latter says how much of the former is sound, with
its digest, and which version of the file it belongs to; the next attempt checks that and asks for the rest.
"""

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from metrics.errors import InputError, one_line
from metrics.files.writing import raise_if_full, write_json

ATTEMPTS = 5  # in a row without progress
BACKOFF = 1.0  # seconds to wait after a first failure, doubled with each further one
TRANSIENT = (408, 429, 500, 502, 503, 504)
GONE = (404, 410)  # the file is not there, and trying again will not bring it
TIMEOUT = (15, 60)  # seconds to connect, and between two pieces of the answer
CHUNK = 2**18
CHECKPOINT = 16 * 2**20  # bytes between two notes of how much is sound
MAX_BYTES = 64 * 2**30  # no published file comes near
MAX_WAIT = 60.0  # seconds between two attempts
LEAST_RATE, WINDOW = 1024, 60.0  # bytes a second, over so many seconds
MAX_SECONDS = 24 * 3600.0  # for a file as a whole
PAGE = re.compile(rb"<(!doctype html|html|head|body)\b", re.IGNORECASE)
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class MissingError(InputError):
    """No address has the file (404 or 410 from each)."""

    def __init__(self, message: str, answers: Sequence[str]) -> None:
        super().__init__(message)
        #: What each said, `ADDRESS gave 404`.
        self.answers = answers


class _FailedError(Exception):
    """This address does not give the file; another may. `status`: the HTTP status, where there is one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class _TransientError(Exception):
    """Worth another attempt at the same address, after `wait` seconds where the server says so."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Source:
    """A file to have."""

    #: Path below the base addresses, such as `dataset-refs/img512.pkl`, or a whole address; key in the lock file.
    name: str
    #: Where it goes.
    path: Path
    #: Pinned digest; None: recorded at first use.
    sha256: str | None = None
    #: Whole addresses tried in turn, instead of `name`.
    urls: Sequence[str] = ()
    #: What else helps where it cannot be had.
    remedy: str = ""
    #: Raises InputError where a file is not what it should be; asked before a digest is recorded.
    check: Callable[[Path], object] = lambda path: None

    @property
    def place(self) -> str:
        """End of a message: where a user may put the file, or the remedy."""
        return f"{self.path}{self.remedy and f', or {self.remedy}'}"


def need_space(folder: Path, size: int) -> None:
    """Raise InputError if `size` bytes do not fit."""
    free = shutil.disk_usage(folder).free
    if size > free:
        need = f"{size / 2**20:,.1f} MiB"
        raise InputError(f"downloads need {need} in {folder}, which has {free / 2**20:,.1f} MiB free; make room")


class Transfer:
    """A file under way, with digest `expected` where that is known, and `origin`, who says so.

    `advance` is told of bytes, `stop` interrupts; with `allow_http` plain http will do where no digest is known.
    """

    def __init__(
        self,
        source: Source,
        expected: str | None,
        advance: Callable[[int], object],
        stop: threading.Event,
        origin: str = "",
        allow_http: bool = False,
    ) -> None:
        self.source, self.expected, self.advance, self.stop = source, expected, advance, stop
        self.origin, self.allow_http, self.deadline = origin, allow_http, time.monotonic() + MAX_SECONDS
        self.part, self.note = Path(f"{source.path}.part"), Path(f"{source.path}.part.json")

    def run(self, urls: Sequence[str]) -> str:
        """Fill `part` from the first address that gives the file; returns its sha256.

        InputError: none gives it, with the answer of each, or the disk is full; MissingError: none has it.
        """
        answers, gone = [], []
        for url in urls:
            try:
                found = self._persist(url)
                if self.expected not in (None, found) and self.resumed:  # its beginning may have been bad
                    self.discard()
                    found = self._persist(url)
                if self.expected in (None, found):
                    return found
                self.discard()
                answers.append(f"{url}: sha256 is {found}, expected {self.expected}{self.origin}")
            except _FailedError as err:
                answers.append(f"{url}: {err}")
                gone += [f"{url} gave {err.status}"] if err.status in GONE else []
        remedy = f"mend that or put it at {self.source.place}"
        message = f"cannot fetch {self.source.path.name}: {'; '.join(answers)}; {remedy}"
        raise MissingError(message, gone) if len(gone) == len(urls) else InputError(message)

    def discard(self) -> None:
        """Remove what is here."""
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def _persist(self, url: str) -> str:
        """Ask until all is here; returns the sha256."""
        failures = 0
        while True:
            self._take_up(url)
            start = self.length
            try:
                self._ask(url)
                self._refuse_page()
                return str(self.sha256.hexdigest())
            except _TransientError as err:
                failures = 0 if self.length >= start + CHUNK else failures + 1
                if failures >= ATTEMPTS:
                    raise _FailedError(f"{err}, {failures} times") from err
                self.stop.wait(min(BACKOFF * 2.0 ** (failures - 1) if err.wait is None else err.wait, MAX_WAIT))

    def _refuse_page(self) -> None:
        with open(self.part, "rb") as file:
            beginning = file.read(4096).lstrip()
        if beginning.startswith(b"<") and PAGE.search(beginning):
            self.discard()
            raise _FailedError("sent a web page instead of the file, such as a network's login page; it is removed")

    def _take_up(self, url: str) -> None:
        """What an earlier attempt at the same address left, if its digest still holds; else nothing."""
        self._restart(None, None)
        with suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads(self.note.read_text())
            os.truncate(self.part, note["length"])
            with open(self.part, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256")
            if (note["sha256"], note["url"]) == (sha256.hexdigest(), url) and note["validator"] and note["length"]:
                self._restart(note["total"], note["validator"])
                self.length, self.sha256, self.resumed = note["length"], sha256, True

    def _restart(self, total: int | None, validator: str | None) -> None:
        """Nothing is here yet of the version of the file that `validator`, an ETag or date, names to the server."""
        self.length, self.total, self.validator = 0, total, validator
        self.sha256, self.resumed = hashlib.sha256(), False

    def _ask(self, url: str) -> None:
        """One request, from where the part ends to the end of the file."""
        if self.length and self.length == self.total:
            return
        with _open(url, self.length, self.validator) as answer:
            if answer.plain and self.expected is None and not self.allow_http:
                raise _FailedError("is plain http, and no digest is known; use https, or allow it with --allow-http")
            if answer.start == 0:
                self._restart(answer.total, answer.validator)
            elif (answer.start, answer.total, answer.validator) != (self.length, self.total, self.validator):
                self.discard()
                raise _TransientError("answered with another range or version than asked for")
            if answer.total is None and self.expected is None:
                raise _FailedError("does not say how long the file is, and no digest is known")
            limit = MAX_BYTES if answer.total is None else answer.total
            if limit > MAX_BYTES:
                raise _FailedError(f"announces {limit} bytes, more than any published file")
            if answer.total is not None:
                need_space(self.part.parent, limit - self.length)
            self._receive(answer.chunks, limit, url)
        if self.total is not None and self.length < self.total:
            raise _TransientError(f"connection closed after {self.length} of {self.total} bytes")

    def _receive(self, chunks: Iterable[bytes], limit: int, url: str) -> None:
        before, since = self.length, time.monotonic()
        try:
            with open(self.part, "ab" if self.length else "wb") as file:
                for chunk in chunks:
                    if self.stop.is_set():
                        raise _FailedError("interrupted")
                    if self.length + len(chunk) > limit:
                        raise _FailedError(f"sends more than the {limit} bytes that it announced")
                    file.write(chunk)
                    self.sha256.update(chunk)
                    self.length += len(chunk)
                    self.advance(len(chunk))
                    if (now := time.monotonic()) > self.deadline:
                        raise _FailedError(f"has sent {self.length} bytes in {MAX_SECONDS / 3600:.0f} hours")
                    if now - since > WINDOW:
                        if self.length - before < LEAST_RATE * (now - since):
                            raise _TransientError(f"sends less than {LEAST_RATE} bytes a second")
                        before, since = self.length, now
                    if self.length % CHECKPOINT < len(chunk):
                        file.flush()
                        self._write_note(url)
        except OSError as err:
            raise_if_full(self.source.path, err)
            raise
        finally:
            self._write_note(url)

    def _write_note(self, url: str) -> None:
        note = {"url": url, "length": self.length, "total": self.total, "validator": self.validator}
        write_json(self.note, note | {"sha256": self.sha256.hexdigest()})


class _Answer(NamedTuple):
    """What an address sends: bytes from `start` on of a file of `total` bytes."""

    chunks: Iterable[bytes]
    start: int
    total: int | None
    validator: str | None
    #: Whether any part of the way was plain http to another machine.
    plain: bool = False


@contextmanager
def _open(url: str, start: int = 0, validator: str | None = None, method: str = "GET") -> Iterator[_Answer]:
    """Open an address, at `start` if it still has the version that `validator` names, else at 0."""
    import requests
    import urllib3

    if urlsplit(url).scheme == "file":
        yield from _open_file(url, start, validator)
        return
    rest = {"Range": f"bytes={start}-", "If-Range": str(validator)} if start else {}
    headers = {"Accept-Encoding": "identity", "User-Agent": "autoguidance-repro"} | rest
    try:
        with requests.Session() as session:
            session.trust_env = urlsplit(url).hostname not in LOOPBACK  # no proxy in between
            with session.request(method, url, headers=headers, stream=True, timeout=TIMEOUT) as response:
                yield _interpret(response)
    except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as err:
        raise _TransientError(f"connection failed ({one_line(err)[:120]})") from err
    except requests.RequestException as err:
        raise _FailedError(one_line(err)) from err


def _interpret(response: Any) -> _Answer:
    status, headers = response.status_code, response.headers
    if status in TRANSIENT:
        wait = headers.get("Retry-After", "")
        raise _TransientError(f"{status} {response.reason}", float(wait) if wait.isdigit() else None)
    if status == 416:
        return _Answer((), -1, None, None)  # has no such range, so what is asked for is another version
    if status not in (200, 206):
        raise _FailedError(f"{status} {response.reason}", status)
    start, length = 0, headers.get("Content-Length", "")
    total = int(length) if length.isdigit() else None
    if status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
        if found is None:
            raise _FailedError(f"206 with Content-Range {headers.get('Content-Range')!r}")
        start, total = int(found[1]), int(found[2])
    tag = headers.get("ETag", "")
    validator = tag if tag.startswith('"') else headers.get("Last-Modified")  # weak tags do not vouch for bytes
    way = [urlsplit(each.url) for each in (*response.history, response)]
    plain = any(place.scheme == "http" and place.hostname not in LOOPBACK for place in way)
    pieces = iter(partial(response.raw.read1, CHUNK), b"")  # as they come, so that a slow server is noticed
    return _Answer(pieces, start, total, validator, plain)


def _open_file(url: str, start: int, validator: str | None) -> Iterator[_Answer]:
    try:
        file = open(unquote(urlsplit(url).path), "rb")  # noqa: SIM115, closed below
    except OSError as err:
        raise _FailedError(str(err.strerror)) from err
    with file:
        status = os.fstat(file.fileno())
        version = str(status.st_mtime_ns)
        file.seek(start if validator == version else 0)
        yield _Answer(iter(partial(file.read, CHUNK), b""), file.tell(), status.st_size, version)


def announced_size(urls: Sequence[str]) -> int:
    """Bytes that the first answering address announces; 0 where none does (the transfer will say why)."""
    for url in urls:
        with suppress(_FailedError, _TransientError), _open(url, method="HEAD") as answer:
            return answer.total or 0
    return 0
