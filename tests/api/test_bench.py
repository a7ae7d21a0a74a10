"""`clipmerge bench` against repositories and files of the public layouts, and its jobs, which
submitit runs here."""

import json
import math
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from clipmerge.api.bench import compared, executor_for, run_in_jobs
from clipmerge.errors import MeasureError, UsageError
from clipmerge.evaluation.suites import release
from clipmerge.evaluation.suites.suite import load_suite
from clipmerge.output.results import BenchRecord
from tests.support.command import clipmerge, done, refused, start
from tests.support.hub_double import FakeHub, environment
from tests.support.public_pairs import (
    BASE,
    Releases,
    save_soups,
    serving_files,
    upload_fusionbench,
    upload_imagenets,
)

QUICK = ("--recipe", "lines", "--alphas", "0,0.5,1")


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


def test_unknown_suites_and_outputs_are_refused(tmp_path: Path) -> None:
    assert "corrupted-cars" in done("bench", "list").out
    assert "Did you mean 'corrupted-cars'" in refused(clipmerge("bench", "corrupted-car"), 2)
    (tmp_path / "bench-corrupted-cars").mkdir()
    assert "already exists" in refused(clipmerge("bench", "corrupted-cars"))
    line = refused(clipmerge("bench", "corrupted-cars", "--overwrite"))
    assert "bench.json" in line


def kill_while_sweeping(hub: FakeHub, folder: Path, *command: object) -> None:
    """Start a bench, and kill it when it sweeps."""
    process = start(*command, env=environment(hub, folder))
    # the check's answers are eight batches of one source; more are answers of the sweep
    while (
        len(list((folder / "cache").rglob("bench/*/*/*.safetensors"))) <= 8
        and process.poll() is None
    ):
        time.sleep(0.01)
    process.kill()
    assert "Traceback" not in process.communicate()[1]
    assert process.returncode < 0, "it was still at work"
    assert not (folder / "out").exists()


def bench(*command: object) -> dict[str, Any]:
    """Run a bench to its end, and return its record."""
    done(*command)
    record: dict[str, Any] = json.loads((Path(str(command[-1])) / "bench.json").read_text())
    assert BenchRecord.model_validate(record).pairs
    return record


@pytest.mark.slow
def test_a_suite_resumes_and_is_the_same_in_jobs(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: Mock
) -> None:
    upload_fusionbench(hub, tmp_path)
    told = done("bench", "corrupted-eurosat", "--limit", "64", "--dry-run")
    assert BASE in told.out
    assert "6,656 forward passes" in told.out
    assert not hub.requests("GET", r"/resolve/.*\.(bin|safetensors|parquet)")
    command = ("bench", "corrupted-eurosat", "--limit", "64", *QUICK)
    out = ("--output", tmp_path / "out")
    kill_while_sweeping(hub, tmp_path, *command, *out)
    record = bench(*command, *out)
    assert 0 < answers.call_count < 4 * 8 * 8 - 8
    assert {file.name for file in out[1].iterdir()} == {
        "bench.json",
        "corrupted-eurosat.md",
        "corrupted-eurosat.png",
    }
    (pair,) = record["pairs"]
    right = round(0.46 * 64) / 64
    assert pair["sweep"]["curve"][0]["accuracy"] == dict.fromkeys(pair["data"], right)
    assert pair["checks"][0]["found"] == 100 * right
    assert pair["checks"][0]["passed"]
    assert len(pair["data"]) == 8
    page = (out[1] / "corrupted-eurosat.md").read_text()
    assert f"| alpha 0 (zero-shot) | {100 * right:.1f} (46.0) |" in page
    assert "Not a reproduction" in page
    answers.reset_mock()
    bench(*command, "--overwrite", *out)
    assert not answers.called, "everything is known"

    for name, value in environment(hub, tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-jobs"))
    in_jobs = bench(*command, "--jobs", "local", "--output", tmp_path / "jobs")
    for each in (record, in_jobs):
        for part in (each, each["pairs"][0]["sweep"]):
            part.pop("command")
        each["pairs"][0]["sweep"].pop("seconds")
    assert record == in_jobs


@pytest.mark.slow
def test_a_wrong_zero_shot_figure_stops_it(hub: FakeHub, tmp_path: Path, answers: Mock) -> None:
    upload_fusionbench(hub, tmp_path, accuracy=0.1)
    line = refused(clipmerge("bench", "corrupted-eurosat", "--limit", "64", *QUICK))
    assert "zero-shot accuracy on test (fusionbench-eurosat:test) is 9.4%; published is 46%" in line
    assert "Nothing was swept" in line
    assert {call.args[1] for call in answers.call_args_list} == {0}
    assert not (tmp_path / "bench-corrupted-eurosat").exists()
    ended = done("bench", "corrupted-eurosat", "--limit", "64", *QUICK, "--no-check")
    assert "continuing because of --no-check" in ended.err
    assert (
        "not as published"
        in (tmp_path / "bench-corrupted-eurosat" / "corrupted-eurosat.md").read_text()
    )


@pytest.mark.slow
def test_imagenet_with_heads_resumes_and_downloads_nothing_twice(
    hub: FakeHub, releases: Releases, tmp_path: Path, answers: Mock
) -> None:
    upload_imagenets(hub, tmp_path, save_soups(tmp_path / "releases"))
    releases.cut_after = 100_000
    command = ("bench", "imagenet-b32", "--limit", "64", *QUICK, "--output", tmp_path / "out")
    assert "The part received is kept" in refused(clipmerge(*command))
    kill_while_sweeping(hub, tmp_path, *command)
    assert releases.asked[1][1] == "bytes=100000-"
    received, fetched = len(releases.asked), len(hub.requests("GET", r"/resolve/.*\.tar"))
    answers.reset_mock()
    record = bench(*command)
    assert len(releases.asked) == received
    assert len(hub.requests("GET", r"/resolve/.*\.tar")) == fetched
    assert 0 < answers.call_count < 4 * 6 * 8 - 8
    (pair,) = record["pairs"]
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
    said: list[str] = []
    for off, passed in ((allowed - 0.01, True), (allowed + 0.01, False)):
        found = dict.fromkeys(pair.sources, 0.46 + off / 100)
        (outcome,) = compared(suite, pair, {"limit": limit, "check": False}, found, said.append)
        assert outcome["passed"] is passed
        assert bool(said) is not passed
    assert f"published is 46%, and they may differ by {allowed:.1f} points" in said[0]


def test_a_job_that_fails_is_named_with_its_output_and_the_others_finish(tmp_path: Path) -> None:
    works = {"good": partial((tmp_path / "done").write_text, "x"), "bad": partial(int, "x")}
    with pytest.raises(
        MeasureError, match=r"1 of 2 jobs failed; first bad: .*\(.*_log\.err\)\. The same command"
    ) as told:
        run_in_jobs("local", works, lambda _: None)
    assert "\n" not in str(told.value)
    assert (tmp_path / "done").read_text() == "x"


def test_places_and_parameters_that_are_not_there() -> None:
    with pytest.raises(
        UsageError, match=r"`jobs`: 'cloud' is not a place for jobs \(places: local, slurm\)"
    ):
        executor_for("cloud")
    with pytest.raises(UsageError, match=r"`jobs`: .*; for example slurm:"):
        executor_for("local:timeout_min")


def test_without_submitit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=r"pip install 'clipmerge\[jobs\]'"):
        executor_for("local")


def test_an_interruption_cancels_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_text: str) -> None:
        raise KeyboardInterrupt

    executor = executor_for("local")
    monkeypatch.setattr("clipmerge.api.bench.executor_for", lambda _: executor)
    job = executor.submit(time.sleep, 600)
    monkeypatch.setattr(executor, "submit", lambda _work: job)
    monkeypatch.setattr(job, "exception", lambda: interrupted(""))
    with pytest.raises(KeyboardInterrupt):
        run_in_jobs("local", {"long": partial(time.sleep, 600)}, lambda _: None)
    job.wait()
    assert job.done()
