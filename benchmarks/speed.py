"""What a merge costs, as ratios from one run: `python -m benchmarks.speed --folder CACHE`.

A plain loop that reads two checkpoints and writes one, and a merge of them by clipmerge, run in
turn on the same random CLIPs. Ratios are taken round by round, and medians are printed with their
extremes: read the ratios, not the seconds. None of it is a test: nothing fails if a machine is
slow. ``--against CHECKOUT`` adds the merge of another checkout of clipmerge.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_PIECE = 16 << 20
#: Width, blocks and patch of the vision tower, width and blocks of the text tower, heads of both.
_SIZES = {
    "tiny": (64, 2, 32, 64, 2, 2, 2),
    "b32": (768, 12, 32, 512, 12, 12, 8),
    "l14": (1024, 24, 14, 768, 12, 16, 12),
}


#: Runs once and gives its wall-clock seconds.
Contestant = Callable[[], float]


def run(command: list[str], checkout: Path | None = None) -> float:
    """Run a command to its end, with the code of another checkout if one is given."""
    # an installed program has its bytecode; if it could not be written, every run would compile
    variables = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    variables |= {"PYTHONPATH": str(checkout)} if checkout else {}
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=checkout)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return seconds


def make_checkpoints(folder: Path, size: str) -> tuple[Path, Path]:
    """Write two random CLIPs, unless they exist: the second moved by a tenth of each weight."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from benchmarks.make_pairs.pretraining import processor

    paths = folder / size / "zeroshot", folder / size / "finetuned"
    if paths[1].is_dir():
        return paths
    wide, blocks, patch, narrow, layers, heads, text_heads = _SIZES[size]
    tools = processor(["a photo of a thing."], 224, 77)
    text = {
        "hidden_size": narrow,
        "intermediate_size": 4 * narrow,
        "num_hidden_layers": layers,
        "num_attention_heads": text_heads,
    }
    vision = {
        "hidden_size": wide,
        "intermediate_size": 4 * wide,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "patch_size": patch,
    }
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=narrow)
    model = CLIPModel(config)
    for path in paths:
        model.save_pretrained(path)
        tools.save_pretrained(path)
        with torch.no_grad():
            for value in model.parameters():
                noise = torch.randn(value.shape)
                value.add_(0.1 * value.abs().mean() * noise)
    return paths


def contestants(folder: Path, size: str, against: Path | None) -> dict[str, Contestant]:
    """The loop, the merge, and that of another checkout if one is given, by name."""
    pair = make_checkpoints(folder, size)
    files = [str(path / "model.safetensors") for path in pair]
    output = folder / "output"
    options = ["-r", "wise-ft", "--alpha", "0.5", "-q", "-o", str(output)]
    command = [sys.executable, "-m", "clipmerge", "merge", *map(str, pair), *options]

    def merge(checkout: Path | None) -> float:
        seconds = run(command, checkout)
        shutil.rmtree(output)
        return seconds

    chosen = {"floor": lambda: _floor(files, output), "clipmerge": lambda: merge(None)}
    if against:
        chosen["before"] = lambda: merge(against.resolve())
    return chosen


def _floor(files: list[str], output: Path) -> float:
    """Read both files in pieces and write one."""
    output.mkdir(parents=True)
    begin = time.perf_counter()
    with (
        Path(files[0]).open("rb", 0) as one,
        Path(files[1]).open("rb", 0) as other,
        (output / "floor").open("wb", 0) as out,
    ):
        while piece := one.read(_PIECE):
            other.read(_PIECE)
            out.write(piece)
    seconds = time.perf_counter() - begin
    shutil.rmtree(output)
    return seconds


def compare(chosen: Mapping[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """Run all in turn, beginning with another one each time; the first round is not counted."""
    names = list(chosen)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            seconds = chosen[name]()
            print(f"{name}: {seconds:.2f} s", file=sys.stderr, flush=True)
            if number:
                found[name].append(seconds)
    return found


def ratios(found: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """The merge's time in those of the others.

    Example:
        >>> ratios({"floor": [2.0], "clipmerge": [3.0]})
        {'clipmerge / floor': [1.5]}
    """
    told = {}
    for name in found:
        if name != "clipmerge":
            both = zip(found["clipmerge"], found[name], strict=True)
            told[f"clipmerge / {name}"] = [ours / its for ours, its in both]
    return told


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept for the next run")
    parser.add_argument("--size", choices=_SIZES, default="b32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        found = compare(contestants(folder, given.size, given.against), given.rounds)
    for name, each in found.items():
        print(f"{name:24} {statistics.median(each):6.2f} s")
    for name, values in ratios(found).items():
        median = statistics.median(values)
        print(f"{name:24} {median:6.2f}  ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
