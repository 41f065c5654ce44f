"""docs/guidance.ipynb runs, in seconds and without a network, and says what it says there."""

import base64
import io

import numpy as np
from PIL import Image

from tests import notebook


def pictures(page: dict[str, object]) -> list[np.ndarray]:
    outputs = [output for cell in page["cells"] for output in cell.get("outputs", ())]  # type: ignore[attr-defined]
    found = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text))), int) for text in found]


def test_its_cells_give_what_it_shows() -> None:
    committed = notebook.read()
    found = notebook.executed(committed)
    assert notebook.texts(found) == notebook.texts(committed)
    assert len(notebook.texts(found)) >= 6
    shown = list(zip(pictures(found), pictures(committed), strict=True))
    assert len(shown) >= 3
    for now, then in shown:  # other machines round otherwise
        assert np.abs(now - then).mean() < 2


def test_it_has_what_jupyter_wants() -> None:
    page = notebook.read()
    assert (page["nbformat"], page["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in page["cells"]}) == len(page["cells"])
    for cell in page["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        assert cell.keys() == (keys | {"execution_count", "outputs"} if cell["cell_type"] == "code" else keys)


def test_a_cell_s_output_is_what_it_prints_and_its_last_value() -> None:
    cells = [
        {"cell_type": "code", "source": ["x = 3\n", "print('so')\n", "x + 1"]},
        {"cell_type": "code", "source": ["y = x"]},
        {"cell_type": "markdown", "source": ["words"]},
        {"cell_type": "code", "source": ["None if y else 1"]},
    ]
    assert notebook.texts(notebook.executed({"cells": cells})) == ["so\n", "4"]
