"""The public names: their list, their modules, and the cost of importing them."""

import ast
from pathlib import Path

import pytest

import clipmerge
from tests.support.command import ROOT, python

NAMES = [
    *("BenchResult", "Calibration", "CheckpointError", "ClipmergeError", "ConvertResult", "DataError"),
    *("EvaluateResult", "HubError", "InspectResult", "MeasureError", "Measurements", "MergeResult", "OutputError"),
    *("Plan", "PlanError", "Progress", "Published", "Recipe", "RecipeError", "RobustMergeCallback", "SweepResult"),
    *("UsageError", "__version__", "apply", "bench", "convert", "evaluate", "inspect", "load_recipe", "merge"),
    *("merge_models", "merge_state_dicts", "plan", "push", "sweep"),
]


def test_exactly_these_names_are_exported() -> None:
    assert sorted(clipmerge.__all__) == NAMES
    assert dir(clipmerge) == sorted(clipmerge.__all__)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "__version__"])
def test_each_name_is_there_and_documented(name: str) -> None:
    value = getattr(clipmerge, name)
    assert value.__doc__
    assert value.__module__.startswith("clipmerge.")


def test_the_types_of_the_stub_are_the_names_of_the_module() -> None:
    stub = Path(clipmerge.__file__).with_suffix(".pyi").read_text()
    imports = [node for node in ast.parse(stub).body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: node.module for node in imports for alias in node.names}
    assert all(alias.asname == alias.name for node in imports for alias in node.names)
    assert homes == clipmerge._HOMES


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import clipmerge", "torch numpy pydantic yaml typer rich transformers"),
        (
            "import clipmerge; clipmerge.merge; clipmerge.plan; clipmerge.apply; clipmerge.Plan",
            "torch transformers rich",
        ),
        ("import clipmerge; clipmerge.sweep", "torch transformers matplotlib"),
        ("import clipmerge; clipmerge.merge('a', 'b', 'wise-ft', output='c')", "torch transformers"),
    ],
)
def test_importing_takes_nothing_that_is_not_needed(code: str, absent: str) -> None:
    program = f"import sys\ntry: {code}\nexcept Exception: pass\nprint(*(m for m in sys.argv[1:] if m in sys.modules))"
    assert python("-c", program, *absent.split(), check=True).stdout.split() == []


def test_the_package_itself_imports_nothing() -> None:
    """Until the command line begins, Ctrl-C prints Python's traceback."""
    program = (
        "import sys\nsys.path.insert(0, sys.argv[1])\nbefore = set(sys.modules)\nimport clipmerge\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    root = Path(clipmerge.__file__).parents[1]
    loaded = python("-S", "-c", program, root, check=True)
    assert loaded.stdout.split() == ["__future__", "clipmerge"]


RIGHT = """
import clipmerge
from clipmerge import MergeResult, Plan

plan: Plan = clipmerge.plan("zeroshot", "finetuned", "auto", data="val", images=256)
alphas: dict[str, float] = {name: layer.alpha for name, layer in plan.layers.items()}
result: MergeResult = clipmerge.merge("zeroshot", ["finetuned"], "wise-ft", set={"method.alpha": 0.4}, output="merged")
accuracy: float = clipmerge.evaluate("merged", {"val": "val"}).accuracy["val"]
"""
WRONG = """
import clipmerge

clipmerge.merge("zeroshot", "finetuned", "auto", dat="val")
clipmerge.plan("zeroshot", "finetuned", "auto").layer
"""
CHECKERS = {
    "mypy": ["-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml")],
    "basedpyright": ["-m", "basedpyright", "--level", "error"],
}


@pytest.mark.slow
@pytest.mark.uncounted
@pytest.mark.parametrize("checker", CHECKERS)
def test_a_users_program_is_checked(checker: str, tmp_path: Path) -> None:
    for name, text in (("right", RIGHT), ("wrong", WRONG)):
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
    run = python(*CHECKERS[checker], "right.py", "wrong.py", cwd=tmp_path)
    errors = [line for line in run.stdout.splitlines() if "error:" in line]
    assert [line.partition(".py:")[2].partition(":")[0] for line in errors] == ["4", "5"], run.stdout + run.stderr
    assert all("wrong.py" in line for line in errors)
