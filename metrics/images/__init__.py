"""Image sets: where they lie, what is in them, their pixels."""

from metrics.images.builtin import DATASETS
from metrics.images.decoding import decode
from metrics.images.memory import NAME, batches, is_array, open_array
from metrics.images.sets import ImageSet, choose, open_images, own_labels
from metrics.images.sources import LABELS, Source, ZipSource, open_sources

__all__ = [
    "DATASETS",
    "LABELS",
    "NAME",
    "ImageSet",
    "Source",
    "ZipSource",
    "batches",
    "choose",
    "decode",
    "is_array",
    "open_array",
    "open_images",
    "open_sources",
    "own_labels",
]
