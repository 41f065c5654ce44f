"""Study files: listed, read, and made the active one."""

import contextlib
import re
from itertools import takewhile
from pathlib import Path
from typing import Any

from metrics.documents import parse_yaml, read_yaml
from metrics.files import InputError, nearest, write_text
from metrics.registry import load_plugins
from repro.strict import build, located
from repro.study.schema import ID, Study

PARAMS = Path("params.yaml")
STUDIES = Path("studies")
HEAD = 4096  # characters of a study file, in which the comment at its head says what it is for


def load(path: Path = PARAMS) -> Study:
    """Read and check a study file; modules that it names as plugins are imported.

    Raises InputError that names file and key: missing file, bad YAML, unknown or missing key, wrong type, unknown id.
    """
    if not path.exists():
        raise InputError(f"{path}: no such study file; `repro study list` names those at hand")
    return _study(read_yaml(path), path)


def _study(raw: Any, path: Path) -> Study:
    """What the YAML of a study file says."""
    with located(path):
        if isinstance(raw, dict):
            _check_moved(raw)
            load_plugins(build(list[str], raw.get("plugins", []), "plugins"))
        return build(Study, raw)


def _check_moved(raw: dict[str, Any]) -> None:
    """Say of a study that was written for version 0.1 what became of its keys."""
    if "launcher" in raw:
        raise InputError("launcher is no part of a study any more: set it in machine.yaml (see CHANGELOG.md)")
    networks = raw.get("networks")
    for key, item in networks.items() if isinstance(networks, dict) else ():
        for old, new in (("train", "train"), ("code", "models")):
            if isinstance(item, dict) and old in item:
                raise InputError(f"networks.{key}.{old}: such entries stand under `{new}` now (see CHANGELOG.md)")


def available() -> list[str]:
    """Names of the studies in studies/, the template `mine` left out."""
    return sorted({path.stem for path in STUDIES.glob("*.yaml")} - {"mine"})


def purpose(name: str) -> str:
    """What a study is for: the first sentence of the comment at its head."""
    with study_path(name).open(encoding="utf-8", errors="replace") as file:
        lines = file.read(HEAD).splitlines()
    comment = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
    return re.split(r"(?<=[.?])\s", comment, maxsplit=1)[0]


def new(name: str, source: str = "mine") -> Path:
    """Write the study `name`, a copy of `source` with its name in the place of that one's; returns its file.

    Only a study whose ids carry its name has a copy with ids of its own.
    Raises InputError, and leaves nothing, where there is one of that name, or stages would be shared with another.
    """
    target, template = STUDIES / f"{name}.yaml", study_path(source)
    if not re.fullmatch(ID, name):
        raise InputError(f"'{name[:80]}' cannot name a study: expected small letters, digits, - and _")
    if target.exists():
        raise InputError(f"{target}: is there already; choose another name")
    read_yaml(template)  # which refuses what no text can be read from
    old = "<name>" if source == "mine" else rf"(?<!kind: )(?<![\w-]){re.escape(source)}(?!\w)"
    text = re.sub(old, name, template.read_text(encoding="utf-8"))
    _check_apart(name, _study(parse_yaml(text, f"{target}: "), target).ids())
    write_text(target, text)
    return target


def _check_apart(name: str, ids: set[str]) -> None:
    """Raise InputError where the study `name` shares some of its stages' ids with another, as dvc.lock would."""
    for other, study in readable().items():
        if other != name and (shared := study.ids() & ids):
            raise InputError(
                f"{STUDIES / f'{name}.yaml'}: stage {min(shared)} also occurs in {other}; ids must carry their study"
            )


def readable() -> dict[str, Study]:
    """The studies in studies/ by name, without those that cannot be read, which then cannot run either."""
    found = dict[str, Study]()
    for name in available():
        with contextlib.suppress(InputError):
            found[name] = load(STUDIES / f"{name}.yaml")
    return found


def study_path(name: str) -> Path:
    """File of a study by name; raises InputError that names the nearest where there is none."""
    path = STUDIES / f"{name}.yaml"
    if not re.fullmatch(ID, name) or not path.exists():
        raise InputError(f"no study '{name}' in {STUDIES}/{nearest(name, available())}")
    return path


def named(name: str | None = None) -> Study:
    """A study by name, the active one by default."""
    return load(study_path(name) if name else PARAMS)


def use(name: str, force: bool = False) -> list[str]:
    """Make `name` the active study: params.yaml becomes a copy of its file. Returns the ids added and removed.

    Raises InputError if params.yaml equals no study file (hand edits would be lost) and `force` is not set, or if
    `name` shares stage ids with another study, which would overwrite each other in dvc.lock.
    """
    target = study_path(name)
    after, before = load(target).ids(), set[str]()
    _check_apart(name, after)
    if PARAMS.exists():
        if not force and PARAMS.read_bytes() not in [path.read_bytes() for path in STUDIES.glob("*.yaml")]:
            raise InputError(f"{PARAMS} has edits that no file in {STUDIES}/ holds; save them there or pass --force")
        with contextlib.suppress(InputError):
            before = load(PARAMS).ids()
    write_text(PARAMS, target.read_text(encoding="utf-8"))
    return [f"+ {key}" for key in sorted(after - before)] + [f"- {key}" for key in sorted(before - after)]
