"""What the pair tells of itself: relation, dtypes, notes, what is kept and left out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPModel

from clipmerge.checkpoint import OutputKind
from clipmerge.checkpoint.layout_keys import match_keys
from clipmerge.checkpoint.mismatches import find_mismatches
from clipmerge.checkpoint.settings import differing_settings
from clipmerge.checkpoint.wrappers import unwrap
from clipmerge.errors import CheckpointError
from tests.support.raw_safetensors import edit
from tests.support.tasks import inputs_of
from tests.support.tiny_clip import Folders, save_classifiers


def test_missing_keys_are_kept_if_the_recipe_says_so(copies: Folders) -> None:
    edit(copies[1], text_model__extra__weight=torch.ones(4), text_projection__weight=None)
    left = inputs_of(copies, missing="keep-zeroshot")
    assert not left.merges("text_projection.weight")
    assert any("1 tensor that the output lacks" in note for note in left.notes)
    assert any("1 parameter that not every fine-tuned" in note for note in left.notes)
    kept = inputs_of(copies, missing="keep-finetuned")
    assert "text_model.extra.weight" in kept.output_keys


def test_the_finetuned_dtype_is_found(pair: Folders, tmp_path: Path) -> None:
    CLIPModel.from_pretrained(pair[1]).half().save_pretrained(tmp_path / "half")
    inputs = inputs_of((pair[0], tmp_path / "half"))
    assert inputs.dtype == "float16"
    assert any("the output has the fine-tuned one, float16" in note for note in inputs.notes)
    assert inputs_of((pair[0], tmp_path / "half"), dtype="bfloat16").dtype == "bfloat16"
    assert inputs_of(pair).dtype == "keep"
    edit(tmp_path / "half", logit_scale=torch.tensor(2.6))
    several = inputs_of((pair[0], tmp_path / "half"), refuse=False)
    assert all("differs in dtype" in problem for problem in find_mismatches(several))
    with pytest.raises(CheckpointError, match=r"differs in dtype: .*; name one with `dtype`"):
        inputs_of((pair[0], tmp_path / "half"))


def of_transformers(**sections: Any) -> dict[str, Any]:
    return {"model_type": "clip", **sections}


VISION = {"width": 768, "patch_size": 32}
OPEN_CLIP = {"embed_dim": 512, "vision_cfg": VISION, "text_cfg": {"heads": 8}}
DEFAULT = of_transformers(vision_config={"hidden_size": 768})


@pytest.mark.parametrize(
    ("ours", "theirs", "differences"),
    [
        (of_transformers(vision_config={"hidden_act": "quick_gelu"}), DEFAULT, []),
        (
            of_transformers(vision_config={"hidden_act": "gelu"}),
            DEFAULT,
            [("vision", "hidden_act", "gelu", "quick_gelu")],
        ),
        # of OpenAI's configurations: transformers then takes the last word
        (
            of_transformers(text_config={"eos_token_id": 2, "vocab_size": 49408}),
            of_transformers(text_config={"eos_token_id": 49407, "vocab_size": 49408}),
            [],
        ),
        (
            OPEN_CLIP,
            OPEN_CLIP | {"vision_cfg": VISION | {"head_width": 32}, "text_cfg": {}},
            [("vision", "num_attention_heads", 12, 24)],
        ),
        (
            OPEN_CLIP,
            OPEN_CLIP | {"text_cfg": {"heads": 8, "no_causal_mask": True}},
            [("text", "no_causal_mask", False, True)],
        ),
        (OPEN_CLIP | {"vision_cfg": 5}, OPEN_CLIP, []),
        (OPEN_CLIP | {"quick_gelu": True}, DEFAULT, []),
        (
            OPEN_CLIP,
            DEFAULT,
            [(side, "hidden_act", "gelu", "quick_gelu") for side in ("vision", "text")],
        ),
    ],
)
def test_stated_and_default_settings_are_the_same(
    ours: dict[str, Any], theirs: dict[str, Any], differences: list[Any]
) -> None:
    assert list(differing_settings(ours, theirs)) == differences


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ("visual._fsdp_wrapped_module.proj n_averaged text.attn_mask", "visual.proj"),
        ("trunk.a head.proj.weight", "visual.trunk.a visual.head.proj.weight"),
        ("model.embeddings.a model.encoder.b", "embeddings.a encoder.b"),
        (
            "a.vision_model.x b.text_model.y a.logit_scale",
            "vision_model.x text_model.y logit_scale",
        ),
        (
            "model.visual.proj model.ln_final.bias classification_head.weight",
            "visual.proj classification_head.weight",
        ),
        ("clip.visual.proj head.weight head.bias", "visual.proj"),
    ],
)
def test_the_clip_among_the_keys(keys: str, names: str) -> None:
    said: list[str] = []
    found = unwrap(Path("x.pt"), {key: key for key in keys.split()}, None, said)
    assert list(found) == names.split()
    left = ["x.pt: the CLIP is under clip; 2 tensors are left out: head.weight, head.bias"]
    assert said == (left if "clip." in keys else [])


def test_both_classifiers_need_the_same_classes(tmp_path: Path) -> None:
    (three,) = save_classifiers(tmp_path / "three", tuple("abc"))
    (five,) = save_classifiers(tmp_path / "five", tuple("abcde"))
    inputs = inputs_of((three, five))
    assert inputs.output is OutputKind.FINETUNED_CLASSIFIER
    assert any("its head has 3 rows, but the fine-tuned one has 5" in note for note in inputs.notes)


def test_a_part_that_is_not_there() -> None:
    with pytest.raises(CheckpointError, match="holds nothing under 'swa'; its keys begin with ema"):
        unwrap(Path("x.pt"), {"ema.visual.proj": 2}, "swa", [])


def test_only_a_plain_clip_has_both_layouts() -> None:
    told = r"1 tensor has no counterpart in .*: visual.extra; only a plain ViT CLIP"
    with pytest.raises(CheckpointError, match=told):
        match_keys(["visual.proj", "visual.extra"], "open-clip")
