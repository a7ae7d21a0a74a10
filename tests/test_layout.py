"""Few entries in the package, and imports without circles."""

from __future__ import annotations

from graphlib import TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
FOLDERS = ("clipmerge", "benchmarks", "examples", "scripts", "tests")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))


def test_there_are_files_of_each_kind() -> None:
    assert {file.relative_to(ROOT).parts[0] for file in FILES} == set(FOLDERS)


def test_the_package_has_few_entries() -> None:
    entries = {path.name for path in (ROOT / "clipmerge").iterdir() if path.name != "__pycache__"}
    assert len(entries) <= 33, sorted(entries)


def test_no_import_leads_in_a_circle() -> None:
    """Not even one inside a function, or one for type checkers alone."""
    graph = grimp.build_graph("clipmerge", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


def test_no_file_holds_an_unresolved_merge() -> None:
    marks = ("<" * 7 + " ", ">" * 7 + " ")
    inner = [path for folder in (*FOLDERS, "docs", "recipes") for path in (ROOT / folder).rglob("*.*")]
    texts = [path for path in [*ROOT.glob("*.*"), *inner] if path.suffix in {".md", ".py", ".pyi", ".yaml", ".toml"}]
    assert len(texts) > len(FILES)
    for path in texts:
        assert not any(line.startswith(marks) for line in path.read_text(encoding="utf-8").splitlines()), path
