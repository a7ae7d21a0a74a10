"""What clipmerge costs, as ratios from one run: `python -m benchmarks.speed CASE --folder CACHE`.

Contestants run in turn on the same random CLIPs; ratios are taken round by round, and medians are
printed with their extremes: read the ratios, not the seconds. None of it is a test: nothing fails
if a machine is slow. ``--against CHECKOUT`` adds the same commands of another checkout of
clipmerge. Linux only: memory is read from `/proc`.

    merge    a merge of two checkpoints against a plain loop of reading and writing, and a
             ten-line script
    start    `--help` and `inspect` against `python -c pass`
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_PIECE = 16 << 20
_BEFORE = "before: "
#: Width, blocks and patch of the vision tower, width and blocks of the text tower, heads of both.
_SIZES = {
    "tiny": (64, 2, 32, 64, 2, 2, 2),
    "b32": (768, 12, 32, 512, 12, 12, 8),
    "l14": (1024, 24, 14, 768, 12, 16, 12),
}
_TEN_LINES = """\
import sys
import torch
from safetensors.torch import load_file, save_file
zeroshot = load_file(sys.argv[1])
finetuned = load_file(sys.argv[2])
merged = {name: torch.lerp(zeroshot[name], finetuned[name], 0.5) for name in zeroshot}
save_file(merged, sys.argv[3], metadata={"format": "pt"})
"""


@dataclass(frozen=True)
class Outcome:
    """The time and memory of one run.

    Attributes:
        seconds: Wall-clock time.
        cpu_seconds: Processor time of all its threads, in the program and in the system for it.
        private_mb: Highest anonymous memory: everything but pages of mapped files.
    """

    seconds: float
    cpu_seconds: float
    private_mb: float = 0.0


Contestant = Callable[[], Outcome]


def run(command: list[str], checkout: Path | None = None) -> Outcome:
    """Run a command to its end, with the code of another checkout if one is given."""
    # an installed program has its bytecode; if it could not be written, every run would compile
    variables = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    variables |= {"PYTHONPATH": str(checkout)} if checkout else {}
    begin = time.perf_counter()
    before = _children_cpu()
    with tempfile.TemporaryFile("w+") as err:  # a pipe that nobody reads would fill and stop it
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=err, env=variables, cwd=checkout
        )
        private = 0.0
        while process.poll() is None:
            private = max(private, _private_mb(process.pid))
            time.sleep(0.01)
        seconds = time.perf_counter() - begin
        err.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{err.read()[-2000:]}")
    return Outcome(seconds, _children_cpu() - before, private)


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _private_mb(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:  # it ended between two readings
        return 0.0
    for line in text.splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1e3
    return 0.0


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


def merge_case(given: argparse.Namespace, folder: Path) -> dict[str, Contestant]:
    pair = make_checkpoints(folder, given.size)
    files = [str(path / "model.safetensors") for path in pair]
    output = folder / "output"
    chosen: dict[str, Contestant] = {"floor": lambda: _floor(files, output)}
    options = ["-r", "wise-ft", "--alpha", "0.5", "-q", "-o", str(output)]
    merge = ["merge", *map(str, pair), *options]
    chosen |= _ours({"clipmerge": merge}, given.against, output)
    written = str(output / "model.safetensors")
    script = [sys.executable, "-c", _TEN_LINES, *files, written]
    chosen["ten-line script"] = lambda: _into(output, script)
    return chosen


def _floor(files: list[str], output: Path) -> Outcome:
    """Read both files in pieces and write one."""
    output.mkdir(parents=True)
    begin = time.perf_counter()
    before = time.process_time()
    with (
        Path(files[0]).open("rb", 0) as one,
        Path(files[1]).open("rb", 0) as other,
        (output / "floor").open("wb", 0) as out,
    ):
        while piece := one.read(_PIECE):
            other.read(_PIECE)
            out.write(piece)
    seconds = time.perf_counter() - begin
    outcome = Outcome(seconds, time.process_time() - before)
    shutil.rmtree(output)
    return outcome


def _into(output: Path, command: list[str]) -> Outcome:
    output.mkdir(parents=True)
    outcome = run(command)
    shutil.rmtree(output)
    return outcome


def start_case(given: argparse.Namespace, folder: Path) -> dict[str, Contestant]:
    pair = make_checkpoints(folder, given.size)
    chosen: dict[str, Contestant] = {"python -c pass": lambda: run([sys.executable, "-c", "pass"])}
    commands = {
        "--help": ["--help"],
        "inspect, one": ["inspect", str(pair[0])],
        "inspect, two": ["inspect", *map(str, pair)],
    }
    return chosen | _ours(commands, given.against)


def _ours(
    commands: Mapping[str, list[str]], against: Path | None, output: Path | None = None
) -> dict[str, Contestant]:
    """Commands of clipmerge, and of another checkout if one is given."""

    def contestant(command: list[str], checkout: Path | None) -> Contestant:
        def once() -> Outcome:
            outcome = run([sys.executable, "-m", "clipmerge", *command], checkout)
            if output:
                shutil.rmtree(output)
            return outcome

        return once

    chosen = {}
    for name, command in commands.items():
        chosen[name] = contestant(command, None)
        if against:
            chosen[_BEFORE + name] = contestant(command, against.resolve())
    return chosen


_CASES = {"merge": merge_case, "start": start_case}


def compare(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, list[Outcome]]:
    """Run all in turn, beginning with another one each time; the first round is not counted."""
    names = list(contestants)
    found: dict[str, list[Outcome]] = {name: [] for name in names}
    for number in range(rounds + 1):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            outcome = contestants[name]()
            print(f"{name}: {outcome.seconds:.2f} s", file=sys.stderr, flush=True)
            if number:
                found[name].append(outcome)
    return found


def ratios(found: Mapping[str, list[Outcome]]) -> dict[str, list[float]]:
    """Each contestant's time in those of the first one, and in those of another checkout.

    Example:
        >>> ratios({"floor": [Outcome(2.0, 1.0)], "a": [Outcome(3.0, 2.0)]})
        {'a / floor: seconds': [1.5]}
    """
    base, *others = found
    told = {}
    for name in others:
        if not name.startswith(_BEFORE):
            told[f"{name} / {base}: seconds"] = _quotients(found[name], found[base], "seconds")
        if before := found.get(_BEFORE + name):
            quotients = _quotients(found[name], before, "cpu_seconds")
            told[f"{name} / before: cpu_seconds"] = quotients
    return told


def _quotients(ours: list[Outcome], others: list[Outcome], key: str) -> list[float]:
    found = []
    for one, other in zip(ours, others, strict=True):
        found.append(getattr(one, key) / getattr(other, key))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("case", choices=_CASES)
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept for the next run")
    parser.add_argument("--size", choices=_SIZES, default="b32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        contestants = _CASES[given.case](given, folder)
        found = compare(contestants, given.rounds)
    for name, each in found.items():
        seconds = statistics.median(one.seconds for one in each)
        memory = statistics.median(one.private_mb for one in each)
        print(f"{name:28} {seconds:9.2f} s {memory:8.0f} MB")
    for name, values in ratios(found).items():
        median = statistics.median(values)
        print(f"{name:44} {median:6.2f}  ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
