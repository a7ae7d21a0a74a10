"""Configurations and weights that one of the two layouts cannot express, each refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipmerge.checkpoint import open_checkpoint
from clipmerge.checkpoint.converted import convert_checkpoint
from clipmerge.conversion import tokens
from clipmerge.conversion.config import open_clip_config, transformers_config
from clipmerge.conversion.keys import Layout
from clipmerge.errors import CheckpointError
from tests.support import tiny_open_clip
from tests.support.command import clipmerge
from tests.support.tiny_clip import save_pair
from tests.support.tiny_open_clip import build, model_config


def refused(folder: Path, message: str, to: Layout) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(open_checkpoint(str(folder)), to)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """An OpenCLIP folder."""
    return tiny_open_clip.save(build(model_config()), model_config(), tmp_path / "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A transformers folder."""
    return save_pair(tmp_path / "theirs")[0]


def with_tensors(file: Path, **changed: torch.Tensor) -> Path:
    tensors = load_file(file) | {name.replace("__", "."): tensor for name, tensor in changed.items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return file.parent


@pytest.mark.parametrize(
    ("tower", "told"),
    [
        ({"act_kwargs": {"approximate": "none"}}, r"vision_cfg\.act_kwargs=\{'approximate': 'none'\}"),
        ({"norm_kwargs": {"eps": 1e-6, "elementwise_affine": False}}, r"vision_cfg\.norm_kwargs="),
    ],
)
def test_options_of_open_clip_without_counterpart(tower: dict[str, Any], told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        transformers_config(model_config(vision=tower))


def test_options_that_say_what_is_usual_anyway_are_taken() -> None:
    plain = transformers_config(model_config())
    assert transformers_config(model_config(vision={"attentional_pool": False, "pool_type": "tok"})) == plain


@pytest.mark.parametrize("width", [6, 49, 192])
def test_the_ratio_of_an_mlp_gives_its_width_back(width: int) -> None:
    """OpenCLIP stores a ratio and rounds the product down, which for 49 channels would lose one of 29."""
    for hidden in range(1, 4 * width):
        tower = {"hidden_size": width, "intermediate_size": hidden, "num_attention_heads": 1, "num_hidden_layers": 1}
        config = open_clip_config({"vision_config": tower, "text_config": tower, "projection_dim": 8})
        ratio = config["vision_cfg"].get("mlp_ratio", 4.0)
        assert int(width * ratio) == hidden


def test_weights_that_the_configuration_does_not_know(theirs: Path) -> None:
    file = theirs / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["num_hidden_layers"] = 2
    file.write_text(json.dumps(config))
    refused(theirs, r"config\.json says that the text tower has 2 layers, but the weights have 3", "open-clip")


def test_a_stack_that_cannot_be_cut_in_three(ours: Path) -> None:
    key = "visual__transformer__resblocks__0__attn__in_proj_bias"
    with_tensors(ours / "open_clip_model.safetensors", **{key: torch.zeros(95)})
    refused(ours, r"attn\.in_proj_bias has shape \(95,\), which is not a stack of query, key and value", "transformers")


def test_a_query_that_is_not_like_its_key(theirs: Path) -> None:
    key = "vision_model__encoder__layers__0__self_attn__q_proj__bias"
    with_tensors(theirs / "model.safetensors", **{key: torch.zeros(32, dtype=torch.float16)})
    refused(theirs, r"self_attn\.[qk]_proj\.bias and its key and value differ in shape or dtype", "open-clip")


def test_a_projection_that_is_no_matrix(ours: Path) -> None:
    with_tensors(ours / "open_clip_model.safetensors", text_projection=torch.zeros(32))
    refused(ours, r"text_projection has shape \(32,\); a projection is a matrix", "transformers")


@pytest.mark.parametrize(
    "config", [{"model_cfg": {"embed_dim": 16, "vision_cfg": 3, "text_cfg": {}}}, {"model_cfg": []}]
)
def test_a_configuration_that_makes_no_sense(ours: Path, config: dict[str, Any]) -> None:
    (ours / "open_clip_config.json").write_text(json.dumps(config))
    refused(ours, r"open_clip_config\.json", "transformers")


def test_a_tokenizer_without_a_list_of_words_is_not_clips(tmp_path: Path) -> None:
    assert tokens.is_clips_own(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert tokens.is_clips_own(tmp_path) is None
    (tmp_path / "vocab.txt").write_text("a\nb\n")  # BERT's
    assert tokens.is_clips_own(tmp_path) is False


def test_another_list_of_words_is_not_written_as_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A future open_clip_torch might come with another one."""
    monkeypatch.setattr(tokens, "_merges", lambda: [("a", "b")])
    with pytest.raises(CheckpointError, match=r"the installed open_clip_torch has a vocabulary other than CLIP's"):
        tokens.write_clip_tokenizer(tmp_path, 77)
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_beside_the_weights_is_told(theirs: Path, tmp_path: Path) -> None:
    for name in ("preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (theirs / name).unlink(missing_ok=True)
    done = clipmerge("convert", theirs, tmp_path / "out", "--to", "open-clip")
    assert done.code == 0, done.err
    told = " ".join(done.err.split())
    assert "has no preprocessor_config.json; OpenAI's mean and deviation were written" in told
    assert "has no tokenizer, and its vocabulary is not CLIP's; OpenCLIP will need one" in told
    written = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert written["preprocess_cfg"]["mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])


def test_mixed_dtypes_have_no_dtype_of_the_model(ours: Path, tmp_path: Path) -> None:
    with_tensors(ours / "open_clip_model.safetensors", logit_scale=torch.zeros((), dtype=torch.float16))
    done = clipmerge("convert", ours, tmp_path / "out", "--to", "transformers")
    assert done.code == 0, done.err
    assert "dtype" not in json.loads((tmp_path / "out" / "config.json").read_text())
