"""Downloads, several at once, with digests that are pinned or recorded at first use.

Digests of files that nobody has pinned are recorded in a lock file, to be committed; from then on a file with another
digest is refused, whichever mirror it comes from.
"""

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from metrics.files import InputError, folder_lock, one_line, sha256_file, write_json
from repro import snapshots
from repro.pipeline import transfer
from repro.pipeline.transfer import Transfer

BASE = "https://nvlabs-fi-cdn.nvidia.com/edm2"
LOCK = Path("fetch.lock")
_recording = threading.Lock()  # the lock file's OS lock is between processes


def _free_space(folder: Path) -> int:
    return shutil.disk_usage(folder).free


@dataclass(frozen=True)
class Source:
    """A file to have."""

    name: str
    """Path below the base addresses, such as `dataset-refs/img512.pkl`, or a whole address."""
    path: Path
    """Where it goes."""
    sha256: str | None = None
    """Pinned digest; None: recorded at first use."""


@dataclass(frozen=True)
class Options:
    """How to fetch."""

    bases: Sequence[str] = (BASE,)
    """Addresses (http, https or file) tried in turn; the lock file names what is below them, so that it binds all."""
    lock: Path = LOCK
    """Record of digests."""
    offline: bool = False
    """Use what is there; a missing file is an error that says where to put it."""
    workers: int = 4
    """Downloads at once."""
    backoff: float = 1.0
    """Seconds to wait after a first failure, doubled with each further one."""
    free_space: Callable[[Path], int] = field(default=_free_space)
    """Free bytes on the disk of a folder."""

    def addresses(self, source: Source) -> list[str]:
        """Where `source` may be had."""
        if "://" in source.name:
            return [source.name]
        if not self.bases:
            raise InputError(f"{source.name}: no base address is set")
        return [f"{base.rstrip('/')}/{source.name}" for base in self.bases]

    def need_space(self, folder: Path, size: int) -> None:
        """Raise InputError if `size` bytes do not fit."""
        free = self.free_space(folder)
        if size > free:
            need = f"{size / 2**20:,.1f} MiB"
            raise InputError(f"downloads need {need} in {folder}, which has {free / 2**20:,.1f} MiB free; make room")


def fetch(sources: Sequence[Source], options: Options | None = None) -> list[Path]:
    """All `sources`, downloaded where they are not yet there; paths in the order given.

    Raises:
        InputError: see `fetch_each`.
    """
    for _ in fetch_each(sources, options):
        pass
    return [source.path for source in sources]


def fetch_each(sources: Sequence[Source], options: Options | None = None) -> Generator[Source, None, None]:
    """Yield each source as soon as its file is there with the right digest, while others are still on their way.

    Raises:
        InputError: at once: too little disk space, or missing files under `offline`. After everything else was
            fetched: a file that no address gives, with every address's answer, or that has the wrong digest.
    """
    options = options or Options()
    digests = read_lock(options.lock)
    missing = [source for source in sources if not source.path.exists()]
    if options.offline and missing:
        where = "; ".join(f"{options.addresses(source)[0]} at {source.path}" for source in missing)
        raise InputError(f"offline, and {len(missing)} files are missing; put {where}")
    stop = threading.Event()
    errors: list[InputError] = []
    with ThreadPoolExecutor(options.workers, thread_name_prefix="fetch") as pool:
        total = _check_space(missing, options, pool)
        with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc="fetch", disable=None) as bar:
            jobs: dict[Future[None], Source] = {
                pool.submit(_ensure, source, options, digests, bar, stop): source for source in sources
            }
            try:
                for job in as_completed(jobs):
                    error = job.exception()
                    if error is None:
                        yield jobs[job]
                    elif isinstance(error, InputError):
                        errors.append(error)
                    else:
                        raise error
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)
    if errors:
        more = "" if len(errors) == 1 else f" (and {len(errors) - 1} more files failed)"
        raise InputError(f"{errors[0]}{more}")


def fetch_networks(
    names: Iterable[str], folder: str | Path, options: Options | None = None, keep_originals: bool = False
) -> list[Path]:
    """Published networks as .safetensors in `folder`, each converted as soon as it is there.

    Args:
        names: paths below the base addresses, such as `posthoc-reconstructions/edm2-img512-s-2147483-0.070.pkl`.
        folder: receives RUN-KIMG-STD.safetensors; what stands there with the recorded digest is not fetched again.
        options: how to fetch.
        keep_originals: keep the pickles.

    Raises:
        InputError: see `fetch_each`; a file that is no network; a network there that comes from another source.
    """
    options = options or Options()
    digests = read_lock(options.lock)
    targets = {name: Path(folder) / Path(urlsplit(name).path).with_suffix(".safetensors").name for name in names}
    wanted = []
    for name, target in targets.items():
        source = Source(name, target.with_suffix(".pkl"))
        if not target.exists():
            wanted.append(source)
            continue
        found = str(snapshots.read_metadata(target).get("source_sha256"))
        if digests.get(name, found) != found:
            raise InputError(f"{target}: made from a file with sha256 {found}, expected {digests[name]}; delete it")
    with closing(fetch_each(wanted, options)) as fetched:
        for source in fetched:
            snapshots.convert(source.path, targets[source.name])
            if not keep_originals:
                source.path.unlink()
    return list(targets.values())


def _ensure(source: Source, options: Options, digests: dict[str, str], bar: Any, stop: threading.Event) -> None:
    """Have the file with the right digest, or raise InputError."""
    urls = options.addresses(source)
    recorded = digests.get(source.name)
    if None not in (source.sha256, recorded) and source.sha256 != recorded:
        raise InputError(
            f"{options.lock}: {source.name} has sha256 {recorded}, but {source.sha256} is pinned; remove it"
        )
    expected = source.sha256 or recorded
    source.path.parent.mkdir(parents=True, exist_ok=True)
    with folder_lock(source.path):
        if source.path.exists():
            found = sha256_file(source.path)
            if expected not in (None, found):
                raise InputError(f"{source.path}: sha256 is {found}, expected {expected}; delete it to fetch it again")
            _record(options.lock, source.name, found)
            return
        under_way = Transfer(source.path, urls, expected, options.need_space, bar.update, options.backoff, stop)
        _record(options.lock, source.name, under_way.run())
        os.replace(under_way.part, source.path)
        under_way.note.unlink(missing_ok=True)


def _check_space(missing: Sequence[Source], options: Options, pool: ThreadPoolExecutor) -> int:
    """Is there room for everything, before anything is fetched? Returns how many bytes are to come."""
    sizes = list(pool.map(lambda source: transfer.size(options.addresses(source)), missing))
    needed: dict[int, int] = {}
    folders: dict[int, Path] = {}
    for source, size in zip(missing, sizes, strict=True):
        folder = source.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{source.path.name}.part"
        device = folder.stat().st_dev
        folders[device] = folder
        needed[device] = needed.get(device, 0) + max(size - (part.stat().st_size if part.exists() else 0), 0)
    for device, size in needed.items():
        options.need_space(folders[device], size)
    return sum(needed.values())


def read_lock(path: Path) -> dict[str, str]:
    """Recorded digests by name of the source; raises InputError where the file is no such record."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise InputError(f"{path}: not readable as JSON ({one_line(err)}); restore it from version control") from err
    if not isinstance(found, dict) or not all(re.fullmatch("[0-9a-f]{64}", str(digest)) for digest in found.values()):
        raise InputError(f"{path}: expected a mapping from names to sha256 digests; restore it")
    return found


def _record(lock: Path, name: str, digest: str) -> None:
    """Note a digest at first use; another one than the noted is an error."""
    with _recording, folder_lock(lock):
        digests = read_lock(lock)
        if digests.get(name) == digest:
            return
        if name in digests:
            raise InputError(f"{name}: sha256 is {digest}, but {lock} records {digests[name]}")
        write_json(lock, dict(sorted((digests | {name: digest}).items())))
