"""Training EDM2 networks."""

from repro.training.loop import *  # noqa: F403
