"""Two processes against one, one thread each: speed, the same plan, the same bytes.

    python -m benchmarks.speed.scale_out [--json FILE]

The whole command ``clipmerge merge --recipe straggler-outlier`` under torchrun, on a CLIP of random
weights and random pictures, with one process and with several in turn; ratios are taken round by
round. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPModel

from benchmarks.speed.processes import run, summary, write_results
from tests.support.tiny_clip import save_images, tiny_config, tiny_processor


def make_pair(folder: Path, blocks: int, width: int) -> list[str]:
    torch.manual_seed(0)
    model = CLIPModel(tiny_config(blocks, width))
    paths = [folder / "zeroshot", folder / "finetuned"]
    for path in paths:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape))
        model.save_pretrained(path)
        tiny_processor().save_pretrained(path)
    return [str(path) for path in paths]


def once(processes: int, arguments: list[str], output: Path) -> dict[str, Any]:
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    command = [
        *launcher,
        "-m",
        "clipmerge",
        "merge",
        *arguments,
        "--output",
        str(output),
        "--overwrite",
    ]
    outcome, out = run(command)
    record = json.loads(out)
    return {
        "seconds": outcome.seconds,
        "cpu_seconds": outcome.cpu_seconds,
        "measure": record["seconds"]["measure"],
        "files": record["files"],
        "measurements": record["measurements"],
    }


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest difference of a statistic, relative to the largest value that the statistic has."""
    largest = {
        name: max(abs(values[name]) for values in one.values()) for name in next(iter(one.values()))
    }
    return max(
        abs(values[name] - other[layer][name]) / max(largest[name], 1e-30)
        for layer, values in one.items()
        for name in values
    )


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    pair = make_pair(folder, arguments.blocks, arguments.width)
    images = save_images(folder / "images", each=arguments.images // 3)
    flags = [
        *pair,
        "--recipe",
        "straggler-outlier",
        "--data",
        str(images),
        "--images",
        str(arguments.images),
    ]
    flags += ["--batch-size", str(arguments.batch_size), "--device", "cpu", "--format", "json"]
    rounds = []
    for number in range(arguments.rounds):
        order = [1, arguments.processes] if number % 2 else [arguments.processes, 1]
        found = {processes: once(processes, flags, folder / str(processes)) for processes in order}
        one, several = found[1], found[arguments.processes]
        if one["files"]["model.safetensors"] != several["files"]["model.safetensors"]:
            raise SystemExit("the merged weights differ")
        difference = largest_difference(one.pop("measurements"), several.pop("measurements"))
        rounds.append({"one": one, "several": several, "largest_difference": difference})
        print(
            f"round {number + 1}: measured in {one['measure']} s and {several['measure']} s",
            file=sys.stderr,
            flush=True,
        )
    ratios = {
        f"{what}, one / several": summary(
            [each["one"][key] / each["several"][key] for each in rounds]
        )
        for what, key in (
            ("measuring", "measure"),
            ("whole command", "seconds"),
            ("cpu seconds", "cpu_seconds"),
        )
    }
    return {"rounds": rounds, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=12, help="blocks a tower")
    parser.add_argument("--width", type=int, default=128, help="width of both towers")
    parser.add_argument(
        "--images", type=int, default=2040, help="a multiple of 3, the number of classes"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=100,
        help="does not divide the images: the last is smaller",
    )
    parser.add_argument("--json", type=Path, help="where to write the results")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        results = compare(arguments, Path(folder))
    print(
        f"{arguments.processes} processes and one, {arguments.rounds} rounds, medians; the merged"
        " bytes are equal"
    )
    print(
        "largest difference of a measured value:"
        f" {max(r['largest_difference'] for r in results['rounds']):.1e}"
    )
    for name, ratio in results["ratios"].items():
        print(f"{name:30} {ratio['median']:5.2f}  ({ratio['min']:.2f} to {ratio['max']:.2f})")
    settings = {key: value for key, value in vars(arguments).items() if key != "json"}
    write_results(arguments.json, {"settings": settings, **results})


if __name__ == "__main__":
    main()
