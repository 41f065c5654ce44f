"""The command line: `python -m metrics evaluate | reference | features | compare | neighbours | list`.

Bad input ends in one line on stderr and exit code 2; existing outputs are replaced only by complete ones. Where
something that was asked for is missing and the rest is printed and written, the exit code is 3.
"""

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from metrics import (
    Extractor,
    Options,
    Results,
    command_line,
    distributed,
    evaluation,
    features,
    listing,
    measure,
    references,
    sheet,
)
from metrics.files import InputError, cache_root
from metrics.registry import load_plugins
from metrics.results import columns


def _split(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))


def _sources(images: Sequence[str]) -> list[str]:
    """What is named, a pattern that is no path standing for whatever it finds."""
    found: list[str] = []
    for given in images:
        names = sorted(glob.glob(given, recursive=True)) if glob.has_magic(given) and not os.path.lexists(given) else []
        if glob.has_magic(given) and not os.path.lexists(given) and not names:
            raise InputError(f"{given}: no file or folder of that pattern; check it")
        found += names or [given]
    return found


def _weights(_: click.Context, __: click.Parameter, values: Sequence[str]) -> dict[str, Path]:
    pairs = [value.split("=", 1) if "=" in value else ["inception", value] for value in values]
    return {name: Path(path) for name, path in pairs}


Option = click.Option
PATH = click.Path(path_type=Path)
FORCE = Option(["--force"], is_flag=True, help="Replace an output that is there and no result of this tool.")
IMAGES = click.Argument(["images"], nargs=-1, required=True)
REFERENCE = Option(
    ["--ref", "--reference", "ref"],
    required=True,
    help="Statistics file, one of `metrics list references`, feature file, or images.",
)
STRICT = Option(["--strict-size"], is_flag=True, help="Stop where image sizes make a value questionable.")
PLUGIN = Option(["--plugin"], multiple=True, help="Module that registers detectors or metrics of your own.")
EXTRACTION = [
    Option(["--detectors", "names"], default="inception", callback=_split, help="Where metrics name none: dinov2, ..."),
    Option(["--weights"], multiple=True, callback=_weights, help="[DETECTOR=]PATH of weights on this machine."),
    PLUGIN,
    Option(["--resize"], default="torch", type=click.Choice(["torch", "pil"]), help="Of dinov2."),
    Option(["--device"], help="cpu, cuda, cuda:1; default: a GPU where there is one."),
    Option(["--batch-size"], default=64, type=click.IntRange(min=1)),
    Option(["--workers", "num_workers"], type=click.IntRange(min=0), help="Decoding processes; default: by cores."),
    Option(["--cache"], type=PATH, help="Folder of kept features."),
    Option(["--no-cache"], is_flag=True, help="Keep no features, so nothing can be resumed."),
    Option(["--skip-bad"], is_flag=True, help="Leave out unreadable images instead of stopping."),
]
SUBSET = [
    Option(["--num"], type=click.IntRange(min=2), help="Measure this many images, or rows of a feature file."),
    Option(["--seed"], type=click.IntRange(min=0), help="Choose them at random; default: the first ones."),
]
METRIC = [
    Option(
        ["--metrics"],
        default="fd",
        callback=_split,
        help=f"Comma-separated: {', '.join(measure.METRICS)}; prdc, fid, fd_dinov2, ...; all.",
    ),
    Option(["--blocks", "num_blocks"], default=1, help="Also measure this many disjoint runs of images."),
    Option(["--error-blocks"], default=0, help="Jackknife blocks for the error of fd; 0 for none."),
    Option(["--kid-subsets"], default=100),
    Option(["--kid-subset-size"], default=1000),
    Option(["--k"], default=3, help="Neighbours of precision and recall."),
    Option(["--k-density"], default=5, help="Neighbours of density and coverage."),
]
BESIDE = [
    Option(["--train"], help="Images or features of the training set, for authpct and ct; default: the reference."),
    Option(["--test"], help="The same of held-out images, for ct."),
]
OUTPUT = [
    Option(["--json"], type=PATH, help="Write everything here; - for the screen."),
    Option(["--csv"], type=PATH, help="Write one row per value here."),
    FORCE,
    STRICT,
]
FILE = [IMAGES, Option(["--out"], type=PATH, required=True, help="npz file to write."), FORCE, *SUBSET, *EXTRACTION]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True})
@click.option("--plugin", multiple=True, help="Module that registers what you add (docs/extending.md); repeatable.")
@command_line.show_version
def cli(plugin: Sequence[str]) -> None:
    """Measure image sets: FID, FD_DINOv2 and their companions."""
    load_plugins(plugin)


@cli.command(params=[IMAGES, REFERENCE, *METRIC, *BESIDE, *SUBSET, *EXTRACTION, *OUTPUT])
@click.option("--pool", is_flag=True, help="Measure all IMAGES together, as one set.")
@click.option("--append", is_flag=True, help="Add rows to the --csv that is there, if it has the same columns.")
def evaluate(
    images: tuple[str, ...],
    ref: str,
    train: str | None,
    test: str | None,
    num: int | None,
    seed: int | None,
    pool: bool,
    strict_size: bool,
    json: Path | None,
    csv: Path | None,
    append: bool,
    force: bool,
    **given: Any,
) -> int:
    """Measure each of IMAGES (folders, zip, tar, npz, or files of `metrics features`) against a reference.

    A quoted pattern, such as 'shards/*.zip', is one set of whatever it finds. Exit code 3: something that was asked for
    is missing, and the rest is printed and written.
    """
    groups = [_sources([given]) for given in images]
    sets = [[path for group in groups for path in group]] if pool else groups
    beside = {role: path for role, path in (("train", train), ("test", test)) if path is not None}
    inputs = [*(path for group in groups for path in group), ref, *beside.values()]
    command_line.check_outputs([json, csv], inputs, force, appended=csv if append else None)
    if append:
        if csv is None:
            raise InputError("--append adds rows to a CSV; name it with --csv")
        command_line.check_append(csv, columns())
    load_plugins(given.pop("plugin"))
    chosen = {field.name: given.pop(field.name) for field in fields(Options) if field.name in given}
    options = Options(**chosen).bound(given["names"])
    extractor = _extractor(**given | {"names": options.detectors})
    results = evaluation.evaluate_sets(sets, ref, extractor, options, num, seed, strict_size, beside)
    return _output(results, json, csv, append)


@cli.command(params=[REFERENCE, *EXTRACTION, *OUTPUT])
@click.argument("first")
@click.argument("second")
@click.option("--error-blocks", default=10, help="Blocks of seeds for the jackknife.")
def compare(
    first: str,
    second: str,
    ref: str,
    error_blocks: int,
    strict_size: bool,
    json: Path | None,
    csv: Path | None,
    force: bool,
    plugin: Sequence[str],
    **given: Any,
) -> int:
    """Whether images FIRST (A) or SECOND (B), made from the same seeds in the same order, are nearer to a reference."""
    command_line.check_outputs([json, csv], [first, second, ref], force)
    load_plugins(plugin)
    results = evaluation.compare(_extractor(**given), first, second, ref, error_blocks, strict_size)
    return _output(results, json, csv)


@cli.command(params=FILE)
def reference(out: Path, **given: Any) -> None:
    """Make reference statistics of IMAGES, all of them together, for every detector."""
    stats = {name: x.statistics() for name, x in _features(out, **given).items()}
    if distributed.rank() == 0:
        references.save(stats, out)
    distributed.print0(f"{out}: {', '.join(f'{name} of {x.num_images} images' for name, x in stats.items())}")


@cli.command("features", params=FILE)
def keep(out: Path, **given: Any) -> None:
    """Keep the features of IMAGES, all of them together, to be given to the other commands in their place."""
    sets = _features(out, **given)
    features.save(sets, out)
    distributed.print0(f"{out}: {', '.join(f'{x.num_images} x {x.dim} of {name}' for name, x in sets.items())}")


@cli.command(params=[IMAGES, FORCE, *EXTRACTION])
@click.option("--train", required=True, help="The training images.")
@click.option("--out", type=PATH, required=True, help="HTML file to write; - for the screen.")
@click.option("--count", default=16, type=click.IntRange(1, 200), help="Images of either kind to show.")
@click.option("--neighbours", default=3, type=click.IntRange(1, 10), help="Training images beside each.")
def neighbours(
    images: tuple[str, ...],
    train: str,
    out: Path,
    count: int,
    neighbours: int,
    force: bool,
    plugin: Sequence[str],
    **given: Any,
) -> None:
    """Show the images of IMAGES nearest to and farthest from training images, side by side with these, on a page."""
    paths = _sources(images)
    command_line.check_outputs([out], [*paths, train], force)
    load_plugins(plugin)
    page, copies = sheet.make_sheet(_extractor(**given), paths, train, count, neighbours)
    if distributed.rank() == 0:
        command_line.deliver(out, page)
        click.echo(f"{out}: {copies} of the images on it are suspected copies", err=True)


@cli.command("list", params=[PLUGIN])
@click.argument("kinds", nargs=-1, type=click.Choice(list(listing.KINDS)))
def list_(kinds: tuple[str, ...], plugin: Sequence[str]) -> None:
    """Detectors, metrics and published references that there are, or only these KINDS."""
    load_plugins(plugin)
    click.echo(listing.listing(kinds or listing.KINDS))


def _extractor(resize: str, cache: Path | None, no_cache: bool, **given: Any) -> Extractor:
    kept = None if no_cache else cache or cache_root() / "features"
    return Extractor(cache=kept, settings={"dinov2": {"resize": resize}}, **given)


def _features(
    out: Path,
    images: tuple[str, ...],
    num: int | None,
    seed: int | None,
    force: bool,
    plugin: Sequence[str],
    **given: Any,
) -> Mapping[str, features.FeatureSet]:
    paths = _sources(images)
    command_line.check_outputs([out], paths, force, text=False)
    load_plugins(plugin)
    extractor = _extractor(**given)
    side = extractor.open(paths, num, seed)
    if min(side.count(name) for name in extractor.names) < 2:
        raise InputError(f"{side.name}: a covariance needs at least 2 images, found 1; give more images")
    measured = extractor.extract(side)
    _warn(measured.warnings)
    return {name: measured.features[name] for name in extractor.names}


def _warn(warnings: Sequence[str]) -> None:
    for text in warnings if distributed.rank() == 0 else ():
        click.echo(f"warning: {text}", err=True)


def _output(results: Results, json: Path | None, csv: Path | None, append: bool = False) -> int:
    _warn(results.warnings)
    if distributed.rank() == 0:
        if "-" not in (str(json), str(csv)):  # where nothing else is to be on the screen
            click.echo(results.table())
        if json is not None:
            command_line.deliver(json, results.json())
        if csv is not None:
            (command_line.append if append else command_line.deliver)(csv, results.csv())
        for failure in results.missing:
            click.echo(f"missing: {failure}", err=True)
    return command_line.INCOMPLETE if results.missing else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry function; returns the exit code."""
    distributed.init()
    return command_line.run(cli, "metrics", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
