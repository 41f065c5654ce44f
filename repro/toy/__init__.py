"""The paper's 2D example: a fractal mixture whose density is known, so that what guidance does can be measured."""

from repro.toy.metrics import NAMES as NAMES  # so that the names of its measures are known
