"""The figure of noise schedules."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from repro.drawing import MUTED, PAGE, PALETTE, styled


@styled
def draw_schedules(
    table: pd.DataFrame, best: Mapping[int, Sequence[float]], edm: Mapping[int, Sequence[float]]
) -> Figure:
    """Levels, by number of steps, over the share of the steps; errors (columns `best` and `edm`) over `num_steps`."""
    figure = Figure(figsize=(PAGE, 2.6))
    levels, errors = figure.subplots(1, 2)
    for place, (num_steps, found) in enumerate(best.items()):
        colour, share = PALETTE[place % len(PALETTE)], [i / (num_steps - 1) for i in range(num_steps)]
        levels.plot(share, found, marker=".", color=colour, label=f"{num_steps} steps")
        levels.plot(share, edm[num_steps], linestyle="--", color=colour, linewidth=0.8)
    levels.set(yscale="log", xlabel="share of the steps", ylabel="noise level σ (dashed: EDM)")
    levels.legend()
    for column, label, colour in (("edm", "EDM", MUTED), ("best", "best", PALETTE[0])):
        errors.plot(table["num_steps"], table[column], marker="o", color=colour, label=label)
    errors.set(yscale="log", xlabel="steps", ylabel="root mean square error")
    errors.legend()
    return figure
