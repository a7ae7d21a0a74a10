"""Two aligned checkpoints: those that match, those that do not, and messages that name the
place."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipmerge.checkpoint import open_checkpoint
from clipmerge.checkpoint.alignment import align, finetuned_dtype
from clipmerge.errors import CheckpointError
from clipmerge.families import known_keys
from clipmerge.families.transformers import CLIP
from clipmerge.models.building import build_model
from clipmerge.report.text import texts_of
from tests.support.command import one_line
from tests.support.raw_safetensors import edit, edit_json, rename_keys
from tests.support.tasks import inputs_of
from tests.support.tiny_clip import Folders

KEY = "vision_model.encoder.layers.1.mlp.fc1.weight"
TEXT_IDS = "text_model.embeddings.position_ids"
SIDES = pytest.mark.parametrize("side", ["vision", "text"])


def refused(folders: tuple[Path, ...], message: str, **options: Any) -> None:
    with one_line(CheckpointError, message):
        inputs_of(folders, **options)


def configure(folder: Path, **changes: Any) -> None:
    edit_json(folder / "config.json", **changes)


HALF, WHOLE = (torch.zeros(64, 32, dtype=dtype) for dtype in (torch.float16, torch.int32))
TENSORS: list[tuple[int, str, Any, str]] = [
    (
        1,
        KEY,
        torch.zeros(64, 31),
        rf"1 of \d+ .* shape; first {KEY}: zeroshot \(64, 32\), finetuned \(64, 31\)",
    ),
    (
        1,
        KEY,
        HALF,
        rf"1 of \d+ .* dtype; first {KEY}: zeroshot float32, finetuned float16.*`dtype`",
    ),
    (
        1,
        KEY,
        None,
        f"1 key is only in the zero-shot checkpoint: {KEY}; .* `set=missing=keep-zeroshot`",
    ),
    (
        0,
        KEY,
        None,
        f"1 key is only in the fine-tuned checkpoint: {KEY}; .* `set=missing=keep-zeroshot`",
    ),
    (
        0,
        "decoder.weight",
        HALF,
        r"zeroshot: parameter 'decoder\.weight' belongs to no layer of a CLIP model",
    ),
]


@pytest.mark.parametrize(("which", "key", "value", "message"), TENSORS)
def test_tensors_that_do_not_fit_are_named_with_both_sides(
    copies: Folders, which: int, key: str, value: Any, message: str
) -> None:
    edit(copies[which], **{key: value})
    refused(copies, message)
    if value is HALF and key == KEY:
        assert inputs_of(copies, mixed_dtypes=True).merges(KEY)
        edit(copies[1], **{KEY: WHOLE})
        refused(copies, f"first {KEY}: zeroshot float, finetuned integer", mixed_dtypes=True)
    if value is None:
        assert not inputs_of(copies, missing="keep-zeroshot").merges(KEY)


def test_checkpoints_without_a_key_in_common_are_refused_even_when_keys_may_miss(
    copies: Folders,
) -> None:
    rename_keys(copies[1], lambda key: f"open.{key.replace('.', '_')}")
    refused(copies, "has no weight in common with .*nothing to merge", missing="keep-zeroshot")


@SIDES
def test_settings_of_a_tower_that_differ_are_refused(copies: Folders, side: str) -> None:
    tower = f"{side}_config"
    for setting, plain, other in (
        ("hidden_act", "quick_gelu", "gelu"),
        ("layer_norm_eps", 1e-5, 1e-6),
        ("num_attention_heads", 2, 4),
    ):
        configure(copies[1], **{tower: {setting: other}})
        refused(
            copies, f"the {side} towers differ in {setting}: zeroshot {plain}, finetuned {other}"
        )
        configure(copies[1], **{tower: {setting: plain}})
    configure(copies[1], **{tower: {"hidden_act": ...}})
    inputs_of(copies)
    configure(copies[0], **{tower: {"hidden_act": "gelu"}})
    refused(copies, "zeroshot gelu, finetuned quick_gelu")  # which is transformers' default


def test_last_words_and_projections_that_differ_are_refused(copies: Folders) -> None:
    """The features of a text are read at the last word; 2 stands for it in OpenAI's
    configurations."""
    words = json.loads((copies[0] / "config.json").read_text())["text_config"]["vocab_size"]
    configure(copies[0], text_config={"eos_token_id": 2})
    configure(copies[1], text_config={"eos_token_id": words - 1})
    inputs_of(copies)
    configure(copies[1], text_config={"eos_token_id": 5})
    refused(copies, f"the text towers differ in eos_token_id: zeroshot {words - 1}, finetuned 5")
    configure(copies[1], text_config={"eos_token_id": 2}, projection_dim=32)
    refused(copies, "projection_dim differs: zeroshot 16, finetuned 32")


def test_preprocessing_that_differs_is_refused(copies: Folders) -> None:
    plain = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954] * 3,
        "resample": 3,
    }
    for folder in copies:
        (folder / "processor_config.json").unlink(missing_ok=True)
        (folder / "preprocessor_config.json").write_text(json.dumps(plain))
    half = [0.5, 0.5, 0.5]
    for change, message in (
        ({"image_mean": half}, "mean is .*0.4815.* for zeroshot, .0.5, 0.5, 0.5. for finetuned"),
        ({"image_std": half}, "standard deviation is"),
        ({"resample": 2}, "interpolation is bicubic for zeroshot, bilinear for finetuned"),
    ):
        (copies[1] / "preprocessor_config.json").write_text(json.dumps(plain | change))
        refused(copies, f"images are prepared differently: {message}")
    for unknown in ({"resample": 0, "image_mean": None}, {"image_mean": ["x"]}):
        (copies[1] / "preprocessor_config.json").write_text(json.dumps(plain | unknown))
        inputs_of(copies)


def test_tokenizers_that_number_words_otherwise_are_refused(copies: Folders) -> None:
    file = copies[1] / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    words = tokenizer["model"]["vocab"]
    first, second = list(words)[:2]
    words |= {first: words[second], second: words[first]}
    file.write_text(json.dumps(tokenizer))
    refused(
        copies, "texts are read differently: the tokenizers give other numbers to 2 words, such as"
    )
    file.write_text("{}")
    inputs_of(copies)


def test_the_measured_model_has_the_configuration_that_is_written(copies: Folders) -> None:
    configure(copies[1], vision_config={"attention_dropout": 0.25})
    assert build_model(inputs_of(copies)).module.config.vision_config.attention_dropout == 0.25


@pytest.mark.parametrize("other", [None, {"hidden_act": "gelu"}])
def test_the_form_of_the_config_before_2023_wins(copies: Folders, other: Any) -> None:
    file = copies[1] / "config.json"
    config = json.loads(file.read_text())
    for side in ("text", "vision"):
        config |= {f"{side}_config_dict": config.pop(f"{side}_config"), f"{side}_config": other}
    file.write_text(json.dumps(config))
    inputs_of(copies)
    configure(copies[0], vision_config={"hidden_act": "gelu"})
    refused(copies, "the vision towers differ in hidden_act: zeroshot gelu, finetuned quick_gelu")


def test_another_kind_of_model_is_refused_and_none_is_noted(copies: Folders) -> None:
    configure(copies[1], model_type="bert")
    refused(copies, "finetuned: is a 'bert' checkpoint; clipmerge merges CLIP")
    (copies[1] / "config.json").unlink()
    assert any(
        "its activation could not be compared" in note for note in texts_of(inputs_of(copies).notes)
    )


@pytest.mark.parametrize(("bare", "prefix"), [(True, "module."), (False, "")])
@SIDES
def test_a_tower_alone_is_found_in_the_full_model(
    copies: Folders, side: str, bare: bool, prefix: str
) -> None:
    root = f"{side}_model."
    expected = {
        k: v for k, v in load_file(copies[1] / "model.safetensors").items() if k.startswith(root)
    }
    rename_keys(
        copies[1],
        lambda key: prefix + (key.removeprefix(root) if bare else key),
        keep=lambda key: key.startswith(root),
    )
    config = json.loads((copies[1] / "config.json").read_text())[f"{side}_config"]
    (copies[1] / "config.json").write_text(
        json.dumps({**config, "model_type": f"clip_{side}_model"})
    )
    inputs = inputs_of(copies)
    assert inputs.is_partial
    assert inputs.tower == side
    assert {name for name in inputs.zeroshot_keys if inputs.merges(name)} == set(expected)
    assert all(torch.equal(inputs.theta_1(name), tensor) for name, tensor in expected.items())
    configure(copies[0], **{f"{side}_config": {"hidden_act": "gelu"}})
    refused(copies, f"the {side} towers differ in hidden_act")


def test_a_tower_that_lacks_a_key_or_a_base_that_lacks_the_tower_is_refused(
    copies: Folders,
) -> None:
    rename_keys(
        copies[1], lambda key: key, keep=lambda key: key.startswith("vision_model.") and key != KEY
    )
    refused(copies, f"1 key is only in the zero-shot checkpoint: {KEY}")
    rename_keys(copies[0], lambda key: key, keep=lambda key: key.startswith("text_model."))
    for missing in ("error", "keep-zeroshot", "keep-finetuned"):
        refused(
            copies, "zeroshot: holds the text tower only, .* the vision tower only", missing=missing
        )


def test_two_keys_of_one_parameter_are_named_with_their_file(copies: Folders) -> None:
    """Of a tower with a block that no family has; of any other, `known_keys` finds another family
    that it fits."""
    keys = [
        key for key in load_file(copies[1] / "model.safetensors") if key.startswith("vision_model.")
    ]
    assert known_keys(CLIP, keys) == len(keys)
    assert known_keys(CLIP, [*keys, KEY.removeprefix("vision_model.")]) == 0
    own = "encoder.adapter.weight"
    save_file(
        {f"vision_model.{own}": torch.ones(2), own: torch.ones(2)}, copies[1] / "model.safetensors"
    )
    refused(
        copies,
        rf"{copies[1]}: keys '{own}' and 'vision_model\.{own}' are the same parameter,"
        rf" vision_model\.{own}",
    )


PARTLY = (
    "parameters of 1 layer stay zero-shot, because the fine-tuned checkpoint lacks them; what is"
    " measured as fine-tuned is a mixture of both: 1 of 6 of vision.1.mlp"
)
STAYS = f"parameters that some fine-tuned checkpoints lack stay zero-shot: {KEY}"
LEFT_OUT = "parameters that finetuned0, the first fine-tuned checkpoint, lacks are left out: "
FIRSTS = (
    "parameters that the zero-shot checkpoint lacks are copied from finetuned0, the first"
    " fine-tuned checkpoint, not averaged: classifier.weight"
)
NONE, LACKS, HEAD = dict[str, Any](), {KEY: None}, {"classifier.weight": torch.zeros(3, 32)}


@pytest.mark.parametrize(
    ("missing", "changes", "notes"),
    [
        ("keep-finetuned", (HEAD, NONE), [FIRSTS]),
        ("keep-finetuned", (NONE, HEAD), [f"{LEFT_OUT}classifier.weight"]),
        ("keep-finetuned", (NONE, LACKS), [STAYS]),
        ("keep-finetuned", (NONE, {TEXT_IDS: torch.arange(32)[None]}), []),
        ("keep-zeroshot", (LACKS, NONE, NONE), [STAYS]),
        ("keep-zeroshot", (LACKS,), [PARTLY]),
        ("error", (NONE, NONE), []),
    ],
)
def test_what_becomes_of_keys_that_only_some_of_several_have(
    pair: Folders,
    tmp_path: Path,
    missing: str,
    changes: tuple[dict[str, Any], ...],
    notes: list[str],
) -> None:
    folders = [
        edit(shutil.copytree(pair[1], tmp_path / f"finetuned{at}"), **each)
        for at, each in enumerate(changes)
    ]
    inputs = inputs_of((pair[0], *folders), missing=missing)
    assert [note.replace(f"{tmp_path}/", "") for note in texts_of(inputs.notes)] == notes


def test_several_finetuned_checkpoints_must_all_fit(copies: Folders, pair: Folders) -> None:
    assert len(inputs_of((copies[0], pair[1], copies[1])).finetuned) == 2
    edit(copies[1], **{KEY: torch.zeros(2)})
    refused((copies[0], pair[1], copies[1]), "differs in shape")


def test_a_grown_vocabulary_is_reported_as_one(copies: Folders) -> None:
    """Not as ids of the end of a text, which follow from it and are in neither configuration."""
    weights = load_file(copies[1] / "model.safetensors")
    words = weights["text_model.embeddings.token_embedding.weight"]
    edit(copies[1], text_model__embeddings__token_embedding__weight=torch.cat([words, words[:1]]))
    size = len(words)
    edit_json(copies[1] / "config.json", text_config={"vocab_size": size + 1})
    refused(copies, f"has another vocabulary: .* has {size + 1} rows, that of .* {size}; give")


def test_whole_numbers_say_nothing_of_the_dtype_of_the_output(copies: Folders) -> None:
    kinds = {"vision_model__embeddings__kinds": torch.arange(4)}
    edit(copies[0], **kinds)
    edit(copies[1], **kinds)
    assert dtype_of_output(copies) is None
    weights = load_file(copies[1] / "model.safetensors")
    edit(copies[1], **{name.replace(".", "__"): value.half() for name, value in weights.items()})
    edit(copies[1], **kinds)
    assert dtype_of_output(copies) == "float16"


def dtype_of_output(folders: Folders) -> str | None:
    zeroshot, finetuned = (open_checkpoint(str(folder)) for folder in folders)
    return finetuned_dtype(align(zeroshot, [finetuned], missing="error"))
