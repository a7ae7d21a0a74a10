"""Stop commands at random moments: ``python -m tests.signals --count 200 [--seed 0] [--log FILE]``.

SIGINT and SIGTERM in turn, for merges (plain, masked, learned; into a free place and over an earlier output), a sweep
and a conversion. The moment is even over the time that a whole run takes. Runs are forks of one process, in
which libraries are imported already; signals during imports are in `tests/cli/test_endings.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

from tests.signals.trial import Command, Trials

_MASKED = """
method: {name: wise-ft, alpha: 0.5}
overrides:
- {layers: "vision.*", density: 0.5}
"""
_FEW = ("--set", "measure.steps=6", "--set", "measure.batch=8", "--set", "measure.copies=4", "--no-verdict")


def commands(folder: Path) -> list[Command]:
    """Make checkpoints and images in a folder; the commands that are stopped."""
    from tests.support.tiny_clip import save_images, save_pair

    pair = tuple(str(path) for path in save_pair(folder / "pair"))
    images = str(save_images(folder / "images"))
    others = str(save_images(folder / "others", each=4, seed=9))
    (folder / "masked.yaml").write_text(_MASKED)
    plain = ("merge", *pair, "-r", "wise-ft", "-o", "OUT")
    masked = ("merge", *pair, "-r", str(folder / "masked.yaml"), "-o", "OUT")
    learned = ("merge", *pair, "-r", "auto", "--data", images, *_FEW, "-o", "OUT")
    sweep = ("sweep", *pair, "--id", images, "--ood", others, "--alphas", "0,1", "-o", "OUT")
    return [
        Command("merge, plain", plain),
        Command("merge, plain, over another", (*plain, "--overwrite"), earlier=masked),
        Command("merge, masked", masked),
        Command("merge, masked, over another", (*masked, "--overwrite"), earlier=plain),
        Command("merge, learned", learned),
        Command("merge, learned, over another", (*learned, "--overwrite"), earlier=plain),
        Command("sweep", sweep),
        Command("convert", ("convert", pair[0], "OUT", "--to", "open-clip")),
    ]


def run(count: int, seed: int, log: Path | None = None) -> list[dict[str, object]]:
    """Stop commands ``count`` times, not counting signals that came before clipmerge began, or after it ended."""
    chance, trials = random.Random(seed), list[dict[str, object]]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # threads of OpenMP do not live on in a fork, which would wait for them for ever
        os.environ.update(XDG_CACHE_HOME=str(folder / "cache"), OMP_NUM_THREADS="1")
        warnings.simplefilter("ignore")
        planned = commands(folder)
        _import_everything(folder)
        runs = Trials(folder / "trials")
        received = 0
        while received < count:
            command = planned[len(trials) % len(planned)]
            number = (signal.SIGINT, signal.SIGTERM)[len(trials) // len(planned) % 2]
            ended, wrong = runs.stop(command, number, chance)
            received += ended in ("before", "after", "half")
            trial = {"command": command.name, "signal": number.name, "ended": ended, "wrong": wrong}
            trials.append(trial)
            if log:
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(trial) + "\n")
    return trials


def _import_everything(folder: Path) -> None:
    """Run each kind of command in this process: forks have all imports behind them."""
    from tests.support.command import clipmerge

    zeroshot, finetuned = folder / "pair" / "zeroshot", folder / "pair" / "finetuned"
    sweep = ("--id", folder / "images", "--ood", folder / "others")
    done = [
        clipmerge("convert", zeroshot, folder / "converted", "--to", "open-clip"),
        clipmerge("merge", zeroshot, finetuned, "-r", "auto", "--data", folder / "images", *_FEW, "--dry-run"),
        clipmerge("sweep", zeroshot, finetuned, *sweep, "--alphas", "0,1", "-o", folder / "swept"),
    ]
    for outcome in done:
        if outcome.code:
            raise RuntimeError(outcome.err)


def table(trials: list[dict[str, object]]) -> str:
    """Count how the trials of each command ended, as Markdown."""
    rows = ["| command | nothing | whole | faults | not counted |", "|---|---:|---:|---:|---:|"]
    for name in dict.fromkeys(str(trial["command"]) for trial in trials):
        own = [trial for trial in trials if trial["command"] == name]
        ended = Counter(str(trial["ended"]) for trial in own)
        faults = sum(bool(trial["wrong"]) for trial in own)
        rows.append(
            f"| {name} | {ended['before']} | {ended['after']} | {faults} | {ended['too late'] + ended['starting']} |"
        )
    return "\n".join(rows) + "\n"


def main() -> int:
    """Stop commands; 1 if one ended as it may not."""
    parser = argparse.ArgumentParser(prog="python -m tests.signals", description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path)
    asked = parser.parse_args()
    trials = run(asked.count, asked.seed, asked.log)
    wrong = [trial for trial in trials if trial["wrong"]]
    sys.stdout.write(table(trials) + "".join(f"{trial}\n" for trial in wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
