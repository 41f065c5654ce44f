"""Downloads, several at once, with digests that are pinned or recorded at first use.

Recorded digests are in a lock file, to be committed; a file with another one is refused, whichever mirror it is from.
"""

import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metrics.errors import InputError, explained
from metrics.files.transfers import MissingError, Source, Transfer, announced_size, need_space
from metrics.files.writing import folder_lock, sha256_file, write_json
from metrics.machine import machine
from metrics.progress import progress

#: Base address of the published networks and statistics.
PUBLISHED = "https://nvlabs-fi-cdn.nvidia.com/edm2"
#: File with recorded digests: {name of the source: sha256}.
LOCK = "fetch.lock"
WORKERS = 4  # downloads at once
_recording = threading.Lock()  # the lock file's OS lock is between processes


def cache_root() -> Path:
    """The folder below which everything of this project is cached."""
    return Path(
        machine().cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "autoguidance-repro")
    )


class FailuresError(InputError):
    """Some files could not be had."""

    def __init__(self, failures: Sequence[str]) -> None:
        more = f" (and {len(failures) - 1} more files failed)" if failures[1:] else ""
        super().__init__(f"{failures[0]}{more}")
        #: What is wrong with each.
        self.failures = failures


@dataclass(frozen=True)
class Downloads:
    """How files are fetched."""

    #: Addresses (http, https or file) tried in turn; the lock file binds them all.
    bases: Sequence[str] = (PUBLISHED,)
    #: Record of digests.
    lock: Path = Path(LOCK)
    #: Use what is there; a missing file is an error that says where to put it.
    offline: bool = False
    #: Take files whose digest is not known over plain http too.
    allow_http: bool = False

    @classmethod
    def cached(cls, folder: Path, offline: bool | None = None) -> "Downloads":
        """Into a folder of the cache, which keeps its own record of digests; `offline` None: as the machine is set."""
        lock, old = folder / LOCK, folder / "digests.json"
        if old.exists() and not lock.exists():
            with suppress(OSError):  # another process was faster
                old.rename(lock)
        return cls(lock=lock, offline=bool(machine().offline) if offline is None else offline)

    def addresses(self, source: Source) -> Sequence[str]:
        """Where `source` may be had."""
        if source.urls or "://" in source.name:
            return source.urls or [source.name]
        if not self.bases:
            raise InputError(f"{source.name}: no base address is set")
        return [f"{base.rstrip('/')}/{source.name}" for base in self.bases]


def fetch(sources: Sequence[Source], downloads: Downloads) -> list[Path]:
    """All `sources`, downloaded where they are not yet there; paths in the order given. Raises like `fetch_each`."""
    list(fetch_each(sources, downloads))
    return [source.path for source in sources]


def fetch_each(
    sources: Sequence[Source],
    downloads: Downloads,
    on_missing: Callable[[Source, MissingError], None] | None = None,
) -> Generator[Source, None, None]:
    """Yield each source as soon as its file is there with the right digest, while others are still on their way.

    `on_missing` is told of a file that no address has, which is an error without it.

    Raises:
        InputError: at once: too little disk space, or missing files under `offline`. After everything else was
            fetched: a file that no address gives, with every address's answer, or that has the wrong digest.
    """
    digests = read_lock(downloads.lock)
    missing = [source for source in sources if not source.path.exists()]
    if downloads.offline and missing:
        where = "; ".join(f"{downloads.addresses(source)[0]} at {source.place}" for source in missing)
        raise InputError(f"offline, and {len(missing)} files are missing; put {where}")
    stop = threading.Event()
    errors: list[InputError] = []
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="fetch") as pool:
        total = _check_space(missing, downloads, pool)
        with progress("fetch", total=total, unit="B", hidden=not missing) as bar:
            jobs = {pool.submit(_have, source, downloads, digests, bar, stop): source for source in sources}
            try:
                for job in as_completed(jobs):
                    if isinstance(err := job.exception(), MissingError) and on_missing:
                        on_missing(jobs[job], err)
                    elif isinstance(err, InputError):
                        errors.append(err)
                    else:
                        job.result()
                        yield jobs[job]
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)
    if errors:
        raise FailuresError([str(err) for err in errors])


def _have(source: Source, downloads: Downloads, digests: dict[str, str], bar: Any, stop: threading.Event) -> None:
    recorded = digests.get(source.name)
    expected = source.sha256 or recorded
    if recorded not in (None, expected):
        raise InputError(f"{downloads.lock}: {source.name} is {recorded}, but {expected} is pinned; remove it")
    if not source.path.exists():
        with folder_lock(source.path):
            if not source.path.exists():  # another process may have fetched it in the meantime
                insecure = downloads.allow_http or bool(machine().allow_http)
                transfer = Transfer(source, expected, bar.update, stop, _origin(source, downloads.lock), insecure)
                found = transfer.run(downloads.addresses(source))
                if expected is None:
                    try:
                        source.check(transfer.part)
                    except InputError as err:
                        transfer.discard()
                        raise InputError(f"{source.name} is not what it should be, and is removed: {err}") from err
                    _record(source.name, found, downloads.lock)
                os.replace(transfer.part, source.path)
                transfer.note.unlink(missing_ok=True)
                return
    found = sha256_file(source.path)
    if expected is None:
        source.check(source.path)
        _record(source.name, found, downloads.lock)
    elif found != expected:
        origin = _origin(source, downloads.lock)
        raise InputError(f"{source.path}: sha256 is {found}, expected {expected}{origin}; delete it to fetch it again")


def _origin(source: Source, lock: Path) -> str:
    """End of a message: which line of the lock file says what is expected, and when that may go."""
    if source.sha256 or not lock.exists():
        return ""
    lines = enumerate(lock.read_text(encoding="utf-8").splitlines(), 1)
    number = next((number for number, line in lines if json.dumps(source.name, ensure_ascii=False) in line), 1)
    return f", as recorded in {lock}, line {number} (remove that only if its publisher has changed it)"


def _check_space(missing: Sequence[Source], downloads: Downloads, pool: ThreadPoolExecutor) -> int:
    """Is there room for everything, before anything is fetched? Returns how many bytes are to come."""
    sizes = pool.map(lambda source: announced_size(downloads.addresses(source)), missing)
    needed: Counter[Path] = Counter()
    for source, size in zip(missing, sizes, strict=True):
        part = Path(f"{source.path}.part")
        needed[source.path.parent] += max(size - (part.stat().st_size if part.exists() else 0), 0)
    for folder, size in needed.items():
        folder.mkdir(parents=True, exist_ok=True)
        need_space(folder, size)
    return needed.total()


def read_lock(path: Path) -> dict[str, str]:
    """Recorded digests by name of the source; raises InputError where the file is no such record."""
    with explained(f"{path}: not readable as JSON", "restore it from version control", (OSError, ValueError)):
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not isinstance(found, dict) or not all(re.fullmatch("[0-9a-f]{64}", str(digest)) for digest in found.values()):
        raise InputError(f"{path}: expected a mapping from names to sha256 digests; restore it")
    return found


def _record(name: str, digest: str, lock: Path) -> None:
    with _recording, folder_lock(lock):
        digests = read_lock(lock)
        if digests.setdefault(name, digest) != digest:
            raise InputError(f"{name}: sha256 is {digest}, but {lock} records {digests[name]}; fetch it again")
        write_json(lock, dict(sorted(digests.items())))
