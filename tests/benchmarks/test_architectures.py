"""Planning random weights of an architecture, as `benchmarks.architectures` does at real sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import CLIPModel

from benchmarks import architectures
from tests.support.tiny_clip import tiny_config, tiny_processor


@pytest.mark.slow
def test_a_run_tells_how_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_processor().tokenizer
    tiny = {"tiny": lambda: (CLIPModel(tiny_config()), tokenizer)}
    monkeypatch.setattr(architectures, "TRANSFORMERS", tiny)
    architectures.plan_one("transformers:tiny", tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result.keys() == {"parameters", "layers", "judged", "processor_seconds"}
    assert result["judged"]
    assert result["layers"] > 12


def test_the_page_lists_the_results() -> None:
    results = json.loads(architectures.RESULTS.read_text())
    page = architectures.PAGE.read_text()
    assert architectures.with_paragraph(page, results) == page
    results["transformers:new"] = {"ended": True}
    results["broken"] = {"ended": False}
    changed = " ".join(architectures.with_paragraph(page, results).split())
    assert "new" in changed
    assert "It did not end on broken." in changed


@pytest.mark.nightly
def test_a_model_of_real_size_is_planned(tmp_path: Path) -> None:
    """The smallest; docs/contributing names the command that tries the others."""
    architectures.plan_one("ViT-S-32-alt", tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["judged"]


@pytest.mark.nightly
def test_the_command_tries_in_processes_of_their_own(tmp_path: Path) -> None:
    name, report = "ViT-S-32-alt", tmp_path / "tried.json"
    command = [sys.executable, "-m", "benchmarks.architectures", name, "--json", str(report)]
    subprocess.run(command, check=True)
    assert json.loads(report.read_text())[name]["ended"]
