"""Defaults of flags from the environment and from files, and what a stranger's file cannot set."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipmerge.cli._defaults import Defaults, applied, read_defaults
from clipmerge.errors import UsageError
from tests.support.command import clipmerge, done, refused
from tests.support.tiny_clip import Folders


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder and a home without settings; the defaults of these tests end with them."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    yield folder
    applied.__dict__.update(Defaults().__dict__)


def own_file(folder: Path, text: str) -> None:
    (folder.parent / "config" / "clipmerge").mkdir(parents=True, exist_ok=True)
    (folder.parent / "config" / "clipmerge" / "clipmerge.toml").write_text(text)


def merged(pair: Folders, *flags: object) -> dict[str, object]:
    outcome = done("merge", *pair, "--dry-run", "--format", "json", *flags)
    return outcome.json | {"notes": outcome.err}


def test_the_nearer_default_wins_and_a_flag(
    pair: Folders, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_file(elsewhere, 'seed = 1\nrecipe = "wise-ft"\n')
    assert merged(pair)["seed"] == 1
    (elsewhere / "clipmerge.toml").write_text("seed = 2\n")
    assert merged(pair)["seed"] == 2
    monkeypatch.setenv("CLIPMERGE_SEED", "3")
    record = merged(pair)
    assert record["seed"] == 3
    assert "--seed 3 (CLIPMERGE_SEED)" in str(record["notes"])
    assert str(record["command"]).endswith(
        "--seed 3 --recipe wise-ft"
    )  # the command alone repeats the merge
    record = merged(pair, "--seed", 4)
    assert record["seed"] == 4
    assert "--seed 3" not in str(record["command"])
    monkeypatch.setenv("CLIPMERGE_RECIPE", "lines")
    assert "lines" not in str(merged(pair, "-rwise-ft")["command"])  # a short flag with its value


def test_a_wrong_default_is_reported_with_place(
    pair: Folders, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("merge", *pair, "-r", "wise-ft", "--dry-run")
    (elsewhere / "clipmerge.toml").write_text('images = "few"\n')
    assert "error: clipmerge.toml: Invalid value for '--images': " in refused(
        clipmerge(*command), 2
    )
    monkeypatch.setenv("CLIPMERGE_IMAGES", "0")
    assert "error: CLIPMERGE_IMAGES: Invalid value for '--images': " in refused(
        clipmerge(*command), 2
    )
    assert "error: Invalid value for '--images': " in refused(
        clipmerge(*command, "--images", "x"), 2
    )


@pytest.mark.parametrize(
    "line", ['push = "me/mine"', "overwrite = true", 'data = "hf://datasets/a/b"', "max-loss = 90"]
)
def test_a_file_in_the_working_folder_cannot_publish_or_overwrite(
    pair: Folders, elsewhere: Path, line: str
) -> None:
    (elsewhere / "clipmerge.toml").write_text(line + "\n")
    key = line.partition(" ")[0]
    said = refused(clipmerge("merge", *pair, "--recipe", "wise-ft", "--dry-run"), code=2)
    assert (
        f"clipmerge.toml: '{key}' cannot be set there (it may set template, images, batch-size, "
        in said
    )


def test_a_mistyped_variable_is_reported(pair: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPMERGE_DEVCE", "cpu")
    assert "CLIPMERGE_DEVCE sets nothing. Did you mean 'CLIPMERGE_DEVICE'?" in str(
        merged(pair, "--recipe", "wise-ft")["notes"]
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed = [1]", "seed: expected one value"),
        ("seed", "cannot be read"),
        ("#" * 70_000, "larger than 64 KiB"),
        ("imags = 3", r"Did you mean 'images'\?"),
        (
            "a" + ".a" * 1001 + " = 1",
            r"toml: cannot be read \(more than 1000 dots\)",
        ),
        ("images = " + "[" * 30_000, "toml: cannot be read"),
    ],
)
def test_a_file_that_says_nonsense_is_an_error_of_one_line(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    (elsewhere / "clipmerge.toml").write_text(text)
    with pytest.raises(UsageError, match=said):
        read_defaults()
    monkeypatch.chdir(elsewhere.parent)
    monkeypatch.setenv("CLIPMERGE_STRICT", "maybe")
    with pytest.raises(UsageError, match="CLIPMERGE_STRICT=maybe: expected 0 or 1"):
        read_defaults()


@pytest.mark.parametrize(
    ("variables", "values", "unknown"),
    [
        ({"CLIPMERGE_DEBUG": "1", "CLIPMERGE_HUB_TIMEOUT": "9", "HOME": "/"}, {}, []),
        *(
            ({f"CLIPMERGE_{name}": "x"}, {}, [f"CLIPMERGE_{name}"])
            for name in ("PUSH", "PRIVATE", "OUTPUT", "LICENSE")
        ),
        (
            {"CLIPMERGE_OVERWRITE": "1"},
            {},
            ["CLIPMERGE_OVERWRITE"],
        ),  # no variable publishes or overwrites
        *(
            ({"CLIPMERGE_STRICT": text}, {"strict": text in ("1", "True")}, [])
            for text in ("1", "True", "0", "false")
        ),
    ],
)
def test_variables_set_what_they_may(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    values: dict[str, Any],
    unknown: list[str],
) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    found = read_defaults()
    assert (found.values, found.unknown) == (values, unknown)


def test_the_users_own_file_may_hold_switches_and_lists(elsewhere: Path) -> None:
    own_file(elsewhere, 'strict = true\nverbose = false\ntemplate = ["a {}.", "the {}."]\n')
    found = read_defaults()
    assert found.values == {"strict": True, "verbose": False, "template": ["a {}.", "the {}."]}
    assert found.words(["merge"]) == ["--strict", "--template", "a {}.", "--template", "the {}."]


def test_a_user_without_a_home_has_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: (_ for _ in ()).throw(KeyError("no such user")))
    assert read_defaults().values == {}
