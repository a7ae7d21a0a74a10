"""Commands that are stopped or killed at random moments leave their whole output or none, and say
what is true."""

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from clipmerge.__main__ import run
from tests.support.command import start
from tests.support.several import context
from tests.support.tiny_clip import Folders, save_images

#: Signals per command.
TRIALS = int(os.environ.get("CLIPMERGE_TRIALS", "1"))
PLAIN, MASKED = (
    f"merge ZEROSHOT FINETUNED -r {recipe} -o OUT" for recipe in ("wise-ft", "breadcrumbs")
)
FEW = (
    "--set measure.steps=6 --set measure.batch=8 --set measure.strong_aug=4 --set measure.held_back=0"
    " --no-verdict"
)
LEARNED = f"merge ZEROSHOT FINETUNED -r auto --data IMAGES {FEW} -o OUT"
#: Commands, and others whose output they replace.
COMMANDS = {
    "plain": (PLAIN, ""),
    "plain over another": (f"{PLAIN} --overwrite", MASKED),
    "masked": (MASKED, ""),
    "masked over another": (f"{MASKED} --overwrite", PLAIN),
    "learned": (LEARNED, ""),
    "learned over another": (f"{LEARNED} --overwrite", PLAIN),
    "sweep": ("sweep ZEROSHOT FINETUNED --id IMAGES --ood OTHERS --alphas 0,1 -o OUT", ""),
    "convert": ("convert ZEROSHOT OUT --to open-clip", ""),
}
#: Lines on stderr that say how a command gets on.
PROGRESS = re.compile(r"note: |[\w: -]+: \d+%, .* elapsed")
#: Exit code of a command that was stopped before its first statement.
STARTING = 77


def become(words: list[str], home: Path, begun: Connection) -> None:
    """In a process of its own: become a command, and end as it does."""
    code: object = 0
    try:
        os.environ["TMPDIR"] = str(home / "tmp")
        for stream, file in ((1, os.devnull), (2, str(home / "said"))):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), stream)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["clipmerge", *words]
        begun.send(None)
        run()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        code = STARTING
    finally:
        os._exit(code if isinstance(code, int) else int(code is not None))


class Trial:
    """Runs commands in a folder of its own; their words in capitals stand for paths."""

    def __init__(self, home: Path, paths: dict[str, Path]) -> None:
        (home / "tmp").mkdir(parents=True)
        self.home, self.out = home, home / "out"
        self.paths = {**paths, "OUT": self.out}

    def run(
        self, command: str, moment: float = 600, number: int = signal.SIGKILL
    ) -> tuple[int, float]:
        """Run a command, and send it a signal after so many seconds; its exit code, and how long it
        took."""
        words = [str(self.paths.get(word, word)) for word in command.split()]
        reading, writing = context.Pipe(duplex=False)
        process = context.Process(target=become, args=(words, self.home, writing))
        process.start()
        reading.recv()
        begin = time.monotonic()
        process.join(moment)
        if process.exitcode is None:
            os.kill(process.pid or 0, number)
        process.join(600)
        assert process.exitcode is not None
        return process.exitcode, time.monotonic() - begin

    def whole(self, command: str) -> tuple[dict[str, str], float]:
        """The output of a command that is not stopped, and its seconds."""
        code, seconds = self.run(command)
        assert code == 0, (self.home / "said").read_text()
        return contents(self.out), seconds


def contents(folder: Path) -> dict[str, str]:
    """Hashes of files by name; of records and pages, which have times, only the keys and whether
    there is one."""
    found = {}
    for path in filter(Path.is_file, folder.rglob("*")):
        data = path.read_bytes()
        if path.name in ("clipmerge.json", "sweep.json", "conversion.json"):
            data = " ".join(json.loads(data)).encode()
        elif path.suffix in (".html", ".md", ".png"):
            data = data[:1]
        found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


@dataclass
class Trials:
    """Runs of one command, each over the same earlier output, and what that and a whole output
    hold."""

    name: str
    pair: Folders
    home: Path

    def __post_init__(self) -> None:
        self.command, self.earlier = COMMANDS[self.name]
        self.paths = {
            "ZEROSHOT": self.pair[0],
            "FINETUNED": self.pair[1],
            "IMAGES": save_images(self.home / "images"),
        }
        self.paths["OTHERS"] = save_images(self.home / "others", each=4, seed=9)
        self.chance = random.Random(self.name)
        first = Trial(self.home / "whole", self.paths)
        self.before = first.whole(self.earlier)[0] if self.earlier else None
        self.after, self.seconds = first.whole(self.command)

    def stop(self, number: int) -> tuple[Trial, int, bool]:
        """Send a signal at a random moment; the trial, its exit code, and whether all is as
        before."""
        trial = Trial(Path(tempfile.mkdtemp(dir=self.home)), self.paths)
        if self.earlier:
            trial.whole(self.earlier)
        code, _ = trial.run(self.command, self.chance.uniform(0, self.seconds), number)
        found = contents(trial.out) if trial.out.exists() else None
        assert found in (self.before, self.after)
        return trial, code, found == self.before


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_stopped_command_leaves_its_whole_output_or_none(
    name: str, pair: Folders, tmp_path: Path
) -> None:
    trials, received = Trials(name, pair, tmp_path), 0
    while received < TRIALS:
        number, ends = trials.chance.choice(((signal.SIGINT, 130), (signal.SIGTERM, 143)))
        trial, code, unchanged = trials.stop(number)
        said = [
            line
            for line in (trial.home / "said").read_text().splitlines()
            if not PROGRESS.match(line)
        ]
        if code == 0 or (code in (STARTING, -signal.SIGTERM) and not said):
            continue  # the signal came before clipmerge began, or after it ended
        received += 1
        assert code == ends, said
        (line,) = said
        assert {path.name for path in trial.home.iterdir()} <= {"tmp", "said", "out"}
        assert not list((trial.home / "tmp").iterdir())
        # where learning was saved, the line does not say that nothing is left
        nothing = "nothing was left behind" in line or "no output was written" in line
        assert line.startswith("error: ")
        assert "is not known" in line or nothing == unchanged, line


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "plain over another"])
def test_a_killed_command_leaves_its_whole_output_or_none(
    name: str, pair: Folders, tmp_path: Path
) -> None:
    trials, staged = Trials(name, pair, tmp_path), 0
    while staged < 3 * TRIALS:
        trial, *_ = trials.stop(signal.SIGKILL)
        left = [path for path in trial.home.iterdir() if path.name not in ("tmp", "said", "out")]
        assert len(left) <= 1
        staged += len(left)
        for stage in left:
            os.utime(stage, (0, 0))  # one without its lock might be another run's, which begins
        if not trials.earlier:
            shutil.rmtree(trial.out, ignore_errors=True)
        assert trial.whole(trials.command)[0] == trials.after
        assert {path.name for path in trial.home.iterdir()} == {
            "tmp",
            "said",
            "out",
        }  # what the other left is gone


@pytest.mark.slow
def test_a_file_too_large_for_the_disk_is_an_error_of_one_line_and_leaves_nothing(
    pair: Folders, tmp_path: Path
) -> None:
    command = ("merge", *pair, "--recipe", "wise-ft", "--output", tmp_path / "out")
    process = start(
        *command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    )
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert (
        err == f"error: {tmp_path / 'out'}: cannot be written (File too large); nothing was left"
        " behind\n"
    )
    assert list(tmp_path.iterdir()) == []
