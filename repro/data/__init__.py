"""Data sets: training streams, the crop of the published references, archives, and one file per kind."""

from repro.data.datasets import *  # noqa: F403
