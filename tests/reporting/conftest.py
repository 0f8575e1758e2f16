"""One browser for the tests of a file."""

import pytest
from browser_page import BrowserPage


@pytest.fixture(scope="module")
def browser(chromium, tmp_path_factory):
    with BrowserPage(chromium, tmp_path_factory.mktemp("profile")) as page:
        yield page
