"""The examples, each run with a small real model."""

import json
import re
import runpy
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel

from tests.support import tiny_open_clip
from tests.support.tiny_clip import Folders, save_images

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> Any:
    """The main function of an example, which need not be on the path."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def half_way(first: Any, second: Any, merged: Any) -> bool:
    return all(
        torch.allclose(merged[key], (first[key] + second[key]) / 2, atol=1e-6) for key in first
    )


@pytest.mark.parametrize("by_name", [True, False])
def test_open_clip_train(tmp_path: Path, by_name: bool) -> None:
    """epoch_N.pt as open_clip_train saves it after training on several processes."""
    import open_clip

    config = tiny_open_clip.model_config()
    folder, trained = tiny_open_clip.save_open_clip_pair(tmp_path, config)
    base, finetuned = (
        load_file(each / "open_clip_model.safetensors") for each in (folder, trained)
    )
    state = {f"module.{key}": value for key, value in finetuned.items()}
    torch.save({"epoch": 3, "name": "cars", "state_dict": state}, tmp_path / "epoch_3.pt")
    where = f"local-dir:{folder} -"
    if by_name:
        (tmp_path / "configs").mkdir()
        (tmp_path / "configs" / "tiny-test.json").write_text(json.dumps(config))
        open_clip.add_model_config(tmp_path / "configs")
        torch.save(base, tmp_path / "base.pt")
        where = f"tiny-test {tmp_path / 'base.pt'}"
    arguments = f"{where} {tmp_path / 'epoch_3.pt'} --recipe wise-ft --output {tmp_path / 'merged'}"
    example("after_open_clip_train")(arguments.split())
    merged = load_file(tmp_path / "merged" / "open_clip_model.safetensors")
    assert half_way(base, finetuned, merged)
    assert torch.equal(
        tiny_open_clip.load(tmp_path / "merged").state_dict()["visual.proj"], merged["visual.proj"]
    )


def test_a_job(pair: Folders, images: Path, tmp_path: Path) -> None:
    """The script that runs on Hugging Face Jobs, without publishing."""
    arguments = (
        f"{pair[0]} {pair[1]} --recipe wise-ft --data {images} --output {tmp_path / 'merged'}"
    )
    result = example("merge_on_a_job")(arguments.split())
    weights = [load_file(place / "model.safetensors") for place in (*pair, tmp_path / "merged")]
    assert half_way(*weights)
    assert result.verdict is not None


def test_every_example_names_what_it_needs() -> None:
    """In the form of PEP 723, which `uv run` and `hf jobs` read."""
    for script in EXAMPLES.glob("*.py"):
        block = re.match(r"# /// script\n((?:#.*\n)+?)# ///\n", script.read_text(encoding="utf-8"))
        assert block, script.name
        needs = tomllib.loads(re.sub(r"^# ?", "", block[1], flags=re.MULTILINE))
        assert needs["requires-python"] == ">=3.11"
        assert isinstance(needs["dependencies"], list)


def test_plain_torch(pair: Folders, images: Path, tmp_path: Path) -> None:
    train = save_images(tmp_path / "train", each=4, seed=3)
    arguments = (
        f"{pair[0]} --train {train} --data {images} --output {tmp_path / 'out'}"
        " --recipe wise-ft --steps 3 --batch-size 8 --rate 1e-3"
    )
    result = example("after_plain_torch")(arguments.split())
    assert result.verdict is not None
    base = CLIPModel.from_pretrained(pair[0]).state_dict()
    robust = CLIPModel.from_pretrained(tmp_path / "out").state_dict()
    assert any(not torch.equal(robust[name], base[name]) for name in base)


@pytest.mark.parametrize("inner", ["", "0_CLIPModel"])
def test_sentence_transformers(pair: Folders, tmp_path: Path, inner: str) -> None:
    """Both of its layouts, as its versions 4 and 6 write them."""
    folder = tmp_path / "finetuned"
    shutil.copytree(pair[1], folder / inner)
    kind = f"sentence_transformers.{'models.CLIPModel' if inner else 'base.modules.Transformer'}"
    modules = json.dumps([{"idx": 0, "name": "0", "path": inner, "type": kind}])
    (folder / "modules.json").write_text(modules)
    (folder / "config_sentence_transformers.json").write_text("{}")
    arguments = f"{pair[0]} {folder} --recipe wise-ft --output {tmp_path / 'merged'}"
    example("after_sentence_transformers")(arguments.split())
    weights = [
        load_file(place / "model.safetensors") for place in (*pair, tmp_path / "merged" / inner)
    ]
    assert half_way(*weights)
    assert (tmp_path / "merged" / "modules.json").read_text() == modules
    assert CLIPModel.from_pretrained(tmp_path / "merged" / inner).config.model_type == "clip"
