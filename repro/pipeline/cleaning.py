"""What lies on the disk, and what of it can be had again: `repro clean`."""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from metrics.files import InputError, cache_root, folder_lock
from metrics.files.reading import files_below
from repro import snapshots
from repro.missing import read_missing
from repro.pipeline.acquire import clear
from repro.study.schema import ID, OUT

#: Folder of shards that other settings have made, beside that of the configuration: ID.DIGEST.
ASIDE = re.compile(rf"{ID}\.([0-9a-f]{{12}}|version-0\.1)")
DVC_CACHE = Path(".dvc/cache")


@dataclass(frozen=True)
class Kind:
    """One kind of what lies on the disk."""

    what: str
    #: How it comes back, or is made smaller.
    remedy: str
    #: Ends of the names of the files that `repro clean` removes when asked; none: it does not.
    suffixes: tuple[str, ...] = ()


KINDS = {
    "aside": Kind("shards of settings that were left", "sampling again", (".zip", ".npz")),
    "images": Kind("shards of images", "sampling again; features and results stay", (".zip",)),
    "networks": Kind("networks that were fetched", "`repro fetch`", (".safetensors",)),
    "results": Kind("what else the stages keep in out/", "`dvc checkout` or `dvc pull`, where DVC has it"),
    "dvc": Kind(f"{DVC_CACHE}, to which files in out/ are links", "`dvc gc --workspace`, which keeps what is in use"),
    "cache": Kind("downloads and kept features of this user", "removing what you do not need by hand"),
}


def places(root: Path = OUT) -> dict[str, list[Path]]:
    """Kind -> folders of it: those of all studies below `root`, DVC's cache, and the user's."""
    found: dict[str, list[Path]] = {name: [] for name in KINDS}
    for folder in sorted(path for path in root.glob("*/*/*") if path.is_dir()):
        found[_kind(folder)].append(folder)
    found["dvc"] += [DVC_CACHE] if DVC_CACHE.is_dir() else []
    found["cache"] += [cache_root()] if cache_root().is_dir() else []
    return found


def _kind(folder: Path) -> str:
    section = folder.parent.name
    if section in ("samples", "features") and ASIDE.fullmatch(folder.name):
        return "aside"
    if section == "networks":
        with suppress(InputError):
            files = [path for path in folder.glob("*.safetensors") if not read_missing(path)]
            if files and all("source_sha256" in snapshots.read_metadata(path) for path in files):
                return "networks"
    return "images" if section == "samples" else "results"


def sizes(found: dict[str, list[Path]]) -> dict[str, int]:
    """Kind -> bytes; a file of several names counts once, at the first."""
    seen: set[tuple[int, int]] = set()
    totals = dict.fromkeys(found, 0)
    for name, folders in found.items():
        for facts in (facts for folder in folders for facts in files_below(folder)):
            if (facts.st_dev, facts.st_ino) not in seen:
                seen.add((facts.st_dev, facts.st_ino))
                totals[name] += facts.st_size
    return totals


def clean(names: Iterable[str], root: Path = OUT) -> None:
    """Remove shards or networks, known by their names, of some kinds; other files stay.

    Raises InputError for a kind that is not removed, and where a folder is in use.
    """
    names = list(names)
    for name in names:
        if not KINDS[name].suffixes:
            raise InputError(f"{name}: is not removed here; {KINDS[name].remedy}")
    found = places(root)
    for name, folder in [(kind, folder) for kind in names for folder in found[kind]]:
        with folder_lock(folder, wait=False):
            for place in [*(path for path in folder.glob("*/") if not path.is_symlink()), folder]:
                for suffix in KINDS[name].suffixes:
                    clear(place, suffix, [])
                with suppress(OSError):
                    place.rmdir()
        if not folder.exists():
            with suppress(OSError):
                Path(f"{folder}.lock").unlink()
