"""`repro schedule`: the best noise schedules of a network for Heun's method beside EDM's, as YAML and as a figure."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from torch import Tensor

from metrics import distributed
from metrics.documents import read_yaml
from metrics.files import InputError, write_text
from metrics.progress import progress
from repro import rows, schedules
from repro.guidance import Guided
from repro.sampler import SeedStreams, draw_inputs, sample
from repro.sampling.pairs import SIGMA_MAX, SIGMA_MIN, Configuration, Pair, Solver, load_pair
from repro.strict import build, digest, facts, located, within

#: Heun steps of the samples that errors are measured against.
FINE = 128


@dataclass(frozen=True)
class Choice:
    """What schedules are chosen for, and from."""

    #: Numbers of steps; a schedule for each.
    steps: list[int]
    #: Of the images whose trajectories are followed.
    seeds: range = range(16)
    #: Log-spaced levels to choose from, besides those of EDM for the same numbers of steps.
    grid: int = 32
    sigma_min: float = SIGMA_MIN
    sigma_max: float = SIGMA_MAX

    def __post_init__(self) -> None:
        within(self, 2, FINE // 2, "steps")
        within(self, 2, 256, "grid")
        if not self.steps or len(self.seeds) > 256:
            raise InputError(
                f"{len(self.steps)} numbers of steps, {len(self.seeds)} seeds: expected 1 or more, 1 to 256"
            )

    @property
    def levels(self) -> Tensor:
        """Everything to choose from."""
        return schedules.grid_levels(self.grid, sorted(set(self.steps)), self.sigma_min, self.sigma_max)


def find_schedules(network: str, choice: Choice, out: Path) -> pd.DataFrame:
    """Write the best schedules of `network` (file, or module:function) to `out`, and the figure beside it.

    Returns a row per number of steps: root mean square errors of the samples, less those of `FINE` steps of EDM, with
    EDM's levels and with the best ones. What `out` holds of the same network and choice is not made again; raises
    InputError where it holds anything else.
    """
    if out.suffix not in (".yaml", ".yml"):  # the figure has the same name but for this
        raise InputError(f"{out}: expected a name that ends in .yaml")
    levels = choice.levels
    pair = load_pair(Configuration(Guided(network)), distributed.device())
    made_of = digest(pair.digest, vars(choice) | {"seeds": list(choice.seeds)})
    if out.exists():
        found = read_yaml(out)
        if not isinstance(found, dict) or found.get("digest") != made_of:
            raise InputError(f"{out}: is there, and not what this would write; name another file")
        return pd.DataFrame(found["errors"])
    noise, labels = draw_inputs(pair.main, SeedStreams(pair.device, choice.seeds), pair.device)
    errors = schedules.step_costs(
        pair.main, noise, levels, labels, over=lambda each: progress("schedule", each, unit="level")
    )
    best = {n: _legible(levels[schedules.cheapest(errors, n)]) for n in sorted(set(choice.steps))}
    table = pd.DataFrame(_errors(pair, noise, labels, choice, best))
    chosen = [{"num_steps": n, "schedule": found} for n, found in best.items()]
    made = {"network": Path(network).name, "network_sha256": pair.main_sha256} | facts(choice)
    made |= {"seeds": f"{choice.seeds[0]}-{choice.seeds[-1]}", **rows.provenance(pair.device)}
    said = {"digest": made_of, "made": made, "sampler": chosen, "errors": table.to_dict("records")}
    from repro.drawing import save
    from repro.sampling.figure import draw_schedules

    edm = {n: schedules.edm(n, choice.sigma_min, choice.sigma_max)[:-1].tolist() for n in best}
    save(draw_schedules(table, best, edm), out.with_suffix(""))
    # Last: where it is, all is done.
    write_text(out, "# An entry of `sampler` takes its place in a study's.\n" + yaml.safe_dump(said, sort_keys=False))
    return table


def _legible(levels: Tensor) -> list[float]:
    return [float(f"{level:.5g}") for level in levels.tolist()]


def read_schedule(path: Path, num_steps: int) -> list[float]:
    """The noise levels that `find_schedules` wrote for so many steps; raises InputError where there are none."""
    raw = read_yaml(path)
    with located(path):
        entries = build(list[dict[str, Any]], raw.get("sampler") if isinstance(raw, dict) else None, "sampler")
        solvers = [build(Solver, entry, "sampler") for entry in entries]
        found = {solver.num_steps: solver.schedule for solver in solvers}
        if (levels := found.get(num_steps)) is None:
            raise InputError(f"no schedule of {num_steps} steps, found {', '.join(map(str, found)) or 'none'}")
        return levels


def _errors(
    pair: Pair, noise: Tensor, labels: Tensor | None, choice: Choice, best: dict[int, list[float]]
) -> list[dict[str, float]]:
    """The rows that `find_schedules` returns."""
    span = {"sigma_min": choice.sigma_min, "sigma_max": choice.sigma_max}

    def solved(**schedule: Any) -> Tensor:
        return sample(pair.main, noise, labels, **schedule)

    def error(found: Tensor) -> float:
        return float((found - fine).double().square().mean().sqrt())

    fine = solved(num_steps=FINE, **span)
    return [
        {"num_steps": n, "edm": error(solved(num_steps=n, **span)), "best": error(solved(levels=[*levels, 0.0]))}
        for n, levels in progress("errors", best.items(), unit="schedule")
    ]
