"""Take pictures of every page and figure, in three widths and two themes, and of the pages as they print.

``python -m tests.support.screenshots --output FOLDER [OUTPUT ...]``, or ``scripts/screenshots``. Each OUTPUT is a
folder that ``clipmerge merge`` or ``clipmerge sweep`` wrote; without any, the pages are those of made-up records.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from clipmerge.output.record import MergeRecord
from clipmerge.report.page import html_page
from clipmerge.report.sweep_page import sweep_page
from clipmerge.report.sweep_picture import curve_files, curve_markup
from tests.support import browser as browsers
from tests.support.merge_records import RECORDS
from tests.support.sweep_records import SWEEP

_FIGURES = ("*.png", "*.svg", "*.pdf")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("outputs", nargs="*", type=Path, metavar="OUTPUT", help="Folder of a merge or a sweep.")
    parser.add_argument("--output", type=Path, default=Path("screenshots"), help="Folder for the pictures.")
    arguments = parser.parse_args()
    if reason := browsers.missing():
        sys.stderr.write(f"no screenshots: {reason}\n")
        return 1
    arguments.output.mkdir(parents=True, exist_ok=True)
    pages = _copied(arguments.outputs, arguments.output) if arguments.outputs else _made_up(arguments.output)
    with browsers.opened() as browser:
        for name, page in pages.items():
            _take(browser, name, page, arguments.output)
    _figures_as_png(arguments.output)
    sys.stdout.write(f"Wrote {len(list(arguments.output.glob('*.png')))} pictures to {arguments.output}\n")
    return 0


def _copied(outputs: list[Path], folder: Path) -> dict[str, Path]:
    """The pages of outputs, and their figures beside them."""
    pages = {}
    for output in outputs:
        for figure in (file for pattern in _FIGURES for file in output.glob(pattern)):
            shutil.copyfile(figure, folder / f"{output.name}-{figure.name}")
        for page in (output / "report.html", output / "sweep.html"):
            if page.is_file():
                pages[output.name] = page.resolve()
    return pages


def _made_up(folder: Path) -> dict[str, Path]:
    texts = {name: html_page(MergeRecord.model_validate(record)) for name, record in RECORDS.items()}
    texts["sweep"] = sweep_page(SWEEP, curve_markup(SWEEP))
    for name, content in curve_files(SWEEP).items():
        (folder / name).write_bytes(content)
    pages = {}
    for name, text in texts.items():
        pages[name] = (folder / f"{name.replace(' ', '-')}.html").resolve()
        pages[name].write_text(text)
    return pages


def _take(browser: Any, name: str, page: Path, folder: Path) -> None:
    stem = name.replace(" ", "-")
    for width, theme in browsers.WINDOWS:
        with browsers.Visit(browser, page, width, theme) as visit:
            visit.page.screenshot(path=folder / f"{stem}-{width}-{theme}.png", full_page=True)
    with browsers.Visit(browser, page, 794, "light") as visit:
        visit.page.pdf(path=folder / f"{stem}-print.pdf", format="A4", print_background=True)


def _figures_as_png(folder: Path) -> None:
    """Turn PDF into PNG, page by page, where poppler is there; SVG is on the pages."""
    tool = shutil.which("pdftoppm")
    for file in sorted(folder.glob("*.pdf")) if tool else []:
        subprocess.run([str(tool), "-r", "70", "-png", str(file), str(file.with_suffix(""))], check=True)


if __name__ == "__main__":
    sys.exit(main())
