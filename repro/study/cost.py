"""What a study will take: time by part of the work, downloads, and disk, before anything is spent."""

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

import pandas as pd

from metrics.files import InputError
from repro.guidance import Guided
from repro.streams import parse_seeds
from repro.study.counting import Shape, behind, count, published, shape_of, trained
from repro.study.rates import BESIDE, PARTS, Rates, Record, Sampled, Task, training_rate
from repro.study.schema import Generate, Part, Study, Sweep, Tuned
from repro.training.config import TrainingConfig
from repro.training.recipes import LABELS, Recipe

STAGE_COLUMNS = ["stage", "images", "gpu_hours", "download_gb", "disk_gb"]
PART_COLUMNS = ["part", "subject", "amount", "per_second", "hours", "origin"]
BYTES = {512: 420_000, 64: 9_000}  # of a PNG, typical
PNG = 0.53  # of others, bytes per value
FEATURE_BYTES = {"inception": 4 * 2048, "dinov2": 4 * 1024, "dinov2-pil": 4 * 1024}  # of an image
CHECKPOINT_BYTES = 4 * (1 + 2 + 2)  # per parameter: weights, Adam's moments, two averages
WIDTH = 80


@dataclass
class Stage:
    """What one stage takes."""

    name: str
    #: That it samples.
    images: float = math.nan
    #: How much of each kind of work.
    work: Counter[Task] = field(default_factory=Counter)
    download_gb: float = 0.0
    disk_gb: float = 0.0

    def hours(self, rates: Rates) -> float:
        """GPU-hours: of the GPU's part, or of the CPU's beside it where that takes longer."""
        sides = {True: 0.0, False: 0.0}
        for task, amount in self.work.items():
            sides[task.part in BESIDE] += amount / rates.of_task(task)[0] / 3600
        return max(sides.values())


@dataclass(frozen=True)
class Cost:
    """What a study takes: by stage, with their sum (`STAGE_COLUMNS`), and by part of the work (`PART_COLUMNS`)."""

    stages: pd.DataFrame
    parts: pd.DataFrame

    @property
    def total(self) -> "pd.Series[float]":
        """GPU-hours, downloads and disk of all stages."""
        return self.stages.iloc[-1]


def cost(study: Study, rates: Rates | None = None) -> Cost:
    """One row per costly stage of `study` and their sum, one per part of the work; rates are published ones by default.

    Published networks are recognised by name. What is not known, such as the work of a model of the user's own, is
    left out.
    """
    rates, found = rates or Rates(), list(stages(study))
    rows = [[s.name, s.images, s.hours(rates) if s.work else math.nan, s.download_gb, s.disk_gb] for s in found]
    table = pd.DataFrame(rows, columns=STAGE_COLUMNS)
    total = pd.DataFrame([{"stage": "total", **{name: table[name].sum() for name in STAGE_COLUMNS[1:]}}])
    amounts = work(found)
    known = [(task, amount, *rates.of_task(task)) for task, amount in amounts.items()]
    parts = [[t.part, t.subject, amount, rate, amount / rate / 3600, origin] for t, amount, rate, origin in known]
    return Cost(pd.concat([table, total], ignore_index=True), pd.DataFrame(parts, columns=PART_COLUMNS))


def work(found: list[Stage]) -> Counter[Task]:
    """How much of each kind of work stages take together, what belongs together side by side."""
    total: Counter[Task] = Counter()
    for stage in found:
        total.update(stage.work)
    order = list(PARTS)
    return Counter(dict(sorted(total.items(), key=lambda item: order.index(item[0].part))))


def unmeasured(study: Study, record: Record) -> list[Task]:
    """What a study has to do whose rate here is not known."""
    known = {(rate.part, rate.subject) for rate in record.rates}
    return [task for task in work(list(stages(study))) if (task.part, task.subject) not in known]


def stages(study: Study) -> Iterator[Stage]:
    """What each stage of a study takes that takes anything worth saying."""
    for key, item in study.networks.items():
        size = sum(_gigabytes(_published(name)) for name in item.files())
        yield Stage(f"networks@{key}", download_gb=size, disk_gb=size)
    for key, run in study.train.items():
        shape, (settings, pace) = trained(study, run), (run.config.settings, run.config.pace)
        stage = Stage(f"train@{key}")
        if shape is not None:
            snapshots = -(-pace.total_nimg // settings.snapshot_nimg) * len(settings.ema_stds)
            stage.disk_gb = snapshots * _gigabytes(shape) + shape.count().parameters * CHECKPOINT_BYTES / 1e9
            stage.work[Task("training", shape.name, (shape, run.config))] += pace.total_nimg
        yield stage
    for key, wanted in study.reconstruct.items():
        yield Stage(f"reconstruct@{key}", disk_gb=_gigabytes(behind(study, key)) * len(wanted.ema_stds))
    for key, sampled in study.generate.items():
        yield from _configuration(study, key, sampled)
    for key, tuned in study.tuned.items():
        yield _tuned(study, key, tuned)
    seen: set[str] = set()
    for key, sweep in study.sweeps.items():
        yield _curve(study, key, sweep, seen)


def _configuration(study: Study, key: str, item: Generate) -> Iterator[Stage]:
    """Stages `generate` and `features`."""
    number, keeps = len(item.all_seeds()), study.shards.keep_images
    sampling, features = Stage(f"generate@{key}", number), Stage(f"features@{key}")
    for images in [number] if keeps else [_looked(part, item) for part in study.evaluate.parts]:
        (sampling if keeps else features).work.update(_sampling(study, item.guided.active, images))
    looked = [(name, _looked(part, item)) for part in study.evaluate.parts for name in part.evaluate.plain]
    features.disk_gb = sum(FEATURE_BYTES.get(name, 0) * images for name, images in looked) / 1e9
    if main := behind(study, item.guided.main):
        if keeps:
            size = BYTES.get(main.side, PNG * main.side**2 * main.image_channels)
            sampling.disk_gb = number * size / 1e9
            image, label = (main.side, main.image_channels), _pixels(main)
            sampling.work[Task("png", label, image)] += number
            features.work[Task("decoding", label, image)] += number
        features.work.update(_detecting(main, looked))
    yield sampling
    yield features


def _tuned(study: Study, key: str, item: Tuned) -> Stage:
    """Stage `tune`: trials, of which no images are kept, and the configuration itself."""
    typical = item.at([0.5] * len(item.over))
    entry = Generate(item.method, item.data, item.seeds, typical)
    trials = study.tuning.trials * len(parse_seeds(study.tuning.seeds)) if study.tuning else 0
    stage = Stage(f"tune@{key}", trials + len(item.all_seeds()))
    for part in _configuration(study, key, entry):
        stage.disk_gb += part.disk_gb
        stage.work.update(part.work)
    stage.work.update(_sampling(study, typical, trials))
    if main := behind(study, item.guided.main):
        stage.work.update(_detecting(main, [(name, trials) for name in study.evaluate.plain]))
    return stage


def _curve(study: Study, key: str, sweep: Sweep, seen: set[str]) -> Stage:
    """Stage `sweep`; points that a curve of the study has already, in `seen`, are taken from there."""
    stage = Stage(f"sweep@{key}", 0)
    for guided, block in ((sweep.at(value).active, block) for value in sweep.values for block in sweep.seeds):
        number, point = len(parse_seeds(block)), f"{guided} {block} {sweep.data}"
        if point in seen:
            continue
        seen.add(point)
        stage.images += number
        stage.work.update(_sampling(study, guided, number))
        if main := behind(study, guided.main):
            stage.work.update(_detecting(main, [(name, number) for name in study.evaluate.plain]))
    return stage


def _sampling(study: Study, guided: Guided, images: int) -> Mapping[Task, int]:
    guided = study.spelt_out(guided)
    main = behind(study, guided.main)
    guides = [behind(study, name) for name, _ in guided.guides if name is not None]
    if main is None or None in guides:
        return {}
    evaluations = 2 * study.sampler.num_steps - 1  # the last Heun step has no second one
    shapes = [shape for shape in guides if shape is not None]
    guide = shapes[0] if shapes else None
    pair = Sampled(main, guide, guided, tuple(shapes[1:]))
    alone = Sampled(main, None, replace(guided, guidance=1.0).active)
    first, last = guided.interval or (0, study.sampler.num_steps - 1)
    guiding = 0 if guide is None else 2 * (last - first + 1) - (last == study.sampler.num_steps - 1)
    amounts = {Task("vae", _pixels(main), (main.side, main.image_channels)): images} if main.latent else {}
    for sampled, number in ((alone, evaluations - guiding), (pair, guiding)):
        if number:
            amounts[Task("sampling", sampled.label, sampled)] = number * images
    return amounts


def _looked(part: Part, item: Generate) -> int:
    """At how many images of a configuration the detectors of a part look."""
    return len({seed for block in part.blocks(item) for seed in parse_seeds(block)})


def _detecting(shape: Shape, looked: Iterable[tuple[str, int]]) -> Mapping[Task, int]:
    """By every detector at so many images."""
    image = (shape.side, shape.image_channels)
    return {Task("features", f"{name}, {_pixels(shape)}", (name, *image)): images for name, images in looked}


def _pixels(shape: Shape) -> str:
    return f"{shape.side} x {shape.side} x {shape.image_channels}"


def _published(file: str) -> Shape | None:
    return None if (recipe := published(file)) is None else shape_of(recipe)


def _gigabytes(shape: Shape | None) -> float:
    return 0.0 if shape is None else shape.count().parameters * 2 / 1e9


def training(config: TrainingConfig, recipe: Recipe) -> dict[str, float]:
    """What a training run takes on the recipe's data: size of the network, arithmetic (a step counts as three
    evaluations), A100-days by the published rates, disk."""
    settings, nimg = config.settings, config.pace.total_nimg
    counted = count(settings.network, recipe.data_shape, LABELS if settings.conditional else 0)
    return {
        "Mparameters": counted.parameters / 1e6,
        "Gflops per evaluation": counted.gflops,
        "Mimages": nimg / 1e6,
        "zettaflops": 3 * counted.gflops * nimg / 1e12,
        "A100-days": nimg / training_rate(counted.gflops) / 86400,
        "GB of snapshots": -(-nimg // settings.snapshot_nimg) * len(settings.ema_stds) * counted.parameters * 2 / 1e9,
        "GB of the checkpoint": counted.parameters * CHECKPOINT_BYTES / 1e9,
    }


def describe(config: TrainingConfig, recipe: Recipe) -> str:
    """The full configuration of a training run and what it costs on the recipe's data, as lines of text."""
    lines = [f"{key:26} {value}" for key, value in (config.settings.dotted() | asdict(config.pace)).items()]
    return "\n".join([*lines, "", *(f"{key:26} {value:,.4g}" for key, value in training(config, recipe).items())])


def show(study: Study, found: Cost, record: Record, price: float | None = None) -> str:
    """Both tables as text of `WIDTH` columns, with what they rest on; `price` of a GPU-hour."""
    lines = [f"{'stage':38}{'images':>12}{'GPU-hours':>11}{'fetch GB':>9}{'keep GB':>9}"]
    for row in found.stages.to_dict("records"):
        name = str(row["stage"]).replace(f"@{study.study}-", "@")
        numbers = [_number(row[key], digits) for key, digits in zip(STAGE_COLUMNS[1:], (0, 2, 1, 1), strict=True)]
        lines.append("{:38}{:>12}{:>11}{:>9}{:>9}".format(_short(name, 37), *numbers))
    lines += ["", f"{'part, with what':46}{'how many':>9}{'a second':>11}{'hours':>9}"]
    for row in found.parts.to_dict("records"):
        mark = {"measured": "*", "published": " ", "assumed": "?"}.get(row["origin"], " ")
        rate = "unknown" if math.isinf(row["per_second"]) else f"{row['per_second']:,.5g}{mark}"
        label = _short(f"{row['part']}, {row['subject']}", 45)
        lines.append(f"{label:46}{_many(row['amount']):>9}{rate:>11}{row['hours']:>9,.2f}")
    lines.append("")
    if (found.parts["origin"] == "measured").any():
        dates = [rate.date or record.date for rate in record.rates]
        when = " to ".join(dict.fromkeys((min(dates), max(dates))))
        lines += textwrap.wrap(f"* measured on {record.machine}, {when}", WIDTH, subsequent_indent="  ")
    if (found.parts["origin"] != "measured").any():
        lines.append("  published or (?) assumed of one A100; `repro preflight` measures")
    return "\n".join([*lines, *summary(found, price)])


def summary(found: Cost, price: float | None = None, count: int = 1, of: str = "") -> list[str]:
    """The end of it in lines: hours, money, disk, and the slowest part; time on `count` devices, called `of`."""
    hours, kept, fetched = (float(found.total[key]) for key in ("gpu_hours", "disk_gb", "download_gb"))
    time = f"{hours:,.2f} GPU-hours" + (of and f", {hours / count:,.2f} hours on {of}")
    lines = [time + ("" if price is None else f", {hours * price:,.2f} at {price:g} a GPU-hour")]
    lines.append(f"{fetched:,.1f} GB to fetch, {kept:,.1f} GB kept")
    by_part = found.parts.groupby("part", sort=False)["hours"].sum()
    if len(by_part) and by_part.max() > 0:
        beside = " (on the CPU, beside the GPU)" if by_part.idxmax() in BESIDE else ""
        share = by_part.max() / by_part.sum()
        lines.append(f"slowest part: {by_part.idxmax()}, {by_part.max():,.2f} hours, {share:.0%} of all work{beside}")
    return lines


def check_number(name: str, value: float | None) -> None:
    """Raise InputError unless an option is a finite number above 0, or not given."""
    if value is not None and not 0 < value < math.inf:
        raise InputError(f"{name} is {value}, expected a finite number above 0")


def brief(study: Study) -> str:
    """What a study takes, by what it names alone: images that it samples, files that it fetches, training runs."""
    counts = {
        "images": sum(_images(study)),
        "files to fetch": sum(len(item.files()) for item in study.networks.values()),
        "training runs": len(study.train),
        "2D examples": len(study.toy),
    }
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count) or "makes nothing"


def _images(study: Study) -> Iterator[int]:
    """How many are sampled of every configuration, at every place of a curve, and to look for settings."""
    for item in (*study.sampled.values(), *study.sweeps.values()):
        places = len(item.values) if isinstance(item, Sweep) else 1
        yield places * sum(len(parse_seeds(block)) for block in item.seeds)
    if study.tuning is not None:
        yield len(study.tuned) * study.tuning.trials * len(parse_seeds(study.tuning.seeds))


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 21]}…{text[-20:]}"


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:,.{digits}f}"


def _many(value: float) -> str:
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:,.4g}{name}"
    return f"{value:g}"
