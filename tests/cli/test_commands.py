"""The command line: commands, streams, exit codes and errors of one line."""

import contextlib
import json
import re
from pathlib import Path

import pytest

from clipmerge.cli.app import COMMANDS
from tests.support.command import clipmerge, done, printed, python, refused
from tests.support.tiny_clip import Folders


def test_help_lists_nine_commands_and_imports_nothing_heavy() -> None:
    shown = done("--help").out
    assert len(COMMANDS) == 9
    assert all(f"  {name}" in shown for name in COMMANDS)
    code = (
        "import sys\nfrom clipmerge.cli.app import main\nsys.argv = ['clipmerge', *sys.argv[1:]]\n"
        "assert main() == 0\nheavy = {'torch', 'transformers', 'datasets', 'numpy',"
        " 'huggingface_hub'} & set(sys.modules)\nassert not heavy, heavy"
    )
    for words in (["--help"], ["merge", "--help"]):
        python("-c", code, *words, check=True)
    assert clipmerge().code == 2


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_a_help_page_names_only_its_own_flags(command: list[str]) -> None:
    page = done(*command, "--help").out
    own = re.findall(r"^ +(?:-\w, )?(--[a-z-]+)", page, re.MULTILINE)
    assert set(re.findall(r"--[a-z-]+", page)) <= set(own)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["merge", "a", "b", "-o", "c", "--images", "0"], 2, "--images"),
        (
            ["merge", "a", "b", "-o", "c", "--alpha", "0", "--set", "method.alpha=1"],
            2,
            "--alpha is short for --set method.alpha; give one of them",
        ),
        (
            ["merge", "a", "b", "-o", "c", "--data", "d", "--fail-on", "keep-finetune"],
            2,
            "Did you mean 'keep-finetuned'?",
        ),
    ],
)
def test_errors_are_one_line_and_say_what_next(
    words: list[str], code: int, said: str, tmp_path: Path
) -> None:
    with contextlib.chdir(tmp_path):
        assert said in refused(clipmerge(*words), code)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "beside"),
    [
        (["merge", "modle", "b", "-o", "c"], "model"),
        (["merge", "a", "b", "-o", "c", "-r", "mien.yaml"], "mine.yaml"),
        (["apply", "pln.json", "-o", "c"], "plan.json"),
        (["push", "mergde", "a/b"], "merged"),
        (["evaluate", "model", "--data", "vall"], "val"),
        (["evaluate", "model", "--data", "rusn/val"], "runs"),
    ],
)
def test_a_misspelt_path_names_the_one_beside_it(
    words: list[str], beside: str, pair: Folders, tmp_path: Path
) -> None:
    (tmp_path / "model").symlink_to(pair[0])
    (tmp_path / beside).mkdir(exist_ok=True)
    with contextlib.chdir(tmp_path):
        assert f"Did you mean '{beside}'?" in refused(clipmerge(*words), clipmerge(*words).code)


def test_json_is_one_object_and_an_error_too(pair: Folders, tmp_path: Path) -> None:
    ended = clipmerge("merge", *pair, "-r", "wiseft", "-o", tmp_path / "out", "--json")
    assert (ended.code, ended.out) == (2, "")
    error = json.loads(ended.err.splitlines()[-1])
    assert (error["kind"], error["exit_code"]) == ("UsageError", 2)
    assert "Did you mean 'wise-ft'?" in error["error"]
    record = printed("plan", *pair, "-r", "wise-ft", "-o", tmp_path / "plan.json")
    assert record == json.loads((tmp_path / "plan.json").read_text())


def test_quiet_prints_warnings_alone(pair: Folders, tmp_path: Path) -> None:
    quiet = done("merge", *pair, "--alpha", "0.5", "-o", tmp_path / "a", "-q")
    assert (quiet.out, quiet.err) == ("", "")
    quiet = done("merge", *pair, "--alpha", "1.5", "-o", tmp_path / "b", "-q")
    assert quiet.out == ""
    assert quiet.err.startswith("warning: alpha 1.5 is outside [0, 1]")
    told = done("merge", *pair, "--alpha", "0.5", "-o", tmp_path / "c", "-v")
    assert "note: no recipe was named" in told.err
    assert "merging ..." in told.err
    assert f"Wrote {tmp_path / 'c'} (report: " in told.out


def test_an_environment_and_a_home_folder(
    pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    done("plan", *pair, "-r", "wise-ft", "--output=~/plan.json")
    assert "already exists" in refused(
        clipmerge("plan", *pair, "-r", "wise-ft", "--output=~/plan.json")
    )
    done("apply", "~/plan.json", "--output=~/out")
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["out", "plan.json"]
    monkeypatch.setenv("CLIPMERGE_DEBUG", "1")
    with pytest.raises(Exception, match="already exists"):
        clipmerge("plan", *pair, "-r", "wise-ft", "--output=~/plan.json")
    assert done("--version").out.startswith("clipmerge 0.")


def test_recipes_are_listed_shown_and_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record = printed("recipes", "list")
    listed = done("recipes").out
    assert listed == done("recipes", "list").out
    assert len(record["recipes"]) == 5 < len(printed("recipes", "list", "--all")["recipes"])
    assert [line.split()[:2] for line in listed.splitlines()[1:-1]] == [
        [name, "needed" if record["needs_images"][name] else "no"] for name in record["recipes"]
    ]
    shown = done("recipes", "show", "wise-ft").out
    done("recipes", "copy", "wise-ft")
    assert (tmp_path / "wise-ft.yaml").read_text() == shown
    assert "wise-ft.yaml: File exists" in refused(clipmerge("recipes", "copy", "wise-ft"))


def test_evaluate_prints_a_row_per_source(pair: Folders, images: Path) -> None:
    words = ("evaluate", pair[1], "--data", f"val={images}", "--data", images)
    record = printed(*words)
    assert next(iter(record)) == "accuracy"
    assert record["accuracy"].keys() == {"val", images.name}
    line = done(*words).out.splitlines()[1]
    assert line.split()[:3] == ["val", "30", f"{record['accuracy']['val']:.1%}"]


def test_a_signal_after_the_end_of_a_command_changes_nothing() -> None:
    """A launcher sends one to every process as soon as another has failed."""
    code = (
        "import os, signal, sys\nfrom clipmerge.__main__ import run\nend = sys.exit\n"
        "sys.exit = lambda code: (os.kill(os.getpid(), signal.SIGTERM), end(code))\n"
        "sys.argv = ['clipmerge', '--version']\nrun()"
    )
    ended = python("-c", code, check=True)
    assert not ended.stderr
