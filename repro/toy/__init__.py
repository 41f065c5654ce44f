"""The paper's 2D example: a fractal mixture whose density is known, so that what guidance does can be measured."""

from repro.toy.pipeline import run
from repro.toy.settings import ToySettings

__all__ = ["ToySettings", "run"]
