"""`python -m benchmarks.public` against repositories and files of the public layouts, and its jobs,
which submitit runs here."""

import json
import math
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.public import release, run
from benchmarks.public.__main__ import main
from benchmarks.public.page import page_of
from benchmarks.public.run import compared, executor_for, run_in_jobs
from benchmarks.public.suite import load_suite
from clipmerge.errors import MeasureError, UsageError
from tests.support.hub_double import FakeHub
from tests.support.public_pairs import (
    BASE,
    Releases,
    save_soups,
    serving_files,
    upload_fusionbench,
    upload_imagenets,
)
from tests.support.tiny_clip import Folders, save_images

QUICK = ("--limit", "64", "--recipe", "lines", "--alphas", "0,0.5,1")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache and a working folder of each test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Releases]:
    with serving_files(tmp_path / "releases") as server:
        monkeypatch.setenv(release.MIRROR, server.url)
        yield server


def test_suites_are_listed_and_an_unknown_one_is_refused(capsys: Any) -> None:
    assert main(["list"]) == 0
    assert "corrupted-cars" in capsys.readouterr().out
    assert main(["corrupted-car"]) == 1
    assert "Did you mean 'corrupted-cars'" in capsys.readouterr().err


@pytest.mark.nightly
def test_a_pair_in_either_order_has_the_same_ends_and_is_evaluated_once(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    far = save_images(tmp_path / "far", each=3, seed=8)
    sources = {"id": {"test": str(images)}, "ood": {"far": str(far)}}
    pairs = [
        {"name": name, "zeroshot": str(zeroshot), "finetuned": str(finetuned), **sources}
        for name, (zeroshot, finetuned) in {"forth": pair, "back": pair[::-1]}.items()
    ]
    suite = tmp_path / "mine.yaml"
    suite.write_text(
        json.dumps({"title": "t", "model": "m", "gflops": 1, "alphas": [0, 1], "pairs": pairs})
    )
    command = [str(suite), "--output", "out", "--device", "cpu"]
    assert main(command) == 0
    files = [tmp_path / "out" / f"{name}.json" for name in ("forth", "back")]
    forth, back = (
        [row["accuracy"] for row in json.loads(file.read_text())["sweep"]["curve"]]
        for file in files
    )
    assert forth == back[::-1]
    times = [file.stat().st_mtime_ns for file in files]
    assert main(command) == 0
    assert [file.stat().st_mtime_ns for file in files] == times
    files[0].unlink()
    assert main([*command, "--jobs", "local"]) == 0
    again = [row["accuracy"] for row in json.loads(files[0].read_text())["sweep"]["curve"]]
    assert again == forth
    assert files[1].stat().st_mtime_ns == times[1]
    assert main([*command, "--seed", "1"]) == 0
    assert files[1].stat().st_mtime_ns > times[1]


@pytest.mark.slow
@pytest.mark.draws
def test_a_suite_of_the_hub_has_its_published_figures_beside_ours(
    hub: FakeHub, tmp_path: Path, capsys: Any
) -> None:
    upload_fusionbench(hub, tmp_path)
    assert main(["corrupted-eurosat", "--limit", "64", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert BASE in told
    assert "6,656 forward passes" in told
    assert not hub.requests("GET", r"/resolve/.*\.(bin|safetensors|parquet)")
    assert main(["corrupted-eurosat", *QUICK, "--output", "out"]) == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "corrupted-eurosat.json",
        "corrupted-eurosat.md",
        "corrupted-eurosat.png",
    }
    pair = json.loads((tmp_path / "out" / "corrupted-eurosat.json").read_text())
    right = round(0.46 * 64) / 64
    assert pair["sweep"]["curve"][0]["accuracy"] == dict.fromkeys(pair["data"], right)
    assert pair["checks"][0]["found"] == 100 * right
    assert pair["checks"][0]["passed"]
    assert len(pair["data"]) == 8
    page = (tmp_path / "out" / "corrupted-eurosat.md").read_text()
    assert f"| alpha 0 (zero-shot) | {100 * right:.1f} (46.0) |" in page
    assert "Not a reproduction" in page


@pytest.mark.nightly
def test_a_wrong_zero_shot_figure_stops_it(hub: FakeHub, tmp_path: Path, capsys: Any) -> None:
    upload_fusionbench(hub, tmp_path, accuracy=0.1)
    assert main(["corrupted-eurosat", *QUICK]) == 1
    line = capsys.readouterr().err
    assert "test (fusionbench-eurosat:test) is 9.4%; published is 46%" in line
    assert "Nothing was swept" in line
    assert not (tmp_path / "bench-corrupted-eurosat").exists()
    assert main(["corrupted-eurosat", *QUICK, "--no-check"]) == 0
    page = (tmp_path / "bench-corrupted-eurosat" / "corrupted-eurosat.md").read_text()
    assert "not as published" in page


@pytest.mark.nightly
def test_imagenet_with_heads_downloads_nothing_twice(
    hub: FakeHub, releases: Releases, tmp_path: Path, capsys: Any
) -> None:
    upload_imagenets(hub, tmp_path, save_soups(tmp_path / "releases"))
    releases.cut_after = 100_000
    command = ["imagenet-b32", *QUICK, "--output", "out"]
    assert main(command) == 1
    assert "The part received is kept" in capsys.readouterr().err
    assert main(command) == 0
    assert releases.asked[1][1] == "bytes=100000-"
    pair = json.loads((tmp_path / "out" / "imagenet-b32.json").read_text())
    right = round(0.7557 * 64) / 64
    assert pair["sweep"]["curve"][0]["accuracy"] == dict.fromkeys(pair["data"], right)
    assert pair["zeroshot"]["source"].endswith("v0.0.2/model_0.pt")
    page = (tmp_path / "out" / "imagenet-b32.md").read_text()
    assert f"{100 * right:.1f} (75.6)" in page
    assert "| greedy soup of 72 |" in page
    assert page.count("(none is published)") == 2
    shards = {
        path.split("/", 6)[-1]
        for _, path, _ in hub.requests("GET", r"wds_imagenetv2/resolve/.*\.tar")
    }
    assert shards == {"test/0.tar", "test/1.tar"}


@pytest.mark.parametrize(
    ("limit", "error"), [(None, 0.0), (400, 300 * math.sqrt(0.46 * 0.54 / 400))]
)
def test_only_a_sample_may_be_off_by_its_sampling_error(limit: int | None, error: float) -> None:
    suite = load_suite("corrupted-eurosat")
    allowed = suite.tolerance + error
    (pair,) = suite.pairs
    for off, passed in ((allowed - 0.01, True), (allowed + 0.01, False)):
        accuracy = dict.fromkeys(pair.sources, 0.46 + off / 100)
        (outcome,) = compared(suite, pair, limit, accuracy)
        assert outcome["passed"] is passed


@pytest.mark.slow
def test_a_job_that_fails_is_named_with_its_output_and_the_others_finish(tmp_path: Path) -> None:
    works = {"good": partial((tmp_path / "done").write_text, "x"), "bad": partial(int, "x")}
    with pytest.raises(
        MeasureError, match=r"1 of 2 jobs failed; first bad: .*\(.*_log\.err\)\. The same command"
    ):
        run_in_jobs("local", works, lambda _: None)
    assert (tmp_path / "done").read_text() == "x"


def test_unknown_places_and_parameters_of_jobs_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"--jobs: 'cloud' is not a place for jobs \(places: local, slurm\)"
    ):
        executor_for("cloud")
    with pytest.raises(UsageError, match=r"--jobs: .*; for example slurm:"):
        executor_for("local:timeout_min")


def test_an_interruption_cancels_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_text: str) -> None:
        raise KeyboardInterrupt

    executor = executor_for("local")
    monkeypatch.setattr(run, "executor_for", lambda _: executor)
    job = executor.submit(time.sleep, 600)
    monkeypatch.setattr(executor, "submit", lambda _work: job)
    monkeypatch.setattr(job, "exception", lambda: interrupted(""))
    with pytest.raises(KeyboardInterrupt):
        run_in_jobs("local", {"long": partial(time.sleep, 600)}, lambda _: None)
    job.wait()
    assert job.done()


def point(alpha: float | None, near: float, far: float, **more: Any) -> dict[str, Any]:
    accuracy = {"near": near, "far": far}
    return {"alpha": alpha, "accuracy": accuracy, "id": near, "ood": far, "gain": 0.0, **more}


def record(**changes: Any) -> dict[str, Any]:
    sweep = {
        "id": ["near"],
        "ood": ["far"],
        "curve": [point(0.0, 0.75, 0.5), point(1.0, 0.8, 0.4)],
        "recipes": [point(None, 0.8, 0.6, name="auto")],
        "seconds": {"plan": 1.0, "evaluate": 2.0},
        "warnings": [{"kind": "note", "values": {"text": "a | b"}, "text": "a | b"}],
        "headline": "auto gains: +1.2 points [+0.5, +1.9].",
    }
    published = [
        {"point": "zero-shot", "alpha": 0.0, "source": "paper", "accuracy": {"near": 75.5}},
        {"point": "soup", "alpha": None, "source": "paper", "accuracy": {"far": 61.0}},
    ]
    check = {"source": "near", "found": 75.0, "published": 75.5, "allowed": 1.0, "passed": True}
    checkpoint = {
        "source": "acme/clip",
        "revision": "abc",
        "files": {"model.pt": "12"},
        "verified": False,
    }
    pair = {
        "name": "",
        "zeroshot": checkpoint,
        "finetuned": checkpoint | {"verified": None},
        "data": {
            name: {"source": f"hf://{name}", "revision": "r", "images": 64}
            for name in ("near", "far")
        },
        "checks": [check],
        "published": published,
        "sweep": sweep,
    }
    facts = {
        "clipmerge": "1",
        "torch": "2",
        "device": "CPU",
        "suite": "s",
        "title": "t",
        "model": "m",
        "limit": None,
    }
    return {
        **facts,
        "seed": 0,
        "command": "python -m benchmarks.public s",
        "notes": ["a note"],
        "pairs": [pair],
        **changes,
    }


def rows(page: str) -> dict[str, list[str]]:
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in page.splitlines()
        if line[:1] == "|"
    ]
    return {row[0].strip("| "): [cell.strip("| ") for cell in row[1:]] for row in cells}


def test_published_figures_stand_beside_ours() -> None:
    page = page_of(record())
    table = rows(page)
    assert table["model"] == ["near", "far", "gain"]  # the mean of one source is that source
    assert table["alpha 0 (zero-shot)"] == ["75.0 (75.5)", "50.0", "+0.0"]
    assert table["auto"][:2] == ["80.0", "60.0"]
    assert table["soup"][1] == "\N{EN DASH} (61.0)"
    assert "**as published**" in page
    assert "12 (none is published)" in page
    assert "Not a reproduction" not in page
    assert "a \\| b" in page
    assert page.index("**auto gains: +1.2 points [+0.5, +1.9].**") < page.index("| model |")
    sampled = (
        "**Not a reproduction:** 64 images per source were sampled (seed 0), so one image counts"
        " for 1.6 points"
    )
    assert sampled in page_of(record(limit=64))
