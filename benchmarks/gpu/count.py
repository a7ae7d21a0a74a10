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
#: Seconds to place a ViT-B/32 by the CPU, which streams a decided plan (measured, two cores).
FOLLOW = 1.24
STEPS, IMAGES, HELD_BACK, LOOKS = 320, 1024, 256, (2, 11)
_PROBES, _MODELS = 4, 3


def modelled(work: dict[str, float]) -> float:
    """Seconds of some work: each kernel takes as long as its multiplications or its bytes, and all
    of them no less than the CPU takes to start them.
    """
    return max(work["seconds"], START * work["kernels"])


def totals(size: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Seconds of the parts of `auto`, at the fewest and the most looks."""
    step = modelled(size["step"]) + modelled(size["teacher"])
    look = modelled(size["look"])
    image = size["image"]["seconds"]
    judged = HELD_BACK * _PROBES * _MODELS * image
    follow = FOLLOW * size["weights"] / 151e6
    parts = {
        "steps": (STEPS * step, STEPS * step),
        "looks": (LOOKS[0] * look, LOOKS[1] * look),
        "verdict": (judged + follow, judged + follow),
    }
    return parts | {"all": tuple(sum(each[at] for each in parts.values()) for at in (0, 1))}  # type: ignore[dict-item]


def shared(size: dict[str, Any], cards: int = 8) -> float:
    """Seconds of a step on several cards: its pictures shared, its coefficients added up."""
    work = {
        name: size["step"][name] - (1 - 1 / cards) * size["pictures"][name]
        for name in ("seconds", "kernels")
    }
    work["kernels"] = size["step"]["kernels"]
    added = 2 * (cards - 1) / cards * 4 * size["moving"] / LINK
    teacher = {**size["teacher"], "seconds": size["teacher"]["seconds"] / cards}
    return modelled(work) + added + modelled(teacher)


def table(found: dict[str, Any]) -> str:
    """The table, by size."""
    sizes = found["sizes"]
    works = [
        {key: each["step"][key] + each["teacher"][key] for key in each["step"]}
        for each in sizes.values()
    ]
    rows = [
        ["*counted* a step: TFLOP", *(f"{work['flops'] / 1e12:.1f}" for work in works)],
        ["a step: GB moved by kernels", *(f"{work['bytes'] / 1e9:.0f}" for work in works)],
        ["a step: kernels", *(f"{work['kernels']:,.0f}" for work in works)],
        [
            "a step: waits, of them inside its passes",
            *(f"{each['waits']:.0f}, {each['inside']:.0f}" for each in sizes.values()),
        ],
        ["highest memory, GB", *(f"{each['peak'] / 1e9:.1f}" for each in sizes.values())],
        [
            "*modelled* a step: device / CPU, ms",
            *(
                f"{1e3 * work['seconds']:.0f} / {1e3 * START * work['kernels']:.0f}"
                for work in works
            ),
        ],
    ]
    for part in ("steps", "looks", "verdict", "all"):
        cells = []
        for size in sizes.values():
            low, high = totals(size)[part]
            cells.append(f"{low:.0f}" if round(low) == round(high) else f"{low:.0f} to {high:.0f}")
        rows.append([f"`auto`, {IMAGES:,} images: {part}, s", *cells])
    gains = []
    for each in sizes.values():
        alone, together = modelled(each["step"]) + modelled(each["teacher"]), shared(each)
        gains.append(f"{1e3 * together:.0f} ({alone / together:.1f} x)")
    rows.append(["a step on 8 cards, ms (gain)", *gains])
    lines = [["", *sizes], ["---", *["---:"] * len(sizes)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main() -> int:
    """Count, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.count", description=__doc__)
    parser.add_argument("--table", action="store_true", help="count nothing")
    parser.add_argument("--size", action="append", help="count these sizes alone, such as B/32")
    options = parser.parse_args()
    if not options.table:
        from tests.support import pretend

        if pretend.REFUSAL:
            print(f"nothing was counted: {pretend.REFUSAL}", file=sys.stderr)
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
    found = json.loads(COUNTED.read_text("utf-8"))
    PAGE.write_text(before + BEGIN + table(found) + FINISH + rest.split(FINISH)[1], "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
