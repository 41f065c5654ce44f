"""docs/metrics.md: its table of references is the catalogue, and it speaks of every metric."""

from pathlib import Path

from metrics.catalogue import REFERENCES
from metrics.measure import METRICS
from metrics.names import ALIASES

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
BEGIN, END = "<!-- references:begin -->\n", "<!-- references:end -->\n"


def table() -> str:
    lines = ["| name | N of the statistics | size | detectors | cited in |", "|---|---|---|---|---|"]
    for name, known in REFERENCES.items():
        detectors = ", ".join(f"`{x}`" for x in known.detectors) + (", with images" if known.has_images else "")
        size = f"{known.resolution} x {known.resolution}"
        lines.append(f"| [`{name}`]({known.url}) | {known.num_images:,} | {size} | {detectors} | {known.cited} |")
    return "\n".join(lines) + "\n"


def test_the_table_of_references_is_the_catalogue() -> None:
    written = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    assert written == table()


def test_every_metric_is_defined() -> None:
    text = PAGE.read_text()
    for name in METRICS:
        called = [name, *(alias for alias, meant in ALIASES.items() if meant == (name,))]
        assert any(f"`{x}`" in text for x in called), name
