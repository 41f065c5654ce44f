"""Published statistics of EDM2's format as the reference of a data set; there are no images to train on."""

from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from metrics import references
from metrics.detectors import DETECTORS, weights
from metrics.files import Downloads, InputError, Source, fetch, nearest, sha256_file
from repro.data.kinds import REFERENCE, Kind


@dataclass(frozen=True)
class PublishedReference(Kind):
    """Settings of a data set of kind `reference`."""

    #: Address, or path below the study's `sources`, of EDM2's pickle of statistics.
    statistics: str
    #: Detector -> name of its statistics in that file, such as `inception: fid`.
    detectors: dict[str, str]

    def __post_init__(self) -> None:
        if not Path(urlsplit(self.statistics).path).name:
            raise InputError(f"statistics is '{self.statistics}', expected an address or a path of a file")
        for detector, key in self.detectors.items():
            DETECTORS[detector]
            if key not in references.EDM2_DETECTORS:
                raise InputError(f"detectors.{detector}: '{key}' is unknown{nearest(key, references.EDM2_DETECTORS)}")

    def prepare(self, folder: Path, downloads: Downloads) -> str:
        """Fetch the file; the digest is its sha256.

        Raises InputError where it does not say of how many images it is, which nothing could be compared with.
        """
        (path,) = fetch([Source(self.statistics, self._file(folder), check=_checked)], downloads)
        _checked(path)  # also where its digest was recorded before
        return sha256_file(path)

    def measure(self, folder: Path, target: Path, detectors: list[str], settings: object, downloads: Downloads) -> None:
        """Convert statistics; that the weights of a detector are missing shows now, not after hours of sampling."""
        path = self._file(folder)
        if (published := references.load(path)) is None:
            raise InputError(f"{path}: holds no statistics; expected EDM2's pickle")
        found = {}
        for name in detectors:
            if name not in self.detectors:
                raise InputError(f"{path}: names no statistics of detector '{name}'{nearest(name, self.detectors)}")
            statistics = published.require(references.EDM2_DETECTORS[self.detectors[name]])
            found[name] = replace(statistics, tags={"detector": name, "source": self.statistics})
            weights.ensure(name, downloads.offline)
        references.save(found, target / REFERENCE)

    def _file(self, folder: Path) -> Path:
        return folder / Path(urlsplit(self.statistics).path).name


def _checked(path: Path) -> None:
    """Raise InputError unless a file holds published statistics that say of how many images they are."""
    for name, statistics in references.read_edm2(path).items():
        if statistics.num_images < 2:
            raise InputError(f"{path}: 'num_images' is {statistics.num_images} for {name}, expected that of the images")
