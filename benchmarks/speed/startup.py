"""What a command costs before it does anything: clipmerge --help, and inspect of one and of two
ViT-L/14 checkpoints.

Each runs N times, interleaved with ``python -c pass``; ratios are taken round by round.
``--against`` adds the same commands of another checkout of clipmerge. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.speed.checkpoints import clip_config, make_pair
from benchmarks.speed.processes import (
    Outcome,
    checkout_environment,
    checkout_folder,
    run,
    summary,
    write_results,
)

BEFORE = "before: "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", help="where the checkpoints are kept for the next run")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--against",
        type=checkout_folder,
        metavar="CHECKOUT",
        help="another checkout to compare with",
    )
    parser.add_argument("--json", type=Path, help="where to write the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary).resolve() / "l14"
        commands = _commands(*make_pair(folder, clip_config("l14"), sharded=False))
        rounds = [_round(commands, arguments.against) for _ in range(arguments.rounds)]
    results = {name: _result(name, rounds) for name in rounds[0]}
    heads = ("seconds", "x python", "private MB", "x before", "its cpu")
    print(f"{len(rounds)} rounds, medians".ljust(28) + "".join(f"{head:>12}" for head in heads))
    for name, result in results.items():
        figures = [
            f"{result['seconds']['median']:.3f}",
            f"{result['ratio']['median']:.1f}",
            f"{result['private_mb']:.0f}",
        ]
        figures += [f"{result[key]['median']:.2f}" for key in result if key.endswith("_against")]
        print(f"{name:28}" + "".join(f"{figure:>12}" for figure in figures))
    write_results(arguments.json, {"commands": results})


def _commands(zeroshot: Path, finetuned: Path) -> dict[str, list[str]]:
    clipmerge = [sys.executable, "-m", "clipmerge"]
    inspect = [*clipmerge, "inspect", "--format", "json"]
    return {
        "python -c pass": [sys.executable, "-c", "pass"],
        "--help": [*clipmerge, "--help"],
        "inspect, one": [*inspect, str(zeroshot)],
        "inspect, no weights": [*inspect, "--no-weights", str(zeroshot), str(finetuned)],
        "inspect, two": [*inspect, str(zeroshot), str(finetuned)],
    }


def _round(commands: dict[str, list[str]], against: Path | None) -> dict[str, Outcome]:
    outcomes = {}
    for name, command in commands.items():
        outcomes[name] = run(command)[0]
        if against and name != "python -c pass":
            outcomes[f"{BEFORE}{name}"] = run(command, checkout_environment(against), against)[0]
    return outcomes


def _result(name: str, rounds: list[dict[str, Outcome]]) -> dict[str, Any]:
    result = {
        "seconds": summary([each[name].seconds for each in rounds]),
        "ratio": summary([each[name].seconds / each["python -c pass"].seconds for each in rounds]),
        "private_mb": statistics.median(each[name].private_mb for each in rounds),
    }
    if f"{BEFORE}{name}" in rounds[0]:
        for figure in ("seconds", "cpu_seconds"):
            ratios = [
                getattr(each[name], figure) / getattr(each[f"{BEFORE}{name}"], figure)
                for each in rounds
            ]
            result[f"{figure}_against"] = summary(ratios)
    return result


if __name__ == "__main__":
    main()
