"""Files from anywhere: written whole or not at all, read without running anything in them, fetched and verified."""

from metrics.errors import InputError, explained, nearest, on_one_line
from metrics.files.downloads import (
    LOCK,
    PUBLISHED,
    Downloads,
    FailuresError,
    MissingError,
    Source,
    cache_root,
    fetch,
    fetch_each,
    read_lock,
)
from metrics.files.reading import load_npz
from metrics.files.writing import (
    atomic_write,
    folder_lock,
    link_or_copy,
    sha256_file,
    write_csv,
    write_json,
    write_npz,
    write_text,
)

__all__ = [
    "LOCK",
    "PUBLISHED",
    "Downloads",
    "FailuresError",
    "InputError",
    "MissingError",
    "Source",
    "atomic_write",
    "cache_root",
    "explained",
    "fetch",
    "fetch_each",
    "folder_lock",
    "link_or_copy",
    "load_npz",
    "nearest",
    "on_one_line",
    "read_lock",
    "sha256_file",
    "write_csv",
    "write_json",
    "write_npz",
    "write_text",
]
