"""The authors' presets by name, as `studies/edm2.yaml` holds them."""

from dataclasses import asdict, dataclass
from pathlib import Path

from metrics.files import InputError
from repro import study as studies

STUDY = "edm2"


@dataclass(frozen=True)
class Preset:
    """A published pair of networks with its weight and the value it reached."""

    name: str
    main: str
    """Network file."""
    guide: str | None
    """None: no guidance."""
    guidance: float
    metric: str
    published: float


def presets() -> dict[str, Preset]:
    """All presets by name, in the authors' order."""
    study = studies.load(studies.study_path(STUDY))
    found = {}
    for name, item in study.generate.items():
        guide = None if item.guidance == 1 else Path(item.guide).name
        cell = study.published[name]
        found[name] = Preset(name, Path(item.main).name, guide, item.guidance, cell.metric, cell.value)
    return found


def preset(name: str) -> Preset:
    """A preset by name; raises InputError naming the nearest where there is none."""
    found = presets()
    if name not in found:
        raise InputError(f"no preset '{name}'{studies.nearest(name, found)}")
    return found[name]


def show(chosen: Preset) -> str:
    """A preset as lines of text."""
    return "\n".join(f"{key:10} {'-' if value is None else value}" for key, value in asdict(chosen).items())
