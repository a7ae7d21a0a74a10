"""The pairs of the ancestry benchmark, and that its published result is what its judgements say."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.ancestry.__main__ import counts, further_pairs, judge
from benchmarks.ancestry.pairs import FINE_TUNINGS, SEEDS, pairs_of

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "ancestry"


def test_every_model_is_judged_in_three_ways(tmp_path: Path) -> None:
    models = {
        f"zeroshot-{seed}{end}": tmp_path for seed in SEEDS for end in ("", *(f"-{name}" for name in FINE_TUNINGS))
    }
    pairs = list(pairs_of(models))
    assert len({pair.name for pair in pairs}) == len(pairs) == len(SEEDS) * (3 * len(FINE_TUNINGS) + 1)


def test_pairs_from_elsewhere_are_judged(pair: tuple[Path, Path], tmp_path: Path) -> None:
    rows = [{"name": "tiny", "zeroshot": str(pair[0]), "finetuned": str(pair[1])}]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    found = judge(further_pairs(tmp_path / "pairs.json"))
    assert [(row["truth"], row["judged"]) for row in found] == [("related", "related"), ("swapped", "related")]


def test_the_published_result_has_no_false_alarm_and_misses_nothing() -> None:
    for file in RESULTS.glob("*.json"):
        record = json.loads(file.read_text())
        assert record["counts"] == counts(record["pairs"])
        assert set(record["counts"]["related"]) == {"related"}
        assert set(record["counts"]["unrelated"]) == {"unrelated"}
        assert set(record["counts"]["swapped"]) == {"swapped"}
        assert len(record["pairs"]) >= 40
