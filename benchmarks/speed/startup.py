"""What a command costs before it does anything: clipmerge --help, and inspect of one and of two ViT-L/14 checkpoints.

Each runs N times, interleaved with ``python -c pass``; ratios are taken round by round. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.speed.checkpoints import clip_config, make_pair
from benchmarks.speed.processes import run, summary, write_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", help="where the checkpoints are kept for the next run")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary).resolve() / "l14"
        zeroshot, finetuned = make_pair(folder, clip_config("l14"), sharded=False)
        clipmerge = [sys.executable, "-m", "clipmerge"]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "--help": [*clipmerge, "--help"],
            "inspect, one": [*clipmerge, "inspect", str(zeroshot), "--format", "json"],
            "inspect, no weights": [
                *clipmerge,
                "inspect",
                str(zeroshot),
                str(finetuned),
                "--no-weights",
                "--format",
                "json",
            ],
            "inspect, two": [*clipmerge, "inspect", str(zeroshot), str(finetuned), "--format", "json"],
        }
        rounds = [{name: run(command)[0] for name, command in commands.items()} for _ in range(arguments.rounds)]
    results: dict[str, Any] = {}
    print(f"{'':20} {'seconds':>8} {'x python':>9} {'private MB':>11}   ({len(rounds)} rounds, medians)")
    for name in commands:
        seconds = summary([each[name].seconds for each in rounds])
        ratio = summary([each[name].seconds / each["python -c pass"].seconds for each in rounds])
        private = statistics.median(each[name].private_mb for each in rounds)
        results[name] = {"seconds": seconds, "ratio": ratio, "private_mb": private}
        print(f"{name:20} {seconds['median']:8.3f} {ratio['median']:9.1f} {private:11.0f}")
    write_results(arguments.json, {"commands": results})


if __name__ == "__main__":
    main()
