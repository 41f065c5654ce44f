"""Data sets: training streams, the crop of the published references, archives, and one file per kind."""

from repro.data.cifar10 import Cifar10
from repro.data.crop import center_crop_dhariwal
from repro.data.datasets import ImageDataset
from repro.data.digits import Digits
from repro.data.images import ImageFiles, ImageKind
from repro.data.kinds import FEATURES, KINDS, REFERENCE, Kind
from repro.data.published import PublishedReference

__all__ = ["FEATURES", "KINDS", "REFERENCE", "ImageDataset", "ImageKind", "Kind", "center_crop_dhariwal"]

BUILT_IN = {"digits": Digits, "cifar10": Cifar10, "images": ImageFiles, "reference": PublishedReference}
for _name, _kind in BUILT_IN.items():
    KINDS.register(_name, _kind)
