"""The command line: `python -m metrics evaluate | reference | features | compare`.

Bad input ends in one line on stderr and exit code 2; existing outputs are replaced only by complete ones.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from metrics import distributed, references
from metrics import evaluation as api
from metrics import features as feature_files
from metrics.files import InputError, write_json, write_text
from metrics.measure import METRICS, Options
from metrics.results import Report


def _split(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))


def _weights(_: click.Context, __: click.Parameter, values: Sequence[str]) -> dict[str, Path]:
    pairs = [value.split("=", 1) if "=" in value else ["inception", value] for value in values]
    return {name: Path(path) for name, path in pairs}


EXTRACTION: list[Callable[[Any], Any]] = [
    click.option("--detectors", default="inception", callback=_split, help="Comma-separated: inception, dinov2, ..."),
    click.option("--weights", multiple=True, callback=_weights, help="[DETECTOR=]PATH of weights on this machine."),
    click.option("--plugin", multiple=True, help="Module that registers detectors of your own."),
    click.option(
        "--resize", default="torch", show_default=True, type=click.Choice(["torch", "pil"]), help="Of dinov2."
    ),
    click.option("--device", default=None, help="cpu, cuda, cuda:1; default: a GPU where there is one."),
    click.option("--batch-size", default=64, show_default=True, type=click.IntRange(min=1)),
    click.option("--workers", default=None, type=click.IntRange(min=0), help="Decoding processes; default: by cores."),
    click.option("--cache", default=None, type=click.Path(path_type=Path), help="Folder of kept features."),
    click.option("--no-cache", is_flag=True, help="Keep no features, so nothing can be resumed."),
    click.option("--skip-bad", is_flag=True, help="Leave out unreadable images instead of stopping."),
]
SUBSET: list[Callable[[Any], Any]] = [
    click.option("--num", default=None, type=click.IntRange(min=2), help="Measure this many images."),
    click.option("--seed", default=None, type=int, help="Choose them at random; default: the first ones."),
]
OUTPUT: list[Callable[[Any], Any]] = [
    click.option("--json", "json_path", default=None, type=click.Path(path_type=Path), help="Write everything here."),
    click.option(
        "--csv", "csv_path", default=None, type=click.Path(path_type=Path), help="Write one row per value here."
    ),
]


def options(*groups: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed([option for group in groups for option in group]):
            function = option(function)
        return function

    return decorate


def _extractor(given: dict[str, Any]) -> api.Extractor:
    """Takes the options of EXTRACTION out of `given`."""
    sys.path.insert(0, "")
    for module in given.pop("plugin"):
        try:
            importlib.import_module(module)
        except ImportError as err:
            raise InputError(f"plugin '{module}' cannot be imported ({err}); run where Python finds it") from None
    cache, no_cache = given.pop("cache"), given.pop("no_cache")
    return api.Extractor(
        names=given.pop("detectors"),
        weights=given.pop("weights"),
        device=given.pop("device"),
        cache=None if no_cache else cache or feature_files.default_cache(),
        batch_size=given.pop("batch_size"),
        num_workers=given.pop("workers"),
        skip_bad=given.pop("skip_bad"),
        settings={"dinov2": {"resize": given.pop("resize")}},
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """Measure image sets: FID, FD_DINOv2 and their companions."""


@cli.command()
@click.argument("images", nargs=-1, required=True)
@click.option("--ref", required=True, help="Statistics file, img512, img64, feature file, or images.")
@click.option("--metrics", default="fd", callback=_split, show_default=True, help="Of: " + ", ".join(METRICS))
@click.option("--blocks", default=1, show_default=True, help="Also measure this many disjoint runs of images.")
@click.option("--error-blocks", default=0, show_default=True, help="Jackknife blocks for the error of fd; 0 for none.")
@click.option("--kid-subsets", default=100, show_default=True)
@click.option("--kid-subset-size", default=1000, show_default=True)
@click.option("--k", default=3, show_default=True, help="Neighbours of precision and recall.")
@click.option("--k-density", default=5, show_default=True, help="Neighbours of density and coverage.")
@options(SUBSET, EXTRACTION, OUTPUT)
def evaluate(images: tuple[str, ...], ref: str, json_path: Path | None, csv_path: Path | None, **given: Any) -> None:
    """Measure IMAGES (folders, zip, tar, npz, or a file of `metrics features`) against a reference."""
    _check_outputs(json_path, csv_path)
    extractor = _extractor(given)
    num, seed = given.pop("num"), given.pop("seed")
    given["num_blocks"] = given.pop("blocks")
    _output(api.evaluate(extractor, images, ref, Options(**given), num, seed), json_path, csv_path)


@cli.command()
@click.argument("first")
@click.argument("second")
@click.option("--ref", required=True, help="Statistics file, img512, img64, feature file, or images.")
@click.option("--blocks", default=10, show_default=True, help="Blocks of seeds for the jackknife.")
@options(EXTRACTION, OUTPUT)
def compare(
    first: str, second: str, ref: str, blocks: int, json_path: Path | None, csv_path: Path | None, **given: Any
) -> None:
    """Whether images FIRST (A) or SECOND (B), made from the same seeds in the same order, are nearer to a reference."""
    _check_outputs(json_path, csv_path)
    _output(api.compare(_extractor(given), first, second, ref, blocks), json_path, csv_path)


@cli.command()
@click.argument("images", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="npz file to write.")
@options(SUBSET, EXTRACTION)
def reference(images: tuple[str, ...], out: Path, num: int | None, seed: int | None, **given: Any) -> None:
    """Make reference statistics of IMAGES for every detector."""
    _check_outputs(out)
    measured = _extractor(given).read(images, num, seed)
    _warn(measured.warnings)
    stats = {name: x.statistics() for name, x in measured.sets.items()}
    if distributed.rank() == 0:
        references.save(stats, out)
        click.echo(f"{out}: {', '.join(f'{name} of {x.num_images} images' for name, x in stats.items())}")


@cli.command()
@click.argument("images", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="npz file to write.")
@options(SUBSET, EXTRACTION)
def features(images: tuple[str, ...], out: Path, num: int | None, seed: int | None, **given: Any) -> None:
    """Keep the features of IMAGES, to be given to the other commands in their place."""
    _check_outputs(out)
    measured = _extractor(given).read(images, num, seed)
    _warn(measured.warnings)
    feature_files.save(measured.sets, out)
    distributed.print0(
        f"{out}: " + ", ".join(f"{x.num_images} x {x.dim} of {name}" for name, x in measured.sets.items())
    )


def _check_outputs(*paths: Path | None) -> None:
    """Find out before the work whether its result can be written."""
    for path in filter(None, paths):
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name a file to write")
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        if not parent.is_dir():
            raise InputError(f"{path}: {parent} is a file, so nothing can be written below it; name another path")


def _warn(warnings: Sequence[str]) -> None:
    if distributed.rank() == 0:
        for text in warnings:
            click.echo(f"warning: {text}", err=True)


def _output(report: Report, json_path: Path | None, csv_path: Path | None) -> None:
    if distributed.rank() != 0:
        return
    _warn(report.warnings)
    click.echo(report.table())
    if json_path is not None:
        write_json(json_path, report.as_dict())
    if csv_path is not None:
        write_text(csv_path, report.csv())


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry function; returns the exit code."""
    distributed.init()
    try:
        cli.main(list(sys.argv[1:] if arguments is None else arguments), prog_name="metrics", standalone_mode=False)
    except (InputError, click.UsageError) as err:
        text = err.format_message() if isinstance(err, click.UsageError) else str(err)
        click.echo(f"metrics: error: {' '.join(text.split())}", err=True)
        return 2
    except click.Abort:
        click.echo("metrics: interrupted; finished features are kept and the next run goes on from them", err=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
