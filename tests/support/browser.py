"""A real, headless browser: where it is, and what is wrong with a page in it."""

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

#: Names of the browsers that will do; CLIPMERGE_BROWSER names another.
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
#: Width of the window, and the theme of the user's system.
#: Dark has other colours, and no other layout.
WINDOWS = [(1280, "light"), (768, "dark"), (390, "light")]


def missing() -> str:
    """Why no page can be opened; empty if one can."""
    if not _browser():
        return (
            "no Chromium or Chrome is installed (Debian: apt install chromium), and"
            " CLIPMERGE_BROWSER names none"
        )
    absent = [
        name
        for name in ("playwright", "axe_playwright_python")
        if not importlib.util.find_spec(name)
    ]
    return f"{' and '.join(absent)} not installed (extra dev)" if absent else ""


def _browser() -> str | None:
    return os.environ.get("CLIPMERGE_BROWSER") or next(
        filter(None, map(shutil.which, BROWSERS)), None
    )


@contextlib.contextmanager
def opened() -> Iterator[Any]:
    """A browser of playwright's, driving the one that is installed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=_browser(), args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """One page in one window: what it said on the console, errors among it, and the other addresses
    it asked for."""

    def __init__(self, browser: Any, file: Path, width: int, theme: str) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self._context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme
        )
        self.page = self._context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())
        self.asked.remove(file.as_uri())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def violations(self) -> list[str]:
        """What axe finds, as `rule: element`."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [f"{each['id']}: {node['html'][:200]}" for each in found for node in each["nodes"]]

    def too_wide(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(
            self.page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
        )

    def cut_texts(self) -> list[str]:
        """Words of pictures that reach beyond their picture."""
        return list(
            self.page.evaluate("""() => [...document.querySelectorAll('svg text')].filter(text => {
                    const svg = text.closest('svg').getBoundingClientRect(), box = text.getBoundingClientRect();
                    return box.width && (box.left < svg.left - 1 || box.right > svg.right + 1 ||
                                         box.top < svg.top - 1 || box.bottom > svg.bottom + 1);
                }).map(text => text.textContent)""")
        )
