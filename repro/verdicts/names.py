"""The one table of methods: how readers know them, and a colour that is the same in every figure."""

from repro.drawing import MUTED, PALETTE

TRUE = "true"  # what competes with no method for the best value of a table
LABELS = {TRUE: "true samples", "unguided": "no guidance", "cfg": "CFG", "interval": "CFG + interval"}
COLOURS = {"unguided": MUTED, "autoguidance": PALETTE[0], "cfg": PALETTE[1], "interval": PALETTE[2]}


def label(method: str) -> str:
    """A method as readers know it; one that is not in the table is called what it is."""
    return LABELS.get(method, method)
