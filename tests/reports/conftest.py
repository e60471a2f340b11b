import os
import shutil
from contextlib import contextmanager

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium found on PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def opened(browser):
    """Opens a page, and checks at the end that it asked for nothing and had nothing to complain of."""

    @contextmanager
    def open_page(path, width=1366, height=768, expected=(), **options):
        page = browser.new_page(viewport={"width": width, "height": height}, **options)
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        yield page
        page.close()
        assert [url for url in asked if not url.startswith("data:image/webp")] == [path.as_uri()]
        assert [text for text in said if not any(part in text for part in expected)] == []

    return open_page
