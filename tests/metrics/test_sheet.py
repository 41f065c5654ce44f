"""The page of nearest training images: which images it shows, their pixels, and that names cannot break it."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from metrics import detectors, features, sheet
from metrics.__main__ import main
from metrics.evaluation import Extractor
from metrics.features import FeatureSet
from metrics.files import InputError
from metrics.sheet import make_sheet, select

TAGS = {"detector": "brightness", "weights_sha256": "none", "resize": "none", "dtype": "float32"}


class Brightness:
    """The mean of each channel: a detector whose distances can be worked by hand."""

    name, dim, tags = "brightness", 3, TAGS

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3))


detectors.register("brightness", lambda **_: Brightness())
EXTRACTOR = Extractor(("brightness",), num_workers=0)


def grey(folder: Path, **values: int) -> Path:
    """A folder of 4 x 4 images by name, each of one shade."""
    folder.mkdir()
    for name, value in values.items():
        Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(folder / f"{name}.png")
    return folder


class Page(HTMLParser):
    """Cells of each table: the mean shade of the picture, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[tuple[float, str, bool]]]] = []
        self.tags = [""]
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.tags.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag == "td":
            self.is_copy = found.get("class") == "copy"
        elif tag == "img":
            kind, data = str(found["src"]).split(",")
            assert kind == "data:image/png;base64"
            self.shade = float(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).mean())

    def handle_data(self, text: str) -> None:
        if self.tags[-1] == "img" and text.strip():
            self.tables[-1][-1].append((self.shade, text, self.is_copy))


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    train = grey(tmp_path / "train", a=10, b=30, c=100)
    return grey(tmp_path / "made", one=12, two=60, three=100, four=240), train


def test_both_ends_are_shown_beside_their_nearest_training_images(sides: tuple[Path, Path]) -> None:
    page, copies = make_sheet(EXTRACTOR, str(sides[0]), str(sides[1]), count=2, neighbours=2)
    nearest, farthest = Page(page).tables
    root = 3**0.5
    assert nearest == [
        [(100, "three.png", True), (100, "0 from c.png", False), (30, f"{70 * root:.4g} from b.png", False)],
        [
            (12, "one.png", True),
            (10, f"{2 * root:.4g} from a.png", False),
            (30, f"{18 * root:.4g} from b.png", False),
        ],
    ]
    assert [[cell[1] for cell in row] for row in farthest] == [
        ["four.png", f"{140 * root:.4g} from c.png", f"{210 * root:.4g} from b.png"],
        ["two.png", f"{30 * root:.4g} from b.png", f"{40 * root:.4g} from c.png"],
    ]
    assert [row[0][2] for row in farthest] == [False, False]
    assert copies == 2


def test_equal_distances_keep_the_order_and_all_are_shown_where_there_are_few() -> None:
    train = np.array([[0.0], [10]], np.float32)
    nearest, farthest = select(train, np.array([[1.0], [9], [12], [-1]], np.float32), count=9, neighbours=1)
    assert [row.image for row in nearest] == [0, 1, 3, 2]
    assert [row.image for row in farthest] == [2, 3, 1, 0]
    assert [row.neighbours for row in nearest] == [[0], [1], [0], [1]]


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    name = "<script>alert(1)<x>&amp;"
    made, train = grey(tmp_path / name, **{name: 5}), grey(tmp_path / "train", **{"<img src=x>": 1, "b": 3})
    page, _ = make_sheet(EXTRACTOR, str(made), str(train), neighbours=1)
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert parsed.tags.count("img") == 4
    assert {row[0][1] for table in parsed.tables for row in table} == {f"{name}.png"}


def test_large_images_are_shrunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "LARGEST", 2)
    made, train = grey(tmp_path / "made", x=5), grey(tmp_path / "train", a=1, b=3)
    page, _ = make_sheet(EXTRACTOR, str(made), str(train), neighbours=1)
    data = page.split("base64,")[1].split('"')[0]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (2, 2)


def test_features_and_several_detectors_are_refused(sides: tuple[Path, Path], tmp_path: Path) -> None:
    features.save({"brightness": FeatureSet.of(np.zeros((3, 3), np.float32), TAGS)}, tmp_path / "kept.npz")
    with pytest.raises(InputError, match=r"kept\.npz: holds features, and a sheet shows the images themselves"):
        make_sheet(EXTRACTOR, str(sides[0]), str(tmp_path / "kept.npz"))
    with pytest.raises(InputError, match="one detector's features"):
        make_sheet(Extractor(("brightness", "inception")), str(sides[0]), str(sides[1]))
    with pytest.raises(InputError, match="4 nearest images cannot be had of 3"):
        make_sheet(EXTRACTOR, str(sides[0]), str(sides[1]), neighbours=4)


def test_the_command_writes_a_page_again_and_nothing_else_over(
    sides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sheet.html"
    command = ["neighbours", str(sides[0]), "--train", str(sides[1]), "--out", str(out), "--detectors", "brightness"]
    command += ["--no-cache", "--workers", "0", "--device", "cpu"]
    for _ in range(2):
        assert main(command) == 0
    assert "2 of the images on it are suspected copies" in capsys.readouterr().err
    assert len(Page(out.read_text()).tables) == 2
    out.write_text("<!doctype html>mine")
    assert main(command) == 2
    assert out.read_text() == "<!doctype html>mine"
