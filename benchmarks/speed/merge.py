"""How close a merge comes to the disk: clipmerge, the byte floor, a ten-line script, mergekit and
sd-mecha.

Everything runs N times, interleaved, on the same two random checkpoints, input pages warm; ratios
are taken round by round and reported as medians. ``--against`` adds the same merges by another
checkout of clipmerge. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.speed.checkpoints import clip_config, make_pair, weight_bytes
from benchmarks.speed.processes import (
    Outcome,
    checkout_environment,
    checkout_folder,
    peer_version,
    run,
    summary,
    write_results,
)

PIECE = 16 << 20
PLAIN = ("--recipe", "wise-ft", "--set", "method.alpha=0.5")
#: Prefix of the names of another checkout's contestants.
BEFORE = "before-"
# masks, a combination and singular values need whole tensors: compared with a plain merge of known
# inputs
METHODS = {
    "clipmerge-masked": (*PLAIN, "--set", 'overrides=[{layers: "*", density: 0.5}]'),
    "clipmerge-breadcrumbs": ("--recipe", "breadcrumbs"),
    "clipmerge-monosoup": ("--recipe", "monosoup"),
}

TEN_LINES = """\
import sys
import torch
from safetensors.torch import load_file, save_file
zeroshot = load_file(sys.argv[1])
finetuned = load_file(sys.argv[2])
merged = {name: torch.lerp(zeroshot[name], finetuned[name], 0.5) for name in zeroshot}
save_file(merged, sys.argv[3], metadata={"format": "pt"})
"""
SD_MECHA = """\
import sys
import sd_mecha
zeroshot, finetuned = sd_mecha.model(sys.argv[1]), sd_mecha.model(sys.argv[2])
sd_mecha.merge(sd_mecha.weighted_sum(zeroshot, finetuned, alpha=0.5), output=sys.argv[3])
"""
MERGEKIT = """\
merge_method: linear
dtype: float32
models:
  - model: {zeroshot}
    parameters: {{weight: 0.5}}
  - model: {finetuned}
    parameters: {{weight: 0.5}}
"""


def main() -> None:
    arguments = _parse()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary).resolve()
        config = clip_config(arguments.size, arguments.gigabytes)
        name = f"sharded-{arguments.gigabytes:g}" if arguments.size == "sharded" else arguments.size
        pair = make_pair(folder / name, config, sharded=arguments.size == "sharded")
        load = os.getloadavg()[0]  # the load of other programs: nothing has run yet
        contestants = _contestants(
            arguments, pair, folder / f"{name}-output", Path(temporary) / "cache"
        )
        # the first round is not counted: a virtual machine may then get new memory from its host
        rounds = [
            _round(contestants, pair, number)
            for number in range(arguments.warmup + arguments.rounds)
        ]
        rounds = rounds[arguments.warmup :]
    ratios = _ratios(rounds)
    results = {
        "size": name,
        "bytes": weight_bytes(config),
        "load": load,
        "rounds": rounds,
        "ratios": ratios,
    }
    results["peers"] = _peer_versions(arguments)
    write_results(arguments.json, results)
    _print_table(name, weight_bytes(config), rounds, ratios)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("l14", "b32", "sharded"), default="l14")
    parser.add_argument(
        "--gigabytes", type=float, default=20.0, help="size of each sharded checkpoint"
    )
    parser.add_argument(
        "--folder", help="where checkpoints are kept for the next run; needs five times their size"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1, help="rounds that are not counted")
    parser.add_argument(
        "--methods", action="store_true", help="masks, a combination and singular values as well"
    )
    parser.add_argument("--only", help="comma-separated contestants; the floor always runs")
    parser.add_argument(
        "--against",
        type=checkout_folder,
        metavar="CHECKOUT",
        help="another checkout to compare with",
    )
    parser.add_argument(
        "--mergekit", metavar="PYTHON", help="interpreter of an environment with mergekit"
    )
    parser.add_argument(
        "--sd-mecha", metavar="PYTHON", help="interpreter of an environment with sd-mecha"
    )
    parser.add_argument("--json", type=Path, help="where to write the results")
    arguments = parser.parse_args()
    if arguments.warmup < 1:
        parser.error(
            "--warmup must be at least 1: that round hashes the inputs, and later ones reuse the"
            " hashes"
        )
    return arguments


Contestant = Callable[[], dict[str, Any]]


def _contestants(
    arguments: argparse.Namespace, pair: tuple[Path, Path], output: Path, cache: Path
) -> dict[str, Contestant]:
    """Contestants by name: each runs once, into a fresh ``output``, and returns its ``seconds``."""
    files = [_weight_files(path) for path in pair]
    sources = [str(path) for path in pair]
    chosen: dict[str, Contestant] = {"floor": lambda: _floor(files, output)}
    for prefix, checkout in {"": None, BEFORE: arguments.against}.items():
        if not prefix or checkout:
            ours = _own_contestants(
                sources, output, cache / f"{prefix}cache", checkout, methods=arguments.methods
            )
            chosen |= {f"{prefix}{name}": contestant for name, contestant in ours.items()}
    if len(files[0]) == 1:
        singles = [str(files[0][0]), str(files[1][0]), str(output / "model.safetensors")]
        chosen["ten-line"] = lambda: _whole([sys.executable, "-c", TEN_LINES, *singles], output)
        if arguments.sd_mecha:
            chosen["sd-mecha"] = lambda: _whole(
                [arguments.sd_mecha, "-c", SD_MECHA, *singles], output
            )
        if arguments.mergekit:
            chosen["mergekit"] = lambda: _mergekit(arguments.mergekit, singles, output)
    wanted = arguments.only.split(",") if arguments.only else list(chosen)
    return {
        name: contestant for name, contestant in chosen.items() if name == "floor" or name in wanted
    }


def _own_contestants(
    sources: list[str], output: Path, cache: Path, checkout: Path | None, *, methods: bool
) -> dict[str, Contestant]:
    """Merges by one checkout of clipmerge."""
    command = _command(sources, PLAIN, output)
    empty, filled = cache / "empty", cache / "filled"
    chosen: dict[str, Contestant] = {
        "clipmerge-first": lambda: _first(command, empty, checkout),
        "clipmerge": lambda: _clipmerge(command, filled, checkout),
        "clipmerge-unhashed": lambda: _clipmerge(
            [*command[:-2], "--no-hash", *command[-2:]], empty, checkout
        ),
    }
    if methods:
        chosen |= {
            name: partial(_clipmerge, _command(sources, recipe, output), filled, checkout)
            for name, recipe in METHODS.items()
        }
    return chosen


def _command(sources: list[str], recipe: Sequence[str], output: Path) -> list[str]:
    return [
        "-m",
        "clipmerge",
        "merge",
        *sources,
        *recipe,
        "--format",
        "json",
        "--output",
        str(output),
    ]


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _round(
    contestants: dict[str, Contestant], pair: tuple[Path, Path], number: int
) -> dict[str, Any]:
    """One round, starting with another contestant each time, so that none always follows the same
    one."""
    names = list(contestants)
    shift = number % len(names)
    outcome = {}
    for name in names[shift:] + names[:shift]:
        for file in (*_weight_files(pair[0]), *_weight_files(pair[1])):
            _read(file)
        os.sync()
        outcome[name] = contestants[name]()
        print(
            f"round {number + 1}: {name}: {outcome[name]['seconds']:.2f} s",
            file=sys.stderr,
            flush=True,
        )
    return {name: outcome[name] for name in names}


def _read(file: Path) -> None:
    with file.open("rb", buffering=0) as handle:
        while handle.read(PIECE):
            pass


def _floor(files: list[list[Path]], output: Path) -> dict[str, Any]:
    """Read both checkpoints in 16 MiB pieces and write one, synced to the disk as clipmerge's
    output is."""
    output.mkdir(parents=True)
    begin, cpu_begin = time.perf_counter(), time.process_time()
    unsynced = 0.0
    for zeroshot, finetuned in zip(*files, strict=True):
        with (
            zeroshot.open("rb", 0) as a,
            finetuned.open("rb", 0) as b,
            (output / zeroshot.name).open("wb", 0) as out,
        ):
            while piece := a.read(PIECE):
                b.read(PIECE)
                out.write(piece)
            before = time.perf_counter()
            os.fsync(out.fileno())
            unsynced -= time.perf_counter() - before
    seconds = time.perf_counter() - begin
    cpu_seconds = time.process_time() - cpu_begin
    shutil.rmtree(output)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "seconds_without_sync": seconds + unsynced,
    }


def _first(arguments: list[str], cache: Path, checkout: Path | None) -> dict[str, Any]:
    """A merge of checkpoints that were never merged before."""
    shutil.rmtree(cache, ignore_errors=True)
    return _clipmerge(arguments, cache, checkout)


def _clipmerge(arguments: list[str], cache: Path, checkout: Path | None) -> dict[str, Any]:
    variables = {"XDG_CACHE_HOME": str(cache), **checkout_environment(checkout)}
    outcome, out = run([sys.executable, *arguments], variables, checkout)
    stages = json.loads(out)["seconds"]
    shutil.rmtree(arguments[-1])
    return {**vars(outcome), "stages": stages, "apply_and_write": stages["apply"] + stages["write"]}


def _whole(command: list[str], output: Path) -> dict[str, Any]:
    output.mkdir(parents=True)
    outcome: Outcome = run(command)[0]
    shutil.rmtree(output)
    return vars(outcome)


def _mergekit(interpreter: str, files: list[str], output: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yml"
        config.write_text(MERGEKIT.format(zeroshot=files[0], finetuned=files[1]), encoding="utf-8")
        program = str(Path(interpreter).with_name("mergekit-pytorch"))
        return _whole([program, str(config), str(output), "--quiet"], output)


def _ratios(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Every ratio, taken within a round."""
    ours = [name for name in rounds[0] if name.startswith("clipmerge") and name not in METHODS]
    peers = [
        name for name in rounds[0] if name != "floor" and not name.startswith(("clipmerge", BEFORE))
    ]
    ratios = {
        f"{name}: apply + write / floor": [
            each[name]["apply_and_write"] / each["floor"]["seconds"] for each in rounds
        ]
        for name in ours
    }
    for name in ours:
        for peer in peers:
            ratios[f"{peer} / {name}"] = [
                each[peer]["seconds"] / each[name]["seconds"] for each in rounds
            ]
    for name in [name for name in METHODS if {name, "clipmerge"} <= rounds[0].keys()]:
        ratios[f"{name} / clipmerge"] = [
            each[name]["seconds"] / each["clipmerge"]["seconds"] for each in rounds
        ]
    for name in [name for name in rounds[0] if f"{BEFORE}{name}" in rounds[0]]:
        for figure in ("seconds", "cpu_seconds"):
            ratios[f"{name} / {BEFORE}{name}: {figure}"] = [
                each[name][figure] / each[f"{BEFORE}{name}"][figure] for each in rounds
            ]
    return {name: summary(values) for name, values in ratios.items()}


def _peer_versions(arguments: argparse.Namespace) -> dict[str, str]:
    interpreters = {"mergekit": arguments.mergekit, "sd-mecha": arguments.sd_mecha}
    return {name: peer_version(path, name) for name, path in interpreters.items() if path}


def _print_table(
    name: str, size: int, rounds: list[dict[str, Any]], ratios: dict[str, Any]
) -> None:
    print(f"{name}: two checkpoints of {size / 1e9:.2f} GB, {len(rounds)} rounds, medians")
    columns = {
        "seconds": "8.2f",
        "cpu_seconds": "12.2f",
        "apply_and_write": "16.2f",
        "private_mb": "11.0f",
    }
    columns["resident_mb"] = "12.0f"
    widths = {key: int(form.partition(".")[0]) for key, form in columns.items()}
    print(f"{'':28}" + "".join(f"{key:>{width + 1}}" for key, width in widths.items()))
    for contestant in rounds[0]:
        row = ""
        for key, form in columns.items():
            values = [each[contestant][key] for each in rounds if key in each[contestant]]
            row += f" {statistics.median(values):{form}}" if values else " " * (widths[key] + 1)
        print(f"{contestant:28}{row}")
    for label, ratio in ratios.items():
        print(f"{label:66} {ratio['median']:5.2f}  ({ratio['min']:.2f} to {ratio['max']:.2f})")


if __name__ == "__main__":
    main()
