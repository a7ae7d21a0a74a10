"""No import leads in a circle, and only the command line names its flags."""

import io
import re
import tokenize
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]


def test_no_import_leads_in_a_circle() -> None:
    """Not even one inside a function, or one for type checkers alone."""
    graph = grimp.build_graph("clipmerge", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


#: Whole strings; since Python 3.12 those of f-strings between their braces.
STRINGS = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", None)}


def flags_outside_commands(text: str) -> list[str]:
    """Flags of the command line that strings name, but for docstrings and commands in backticks."""
    found = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in STRINGS and '"""' not in token.string:
            words = re.sub(r"`[^`]*`", "", token.string)
            flags = re.findall(r"(?<![\w-])--[a-z][\w-]*", words)
            found += [f"{token.start[0]}: {flag}" for flag in flags]
    return found


def test_only_the_command_line_and_what_it_prints_name_its_flags() -> None:
    """An error names the parameter, which the command line turns into its flag: people who call
    Python read it too."""
    assert flags_outside_commands('def f(x):\n  """--a"""\n  f(f"`x --b` {x} --c")') == ["3: --c"]
    rooms = ("cli", "report", "publish", "options.py", "__main__.py")
    found = {
        str(file.relative_to(ROOT)): flags_outside_commands(file.read_text(encoding="utf-8"))
        for file in (ROOT / "clipmerge").rglob("*.py")
        if file.relative_to(ROOT / "clipmerge").parts[0] not in rooms
    }
    assert {file: flags for file, flags in found.items() if flags} == {}
