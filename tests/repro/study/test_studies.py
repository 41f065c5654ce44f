"""The ImageNet studies: every published value has one configuration, with the settings that were published for it."""

import csv
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from metrics.files import InputError
from repro import snapshots
from repro import study as studies
from repro.guidance import guided_steps
from repro.strict import build
from repro.study import Networks, Study, presets

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / "tests" / "data" / "published"
INTERVALS = {  # arXiv:2404.07724 table 1
    ("edm2-s", "fid"): (0.28, 2.90),
    ("edm2-s", "fd_dinov2"): (0.60, 5.00),
    ("edm2-xxl", "fid"): (0.19, 1.61),
    ("edm2-xxl", "fd_dinov2"): (0.60, 5.00),
}


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@cache
def load(name: str) -> Study:
    return studies.load(ROOT / "studies" / f"{name}.yaml")


def rows(name: str) -> list[dict[str, str]]:
    with open(DATA / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def table1_cells() -> list[tuple[str, str, str, float, str, str, str]]:
    """(study, row, metric, value, weight, main EMA, guide EMA) of every cell that has a value."""
    cells = []
    for row in rows("table1"):
        for metric, prefix in (("fid", "fid"), ("fd_dinov2", "fd")):
            if row[metric]:
                settings = [row[f"{prefix}_{name}"] for name in ("w", "ema_m", "ema_g")]
                cells.append((f"imagenet{row['resolution']}", row["row"], metric, float(row[metric]), *settings))
    return cells


def cells(study: Study) -> list[studies.Published | studies.Waived]:
    return [*study.published.values(), *study.waived.values()]


def find(study: Study, table: str, row: str, metric: str) -> list[str]:
    entries = {**study.published, **study.waived}
    return [k for k, c in entries.items() if (c.table, c.row, c.metric) == (table, row, metric)]


@pytest.mark.parametrize("name", studies.available())
def test_every_study_loads_strictly(name: str) -> None:
    study = load(name)
    assert study.study == name
    if name not in ("default", "training-seeds"):
        own = {"bad-versions": "bad-", "bad-versions512": "bad512-"}.get(name, name)
        assert all(key.split("@")[1].startswith(own) for key in study.ids()), study.ids()


def test_no_two_studies_share_a_stage() -> None:
    counts = Counter(key for name in studies.available() for key in load(name).ids())
    assert [key for key, number in counts.items() if number > 1] == []


def test_again_is_the_default_study_on_other_seeds() -> None:
    default, again = load("default"), load("again")
    assert (again.sampler, again.shards, again.evaluate) == (default.sampler, default.shards, default.evaluate)
    own = [item.config for item in again.train.values()]
    assert own == [item.config for item in default.train.values()]
    assert len(again.claims) == len(default.claims)
    for ours, theirs in zip(again.claims, default.claims, strict=True):
        assert (ours.text, ours.metric, ours.within) == (theirs.text, theirs.metric, theirs.within)
        assert [part.split("-")[-1] for part in ours.pairs[0]] == [part.split("-")[-1] for part in theirs.pairs[0]]
    for key, item in default.generate.items():
        other = again.generate[key.replace("digits-", "again-")]
        assert other.method == item.method
        assert (other.guided.guidance, other.guided.interval) == (item.guided.guidance, item.guided.interval)
        seeds, others = ([seed for block in x.seeds for seed in studies.parse_seeds(block)] for x in (item, other))
        assert len(seeds) == len(others)
        assert not set(seeds) & set(others)


@pytest.mark.parametrize("cell", table1_cells(), ids=lambda c: "-".join(map(str, c[:3])))
def test_every_cell_of_table1_is_one_configuration(cell: tuple[str, str, str, float, str, str, str]) -> None:
    name, row, metric, value, weight, main_ema, guide_ema = cell
    study = load(name)
    keys = find(study, "table1", row, metric)
    assert len(keys) == 1
    key = keys[0]
    if key in study.waived:
        assert row == "rin"
        assert study.waived[key].value == value
        assert study.waived[key].reason
        return
    item = study.generate[key]
    assert study.published[key].value == value
    assert item.guided.guidance == float(weight or 1)
    main, guide = (snapshots.parse_name(Path(str(path)).name) for path in (item.guided.main, item.guided.guide))
    assert main is not None
    assert guide is not None
    assert main.ema_std == float(main_ema)
    assert guide.ema_std == float(guide_ema or main_ema)
    assert (item.guided.guide == item.guided.main) == (not weight)


def test_the_studies_hold_no_cells_but_the_papers() -> None:
    wanted = Counter((name, row, metric) for name, row, metric, *_ in table1_cells())
    found = Counter(
        (name, cell.row, cell.metric) for name in ("imagenet512", "imagenet64") for cell in cells(load(name))
    )
    assert found == wanted
    for name in ("imagenet512", "imagenet64", "edm2"):
        study = load(name)
        assert study.published.keys() == study.generate.keys()


def test_only_one_row_is_waived() -> None:
    assert {(name, c.row) for name in studies.available() for c in load(name).waived.values()} == {
        ("imagenet64", "rin")
    }


@pytest.mark.parametrize("row", rows("presets"), ids=lambda row: row["preset"])
def test_every_preset_is_one_configuration(row: dict[str, str]) -> None:
    study = load("edm2")
    item, cell = study.generate[row["preset"]].guided, study.published[row["preset"]]
    assert find(study, "presets", row["preset"], row["metric"]) == [row["preset"]]
    assert Path(item.main).stem == Path(row["main"]).stem
    assert Path(str(item.guide)).stem == Path(row["guide"] or row["main"]).stem
    assert item.guidance == float(row["guidance"] or 1)
    assert cell.value == float(row["published"])
    shown = presets.presets()[row["preset"]]
    assert (shown.metric, shown.published) == (row["metric"], float(row["published"]))


def test_there_are_no_other_presets() -> None:
    assert list(load("edm2").generate) == [row["preset"] for row in rows("presets")]
    with pytest.raises(InputError, match="did you mean 'edm2-img512-s-autog-fid'"):
        presets.presets()["edm2-img512-s-autog-fidd"]


def test_table1_and_presets_agree_where_they_overlap() -> None:
    by_settings = {}
    for row in rows("presets"):
        key = (row["main"], row["guide"], row["guidance"] and float(row["guidance"]), row["metric"])
        by_settings[key] = float(row["published"])
    overlaps = 0
    for name in ("imagenet512", "imagenet64"):
        study = load(name)
        for key, cell in study.published.items():
            item = study.generate[key].guided
            if cell.source != "ready-made" or item.interval:
                continue
            guided = item.guidance != 1
            guide = Path(str(item.guide)).with_suffix(".pkl").name if guided else ""
            main = Path(item.main).with_suffix(".pkl").name
            assert by_settings[(main, guide, item.guidance if guided else "", cell.metric)] == cell.value, key
            overlaps += 1
    assert overlaps == 17  # 512: 2 x (S, S+CFG, S+AG, XXL, XXL+CFG, XXL+AG, uncond+AG); 64: S, and AG twice


@pytest.mark.parametrize("name", studies.available())
def test_every_network_comes_from_an_entry_that_has_it(name: str) -> None:
    """A configuration whose file no stage makes would fail only after the downloads."""
    study = load(name)

    def has(path: str) -> bool:
        folder, file = path.split("/")
        if folder in study.reconstruct:
            item = study.reconstruct[folder]
            return file in {snapshots.format_name(folder, item.kimg, std) for std in item.ema_stds}
        return folder in study.train or Path(file).stem in [Path(f).stem for f in study.networks[folder].files()]

    points = [sweep.at(value) for sweep in study.sweeps.values() for value in sweep.values]
    for guided in [*(item.guided for item in study.generate.values()), *points]:
        assert has(guided.main), guided.main
        assert has(str(guided.guide)), guided.guide


@pytest.mark.parametrize("name", studies.available())
def test_reconstructions_end_at_a_snapshot(name: str) -> None:
    study = load(name)
    for item in study.reconstruct.values():
        raw = study.networks[item.source].raw if item.source in study.networks else None
        if raw is not None:
            assert any(f"-{item.kimg:07d}-" in file for file in raw.files())


def test_raw_snapshots_have_the_published_names() -> None:
    files = load("imagenet512").networks["imagenet512-xs-raw"].files()
    assert "raw-snapshots/edm2-img512-xs/edm2-img512-xs-0134217-0.100.pkl" in files
    assert len(files) == 128  # facts: XS has 128 pickles
    assert files[-1].endswith("edm2-img512-xs-2147483-0.100.pkl")


def test_intervals_guide_the_published_steps() -> None:
    study = load("imagenet512")
    found = 0
    for key, cell in study.published.items():
        item = study.generate[key]
        if item.method == "interval":
            bounds = INTERVALS[(cell.row.split("+")[0], cell.metric)]
            assert item.guided.interval == guided_steps(*bounds), key
            found += 1
        else:
            assert item.guided.interval is None
    assert found == 4
    sweeps = load("sensitivity512").sweeps
    assert sweeps["sensitivity512-interval-fid"].guided.interval == (15, 21)
    assert sweeps["sensitivity512-interval-fd"].guided.interval == (13, 19)


def test_rows_on_unverified_raw_snapshots_are_marked() -> None:
    marked = {
        (name, cell.row, cell.metric)
        for name in studies.available()
        for cell in load(name).published.values()
        if cell.source == "unverified-source"
    }
    assert marked == {
        ("imagenet512", "edm2-s-uncond", "fid"),
        ("imagenet512", "edm2-s-uncond", "fd_dinov2"),
        ("imagenet64", "edm2-s", "fd_dinov2"),
        ("imagenet64", "edm2-s+cfg", "fid"),
        ("imagenet64", "edm2-s+cfg", "fd_dinov2"),
    }


def test_what_nobody_has_confirmed_to_be_public_is_optional() -> None:
    """Cells of an unverified source rest on optional networks, and no other cell or curve but that of XXS does."""
    found = {}
    for name in ("imagenet512", "imagenet64", "sensitivity512", "smoke64", "smoke512", "edm2", "interval512"):
        study = load(name)
        optional = {key for key, item in study.networks.items() if item.optional}
        optional |= {key for key, item in study.reconstruct.items() if item.source in optional}
        for key, item in [*study.generate.items(), *study.sweeps.items()]:
            used = {str(network).split("/")[0] for network in (item.guided.main, item.guided.guide)}
            found[key] = bool(used & optional)
            if key in study.published:
                assert found[key] == (study.published[key].source == "unverified-source"), key
    assert [key for key, rests in found.items() if rests and key.startswith("sensitivity512")] == [
        "sensitivity512-autoguidance-xxs"
    ]


def test_curves_hold_the_published_optima() -> None:
    sweeps = load("sensitivity512").sweeps
    optima = {"autoguidance-fid": 2.1, "cfg-fid": 1.4, "interval-fid": 2.1, "autoguidance-s": 2.2}
    optima |= {"autoguidance-fd": 2.45, "cfg-fd": 1.9, "interval-fd": 3.2}
    for key, weight in optima.items():
        assert weight in sweeps[f"sensitivity512-{key}"].values
    of_size = sweeps["sensitivity512-autoguidance-s"].guided
    lengths = [snapshots.checked_name(Path(str(n)).name).ema_std for n in (of_size.main, of_size.guide)]
    assert lengths == [0.09, 0.13]  # of the row "reduce training only"


def test_interval_rows_are_measured_under_both_resizes_on_the_same_images() -> None:
    whole, apart = load("imagenet512"), load("interval512")
    assert apart.evaluate.detectors == ["dinov2", "dinov2-pil"]
    assert (apart.sampler, apart.shards) == (whole.sampler, whole.shards)
    for size in ("s", "xxl"):
        one, other = whole.generate[f"imagenet512-{size}-interval-fd"], apart.generate[f"interval512-{size}-fd"]
        assert (one.seeds, one.guided.guidance) == (other.seeds, other.guided.guidance)
        assert one.guided.interval == other.guided.interval
        for role in ("main", "guide"):
            names = [str(getattr(item.guided, role)).split("/")[1] for item in (one, other)]
            assert names[0] == names[1]  # so that shards and networks are linked


@pytest.mark.parametrize(
    ("name", "preset"), [("smoke64", "edm2-img64-s-autog-fid"), ("smoke512", "edm2-img512-s-autog-fid")]
)
def test_smoke_studies_are_one_preset_each(name: str, preset: str) -> None:
    study, (key,) = load(name), load(name).generate
    wanted, found = load("edm2").generate[preset].guided, study.generate[key].guided
    assert found.guidance == wanted.guidance
    assert Path(found.main).name == Path(wanted.main).name
    assert Path(str(found.guide)).name == Path(str(wanted.guide)).name
    first, second = (item.files()[0] for item in study.networks.values())
    assert "-xs-" in first  # the cheaper one comes first
    assert "-s-" in second


@pytest.mark.parametrize("name", ["imagenet512", "imagenet64", "edm2", "corruptions512"])
def test_a_verdict_is_possible_on_three_disjoint_blocks(name: str) -> None:
    for item in load(name).generate.values():
        assert item.seeds == ["0-49999", "50000-99999", "100000-149999"]


def test_sweeps_use_seeds_that_no_table_uses() -> None:
    for name in ("sensitivity512", "corruptions512"):
        study = load(name)
        used = {seed for item in study.generate.values() for seed in item.all_seeds()}
        for sweep in study.sweeps.values():
            for block in sweep.seeds:
                assert used.isdisjoint(studies.parse_seeds(block))
                assert len(studies.parse_seeds(block)) == 50_000


def test_corruptions_pair_matching_and_mismatching_defects() -> None:
    pairs = {
        (*s.guided.main_degradations, *s.guided.guide_degradations) for s in load("corruptions512").sweeps.values()
    }
    both = ("dropout", "input_noise")
    assert pairs == {(a, b) for a in both for b in both}


@pytest.mark.parametrize("networks", [{}, {"fetch": ["a.pkl"], "raw": {"run": "a", "until_Mi": 32}}])
def test_a_network_has_exactly_one_origin(networks: dict[str, object]) -> None:
    with pytest.raises(InputError, match="exactly one of fetch and raw"):
        build(Networks, networks)
