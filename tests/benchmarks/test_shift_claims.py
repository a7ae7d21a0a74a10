"""The paper's claims."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks.shifts import claims, claims_page, ranks, standing
from benchmarks.shifts.experiment import TrainedPair


def test_kendall_by_counting_pairs() -> None:
    rng = random.Random(3)
    x, y, z = ([float(rng.randint(0, 6)) for _ in range(15)] for _ in range(3))

    def slow(one: list[float], two: list[float]) -> float:
        signs = [
            ((one[i] > one[j]) - (one[i] < one[j]), (two[i] > two[j]) - (two[i] < two[j]))
            for i in range(15)
            for j in range(i)
        ]
        ties = [sum(1 for pair in signs if pair[side]) for side in (0, 1)]
        return sum(a * b for a, b in signs) / (ties[0] * ties[1]) ** 0.5

    assert ranks.kendall(np.array(x), np.array(y)) == pytest.approx(slow(x, y))
    xy, xz, yz = slow(x, y), slow(x, z), slow(y, z)
    expected = (xy - xz * yz) / ((1 - xz**2) * (1 - yz**2)) ** 0.5
    assert ranks.partial_kendall(np.array(x), np.array(y), np.array(z)) == pytest.approx(expected)
    assert np.isnan(ranks.kendall(np.ones(4), np.arange(4.0)))
    assert np.isnan(ranks.partial_kendall(np.arange(4.0), np.array([1.0, 3, 2, 4]), np.arange(4.0)))


@pytest.mark.slow
@pytest.mark.uncounted
def test_claims_are_examined_once_and_written_out(
    evaluated: tuple[TrainedPair, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "DRAWS", 12)
    monkeypatch.setattr(claims, "_CALIBRATION_SEEDS", (0, 1))
    monkeypatch.setattr(claims, "_PLANTED", 1)
    monkeypatch.setattr(claims, "_INSTABILITY", {"name": "layer-instability", "points": 1})
    monkeypatch.setattr(claims, "_CUMULATIVE", {"name": "cumulative-barrier", "points": 1})
    monkeypatch.setattr(claims, "_BARRIER", {"name": "path-barrier", "nodes": 1, "tolerance": 1e9})
    file = tmp_path / "claims.json"
    claims.examine(evaluated[0], file, claims.PARTS)
    written = file.stat().st_mtime_ns
    claims.examine(evaluated[0], file, claims.PARTS)
    assert file.stat().st_mtime_ns == written
    found = json.loads(file.read_text())
    record = json.loads(evaluated[1].read_text())
    page = claims_page.claims_section(found, [standing.resampled({**record, "seed": seed}) for seed in (1, 2)])
    share = found["aggressive-1"]["stability"]["jaccard of top"]
    assert f"| {share:.2f} |" in page
    for title in (
        "Does it matter which layers",
        "top 3 by instability",
        "top 3 by cumulative from last",
        "Masks against a smaller alpha",
        "Are planted stragglers found",
    ):
        assert title in page
