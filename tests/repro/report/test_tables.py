"""Views of tables: Table 1's layout, LaTeX."""

import re
import shutil
import subprocess

import pandas as pd
import pytest

from repro.report import tables, views
from repro.verdicts import claims, measures, published


def results():
    """Cells of three rows of a published table, measured in both metrics, in one and in none; the summary."""
    facts = {"spread": 0.02, "blocks": 3, "num_images": 50000, "main_ema": 0.07, "guide_ema": 0.125}
    measured = [
        facts | {"configuration": "s-1", "metric": "fid", "mean": 2.58, "min": 2.55, "guidance": 1.0},
        facts | {"configuration": "s-2", "metric": "fd_dinov2", "mean": 68.9, "min": 68.7},
        facts | {"configuration": "s-autog-1", "metric": "fid", "mean": 1.37, "min": 1.35, "guidance": 2.1},
        facts | {"configuration": "s-autog-2", "metric": "fd_dinov2", "spread": None, "reason": "not run"},
        facts | {"configuration": "s-autog-2", "metric": "precision_inception", "mean": 0.7, "min": 0.7},
    ]
    cells = [
        ("s-1", "fid", 2.56, -0.01, "reproduced", "", "edm2-s"),
        ("s-2", "fd_dinov2", 68.64, 0.06, "reproduced", "", "edm2-s"),
        ("s-autog-1", "fid", 1.34, 0.01, "reproduced", "", "edm2-s+autog"),
        ("s-autog-2", "fd_dinov2", 36.67, None, "not run", "not run", "edm2-s+autog"),
        ("rin-fid", "fid", 1.23, None, "not possible", "no public network", "rin"),
    ]
    columns = ["configuration", "metric", "published", "difference", "verdict", "reason", "row"]
    table = pd.DataFrame(cells, columns=columns).assign(table="table1").reindex(columns=published.COLUMNS)
    return table, pd.DataFrame(measured).reindex(columns=measures.SUMMARY)


def test_measured_and_published_stand_in_the_layout_of_the_papers_table():
    rows = tables.published_rows(*results(), "table1")
    view = tables.published_view(rows)
    lines = [[cell.text for cell in row] for row in view.rows]
    assert [line[0] for line in lines] == ["edm2-s", "edm2-s+autog", "rin"]
    assert lines[0][1:5] == ["2.55 (2.58 ± 0.02)", "2.56", "-0.01", "reproduced"]
    assert lines[1][1:8] == ["1.35 (1.37 ± 0.02)", "1.34", "+0.01", "reproduced", "2.1", "0.07", "0.125"]
    assert lines[1][8:12] == ["–", "36.67", "–", "not run"]
    assert lines[2][1:5] == ["–", "1.23", "–", "not possible"]
    assert [row[1].best for row in view.rows] == [False, True, False]
    assert "rin-fid: no public network" in view.notes
    tex = views.to_latex(view, "table1", "x")
    assert tex.count("multicolumn{7}") == 2
    assert r"\cmidrule(lr){2-8} \cmidrule(lr){9-15}" in tex
    assert views.to_html(view).count('colspan="7"') == 2
    assert tables.published_rows(*results(), "presets").empty


def test_what_nobody_registered_is_shown_by_its_name():
    assert tables.metric("my_value").label == "my value"
    assert tables.metric("fid").label == "FID"


def test_markdown_keeps_bars_and_marks_the_best():
    view = views.View(
        [views.Column("a|b", numeric=False), views.Column("n")], [[views.Cell("x|y"), views.Cell("1", best=True)]]
    )
    lines = [re.sub(" |(?<=-)-", "", line) for line in views.to_markdown(view).splitlines()]
    assert lines == [r"|a\|b|n|", "|:-|-:|", r"|x\|y|**1**|"]


def latex(folder):
    parts = [r"\input{" + path.stem + "}" for path in sorted(folder.glob("*.tex"))]
    return "\n".join(
        [r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}", *parts, r"\end{document}"]
    )


def test_latex_tables_are_well_formed(default):
    for path in (default.out / "report").glob("*.tex"):
        text = path.read_text()
        assert text.isascii()
        for name in ("table", "tabular"):
            assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
        for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
            assert rule in text
        assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
        width = len(re.search(r"\\begin{tabular}{(\w+)}", text)[1])
        body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(lines) > 1
        assert all(len(re.findall(r"(?<!\\)&", line)) == width - 1 for line in lines)
        assert not re.search(r"(?<!\\)[_#%]", re.sub(r"\$[^$]*\$|\\label{.*}|%\n", "", text))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX engine (pdflatex) is installed")
def test_latex_tables_compile(default, tmp_path):
    for path in (default.out / "report").glob("*.tex"):
        shutil.copy(path, tmp_path)
    (tmp_path / "all-tables.tex").write_text(latex(default.out / "report"))
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all-tables"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


def test_text_is_escaped_for_latex():
    assert views.tex_escape("a_b 5% ± {x} #1 & \\") == r"a\_b 5\% $\pm$ \{x\} \#1 \& \textbackslash{}"


@pytest.mark.parametrize("make", [tables.configurations_view, tables.sensitivity_view, tables.claims_view])
def test_tables_without_rows_are_headings(make):
    view = make(pd.DataFrame(columns=list(dict.fromkeys([*measures.SUMMARY, *claims.COLUMNS]))))
    for write in (views.to_markdown, views.to_text, views.to_html):
        assert view.columns[0].label in write(view)
    assert r"\toprule" in views.to_latex(view, "x", "x")
