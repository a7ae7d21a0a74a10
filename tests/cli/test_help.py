"""Help, completion, hints, and `clipmerge env`."""

import re
from pathlib import Path

import pytest

from clipmerge.cli._help import complete_recipe, examples
from clipmerge.cli.app import COMMANDS
from tests.support.command import clipmerge, done, refused
from tests.support.tiny_clip import Folders


@pytest.mark.parametrize("command", COMMANDS)
def test_h_is_help_with_examples_that_fit_a_narrow_terminal(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    outcome = done(command, "-h")
    assert f"clipmerge {command}" in outcome.out.partition("Examples:")[2]
    assert all(
        len(line) <= 60 for line in outcome.out.splitlines() if not line.lstrip().startswith("--")
    )


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_examples_name_flags_that_there_are(command: str) -> None:
    lines = examples(command).replace("\\\n", " ").splitlines()
    for line in (line for line in lines if line.strip().startswith("clipmerge ")):
        name = line.split()[1]
        known = clipmerge(name, "--help").out
        for flag in re.findall(r" (--?[a-z][\w-]*)", line):
            assert flag in known, line


@pytest.mark.parametrize("command", COMMANDS)
def test_the_list_of_commands_says_what_their_own_help_says(command: str) -> None:
    assert COMMANDS[command] == clipmerge(command, "--help").out.split("\n\n")[1].strip()
    assert re.search(
        rf"^  {command} +{re.escape(COMMANDS[command])}$", clipmerge("--help").out, re.M
    )


def test_commands_recipes_and_flags_are_completed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "straggler-mine.yaml").touch()
    assert complete_recipe("straggler-s") == ["straggler-sparse"]
    assert complete_recipe("straggler-m") == ["straggler-mine.yaml"]
    assert complete_recipe("./straggler-m") == ["./straggler-mine.yaml"]
    assert complete_recipe(f"{tmp_path}/s") == [f"{tmp_path}/straggler-mine.yaml"]
    monkeypatch.setenv("_CLIPMERGE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "clipmerge merge --devi")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert clipmerge().out.split() == ["--device"]
    monkeypatch.setenv("COMP_WORDS", "clipmerge re")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert clipmerge().out.split() == ["recipes"]


@pytest.mark.parametrize(
    ("words", "meant"),
    [(["mrege"], "merge"), (["recipes", "shwo", "auto"], "show")],
)
def test_a_mistyped_command_is_suggested(words: list[str], meant: str) -> None:
    assert (
        f"No such command '{words[-1] if len(words) < 3 else words[1]}'. Did you mean '{meant}'?"
        in refused(clipmerge(*words), 2)
    )


def test_a_model_in_place_of_the_command_is_told(pair: Folders) -> None:
    assert f"No such command '{pair[0]}'. Did you mean `clipmerge merge ...`?" in refused(
        clipmerge(*pair), 2
    )


def test_alpha_is_short_for_an_option_of_the_method(pair: Folders) -> None:
    outcome = clipmerge(
        "merge", *pair, "--recipe", "wise-ft", "--alpha", "0.3", "--dry-run", "--format", "json"
    )
    assert {layer["alpha"] for layer in outcome.json["layers"].values()} == {0.3}
    both = clipmerge(
        "merge",
        *pair,
        "--recipe",
        "wise-ft",
        "--alpha",
        "0.3",
        "--set",
        "method.alpha=0.4",
        "--dry-run",
    )
    assert "--alpha and --set method.alpha: both set the same option" in refused(both, code=2)
    none = clipmerge("merge", *pair, "--recipe", "model-stock", "--alpha", "0.3", "--dry-run")
    assert "no option 'alpha'" in refused(none)


@pytest.mark.parametrize("command", ["merge", "plan", "sweep", "evaluate"])
def test_a_mistyped_checkpoint_is_reported_before_anything_else(
    pair: Folders, tmp_path: Path, command: str
) -> None:
    wrong = pair[0].parent / pair[0].name[:-1]
    words: dict[str, list[object]] = {
        "merge": [
            wrong,
            pair[1],
            "--recipe",
            "nonsense",
            "--data",
            "nowhere",
            "--output",
            tmp_path / "out",
        ],
        "plan": [wrong, pair[1], "--recipe", "nonsense", "--output", tmp_path / "plan.json"],
        "sweep": [
            wrong,
            pair[1],
            "--id",
            "a=nowhere",
            "--ood",
            "b=nowhere",
            "--output",
            tmp_path / "out",
        ],
        "evaluate": [wrong, "--data", "a=nowhere"],
    }
    said = refused(clipmerge(command, *words[command]))
    assert said.startswith(f"error: {wrong}: no such folder or file")
    assert said.endswith(f"Did you mean '{pair[0]}'?")


def test_a_device_that_is_not_there_is_an_error_even_where_none_is_needed(pair: Folders) -> None:
    outcome = clipmerge("merge", *pair, "--recipe", "wise-ft", "--device", "mps", "--dry-run")
    assert "--device mps: torch finds no such device" in refused(outcome, code=2)
