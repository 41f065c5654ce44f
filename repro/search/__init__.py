"""Finding the guide, EMA lengths and weight that serve a main network best; settings at equal effort."""

from repro.search.command import guide as guide
from repro.search.space import SearchSettings as SearchSettings
from repro.search.tuning import run_tune as run_tune
