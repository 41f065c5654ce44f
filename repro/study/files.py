"""Study files: listed, read, and made the active one."""

from pathlib import Path

import yaml

from metrics.files import InputError, write_text
from repro.strict import build, nearest
from repro.study.schema import Study

PARAMS = Path("params.yaml")
STUDIES = Path("studies")


def load(path: Path = PARAMS) -> Study:
    """Read and check a study file.

    Raises:
        InputError: missing file, bad YAML, unknown or missing key, wrong type, dangling reference; the message
            names file and key.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such study file; `repro study list` names those at hand") from None
    except yaml.YAMLError as err:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(err).split())}") from err
    try:
        return build(Study, raw)
    except InputError as err:
        raise InputError(f"{path}: {err}") from None


def available() -> list[str]:
    """Names of the studies in studies/, templates left out."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml") if path.stem != "mine")


def study_path(name: str) -> Path:
    """File of a study by name.

    Raises:
        InputError: no such study; the message names the nearest.
    """
    path = STUDIES / f"{name}.yaml"
    if not path.exists():
        raise InputError(f"no study '{name}' in {STUDIES}/{nearest(name, available())}")
    return path


def use(name: str, force: bool = False) -> list[str]:
    """Make `name` the active study: params.yaml becomes a copy of its file. Returns the ids added and removed.

    Raises:
        InputError: params.yaml equals no study file (hand edits would be lost) and `force` is not set, or
            `name` shares stage ids with another study, which would overwrite each other in dvc.lock.
    """
    target = study_path(name)
    new = load(target)
    for other in available():
        shared = set() if other == name else load(STUDIES / f"{other}.yaml").ids() & new.ids()
        if shared:
            raise InputError(f"{target}: stage {min(shared)} also occurs in {other}; ids must carry their study")
    before: set[str] = set()
    if PARAMS.exists():
        text = PARAMS.read_text()
        known = [path.read_text() for path in STUDIES.glob("*.yaml")]
        if text not in known and not force:
            raise InputError(f"{PARAMS} has edits that no file in {STUDIES}/ holds; save them there or pass --force")
        try:
            before = load(PARAMS).ids()
        except InputError:
            before = set()
    write_text(PARAMS, target.read_text())
    after = new.ids()
    return [f"+ {key}" for key in sorted(after - before)] + [f"- {key}" for key in sorted(before - after)]
