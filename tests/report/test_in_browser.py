"""Pages fit a telephone and a desk: nothing but tables scrolls sideways."""

import re
import shutil
import subprocess
from html import escape
from pathlib import Path

import pytest

from clipmerge.report.figures import png, sweep_figure
from clipmerge.report.pages import html_page
from clipmerge.report.sweep import sweep_page
from tests.report.test_pages import sweep
from tests.support.merge_records import record

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), "")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--dump-dom",
]
# A window is 500 pixels wide or more, a frame in it is not.
FRAME = (
    '<title></title><iframe style="border: 0" width="{}" height="900" srcdoc="{}"'
    ' onload="const page = this.contentDocument.documentElement;'
    ' document.title = page.scrollWidth - page.clientWidth"></iframe>'
)


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no browser")
@pytest.mark.parametrize("width", [420, 1280])
def test_a_page_is_as_wide_as_its_window(width: int, tmp_path: Path) -> None:
    merge = html_page(record(command="clipmerge merge " + 300 * "x"))
    for page in (merge, sweep_page(sweep(), png(sweep_figure(sweep())))):
        file = tmp_path / "page.html"
        file.write_text(FRAME.format(width, escape(page)))
        command = [BROWSER, *FLAGS, "--window-size=1400,900", file.as_uri()]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
        found = re.search(r"<title>(\d+)</title>", shown)
        assert found
        assert int(found[1]) == 0
