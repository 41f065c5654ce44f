"""Studies: what one pipeline run is asked for."""

from repro.strict import build as build
from repro.strict import nearest as nearest
from repro.study.files import *  # noqa: F403
from repro.study.schema import *  # noqa: F403
