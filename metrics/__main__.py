"""The command line: `python -m metrics evaluate | reference | features | compare`.

Bad input ends in one line on stderr and exit code 2; existing outputs are replaced only by complete ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from metrics import Extractor, Options, Results, command_line, distributed, evaluation, features, measure, references
from metrics.files import cache_root
from metrics.registry import load_plugins


def _split(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))


def _weights(_: click.Context, __: click.Parameter, values: Sequence[str]) -> dict[str, Path]:
    pairs = [value.split("=", 1) if "=" in value else ["inception", value] for value in values]
    return {name: Path(path) for name, path in pairs}


Option = click.Option
PATH = click.Path(path_type=Path)
FORCE = Option(["--force"], is_flag=True, help="Replace an output that is there and no result of this tool.")
IMAGES = click.Argument(["images"], nargs=-1, required=True)
REFERENCE = Option(["--ref"], required=True, help="Statistics file, img512, img64, feature file, or images.")
EXTRACTION = [
    Option(["--detectors", "names"], default="inception", callback=_split, help="Comma-separated: also dinov2, ..."),
    Option(["--weights"], multiple=True, callback=_weights, help="[DETECTOR=]PATH of weights on this machine."),
    Option(["--plugin"], multiple=True, help="Module that registers detectors or metrics of your own."),
    Option(["--resize"], default="torch", type=click.Choice(["torch", "pil"]), help="Of dinov2."),
    Option(["--device"], help="cpu, cuda, cuda:1; default: a GPU where there is one."),
    Option(["--batch-size"], default=64, type=click.IntRange(min=1)),
    Option(["--workers", "num_workers"], type=click.IntRange(min=0), help="Decoding processes; default: by cores."),
    Option(["--cache"], type=PATH, help="Folder of kept features."),
    Option(["--no-cache"], is_flag=True, help="Keep no features, so nothing can be resumed."),
    Option(["--skip-bad"], is_flag=True, help="Leave out unreadable images instead of stopping."),
]
SUBSET = [
    Option(["--num"], type=click.IntRange(min=2), help="Measure this many images."),
    Option(["--seed"], type=int, help="Choose them at random; default: the first ones."),
]
METRIC = [
    Option(["--metrics"], default="fd", callback=_split, help=f"Of: {', '.join(measure.METRICS)}"),
    Option(["--blocks", "num_blocks"], default=1, help="Also measure this many disjoint runs of images."),
    Option(["--error-blocks"], default=0, help="Jackknife blocks for the error of fd; 0 for none."),
    Option(["--kid-subsets"], default=100),
    Option(["--kid-subset-size"], default=1000),
    Option(["--k"], default=3, help="Neighbours of precision and recall."),
    Option(["--k-density"], default=5, help="Neighbours of density and coverage."),
]
OUTPUT = [
    Option(["--json"], type=PATH, help="Write everything here; - for the screen."),
    Option(["--csv"], type=PATH, help="Write one row per value here."),
    FORCE,
]
FILE = [IMAGES, Option(["--out"], type=PATH, required=True, help="npz file to write."), FORCE, *SUBSET, *EXTRACTION]


def _extractor(plugin: Sequence[str], resize: str, cache: Path | None, no_cache: bool, **given: Any) -> Extractor:
    load_plugins(plugin)
    kept = None if no_cache else cache or cache_root() / "features"
    return Extractor(cache=kept, settings={"dinov2": {"resize": resize}}, **given)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True})
def cli() -> None:
    """Measure image sets: FID, FD_DINOv2 and their companions."""


@cli.command(params=[IMAGES, REFERENCE, *METRIC, *SUBSET, *EXTRACTION, *OUTPUT])
def evaluate(json: Path | None, csv: Path | None, force: bool, **given: Any) -> None:
    """Measure IMAGES (folders, zip, tar, npz, or a file of `metrics features`) against a reference."""
    command_line.check_outputs([json, csv], [*given["images"], given["ref"]], force)
    what = {name: given.pop(name) for name in ("images", "num", "seed")} | {"reference": given.pop("ref")}
    how = {field.name: given.pop(field.name) for field in fields(Options)}
    _output(evaluation.evaluate(**what, extractor=_extractor(**given), options=Options(**how)), json, csv)


@cli.command(params=[REFERENCE, *EXTRACTION, *OUTPUT])
@click.argument("first")
@click.argument("second")
@click.option("--blocks", default=10, help="Blocks of seeds for the jackknife.")
def compare(
    first: str, second: str, ref: str, blocks: int, json: Path | None, csv: Path | None, force: bool, **given: Any
) -> None:
    """Whether images FIRST (A) or SECOND (B), made from the same seeds in the same order, are nearer to a reference."""
    command_line.check_outputs([json, csv], [first, second, ref], force)
    _output(evaluation.compare(_extractor(**given), first, second, ref, blocks), json, csv)


@cli.command(params=FILE)
def reference(out: Path, **given: Any) -> None:
    """Make reference statistics of IMAGES for every detector."""
    stats = {name: x.statistics() for name, x in _features(out, **given).items()}
    if distributed.rank() == 0:
        references.save(stats, out)
    distributed.print0(f"{out}: {', '.join(f'{name} of {x.num_images} images' for name, x in stats.items())}")


@cli.command("features", params=FILE)
def keep(out: Path, **given: Any) -> None:
    """Keep the features of IMAGES, to be given to the other commands in their place."""
    sets = _features(out, **given)
    features.save(sets, out)
    distributed.print0(f"{out}: {', '.join(f'{x.num_images} x {x.dim} of {name}' for name, x in sets.items())}")


def _features(
    out: Path, images: tuple[str, ...], num: int | None, seed: int | None, force: bool, **given: Any
) -> Mapping[str, features.FeatureSet]:
    command_line.check_outputs([out], images, force, text=False)
    extractor = _extractor(**given)
    measured = extractor.read(images, num, seed)
    _warn(measured.warnings)
    return {name: measured.features[name] for name in extractor.names}


def _warn(warnings: Sequence[str]) -> None:
    for text in warnings if distributed.rank() == 0 else ():
        click.echo(f"warning: {text}", err=True)


def _output(results: Results, json: Path | None, csv: Path | None) -> None:
    _warn(results.warnings)
    distributed.print0(results.table())
    for path, text in ((json, results.json), (csv, results.csv)) if distributed.rank() == 0 else ():
        if path is not None:
            command_line.deliver(path, text())


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry function; returns the exit code."""
    distributed.init()
    return command_line.run(cli, "metrics", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
