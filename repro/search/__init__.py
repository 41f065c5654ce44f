"""Finding the guide, EMA lengths and weight that serve a main network best."""

from repro.search.command import guide as guide
from repro.search.space import SearchSettings as SearchSettings
