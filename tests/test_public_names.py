"""The public names, their modules and their imports."""

import ast
from pathlib import Path

import clipmerge
from tests.support.command import python


def test_the_types_of_the_stub_are_the_names_of_the_module() -> None:
    stub = Path(clipmerge.__file__).with_suffix(".pyi").read_text()
    imports = [node for node in ast.parse(stub).body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: node.module for node in imports for alias in node.names}
    assert all(alias.asname == alias.name for node in imports for alias in node.names)
    assert homes == clipmerge._HOMES


def test_data_free_functions_need_no_torch() -> None:
    program = (
        "import sys\nimport clipmerge\n"
        "clipmerge.merge, clipmerge.plan, clipmerge.apply, clipmerge.Plan\n"
        "print({'torch', 'transformers', 'rich'} & set(sys.modules))"
    )
    assert python("-c", program, check=True).stdout == "set()\n"


def test_the_package_itself_imports_nothing() -> None:
    """Until the command line begins, Ctrl-C prints Python's traceback."""
    program = (
        "import sys\nsys.path.insert(0, sys.argv[1])\nbefore = set(sys.modules)\nimport clipmerge\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    root = Path(clipmerge.__file__).parents[1]
    loaded = python("-S", "-c", program, root, check=True)
    assert loaded.stdout.split() == ["__future__", "clipmerge"]
