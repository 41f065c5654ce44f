"""From the first minute on a machine to what a study will take there: checks, in ten minutes at most."""

from collections.abc import Callable, Sequence

import torch

from metrics import distributed
from metrics.registry import Registry
from repro.preflight.addresses import check_addresses
from repro.preflight.checks import Check, Setting, run
from repro.preflight.exactness import check_float16, check_golden
from repro.preflight.host import check_devices, check_disk
from repro.preflight.processes import check_processes
from repro.preflight.speeds import SPEEDS
from repro.study import Study, cost
from repro.study.rates import RECORD, Rates

__all__ = ["CHECKS", "preflight"]

#: In the order in which they are run.
CHECKS: Registry[Check] = Registry(
    "check",
    devices=check_devices,
    disk=check_disk,
    golden=check_golden,
    addresses=check_addresses,
    processes=check_processes,
    **SPEEDS,
    float16=check_float16,
)


def preflight(
    study: Study,
    echo: Callable[[str], None],
    only: Sequence[str] = (),
    offline: bool = False,
    price: float | None = None,
) -> bool:
    """Check this machine for a study, all or `only` some checks, and say what the study will take; False: one failed.

    What is found is kept in out/STUDY/preflight.json, from where `repro cost` takes the rates. Raises InputError for an
    unknown check, and a record that cannot be read.
    """
    device = distributed.device()
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    place = f"the {gpus} GPUs here" if gpus > 1 else "the GPU here" if gpus else "this CPU"
    wanted = {name: CHECKS[name] for name in only} or CHECKS
    chosen = {name: check for name, check in CHECKS.items() if name in wanted}
    record, sound = run(chosen, Setting(study, device, gpus, offline), echo)
    echo("\n".join(["", *cost.summary(cost.cost(study, Rates.of(record)), price, max(gpus, 1), place)]))
    if elsewhere := dict.fromkeys(task.part for task in cost.unmeasured(study, record)):
        echo(f"by rates of an A100, since not measured here: {', '.join(elsewhere)}")
    echo(f"kept in {study.out / RECORD}; `repro cost {study.study}` has it by stage")
    return sound
