"""`clipmerge bench` end to end by the real command line, against repositories and files of the public layouts."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipmerge.api.bench import _Check, _write
from clipmerge.evaluation.suites import release
from clipmerge.evaluation.suites.suite import load_suite, suite_names
from clipmerge.output.schemas import BenchRecord
from tests.support.command import clipmerge, refused, start
from tests.support.hub_double import FakeHub, environment, serving
from tests.support.public_pairs import BASE, Releases, save_soups, serving_files, upload_fusionbench, upload_imagenets

QUICK = ("--recipe", "lines", "--alphas", "0,0.5,1")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with serving(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Releases]:
    with serving_files(tmp_path / "releases") as server:
        monkeypatch.setenv(release.MIRROR, server.url)
        yield server


def test_bench_list_names_every_suite() -> None:
    listed = clipmerge("bench", "list")
    assert [line.split()[0] for line in listed.out.splitlines()] == list(suite_names())
    as_json = clipmerge("bench", "list", "--format", "json").json
    assert as_json["suites"]["imagenet-l14"]["model"] == "ViT-L-14"


def test_unknown_suites_and_outputs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "Did you mean 'corrupted-cars'" in refused(clipmerge("bench", "corrupted-car"), 2)
    (tmp_path / "bench-corrupted-cars").mkdir()
    assert "already exists" in refused(clipmerge("bench", "corrupted-cars"))
    line = refused(clipmerge("bench", "corrupted-cars", "--overwrite"))
    assert "bench.json" in line


@pytest.mark.slow
def test_corrupted_eurosat(hub: FakeHub, tmp_path: Path, answers: list[int]) -> None:
    upload_fusionbench(hub, tmp_path)
    told = clipmerge("bench", "corrupted-eurosat", "--limit", "64", "--dry-run")
    assert told.code == 0, told.err
    assert BASE in told.out
    assert "6,656 forward passes" in told.out
    assert not hub.requests("GET", r"/resolve/.*\.(bin|safetensors|parquet)")
    ended = clipmerge("bench", "corrupted-eurosat", "--limit", "64", *QUICK)
    assert ended.code == 0, ended.err
    folder = tmp_path / "bench-corrupted-eurosat"
    assert {file.name for file in folder.iterdir()} == {"bench.json", "corrupted-eurosat.md", "corrupted-eurosat.png"}
    record = json.loads((folder / "bench.json").read_text())
    assert BenchRecord.model_validate(record).suite == "corrupted-eurosat"
    (pair,) = record["pairs"]
    right = round(0.46 * 64) / 64
    assert pair["sweep"]["curve"][0]["accuracy"] == dict.fromkeys(pair["data"], right)
    assert pair["checks"][0]["found"] == 100 * right
    assert pair["checks"][0]["passed"]
    assert len(pair["data"]) == 8
    page = (folder / "corrupted-eurosat.md").read_text()
    assert f"| alpha 0 (zero-shot) | {100 * right:.1f} (46.0) |" in page
    assert "Not a reproduction" in page
    answers.clear()
    assert clipmerge("bench", "corrupted-eurosat", "--limit", "64", *QUICK, "--overwrite").code == 0
    assert answers == [], "everything is known"


@pytest.mark.slow
def test_a_wrong_zero_shot_figure_stops_it(hub: FakeHub, tmp_path: Path, answers: list[int]) -> None:
    upload_fusionbench(hub, tmp_path, accuracy=0.1)
    line = refused(clipmerge("bench", "corrupted-eurosat", "--limit", "64", *QUICK))
    assert "zero-shot accuracy on test (fusionbench-eurosat:test) is 9.4%; published is 46%" in line
    assert "Nothing was swept" in line
    assert set(answers) == {0}
    assert not (tmp_path / "bench-corrupted-eurosat").exists()
    ended = clipmerge("bench", "corrupted-eurosat", "--limit", "64", *QUICK, "--no-check")
    assert ended.code == 0, ended.err
    assert "continuing because of --no-check" in ended.err
    assert "not as published" in (tmp_path / "bench-corrupted-eurosat" / "corrupted-eurosat.md").read_text()


def kill_while_sweeping(hub: FakeHub, folder: Path, *command: object) -> None:
    """Start a bench, and kill it when it sweeps."""
    process = start(*command, env=environment(hub, folder))
    # the check's answers are eight batches of one source; more are answers of the sweep
    while len(list((folder / "cache").rglob("bench/*/*/*.safetensors"))) <= 8 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert "Traceback" not in process.communicate()[1]
    assert process.returncode < 0, "it was still at work"


@pytest.mark.slow
def test_killed_half_way_it_resumes(hub: FakeHub, tmp_path: Path, answers: list[int]) -> None:
    upload_fusionbench(hub, tmp_path)
    command = ("bench", "corrupted-eurosat", "--limit", "64", *QUICK, "--output", tmp_path / "out")
    kill_while_sweeping(hub, tmp_path, *command)
    assert not (tmp_path / "out").exists()
    ended = clipmerge(*command)
    assert ended.code == 0, ended.err
    batches = 8 * 8
    assert 0 < len(answers) < 4 * batches - 8
    record = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert record["pairs"][0]["sweep"]["curve"][0]["accuracy"]["spatter"] == round(0.46 * 64) / 64


@pytest.mark.slow
def test_imagenet_with_heads(hub: FakeHub, releases: Releases, tmp_path: Path) -> None:
    upload_imagenets(hub, tmp_path, save_soups(tmp_path / "releases"))
    releases.cut_after = 100_000
    assert "The part received is kept" in refused(clipmerge("bench", "imagenet-b32", "--limit", "64", *QUICK))
    ended = clipmerge("bench", "imagenet-b32", "--limit", "64", *QUICK)
    assert ended.code == 0, ended.err
    assert releases.asked[1][1] == "bytes=100000-"
    record = json.loads((tmp_path / "bench-imagenet-b32" / "bench.json").read_text())
    assert BenchRecord.model_validate(record).pairs
    (pair,) = record["pairs"]
    right = round(0.7557 * 64) / 64
    assert pair["sweep"]["curve"][0]["accuracy"] == dict.fromkeys(pair["data"], right)
    assert pair["zeroshot"]["source"].endswith("v0.0.2/model_0.pt")
    page = (tmp_path / "bench-imagenet-b32" / "imagenet-b32.md").read_text()
    assert f"{100 * right:.1f} (75.6)" in page
    assert "| greedy soup of 72 |" in page
    assert page.count("(none is published)") == 2
    shards = {path.split("/", 6)[-1] for _, path, _ in hub.requests("GET", r"wds_imagenetv2/resolve/.*\.tar")}
    assert shards == {"test/0.tar", "test/1.tar"}


@pytest.mark.slow
def test_imagenet_with_heads_resumes_and_downloads_nothing_twice(
    hub: FakeHub, releases: Releases, tmp_path: Path, answers: list[int]
) -> None:
    upload_imagenets(hub, tmp_path, save_soups(tmp_path / "releases"))
    command = ("bench", "imagenet-b32", "--limit", "64", *QUICK, "--output", tmp_path / "out")
    kill_while_sweeping(hub, tmp_path, *command)
    assert not (tmp_path / "out").exists()
    assert len(releases.asked) == 2
    fetched = len(hub.requests("GET", r"/resolve/.*\.tar"))
    ended = clipmerge(*command)
    assert ended.code == 0, ended.err
    assert len(releases.asked) == 2
    assert len(hub.requests("GET", r"/resolve/.*\.tar")) == fetched
    batches = 6 * 8
    assert 0 < len(answers) < 4 * batches - 8
    record = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert record["pairs"][0]["sweep"]["curve"][0]["accuracy"]["imagenet-a"] == round(0.7557 * 64) / 64


@pytest.mark.slow
def test_a_wrong_zero_shot_figure_stops_imagenet(
    hub: FakeHub, releases: Releases, tmp_path: Path, answers: list[int]
) -> None:
    upload_imagenets(hub, tmp_path, save_soups(tmp_path / "releases"), accuracy=0.5)
    line = refused(clipmerge("bench", "imagenet-b32", "--limit", "64", *QUICK))
    assert "is 50.0%; published is 75.57%" in line
    assert "Nothing was swept" in line
    assert set(answers) == {0}
    assert not (tmp_path / "bench-imagenet-b32").exists()


@pytest.mark.parametrize(("limit", "error"), [(None, 0.0), (400, 300 * math.sqrt(0.46 * 0.54 / 400))])
def test_only_a_sample_may_be_off_by_its_sampling_error(limit: int | None, error: float) -> None:
    suite = load_suite("corrupted-eurosat")
    allowed = suite.tolerance + error
    (pair,) = suite.pairs
    said: list[str] = []
    check = _Check(suite, pair, limit, stops=False, say=said.append)
    check(dict.fromkeys(pair.sources, 0.46 + (allowed - 0.01) / 100))
    assert said == []
    check(dict.fromkeys(pair.sources, 0.46 + (allowed + 0.01) / 100))
    assert f"published is 46%, and they may differ by {allowed:.1f} points" in said[0]
    assert [each["passed"] for each in check.outcomes] == [True, False]


def test_only_the_main_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    _write({"suite": "mine", "pairs": []}, tmp_path / "out", overwrite=False)
    assert list(tmp_path.iterdir()) == []
