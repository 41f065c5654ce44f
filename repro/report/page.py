"""report.html: one self-contained page with tables, figures, sample images and provenance of a study."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image, ImageOps

from repro.drawing import COLUMN, INK
from repro.report.figures import mosaic
from repro.report.tables import Table, method_label, read_csv
from repro.report.views import MOODS, TEMPLATES, to_html
from repro.study import Study
from repro.verdicts import measures

TILE = 128  # pixels: larger samples are scaled down
COLUMNS = 8  # samples side by side
FACTS = {"device": "Devices", "versions": "Versions", "commit": "Commits"}
DIGESTS = ["configuration", "main", "guide", *measures.DIGESTS]


@dataclass(frozen=True)
class Figure:
    """A figure in the report folder: NAME.png, NAME.svg, and NAME.csv where it shows numbers."""

    name: str
    title: str
    caption: str
    #: Drawn here, in the shared style; else it is shown on white.
    own_style: bool = True


@dataclass(frozen=True)
class Preview:
    """Images of one configuration."""

    configuration: str
    method: str
    #: [n, H, W, C].
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    seeds: NDArray[np.int64]


def render(
    study: Study, folder: Path, tables: Sequence[Table], figures: Sequence[Figure], previews: dict[str, list[Preview]]
) -> str:
    """The page, from the files that the report wrote into `folder`."""
    planned = measures.entries(study)
    missing = [key for key in planned if not measures.result_file(study, key).exists()]
    paths = [folder / f"{table.name}.csv" for table in tables]
    shown = [_table(table, path) for table, path in zip(tables, paths, strict=True)]
    return TEMPLATES.get_template("report.html").render(
        study=study,
        planned=planned,
        missing=missing,
        verdicts=[table for table in shown if table["judges"]],
        tables=[table for table in shown if not table["judges"]],
        figures=[_figure(figure, folder) for figure in figures],
        flips={
            data: [vars(p) | {"label": method_label(p.method), "uri": sprite(p.images)} for p in found]
            for data, found in previews.items()
        },
        moods=MOODS,
        origin=provenance(paths),
    )


def _table(table: Table, path: Path) -> dict[str, Any]:
    """What the page says of a table: its CSV, the view of it, and which verdicts came out how often."""
    rows = read_csv(path)
    view = table.view(rows)
    counts = rows["verdict"].value_counts().to_dict() if table.judges else {}
    shown = {"html": Markup(to_html(view)), "notes": view.notes, "csv": _embedded(path)}
    return vars(table) | shown | {"rows": len(rows), "counts": counts}


def _figure(figure: Figure, folder: Path) -> dict[str, Any]:
    png, svg, csv = (folder / f"{figure.name}.{suffix}" for suffix in ("png", "svg", "csv"))
    return vars(figure) | {
        "png": None if figure.own_style else data_uri(png.read_bytes(), "image/png"),
        "svg": Markup(inline_svg(svg.read_text(), figure.name, figure.title)) if figure.own_style else None,
        "csv": _embedded(csv) if csv.exists() else None,
    }


def _embedded(path: Path) -> dict[str, str]:
    """A CSV to read and to save from the page."""
    content = path.read_bytes()
    return {"name": path.name, "text": content.decode(), "uri": data_uri(content, "text/csv;charset=utf-8")}


def data_uri(content: bytes, kind: str) -> str:
    """`content` inside the page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def inline_svg(svg: str, name: str, title: str) -> str:
    """A drawing that takes the page's ink and background, with ids that no other drawing on the page has."""
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace("fill: #ffffff", "fill: none")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", svg)
    width = float(re.search(r'width="([\d.]+)pt"', svg)[1])  # type: ignore[index]
    kind = "full" if width > 72 * COLUMN * 1.2 else "column"
    head = f'<svg class="{kind}" style="--pt: {width:g}" role="img" aria-label="{title}"'
    return svg.replace("<svg", head, 1)


def sprite(images: NDArray[np.uint8]) -> str:
    """uint8 [n, H, W, C] -> data URI of a grid, `COLUMNS` wide; small images as PNG, photographs as JPEG."""
    picture, buffer = mosaic(images, COLUMNS), io.BytesIO()
    width = picture.width // COLUMNS
    kind = "png" if width <= 68 else "jpeg"
    shown = ImageOps.scale(picture, min(width, TILE) / width, Image.Resampling.LANCZOS)
    shown.save(buffer, kind, optimize=kind == "png", quality=88)
    return data_uri(buffer.getvalue(), f"image/{kind}")


def provenance(paths: Sequence[Path]) -> dict[str, Any]:
    """Devices, versions and commits of all rows of the tables `paths`, and the digests of each configuration."""
    found = (pd.read_csv(path, dtype=str) for path in paths)
    rows = pd.concat([pd.DataFrame(columns=[*DIGESTS, *FACTS]), *found])
    digests = rows.dropna(subset=["main_sha256"])[DIGESTS].drop_duplicates()
    facts = {label: list(rows[name].dropna().unique()) for name, label in FACTS.items()}
    return {"facts": facts, "digests": digests.fillna("").to_dict("records")}
