"""The page of a report, in a browser."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from repro.report.page import provenance, sprite
from tests.repro.report.browser import Browser, missing


@pytest.fixture(scope="module")
def page(rendered):
    """The report opened in a browser."""
    if missing():
        pytest.skip(f"no browser: {' and '.join(missing())} not installed")
    with Browser() as browser:
        browser.emulate(1280)
        browser.open((rendered.out / "default" / "report" / "report.html").as_uri())
        yield browser


def test_the_page_asks_for_nothing_and_logs_no_errors(page, default):
    address = (default.out / "report" / "report.html").as_uri()
    page.open(address)
    assert [a for a in page.requests() if a != address] == []
    assert page.console() == []


def test_a_click_on_a_heading_sorts_the_table_both_ways(page):
    column = """
        const table = document.querySelector("#table-digits ~ .wide table");
        const heads = [...table.tHead.rows[0].cells], at = heads.findIndex(h => h.textContent.startsWith("FD_digits"));
        if (arguments[0]) heads[at].querySelector("button").click();
        return [heads[at].getAttribute("aria-sort"), ...[...table.tBodies[0].rows].map(r => r.cells[at].dataset.value)];
    """
    before = page.run(column, False)
    up, down = page.run(column, True), page.run(column, True)
    values = [float(value) for value in before[1:]]
    assert before[0] is None
    assert values != sorted(values)
    assert up[0] == "ascending"
    assert [float(v) for v in up[1:]] == sorted(values)
    assert down[0] == "descending"
    assert [float(v) for v in down[1:]] == sorted(values, reverse=True)


def test_samples_flip_between_methods_at_the_same_seeds(page):
    state = """
        const flip = document.querySelector("#flip-digits");
        if (arguments[0] !== null) [...flip.querySelectorAll("[role=tab]")][arguments[0]].click();
        return [...flip.querySelectorAll("[role=tabpanel]")].filter(p => p.getClientRects().length).map(p =>
            [p.id, p.querySelector("img").naturalWidth, Math.round(p.getBoundingClientRect().top + scrollY)]);
    """
    (first,) = page.run(state, None)
    (other,) = page.run(state, 3)
    assert first[0] == "panel-digits-unguided"
    assert other[0] == "panel-digits-autoguidance"
    assert first[1] == other[1] == 8 * 17
    assert first[2] == other[2]  # nothing jumps
    key = "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}))"
    page.run("document.querySelectorAll('#flip-digits [role=tab]')[3].focus();" + key)
    assert page.run(state, None)[0][0] == "panel-digits-reduced-training"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_the_screen_in_light_and_dark(page, width, dark):
    page.emulate(width, dark)
    try:
        assert page.run("return document.documentElement.scrollWidth") <= width
        ink = page.run("return getComputedStyle(document.body).color")
        assert (max(map(int, re.findall(r"\d+", ink))) > 128) == dark
        picture = Image.open(io.BytesIO(page.screenshot())).convert("L")
        assert (np.asarray(picture).mean() < 128) == dark
    finally:
        page.emulate(1280)


def test_a_reader_without_scripts_sees_every_table(default):
    text = (default.out / "report" / "report.html").read_text()
    assert text.count("<tbody>") >= 4
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)


def test_small_samples_are_a_png_and_rows_are_filled_with_white():
    uri = sprite(np.zeros((9, 16, 16, 1), np.uint8))
    assert uri.startswith("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        assert picture.size == (8 * 17, 2 * 17)
        assert picture.getpixel((0, 17)) == 0
        assert picture.getpixel((17, 17)) == 255


def test_a_study_without_tables_has_no_provenance():
    assert provenance([]) == {"facts": {"Devices": [], "Versions": [], "Commits": []}, "digests": []}
