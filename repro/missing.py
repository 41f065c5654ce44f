"""What cannot be had for good, and what is not possible therefore: a note in the place where it would be.

In the place of a network the note has the network's name, so that DVC finds what depends on it there.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from metrics.files import InputError, write_json
from repro.strict import build

NOTE = "missing.json"  # beside measures
KEY = "missing"
LONGEST = 2**20  # bytes of a note


def read_missing(path: Path) -> dict[str, str]:
    """Why things are missing, if a file is a note of that: by place on a curve, or "" for all that would be here.

    A reason is `ADDRESS gave 404 on DATE`. Raises InputError for a broken note.
    """
    if not path.is_file() or path.stat().st_size > LONGEST:
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        if path.name != NOTE:
            return {}
        raise InputError(f"{path}: not a note of what is missing; delete it") from None
    return build(dict[str, str], found[KEY], str(path)) if isinstance(found, dict) and KEY in found else {}


def note_missing(path: Path, reasons: Mapping[str, str]) -> None:
    """Leave a note; where nothing is missing any more, none."""
    if reasons:
        write_json(path, {KEY: dict(sorted(reasons.items()))})
    elif read_missing(path):
        path.unlink()
