"""What a command meets around it: readers, folders, terminals and launchers that have gone, and
strange names."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.text import Text

from clipmerge.cli import _signals
from clipmerge.cli._terminal import Format, Terminal
from clipmerge.errors import CheckpointError, printable
from tests.support.command import clipmerge, counted, done, python
from tests.support.image_files import png
from tests.support.several import several
from tests.support.tiny_clip import Folders


@pytest.mark.slow
def test_a_reader_that_has_gone_ends_a_command_quietly() -> None:
    """As `clipmerge recipes show auto | head -1` does."""
    reading, writing = os.pipe()
    os.close(reading)
    ended = python("-m", "clipmerge", "recipes", "show", "auto", stdout=writing, env=counted())
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_process_that_its_launcher_ends_says_nothing() -> None:
    """Another process of the run has failed and said why."""
    code = (
        "import signal\n"
        "from clipmerge.cli._ending import reporting_errors\n"
        f"reporting_errors(lambda: signal.raise_signal({signal.SIGTERM:d}))()"
    )
    ended = [python("-c", code, env={**counted(), "RANK": rank}) for rank in ("1", "0")]
    assert [each.returncode for each in ended] == [143, 143]
    assert ended[0].stderr == ""
    assert ended[1].stderr.startswith("error: ended from outside")


def test_a_terminal_gets_paragraphs_of_its_width_and_commands_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Elsewhere a paragraph is one line, for other programs; markup is text everywhere."""
    monkeypatch.setenv("COLUMNS", "40")
    command, paragraph = "clipmerge merge [b]a[/b] " * 5, "word " * 20
    Terminal(Format.human).show(command, Text(paragraph))
    assert capsys.readouterr().out.splitlines() == [command.rstrip(), paragraph.rstrip()]
    monkeypatch.setenv("FORCE_COLOR", "1")
    Terminal(Format.human).show(command, Text(paragraph))
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == command
    assert len(rest) == 3
    assert max(map(len, rest)) <= 40


def test_other_processes_print_nothing(
    pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher starts several; the main one speaks and writes."""
    plan = tmp_path / "plan.json"
    done("plan", *pair, "-r", "wise-ft", "-o", plan)
    monkeypatch.setenv("RANK", "1")
    for command in (
        ("plan", *pair, "-r", "wise-ft", "-o", tmp_path / "other.json"),
        ("apply", plan, "-o", tmp_path / "applied"),
        ("merge", *pair, "-r", "wise-ft", "-o", tmp_path / "merged"),
        ("merge", *pair, "-r", "wise-ft", "--dry-run"),
        ("convert", pair[0], tmp_path / "converted", "--to", "open-clip"),
    ):
        outcome = clipmerge(*command)
        assert (outcome.code, outcome.out, outcome.err) == (0, "", ""), command
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def offline(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "tests.support.offline", *arguments, env={**os.environ, **environment})


@pytest.mark.slow
def test_a_local_merge_opens_no_connection(pair: Folders, images: Path, tmp_path: Path) -> None:
    merged = offline("merge", *pair, "--recipe", "wise-ft", "--output", tmp_path / "out")
    assert merged.returncode == 0, merged.stderr
    # from a process that has imported all that takes long
    measured = several(1, "tests.support.offline", "evaluate", pair[0], "--data", images)
    assert measured.returncode == 0, measured.stderr


def test_offline_is_honoured_and_the_blocking_works(pair: Folders) -> None:
    found = offline("inspect", "acme/nothing", HF_HUB_OFFLINE="1")
    assert found.returncode == 1
    assert "HF_HUB_OFFLINE is set, and it is not in the cache" in found.stderr
    online = offline(
        "inspect", "acme/nothing", HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9"
    )
    assert "a connection was opened" in online.stderr


# root reads everything, unless it gives that up for one process
AS_ANYBODY = (
    ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
)


#: Runs commands, given as JSON, in one process; prints their exit codes and errors.
RUN_ALL = """
import json, sys
from tests.support.command import clipmerge
ended = [clipmerge(*words) for words in json.loads(sys.argv[1])]
print(json.dumps([(outcome.code, outcome.err) for outcome in ended]))
"""
LOCKED = (
    "inspect HERE/folder",
    "inspect HERE/weights",
    "merge ZEROSHOT HERE/weights -r wise-ft -o HERE/out",
    "merge ZEROSHOT FINETUNED -r lines --data HERE/images -o HERE/out",
    "merge ZEROSHOT FINETUNED -r HERE/recipe.yaml -o HERE/out",
    "merge ZEROSHOT FINETUNED -r wise-ft -o HERE/folder/out",
    "report HERE/record",
)


@pytest.fixture(scope="module")
def refusals(
    pair: Folders, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[int, str]]]:
    """How commands end, and what they say, that read or write what nobody may."""
    here = tmp_path_factory.mktemp("locked")
    shutil.copytree(pair[1], here / "folder" / "model")
    shutil.copytree(pair[1], here / "weights")
    (here / "record").mkdir()
    (here / "record" / "clipmerge.json").write_text("{}")
    (here / "images" / "cat").mkdir(parents=True)
    (here / "images" / "cat" / "1.png").write_bytes(png(0))
    (here / "recipe.yaml").write_text("method: {name: wise-ft}")
    names = ("folder", "weights/model.safetensors", "record/clipmerge.json", "recipe.yaml")
    locked = [here / name for name in (*names, "images/cat")]
    for path in locked:
        path.chmod(0)
    paths = {"HERE": here, "ZEROSHOT": pair[0], "FINETUNED": pair[1]}
    commands = [
        re.sub("HERE|ZEROSHOT|FINETUNED", lambda match: str(paths[match[0]]), line).split()
        for line in LOCKED
    ]
    environment = {**os.environ, "XDG_CONFIG_HOME": str(here / "config"), "HF_TOKEN": "hf_x"}
    program = [*AS_ANYBODY, sys.executable, "-c", RUN_ALL, json.dumps(commands)]
    ended = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert not (here / "out").exists()
    yield dict(zip(LOCKED, json.loads(ended.stdout), strict=True))
    for path in locked:
        path.chmod(0o755)


@pytest.mark.slow
@pytest.mark.skipif(
    bool(AS_ANYBODY) and not shutil.which("setpriv"), reason="root, and no setpriv to be less"
)
@pytest.mark.parametrize("line", LOCKED)
def test_what_may_not_be_read_is_an_error_of_one_line(
    refusals: dict[str, tuple[int, str]], line: str
) -> None:
    code, said = refusals[line]
    errors = [each for each in said.splitlines() if not each.startswith("note: ")]
    assert code == 1, said
    assert len(errors) == 1, said
    assert "Permission denied" in errors[0] or "is not writable for you" in errors[0]
    assert "unexpectedly" not in errors[0]
    assert "not known" not in errors[0]


EVIL = "\x1b]0;owned\x07\x1b[31m\x9b2J\u202eevil"


def is_plain(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


def test_a_text_is_made_printable() -> None:
    assert printable(EVIL) == r"\x1b]0;owned\x07\x1b[31m\x9b2J\u202eevil"
    assert printable("a\nb\tc\udcff\u2028") == r"a b c\xff "
    assert (
        printable("\u242e\U000e0041\ue000") == r"\u242e\U000e0041\ue000"
    )  # unassigned, invisible, private
    assert (
        printable("\N{WOMAN}\u200d\N{ROCKET} 猫\u3000犬") == "\N{WOMAN}\u200d\N{ROCKET} 猫\u3000犬"
    )
    assert printable("x" * 20, limit=8) == "xxxx ... xxxx"
    assert str(CheckpointError(f"{EVIL}\n")) == printable(EVIL) + " "


def test_paths_notes_and_tables(copies: Folders) -> None:
    zeroshot, finetuned = copies
    name = f"[red]a:key:b{EVIL}"  # neither markup nor an emoji
    strange = finetuned.rename(finetuned.parent / name)
    (strange / f"{EVIL}.txt").write_text("")
    outcome = done(
        "merge",
        zeroshot,
        strange,
        "--recipe",
        "wise-ft",
        "--output",
        zeroshot.parent / f"out{name}",
    )
    for text in (outcome.out, outcome.err):
        assert is_plain(text)
        assert r"\x1b[31m" in text
        assert "[red]a:key:b" in text


@pytest.mark.skipif(
    os.name == "nt" or sys.platform == "darwin", reason="such names are not allowed there"
)
def test_paths_that_are_not_utf8(copies: Folders, tmp_path: Path) -> None:
    zeroshot, finetuned = copies
    strange, output = (tmp_path / os.fsdecode(name) for name in (b"\xff\xfe", b"out\xff"))
    finetuned.rename(strange)
    for flags in ((), ("--overwrite",)):
        outcome = done(
            "merge", zeroshot, strange, "--recipe", "wise-ft", "--output", output, *flags
        )
    assert "\\udcff" in (output / "clipmerge.json").read_text()
    assert "\\udcff" in (output / "report.html").read_text()
    for command, code in (
        (("report", output), 0),
        (("inspect", strange), 0),
        (("inspect", f"{strange}-not"), 1),
    ):
        outcome = clipmerge(*command)
        assert outcome.code == code, outcome.err
        assert is_plain(outcome.out + outcome.err)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("inspect model", "error: "),
        (
            "merge {0} {1} --recipe wise-ft --output out",
            "error: the working folder is gone or cannot be read (",
        ),
    ],
)
def test_a_working_folder_that_is_gone(
    pair: Folders, tmp_path: Path, command: str, told: str
) -> None:
    command = command.format(*pair)
    script = (
        f"cd {tmp_path}/x && rmdir {tmp_path}/x && exec {sys.executable} -m clipmerge {command}"
    )
    (tmp_path / "x").mkdir()
    environment = {**counted(), "PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, check=False, env=environment
    )
    lines = ended.stderr.strip().splitlines()
    assert ended.returncode == 1
    assert lines[-1].startswith(told)
    assert not any("DEBUG" in line or "unexpectedly" in line for line in lines)


@pytest.mark.parametrize(
    ("rank", "line"), [("0", "error: interrupted; nothing was left behind\n"), ("1", "")]
)
def test_of_several_processes_the_main_one_tells_of_a_signal(
    rank: str, line: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(_signals, "standing", [])
    monkeypatch.setenv("RANK", rank)
    _signals.handle_signal(signal.SIGINT, None)
    assert codes == [130]
    assert capfd.readouterr() == ("", line)
