"""report.html: one self-contained page with tables, figures, sample images and provenance of a study."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from repro.report.figures import COLUMN, INK
from repro.report.tables import Table, read_view
from repro.report.views import MOODS
from repro.study import Study
from repro.verdicts import measures

TEMPLATES = Path(__file__).parent / "templates"
TILE = 128  # pixels: larger samples are scaled down
COLUMNS = 8  # samples side by side


@dataclass(frozen=True)
class Figure:
    """A figure in the report folder: NAME.png, NAME.svg, and NAME.csv where it shows numbers."""

    name: str
    title: str
    caption: str
    own_style: bool = True
    """Drawn here, in the shared style; else it is shown on white."""


@dataclass(frozen=True)
class Preview:
    """Images of one configuration."""

    configuration: str
    method: str
    images: NDArray[np.uint8]
    """[n, H, W, C]."""
    labels: NDArray[np.int64]
    seeds: NDArray[np.int64]


def render(
    study: Study,
    folder: Path,
    tables: Sequence[Table],
    figures: Sequence[Figure],
    previews: dict[str, list[Preview]],
) -> str:
    """The page, from the files that the report wrote into `folder`."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    planned = measures.planned(study)
    missing = [key for key in planned if not (measures.result_folder(study, key) / measures.MEASURES).exists()]
    return environment.get_template("report.html").render(
        study=study,
        cards=_cards(len(planned) - len(missing), len(planned), tables, folder),
        missing=missing,
        verdicts=[_table(table, folder) for table in tables if table.judges],
        tables=[_table(table, folder) for table in tables if not table.judges],
        figures=[_figure(figure, folder) for figure in figures],
        flips={data: [_flip(p) for p in found] for data, found in previews.items() if found},
        seeds={data: found[0].seeds.tolist() for data, found in previews.items() if found},
        origin=provenance(pd.concat([pd.read_csv(folder / f"{t.name}.csv", dtype=str) for t in tables])),
    )


def _cards(done: int, planned: int, tables: Sequence[Table], folder: Path) -> list[dict[str, object]]:
    """What a reader wants to know first: how much was measured, and which verdicts came out how often."""
    cards: list[dict[str, object]] = [{"value": f"{done} of {planned}", "label": "measurements done", "mood": ""}]
    for table in tables:
        if table.judges:
            verdicts = measures.read_csv(folder / f"{table.name}.csv")["verdict"]
            for verdict, count in verdicts.value_counts().items():
                label, mood = f"{table.judges}: {verdict}", MOODS.get(str(verdict), "")
                cards.append({"value": f"{count} of {len(verdicts)}", "label": label, "mood": mood})
    return cards


def _table(table: Table, folder: Path) -> dict[str, Any]:
    path = folder / f"{table.name}.csv"
    return {
        "name": table.name,
        "title": table.title,
        "caption": table.caption,
        "html": Markup(path.with_suffix(".html").read_text()),
        "notes": read_view(table, folder).notes,
        "csv": _embedded(path),
    }


def _figure(figure: Figure, folder: Path) -> dict[str, Any]:
    svg, csv = folder / f"{figure.name}.svg", folder / f"{figure.name}.csv"
    return {
        "name": figure.name,
        "title": figure.title,
        "caption": figure.caption,
        "svg": Markup(inline_svg(svg.read_text(), figure.name, figure.title)) if figure.own_style else None,
        "png": None if figure.own_style else data_uri((folder / f"{figure.name}.png").read_bytes(), "image/png"),
        "csv": _embedded(csv) if csv.exists() else None,
    }


def _embedded(path: Path) -> dict[str, str]:
    """A CSV to read and to save from the page."""
    text = path.read_text()
    return {"name": path.name, "text": text, "uri": f"data:text/csv;charset=utf-8,{quote(text)}"}


def data_uri(content: bytes, kind: str) -> str:
    """`content` inside the page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def inline_svg(svg: str, name: str, title: str) -> str:
    """A drawing that takes the page's ink and background, with ids that no other drawing on the page has."""
    svg = svg[svg.index("<svg") :]
    svg = svg.replace(INK, "currentColor").replace("fill: #ffffff", "fill: none")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{name}-", svg)
    width = float(re.search(r'width="([\d.]+)pt"', svg)[1])  # type: ignore[index]
    kind = "full" if width > 72 * COLUMN * 1.2 else "column"
    head = f'<svg class="{kind}" style="--pt: {width:g}" role="img" aria-label="{title}"'
    return svg.replace("<svg", head, 1)


def _flip(preview: Preview) -> dict[str, str]:
    """Samples of one configuration as one image."""
    return {
        "configuration": preview.configuration,
        "method": measures.method_label(preview.method),
        "uri": sprite(preview.images),
    }


def sprite(images: NDArray[np.uint8]) -> str:
    """uint8 [n, H, W, C] -> data URI of a grid, `COLUMNS` wide; small images as PNG, photographs as JPEG."""
    count, height, width, channels = images.shape
    rows = -(-count // COLUMNS)
    gap = max(1, width // 32)
    padded = np.full((rows * COLUMNS, height + gap, width + gap, channels), 255, np.uint8)
    padded[:count, :height, :width] = images
    height, width = height + gap, width + gap
    grid = padded.reshape(rows, COLUMNS, height, width, channels).transpose(0, 2, 1, 3, 4)
    picture = Image.fromarray(grid.reshape(rows * height, COLUMNS * width, channels).squeeze())
    buffer = io.BytesIO()
    if width <= 68:
        picture.save(buffer, "png", optimize=True)
        return data_uri(buffer.getvalue(), "image/png")
    size = min(width, TILE)
    picture.resize((COLUMNS * size, rows * size), Image.Resampling.LANCZOS).save(buffer, "jpeg", quality=88)
    return data_uri(buffer.getvalue(), "image/jpeg")


def provenance(rows: pd.DataFrame) -> dict[str, Any]:
    """Devices, versions and commits of all rows, and the digests of each configuration."""
    if "device" not in rows:
        return {"facts": {}, "digests": []}
    names = {"device": "Devices", "versions": "Versions", "commit": "Commits"}
    facts = {label: sorted(rows[name].dropna().unique()) for name, label in names.items() if name in rows}
    keys = ["configuration", "main", "main_sha256", "guide", "guide_sha256", "detector", "detector_sha256"]
    digests = rows.dropna(subset=["main_sha256"]).reindex(columns=[*keys, "reference_sha256"]).drop_duplicates()
    return {"facts": facts, "digests": digests.fillna("").to_dict("records")}
