"""OpenCLIP's weights as a training run leaves them: one file, whose architecture the user names."""

import json
import shutil
import sys
from pathlib import Path

import open_clip
import pytest
import torch

from clipmerge.checkpoint import open_checkpoint
from clipmerge.checkpoint.architecture import architecture_config, with_architecture
from clipmerge.errors import CheckpointError
from tests.support.command import done
from tests.support.tiny_clip import Folders
from tests.support.tiny_open_clip import build, model_config, stir

ARCHITECTURE = "tiny-ViT-for-tests"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A float16 zero-shot file and the float32 file of a training run, beside a user's notes."""
    folder = tmp_path_factory.mktemp("training")
    config = model_config(text={"vocab_size": 49408, "context_length": 77})
    named = folder / "configs" / f"{ARCHITECTURE}.json"
    named.parent.mkdir()
    named.write_text(json.dumps(config))
    named.with_stem(f"{ARCHITECTURE}-quickgelu").write_text(
        json.dumps(config | {"quick_gelu": True})
    )
    open_clip.add_model_config(named.parent)
    model = build(config)
    zeroshot, finetuned = folder / "zeroshot.pt", folder / "epoch_3.pt"
    torch.save({name: tensor.half() for name, tensor in model.state_dict().items()}, zeroshot)
    stir(model, 0.02)
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state}, finetuned)
    (folder / "notes.json").write_text("{}")
    return zeroshot, finetuned


def test_one_command_merges_measures_and_writes_a_folder_that_open_clip_loads(
    bare: Folders, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    output = tmp_path / "out"
    words = ("merge", *bare, "-r", "wise-ft", "--data", images, "--model", ARCHITECTURE)
    ended = done(*words, "-o", output, "--json")
    record = ended.json
    assert record["plan"]["dtype"] == "float32"
    assert "differ in dtype; the output has the fine-tuned one" in str(record["warnings"])
    assert f"weights trained from OpenAI's are {ARCHITECTURE}-quickgelu" in ended.err
    assert "notes.json" not in ended.err
    assert "side files" not in ended.err
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{output}")
    zeroshot, finetuned = (open_checkpoint(str(file)) for file in bare)
    key = "visual.transformer.resblocks.1.mlp.c_fc.weight"
    theta_0, theta_1 = zeroshot.tensor(key).double(), finetuned.tensor(key).double()
    merged = model.state_dict()[key].double()
    torch.testing.assert_close(merged, theta_0 + 0.5 * (theta_1 - theta_0), atol=1e-6, rtol=1e-6)
    assert str(tmp_path / "cache") not in json.dumps(record)


def test_evaluate_and_plans_take_the_architecture_too(
    bare: Folders, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = ("--model", ARCHITECTURE)
    done("evaluate", bare[1], "--data", f"a={images}", *named)
    done("plan", *bare, "-r", "wise-ft", "-o", "plan.json", *named)
    done("apply", "plan.json", "-o", "out", *named)
    assert (tmp_path / "out" / "open_clip_config.json").is_file()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("ViT-B-33", "`model` ViT-B-33: open_clip has no architecture of this name"),
        ("ViT-B-32", r"is not a ViT-B-32: visual.conv1.weight has shape \(32, 3, 8, 8\), and that"),
    ],
)
def test_another_architecture_is_refused(bare: Folders, model: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(bare[0]), model=model)


def test_a_name_describes_only_openclips_weights_without_a_configuration(
    bare: Folders, pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = open_checkpoint(str(pair[0]))
    assert with_architecture(described, ARCHITECTURE) is described
    other = tmp_path / "transformers.safetensors"
    shutil.copyfile(pair[0] / "model.safetensors", other)
    with pytest.raises(CheckpointError, match="describes weights in OpenCLIP's layout"):
        with_architecture(open_checkpoint(str(other)), ARCHITECTURE)
    alone = f"{ARCHITECTURE}-quickgelu"  # no other name differs from it in the activation
    (note,) = open_checkpoint(str(bare[0]), model=ARCHITECTURE).notes
    assert note.endswith(f"weights trained from OpenAI's are {alone}")
    assert not open_checkpoint(str(bare[0]), model=alone).notes
    weights = torch.load(bare[0], weights_only=True)  # noqa: TID251
    del weights["text_projection"]  # as of one tower alone
    torch.save(weights, tmp_path / "part.pt")
    assert open_checkpoint(str(tmp_path / "part.pt"), model=ARCHITECTURE).config
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(CheckpointError, match=r"needs open_clip_torch .*clipmerge\[open-clip\]"):
        architecture_config(ARCHITECTURE)
