"""The two sides of a measurement as far as they are known before an image is decoded, or features are made."""

from collections.abc import Mapping
from dataclasses import dataclass

from metrics.detectors import Detector
from metrics.features import FeatureSet
from metrics.files import InputError
from metrics.images import ImageSet
from metrics.measure import MOST, Options, Prospect, refusals
from metrics.references import Reference
from metrics.sizes import TAG, Extent
from metrics.statistics import Statistics, Tag, check_tags


@dataclass(frozen=True)
class Side:
    """Images of which features are to be made, or what is kept of some: features, or for a reference statistics.

    A reference may have both: statistics of all images, and some of the images, for what statistics are not enough for.
    Neither of them: images that come batch by batch, of which nothing is known.
    """

    name: str
    images: ImageSet | None = None
    kept: Reference | None = None

    def count(self, detector: str) -> int:
        """How many images, unusable ones among them; 0 where a file does not say; of images to come, the most."""
        if self.images is not None:
            return self.images.candidates
        if self.kept is None:
            return MOST
        found = self._kept(detector)
        return found.num_images

    def has_features(self, detector: str) -> bool:
        """Whether features are at hand or can be made."""
        return self.images is not None or (self.kept is not None and detector in self.kept.features)

    def is_labelled(self, detector: str) -> bool:
        """Whether the classes are known."""
        if self.images is not None:
            return self.images.is_labelled
        return (
            self.kept is not None and detector in self.kept.features and self.kept.features[detector].labels is not None
        )

    def statistics(self, detector: str) -> Statistics | None:
        """Where these are at hand."""
        return None if self.kept is None else self.kept.statistics.get(detector)

    def made(self, detector: str, network: Detector | None) -> tuple[Mapping[str, Tag], int] | None:
        """Tags and dimension of its features; None where these need a network that is not loaded yet."""
        if self.kept is not None:
            found = self._kept(detector)
            return found.tags, found.dim
        return None if network is None else ({**network.tags, "source": self.name}, network.dim)

    @property
    def size(self) -> Extent | None:
        """Of the images, which are checked for it; None where a file does not say."""
        if self.images is not None:
            return self.images.size
        assert self.kept is not None
        kept: list[FeatureSet | Statistics] = [*self.kept.features.values(), *self.kept.statistics.values()]
        return next(filter(None, (Extent.read(x.tags.get(TAG)) for x in kept)), None)

    def _kept(self, detector: str) -> FeatureSet | Statistics:
        assert self.kept is not None
        kept = self.kept.check([detector])
        return kept.features.get(detector) or kept.statistics[detector]


def plan(
    side: Side,
    target: Side,
    names: tuple[str, ...],
    options: Options,
    networks: Mapping[str, Detector] | None,
    beside: Mapping[str, Side] | None = None,
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """What will be measured of `side` against `target`: metrics of each detector of `names`, and why others of all are
    left out. `networks` are the detectors, None before they are loaded; `beside`: see `Reference.beside`.

    Raises InputError where something that is asked for by name cannot be measured.
    """
    asked: dict[str, tuple[str, ...]] = {}
    left_out: list[str] = []
    for name in names:
        network = None if networks is None else networks.get(name)
        for other in (target, *(beside or {}).values()):
            ours, theirs = side.made(name, network), other.made(name, network)
            if ours and theirs:
                check_tags(ours[0], theirs[0])
                if ours[1] != theirs[1]:
                    where = f"{side.name} and {other.name}: features have {ours[1]} and {theirs[1]} dimensions"
                    raise InputError(f"{where}; use the same detector for both")
        is_part = target.kept is not None and target.kept.images is not None
        whole = {"train": target} if target.has_features(name) and not is_part else {}
        roles = whole | dict(beside or {})
        prospect = Prospect(
            name,
            options,
            side.count(name),
            target.name,
            target.count(name),
            target.has_features(name),
            target.statistics(name),
            {role: other.count(name) for role, other in roles.items()},
            side.is_labelled(name) and target.is_labelled(name),
            network,
            is_loaded=networks is not None,
        )
        try:
            refused = refusals(prospect)
        except InputError as err:
            raise InputError(f"{side.name}: {err}") from None
        for metric, refusal in refused.items():
            if not options.is_optional(metric, name):
                raise refusal
            left_out.append(f"{metric} of {name} is left out: {refusal}")
        asked[name] = tuple(metric for metric in options.of(name) if metric not in refused)
    if not any(asked.values()):
        raise InputError(f"{side.name}: nothing can be measured: {'; '.join(left_out)}")
    return asked, left_out
