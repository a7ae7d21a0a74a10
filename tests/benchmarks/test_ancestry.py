"""The pairs of the ancestry benchmark, and that its published result is what its judgements say."""

import json
from pathlib import Path

from benchmarks.ancestry.__main__ import counts, further_pairs, judge

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "ancestry"


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
