"""One small pair, judged as the commands do it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import clipmerge
from benchmarks.__main__ import main
from benchmarks.equal_labels import split
from benchmarks.make_pairs.pair import Pair
from benchmarks.make_pairs.pictures import Source
from benchmarks.page import PAGES, table, write_pages
from benchmarks.pair_results import CURVE, every_result
from benchmarks.tables import TABLES
from clipmerge.report.wording import WITHOUT_IMAGES

pytestmark = pytest.mark.slow


def test_curve_is_that_of_sweep(pair: Pair, judged: Path, tmp_path: Path) -> None:
    """The judge loads models by their own library; `sweep` has code of its own."""
    (results,) = every_result(judged)
    correct = results.correct(CURVE)
    swept = clipmerge.sweep(
        str(pair.zeroshot),
        str(pair.finetuned),
        id={"test": str(pair.file("test"))},
        ood={name: str(pair.file(f"ood-{name}")) for name in pair.ood},
        template=[pair.template],
        alphas=[0, 0.5, 1],
        device="cpu",
    )
    for row in swept.record["curve"]:
        at = results.methods[CURVE]["alphas"].index(row["alpha"])
        assert correct["test"][at].mean() == pytest.approx(row["accuracy"]["test"], abs=1e-9)
        for name in pair.ood:
            assert correct[name][at].mean() == pytest.approx(row["accuracy"][name], abs=1e-9)


def test_every_method_is_in_every_table(judged: Path) -> None:
    every = every_result(judged)
    learned = {"anew", "continued", "anew-l2-sp", "anew-ema"}
    kept = {"ensemble", "dawin", "vrf"}
    assert set(every[0].methods) == {CURVE, "lines", *learned, *kept}
    for name in TABLES:
        assert table(name, every)
    told = table("leaderboard", every)
    assert "| lines (1) |" in told
    assert "| a test |" in told
    # more pictures of the target help on the target
    anew, start = (every[0].correct(method)["test"] for method in ("anew", CURVE))
    assert anew[-1].mean() > start[0].mean()


def test_pages_are_those_of_the_results(tmp_path: Path) -> None:
    for page in PAGES:
        copy = tmp_path / page.name
        copy.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
        assert write_pages([copy]) == [], f"{page}: run `python -m benchmarks page`"


def test_record_of_plain_interpolation() -> None:
    changes = []
    for results in every_result():
        if results.tasks:  # real pictures
            middle, finetuned = results.correct(CURVE)["test"][[5, 10]].mean(axis=1)
            changes.append(100 * (middle - finetuned))
    assert f"On {len(changes)} pairs" in WITHOUT_IMAGES
    low, high, mean = min(changes), max(changes), np.mean(changes)
    assert f"by {low:+.1f} to {high:+.1f} points, and by {mean:+.1f} on average" in WITHOUT_IMAGES


def test_unknown_pair_and_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "lines", "aggresive-digits-0"]) == 1
    assert "Did you mean 'aggressive-digits-0'?" in capsys.readouterr().err
    assert main(["pairs"]) == 0
    assert "mild-photo-0" in capsys.readouterr().out


def test_near_copies_stay_on_one_side() -> None:
    things = np.array([at // 3 for at in range(60)])
    val = Source([], torch.arange(60), things, ("a",))
    val = Source(list(range(60)), val.labels, things, val.classes)  # type: ignore[arg-type]
    learn, choose = split(val)
    assert not {*learn.things.tolist()} & {*choose.things.tolist()}
    assert sorted([*learn.labels.tolist(), *choose.labels.tolist()]) == list(range(60))
    assert len(choose.labels) == 12
