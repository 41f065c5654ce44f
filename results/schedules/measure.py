"""What the best noise schedules gain over EDM's at equal steps: errors of samples, and FID of digits.

Run from the project's root, after the study `default` (`dvc repro`), whose networks are measured:

    python results/schedules/measure.py

The best levels are found as `repro schedule` finds them, on 16 images that are not measured. Errors are root mean
squares against 512 steps of EDM. Each table is written as soon as its part is done and not made again while it stands.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from metrics import detectors
from metrics.detectors import Detector
from metrics.features import detect
from metrics.files import write_csv, write_text
from metrics.frechet import jackknife, leave_one_out
from metrics.progress import progress
from metrics.statistics import from_features
from repro import schedules, study
from repro.guidance import Guided
from repro.networks import Denoiser
from repro.report.views import Cell, Column, View, to_markdown
from repro.rows import provenance
from repro.sampler import SeedStreams, draw_inputs, sample
from repro.sampling.pairs import Configuration, Solver, load_pair
from repro.streams import parse_seeds
from repro.toy.mixture import Mixture, fractal
from repro.toy.training import load

HERE = Path(__file__).parent
STEPS, FINE = (6, 8, 10, 12, 16), 512
CHOSEN_ON, MEASURED_ON = range(16), range(1000, 1064)
FID_SEEDS, REAL, BLOCKS = parse_seeds("2000-2511"), 2048, 16
CPU = torch.device("cpu")


class Exact:
    """The exact denoiser of the 2D example's mixture, in float64."""

    img_resolution, img_channels, label_dim, sigma_data, encoder = 1, 2, 0, 0.5, None

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        level = float(sigma.flatten()[0])
        return x + level**2 * self.mixture.score(x, torch.full([len(x), 1], level, dtype=x.dtype))


@dataclass(frozen=True)
class Case:
    """Something that is sampled."""

    name: str
    main: Denoiser
    #: Seeds -> noise, labels.
    inputs: Callable[[Iterable[int]], tuple[Tensor, Tensor | None]]
    sigma_min: float
    sigma_max: float
    guide: Denoiser | None = None
    guidance: float = 1.0
    dtype: torch.dtype = torch.float32

    def solve(self, seeds: Iterable[int], **schedule: Any) -> Tensor:
        noise, labels = self.inputs(seeds)
        return sample(self.main, noise, labels, self.guide, self.guidance, dtype=self.dtype, **schedule)

    def best(self) -> dict[int, Tensor]:
        """Levels by number of steps, of trajectories without guidance."""
        levels = schedules.grid_levels(32, STEPS, self.sigma_min, self.sigma_max)
        noise, labels = self.inputs(CHOSEN_ON)
        errors = schedules.step_errors(
            self.main, noise.to(self.dtype), levels, labels, over=lambda each: progress(self.name, each)
        )
        zero = torch.zeros(1, dtype=torch.float64)
        return {n: torch.cat([levels[schedules.cheapest(errors, n)], zero]) for n in STEPS}


def points(count: int) -> Callable[[Iterable[int]], tuple[Tensor, None]]:
    """Noise of 2D points, `count` for each seed."""

    def draw(seeds: Iterable[int]) -> tuple[Tensor, None]:
        parts = [torch.randn([count, 2], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.cat(parts), None

    return draw


def cases(default: study.Study) -> Iterator[Case]:
    toy = default.toy["toy"]
    span = (toy.sigma_min, toy.sigma_max)
    for lo, hi in ((0.002, 80.0), span):  # as for images, and as the 2D example is sampled
        exact = Exact(fractal("A"))
        yield Case(f"mixture, exact scores, {lo:g} to {hi:g}", exact, points(16), lo, hi, dtype=torch.float64)
    main, guide = (
        load(default.out / "results" / "toy" / "networks" / f"{role}.safetensors") for role in ("main", "guide")
    )
    yield Case("2D network", main, points(64), *span)
    yield Case("2D network, autoguidance", main, points(64), *span, guide, toy.autoguidance)
    for key, name in (("digits-unguided", "digits"), ("digits-autoguidance", "digits, autoguidance")):
        yield digits(default, key, name)


def digits(default: study.Study, key: str, name: str) -> Case:
    guided, solver = default.generate[key].guided, default.sampler
    folder = default.out / "networks"
    files = Guided(str(folder / guided.main), str(folder / str(guided.guide)), guided.guidance).active
    pair = load_pair(Configuration(files, Solver()), CPU)

    def inputs(seeds: Iterable[int]) -> tuple[Tensor, Tensor | None]:
        return draw_inputs(pair.main, SeedStreams(CPU, list(seeds)), CPU)

    return Case(name, pair.main, inputs, solver.sigma_min, solver.sigma_max, pair.guide, guided.guidance)


def errors(case: Case, best: dict[int, Tensor]) -> Iterator[dict[str, Any]]:
    span = {"sigma_min": case.sigma_min, "sigma_max": case.sigma_max}
    fine = case.solve(MEASURED_ON, num_steps=FINE, **span)
    for n in STEPS:
        found = {"edm": case.solve(MEASURED_ON, num_steps=n, **span), "best": case.solve(MEASURED_ON, levels=best[n])}
        away = {name: float((x - fine).double().square().mean().sqrt()) for name, x in found.items()}
        yield {"case": case.name, "num_steps": n, **away, "ratio": away["best"] / away["edm"]}


def fid(default: study.Study, case: Case, best: dict[int, Tensor]) -> Iterator[dict[str, Any]]:
    """FID of digits at equal steps, of the same seeds' images, so that the difference has a jackknife error."""
    data = default.data["digits"]
    real = data.made.draw(data.measured.seed, np.arange(REAL))[0].permute(0, 2, 3, 1).numpy()
    network = {"inception": detectors.load("inception", device="cpu")}
    target = from_features(features(network, real), network["inception"].tags)
    for n in STEPS:
        span = {"num_steps": n, "sigma_min": case.sigma_min, "sigma_max": case.sigma_max}
        left_out = {}
        for name, schedule in (("edm", span), ("best", {"levels": best[n]})):
            parts = [case.solve(FID_SEEDS[i : i + 64], **schedule) for i in range(0, len(FID_SEEDS), 64)]
            images = case.main.encoder.decode(torch.cat(parts)).permute(0, 2, 3, 1).numpy()
            blocks = torch.from_numpy(features(network, images)).tensor_split(BLOCKS)
            left_out[name] = np.array([value for value, _ in leave_one_out(blocks, target)])
        away = left_out["best"] - left_out["edm"]
        change, error = jackknife(away[0], away[1:].tolist())
        whole = {name: values[0] for name, values in left_out.items()}
        numbers = {"num_images": len(FID_SEEDS), "num_real": REAL}
        yield {"num_steps": n, **numbers, **whole, "difference": change, "standard_error": error}


def features(network: dict[str, Detector], images: Any) -> Any:
    images = np.broadcast_to(images, (*images.shape[:3], 3))
    return detect((list(images[i : i + 64]) for i in range(0, len(images), 64)), network, "inception")["inception"]


def main() -> None:
    default = study.load(Path("studies/default.yaml"))
    made = provenance(CPU)
    table = HERE / "errors.csv"
    if not table.exists():
        rows = [row | made for case in cases(default) for row in errors(case, case.best())]
        write_csv(table, pd.DataFrame(rows))
    table = HERE / "fid.csv"
    if not table.exists():
        case = digits(default, "digits-unguided", "digits")
        write_csv(table, pd.DataFrame([row | made for row in fid(default, case, case.best())]))
    parts = [to_markdown(view(pd.read_csv(HERE / name).drop(columns=list(made)))) for name in ("errors.csv", "fid.csv")]
    write_text(HERE / "tables.md", "\n".join(parts))
    print("\n".join(parts))


def view(table: pd.DataFrame) -> View:
    columns = [Column(str(name).replace("_", " "), numeric=table[name].dtype.kind in "if") for name in table]
    return View(
        columns, [[Cell(f"{x:.3g}" if isinstance(x, float) else str(x)) for x in row] for row in table.to_numpy(object)]
    )


if __name__ == "__main__":
    main()
