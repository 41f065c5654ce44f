"""The authors' presets by name, as the study `STUDY` holds them."""

from dataclasses import asdict, dataclass
from pathlib import Path

from metrics.registry import Registry
from repro.study.files import named

#: The study that holds them.
STUDY = "edm2"


@dataclass(frozen=True)
class Preset:
    """A published pair of networks with its weight and the value it reached."""

    name: str
    #: Network file.
    main: str
    #: None: no guidance.
    guide: str | None
    guidance: float
    metric: str
    published: float


def presets() -> Registry[Preset]:
    """All presets by name, in the authors' order."""
    study, found = named(STUDY), Registry[Preset]("preset")
    for name, item in study.generate.items():
        pair, cell = item.guided.active, study.published[name]
        guide = None if pair.guide is None else Path(pair.guide).name
        found.register(name, Preset(name, Path(pair.main).name, guide, pair.guidance, cell.metric, cell.value))
    return found


def show(chosen: Preset) -> str:
    """A preset as lines of text."""
    return "\n".join(f"{key:10} {'-' if value is None else value}" for key, value in asdict(chosen).items())
