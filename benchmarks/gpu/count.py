"""Count and model the cost of `auto` on a card that nobody has: ``python -m benchmarks.gpu.count``.

Needs Linux, g++ and a torch without CUDA, and some minutes. The code runs as on a card, by tensors
that have shapes and no entries (`tests.support.real_sizes`); kernels, waits, multiplications and
bytes are counted. The figures go to ``benchmarks/results/counted/auto.json``, and seconds that are
modelled from them into the table of docs/research/cost.md; ``--table`` writes the table alone.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COUNTED = ROOT / "benchmarks" / "results" / "counted" / "auto.json"
PAGE = ROOT / "docs" / "research" / "cost.md"
BEGIN = "<!-- table: python -m benchmarks.gpu.count -->\n"
FINISH = "<!-- end of the counted table -->\n"
#: What an H100 is taken to reach: multiplications in 16 bits and in float32, and bytes, a second.
FLOPS = {16: 0.6 * 990e12, 32: 0.6 * 67e12}
BYTES = 0.75 * 3.35e12
#: Bytes a second between the cards of a machine, each way, that a collective reaches.
LINK = 300e9
#: Seconds that the CPU takes to start a kernel, with what Python does for it.
START = 10.5e-6
#: Bytes a second from ordinary memory to a card, half of what pinned memory reaches.
HOST = 12e9
#: Bytes that kernels move for each weight of a plan that the card merges, seven kernels of float32.
MERGED = 70
STEPS, IMAGES, HELD_BACK, LOOKS = 320, 1024, 256, (2, 11)
_PROBES, _MODELS = 4, 3


def modelled(work: dict[str, float]) -> float:
    """Seconds of some work: each kernel takes as long as its multiplications or its bytes, and all
    of them no less than the CPU takes to start them.
    """
    return max(work["seconds"], START * work["kernels"])


def step_seconds(size: dict[str, Any]) -> float:
    """A step, with its teachers."""
    return modelled({name: size["step"][name] + size["teacher"][name] for name in size["step"]})


def totals(size: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Seconds of the parts of `auto`, at the fewest and the most looks."""
    look, image = modelled(size["look"]), size["image"]["seconds"]
    placed = size["moving"] * (4 / HOST + MERGED / BYTES)  # coefficients are sent in float32
    fewest, most = LOOKS
    parts = {
        "steps": (STEPS * step_seconds(size),) * 2,
        "looks": (fewest * look, most * look),
        "verdict": (HELD_BACK * _PROBES * _MODELS * image + placed,) * 2,
    }
    low, high = (sum(each[at] for each in parts.values()) for at in (0, 1))
    return parts | {"all": (low, high)}


def shared(size: dict[str, Any], cards: int = 8) -> float:
    """Seconds of a step on several cards: its pictures shared, its coefficients added up."""
    step = size["step"]
    alike = step["seconds"] - size["pictures"]["seconds"]  # weights are placed on each
    device = (step["seconds"] - alike + size["teacher"]["seconds"]) / cards + alike
    kernels = step["kernels"] + size["teacher"]["kernels"]
    added = 2 * (cards - 1) / cards * 4 * size["moving"] / LINK
    return max(device, START * kernels) + added


def _both(size: dict[str, Any], name: str) -> float:
    return float(size["step"][name] + size["teacher"][name])


def _range(seconds: tuple[float, float]) -> str:
    low, high = seconds
    return f"{low:.1f}" if round(low) == round(high) else f"{low:.0f} to {high:.0f}"


def table(file: Path) -> str:
    """The table of what was counted, by size."""
    if not file.exists():
        return "Not counted yet.\n"
    sizes = json.loads(file.read_text("utf-8"))["sizes"]
    plain = list(sizes.values())
    rows = [
        ["*counted*, a step: TFLOP", *(f"{_both(each, 'flops') / 1e12:.1f}" for each in plain)],
        ["GB moved by kernels", *(f"{_both(each, 'bytes') / 1e9:.0f}" for each in plain)],
        ["kernels", *(f"{_both(each, 'kernels'):,.0f}" for each in plain)],
        [
            "waits, of them inside its passes",
            *(f"{each['waits']:.0f}, {each['inside']:.0f}" for each in plain),
        ],
        ["highest memory, GB", *(f"{each['peak'] / 1e9:.1f}" for each in plain)],
    ]
    times = [
        f"{1e3 * _both(each, 'seconds'):.0f} / {1e3 * START * _both(each, 'kernels'):.0f}"
        for each in plain
    ]
    rows.append(["*modelled*, a step: device / CPU, ms", *times])
    for part in ("steps", "looks", "verdict", "all"):
        ranges = [totals(each)[part] for each in plain]
        rows.append([f"`auto`, {IMAGES:,} images: {part}, s", *map(_range, ranges)])
    gains = [
        f"{1e3 * shared(each):.0f} ({step_seconds(each) / shared(each):.1f} x)" for each in plain
    ]
    rows.append(["a step on 8 cards, ms (gain)", *gains])
    lines = [["model", *sizes], ["---", *["---:"] * len(sizes)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main() -> int:
    """Count, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.count", description=__doc__)
    parser.add_argument("--table", action="store_true", help="count nothing")
    parser.add_argument("--size", action="append", help="count these sizes alone, such as B/32")
    options = parser.parse_args()
    if not options.table:
        from tests.support import pretend

        if refusal := pretend.refusal("cuda"):
            print(f"nothing was counted: {refusal}", file=sys.stderr)
            return 1
        pretend.load("cuda")  # before torch
        from benchmarks.gpu.counting import count

        found = json.loads(COUNTED.read_text("utf-8")) if COUNTED.exists() else {"sizes": {}}
        for size in options.size or ("B/32", "L/14@336", "H/14", "bigG/14"):
            found["sizes"][size] = count(size)
            COUNTED.parent.mkdir(parents=True, exist_ok=True)
            COUNTED.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
            print(f"{size}: {found['sizes'][size]}", flush=True)
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    PAGE.write_text(before + BEGIN + table(COUNTED) + FINISH + rest.split(FINISH)[1], "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
