"""OpenCLIP's weights as a training run leaves them: one file, whose architecture the user names."""

import json
import sys
from pathlib import Path

import open_clip
import pytest
import torch

from clipmerge.checkpoint import open_checkpoint
from clipmerge.errors import CheckpointError
from tests.support.command import done
from tests.support.tiny_clip import Folders, stir
from tests.support.tiny_open_clip import build, model_config

NAME = "tiny-ViT-for-tests"
QUICK = f"{NAME}-quickgelu"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A float16 zero-shot file and the float32 file of a training run."""
    folder = tmp_path_factory.mktemp("training")
    config = model_config(text={"vocab_size": 49408, "context_length": 77})
    configs = folder / "configs"
    configs.mkdir()
    (configs / f"{NAME}.json").write_text(json.dumps(config))
    (configs / f"{QUICK}.json").write_text(json.dumps(config | {"quick_gelu": True}))
    open_clip.add_model_config(configs)
    model = build(config)
    zeroshot, finetuned = folder / "zeroshot.pt", folder / "epoch_3.pt"
    torch.save({name: tensor.half() for name, tensor in model.state_dict().items()}, zeroshot)
    stir(model, 0.02)
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state}, finetuned)
    return zeroshot, finetuned


def test_one_command_merges_measures_and_writes_a_folder_that_open_clip_loads(
    bare: Folders, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    output = tmp_path / "out"
    words = ("merge", *bare, "-r", "wise-ft", "--data", images, "--model", NAME)
    ended = done(*words, "-o", output, "--json")
    assert ended.json["plan"]["dtype"] == "float32"
    assert "differ in dtype; the output has the fine-tuned one" in str(ended.json["warnings"])
    assert f"weights trained from OpenAI's need {QUICK}" in ended.err
    assert str(tmp_path / "cache") not in json.dumps(ended.json)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{output}")
    key = "visual.transformer.resblocks.1.mlp.c_fc.weight"
    theta_0, theta_1 = (open_checkpoint(str(file)).tensor(key).float() for file in bare)
    expected = theta_0 + 0.5 * (theta_1 - theta_0)
    torch.testing.assert_close(model.state_dict()[key], expected, atol=1e-6, rtol=0)


def test_evaluate_and_plans_take_the_architecture_too(
    bare: Folders, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = ("--model", NAME)
    done("evaluate", bare[1], "--data", f"a={images}", *named)
    done("plan", *bare, "-r", "wise-ft", "-o", "plan.json", *named)
    done("apply", "plan.json", "-o", "out", *named)
    assert (tmp_path / "out" / "open_clip_config.json").is_file()


def test_other_architectures_are_refused(
    bare: Folders, pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(source: Path, model: str, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(str(source), model=model)

    refused(bare[0], "ViT-B-33", "`model` ViT-B-33: open_clip has no architecture of this name")
    refused(
        bare[0],
        "ViT-B-32",
        r"visual.conv1.weight has shape \(32, 3, 8, 8\), but the width of a ViT-B-32 is 768",
    )
    other = tmp_path / "transformers.safetensors"
    other.symlink_to(pair[0] / "model.safetensors")
    refused(other, NAME, "describes weights in OpenCLIP's layout")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    refused(bare[0], NAME, r"needs open_clip_torch .*clipmerge\[open-clip\]")


def test_a_name_describes_weights_without_a_configuration(bare: Folders, pair: Folders) -> None:
    described = open_checkpoint(str(pair[0]), model=NAME)
    assert described == open_checkpoint(str(pair[0]))
    # no other name differs from it in the activation
    assert not open_checkpoint(str(bare[0]), model=QUICK).notes
    weights = torch.load(bare[0], weights_only=True)  # noqa: TID251
    del weights["text_projection"]  # as of one tower alone
    part = bare[0].with_name("part.pt")
    torch.save(weights, part)
    assert open_checkpoint(str(part), model=NAME).config
