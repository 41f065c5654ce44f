"""Downloads of public files into a cache: resumable, with digests that are pinned or recorded at first use."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metrics.files import InputError, folder_lock, one_line, sha256_file, write_json

LOCK = "digests.json"
"""File in the cache folder with the digests of files that nobody has pinned: {filename: sha256}."""
TIMEOUT = (15, 60)  # seconds to connect, and between two pieces of the answer


def cache_root() -> Path:
    """The folder below which everything of this project is cached."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autoguidance-repro"


def fetch(filename: str, urls: Sequence[str], folder: Path, sha256: str | None, remedy: str) -> Path:
    """Path of `folder/filename`, downloaded from the first of `urls` that serves it when it is not there.

    An interrupted download is continued by the next call. Several processes may call this at once.

    Args:
        sha256: pinned digest; None: the one recorded in the folder's lock file, or recorded there now.
        remedy: what the message says to do when no address can be reached.

    Raises:
        InputError: no address serves the file, or it has another digest.
    """
    import pooch
    import requests

    with folder_lock(folder):
        path = folder / filename
        if path.is_file():
            check(path, sha256, folder)
            return path
        problems = []
        for url in urls:
            try:
                expected = sha256 or _recorded(folder).get(filename)
                pooch.retrieve(url, expected, filename, folder, downloader=_Resuming(folder / f"{filename}.part"))
            except requests.RequestException as err:
                problems.append(f"{url}: {one_line(err)}")
            except ValueError as err:  # pooch removes a file with another digest
                raise InputError(f"{url}: {one_line(err)}; the file has changed or was damaged on the way") from err
            else:
                check(path, sha256, folder)
                return path
    raise InputError(f"{filename} cannot be downloaded ({'; '.join(problems)}); {remedy}")


def check(path: Path, sha256: str | None, folder: Path) -> None:
    """Compare a file's digest with the pinned one, else with the one recorded in `folder`, else record it there.

    Raises InputError when they differ.
    """
    found = sha256_file(path)
    recorded = _recorded(folder)
    expected = sha256 or recorded.get(path.name)
    if expected is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / LOCK, recorded | {path.name: found})
    elif found != expected:
        origin = "pinned" if sha256 else f"recorded in {folder / LOCK}"
        raise InputError(
            f"{path}: sha256 {found}, {origin} is {expected}; remove the file and let it be downloaded again"
        )


def _recorded(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads((folder / LOCK).read_text()))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as err:
        raise InputError(f"{folder / LOCK}: not JSON ({one_line(err)}); correct or remove it") from err


class _Resuming:
    """A downloader for pooch that keeps what has arrived in `part` and asks the server for the rest."""

    def __init__(self, part: Path) -> None:
        self.part, self.version = part, part.with_name(f"{part.name}.version")

    def __call__(self, url: str, output_file: str | os.PathLike[str], pooch: Any) -> None:
        import requests
        from tqdm import tqdm

        headers = {"Accept-Encoding": "identity"}
        start = self.part.stat().st_size if self.part.exists() and self.version.exists() else 0
        if start:  # the rest only if the file is still the one that was begun
            headers |= {"Range": f"bytes={start}-", "If-Range": self.version.read_text()}
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == 416:
                self.part.unlink()
                return self(url, output_file, pooch)
            answer.raise_for_status()
            resumed = answer.status_code == 206
            self.version.write_text(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "unknown")
            total = int(answer.headers.get("Content-Length", 0)) + (start if resumed else 0)
            with (
                open(self.part, "ab" if resumed else "wb") as file,
                tqdm(
                    total=total or None, initial=start if resumed else 0, unit="B", unit_scale=True, disable=None
                ) as bar,
            ):
                for piece in answer.iter_content(2**18):
                    file.write(piece)
                    bar.update(len(piece))
        os.replace(self.part, output_file)
        self.version.unlink()
