"""Judge every pair and write what was found: ``python -m benchmarks.ancestry``; see
`docs/explanation/the-pair.md`."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.ancestry.pairs import Pair, make_models, pairs_of
from clipmerge.checkpoint import align_checkpoints, open_checkpoint
from clipmerge.checkpoint.ancestry import ancestry_of
from clipmerge.errors import CheckpointError
from clipmerge.files.paths import user_cache


def judge(pairs: Iterable[Pair]) -> list[dict[str, Any]]:
    """Judge pairs.

    Args:
        pairs: The pairs; those whose shapes differ are left out, because their merge would be
            refused before this check.
    """
    rows = []
    for pair in pairs:
        base = open_checkpoint(str(pair.zeroshot))
        try:
            inputs = align_checkpoints(base, [open_checkpoint(str(pair.finetuned), base=base)])
        except CheckpointError:
            continue
        found = ancestry_of(inputs)
        cosines = {tower: round(cosine, 4) for tower, cosine in found.cosines.items()}
        rows.append(
            {
                "pair": pair.name,
                "truth": pair.truth,
                "judged": found.relation,
                "evidence": list(found.evidence),
                "cosines": cosines,
            }
        )
    return rows


def further_pairs(file: Path) -> Iterator[Pair]:
    """Read pairs from elsewhere, each also in the wrong order and with the other pairs' zero-shot
    models."""
    listed = [
        (str(row["name"]), Path(row["zeroshot"]), Path(row["finetuned"]))
        for row in json.loads(file.read_text())
    ]
    for name, zeroshot, finetuned in listed:
        yield Pair(name, zeroshot, finetuned, "related")
        yield Pair(f"{name}, swapped", finetuned, zeroshot, "swapped")
        for base in sorted({other for _, other, _ in listed} - {zeroshot}):
            yield Pair(f"{name}, base {base.name}", base, finetuned, "unrelated")


def counts(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Count judgements by truth."""
    return {
        truth: dict(Counter(row["judged"] for row in rows if row["truth"] == truth))
        for truth in ("related", "unrelated", "swapped")
    }


def main() -> None:
    """Make the models, judge the pairs, and print the counts and the wrong judgements."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ancestry", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=user_cache("ancestry"), help="where models are kept"
    )
    parser.add_argument(
        "--pairs", type=Path, help="JSON list of further pairs: name, zeroshot, finetuned"
    )
    parser.add_argument("--json", type=Path, help="file to write")
    asked = parser.parse_args()
    pairs = list(pairs_of(make_models(asked.folder)))
    pairs += further_pairs(asked.pairs) if asked.pairs else []
    rows = judge(pairs)
    for truth, found in counts(rows).items():
        print(f"{truth}: {sum(found.values())} pairs, judged {found}")
    for row in rows:
        if row["judged"] != row["truth"]:
            print(f"  {row['pair']}: is {row['truth']}, judged {row['judged']}")
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(
            json.dumps({"counts": counts(rows), "pairs": rows}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
