"""What cannot be had for good, and what is not possible therefore: a note in the folder that it would be in."""

import json
from collections.abc import Mapping
from pathlib import Path

from metrics.files import explained, write_json
from repro.strict import build

NOTE = "missing.json"


def read_missing(folder: Path) -> dict[str, str]:
    """Why things are missing in a folder, by name: networks by file, values by place on a curve, or "" for all.

    A reason is `ADDRESS gave 404 on DATE`. Raises InputError for a note that is none.
    """
    path = folder / NOTE
    if not path.exists():
        return {}
    with explained(f"{path}: not a note of what is missing", "delete it", (OSError, ValueError)):
        return build(dict[str, str], json.loads(path.read_text(encoding="utf-8")))


def note_missing(folder: Path, reasons: Mapping[str, str]) -> None:
    """Leave the note, or none where nothing is missing."""
    if reasons:
        write_json(folder / NOTE, dict(sorted(reasons.items())))
    else:
        (folder / NOTE).unlink(missing_ok=True)
