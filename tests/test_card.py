"""`auto` from end to end on a pretended card, by torch's own rules for devices; the CPU is the
reference."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.utils import backend_registration

from tests.support.command import ROOT, coverage_environment, done, python
from tests.support.tiny_clip import Folders


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch takes no device in Python",
)
def test_auto_learns_chooses_and_judges_on_a_card(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    words = ("merge", *pair, "--data", images, "--images", 24, "--batch-size", 4, "--json")
    words += ("--set", "measure.steps=3", "--set", "measure.precision=float32")
    words += ("--allow", "at-chance", "-o")
    here = done(*words, tmp_path / "here", "--device", "cpu").json
    card = ("-m", "tests.support.pretended_card", *words, tmp_path / "there")
    ended = python(*card, cwd=ROOT, env=coverage_environment())
    assert ended.returncode == 0, ended.stderr
    there = json.loads(ended.stdout)
    assert there["verdict"]["target"]["models"] == here["verdict"]["target"]["models"]
    written, expected = (
        load_file(tmp_path / name / "model.safetensors") for name in ("there", "here")
    )
    for name, value in expected.items():
        assert float((written[name] - value).abs().mean()) < 1e-4, name
