"""Data sets: training streams, the crop of the published references, archives, and one file per kind."""

from repro.data.archives import ImageDataset, center_crop_dhariwal
from repro.data.cifar10 import Cifar10
from repro.data.digits import Digits
from repro.data.kinds import FEATURES, KINDS, REFERENCE, ImageFiles, ImageKind, Kind
from repro.data.published import PublishedReference

__all__ = ["FEATURES", "KINDS", "REFERENCE", "ImageDataset", "ImageKind", "Kind", "center_crop_dhariwal"]

KINDS.update(digits=Digits, cifar10=Cifar10, images=ImageFiles, reference=PublishedReference)
