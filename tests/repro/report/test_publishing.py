"""Reports as text, and published."""

import json
import re
from pathlib import Path

import pytest

import repro.study as studies
from metrics.files import InputError
from repro.report import publish, summary
from repro.report.write import BEGIN, END, LISTING, readme_block
from repro.study import schema
from tests.repro.fabricated import ORIGIN

ROOT = Path(__file__).parents[3]


def test_summary_prints_the_tables_and_where_the_figures_are(default):
    text = summary(default)
    for title in ("2D example", "Generated images: digits", "Sensitivity", "Claims"):
        assert title in text
    assert str(default.out / "report" / "sensitivity-guidance.png") in text
    assert max(map(len, text.splitlines())) <= 180


def test_summary_without_a_report_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "OUT", tmp_path)
    with pytest.raises(InputError, match="no report yet; run `dvc repro`"):
        summary(studies.load(ROOT / "studies" / "default.yaml"))


def test_publishing_copies_the_views_and_fills_the_readme(default, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nformer table\n{END}\n\nTail.\n")
    (default.out / "report" / "foreign.csv").write_text("no table of the report")
    target = publish(default, tmp_path / "results", readme)
    (default.out / "report" / "foreign.csv").unlink()
    assert target == tmp_path / "results" / "default"
    assert {path.suffix for path in target.iterdir()} == {".csv", ".json", ".md", ".png"}
    assert (target / "digits.csv").read_bytes() == (default.out / "report" / "digits.csv").read_bytes()
    assert not (target / "foreign.csv").exists()
    text = readme.read_text()
    assert text.startswith("# Title\n\n")
    assert text.endswith("\n\nTail.\n")
    assert "former table" not in text
    assert re.search(r"^\| autoguidance +\| +1\.42 \|", text, re.MULTILINE)
    assert "digits-samples.png" in text
    assert ORIGIN["device"] in text
    publish(default, tmp_path / "results", readme)
    assert readme.read_text() == text


@pytest.mark.parametrize("text", ["no markers", f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_readme_without_a_place_for_results_is_left_alone(default, tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(InputError, match="expected one line"):
        publish(default, tmp_path / "results", readme)
    assert readme.read_text() == text


def test_only_what_a_list_of_ours_names_is_removed(default, tmp_path):
    readme, target = tmp_path / "README.md", tmp_path / "results" / "default"
    readme.write_text(f"{BEGIN}\n{END}")
    target.mkdir(parents=True)
    (target / "notes.txt").write_text("of the user")
    publish(default, tmp_path / "results", readme)
    written = {path.name for path in target.iterdir()} - {"notes.txt", LISTING}
    assert set(json.loads((target / LISTING).read_text())) == written
    (tmp_path / "precious.csv").write_text("1")
    (target / "old.csv").write_text("of an earlier report")
    names = [*written, "old.csv", "../../precious.csv", str(tmp_path / "precious.csv"), 3]
    (target / LISTING).write_text(json.dumps(names))
    publish(default, tmp_path / "results", readme)
    assert {path.name for path in target.iterdir()} == written | {"notes.txt", LISTING}
    assert (tmp_path / "precious.csv").exists()


def test_the_committed_readme_is_in_step_with_the_committed_results():
    folder = ROOT / "results" / "default"
    if not (folder / "digits.csv").exists():
        pytest.skip("no results are published yet")
    study = studies.load(ROOT / "studies" / "default.yaml")
    text = (ROOT / "README.md").read_text()
    block = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()
    assert block == readme_block(study, folder, Path("results/default"))
    assert (ROOT / "results" / "training-seeds" / "order.md").read_text() in text
    for table in ("claims.md", "cifar10-cpu-train.md"):
        assert (ROOT / "results" / "cifar10-cpu" / table).read_text() in text


#: What the README's first screen sums up: bullet, study, claim.
SUMMED_UP = (
    ("2D example", "default", "Autoguidance removes outliers"),
    ("2D example", "default", "Autoguidance keeps branches that CFG drops"),
    ("Digits under FID", "default", "Autoguidance lowers FID"),
    ("Digits under FID", "default", "Autoguidance beats CFG in FID"),
    ("Photographs under FID", "cifar10-cpu", "Autoguidance lowers FID"),
    ("Photographs under FID", "cifar10-cpu", "Autoguidance beats CFG in FID"),
)


@pytest.mark.parametrize(("bullet", "study", "claim"), SUMMED_UP)
def test_the_first_screen_sums_up_the_committed_claims(bullet: str, study: str, claim: str) -> None:
    table = (ROOT / "results" / study / "claims.md").read_text().splitlines()
    row = next([cell.strip() for cell in line.split("|")] for line in table if line.startswith(f"| {claim} "))
    text = (ROOT / "README.md").read_text().split(BEGIN)[0]
    found = " ".join(text.split(f"- **{bullet}**")[1].split("- **")[0].split())
    assert f"{row[6]}: {row[2]})" in found  # the difference and the verdict
