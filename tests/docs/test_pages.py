"""The pages: no dead link, all in the navigation, the API reference complete, and the site built
without a warning."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import clipmerge

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md"])
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
SITE = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(
        r"^#+ (.*)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE
    )
    return {
        re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def links(page: Path) -> list[str]:
    text = re.sub(r"`[^`\n]*`", "", FENCED.sub("", page.read_text(encoding="utf-8")))
    return [
        link
        for link in re.findall(r"\]\(([^)\s]+)\)", text)
        if not link.startswith(("http:", "https:"))
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_link_is_dead(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"
        assert not page.is_relative_to(DOCS) or target.is_relative_to(DOCS), (
            f"{page.name}: {link} is not on the site"
        )


def test_every_page_is_in_the_navigation_and_every_public_name_in_the_reference() -> None:
    listed = re.findall(r"[\w/-]+\.md", str(SITE["nav"]))
    assert sorted(listed) == sorted(
        page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")
    )
    named = re.findall(
        r"^::: clipmerge\.(\w+)$",
        (DOCS / "reference" / "api.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert sorted(named) == sorted(set(clipmerge.__all__) - {"__version__"})


@pytest.mark.slow
@pytest.mark.uncounted
def test_the_site_builds_with_formulas(tmp_path: Path) -> None:
    for name in ("docs", "clipmerge", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    command = [Path(sys.executable).with_name("zensical"), "build", "--strict"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "scripts")}
    built = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    page = (tmp_path / "site" / "reference" / "recipes" / "index.html").read_text("utf-8")
    assert page.count("<math") > 5
    assert "\\alpha" not in page
