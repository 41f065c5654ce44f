"""Where the variation is lost: the spread of the known factors of digits along the weight, of CFG and autoguidance.

Run from the project's root, after the study `default` (`dvc repro`), whose networks are measured:

    python results/variation/measure.py

Spreads are within a class, and estimated (`factors.py`): corrected for the regressor's error on originals that it was
not trained on, and compared with what is known of real images. No generated image has an original of its own, so that
for real ones, too, the nearest other original counts. The errors are of the sampling of generated images, by the
jackknife over groups of seeds; how much worse the regressor is on images that are not quite digits is not known. What
is slanted may be rotated or sheared, which the regressor tells apart by little: where unguided images are far from real
ones, the change along the weight says more than the distance from real images.

Images and regressor are kept below OUT/variation; each table is written as soon as its part is done and not made again
while it stands.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from factors import FACTORS, UNSEEN, Calibration, Made, Regressor, estimate, nearest, spreads, train
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors.torch import save_file

from metrics.files import atomic_write, write_csv, write_text
from metrics.files.tensors import load_state_dict
from metrics.frechet import jackknife
from repro import study
from repro.data.digits import MAPS, NUM_CLASSES, Digits
from repro.drawing import MUTED, PAGE, WEIGHT_LABEL, save, styled
from repro.guidance import Guided
from repro.pipeline.measuring import GROUPS
from repro.report.figures import look
from repro.report.tables import method_label
from repro.report.views import Cell, Column, View, to_markdown
from repro.rows import provenance
from repro.sampling.pairs import Configuration, load_pair
from repro.sampling.shards import generate, read_shard
from repro.study import parse_seeds

HERE = Path(__file__).parent
METHODS, WEIGHTS = ("cfg", "autoguidance"), (1.0, 1.5, 2.0, 2.5, 3.0)
SEEDS = parse_seeds("300032-301055")  # of no study
TRAINED_ON, STEPS = 3_000_000, 1000
HELD_OUT, REAL = 3_000_001, 8192
CPU = torch.device("cpu")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/default"), show_default=True)
def main(out: Path) -> None:
    """Measure the networks of the study `default` whose outputs lie in OUT."""
    default = study.load(Path("studies/default.yaml"))
    data, made = default.data["digits"].made, provenance(CPU)
    network = standing_regressor(data, out / "variation" / "regressor.safetensors")
    true, found = real_images(network, data)
    new = true.items % UNSEEN == 0
    calibration = Calibration.of(true[new], found[new])
    table = HERE / "regressor.csv"
    if not table.exists():
        write_csv(table, pd.DataFrame(errors(network, data, true, found)).assign(**made))
    table = HERE / "factors.csv"
    if not table.exists():
        real = real_spreads(data, found)
        rows = [
            {"method": method, "guidance": weight} | row
            for method, weight, images in generated(default, out)
            for row in point(estimate(network, data, *images), calibration, real)
        ]
        write_csv(table, pd.DataFrame(rows).assign(**made))
    rows = pd.read_csv(table)
    text = "\n".join(map(to_markdown, (ratios(rows), regressor_view(pd.read_csv(HERE / "regressor.csv")))))
    write_text(HERE / "tables.md", text)
    save(draw(rows), out / "variation" / "variation")
    shutil.copy(out / "variation" / "variation.png", HERE)
    print(text)


def standing_regressor(data: Digits, path: Path) -> Regressor:
    """The regressor at `path`, trained if it does not stand there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            save_file(train(data, TRAINED_ON, STEPS).state_dict(), temporary)
    network = Regressor().eval().requires_grad_(False)
    network.load_state_dict(load_state_dict(path))
    return network


def real_images(network: Regressor, data: Digits) -> tuple[Made, Made]:
    """What real images are made of, and what they are estimated to be."""
    images, classes = data.draw(HELD_OUT, np.arange(REAL))
    items, maps = data.factors(HELD_OUT, np.arange(REAL))
    return Made(classes, maps, items), estimate(network, data, images, classes, items)


def real_spreads(data: Digits, found: Made) -> NDArray[np.float64]:
    """Spreads of real images, as of `spreads`: of maps exactly."""
    exact = np.broadcast_to(data.extents[:, None] / np.sqrt(3), [len(MAPS), NUM_CLASSES + 1])
    nothing = Calibration(np.ones([NUM_CLASSES, len(MAPS)]), np.zeros([NUM_CLASSES, len(MAPS)]))
    return np.vstack([exact, spreads(found, nothing)[-1:]])


def errors(network: Regressor, data: Digits, true: Made, found: Made) -> Iterator[dict[str, Any]]:
    """Of estimates of real images, of originals that the regressor was trained on, and of others."""
    images = data.draw(HELD_OUT, np.arange(REAL))[0]
    for name, some in (("trained on", true.items % UNSEEN > 0), ("others", true.items % UNSEEN == 0)):
        rmse = np.sqrt(np.square(found.maps - true.maps)[:, some].mean(axis=1))
        for factor, error, spread in zip(MAPS, rmse, data.extents / np.sqrt(3), strict=True):
            row = {"factor": factor, "originals": name, "rmse": error, "spread_real": spread}
            yield row | {"r2": 1 - (error / spread) ** 2, "num_images": int(some.sum())}
        few = np.flatnonzero(some)[:512]
        right = nearest(images[few], true.classes[few], found.maps[:, few]) == true.items[few]
        yield {"factor": "original", "originals": name, "right": right.mean(), "num_images": len(few)}


def generated(default: study.Study, out: Path) -> Iterator[tuple[str, float, tuple[torch.Tensor, NDArray[np.int64]]]]:
    """Method, weight, images uint8 [N, 1, 16, 16] with their classes; without guidance they are the same for all."""
    for method in METHODS:
        guided, networks = default.generate[f"digits-{method}"].guided, out / "networks"
        files = Guided(str(networks / guided.main), str(networks / str(guided.guide)), guided.guidance)
        pair = load_pair(Configuration(files, default.sampler), CPU)
        for weight in WEIGHTS:
            name = "unguided" if weight == 1 else f"{method}-{weight:g}"
            shards = generate(pair.at(weight), SEEDS, out / "variation" / name, default.shards.size, name)
            manifests, images = zip(*map(read_shard, shards), strict=True)
            classes = np.concatenate([manifest.labels for manifest in manifests])
            yield method, weight, (torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2), classes)


def point(found: Made, calibration: Calibration, real: NDArray[np.float64]) -> Iterator[dict[str, Any]]:
    """Spreads of what images, in the order of their seeds, are made of, against those of `real` ones."""
    everyone = np.arange(len(found.classes))
    left_out = [np.setdiff1d(everyone, group) for group in np.array_split(everyone, GROUPS)]
    whole, *replicates = (spreads(found[some], calibration) / real for some in (everyone, *left_out))
    counts = [*np.bincount(found.classes, minlength=NUM_CLASSES), len(everyone)]
    for k, c in np.ndindex(whole.shape):
        ratio = jackknife(whole[k, c], [replicate[k, c] for replicate in replicates])
        yield {
            "class": "all" if c == NUM_CLASSES else str(c),
            "factor": FACTORS[k],
            "spread": whole[k, c] * real[k, c],
            "spread_real": real[k, c],
            "ratio": ratio.value,
            "standard_error": ratio.standard_error,
            "num_images": counts[c],
        }


def ratios(rows: pd.DataFrame) -> View:
    """Spread over that of real images, the mean over classes, a line per method and weight."""
    columns = [Column("method", numeric=False), Column("w"), *map(Column, FACTORS), Column("N")]
    lines = []
    for (method, weight), group in rows[rows["class"] == "all"].groupby(["method", "guidance"], sort=False):
        values = [Cell(f"{v:.2f} ± {e:.2f}") for v, e in zip(group["ratio"], group["standard_error"], strict=True)]
        lines.append([Cell(method_label(method)), Cell(f"{weight:g}"), *values, Cell(str(group["num_images"].iloc[0]))])
    note = "Spread within a class over that of real images, ± its standard error (jackknife over groups of seeds)."
    return View(columns, lines, [note])


def regressor_view(rows: pd.DataFrame) -> View:
    """Errors of estimates of real images."""
    shown = ["factor", "originals", "rmse", "spread_real", "r2", "right", "num_images"]
    texts = [
        [x if isinstance(x, str) else "–" if np.isnan(x) else f"{x:.3g}" for x in row] for row in rows[shown].values
    ]
    note = "Errors on held-out real images; right: share whose original is found."
    columns = [Column(name.replace("_", " "), numeric=name not in shown[:2]) for name in shown]
    return View(columns, [list(map(Cell, row)) for row in texts], [note])


@styled
def draw(rows: pd.DataFrame) -> Figure:
    """Spread over that of real images along the weight: a panel per factor, a line per method."""
    figure = Figure(figsize=(PAGE, 3.9))
    for ax, factor in zip(figure.subplots(2, 3, sharex=True, sharey=True).flat, FACTORS, strict=True):
        ax.axhline(1, color=MUTED, linestyle="--", label="real images")
        for place, method in enumerate(METHODS):
            line = rows[(rows["class"] == "all") & (rows["factor"] == factor) & (rows["method"] == method)]
            ax.errorbar(line["guidance"], line["ratio"], line["standard_error"], capsize=2, **look(method, place))
        ax.set_title(factor)
    figure.supxlabel(WEIGHT_LABEL, fontsize=8)
    figure.supylabel("spread within a class / that of real images", fontsize=8)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


if __name__ == "__main__":
    main()
