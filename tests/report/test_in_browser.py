"""The pages in a real, headless browser: light and dark, in three widths, and printed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipmerge.output.record import MergeRecord
from clipmerge.report.figures import as_image, sweep_figure
from clipmerge.report.page import html_page
from clipmerge.report.sweep_table import sweep_page
from tests.support import browser as browsers
from tests.support.browser import Visit
from tests.support.merge_records import RECORDS
from tests.support.sweep_records import SWEEP

pytestmark = [
    pytest.mark.slow,
    pytest.mark.uncounted,
    pytest.mark.skipif(bool(browsers.missing()), reason=browsers.missing() or "a browser is there"),
]
PAGES = [*RECORDS, "sweep"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsers.opened() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    texts = {
        name: html_page(MergeRecord.model_validate(record)) for name, record in RECORDS.items()
    }
    texts["sweep"] = sweep_page(SWEEP, as_image(sweep_figure(SWEEP), "the curve"))
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text)
    return {name: folder / f"{name}.html" for name in texts}


@pytest.mark.parametrize(("width", "theme"), browsers.WINDOWS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_sound(
    browser: Any, pages: dict[str, Path], name: str, width: int, theme: str
) -> None:
    with Visit(browser, pages[name], width, theme) as visit:
        assert visit.said == []
        assert visit.asked == []
        assert visit.violations() == []
        assert visit.too_wide() <= 0
        assert visit.cut_texts() == []


@pytest.mark.parametrize("name", PAGES)
def test_a_printed_page_is_sound(browser: Any, pages: dict[str, Path], name: str) -> None:
    with Visit(
        browser, pages[name], 794, "dark"
    ) as visit:  # paper is white, whatever the screen is
        visit.page.emulate_media(media="print")
        assert (
            visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
            == "rgb(255, 255, 255)"
        )
        assert visit.violations() == []
        # a picture is in a figure, or alone in its section
        rows = "[...document.querySelectorAll('tr, figure, pre')]"
        assert visit.page.evaluate(
            f"{rows}.every(each => getComputedStyle(each).breakInside == 'avoid')"
        )
        tallest = visit.page.evaluate(
            "Math.max(0, ...[...document.querySelectorAll('figure')].map(e =>"
            " e.getBoundingClientRect().height))"
        )
        assert tallest < 1000  # a page of A4 holds 1047 pixels between margins of a centimetre
        assert visit.page.pdf(format="A4").startswith(b"%PDF")


def test_a_telephone_shows_the_main_columns_of_a_sweep_without_scrolling(
    browser: Any, pages: dict[str, Path]
) -> None:
    with Visit(browser, pages["sweep"], 390, "light") as visit:
        ends = visit.page.evaluate(
            """() => { const box = document.querySelector('[aria-label="Table of accuracies"]');
                const right = box.getBoundingClientRect().right;
                return [...box.querySelectorAll('thead th')].map(e => e.getBoundingClientRect().right - right); }"""
        )
    assert all(end <= 1 for end in ends[:4]), ends


def test_what_is_folded_is_printed(browser: Any, pages: dict[str, Path]) -> None:
    with Visit(browser, pages["auto"], 794, "light") as visit:
        is_shown = "document.querySelector('.layers').checkVisibility()"
        assert not visit.page.evaluate(is_shown)
        visit.page.emulate_media(media="print")
        assert visit.page.evaluate(is_shown)


def test_a_heading_sorts_the_table(browser: Any, pages: dict[str, Path]) -> None:
    column = (
        "[...document.querySelectorAll('.sortable tbody tr')].map(row =>"
        " row.cells[2].textContent.slice(0, 4))"
    )
    with Visit(browser, pages["sweep"], 1280, "light") as visit:
        before = visit.page.evaluate(column)
        found = []
        for _ in range(3):
            visit.page.get_by_role("button", name="mean OOD").click()
            found.append(visit.page.evaluate(column))
        assert found == [sorted(before, reverse=True), sorted(before), before]
        assert visit.said == []
