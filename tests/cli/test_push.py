"""Publishing by the real command line, in subprocesses, against the Hub double."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hub_double import FakeHub, environment, serving

LOAD = """
import sys
from transformers import CLIPModel, CLIPProcessor
model, info = CLIPModel.from_pretrained(sys.argv[1], revision=sys.argv[2], output_loading_info=True)
assert not any(info.values()), info
CLIPProcessor.from_pretrained(sys.argv[1], revision=sys.argv[2])
"""


def run(arguments: list[str], hub: FakeHub, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **environment(hub, folder), **more}
    return subprocess.run(
        [sys.executable, *arguments], env=variables, cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_merge_push_and_merge_again_from_the_pushed_id(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = ["-m", "clipmerge", "merge", str(pair[0])]
    with serving(tmp_path, monkeypatch) as hub:
        first = run(
            [*merge, str(pair[1]), "-r", "wise-ft", "-o", "out", "--push", "acme/robust", "--format", "json"],
            hub,
            tmp_path,
        )
        assert first.returncode == 0, first.stderr
        published = json.loads(first.stdout)["published"]
        commits = [entry for entry in hub.log if entry[0] == "POST" and "/commit/" in entry[1]]
        assert len(commits) == 1
        sha = published["commit"]
        again = run(["-m", "clipmerge", "push", "out", "acme/robust"], hub, tmp_path)
        assert again.returncode == 0, again.stderr
        assert "no commit was made" in again.stdout
        second = run(
            [
                *merge,
                f"acme/robust@{sha}",
                "-r",
                "wise-ft",
                "--set",
                "method.alpha=1",
                "-o",
                "out2",
                "--format",
                "json",
            ],
            hub,
            tmp_path,
        )
        assert second.returncode == 0, second.stderr
        assert json.loads(second.stdout)["finetuned"][0]["revision"] == sha
        card = hub.content("acme/robust", "README.md").decode()
        snippet = re.search(r"```python\n(.*?)```", card, re.S)
        assert snippet is not None
        assert '"acme/robust"' in snippet[1]
        loaded = run(["-c", LOAD + snippet[1], "acme/robust", sha], hub, tmp_path)
        assert loaded.returncode == 0, loaded.stderr
        assert "a photo of a cat" in loaded.stdout
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "out2")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_push_that_cannot_work_is_refused_before_anything_is_merged(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = ["-m", "clipmerge", "merge", *map(str, pair), "-r", "wise-ft"]
    with serving(tmp_path, monkeypatch) as hub:
        ended = run([*merge, "-o", "out", "--push", "acme/robust"], hub, tmp_path, HF_TOKEN="")
        assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
        assert "no token" in ended.stderr
        dry = run([*merge, "--dry-run", "--push", "acme/robust"], hub, tmp_path)
        assert (dry.returncode, dry.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "out").exists()
