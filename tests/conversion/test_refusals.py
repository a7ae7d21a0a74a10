"""Configurations and weights that one of the two layouts cannot express, each refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipmerge.checkpoint import open_checkpoint
from clipmerge.checkpoint.converted import convert_checkpoint
from clipmerge.conversion.config import open_clip_config, transformers_config
from clipmerge.conversion.keys import match_keys
from clipmerge.errors import CheckpointError
from clipmerge.output import layout_files
from tests.support import tiny_open_clip
from tests.support.command import one_line
from tests.support.tiny_open_clip import build, model_config


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """An OpenCLIP folder."""
    return tiny_open_clip.save(build(model_config()), model_config(), tmp_path / "ours")


@pytest.fixture
def theirs(copies: tuple[Path, Path]) -> Path:
    """A transformers folder."""
    return copies[0]


def refused(folder: Path, message: str) -> None:
    to: Any = "transformers" if folder.name == "ours" else "open-clip"
    with one_line(CheckpointError, message) as caught:
        convert_checkpoint(open_checkpoint(str(folder)), to)
    assert str(caught.value).startswith(str(folder))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"vision": {"no_ln_pre": True}}, "vision_cfg.no_ln_pre=True"),
    ({"vision": {"rope": 1}}, "vision_cfg.rope=1"),
    ({"vision": {"layers": [1, 1, 1, 1]}}, "a ResNet as vision tower"),
    ({"vision": {"timm_model_name": "convnext_base"}}, "vision_cfg.timm_model_name=convnext_base"),
    ({"vision": {"attentional_pool": True}}, "vision_cfg.attentional_pool=True"),
    ({"text": {"hf_model_name": "roberta-base"}}, "text_cfg.hf_model_name=roberta-base"),
    ({"multimodal_cfg": {"layers": 1}}, "multimodal_cfg="),
    ({"vision": {"image_size": [32, 64]}}, r"vision_cfg.image_size=\[32, 64\]"),
    (
        {"vision": {"act_kwargs": {"approximate": "none"}}},
        r"vision_cfg\.act_kwargs=\{'approximate': 'none'\}",
    ),
    (
        {"vision": {"norm_kwargs": {"eps": 1e-6, "elementwise_affine": False}}},
        r"vision_cfg\.norm_kwargs=",
    ),
    ({"text": {"pool_type": "eos", "eos_id": 2}}, "text_cfg.pool_type=eos with eos_id=2"),
    ({"init_logit_bias": -10.0}, "init_logit_bias=-10.0"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_transformers_cannot_compute_is_refused_by_name(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=f"has {message}.*cannot compute"):
        transformers_config(model_config(**changes))


def test_options_that_say_what_is_usual_anyway_are_taken() -> None:
    plain = transformers_config(model_config())
    assert (
        transformers_config(model_config(vision={"attentional_pool": False, "pool_type": "tok"}))
        == plain
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "siglip"}, "a 'siglip' has no OpenCLIP counterpart"),
        (
            {"vision_config": {"hidden_act": "gelu"}},
            "the vision tower has gelu, the text tower quick_gelu",
        ),
        (
            {"vision_config": {"hidden_act": "relu"}, "text_config": {"hidden_act": "relu"}},
            "hidden_act relu",
        ),
        ({"vision_config": {"num_channels": 1}}, "takes 1 channels"),
    ],
)
def test_what_open_clip_cannot_compute_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_clip_config(changes)


HALF = torch.zeros(32, dtype=torch.float16)
TENSORS: list[tuple[str, str, torch.Tensor | None, str]] = [
    ("ours", "text_projection.bias", HALF, "1 tensor has no counterpart in"),
    (
        "ours",
        "visual.transformer.resblocks.1.attn.in_proj_bias",
        None,
        "1 tensor of a CLIP is missing: visual.*in_pr",
    ),
    (
        "ours",
        "visual.transformer.resblocks.0.attn.in_proj_bias",
        torch.zeros(95),
        r"attn\.in_proj_bias has shape \(95,\), which is not a stack of query, key and value",
    ),
    (
        "ours",
        "text_projection",
        torch.zeros(32),
        r"text_projection has shape \(32,\); a projection is a matrix",
    ),
    (
        "theirs",
        "vision_model.encoder.layers.0.self_attn.q_proj.bias",
        HALF,
        r"self_attn\.[qk]_proj\.bias and its key and value differ in shape or dtype",
    ),
    (
        "theirs",
        "text_projection.weight",
        None,
        "1 tensor of a CLIP is missing: text_projection.weight",
    ),
]


@pytest.mark.parametrize(("which", "name", "tensor", "message"), TENSORS)
def test_tensors_without_a_counterpart_are_named(
    request: pytest.FixtureRequest, which: str, name: str, tensor: torch.Tensor | None, message: str
) -> None:
    folder = request.getfixturevalue(which)
    file = next(folder.glob("*.safetensors"))
    tensors = {**load_file(file), name: tensor}
    save_file(
        {key: value for key, value in tensors.items() if value is not None},
        file,
        metadata={"format": "pt"},
    )
    refused(folder, message)


def test_a_blocks_number_lists_no_blocks() -> None:
    with pytest.raises(
        CheckpointError, match="a block has the number 999999999, but there are only 1 tensors"
    ):
        match_keys({"visual.transformer.resblocks.999999999.ln_1.weight"}, "open-clip")


def test_a_tokenizer_that_is_not_clips(tmp_path: Path) -> None:
    assert layout_files.has_clip_vocabulary(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert layout_files.has_clip_vocabulary(tmp_path) is None
    (tmp_path / "vocab.txt").write_text("a\nb\n")  # BERT's
    assert layout_files.has_clip_vocabulary(tmp_path) is False
    for text in ('{"a": Infinity}', '{"a": null}'):
        (tmp_path / "vocab.json").write_text(text)
        assert layout_files.has_clip_vocabulary(tmp_path) is False


def test_another_list_of_words_is_not_written_as_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A future open_clip_torch might come with another one."""
    monkeypatch.setattr(layout_files, "_read_bpe_merges", lambda: [("a", "b")])
    with pytest.raises(
        CheckpointError, match=r"the installed open_clip_torch has a vocabulary other than CLIP's"
    ):
        layout_files.write_clip_tokenizer(tmp_path, 77)
    assert list(tmp_path.iterdir()) == []
