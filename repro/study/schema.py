"""What a study asks for: the typed schema of `params.yaml` and of `studies/NAME.yaml`, strict to the leaves."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from metrics.detectors import DETECTORS
from metrics.files import PUBLISHED, InputError, nearest
from metrics.measure import METRICS, Options, value_names
from metrics.names import named
from repro import snapshots
from repro.data.kinds import KINDS, Kind
from repro.degradations import Strength
from repro.guidance import Guided, OtherGuide
from repro.sampling.pairs import Configuration, Sharding, Solver
from repro.sampling.sources import Model
from repro.streams import parse_seeds
from repro.strict import build, inline, located, positive, within
from repro.toy.settings import ToySettings
from repro.training.config import MI, TrainingConfig
from repro.trials import Tuning, check_ranges, settings_at

OUT = Path("out")
ID = r"[a-z0-9][a-z0-9_-]{0,99}"
#: Sections of a study that leave their outputs side by side, so that no two may share an id.
FOLDERS = (
    ("data", "images"),
    ("train", "networks", "models", "reconstruct", "blends"),
    ("toy", "generate", "tuned", "sweeps"),
)
#: Stage of `dvc.yaml` -> the section with an entry for each; report and verify apart.
STAGES = {
    **{section: section for sections in FOLDERS for section in sections if section not in ("tuned", "sweeps")},
    **{"tune": "tuned", "sweep": "sweeps", "reference": "data", "image_reference": "images"},
    **{"features": "generate", "evaluate": "generate"},
}


@dataclass(frozen=True)
class Data:
    """A data set (stages `data` and `reference`)."""

    #: A name of `repro.data.kinds.KINDS`: digits, cifar10, reference (published statistics), ...
    kind: str
    #: What the data are: fields of the kind.
    settings: dict[str, Any]
    #: What only decides the reference: fields of the kind's `measured`.
    reference: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _ = self.measured, self.made  # which say what is wrong with them

    @property
    def made(self) -> Kind:
        """The data set itself."""
        return build(KINDS[self.kind], self.settings, "settings")

    @property
    def measured(self) -> object:
        """Settings of the reference."""
        return build(KINDS[self.kind].measured, self.reference, "reference")


@dataclass(frozen=True)
class Images:
    """The user's own images (stages `images` and `reference`), a data set of kind `images`."""

    #: Zip or folder of square PNGs, with labels in dataset.json.
    path: str
    #: Whether conditional networks see the labels.
    use_labels: bool = True

    @property
    def data(self) -> Data:
        """The same as a data set."""
        return Data("images", {"path": self.path, "use_labels": self.use_labels})


@dataclass(frozen=True)
class Train:
    """A training run (stage `train`)."""

    #: Id of the data set.
    data: str = field(metadata={"of": "datasets"})
    config: TrainingConfig


@dataclass(frozen=True)
class RawSnapshots:
    """Every raw snapshot that was published of one training run, input of post-hoc EMA."""

    #: Name of the run; its files are raw-snapshots/RUN/RUN-KIMG-STD.pkl.
    run: str
    #: Latest snapshot, in units of 2^20 training images.
    until_Mi: int
    every_Mi: int = 32
    ema_stds: list[float] = field(default_factory=lambda: [0.05, 0.10])

    def __post_init__(self) -> None:
        positive(self, "until_Mi", "every_Mi")
        if self.until_Mi % self.every_Mi:
            raise InputError(f"until_Mi is {self.until_Mi}, expected a multiple of every_Mi ({self.every_Mi})")

    def files(self) -> list[str]:
        """Paths below a base address, in order of training time."""
        run, times = self.run, [mi * MI // 1000 for mi in range(self.every_Mi, self.until_Mi + 1, self.every_Mi)]
        return [f"raw-snapshots/{run}/{run}-{kimg:07d}-{std:.3f}.pkl" for kimg in times for std in self.ema_stds]


@dataclass(frozen=True)
class Networks:
    """Published networks of one training run (stage `networks`)."""

    #: Network files: addresses, or paths below the study's `sources`.
    fetch: list[str] | None = None
    #: Raw snapshots, for a `reconstruct` entry.
    raw: RawSnapshots | None = None
    #: Whether nobody has confirmed that the files are public, so that the study expects to go on without.
    optional: bool = False

    def __post_init__(self) -> None:
        if (self.fetch is None) == (self.raw is None) or self.fetch == []:
            raise InputError("expected exactly one of fetch and raw, and in fetch network files")

    def files(self) -> list[str]:
        """What is to be downloaded, as addresses or paths below the study's `sources`."""
        return self.raw.files() if self.raw else self.fetch or []


@dataclass(frozen=True)
class Blended:
    """Two guides as one (stage `blends`), called `ID/blend.json` as a guide (arXiv:2406.02507 appendix B.2)."""

    #: Guiding network; degradations of the guide are this one's.
    guide: str
    #: The other guiding network, or a blend that is named before.
    other: str
    #: The other's part of the guidance.
    share: float
    #: Name -> strength of what makes the other worse.
    other_degradations: dict[str, Strength] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _ = self.as_other  # which says what is wrong

    @property
    def as_other(self) -> OtherGuide:
        """The other one."""
        return OtherGuide(self.other, self.share, self.other_degradations)


@dataclass(frozen=True)
class Reconstruct:
    """Post-hoc EMA of one training run (stage `reconstruct`)."""

    #: Id of the run whose snapshots are combined.
    source: str = field(metadata={"of": "runs"})
    #: Relative EMA lengths to make.
    ema_stds: list[float]
    #: Training length of the result, thousands of images as in the snapshots' names.
    kimg: int

    def __post_init__(self) -> None:
        positive(self, "kimg")
        within(self, 0.001, 0.3, "ema_stds")
        if not self.ema_stds:
            raise InputError("ema_stds is empty, expected lengths")


@dataclass(frozen=True)
class Generate:
    """One sampled configuration (stages `generate`, `features` and `evaluate`)."""

    #: Label in tables: unguided, cfg, interval, autoguidance ...
    method: str
    #: Id of the data set measured against.
    data: str = field(metadata={"of": "datasets"})
    #: Seed blocks `first-last`, each measured on its own.
    seeds: list[str]
    #: Networks are files below out/<study>/networks/; a guide is always named, the main network again where there is
    #: no guidance, since DVC depends on it.
    guided: Guided = inline()

    def __post_init__(self) -> None:
        blocks = [parse_seeds(block) for block in self.seeds]
        if not blocks:
            raise InputError("seeds is empty, expected blocks such as 0-1023")
        if self.guided.guide is None:
            raise InputError("missing key guide; without guidance name the main network again")
        if self.guided.other_guides:
            raise InputError(
                "other_guides: in a study they are an entry of blends, named as guide, for DVC to know them"
            )

    def all_seeds(self) -> list[int]:
        """Seeds of all blocks, ascending."""
        return sorted({seed for block in self.seeds for seed in parse_seeds(block)})


@dataclass(frozen=True, kw_only=True)
class Tuned(Generate):
    """A configuration whose settings are looked for first (stage `tune`), as `tuning` says, then measured."""

    #: What is looked for -> least and greatest: `guidance`, and degradations of the guide, by name.
    over: dict[str, tuple[float, float]]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self.over, self.guided)

    def at(self, place: Sequence[float]) -> Guided:
        """The guided network at a place of the unit cube, see `settings_at`."""
        return settings_at(self.over, self.guided, place)


@dataclass(frozen=True, kw_only=True)
class Sweep(Generate):
    """One sensitivity curve (stage `sweep`): such configurations along an axis, on other seeds than the tables'."""

    #: Folder of the main network, as `main` begins; DVC depends on all of it, since EMA lengths vary.
    main_set: str
    #: The same of the guide.
    guide_set: str
    #: What varies.
    axis: Literal["guidance", "main_ema", "guide_ema"]
    values: list[float]
    #: The metric that weight and EMA lengths were chosen for, where it was one; figures of methods show this one.
    optimised_for: str | None = None
    #: Which figures show the curve -> its name in the legend, empty: the method's; default: the axis's own figure.
    figures: dict[Literal["guidance", "training", "capacity", "corruptions", "ema"], str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.shown:
            if (name == "ema") == (self.axis == "guidance"):
                raise InputError(f"figures.{name}: cannot show a curve over {self.axis}")
        for role in ("main", "guide"):
            folder, network = getattr(self, f"{role}_set"), getattr(self.guided, role)
            if network.split("/")[0] != folder:
                raise InputError(f"{role} is '{network}', expected a file in {role}_set, {folder}/...")
        if self.optimised_for is not None:
            named(self.optimised_for)
        points = [self.at(value) for value in self.values]
        if not points:
            raise InputError("values is empty, expected places on the axis")

    @property
    def shown(self) -> dict[Any, str]:
        """Figures that show the curve -> name in the legend, empty: the method's."""
        return {"guidance" if self.axis == "guidance" else "ema": ""} if self.figures is None else self.figures

    def at(self, value: float) -> Guided:
        """The guided network at one place of the axis."""
        if self.axis == "guidance":
            return replace(self.guided, guidance=value)
        role = self.axis.removesuffix("_ema")
        return replace(self.guided, **{role: snapshots.with_ema(getattr(self.guided, role), value)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Claim:
    """A claim that one configuration does better than another in a metric; or that a method does.

    Of a method there are several configurations, each trained from another seed, and what counts is how far their
    differences spread. Of one of each what counts is how far sampling seeds move the difference.
    """

    #: Id of a configuration; of the 2D example TOY-METHOD. Several: one for each training seed.
    better: str | list[str] = field(metadata={"of": "configurations"})
    #: The same; as many.
    than: str | list[str] = field(metadata={"of": "configurations"})
    #: Full name, see `metrics.names`.
    metric: str
    #: Who claims it: paper, section.
    source: str = ""
    #: The claim in words; default: made from the rest.
    text: str = ""
    #: It is better by at least this much.
    by: float = 0.0
    #: Instead: it is at most this much worse.
    within: float | None = None

    def __post_init__(self) -> None:
        if not named(self.metric).better:
            raise InputError(f"metric '{self.metric}': no direction is better, so nothing can be claimed")
        if self.within is not None and self.by:
            raise InputError("expected one of by and within, found both")
        several = isinstance(self.better, list)
        if several != isinstance(self.than, list) or len(_listed(self.better)) != len(_listed(self.than)):
            raise InputError("better and than: expected one id each, or lists of the same length")
        if several and not 1 < len(self.better) == len({*self.better}):
            raise InputError(f"better is {self.better}, expected two or more different ids, one for each training seed")

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Each configuration and the one that it is compared with, by training seed."""
        return [*zip(_listed(self.better), _listed(self.than), strict=True)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@dataclass(frozen=True)
class Ranked:
    """A method among others."""

    #: Its published value.
    published: float
    #: Its configurations here, one for each training seed.
    here: list[str] = field(metadata={"of": "configurations"})


@dataclass(frozen=True)
class Order:
    """Methods in the order of a metric, here and as published of other data, whose values are no match for ours."""

    metric: str
    #: Where the values are published, and of what.
    source: str
    #: By name.
    methods: dict[str, Ranked]

    def __post_init__(self) -> None:
        if not named(self.metric).better:
            raise InputError(f"metric '{self.metric}': no direction is better, so nothing can be ordered")
        numbers = {len(item.here) for item in self.methods.values()}
        if len(numbers) != 1 or 0 in numbers:
            raise InputError("methods: expected as many configurations of each as there are training seeds")


@dataclass(frozen=True)
class CurveClaim:
    """A claim about the shape of a curve, or about one curve against another."""

    #: Id of a sweep.
    curve: str = field(metadata={"of": "sweeps"})
    #: What is compared: `width` of the curve, its `least` value, or the `place` where it is least.
    feature: Literal["width", "least", "place"]
    #: `at`: within the distance of two EMA lengths.
    relation: Literal["above", "below", "at"]
    #: Another sweep, or a number.
    against: str | float = field(metadata={"of": "sweeps"})
    metric: str
    text: str
    source: str = ""

    def __post_init__(self) -> None:
        named(self.metric)


@dataclass(frozen=True)
class Published:
    """The published value of a configuration, in the one metric that its settings were optimised for."""

    #: Where it stands: table1, presets or corruptions.
    table: str
    #: Which row of that table.
    row: str
    metric: Literal["fid", "fd_dinov2"]
    value: float
    #: Where its networks come from: `ready-made` files, `raw-snapshots`, or an `unverified-source`: raw snapshots
    #: that nobody has confirmed to be public.
    source: Literal["ready-made", "raw-snapshots", "unverified-source"] = "ready-made"
    #: Rows of a table with the same family are ordered: what is published lower should be measured lower.
    family: str = ""


@dataclass(frozen=True)
class Waived:
    """A published value that no public files lead to."""

    table: str
    row: str
    metric: str
    value: float
    reason: str


@dataclass(frozen=True)
class Extra:
    """A detector that looks at few images of each configuration, and at no curve and no trial.

    Where its weights cannot be had, the study says so and goes on without.
    """

    #: Name of the detector.
    extra: str
    #: At most so many images: seed blocks from the first on, whole; and of real ones where any number can be drawn.
    images: int

    def __post_init__(self) -> None:
        positive(self, "images")


@dataclass(frozen=True)
class Evaluate:
    """What is measured for every configuration."""

    detectors: list[str | Extra] = field(default_factory=list)
    #: Names of `metrics.measure.METRICS`.
    metrics: list[str] = field(default_factory=lambda: ["fd"])
    #: Real features used by the neighbour metrics.
    num_real: int = 10_000
    #: Nearest neighbours of precision and recall.
    k: int = 3
    #: Nearest neighbours of density and coverage.
    k_density: int = 5

    def __post_init__(self) -> None:
        positive(self, "num_real")
        for name in self.all_detectors:
            DETECTORS[name]
        for name in self.metrics:
            if not METRICS[name].values or METRICS[name].needs_beside:
                lack = "compares with further sets" if METRICS[name].values else "is not of whole sets of images"
                raise InputError(f"metric '{name}' {lack}; `metrics evaluate` measures it")
        for names in (self.all_detectors, self.metrics):
            if len(set(names)) < len(names):
                raise InputError(f"{names}: names one twice")

    @property
    def options(self) -> Options:
        """The engine's settings."""
        return Options(tuple(self.metrics), k=self.k, k_density=self.k_density)

    @property
    def all_detectors(self) -> list[str]:
        """Names of the detectors, extra ones among them."""
        return [item.extra if isinstance(item, Extra) else item for item in self.detectors]

    @property
    def plain(self) -> list[str]:
        """Names of the detectors that look at everything."""
        return [item for item in self.detectors if isinstance(item, str)]

    @property
    def names(self) -> list[str]:
        """Full names of everything that is measured."""
        return [name for detector in self.all_detectors for name in value_names(self.metrics, detector)]

    @property
    def parts(self) -> "list[Part]":
        """What is measured of the same images: by the plain detectors together, then by each extra one."""
        extras = [item for item in self.detectors if isinstance(item, Extra)]
        apart = [Part(item.extra, self._of([item.extra]), item.images) for item in extras]
        return [Part("", self._of(self.plain)), *apart]

    def _of(self, names: list[str]) -> "Evaluate":
        """The same of some detectors, without metrics that are defined in the features of others."""
        others = {*self.all_detectors} - {*names}
        return replace(self, detectors=[*names], metrics=[x for x in self.metrics if METRICS[x].detector not in others])


@dataclass(frozen=True)
class Part:
    """What detectors measure that look at the same images."""

    #: Below those of the whole, where its reference and features lie: the extra detector's name.
    folder: str
    evaluate: Evaluate
    #: See `Extra`; None: all.
    images: int | None = None

    def blocks(self, item: Generate) -> list[str]:
        """Seed blocks of a configuration that are measured; raises InputError where not even one may be."""
        ends = itertools.accumulate(len(parse_seeds(block)) for block in item.seeds)
        found = [block for block, end in zip(item.seeds, ends, strict=True) if end <= (self.images or end)]
        if not found:
            raise InputError(f"{self.folder} looks at {self.images} images, fewer than seed block {item.seeds[0]} has")
        return found


@dataclass(frozen=True)
class Study:
    """Everything one `dvc repro` does; outputs go to out/<study>/."""

    #: Name, a plain id; equals the file's.
    study: str
    sampler: Solver
    shards: Sharding
    evaluate: Evaluate
    toy: dict[str, ToySettings]
    data: dict[str, Data]
    images: dict[str, Images]
    train: dict[str, Train]
    networks: dict[str, Networks]
    models: dict[str, Model]
    reconstruct: dict[str, Reconstruct]
    generate: dict[str, Generate]
    sweeps: dict[str, Sweep]
    tuned: dict[str, Tuned] = field(default_factory=dict)
    #: How settings are looked for.
    tuning: Tuning | None = None
    #: Several guides as one, by the id that `guide` names.
    blends: dict[str, Blended] = field(default_factory=dict)
    #: Modules that register kinds of data, detectors, metrics, rules or degradations; importing them runs them.
    plugins: list[str] = field(default_factory=list)
    #: What the study is to decide, about its configurations.
    claims: list[Claim] = field(default_factory=list)
    #: The same about its curves.
    curve_claims: list[CurveClaim] = field(default_factory=list)
    #: A table of the report, of the order of methods beside a published one.
    order: Order | None = None
    #: Base addresses of published files (http, https or file), tried in turn; no stage runs again for another.
    sources: list[str] = field(default_factory=lambda: [PUBLISHED])
    #: The same for the VAE of networks in latent space.
    hub: list[str] = field(default_factory=lambda: ["https://huggingface.co"])
    #: Configuration -> the value to compare it with.
    published: dict[str, Published] = field(default_factory=dict)
    #: What cannot be compared, by the id that its configuration would have.
    waived: dict[str, Waived] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(ID, self.study):
            raise InputError(f"study is '{self.study}', expected a plain id of letters a-z, digits, - and _")
        for sections in FOLDERS:
            seen: dict[str, str] = {}
            for section, key in ((name, key) for name in sections for key in getattr(self, name)):
                if not re.fullmatch(ID, key):
                    raise InputError(f"{section}.{key}: expected an id of letters a-z, digits, - and _ (no dots)")
                if seen.setdefault(key, section) != section:
                    raise InputError(f"{section}.{key}: the id occurs in {seen[key]} too; their folders would collide")
        for key, model in self.models.items():
            if model.path is None:
                raise InputError(f"missing key models.{key}.path")
        self._check_blends()
        dicts, lists = ("train", "reconstruct", "generate", "tuned", "sweeps"), ("claims", "curve_claims")
        entries = {f"{name}.{key}": item for name in dicts for key, item in getattr(self, name).items()}
        entries |= {f"{name}[{i}]": item for name in lists for i, item in enumerate(getattr(self, name))}
        entries |= {f"order.methods.{key}": item for key, item in (self.order.methods if self.order else {}).items()}
        for where, item in entries.items():
            self._check_names(where, item)
        for key in self.published:
            known(f"published.{key}", key, self.generate)
        for table in [p.table for p in self.published.values()] + [w.table for w in self.waived.values()]:
            if not re.fullmatch(ID, table):
                raise InputError(f"table is '{table}', expected a plain id, since files are named after it")
        for key in self.waived.keys() & self.generate.keys():
            raise InputError(f"waived.{key}: is also in generate; remove one of them")
        if self.tuned:
            self._check_tuning()
        for part, (key, sampled) in itertools.product(self.evaluate.parts, self.sampled.items()):
            with located(f"evaluate.detectors: {key}"):
                part.blocks(sampled)

    def _check_tuning(self) -> None:
        """What is tuned is so on seeds that nothing is judged by, for something that is measured."""
        if self.tuning is None:
            raise InputError("missing key tuning: tuned needs seeds, trials and metric")
        searched = self.evaluate.parts[0].evaluate.names
        if self.tuning.metric not in searched:
            measured = nearest(self.tuning.metric, searched)
            raise InputError(f"tuning.metric: '{self.tuning.metric}' is not measured (evaluate){measured}")
        for key, item in self.sampled.items():
            if not set(item.all_seeds()).isdisjoint(parse_seeds(self.tuning.seeds)):
                raise InputError(f"tuning.seeds: {key} reports some of {self.tuning.seeds}; give other seeds")

    def _check_blends(self) -> None:
        """Blends are made of networks, and of blends that are named before them."""
        there = self.network_sets - self.blends.keys()
        for key, blend in self.blends.items():
            known(f"blends.{key}.guide", blend.guide.split("/")[0], self.network_sets - self.blends.keys())
            known(f"blends.{key}.other", blend.other.split("/")[0], there)
            there.add(key)

    def _check_names(self, where: str, item: Any) -> None:
        """Whatever an entry names as `of` a part of the study is there, and the sampler has its interval."""
        for f in fields(item):
            for value in _listed(getattr(item, f.name)) if "of" in f.metadata else []:
                if isinstance(value, str):
                    known(f"{where}.{f.name}", value, getattr(self, f.metadata["of"]))
        if isinstance(item, Generate):
            known(f"{where}.main", item.guided.main.split("/")[0], self.network_sets - self.blends.keys())
            known(f"{where}.guide", str(item.guided.guide).split("/")[0], self.network_sets)
            with located(where):
                Configuration(self.spelt_out(item.guided), self.sampler)

    def spelt_out(self, guided: Guided) -> Guided:
        """The same with the networks of a blend in the blend's place."""
        blend = self.blends.get(str(guided.guide).split("/")[0])
        return guided if blend is None else replace(guided, guide=blend.guide, other_guides=self._others(blend))

    def _others(self, blend: Blended) -> list[OtherGuide]:
        """All but the first guide of a blend, each with its part of the guidance."""
        inner = self.blends.get(blend.other.split("/")[0])
        if inner is None:
            return [blend.as_other]
        others = self._others(inner)
        first = OtherGuide(inner.guide, 1 - sum(other.share for other in others), blend.other_degradations)
        return [replace(other, share=blend.share * other.share) for other in (first, *others)]

    @property
    def datasets(self) -> dict[str, Data]:
        """All data sets by id, the user's own images among them."""
        return self.data | {key: item.data for key, item in self.images.items()}

    @property
    def runs(self) -> set[str]:
        """Ids of the training runs, whose snapshots can be combined."""
        return {*self.train, *self.networks}

    @property
    def network_sets(self) -> set[str]:
        """Ids of everything that leaves networks."""
        return {*self.runs, *self.models, *self.reconstruct, *self.blends}

    @property
    def sampled(self) -> Mapping[str, Generate]:
        """Every configuration of images by id, those that are tuned with the settings before."""
        return self.generate | self.tuned

    @property
    def configurations(self) -> set[str]:
        """Ids of everything that a claim can be about."""
        return {*self.sampled, *(f"{key}-{method}" for key, toy in self.toy.items() for method in toy.methods)}

    @property
    def out(self) -> Path:
        """Folder of all outputs."""
        return OUT / self.study

    def ids(self) -> set[str]:
        """DVC stage names `stage@id` of this study."""
        return {f"{stage}@{key}" for stage, section in STAGES.items() for key in getattr(self, section)}


def known(where: str, value: str, names: Iterable[str]) -> None:
    """Raise InputError unless `value` is one of `names`."""
    if value not in names:
        raise InputError(f"{where}: '{value}' is not defined{nearest(value, names)}")
