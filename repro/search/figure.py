"""The figure of a guide search."""

import pandas as pd
from matplotlib.figure import Figure

from metrics.names import named
from repro.drawing import MARKERS, MUTED, PAGE, PALETTE, WEIGHT_LABEL, styled


@styled
def draw_search(path: pd.DataFrame, metric: str) -> Figure:
    """What was measured on all images of the search's seeds, over the images that it took and over the weight.

    `path`: the search's path.csv.
    """
    rows = path[(path["stage"] != "fresh seeds") & (path["num_images"] == path["num_images"].max())]
    best = rows[rows["accepted"]]
    figure = Figure(figsize=(PAGE, 2.6))
    progress, weights = figure.subplots(1, 2, sharey=True)
    progress.plot(rows["images"] / 1000, rows["value"], linestyle="none", marker="o", color=MUTED, label="candidates")
    progress.step(best["images"] / 1000, best["value"], where="post", marker="o", color=PALETTE[0], label="best so far")
    progress.set(xlabel="images generated (thousands)", ylabel=named(metric).axis)
    progress.legend()
    for place, ((guide, kimg), group) in enumerate(rows.groupby(["guide", "kimg"])):
        marker, shade = MARKERS[place % len(MARKERS)], PALETTE[place % len(PALETTE)]
        weights.plot(group["guidance"], group["value"], marker, color=shade, label=f"{guide}, {kimg} kimg")
    weights.set_xlabel(WEIGHT_LABEL)
    weights.legend()
    return figure
