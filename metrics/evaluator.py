"""Metrics inside a training loop, with the three calls of torchmetrics.

evaluator = Evaluator("img512", metrics=("fid", "kid"))
evaluator.update(images)                  # uint8 [N, 3, H, W], any number of times
values = evaluator.compute()              # {"fid": ..., "kid_inception": ...}
evaluator.reset()
"""

from collections.abc import Sequence

from metrics import distributed
from metrics.evaluation import Extractor, Images, settled
from metrics.files import InputError
from metrics.images import NAME, batches
from metrics.measure import Options, measure, said
from metrics.names import qualified
from metrics.results import Measurement
from metrics.sides import Side, plan
from metrics.streams import Stream


class Evaluator:
    """Metrics of images that are fed batch by batch; in one process, or in several of which each feeds its share.

    Args:
        reference: as `metrics.evaluate` takes it; it is read once.
        detectors: names of `metrics.detectors.DETECTORS`; or an `extractor` of them with weights, device.
        metrics: names as `metrics.evaluate` takes them; or `options` of them with their settings.

    Raises InputError when the reference cannot give what the metrics need, or the detectors cannot.
    """

    def __init__(
        self,
        reference: Images,
        detectors: Sequence[str] = ("inception",),
        metrics: Sequence[str] = ("fd",),
        *,
        extractor: Extractor | None = None,
        options: Options | None = None,
    ) -> None:
        self.extractor, self.options = settled(detectors, metrics, extractor, options)
        target = self.extractor.open_reference(reference, self.options)
        plan(Side(NAME), target, self.options.detectors, self.options, self.extractor.detectors)
        self.reference = self.extractor.extract(target)
        self.reset()

    def update(self, images: Images) -> None:
        """Add a batch: a tensor uint8 [N, 3, H, W], an array [N, H, W, 3], or what `metrics.evaluate` takes besides."""
        for batch in batches(images, self.extractor.batch_size):
            self.stream.add(batch)

    def reset(self) -> None:
        """Forget the images; the reference stays."""
        self.stream = Stream(self.extractor.detectors)

    def result(self) -> list[Measurement]:
        """Metrics of everything added since the start, in all processes together; empty but in the first."""
        sample, networks = self.stream.reference(), self.extractor.detectors
        return [
            value
            for name in self.options.detectors
            for value in measure(name, sample.features[name], self.reference, self.options, networks[name])
        ]

    def compute(self) -> dict[str, float]:
        """The same by full name (`fid`, `kid_inception`), the same in every process, all of which must call this.

        Values of all images only; raises InputError in every process where a metric cannot be measured.
        """
        values: dict[str, float] | str
        try:
            found = [m for m in self.result() if m.subset == "all"]
            values = {qualified(m.metric, m.detector): m.value for m in found}
        except Exception as err:
            if distributed.world_size() == 1:
                raise
            values = said(err)
        values = distributed.all_gather(values)[0]
        if isinstance(values, str):
            raise InputError(values)
        return values
