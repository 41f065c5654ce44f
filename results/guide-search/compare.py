"""Three searches of `repro guide` against an exhaustive grid and the hand-picked setting of the study `default`.

Run from the project's root, after the digits networks and data of the study are made (`dvc repro`):

    torchrun --standalone --nproc-per-node=2 results/guide-search/compare.py

Processes share the images; what was sampled is kept, and the same command goes on.
"""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from metrics import distributed
from metrics.files import write_csv, write_text
from metrics.frechet import Estimate, paired_difference
from metrics.names import named
from repro import search, study
from repro.drawing import MUTED, PAGE, PALETTE, save, styled
from repro.pipeline.measuring import load_detectors, load_reference
from repro.report.views import Cell, Column, View, to_markdown
from repro.rows import provenance
from repro.sampling.features import FeatureShards
from repro.search.distance import SampledDistance
from repro.search.runs import Networks
from repro.search.space import Candidate
from repro.strict import load
from repro.study import parse_seeds

HERE = Path(__file__).parent
OUT = Path("out/default/guide-search")
MAIN, GUIDE, DATA, DETECTOR = "digits-main-run", "digits-small-run", "digits", "digits"
SEARCHES = ("200000-200255", "201024-201279", "202048-202303")  # seeds of a search each, of which no study reports any
WEIGHTS, LENGTHS = (1.25, 1.5, 1.75, 2.0), (0.05, 0.10, 0.15)
HAND = Candidate("digits-small", 10, 1.5, 0.10, 0.10)  # generate.digits-autoguidance of studies/default.yaml
REPORTED = ("0-511", "1024-1535", "2048-2559")  # of that study's seeds, which neither searches nor grid have seen


def main() -> None:
    distributed.init()
    settings, default = load(search.SearchSettings, HERE / "settings.yaml"), study.load(Path("studies/default.yaml"))
    folders = {f"search on {seeds}": OUT / seeds for seeds in SEARCHES}
    for seeds, folder in zip(SEARCHES, folders.values(), strict=True):
        search.guide(default, MAIN, [GUIDE], DATA, replace(settings, seeds=seeds), DETECTOR, folder)
    paths = {name: pd.read_csv(folder / "path.csv") for name, folder in folders.items()}
    chosen = {name: found(pd.read_csv(folder / "finalists.csv").iloc[0]) for name, folder in folders.items()}

    networks = Networks(default, MAIN, [GUIDE], OUT / "grid" / "networks")
    place, cpu = default.out / "references" / DATA, torch.device("cpu")
    reference = load_reference(place, replace(default.evaluate, detectors=[DETECTOR], metrics=["fd"]))
    real, form = reference.require(DETECTOR), FeatureShards(load_detectors([DETECTOR], place, cpu))
    objective = SampledDistance(networks, real, form, default, OUT / "grid" / "features", cpu)
    kimgs = networks.guides["digits-small"].halvings()
    grid = [
        Candidate("digits-small", kimg, w, m, g)
        for w, kimg, m, g in itertools.product(WEIGHTS, kimgs, LENGTHS, LENGTHS)
    ]
    values = objective.measure(grid, settings.block)
    images = {name: int(path["images"].max()) for name, path in paths.items()} | {"grid": objective.images}
    chosen |= {"grid": grid[values.index(min(values))], "hand-picked": HAND}
    measured = {
        block: dict(zip(chosen, objective.measure(list(chosen.values()), parse_seeds(block)), strict=True))
        for block in REPORTED
    }
    if distributed.rank():
        return

    def less_grid(c: Candidate) -> Estimate:
        """FD less that of the grid's best, paired by seed: mean over the blocks."""
        pairs = [
            paired_difference(*(objective.features(x, parse_seeds(block)).gather() for x in (c, chosen["grid"])), real)
            for block in REPORTED
        ]
        error = sum(pair.standard_error**2 for pair in pairs) ** 0.5 / len(pairs)
        return Estimate(sum(pair.value for pair in pairs) / len(pairs), error)

    rows = []
    for name, candidate in chosen.items():
        blocks, away = pd.Series([measured[block][name] for block in REPORTED]), less_grid(candidate)
        rows.append(
            {"setting": name, **vars(candidate), "images": images.get(name)}
            | {"mean": blocks.mean(), "min": blocks.min(), "max": blocks.max()}
            | {"values": ";".join(f"{value:.5f}" for value in blocks)}
            | {"less_grid": away.value, "standard_error": away.standard_error}
            | {"upper_95": away.value + 1.96 * away.standard_error}
            | provenance(cpu)
        )
    comparison = pd.DataFrame(rows)
    on_grid = [vars(c) | {"num_images": len(settings.block), "value": v} for c, v in zip(grid, values, strict=True)]
    write_csv(HERE / "grid.csv", pd.DataFrame(on_grid))
    write_csv(HERE / "path.csv", pd.concat([path.assign(search=name) for name, path in paths.items()]))
    write_csv(HERE / "comparison.csv", comparison)
    save(draw(paths, pd.DataFrame(on_grid), comparison), OUT / "comparison")
    shutil.copy(OUT / "comparison.png", HERE)
    write_text(HERE / "comparison.md", to_markdown(view(comparison)))
    print(to_markdown(view(comparison)))


def found(row: pd.Series) -> Candidate:
    """The setting of a row of finalists."""
    return Candidate(row["guide"], int(row["kimg"]), row["guidance"], row["main_ema"], row["guide_ema"])


def view(rows: pd.DataFrame) -> View:
    columns = [Column(name, numeric=False) for name in ("found by", "setting")]
    columns += map(
        Column, ("images", "FD_digits", "least to greatest block", "less the grid's best", "95% upper bound")
    )
    lines = []
    for row in rows.to_dict("records"):
        images = "" if pd.isna(row["images"]) else f"{row['images']:,.0f}"
        value = f"{row['mean']:.3f}", f"{row['min']:.3f} to {row['max']:.3f}"
        away = f"{row['less_grid']:.3f} ± {row['standard_error']:.3f}", f"{row['upper_95']:.3f}"
        away = ("", "") if row["setting"] == "grid" else away
        lines.append([row["setting"], str(found(pd.Series(row))), images, *value, *away])
    return View(columns, [[*map(Cell, line)] for line in lines])


@styled
def draw(paths: dict[str, pd.DataFrame], grid: pd.DataFrame, comparison: pd.DataFrame) -> Figure:
    """Left: best value so far over the images generated; right: what was chosen, on seeds that none of them saw."""
    figure = Figure(figsize=(PAGE, 2.8))
    progress, judged = figure.subplots(1, 2, width_ratios=(3, 2))
    names, size = list(comparison["setting"]), grid["num_images"][0]
    colours = dict(zip(names, PALETTE, strict=False)) | {"hand-picked": MUTED}
    spent = [(i + 1) * size / 1000 for i in range(len(grid))]
    progress.step(spent, grid["value"].cummin(), where="post", color=colours["grid"], label="grid, in its order")
    for name, path in paths.items():
        full = path[(path["num_images"] == size) & (path["stage"] != "fresh seeds") & path["accepted"]]
        steps = [*full["images"] / 1000, path["images"].max() / 1000], [*full["value"], full["value"].iloc[-1]]
        progress.step(*steps, where="post", marker="o", color=colours[name], label=name)
    progress.set_xlabel("images generated (thousands)")
    progress.set_ylabel(f"best {named('fd_digits').axis}")
    progress.legend()
    for i, row in comparison.iterrows():
        judged.hlines(i, row["min"], row["max"], color=colours[row["setting"]], linewidth=4, alpha=0.35)
        judged.plot(row["mean"], i, marker="o", color=colours[row["setting"]])
    judged.set_yticks(range(len(names)), names)
    judged.set_ylim(len(names) - 0.5, -0.5)
    judged.set_xlabel(f"{named('fd_digits').axis} of {len(REPORTED)} x {len(parse_seeds(REPORTED[0]))} other images")
    judged.grid(axis="y", visible=False)
    return figure


if __name__ == "__main__":
    main()
