"""docs/api.md says what the code says."""

from tests import api_page


def test_the_page_is_that_of_the_docstrings() -> None:
    assert api_page.PAGE.read_text(encoding="utf-8") == api_page.page(), "run `python -m tests.api_page`"
