"""Every recipe on a pair, as JSON; standings, and the page from it."""

import json
import random
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.shifts import claims, claims_page, ranks, report, standing
from benchmarks.shifts.evaluation import Contestant, contestants, evaluate_pair, unpacked
from benchmarks.shifts.experiment import TrainedPair
from clipmerge.planning.recipe import load_recipe
from clipmerge.planning.stragglers import find_stragglers
from tests.benchmarks.conftest import SMALL, bits, record_of


def test_the_file_holds_each_points_bits(evaluated: tuple[TrainedPair, Path]) -> None:
    assert str(evaluated[1].parents[1]) not in evaluated[1].read_text()  # no folder of this machine
    record = json.loads(evaluated[1].read_text())
    for name in ("test", "odd"):
        curve = unpacked(record["correct"][name])
        assert curve.shape == (3, 12, 2)
        assert [right.mean() for right in curve] == [
            row["accuracy"][name] for row in record["curve"]
        ]
        for row in record["recipes"]:
            assert unpacked(row["correct"][name]).shape == (1, 12, 2)
            assert unpacked(row["correct"][name]).mean() == row["accuracy"][name]
        # wise-ft is the curve's alpha 0.5
        assert np.array_equal(unpacked(record["recipes"][0]["correct"][name])[0], curve[1])


@pytest.mark.slow
def test_only_what_is_missing_or_changed_is_evaluated(
    evaluated: tuple[TrainedPair, Path], tmp_path: Path
) -> None:
    pair, first = evaluated
    file = tmp_path / "again.json"
    shutil.copy(first, file)
    recipes = contestants(only=("wise-ft", "lines", "monosoup"))
    before = file.stat().st_mtime_ns
    evaluate_pair(pair, recipes, file, SMALL)
    assert file.stat().st_mtime_ns == before
    planted = json.loads(file.read_text())
    planted["recipes"][1]["verdict"] = planted["curve"][1]["id"] = "other_tasks"
    planted["recipes"][2]["verdict"] = "not kept"
    file.write_text(json.dumps(planted))
    other = load_recipe("monosoup", ["method.rank=energy"]).model_copy(update={"name": "monosoup"})
    changed = [*recipes[:2], Contestant(other)]
    evaluate_pair(pair, changed, file, SMALL)
    record = json.loads(file.read_text())
    assert [row["name"] for row in record["recipes"]] == ["wise-ft", "lines", "monosoup"]
    assert record["recipes"][1]["verdict"] == record["curve"][1]["id"] == "other_tasks"
    assert record["recipes"][2]["verdict"] != "not kept"
    evaluate_pair(pair, changed, file, SMALL, again=["lines"])
    assert "other_tasks" not in [row["verdict"] for row in json.loads(file.read_text())["recipes"]]


def test_gain_and_oracle_by_hand() -> None:
    # curve: (0.4, 0.8), (0.6, 0.9), (1.0, 0.5); the recipe at ID 0.8 has OOD 0.76, the curve 0.7
    # there
    correct = {
        "test": bits([0.4, 0.6, 1.0, 0.8]),
        "a": bits([0.8, 0.9, 0.5, 0.7]),
        "b": bits([0.8, 0.9, 0.5, 0.82]),
    }
    pair = standing.resampled(record_of(correct, {"ours": 3}), resamples=20)
    assert pair.gain("ours")[0] == pytest.approx(0.06)
    assert pair.oracle == 1
    assert not pair.has("theirs")


def test_copies_of_a_drawing_do_not_narrow_the_interval() -> None:
    """Ten equal copies of each drawing are not more informative than one."""
    widths = []
    for copies in (1, 10):
        correct = {
            "test": bits([0.5, 0.5, 0.5], copies=copies),
            "odd": bits([0.5, 0.3, 0.2], copies=copies),
        }
        pair = standing.resampled(record_of(correct, {}), resamples=400)
        widths.append(np.quantile(pair.ood[1:, 0], [0.025, 0.975]))
    assert np.allclose(widths[0], widths[1])
    # as wide as a binomial's: 2 * 1.96 * sqrt(0.25 / 50) = 0.277
    assert widths[0][1] - widths[0][0] == pytest.approx(0.277, rel=0.2)


def test_the_interval_over_pairs_covers_their_spread() -> None:
    rng = random.Random(0)
    pairs = [np.full(401, rng.gauss(0, 1)) for _ in range(40)]
    found = standing.over_pairs(pairs)
    means = [pair[0] for pair in pairs]
    assert found.value == pytest.approx(sum(means) / 40)
    assert found.interval is not None
    error = np.std(means, ddof=1) / 40**0.5
    assert found.interval[1] - found.interval[0] == pytest.approx(2 * 1.96 * error, rel=0.25)


@pytest.mark.draws
def test_the_page_is_made_from_the_files_alone(
    evaluated: tuple[TrainedPair, Path], tmp_path: Path
) -> None:
    record = json.loads(evaluated[1].read_text())
    (tmp_path / "results" / "emoji_shift").mkdir(parents=True)
    for seed in (1, 2):
        text = json.dumps({**record, "seed": seed})
        (tmp_path / "results" / "emoji_shift" / f"aggressive-{seed}.json").write_text(text)
    (tmp_path / "docs").mkdir()
    written = report.write_page(tmp_path / "results", tmp_path / "docs")
    page = (tmp_path / "docs" / "results.md").read_text()
    assert [file.relative_to(tmp_path).as_posix() for file in written] == [
        "docs/results.md",
        "docs/results/emoji_shift-aggressive.png",
    ]
    ends = [record["curve"][0][axis] for axis in ("id", "ood")]
    assert f"| zero-shot | {100 * ends[0]:.1f} / {100 * ends[1]:.1f} |" in page
    row = record["recipes"][2]
    found = standing.over_pairs([standing.resampled(record).gain(row["name"])] * 2)
    assert (
        f"| `{row['name']}` | {100 * row['id']:.1f} / {100 * row['ood']:.1f} | {found.told} |"
        in page
    )
    with Image.open(written[1]) as picture:
        assert picture.width > 500


@pytest.mark.slow
@pytest.mark.uncounted
def test_the_shipped_page_is_what_the_shipped_files_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_pictures", lambda *_: [])
    (tmp_path / "docs").mkdir()
    report.write_page(docs=tmp_path / "docs")
    assert (tmp_path / "docs" / "results.md").read_text() == (
        report.DOCS / "results.md"
    ).read_text()


@pytest.mark.slow
@pytest.mark.uncounted
def test_readmes_table_is_what_the_shipped_files_make(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    shipped = (Path(__file__).parents[2] / "README.md").read_text()
    changed = re.sub(r"(?m)^\| .* \(\d\) \|.*$", "| a row |", shipped)
    assert changed.count("| a row |") > 2
    readme.write_text(changed)
    (tmp_path / "results").mkdir()
    assert report.write_readme(readme=readme, docs=tmp_path)[0] == readme
    assert readme.read_text() == shipped


def test_no_row_of_the_readme_is_of_a_tuning_pair() -> None:
    rows = report._read_rows(report.RESULTS, report._README_ROWS | report._FURTHER_ROWS)
    assert len(rows) > 6
    assert [
        pair.record["made_of"] for row in rows.values() for pair in row if pair.record["tuning"]
    ] == []


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


@pytest.mark.nightly
@pytest.mark.uncounted
def test_claims_are_examined_once_and_written_out(
    evaluated: tuple[TrainedPair, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "DRAWS", 4)
    monkeypatch.setattr(claims, "_CALIBRATION_SEEDS", (0, 1))
    monkeypatch.setattr(claims, "_PLANTED", 1)
    monkeypatch.setattr(claims, "_RANDOM_CHOICES", 2)
    monkeypatch.setattr(claims, "find_stragglers", partial(find_stragglers, bootstraps=20))
    monkeypatch.setattr(claims, "ALPHAS", (0.0, 0.4, 0.5, 1.0))
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
    page = claims_page.claims_section(
        found, [standing.resampled({**record, "seed": seed}) for seed in (1, 2)]
    )
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
