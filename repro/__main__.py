"""The command line `repro` (`python -m repro`); thin: every command calls one function."""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

from metrics import command_line, distributed
from metrics.documents import parse_yaml
from metrics.files import InputError, nearest, on_one_line
from metrics.registry import load_plugins

with command_line.imports("repro"):  # it needs the extra `pipeline`
    from repro import doctor, ema, search, snapshots
    from repro import study as studies
    from repro.data import archives
    from repro.encoders import StabilityVAEEncoder
    from repro.guidance import RAMPS, RULES, Guided
    from repro.pipeline import cleaning, looking
    from repro.pipeline.acquire import everything, obtain
    from repro.pipeline.stages import STAGES, placed, relaunch
    from repro.pixels import write_grid, write_png
    from repro.preflight import CHECKS, preflight
    from repro.sampling.pairs import SIGMA_MAX, SIGMA_MIN, Configuration, Solver, load_pair
    from repro.sampling.scheduling import Choice, find_schedules, read_schedule
    from repro.sampling.shards import IMAGES, generate, read_shard
    from repro.strict import build, load, settings
    from repro.study import cost, presets
    from repro.study.rates import Rates, Record, read_record
    from repro.training import recipes
    from repro.training.watching import Watch, train_watched
    from repro.verdicts import check, counted, measures, side_by_side, verify

Texts = tuple[str, ...]  # of a repeatable option
PATH = click.Path(path_type=Path)
NAME = click.argument("name", required=False)
DEVICE = click.option("--device", default="", help="cpu, cuda, cuda:1; the machine's setting, else a GPU, by default.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--plugin", multiple=True, help="Module that registers what you add (docs/extending.md); repeatable.")
@command_line.show_version
def cli(plugin: Texts) -> None:
    """Does a diffusion-guidance result really hold? Make the samples, measure them, compare with the paper."""
    load_plugins(plugin)


@cli.group("study")
def study_group() -> None:
    """The studies in studies/, and which of them is active (params.yaml)."""


@study_group.command("list")
def study_list() -> None:
    """All studies, what each is for and what it takes; `*` marks the active one. `repro cost NAME` has the hours."""
    active = None
    with suppress(InputError):  # none, or one that cannot be read
        active = studies.load().study
    for name in studies.available():
        try:
            takes = cost.brief(studies.named(name))
        except InputError as err:
            takes = f"cannot be read: {err}"
        click.echo(f"{'*' if name == active else ' '} {name:16} {studies.purpose(name)}\n{'':18} {on_one_line(takes)}")


@study_group.command("new")
@click.argument("name")
@click.option("--from", "source", default="mine", show_default=True, help="The study to copy.")
def study_new(name: str, source: str) -> None:
    """Write the study NAME, a copy of another one under its own name."""
    click.echo(f"{studies.new(name, source)} is written; `python -m repro study use {name}` makes it the active one")


@study_group.command("use")
@click.argument("name")
@click.option("--force", is_flag=True, help="Discard edits of params.yaml that no study file holds.")
def study_use(name: str, force: bool) -> None:
    """Make NAME the active study; says which stages come and go."""
    click.echo("\n".join([*studies.use(name, force), f"params.yaml is now {studies.study_path(name)}"]))


@study_group.command("show")
@NAME
def study_show(name: str | None) -> None:
    """Stages of NAME (default: the active study)."""
    study = studies.named(name)
    click.echo("\n  ".join([f"study {study.study}, outputs in {study.out}/", *sorted(study.ids())]))


@cli.command("stage", hidden=True)
@click.argument("stage")
@click.argument("key")
def stage_command(stage: str, key: str) -> None:
    """Run one pipeline stage of the active study (what dvc.yaml calls)."""
    study = studies.load()
    if stage not in STAGES:
        raise InputError(f"stage '{stage}' is unknown{nearest(stage, STAGES)}")
    relaunch(stage, key)
    distributed.init()
    STAGES[stage](study, key)


@cli.command("generate")
@click.option(
    "--main", help="Network file, folder of a diffusers pipeline, module:function, or {YAML} (docs/own-model.md)."
)
@click.option("--guide", help="Guiding network, given like --main; with --degrade the main network by default.")
@click.option("--preset", help="A published pair and weight instead (`repro preset list`); fetched where need be.")
@click.option("--guidance", type=float, help="Weight w, of all guides together; 1, no guidance, by default.")
@click.option(
    "--other-guide", "others", multiple=True, metavar="NETWORK=SHARE", help="One more guide, and its part; repeatable."
)
@click.option("--interval", help="Guided sampler steps FIRST-LAST, inclusive; all by default.")
@click.option("--rule", default="linear", show_default=True, help=f"How answers are combined: {', '.join(RULES)}.")
@click.option(
    "--rule-set", "rule_settings", multiple=True, metavar="KEY=VALUE", help="Setting of the rule; repeatable."
)
@click.option("--ramp", default="constant", show_default=True, help=f"Weight over the steps: {', '.join(RAMPS)}.")
@click.option("--degrade", multiple=True, metavar="NAME=STRENGTH", help="What makes the guide worse; repeatable.")
@click.option("--degrade-main", multiple=True, metavar="NAME=STRENGTH", help="The same of the main network.")
@click.option("--seeds", default="0-63", show_default=True, help="FIRST-LAST, inclusive.")
@click.option("--class", "number", type=click.IntRange(min=0), help="Of every image; by default drawn by its seed.")
@click.option("--steps", type=int, default=32, show_default=True, help="Heun steps.")
@click.option("--sigma-min", type=float, help=f"Last noise level; the network's own, else {SIGMA_MIN}, by default.")
@click.option("--sigma-max", type=float, help=f"First noise level; the network's own, else {SIGMA_MAX:g}, by default.")
@click.option("--schedule", type=PATH, help="Noise levels that `repro schedule` found for so many steps.")
@click.option(
    "--batch-size",
    "batch",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Part of the configuration.",
)
@DEVICE
@click.option("--out", type=PATH, required=True, help="Folder for shards and grid.png.")
@click.option("--verify", "distrust", is_flag=True, help="Read every finished shard again, also those verified before.")
def generate_command(
    main: str | None,
    guide: str | None,
    preset: str | None,
    guidance: float | None,
    others: Texts,
    interval: str | None,
    rule: str,
    rule_settings: Texts,
    ramp: str,
    degrade: Texts,
    degrade_main: Texts,
    seeds: str,
    number: int | None,
    steps: int,
    sigma_min: float | None,
    sigma_max: float | None,
    schedule: Path | None,
    batch: int,
    device: str,
    out: Path,
    distrust: bool,
) -> None:
    """A quick look: sample SEEDS into zips of PNGs and a grid. Run under torchrun for several GPUs."""
    distributed.init()
    where, members = distributed.device(device), studies.parse_seeds(seeds)
    chosen = None if interval is None else studies.parse_seeds(interval, "--interval")
    if os.path.lexists(out / "grid.png") and not any(out.glob(f"*{IMAGES.suffix}")):
        raise InputError(f"{out / 'grid.png'}: is there already, with no shards beside it; name another folder")
    networks = _networks(preset, main, guide or (main if degrade else None), guidance)
    guided = build(
        Guided,
        networks
        | {"rule": rule, "ramp": ramp, "other_guides": [_other_guide(text) for text in others]}
        | {"interval": None if chosen is None else (chosen[0], chosen[-1]), "rule_settings": settings(rule_settings)}
        | {"guide_degradations": settings(degrade), "main_degradations": settings(degrade_main)},
    )
    said: dict[str, Any] = {"num_steps": steps, "batch_size": batch, "sigma_min": sigma_min, "sigma_max": sigma_max}
    said |= {"schedule": None if schedule is None else read_schedule(schedule, steps)}
    solver = build(Solver, {name: value for name, value in said.items() if value is not None})
    pair = load_pair(Configuration(guided, solver, number), where)
    paths = generate(pair, members, out, description="sampling", trust=not distrust)
    if distributed.rank() == 0:
        write_grid(out / "grid.png", list(read_shard(paths[0], limit=64)[1]), columns=8)
        click.echo(f"{len(paths)} shard(s) and grid.png in {out}/")


def _networks(preset: str | None, main: str | None, guide: str | None, guidance: float | None) -> dict[str, Any]:
    """Main network, guide and weight of `generate`: as given, or those of a preset, at another weight if one is."""
    if preset is None:
        if main is None:
            raise InputError("--main is missing; expected a network, or --preset")
        return {"main": main, "guide": guide, "guidance": 1.0 if guidance is None else guidance}
    if main is not None or guide is not None:
        raise InputError("--preset has a main network and a guide; leave out --main and --guide")
    published, study = presets.presets()[preset], studies.named(presets.STUDY)
    guided = study.generate[published.name].guided
    guided = guided if guidance is None else replace(guided, guidance=guidance)
    if distributed.rank() == 0:
        obtain(study, guided)
    distributed.barrier()
    found = placed(study, guided)
    return {"main": found.main, "guide": found.guide, "guidance": found.guidance}


def _other_guide(text: str) -> dict[str, Any]:
    """`NETWORK=SHARE` as an entry of `Guided.other_guides`."""
    network, _, share = text.rpartition("=")
    return {
        "guide": network,
        "share": build(float, parse_yaml(share, f"--other-guide {text}: "), f"--other-guide {text}"),
    }


@cli.command("image")
@click.argument("configuration")
@click.option("--seed", type=click.IntRange(min=0), required=True, help="Any, of the study or not.")
@DEVICE
@click.option("--out", type=PATH, required=True, help="PNG file to write.")
@click.option("--force", is_flag=True, help="Replace what is there.")
def image_command(configuration: str, seed: int, device: str, out: Path, force: bool) -> None:
    """The image of one seed under a CONFIGURATION of any study, such as digits-autoguidance or a preset.

    It has the pixels that the study's images have: those of a whole batch of the study's size, on the same device.
    """
    command_line.check_outputs([out], [], force, text=False)
    (number,) = studies.parse_seeds(str(seed))
    write_png(out, looking.image(configuration, number, distributed.device(device)))
    click.echo(str(out))


@cli.command("schedule")
@click.option("--network", required=True, help="Network file (.safetensors, .pkl), or module:function of a Denoiser.")
@click.option("--steps", default="8,12,16,32", show_default=True, help="Numbers of steps, with commas between them.")
@click.option("--seeds", default="0-15", show_default=True, help="Whose trajectories are followed, FIRST-LAST.")
@click.option("--grid", type=int, default=Choice.grid, show_default=True, help="Levels to choose from, besides EDM's.")
@click.option("--sigma-min", type=float, default=Choice.sigma_min, show_default=True, help="Last noise level.")
@click.option("--sigma-max", type=float, default=Choice.sigma_max, show_default=True, help="First noise level.")
@click.option("--out", type=PATH, required=True, help="YAML file to write; the figure lies beside it.")
def schedule_command(
    network: str, steps: str, seeds: str, grid: int, sigma_min: float, sigma_max: float, out: Path
) -> None:
    """The noise levels with which a network needs the fewest steps, found exactly on a grid.

    What it finds goes under `sampler` of a study. The same command again finds it done.
    """
    numbers = build(list[int], parse_yaml(f"[{steps}]", f"--steps {steps}: "), "--steps")
    choice = Choice(numbers, studies.parse_seeds(seeds), grid, sigma_min, sigma_max)
    table = find_schedules(network, choice, out)
    click.echo(f"{table.to_string(index=False)}\nroot mean square errors of samples; levels in {out}")


@cli.command("reconstruct")
@click.argument("files", metavar="SNAPSHOTS...", nargs=-1, required=True, type=PATH)
@click.option("--ema", "stds", multiple=True, type=float, required=True, help="Relative EMA length; repeatable.")
@click.option("--nimg", type=int, help="Training time in images, one of the snapshots'; default the latest.")
@click.option("--out", type=PATH, required=True, help="Folder for the networks.")
def reconstruct_command(files: tuple[Path, ...], stds: tuple[float, ...], nimg: int | None, out: Path) -> None:
    """Post-hoc EMA: networks of the given EMA lengths from stored SNAPSHOTS."""
    run = snapshots.checked_name(files[0].name).run
    if out.resolve() in {file.resolve().parent for file in files}:
        raise InputError(f"{out}: is the snapshots' own folder; name another for the networks")
    for std, snapshot in ema.reconstruct(files, stds, nimg).items():
        path = out / snapshots.format_name(run, snapshot.metadata["nimg"] // 1000, std)
        snapshots.save(snapshot, path)
        click.echo(str(path))


@cli.command("guide")
@click.option("--main", required=True, help="Training run of the main network, or one network file.")
@click.option("--guide", "guides", multiple=True, required=True, help="Training run to take guides from; repeatable.")
@click.option("--data", required=True, help="Data set to measure against.")
@click.option("--settings", "file", type=PATH, required=True, help="Seeds and ranges of the search, YAML.")
@click.option("--detector", help="Whose Fréchet distance is minimised; default: the study's first.")
@click.option("--out", type=PATH, help="Folder of outputs; default: guide/ of the study's.")
def guide_command(main: str, guides: Texts, data: str, file: Path, detector: str | None, out: Path | None) -> None:
    """Which snapshot, EMA lengths and weight make the best guide?

    Runs and data are ids of the active study, or folders. Run under torchrun for several GPUs; killed and started
    again, it repeats nothing.
    """
    study = studies.load()
    if not study.evaluate.plain:
        raise InputError(f"{studies.PARAMS}: evaluate.detectors is empty; the search needs one")
    distributed.init()
    chosen, folder = detector or study.evaluate.plain[0], out or study.out / "guide"
    distributed.print0(search.guide(study, main, guides, data, load(search.SearchSettings, file), chosen, folder))


@cli.command("report")
@click.option("--publish", is_flag=True, help="Also copy tables and figures to results/ and into README.md.")
@click.option("--partial", is_flag=True, help="Of what is measured so far; without, every result must be there.")
def report_command(publish: bool, partial: bool) -> None:
    """Tables, figures and report.html of the active study, from its measures."""
    from repro import report

    study = studies.load()
    report.report(study, partial)
    if publish:
        report.publish(study)
    click.echo(report.summary(study), nl=False)


@cli.command("verify")
@click.option("--strict", is_flag=True, help="Exit code 1 if a value is off or a claim that was tested does not hold.")
@click.option("--partial", is_flag=True, help="Of what is measured so far; without, every result must be there.")
def verify_command(strict: bool, partial: bool) -> None:
    """Judge published values and claims on what is measured; writes published.csv and verdicts.csv to out/<study>/."""
    if verify(studies.load(), click.echo, partial) and strict:
        raise SystemExit(1)


@cli.command("fetch")
@NAME
@click.option("--offline", is_flag=True, help="Download nothing; say what is missing and where to put it.")
@click.option("--allow-http", is_flag=True, help="Take files whose digest is not known over plain http too.")
@click.option("--retry", is_flag=True, help="Ask again for networks that no address had (404 or 410).")
def fetch_command(name: str | None, offline: bool, allow_http: bool, retry: bool) -> None:
    """Fetch the published files of study NAME (default: the active one) ahead of its stages.

    Goes through all of them and lists at the end what failed. A network that no address has (404 or 410) is
    remembered: what needs it is `not possible`, and the rest of the study goes on.
    """
    folders, absent, failures = everything(studies.named(name), offline, allow_http, retry)
    for line in [*map(str, folders), *(f"not possible: {each}" for each in absent)]:
        click.echo(line)
    for failure in failures:
        click.echo(on_one_line(failure), err=True)
    if failures:
        raise InputError(f"{len(failures)} files could not be had; each is named above")


@cli.command("train")
@click.option("--preset", help="Recipe; `repro preset list --training` names them.")
@click.option("--data", type=PATH, help="Zip or folder of `repro data convert|encode`.")
@click.option("--out", type=PATH, help="Folder of the run; an interrupted one goes on.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Another value of a setting; repeatable.")
@click.option("--watch", "watched", multiple=True, metavar="KEY=VALUE", help="Show how it goes; repeatable.")
@click.option("--vae", default=StabilityVAEEncoder.vae_name, show_default=True, help="Decoder of latents in samples.")
@click.option("--dry-run", is_flag=True, help="Print the full configuration and what it costs; touch nothing.")
def train_command(
    preset: str | None, data: Path | None, out: Path | None, changes: Texts, watched: Texts, vae: str, dry_run: bool
) -> None:
    """Train a network, a guide or a main one, by a published recipe. Run under torchrun for several GPUs or machines.

    SIGTERM, SIGUSR1 or Ctrl-C save a checkpoint and stop; the same command goes on from there.

    Settings are all that --dry-run prints, such as seed=1, total_nimg=512Mi (Mi: 2^20) or network.dropout=0.1.
    To watch: grid=16 samples so many seeds at every snapshot, board=true writes TensorBoard's files, and
    reference=img64 (statistics or images) measures distances, with num_images=5000, every_nimg=64Mi and
    detectors=[inception] where nothing else is said.
    """
    if preset is None:
        raise InputError(f"--preset is missing; expected one of {', '.join(recipes.RECIPES)}")
    config, watch = recipes.configure(preset, settings(changes)), build(Watch, settings(watched))
    if dry_run:
        click.echo(cost.describe(config, recipes.RECIPES[preset]))
        return
    if data is None or out is None:
        raise InputError("--data and --out are needed (or --dry-run)")
    distributed.init()
    train_watched(config, data, vae, out, recipes.RECIPES[preset].data_shape, watch)
    distributed.print0(f"{config.settings.name}: {config.pace.total_nimg:,} images, snapshots in {out}/")


@cli.group("data")
def data_group() -> None:
    """Training data: zips of square PNGs, or of VAE latents, with labels, in the layout of the EDM2 tools."""


@data_group.command("convert")
@click.argument("source", type=PATH)
@click.option("--out", type=PATH, required=True, help="The zip to make.")
@click.option("--resolution", type=click.IntRange(8, 2**14), required=True, help="Side of the images: 64, 512, ...")
@click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be used, and list them in the zip.")
@click.option("--workers", type=click.IntRange(min=0), help="Decoding processes; one per core but one by default.")
def data_convert(source: Path, out: Path, resolution: int, skip_bad: bool, workers: int | None) -> None:
    """Centre crops of the images in SOURCE: a folder of class folders, any folder, zip, tar, or npz.

    Grey becomes RGB, palettes and CMYK are converted, alpha is dropped, EXIF orientation is not applied, small images
    are enlarged, as for the published reference statistics. Unusable images are an error that names them all.
    """
    archives.convert(source, out, resolution, skip_bad, workers)
    _show(out)


@data_group.command("encode")
@click.argument("source", type=PATH)
@click.option("--out", type=PATH, required=True, help="The zip to make.")
@click.option("--vae", default=StabilityVAEEncoder.vae_name, show_default=True, help="Hugging Face name, or a folder.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True)
def data_encode(source: Path, out: Path, vae: str, batch_size: int) -> None:
    """VAE latents (means and deviations of the posterior) of SOURCE, a zip that `data convert` made."""
    archives.encode(source, out, StabilityVAEEncoder(vae, batch_size=batch_size), str(distributed.device()))
    _show(out)


@data_group.command("check")
@click.argument("archive", type=PATH)
def data_check(archive: Path) -> None:
    """Read every image and label of ARCHIVE; says what it holds, or everything that is wrong with it."""
    _show(archive)


def _show(archive: Path) -> None:
    click.echo("\n".join(f"{name:15} {value}" for name, value in archives.check(archive).items()))


@cli.command("cost")
@NAME
@click.option(
    "--speed", type=float, help="Of one of your GPUs, an A100 being 1; what was measured does not count then."
)
@click.option("--price", type=float, help="Of a GPU-hour, in any money.")
def cost_command(name: str | None, speed: float | None, price: float | None) -> None:
    """Time, download and disk of study NAME (default: the active one), by stage and by part of the work.

    Rates are those that `repro preflight NAME` measured here, else published ones of an A100.
    """
    cost.check_number("--speed", speed)
    cost.check_number("--price", price)
    study = studies.named(name)
    record = read_record(study) if speed is None else Record(study.study)
    chosen = Rates.of(record) if speed is None else Rates(speed=speed)
    click.echo(cost.show(study, cost.cost(study, chosen), record, price))


@cli.command("preflight")
@NAME
@click.option("--only", multiple=True, metavar="CHECK", help=f"One check: {', '.join(CHECKS)}; repeatable.")
@click.option("--offline", is_flag=True, help="Ask no address.")
@click.option("--price", type=float, help="Of a GPU-hour, in any money.")
def preflight_command(name: str | None, only: Texts, offline: bool, price: float | None) -> None:
    """Does everything work on this machine, how exact is it, and what will study NAME (default: the active one) take?

    Ten minutes at most. Every check passes, fails with the remedy, or is skipped with the reason. Exit code 1 if one
    failed, else 0; 2 for bad input. What is found is kept in out/STUDY/preflight.json, so that the checks can be run
    in parts (--only), and `repro cost` takes the rates from there.
    """
    cost.check_number("--price", price)
    if not preflight(studies.named(name), click.echo, only, offline, price):
        raise SystemExit(1)


@cli.group("preset")
def preset_group() -> None:
    """The 36 configurations that the authors published (studies/edm2.yaml), and the training recipes."""


@preset_group.command("list")
@click.option("--training", is_flag=True, help="The training recipes instead.")
def preset_list(training: bool) -> None:
    """Names and published values."""
    published = (f"{p.name:34} {p.metric:10} {p.published:>7.2f}" for p in presets.presets().values())
    click.echo("\n".join(recipes.RECIPES if training else published))


@preset_group.command("show")
@click.argument("name")
def preset_show(name: str) -> None:
    """Networks, weight and published value of preset NAME, or the configuration and cost of a training recipe."""
    recipe = recipes.RECIPES.get(name)
    click.echo(cost.describe(recipes.configure(name), recipe) if recipe else presets.show(presets.presets()[name]))


@cli.command("summary")
def summary_command() -> None:
    """Print the active study's tables and where its figures are."""
    from repro import report

    click.echo(report.summary(studies.load()), nl=False)


@cli.command("check")
@click.argument("committed", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--training-seeds", type=PATH, default=Path("results/training-seeds"))
def check_command(committed: Path, training_seeds: Path) -> None:
    """Compare the active study's measures with COMMITTED ones, cell by cell; exit code 1 if any disagrees."""
    table = check(measures.read(studies.load()), committed, training_seeds)
    outside = table[~table["agrees"]]
    click.echo(f"{len(table)} cells compared with {committed}, {len(outside)} outside their tolerance")
    if len(outside):
        click.echo(outside.to_string(index=False))
        raise SystemExit(1)


@cli.command("verdicts")
@click.argument("results", type=PATH, nargs=-1, required=True)
def verdicts_command(results: tuple[Path, ...]) -> None:
    """The claims of RESULTS (folders of reports) side by side, and how many of the verdicts flip."""
    table = side_by_side(results)
    click.echo(tabulate(table, headers="keys", tablefmt="github", showindex=False))
    click.echo(f"\n{counted(table['outcome'])}")


@cli.command("clean")
@click.argument("kinds", nargs=-1, type=click.Choice(list(cleaning.KINDS)))
def clean_command(kinds: Texts) -> None:
    """What lies on the disk, and how it comes back; KINDS are removed (aside, images, networks)."""
    cleaning.clean(kinds)
    for name, size in cleaning.sizes(cleaning.places()).items():
        kind = cleaning.KINDS[name]
        click.echo(f"{size / 1e9:10.3f} GB  {name:9} {kind.what}; {kind.remedy}")


@cli.command("doctor")
def doctor_command() -> None:
    """What this machine has and lacks: devices, TF32, disk, addresses, weights, and a four-seed sample."""
    raise SystemExit(0 if doctor.report(click.echo) else 1)


def main() -> None:
    """Entry point: user errors are one line on standard error and exit code 2."""
    if code := command_line.run(cli, "repro"):
        raise SystemExit(code)


if __name__ == "__main__":
    main()
