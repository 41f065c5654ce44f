"""docs/guidance.ipynb: `python -m tests.notebook` runs its cells and writes what they give; a test does the same.

Outputs are what Jupyter's would be: what is printed, and the value of a cell's last expression, images as PNG.
"""

import ast
import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guidance.ipynb"


def executed(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with fresh outputs: all code cells, in order, in one namespace."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells, number = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            number += 1
            cell = cell | {"execution_count": number, "outputs": _run("".join(cell["source"]), namespace, number)}
        cells.append(cell)
    return notebook | {"cells": cells}


def _run(source: str, namespace: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """Outputs of one cell."""
    body, printed, value = ast.parse(source).body, io.StringIO(), None
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), f"cell {number}", "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue())})
    if value is not None:
        outputs.append(
            {"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": _data(value)}
        )
    return outputs


def _data(value: object) -> dict[str, Any]:
    if not isinstance(value, Image.Image):
        return {"text/plain": _lines(repr(value))}
    stream = io.BytesIO()
    value.save(stream, "png")
    picture = base64.b64encode(stream.getvalue()).decode()
    return {"image/png": picture, "text/plain": [f"<image of {value.width} x {value.height} pixels>"]}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def texts(notebook: dict[str, Any]) -> list[str]:
    """All that the cells gave, but for pictures."""
    outputs = (output for cell in notebook["cells"] for output in cell.get("outputs", ()))
    return ["".join(output.get("text", output.get("data", {}).get("text/plain", ()))) for output in outputs]


def read() -> dict[str, Any]:
    """The notebook as it lies there."""
    return dict(json.loads(PAGE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    PAGE.write_text(json.dumps(executed(read()), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
