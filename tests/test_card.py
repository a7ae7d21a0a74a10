"""`auto` from end to end on a pretended card, as torch's own rules for devices would have it; the
CPU is the reference."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.utils import backend_registration

from tests.support.command import ROOT, counted, done, python
from tests.support.tiny_clip import Folders

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
        reason="this torch takes no device in Python",
    ),
]


@pytest.mark.parametrize(("precision", "learns_in"), [("float32", "float32"), ("auto", "bfloat16")])
def test_auto_learns_chooses_and_judges_on_a_card(
    pair: Folders, images: Path, tmp_path: Path, precision: str, learns_in: str
) -> None:
    words = ("merge", *pair, "--data", images, "--images", 24, "--batch-size", 4, "--json")
    words += ("--set", "measure.steps=3", "--allow", "at-chance")
    here = done(
        *words, "--device", "cpu", "--set", "measure.precision=float32", "-o", tmp_path / "here"
    ).json
    products = tmp_path / "products.json"
    words += ("--set", f"measure.precision={precision}", "-o", tmp_path / "there")
    ended = python("-m", "tests.support.pretended_card", products, *words, cwd=ROOT, env=counted())
    assert ended.returncode == 0, ended.stderr
    there = json.loads(ended.stdout)
    multiplied = json.loads(products.read_text())
    assert learns_in in multiplied["learn"]
    assert multiplied["judge"] == ["float32"]
    models = [record["verdict"]["target"]["models"] for record in (here, there)]
    for name in ("zero-shot", "fine-tuned"):
        assert models[0][name] == models[1][name]
    if precision == "float32":
        assert models[0] == models[1]
        written, expected = (
            load_file(tmp_path / name / "model.safetensors") for name in ("there", "here")
        )
        for name, value in expected.items():
            assert float((written[name] - value).abs().mean()) < 1e-4, name
