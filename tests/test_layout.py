"""The size of the code (entries, lines of files and functions), and imports without circles."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("clipmerge", "benchmarks", "examples", "scripts", "tests")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
#: Code of other kinds, which is to be read too: templates and stubs.
ALSO_READ = sorted(file for ending in ("j2", "css", "pyi") for file in (ROOT / "clipmerge").rglob(f"*.{ending}"))


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, without its docstring."""
    documented = ast.get_docstring(function) is not None
    docstring = function.body[0] if documented else None
    taken = 0 if docstring is None else (docstring.end_lineno or 0) - docstring.lineno + 1
    return (function.end_lineno or 0) - function.lineno + 1 - taken


def test_there_are_files_of_each_kind() -> None:
    assert {file.relative_to(ROOT).parts[0] for file in FILES} == set(FOLDERS)
    assert {file.suffix for file in ALSO_READ} == {".j2", ".pyi"}


def test_the_package_has_few_entries() -> None:
    entries = {path.name for path in (ROOT / "clipmerge").iterdir() if path.name != "__pycache__"}
    assert len(entries) <= 32, sorted(entries)


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_are_short(folder: str) -> None:
    long = {
        str(file.relative_to(ROOT)): count
        for file in (*FILES, *ALSO_READ)
        if file.is_relative_to(ROOT / folder) and (count := len(file.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}


def test_functions_are_short() -> None:
    """Signatures of commands are lists of flags, so two of them are longer."""
    long = [
        f"{file.relative_to(ROOT)}: {node.name}"
        for file in FILES
        if file.is_relative_to(ROOT / "clipmerge")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of(node) > 50
    ]
    assert long == ["clipmerge/cli/bench.py: bench_command", "clipmerge/cli/sweep.py: sweep_command"]


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
