"""`repro guide` against an exhaustive grid and against the hand-picked setting of the study `default`.

Run from the project's root, after the digits networks and data are made (`dvc repro`), and after the search:

    python -m repro guide --main digits-main-run --guide digits-small-run --data digits \
        --settings results/guide-search/settings.yaml --out out/default/guide
    python results/guide-search/compare.py

torchrun shares the images of both out among processes.
"""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from metrics import distributed
from metrics.files import write_csv
from metrics.frechet import paired_difference
from metrics.names import named
from repro import study
from repro.drawing import MUTED, PAGE, PALETTE, save, styled
from repro.pipeline.measuring import load_detectors, load_reference
from repro.rows import provenance
from repro.sampling.features import FeatureShards
from repro.search import SearchSettings
from repro.search.distance import SampledDistance
from repro.search.runs import Networks
from repro.search.space import Candidate
from repro.strict import load
from repro.study import parse_seeds

HERE = Path(__file__).parent
SEARCH = Path("out/default/guide")
GRID = Path("out/default/guide-grid")
WEIGHTS, LENGTHS = (1.25, 1.5, 1.75, 2.0), (0.05, 0.10, 0.15)
HAND = Candidate("digits-small", 10, 1.5, 0.10, 0.10)  # generate.digits-autoguidance of studies/default.yaml
REPORTED = ("0-511", "1024-1535", "2048-2559")  # of that study's seeds, which neither search nor grid has seen


def main() -> None:
    distributed.init()
    settings = load(SearchSettings, HERE / "settings.yaml")
    default = study.load(Path("studies/default.yaml"))
    networks = Networks(default, "digits-main-run", ["digits-small-run"], GRID / "networks")
    place, cpu = default.out / "references" / "digits", torch.device("cpu")
    reference = load_reference(place, replace(default.evaluate, detectors=["digits"], metrics=["fd"]))
    real, form = reference.require("digits"), FeatureShards(load_detectors(["digits"], place, cpu))
    objective = SampledDistance(networks, real, form, default, GRID / "features", cpu)

    seeds = settings.block
    grid = [
        Candidate("digits-small", kimg, w, m, g)
        for w, kimg, m, g in itertools.product(WEIGHTS, networks.guides["digits-small"].halvings(), LENGTHS, LENGTHS)
    ]
    values = objective.measure(grid, seeds)
    grid_images = objective.images
    best = grid[values.index(min(values))]
    table = pd.DataFrame([vars(c) | {"num_images": len(seeds), "value": v} for c, v in zip(grid, values, strict=True)])
    if distributed.rank() == 0:
        write_csv(HERE / "grid.csv", table)

    found = pd.read_csv(SEARCH / "finalists.csv").iloc[0]
    winner = Candidate(found["guide"], int(found["kimg"]), found["guidance"], found["main_ema"], found["guide_ema"])
    path = pd.read_csv(SEARCH / "path.csv")
    chosen = {"search": winner, "grid": best, "hand-picked": HAND}
    images = {"search": int(path["images"].max()), "grid": grid_images, "hand-picked": None}
    on_seeds = dict(zip(chosen, objective.measure(list(chosen.values()), seeds), strict=True))
    blocks = [objective.measure(list(chosen.values()), parse_seeds(block)) for block in REPORTED]
    if distributed.rank():
        return
    rows = []
    for number, (name, candidate) in enumerate(chosen.items()):
        fresh = [values[number] for values in blocks]
        pairs = [
            paired_difference(*(objective.features(c, parse_seeds(block)).gather() for c in (winner, candidate)), real)
            for block in REPORTED
        ]
        rows.append(
            {"setting": name, **vars(candidate), "images": images[name], f"fd_{len(seeds)}": on_seeds[name]}
            | {"mean": sum(fresh) / len(fresh), "min": min(fresh), "max": max(fresh)}
            | {"values": ";".join(f"{v:.5f}" for v in fresh)}
            | {"search_minus_this": sum(p.value for p in pairs) / len(pairs)}
            | {"standard_error": sum(p.standard_error**2 for p in pairs) ** 0.5 / len(pairs)}
            | provenance(cpu)
        )
    comparison = pd.DataFrame(rows)
    write_csv(HERE / "comparison.csv", comparison)
    print(comparison.T.to_string())
    save(draw(path, table, comparison), SEARCH / "comparison")
    for name in ("path.csv", "path.png", "finalists.csv", "summary.md", "study.yaml", "comparison.png"):
        shutil.copy(SEARCH / name, HERE / name)


@styled
def draw(path: pd.DataFrame, grid: pd.DataFrame, comparison: pd.DataFrame) -> Figure:
    """Left: best value so far over the images generated; right: what was chosen, on seeds that neither saw."""
    figure = Figure(figsize=(PAGE, 2.6))
    progress, judged = figure.subplots(1, 2, width_ratios=(3, 2))
    full = path[(path["num_images"] == grid["num_images"][0]) & (path["stage"] != "fresh seeds") & path["accepted"]]
    colours = {"search": PALETTE[0], "grid": PALETTE[1], "hand-picked": MUTED}
    spent = [(i + 1) * grid["num_images"][0] / 1000 for i in range(len(grid))]
    progress.step(spent, grid["value"].cummin(), where="post", color=colours["grid"], label="grid, in its order")
    steps = [*full["images"] / 1000, path["images"].max() / 1000], [*full["value"], full["value"].iloc[-1]]
    progress.step(*steps, where="post", marker="o", color=colours["search"], label="search")
    progress.set_xlabel("images generated (thousands)")
    progress.set_ylabel(f"best {named('fd_digits').axis}")
    progress.legend()
    for i, row in comparison.iterrows():
        judged.hlines(i, row["min"], row["max"], color=colours[row["setting"]], linewidth=4, alpha=0.35)
        judged.plot(row["mean"], i, marker="o", color=colours[row["setting"]])
    judged.set_yticks(range(len(comparison)), list(comparison["setting"]))
    judged.set_ylim(len(comparison) - 0.5, -0.5)
    images = f"{len(REPORTED)} x {len(parse_seeds(REPORTED[0]))} other images"
    judged.set_xlabel(f"{named('fd_digits').axis} of {images}")
    judged.grid(axis="y", visible=False)
    return figure


if __name__ == "__main__":
    main()
