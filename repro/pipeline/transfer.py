"""One file from the first address that gives it: over HTTP or from a folder, resumable and bounded.

An interrupted transfer leaves `FILE.part` and `FILE.part.json`. The latter says how much of the former is sound, with
its digest, and which version of the file it belongs to; the next attempt checks that and asks for the rest.
"""

import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from metrics.files import InputError, disk_full, one_line, write_json

ATTEMPTS = 5  # in a row without progress
TRANSIENT = (408, 429, 500, 502, 503, 504)
TIMEOUT = (15, 60)  # seconds to connect, and between two pieces of the answer
CHUNK = 2**18
CHECKPOINT = 16 * 2**20  # bytes between two notes of how much is sound
MAX_BYTES = 64 * 2**30  # no published file comes near
MAX_WAIT = 60.0  # seconds between two attempts


@dataclass(frozen=True)
class Transfer:
    """A file under way.

    `need_space` is told how many bytes are about to come and may refuse; `advance` is told of bytes that came.
    `backoff` is the wait after the first failure in seconds, doubled with each further one; `stop` interrupts.
    """

    path: Path
    urls: Sequence[str]
    expected: str | None
    """Digest; None where it is not known."""
    need_space: Any
    advance: Any
    backoff: float
    stop: threading.Event

    @property
    def part(self) -> Path:
        """What has come so far."""
        return self.path.with_name(self.path.name + ".part")

    @property
    def note(self) -> Path:
        """What is known of `part`."""
        return self.path.with_name(self.path.name + ".part.json")

    def discard(self) -> None:
        """Forget what has come."""
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def run(self) -> str:
        """Fill `part`; returns its sha256, which is `expected` where that is known.

        Raises:
            InputError: with the answer of every address, where none gives the file; the disk is full.
        """
        answers = []
        for url in self.urls:
            for _ in range(2):  # a resumed file with the wrong digest may have had a bad beginning
                try:
                    found, resumed = self._persist(url)
                except _FailedError as err:
                    answers.append(f"{url}: {err}")
                    break
                if self.expected in (None, found):
                    return found
                self.discard()
                if not resumed:
                    answers.append(f"{url}: sha256 is {found}, expected {self.expected}")
                    break
        raise InputError(f"cannot fetch {self.path.name}: {'; '.join(answers)}; mend that or put it at {self.path}")

    def _persist(self, url: str) -> tuple[str, bool]:
        """Ask until all is here; returns the sha256 and whether it came in more than one piece."""
        failures, resumed = 0, False
        while True:
            progress = _Progress.read(self, url)
            start = progress.length
            try:
                self._ask(url, progress)
                return progress.sha256.hexdigest(), resumed or progress.resumed
            except _TransientError as err:
                resumed = True
                failures = 0 if progress.length >= start + CHUNK else failures + 1
                if failures >= ATTEMPTS:
                    raise _FailedError(f"{err}, {failures} times") from err
                self.stop.wait(min(self.backoff * 2.0 ** (failures - 1) if err.wait is None else err.wait, MAX_WAIT))

    def _ask(self, url: str, progress: "_Progress") -> None:
        """One request, from where `progress` stands to the end of the file."""
        if progress.length and progress.length == progress.total:
            return
        with _open(url, progress.length, progress.validator) as answer:
            if answer.start == 0:
                progress.restart(answer)
            elif (answer.start, answer.total, answer.validator) != progress.version():
                self.discard()
                raise _TransientError("answered with another range or version than asked for")
            if answer.total is None and self.expected is None:
                raise _FailedError("does not say how long the file is, and no digest is known")
            limit = MAX_BYTES if answer.total is None else answer.total
            if limit > MAX_BYTES:
                raise _FailedError(f"announces {limit} bytes, more than any published file")
            self.need_space(self.path.parent, 0 if answer.total is None else limit - progress.length)
            try:
                self._receive(answer.chunks, limit, progress)
            except OSError as err:
                if disk_full(err):
                    raise InputError(f"{self.path}: no space left on the disk; free some and run again") from err
                raise
        if progress.total is not None and progress.length < progress.total:
            raise _TransientError(f"connection closed after {progress.length} of {progress.total} bytes")

    def _receive(self, chunks: Iterable[bytes], limit: int, progress: "_Progress") -> None:
        noted = progress.length
        with open(self.part, "r+b" if progress.length else "wb") as file:
            file.truncate(progress.length)
            file.seek(progress.length)
            try:
                for chunk in chunks:
                    if self.stop.is_set():
                        raise _FailedError("interrupted")
                    if progress.length + len(chunk) > limit:
                        raise _FailedError(f"sends more than the {limit} bytes that it announced")
                    file.write(chunk)
                    progress.sha256.update(chunk)
                    progress.length += len(chunk)
                    self.advance(len(chunk))
                    if progress.length - noted >= CHECKPOINT:
                        file.flush()
                        progress.write(self)
                        noted = progress.length
            finally:
                file.flush()
                progress.write(self)


class _FailedError(Exception):
    """This address does not give the file; another may."""


class _TransientError(Exception):
    """Worth another attempt at the same address, after `wait` seconds where the server says so."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass
class _Progress:
    """The sound beginning of a .part file."""

    url: str
    length: int = 0
    total: int | None = None
    validator: str | None = None
    """What names this version of the file to the server: ETag or date."""
    resumed: bool = False
    sha256: Any = field(default_factory=hashlib.sha256)

    @classmethod
    def read(cls, transfer: Transfer, url: str) -> "_Progress":
        """What an earlier attempt at the same address left, if its digest still holds; else nothing."""
        try:
            note = json.loads(transfer.note.read_text())
            progress = cls(url, int(note["length"]), note["total"], note["validator"], True)
            with open(transfer.part, "rb") as file:
                for position in range(0, progress.length, CHUNK):
                    progress.sha256.update(file.read(min(CHUNK, progress.length - position)))
            sound = progress.sha256.hexdigest() == note["sha256"] and note["url"] == url
        except (OSError, ValueError, KeyError, TypeError):
            return cls(url)
        return progress if sound and progress.validator and progress.length else cls(url)

    def write(self, transfer: Transfer) -> None:
        """Leave a note for the next attempt."""
        note = {"url": self.url, "length": self.length, "total": self.total, "validator": self.validator}
        write_json(transfer.note, note | {"sha256": self.sha256.hexdigest()})

    def version(self) -> tuple[int, int | None, str | None]:
        """What an answer that continues this one must say: start, total, validator."""
        return self.length, self.total, self.validator

    def restart(self, answer: "_Answer") -> None:
        """Begin anew with the version that `answer` sends."""
        self.length, self.total, self.validator = 0, answer.total, answer.validator
        self.resumed, self.sha256 = False, hashlib.sha256()


# --- Addresses ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answer:
    """What an address sends: bytes from `start` on of a file of `total` bytes."""

    chunks: Iterable[bytes]
    start: int
    total: int | None
    validator: str | None


@contextlib.contextmanager
def _open(url: str, start: int, validator: str | None) -> Iterator[_Answer]:
    """Open an address, at `start` if it still has the version that `validator` names, else at 0."""
    if urlsplit(url).scheme == "file":
        with _open_file(url, start, validator) as answer:
            yield answer
        return
    import requests

    try:
        if start and validator:
            with request("GET", url, {"Range": f"bytes={start}-", "If-Range": validator}) as response:
                if response.status_code != 416:
                    yield _interpret(response)
                    return
        with request("GET", url) as response:
            yield _interpret(response)
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as err:
        raise _TransientError(f"connection failed ({one_line(err)[:120]})") from err
    except requests.RequestException as err:
        raise _FailedError(one_line(err)) from err


@contextlib.contextmanager
def request(method: str, url: str, headers: dict[str, str] | None = None) -> Iterator[Any]:
    """A `requests` response whose body is not yet read, uncompressed."""
    import requests

    with requests.Session() as session:
        session.trust_env = urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1")  # no proxy to this machine
        headers = {"Accept-Encoding": "identity", "User-Agent": "autoguidance-repro"} | (headers or {})
        with session.request(
            method, url, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=True
        ) as response:
            yield response


def _interpret(response: Any) -> _Answer:
    status, headers = response.status_code, response.headers
    if status in TRANSIENT:
        wait = headers.get("Retry-After", "")
        raise _TransientError(f"{status} {response.reason}", float(wait) if wait.isdigit() else None)
    if status not in (200, 206):
        raise _FailedError(f"{status} {response.reason}")
    start, length = 0, headers.get("Content-Length", "")
    total = int(length) if length.isdigit() else None
    if status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
        if found is None:
            raise _FailedError(f"206 with Content-Range {headers.get('Content-Range')!r}")
        start, total = int(found[1]), int(found[2])
    tag = headers.get("ETag", "")
    validator = tag if tag.startswith('"') else headers.get("Last-Modified")  # weak tags do not vouch for bytes
    return _Answer(response.iter_content(CHUNK), start, total, validator)


@contextlib.contextmanager
def _open_file(url: str, start: int, validator: str | None) -> Iterator[_Answer]:
    try:
        file = open(unquote(urlsplit(url).path), "rb")  # noqa: SIM115, closed below
    except OSError as err:
        raise _FailedError(str(err.strerror)) from err
    with file:
        status = os.fstat(file.fileno())
        version = str(status.st_mtime_ns)
        file.seek(start if validator == version else 0)
        yield _Answer(iter(lambda: file.read(CHUNK), b""), file.tell(), status.st_size, version)


def size(urls: Sequence[str]) -> int:
    """Bytes that the first answering address announces; 0 where none does (the transfer will say why)."""
    import requests

    for url in urls:
        try:
            if urlsplit(url).scheme == "file":
                return os.stat(unquote(urlsplit(url).path)).st_size
            with request("HEAD", url) as response:
                length = response.headers.get("Content-Length", "")
                if response.status_code == 200 and length.isdigit():
                    return int(length)
        except (OSError, requests.RequestException):
            continue
    return 0
