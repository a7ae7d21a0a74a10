# /// script
# # clipmerge itself comes by --with, until a registry has it
# requires-python = ">=3.11"
# dependencies = ["ray>=2.9"]
# ///
"""Merge many pairs at once as tasks of Ray, one merge per card, or per core where there is no card.

    uv run --with . examples/merge_many.py pairs.txt --data val --state /shared/state

Each line of ``pairs.txt`` names a zero-shot model, a fine-tuned one and an output folder, which
every machine of the cluster must see. A task that is lost with its machine starts again and resumes
from the state; outputs that exist are left alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import ray

import clipmerge


def merge_one(zeroshot: str, finetuned: str, output: str, data: str | None, state: str) -> str:
    """Merge a pair, and return the advice."""
    if Path(output).exists():
        return "merged before"
    recipe = "auto" if data else "wise-ft"
    result = clipmerge.merge(zeroshot, finetuned, recipe, data=data, output=output, state=state)
    return str(result.recommendation or "not judged")


def main(arguments: Sequence[str] | None = None) -> dict[str, str]:
    """Read the command line, merge, and print a line for each pair as soon as it is merged."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", type=Path, help="lines of ZEROSHOT FINETUNED OUTPUT")
    parser.add_argument("--data", help="labelled images, the same for all pairs")
    parser.add_argument("--state", required=True, help="a folder that all machines see")
    asked = parser.parse_args(arguments)
    ray.init(ignore_reinit_error=True)
    cards = int(ray.cluster_resources().get("GPU", 0))
    task = ray.remote(num_cpus=1, num_gpus=1 if cards else 0, max_retries=3)(merge_one)
    waiting = {}
    for line in asked.pairs.read_text(encoding="utf-8").splitlines():
        zeroshot, finetuned, output = line.split()
        waiting[task.remote(zeroshot, finetuned, output, asked.data, asked.state)] = output
    advice: dict[str, str] = {}
    while waiting:
        (done,), _ = ray.wait(list(waiting))
        output = waiting.pop(done)
        try:
            advice[output] = ray.get(done)
        except ray.exceptions.RayTaskError as error:  # one bad pair stops no other
            advice[output] = f"error: {error.cause}"
        print(f"{output}: {advice[output]}", flush=True)
    return advice


if __name__ == "__main__":
    main()
