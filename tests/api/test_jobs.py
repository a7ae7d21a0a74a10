"""Work in jobs: real processes of submitit's local executor; Slurm's parameters are checked, not its queue."""

from __future__ import annotations

import json
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from clipmerge.api._jobs import executor_for, run_in_jobs
from clipmerge.errors import MeasureError, UsageError
from tests.support.command import clipmerge
from tests.support.hub_double import FakeHub, environment
from tests.support.public_pairs import upload_fusionbench


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_jobs_return_what_the_work_returns_in_order() -> None:
    said: list[str] = []
    works = {str(number): partial(pow, number, 2) for number in (3, 2)}
    assert run_in_jobs("local", works, said.append) == [9, 4]
    assert said[0].startswith("2 jobs were started")


def test_a_job_that_fails_is_named_with_its_output_and_the_others_finish(tmp_path: Path) -> None:
    works = {"good": partial((tmp_path / "done").write_text, "x"), "bad": partial(int, "x")}
    with pytest.raises(
        MeasureError, match=r"1 of 2 jobs failed; first bad: .*\(.*_log\.err\)\. The same command"
    ) as told:
        run_in_jobs("local", works, lambda _: None)
    assert "\n" not in str(told.value)
    assert (tmp_path / "done").read_text() == "x"


def test_a_job_that_is_killed_is_an_error() -> None:
    with pytest.raises(MeasureError, match="1 of 1 jobs failed; first one"):
        run_in_jobs("local", {"one": partial(signal.raise_signal, signal.SIGKILL)}, lambda _: None)


def test_an_interruption_cancels_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_text: str) -> None:
        raise KeyboardInterrupt

    executor = executor_for("local")
    monkeypatch.setattr("clipmerge.api._jobs.executor_for", lambda _: executor)
    job = executor.submit(time.sleep, 600)
    monkeypatch.setattr(executor, "submit", lambda _work: job)
    monkeypatch.setattr(job, "exception", lambda: interrupted(""))
    with pytest.raises(KeyboardInterrupt):
        run_in_jobs("local", {"long": partial(time.sleep, 600)}, lambda _: None)
    job.wait()
    assert job.done()


@pytest.mark.parametrize(
    ("jobs", "said"),
    [
        ("cloud", r"--jobs: 'cloud' is not a place for jobs \(places: local, slurm\)"),
        (
            "local:colour=red",
            "--jobs: Unknown executor .colour. in parameter|--jobs: Parameter .colour. need to be prefixed",
        ),
        ("local:timeout_min", "--jobs: .*; for example slurm:"),
        ("local:timeout_min=long", '--jobs: Parameter "timeout_min" expected type'),
    ],
)
def test_places_and_parameters_that_are_not_there(jobs: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        executor_for(jobs)


def test_without_submitit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=r"pip install 'clipmerge\[jobs\]'"):
        executor_for("local")


@pytest.mark.slow
def test_a_suite_in_jobs_is_the_suite_in_one_process(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_fusionbench(hub, tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, value in environment(hub, tmp_path).items():
        monkeypatch.setenv(name, value)
    command = ("bench", "corrupted-eurosat", "--limit", "64", "--recipe", "lines", "--alphas", "0,0.5,1")
    records = []
    for output, more in (("jobs", ("--jobs", "local")), ("alone", ())):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{output}"))
        ended = clipmerge(*command, *more, "--output", tmp_path / output)
        assert ended.code == 0, ended.err
        records.append(json.loads((tmp_path / output / "bench.json").read_text()))
    for record in records:
        record.pop("command")
        record["pairs"][0]["sweep"].pop("seconds")
        record["pairs"][0]["sweep"].pop("command")
    assert records[0] == records[1]
