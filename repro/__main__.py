"""The command line `repro` (`python -m repro`); thin: every command calls one function."""

import sys
from pathlib import Path
from typing import Any

import click

from metrics import distributed
from metrics.files import InputError
from repro import study as studies

NETWORK = "a network file (.safetensors, .pkl) or module:function returning a Denoiser"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Does a diffusion-guidance result really hold? Make the samples, measure them, compare with the paper."""


@cli.group("study")
def study_group() -> None:
    """The studies in studies/, and which of them is active (params.yaml)."""


@study_group.command("list")
def study_list() -> None:
    """Names of all studies; `*` marks the active one."""
    active = studies.load().study if studies.PARAMS.exists() else None
    for name in studies.available():
        click.echo(f"{'*' if name == active else ' '} {name}")


@study_group.command("use")
@click.argument("name")
@click.option("--force", is_flag=True, help="Discard edits of params.yaml that no study file holds.")
def study_use(name: str, force: bool) -> None:
    """Make NAME the active study; says which stages come and go."""
    changes = studies.use(name, force)
    click.echo("\n".join([*changes, f"params.yaml is now {studies.study_path(name)}"]))


@study_group.command("show")
@click.argument("name", required=False)
def study_show(name: str | None) -> None:
    """Stages of NAME (default: the active study)."""
    study = studies.load(studies.study_path(name) if name else studies.PARAMS)
    click.echo(f"study {study.study}, outputs in {study.out}/")
    click.echo("\n".join(f"  {key}" for key in sorted(study.ids())))


@cli.command("stage", hidden=True)
@click.argument("stage")
@click.argument("key")
def stage_command(stage: str, key: str) -> None:
    """Run one pipeline stage of the active study (what dvc.yaml calls)."""
    from repro.pipeline.stages import STAGES

    study = studies.load()
    if stage not in STAGES:
        raise InputError(f"unknown stage '{stage}', expected one of {', '.join(STAGES)}")
    distributed.init()
    STAGES[stage](study, key)


@cli.command("generate")
@click.option("--main", "main_network", required=True, help=f"Main network: {NETWORK}.")
@click.option("--guide", help="Guiding network, given like --main.")
@click.option("--guidance", type=float, default=1.0, show_default=True, help="Weight w; 1 = no guidance.")
@click.option("--interval", help="Guided sampler steps FIRST-LAST, inclusive; all by default.")
@click.option("--seeds", default="0-63", show_default=True, help="FIRST-LAST, inclusive.")
@click.option("--steps", type=int, default=32, show_default=True, help="Heun steps.")
@click.option("--batch-size", type=int, default=32, show_default=True, help="Part of the configuration.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for shards and grid.png.")
def generate_command(
    main_network: str,
    guide: str | None,
    guidance: float,
    interval: str | None,
    seeds: str,
    steps: int,
    batch_size: int,
    out: Path,
) -> None:
    """A quick look: sample SEEDS into zips of PNGs and a grid. Run under torchrun for several GPUs."""
    from repro.sampling import shards as generate

    distributed.init()
    members = studies.parse_seeds(seeds)
    steps_range = None if interval is None else studies.parse_seeds(interval)
    configuration = generate.Configuration(
        main=main_network,
        guide=guide,
        guidance=guidance,
        interval=None if steps_range is None else (steps_range[0], steps_range[-1]),
        sampler=studies.Sampler(num_steps=steps, batch_size=batch_size),
    )
    pair = generate.load_pair(configuration, distributed.device())
    paths = generate.generate(pair, members, out, "sampling")
    if distributed.rank() == 0:
        _, images = generate.read_shard(paths[0], limit=64)
        generate.image_grid(list(images), columns=8).save(out / "grid.png")
        click.echo(f"{len(paths)} shard(s) and grid.png in {out}/")


@cli.command("reconstruct")
@click.argument("snapshots", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--ema", "stds", multiple=True, type=float, required=True, help="Relative EMA length; repeatable.")
@click.option("--nimg", type=int, help="Training time in images, one of the snapshots'; default the latest.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the networks.")
def reconstruct_command(snapshots: tuple[Path, ...], stds: tuple[float, ...], nimg: int | None, out: Path) -> None:
    """Post-hoc EMA: networks of the given EMA lengths from stored SNAPSHOTS."""
    from repro import ema
    from repro import snapshots as files

    name = files.parse_name(snapshots[0].name)
    if name is None:
        raise InputError(f"{snapshots[0]}: expected a file name RUN-KIMG-STD")
    for std, snapshot in ema.reconstruct(snapshots, stds, nimg).items():
        path = out / files.format_name(name.run, snapshot.metadata["nimg"] // 1000, std)
        files.save(snapshot, path)
        click.echo(str(path))


@cli.command("guide")
@click.option("--main", "main_run", required=True, help="Training run of the main network, or one network file.")
@click.option("--guide", "guides", multiple=True, required=True, help="Training run to take guides from; repeatable.")
@click.option("--data", required=True, help="Data set to measure against.")
@click.option(
    "--settings", type=click.Path(path_type=Path), required=True, help="Seeds and ranges of the search, YAML."
)
@click.option("--detector", help="Whose Fréchet distance is minimised; default: the study's first.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of outputs; default: guide/ of the study's.")
def guide_command(
    main_run: str, guides: tuple[str, ...], data: str, settings: Path, detector: str | None, out: Path | None
) -> None:
    """Which snapshot, EMA lengths and weight make the best guide?

    Runs and data are ids of the active study, or folders. Run under torchrun for several GPUs; killed and started
    again, it repeats nothing.
    """
    from repro.search import objective as guide

    study = studies.load()
    if not study.evaluate.detectors:
        raise InputError(f"{studies.PARAMS}: evaluate.detectors is empty; the search needs one")
    distributed.init()
    summary = guide.guide(
        study,
        main_run,
        guides,
        data,
        guide.load_settings(settings),
        detector or study.evaluate.detectors[0],
        out or study.out / "guide",
    )
    distributed.print0(summary)


@cli.command("report")
@click.option("--publish", is_flag=True, help="Also copy tables and figures to results/ and into README.md.")
def report_command(publish: bool) -> None:
    """Tables, figures and report.html of the active study, from its measures."""
    from repro.report import write as report

    study = studies.load()
    folder = report.report(study)
    if publish:
        report.publish(study)
    click.echo(report.summary(study))
    click.echo(f"report: {folder / 'report.html'}")


@cli.command("verify")
@click.option("--strict", is_flag=True, help="Exit code 1 if a value is off or a claim that was tested does not hold.")
def verify_command(strict: bool) -> None:
    """Judge published values and claims on what is measured; writes published.csv and verdicts.csv to out/<study>/."""
    from repro.verdicts import published

    code = published.verify(studies.load(), click.echo)
    if strict:
        sys.exit(code)


def _named(name: str | None) -> studies.Study:
    """A study by name, the active one by default."""
    return studies.load(studies.study_path(name) if name else studies.PARAMS)


@cli.command("fetch")
@click.argument("name", required=False)
@click.option("--offline", is_flag=True, help="Download nothing; say what is missing and where to put it.")
def fetch_command(name: str | None, offline: bool) -> None:
    """Fetch the published files of study NAME (default: the active one) ahead of its stages."""
    import os

    from repro.pipeline import acquire

    if offline:
        os.environ[acquire.OFFLINE] = "1"
    for folder in acquire.everything(_named(name)):
        click.echo(str(folder))


@cli.command("train")
@click.option("--preset", help="Recipe; `repro preset list --training` names them.")
@click.option("--data", "source", type=click.Path(path_type=Path), help="Zip or folder of `repro data convert|encode`.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run; an interrupted one goes on.")
@click.option("--name", help="Run name in file names; the preset's by default.")
@click.option("--duration", type=float, help="Training length in units of 2^20 images.")
@click.option("--batch", type=int, help="Images per step, over all processes.")
@click.option("--batch-gpu", type=int, help="Most images that a process takes at once.")
@click.option("--channels", type=int, help="Width of the network.")
@click.option("--dropout", type=float)
@click.option("--lr", type=float, help="Peak learning rate.")
@click.option("--cond/--uncond", "conditional", default=None, help="With or without labels.")
@click.option("--seed", type=int)
@click.option("--snapshot", type=float, help="Distance of snapshots in units of 2^20 images.")
@click.option("--checkpoint", type=float, help="Distance of checkpoints in units of 2^20 images.")
@click.option(
    "--precision", type=click.Choice(["fp16", "bf16", "fp32"]), help="Of the U-Net; fp16 on CUDA as published."
)
@click.option(
    "--vae", default="stabilityai/sd-vae-ft-mse", show_default=True, help="Decoder of latents in sample grids."
)
@click.option("--grid", type=int, default=0, help="Sample this many seeds into a PNG at every snapshot.")
@click.option("--tensorboard", "board", is_flag=True, help="Also write TensorBoard's event files.")
@click.option("--eval-ref", help="Measure distances to this reference: statistics, img512, img64, or images.")
@click.option("--eval-images", type=int, default=5000, show_default=True)
@click.option("--eval-every", type=float, default=64, show_default=True, help="In units of 2^20 images.")
@click.option("--eval-detectors", default="inception", show_default=True, help="Comma-separated.")
@click.option("--dry-run", is_flag=True, help="Print the full configuration and what it costs; touch nothing.")
def train_command(
    preset: str | None,
    source: Path | None,
    out: Path | None,
    name: str | None,
    duration: float | None,
    batch: int | None,
    batch_gpu: int | None,
    channels: int | None,
    dropout: float | None,
    lr: float | None,
    conditional: bool | None,
    seed: int | None,
    snapshot: float | None,
    checkpoint: float | None,
    precision: str | None,
    vae: str,
    grid: int,
    board: bool,
    eval_ref: str | None,
    eval_images: int,
    eval_every: float,
    eval_detectors: str,
    dry_run: bool,
) -> None:
    """Train a network, a guide or a main one, by a published recipe. Run under torchrun for several GPUs or machines.

    SIGTERM, SIGUSR1 or Ctrl-C save a checkpoint and stop; the same command goes on from there.
    """
    from repro.training import recipes
    from repro.training import watching as monitor

    if preset is None:
        raise InputError(f"--preset is missing; expected one of {', '.join(recipes.RECIPES)}")
    config = recipes.configure(
        preset,
        {"model_channels": channels, "dropout": dropout},
        name=name,
        total_nimg=_images(duration),
        batch_size=batch,
        device_batch_size=batch_gpu,
        ref_lr=lr,
        conditional=conditional,
        seed=seed,
        snapshot_nimg=_images(snapshot),
        checkpoint_nimg=_images(checkpoint),
        precision=precision,
    )
    if dry_run:
        click.echo(recipes.describe(config, recipes.recipe(preset)))
        return
    if source is None or out is None:
        raise InputError("--data and --out are needed (or --dry-run)")
    distributed.init()
    watch = monitor.Watch(out, grid, board, eval_ref, eval_images, _images(eval_every) or 1, eval_detectors.split(","))
    monitor.train(config, source, vae, recipes.recipe(preset).data_shape, watch)
    distributed.print0(f"{config.name}: {config.total_nimg:,} images, snapshots in {out}/")


def _images(mi: float | None) -> int | None:
    """Units of 2^20 images as a number of images."""
    return None if mi is None else round(mi * studies.MI)


@cli.group("data")
def data_group() -> None:
    """Training data: zips of square PNGs, or of VAE latents, with labels, in the layout of the EDM2 tools."""


@data_group.command("convert")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The zip to make.")
@click.option("--resolution", type=click.IntRange(min=8), required=True, help="Side of the images: 64, 512, ...")
@click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be used, and list them in the zip.")
@click.option("--workers", type=click.IntRange(min=0), help="Decoding processes; one per core but one by default.")
def data_convert(source: Path, out: Path, resolution: int, skip_bad: bool, workers: int | None) -> None:
    """Centre crops of the images in SOURCE: a folder of class folders, any folder, zip, tar, or npz.

    Grey becomes RGB, palettes and CMYK are converted, alpha is dropped, EXIF orientation is not applied, small images
    are enlarged, as for the published reference statistics. Unusable images are an error that names them all.
    """
    from repro.data import archives

    archives.convert(source, out, resolution, skip_bad, workers)
    _echo_facts(archives.check(out))


@data_group.command("encode")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The zip to make.")
@click.option("--vae", default="stabilityai/sd-vae-ft-mse", show_default=True, help="Hugging Face name, or a folder.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True)
def data_encode(source: Path, out: Path, vae: str, batch_size: int) -> None:
    """VAE latents (means and deviations of the posterior) of SOURCE, a zip that `data convert` made."""
    from repro.data import archives
    from repro.encoders import StabilityVAEEncoder

    encoder = StabilityVAEEncoder(vae, batch_size=batch_size)
    archives.encode(source, out, encoder, distributed.device(), batch_size)
    _echo_facts(archives.check(out))


@data_group.command("check")
@click.argument("archive", type=click.Path(path_type=Path))
def data_check(archive: Path) -> None:
    """Read every image and label of ARCHIVE; says what it holds, or everything that is wrong with it."""
    from repro.data import archives

    _echo_facts(archives.check(archive))


def _echo_facts(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        click.echo(f"{name:15} {value}")


@cli.command("cost")
@click.argument("name", required=False)
@click.option("--speed", type=float, default=1.0, show_default=True, help="Of one of your GPUs, an A100 being 1.")
def cost_command(name: str | None, speed: float) -> None:
    """GPU-hours, download and disk of study NAME (default: the active one), stage by stage."""
    from repro.study import cost

    click.echo(cost.cost(_named(name), speed).to_string(index=False, na_rep="", float_format="{:,.2f}".format))


@cli.group("preset")
def preset_group() -> None:
    """The 36 configurations that the authors published (studies/edm2.yaml), and the training recipes."""


@preset_group.command("list")
@click.option("--training", is_flag=True, help="The training recipes instead.")
def preset_list(training: bool) -> None:
    """Names and published values."""
    from repro.study import presets
    from repro.training import recipes

    if training:
        click.echo("\n".join(recipes.RECIPES))
        return
    for preset in presets.presets().values():
        click.echo(f"{preset.name:34} {preset.metric:10} {preset.published:>7.2f}")


@preset_group.command("show")
@click.argument("name")
def preset_show(name: str) -> None:
    """Networks, weight and published value of preset NAME, or the configuration and cost of a training recipe."""
    from repro.study import presets
    from repro.training import recipes

    if name in recipes.RECIPES:
        click.echo(recipes.describe(recipes.configure(name), recipes.recipe(name)))
        return
    click.echo(presets.show(presets.preset(name)))


@cli.command("summary")
def summary_command() -> None:
    """Print the active study's tables and where its figures are."""
    from repro.report import write as report

    click.echo(report.summary(studies.load()))


@cli.command("check")
@click.argument("committed", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--training-seeds", type=click.Path(path_type=Path), default=Path("results/training-seeds"))
def check_command(committed: Path, training_seeds: Path) -> None:
    """Compare the active study's measures with COMMITTED ones, cell by cell; exit code 1 if any disagrees."""
    from repro.verdicts import measures
    from repro.verdicts import regression as check

    table = check.check(measures.read(studies.load()), committed, training_seeds)
    outside = table[~table["agrees"]]
    click.echo(f"{len(table)} cells compared with {committed}, {len(outside)} outside their tolerance")
    if len(outside):
        click.echo(outside.to_string(index=False))
        sys.exit(1)


@cli.command("doctor")
def doctor_command() -> None:
    """What this machine has and lacks: devices, TF32, disk, addresses, weights, and a four-seed sample."""
    from repro import doctor

    sys.exit(0 if doctor.report(click.echo) else 1)


def main() -> None:
    """Entry point: user errors are one line on standard error and exit code 2."""
    try:
        cli.main(standalone_mode=False)
    except InputError as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(2)
    except click.ClickException as err:
        err.show()
        sys.exit(2)
    except click.Abort:
        sys.exit(130)


if __name__ == "__main__":
    main()
