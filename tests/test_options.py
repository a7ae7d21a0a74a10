"""The one list of options: adding one touches four files, and every function shows, checks and takes its own."""

import inspect
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clipmerge as api
from clipmerge import options
from clipmerge.options import completed, declared
from tests.support.command import clipmerge, python

PACKAGE = Path(api.__file__).parent
#: An option that puts a line of the user's among the warnings: by file, a line there and the lines that follow it.
MOTTO = {
    "options.py": (
        "    hash: Hash\n\n\nclass RecipeOptions",
        '    motto: Annotated[str | None, Option(None, "A line for the record.", "Decision", value="TEXT", '
        'settable="personal")]\n',
    ),
    "request.py": ("tasks that the models were not fine-tuned for\n\n\n", "    motto: str | None = None\n"),
    "api/_requests.py": ('        "hashed": options["hash"],\n', '        "motto": options["motto"],\n'),
    "api/plan.py": (
        "    task = Task(run.inputs, measurements, request.seed)\n",
        "    run.inputs.notes.extend([request.motto] * bool(request.motto))\n",
    ),
}
CHECKS = """
import inspect, sys
import clipmerge
from tests.support.command import clipmerge as command
assert clipmerge.__file__.startswith(sys.argv[1]), clipmerge.__file__
for name in ("merge", "plan", "sweep", "merge_models", "RobustMergeCallback"):
    assert inspect.signature(getattr(clipmerge, name)).parameters["motto"].default is None
assert "motto: A line for the record." in clipmerge.merge.__doc__
for name in ("merge", "plan", "sweep"):
    decision = command(name, "-h").out.partition("Decision:")[2].partition("Output:")[0]
    assert "--motto TEXT" in decision, name
record = clipmerge.merge(*sys.argv[2:], "wise-ft", motto="by hand").record
assert record.command.endswith("--recipe wise-ft --motto 'by hand'"), record.command
assert "by hand" in record.warnings
record = command("merge", *sys.argv[2:], "-r", "wise-ft", "--dry-run", "--format", "json").json
assert "from the environment" in record["warnings"]
assert record["command"].endswith("--motto 'from the environment'")
"""


@pytest.mark.slow
def test_adding_an_option_touches_four_files(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """It is then a flag under its heading, an argument with a default and a line of help, a default, and recorded."""
    copy = Path(shutil.copytree(PACKAGE, tmp_path / "clipmerge"))  # with what is compiled
    shutil.copytree(PACKAGE.parent / "recipes", tmp_path / "recipes")
    shutil.copytree(PACKAGE.parent / "tests" / "support", tmp_path / "tests" / "support")
    for name, (where, added) in MOTTO.items():
        text = (copy / name).read_text()
        assert text.count(where) == 1, name
        line, rest = where.split("\n", 1)
        (copy / name).write_text(text.replace(where, f"{line}\n{added}{rest}"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "CLIPMERGE_MOTTO": "from the environment"}
    ended = python("-c", CHECKS, tmp_path, *pair, env=environment, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert len(MOTTO) <= 4


FUNCTIONS: dict[str, tuple[Callable[..., Any], type]] = {
    "merge": (api.merge, options.MergeOptions),
    "plan": (api.plan, options.PlanOptions),
    "apply": (api.apply, options.ApplyOptions),
    "evaluate": (api.evaluate, options.EvaluateOptions),
    "sweep": (api.sweep, options.SweepOptions),
    "bench": (api.bench, options.BenchOptions),
    "convert": (api.convert, options.ConvertOptions),
    "push": (api.push, options.PushOptions),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_and_its_command_show_every_option(name: str) -> None:
    function, kind = FUNCTIONS[name]
    parameters = inspect.signature(function).parameters
    text = clipmerge(name, "-h").out
    assert not any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    for option, (annotation, declaration) in declared(kind).items():
        assert (parameters[option].default, parameters[option].annotation) == (declaration.default, annotation)
        assert f"    {option}: " in str(function.__doc__)
        heading = text.partition(f"\n{declaration.panel}:\n")[2].partition("\n\n")[0]
        assert declaration.flag(option) in heading, option


def test_an_option_that_is_mistyped_is_pythons_own_error(pair: tuple[Path, Path]) -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'aplha'\. Did you mean 'alpha'\?"):
        api.merge(*pair, "wise-ft", aplha=0.3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'state_key'"):
        completed(options.RecipeOptions, {"state_key": "ema"})
