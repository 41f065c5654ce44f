"""Image sets: where they lie, what is in them, their pixels."""

from metrics.images.sets import *  # noqa: F403
