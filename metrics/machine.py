"""On what work runs: `machine.yaml` in the working folder, over which environment variables win.

None of it decides a result, so that none of it is part of a study: the same study runs on a laptop and on a cluster.
"""

import os
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from metrics.documents import read_yaml
from metrics.errors import InputError, nearest

FILE = Path("machine.yaml")
#: Variables that still serve where the new ones are not set.
FORMERLY = {"AUTOGUIDANCE_OFFLINE": "offline", "AUTOGUIDANCE_WEIGHTS": "weights"}


@dataclass(frozen=True)
class Machine:
    """Settings of this machine; each is also an environment variable, `REPRO_LAUNCHER` and so on."""

    #: What starts a stage that shares its work: `python`, or `torchrun --standalone --nproc-per-node=8`; empty:
    #: torchrun over all GPUs of the machine, where there are several.
    launcher: str = ""
    #: cpu, cuda, cuda:1; empty: a GPU where there is one.
    device: str = ""
    #: Anything: main network and guide run side by side on a GPU, on two CUDA streams, where both are small.
    streams: str = ""
    #: Anything: networks are replayed as CUDA graphs, without the time it takes to launch their kernels one by one.
    graphs: str = ""
    #: Processes that decode images; empty: by cores.
    workers: str = ""
    #: Folder of downloads and kept features; empty: autoguidance-repro in the user's cache folder.
    cache: str = ""
    #: Folder with detectors' weights, for machines without a network.
    weights: str = ""
    #: Seconds without a sign of life after which a process of a group counts as dead, and the others end; empty: 180.
    patience: str = ""
    #: Anything: nothing is downloaded.
    offline: str = ""
    #: Anything: shards that were verified once are read whole and verified again.
    verify: str = ""
    #: Anything: files whose digest is not known may come over plain http.
    allow_http: str = ""

    def __post_init__(self) -> None:
        if self.workers and not self.workers.isdecimal():
            raise InputError(f"workers is '{self.workers}', expected a number of processes")
        if self.patience and not (self.patience.isdecimal() and int(self.patience) >= 3):
            raise InputError(f"patience is '{self.patience}', expected whole seconds, 3 or more")


def machine() -> Machine:
    """The settings in force; raises InputError where the file cannot be read, or has an unknown key."""
    names = [field.name for field in fields(Machine)]
    values = dict(_read(str(FILE.resolve()), FILE.stat().st_mtime_ns)) if FILE.is_file() else {}
    if unknown := [key for key in values if key not in names]:
        raise InputError(f"{FILE}: unknown key {unknown[0]}{nearest(str(unknown[0]), names)}")
    variables = FORMERLY | {f"REPRO_{name.upper()}": name for name in names}
    values |= {name: os.environ[variable] for variable, name in variables.items() if variable in os.environ}
    return Machine(**{key: "" if value in (None, False) else str(value) for key, value in values.items()})


def cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _read(path: str, _: int) -> dict[str, object]:
    found = read_yaml(path) or {}
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a mapping of {', '.join(f.name for f in fields(Machine))}")
    return found
