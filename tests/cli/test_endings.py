"""Commands that are ended from outside: the message after a signal or a failure of stdout, and its
process."""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from clipmerge.cli import _ending as ending
from clipmerge.cli._ending import reporting_errors
from clipmerge.cli._signals import handle_signal
from clipmerge.cli._terminal import Terminal
from clipmerge.errors import HubError
from clipmerge.files.staging import staged
from tests.support.command import clipmerge, counted, done, python, refused
from tests.support.tiny_clip import Folders

ENDED = (
    "ended from outside (SIGTERM; a launcher sends it to all processes of a run when one of them"
    " fails)"
)
STOPS = pytest.mark.parametrize(
    ("number", "code", "how"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, ENDED)]
)


def run(*arguments: object, env: Mapping[str, str] = MappingProxyType({}), **options: Any) -> Any:
    return python("-m", "clipmerge", *arguments, env={**counted(), **env}, **options)


def test_signals_that_a_shell_ignores_stay_ignored() -> None:
    code = """import atexit, signal, sys
signals = signal.SIGINT, signal.SIGTERM
for each in signals:
    signal.signal(each, signal.SIG_IGN)
atexit.register(lambda: print(*(signal.getsignal(each).name for each in signals)))
sys.argv = ["clipmerge", "--version"]
from clipmerge.__main__ import run
run()"""
    assert python("-c", code, env=counted()).stdout.split()[-2:] == ["SIG_IGN", "SIG_IGN"]


@pytest.mark.parametrize("imported", ["json", "triton"])
def test_objects_are_collected_at_the_end_only_if_triton_is_imported(imported: str) -> None:
    """It would print a list of its own below the answer; collecting takes a second."""
    code = f"""import atexit, gc, sys
sys.modules[{imported!r}] = sys
atexit.register(lambda: print(gc.get_freeze_count() > 0))
sys.argv = ["clipmerge", "--version"]
from clipmerge.__main__ import run
run()"""
    assert python("-c", code, env=counted()).stdout.split()[-1] == str(imported == "json")


def stopping(number: int) -> Callable[..., Any]:
    def stop(*_: object, **__: object) -> None:
        signal.raise_signal(number)

    return stop


def while_sending(monkeypatch: pytest.MonkeyPatch, what: Callable[..., Any]) -> None:
    """Let this happen instead of creating the repository, after all checks, when sending has
    begun."""
    for check in ("check_access", "_check_token", "find_repository"):
        monkeypatch.setattr(f"clipmerge.publish.push.{check}", lambda *_, **__: None)
    monkeypatch.setattr("clipmerge.publish.push.create_repository", what)


@pytest.mark.parametrize(
    ("number", "code", "how", "command"),
    [(signal.SIGINT, 130, "interrupted", "merge"), (signal.SIGTERM, 143, ENDED, "plan")],
)
def test_a_signal_after_the_output_was_written_says_that_it_is_there(
    pair: Folders,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
    how: str,
    command: str,
) -> None:
    monkeypatch.setattr(Terminal, "result", stopping(number))
    outcome = clipmerge(command, *pair, "-r", "wise-ft", "-o", tmp_path / "out")
    assert refused(outcome, code) == f"error: {how}; {tmp_path / 'out'} is complete"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@STOPS
def test_a_signal_before_that_says_that_nothing_was_left(
    pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, how: str
) -> None:
    command = ("merge", *pair, "-r", "wise-ft", "-o", tmp_path / "out")
    done(*command)
    monkeypatch.setattr("clipmerge.output.side_files.write_side_files", stopping(number))
    outcome = clipmerge(
        *command, "--overwrite"
    )  # the output of the command before is not this one's
    assert refused(outcome, code) == f"error: {how}; nothing was left behind"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@STOPS
def test_a_signal_while_pushing_says_that_nobody_knows(
    pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, how: str
) -> None:
    out = tmp_path / "out"
    while_sending(monkeypatch, stopping(number))
    command = (
        "merge",
        *pair,
        "-r",
        "wise-ft",
        "-o",
        out,
        "--push",
        "acme/robust",
        "--license",
        "mit",
    )
    unknown = f"`clipmerge push {out} acme/robust --license mit` checks that and continues"
    said = f"whether acme/robust was published is not known: {unknown}"
    assert refused(clipmerge(*command), code) == f"error: {how}; {out} is complete; {said}"
    pushed = clipmerge("push", out, "acme/robust", "--license", "mit")
    assert refused(pushed, code) == f"error: {how}; {said}"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (HubError("no. Nothing was published."), "error: no. Nothing was published."),
        (ValueError("x"), "is not known"),
    ],
)
def test_an_error_while_pushing_says_so_too(
    pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    done("merge", *pair, "-r", "wise-ft", "-o", tmp_path / "out")
    while_sending(monkeypatch, failing)
    outcome = clipmerge("push", tmp_path / "out", "acme/robust", "--license", "mit")
    assert outcome.code == 1
    assert line in outcome.err
    assert ("is not known" in outcome.err) is not isinstance(error, HubError)


def test_whatever_fails_after_the_output_was_written_says_that_it_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @reporting_errors
    def command() -> None:
        with staged(tmp_path / "out") as folder:
            (folder / "x").touch()
        raise RuntimeError("later")

    with pytest.raises(SystemExit):
        command()
    line = (
        f"(RuntimeError): later; {tmp_path / 'out'} is complete; set CLIPMERGE_DEBUG=1 to see where"
    )
    assert line in capsys.readouterr().err


needs_full = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="this system has no /dev/full"
)


@needs_full
def test_a_full_stdout_says_that_the_output_is_there(pair: Folders, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Path("/dev/full").open("w") as full:
        ended = run("merge", *pair, "-r", "wise-ft", "-o", out, "--format", "json", stdout=full)
    told = f"standard output: cannot be written (No space left on device); {out} is complete"
    assert ended.returncode == 1
    assert json.loads(ended.stderr) == {"error": told, "exit_code": 1}
    assert (out / "clipmerge.json").exists()


@pytest.mark.slow
@needs_full
@pytest.mark.parametrize(
    ("arguments", "unbuffered"), [(("--help",), ""), (("recipes", "show", "auto"), "1")]
)
def test_a_full_stdout_is_an_error_of_one_line_where_nothing_is_written(
    arguments: tuple[str, ...], unbuffered: str
) -> None:
    """Buffered, what could not be written waits, and the interpreter would try it again at exit."""
    with Path("/dev/full").open("w") as full:
        ended = run(*arguments, stdout=full, env={"PYTHONUNBUFFERED": unbuffered})
    line = "error: standard output: cannot be written (No space left on device)\n"
    assert (ended.returncode, ended.stderr) == (1, line)


def test_no_encoding_makes_printing_fail(pair: Folders, tmp_path: Path) -> None:
    out = tmp_path / "日本é"
    ended = run(
        "merge",
        *pair,
        "-r",
        "wise-ft",
        "-o",
        out,
        env={"PYTHONIOENCODING": "ascii"},
        errors="replace",
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Wrote" in ended.stdout


def test_a_closed_stdout_is_no_failure(pair: Folders, tmp_path: Path) -> None:
    ended = run(
        "merge", *pair, "-r", "wise-ft", "-o", tmp_path / "out", preexec_fn=lambda: os.close(1)
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads((tmp_path / "out" / "clipmerge.json").read_text())["output"] == str(
        tmp_path / "out"
    )


MODULES = (
    "clipmerge.cli.app",
    "clipmerge.api.merge",
    "numpy.dtypes",  # imported by a part of numpy that cannot be loaded twice
)


@pytest.mark.parametrize(
    ("module", "number", "end", "how"),
    [
        ("signal", signal.SIGINT, 130, "interrupted"),  # before SIGTERM can be taken over
        *((module, signal.SIGINT, 130, "interrupted") for module in MODULES),
        *(
            pytest.param(module, signal.SIGTERM, 143, ENDED, marks=pytest.mark.slow)
            for module in MODULES
        ),
    ],
)
def test_a_signal_during_imports_is_an_error_of_one_line(
    tmp_path: Path, module: str, number: int, end: int, how: str
) -> None:
    """Sent during an import, where an exception would give a traceback or look like the module's
    own."""
    code = (
        "import _signal, sys\n"
        "sys.modules.pop('signal', None)\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: _signal.raise_signal({number:d})\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from clipmerge.__main__ import run\n"
        "run()"
    )
    ended = python(
        "-c", code, "merge", "a", "b", "-r", "wise-ft", "-o", tmp_path / "out", env=counted()
    )
    assert ended.returncode == end
    assert (ended.stdout, ended.stderr) == ("", f"error: {how}; nothing was left behind\n")


@pytest.mark.slow
@STOPS
def test_a_signal_after_the_work_names_the_output_that_is_complete(
    pair: Folders, tmp_path: Path, number: int, code: int, how: str
) -> None:
    """One that comes while Python ends changes nothing: it gives its handlers up before it has
    ended."""
    begin, call = "import atexit, signal\nfrom clipmerge import __main__\n", "__main__.run()"
    after = f"{begin}try: {call}\nfinally: signal.raise_signal({number:d})"
    ending = f"{begin}atexit.register(signal.raise_signal, {number:d})\n{call}"
    for program, out in ((after, tmp_path / "after"), (ending, tmp_path / "ending")):
        ended = python("-c", program, "merge", *pair, "-r", "wise-ft", "-o", out, env=counted())
        assert ended.returncode == (code if program is after else 0)
        assert ended.stderr.endswith(
            f"error: {how}; {out} is complete\n" if program is after else ""
        )
        assert ended.stderr.count("\n") == (program is after)
        assert (out / "clipmerge.json").is_file()


@STOPS
def test_a_signal_that_compiled_code_turned_into_an_error_is_still_a_signal(
    number: signal.Signals, code: int, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As matplotlib does, whose transforms call Python and drop what it raises."""

    @reporting_errors
    def command() -> None:
        with contextlib.suppress(BaseException):
            signal.raise_signal(number)
        error = ValueError("Invalid affine transformation matrix")
        error.add_note("out is complete")
        raise error

    before = {each: signal.signal(each, handle_signal) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as ended:
            command()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert ended.value.code == code
    assert capsys.readouterr().err == f"error: {how}; out is complete\n"


@pytest.mark.parametrize("arguments", [("recipes", "show", "nonsense"), ("nonsense",)])
def test_an_error_that_only_another_process_has_is_reported(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    assert "nonsense" in clipmerge(*arguments).err
    assert waited == []
    monkeypatch.setenv("RANK", "1")
    assert "nonsense" in clipmerge(*arguments).err
    assert waited == [ending.SECONDS_FOR_THE_MAIN_PROCESS]


@pytest.mark.slow
def test_a_launcher_shows_an_error_once(tmp_path: Path) -> None:
    starter = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3")
    ended = python(
        *starter, "-m", "clipmerge", "merge", "a", "b", "-r", "nonsense", "-o", tmp_path / "out"
    )
    assert ended.returncode != 0
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: a: no such folder or")
