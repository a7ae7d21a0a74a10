"""Merges that hash no weights: the same weights, and records that say that hashes are unknown."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipmerge.checkpoint import source
from clipmerge.files import writer as output_file
from tests.support.command import clipmerge, refused
from tests.support.hub_double import serving

Inputs = tuple[Path, Path]
WEIGHTS = "model.safetensors"


def done(*arguments: object) -> Any:
    ended = clipmerge(*arguments, "--format", "json")
    assert ended.code == 0, ended.err
    return ended.json


@pytest.fixture
def unhashed(pair: Inputs, tmp_path: Path) -> tuple[Path, Any]:
    """Output folder and record of a merge that hashed no weights."""
    out = tmp_path / "unhashed"
    return out, done("merge", *pair, "-r", "wise-ft", "-o", out, "--no-hash")


def test_no_weights_are_hashed_and_they_are_the_same(
    pair: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    hashed = done("merge", *pair, "-r", "wise-ft", "-o", tmp_path / "hashed")
    with monkeypatch.context() as patched:
        patched.delattr(source, "remembered_sha256")
        planned = done("merge", *pair, "-r", "wise-ft", "--no-hash", "--dry-run")
        record = done("merge", *pair, "-r", "wise-ft", "-o", out, "--no-hash")
    assert (out / WEIGHTS).read_bytes() == (tmp_path / "hashed" / WEIGHTS).read_bytes()
    for each in (planned, record):
        assert each["zeroshot"]["files"] == each["finetuned"][0]["files"] == {WEIGHTS: None}
    assert record["files"] == hashed["files"] | {WEIGHTS: None}
    assert json.loads((out / "clipmerge.json").read_text()) == record
    assert (out / "README.md").read_text().count(f"{WEIGHTS} not hashed") == 2
    assert f"| {WEIGHTS} | not hashed |" in (out / "README.md").read_text()
    assert (out / "report.html").read_text().count("not hashed") == 3


@pytest.mark.parametrize("size", [0, 1, 40 << 20])
def test_an_unhashed_file_is_whole(tmp_path: Path, size: int) -> None:
    data = np.arange(size, dtype=np.uint8)
    with output_file.output_file(tmp_path / "file", size, hashed=False) as file:
        file.append(data)
        assert file.finish() is None
    assert (tmp_path / "file").read_bytes() == data.tobytes()


def test_a_plan_without_hashes_takes_its_inputs_as_they_are(pair: Inputs, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    hashed = done("plan", *pair, "-r", "wise-ft", "-o", plan)
    content = json.loads(plan.read_text())
    for record in (content["zeroshot"], *content["finetuned"]):
        record["files"] = {WEIGHTS: None}
    plan.write_text(json.dumps(content))
    ended = clipmerge("apply", plan, "-o", tmp_path / "out", "--format", "json")
    assert ended.code == 0, ended.err
    assert f"{plan} has no sha256 of {pair[0]} (made with --no-hash): used unchecked" in ended.err
    assert ended.json["zeroshot"] == hashed["zeroshot"]
    content["zeroshot"]["files"] = {"other.safetensors": None}
    plan.write_text(json.dumps(content))
    assert "is not the checkpoint that the plan was made for" in refused(
        clipmerge("apply", plan, "-o", tmp_path / "out2")
    )


def test_unhashed_weights_are_published_but_no_evaluation_of_them(
    unhashed: tuple[Path, Any], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = unhashed
    told = tmp_path / "e.json"
    told.write_text(json.dumps(done("evaluate", out, "--data", f"val={images}")))
    with serving(tmp_path, monkeypatch) as hub:
        line = refused(clipmerge("push", out, "alice/robust", "--evaluation", told), code=2)
        assert "merged with --no-hash; merge again without" in line
        assert not hub.log or all(entry[0] != "POST" for entry in hub.log)
        done("push", out, "alice/robust")
        held = hub.content("alice/robust", WEIGHTS)
    assert hashlib.sha256(held).digest() == hashlib.sha256((out / WEIGHTS).read_bytes()).digest()
