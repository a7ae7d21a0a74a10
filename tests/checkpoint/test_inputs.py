"""Two aligned checkpoints: those that match, those that do not, and messages that name the place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipmerge.checkpoint import Inputs, align_checkpoints, open_checkpoint
from clipmerge.checkpoint.alignment import align
from clipmerge.checkpoint.compare import find_mismatches
from clipmerge.errors import CheckpointError
from tests.support.raw_safetensors import edit, rename_keys

Folders = tuple[Path, Path]
KEY = "vision_model.encoder.layers.1.mlp.fc1.weight"
TEXT_IDS = "text_model.embeddings.position_ids"


@pytest.fixture
def copies(pair: Folders, tmp_path: Path) -> Folders:
    zeroshot, finetuned = (shutil.copytree(folder, tmp_path / folder.name) for folder in pair)
    return zeroshot, finetuned


def paired(folders: tuple[Path, ...], **options: Any) -> Inputs:
    zeroshot, *finetuned = (open_checkpoint(str(folder)) for folder in folders)
    return align_checkpoints(zeroshot, finetuned, **options)


def refused(folders: tuple[Path, ...], message: str, **options: Any) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        paired(folders, **options)
    assert "\n" not in str(caught.value)


def configure(folder: Path, **changes: Any) -> Path:
    """Change settings of a config; ``vision__hidden_act`` is that of the vision tower, ``...`` removes one."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for key, value in changes.items():
        side, found, setting = key.partition("__")
        target = config[f"{side}_config"] if found else config
        if value is ...:
            target.pop(setting or key)
        else:
            target[setting or key] = value
    file.write_text(json.dumps(config))
    return folder


def test_a_shape_is_named_with_both_sides(copies: Folders) -> None:
    edit(copies[1], **{KEY: torch.zeros(64, 31)})
    refused(copies, rf"1 of \d+ tensors differ in shape; first {KEY}: zeroshot \(64, 32\), finetuned \(64, 31\)")


def test_a_dtype_is_named_with_both_sides(copies: Folders) -> None:
    edit(copies[1], **{KEY: torch.zeros(64, 32, dtype=torch.float16)})
    refused(copies, rf"1 of \d+ .* dtype; first {KEY}: zeroshot float32, finetuned float16.*`--dtype`")
    assert paired(copies, mixed_dtypes=True).merges(KEY)


def test_an_integer_in_a_floats_place_is_refused_whatever_the_dtype(copies: Folders) -> None:
    edit(copies[1], **{KEY: torch.zeros(64, 32, dtype=torch.int32)})
    refused(copies, f"first {KEY}: zeroshot float, finetuned integer", mixed_dtypes=True)


@pytest.mark.parametrize(("side", "which"), [("zero-shot", 1), ("fine-tuned", 0)])
def test_a_key_of_one_side_is_listed(copies: Folders, side: str, which: int) -> None:
    edit(copies[which], **{KEY: None})
    refused(copies, f"1 keys are only in the {side} checkpoint: {KEY}; if that is meant, set `missing=keep-zeroshot`")
    assert not paired(copies, missing="keep-zeroshot").merges(KEY)


def test_a_key_that_is_not_clips_is_named_with_its_file(copies: Folders) -> None:
    edit(copies[0], decoder__weight=torch.zeros(3))
    refused(copies, r"zeroshot: parameter 'decoder\.weight' belongs to no layer of a CLIP model")


def test_checkpoints_without_a_key_in_common_are_refused_even_when_keys_may_miss(copies: Folders) -> None:
    rename_keys(copies[1], lambda key: f"open.{key.replace('.', '_')}")
    refused(copies, "has no weight in common with .*nothing to merge", missing="keep-zeroshot")


@pytest.mark.parametrize("side", ["vision", "text"])
def test_activations_that_differ_are_refused(copies: Folders, side: str) -> None:
    configure(copies[1], **{f"{side}__hidden_act": "gelu"})
    refused(copies, f"the {side} towers differ in hidden_act: zeroshot quick_gelu, finetuned gelu")


@pytest.mark.parametrize("side", ["vision", "text"])
def test_constants_of_the_norms_that_differ_are_refused(copies: Folders, side: str) -> None:
    configure(copies[1], **{f"{side}__layer_norm_eps": 1e-6})
    refused(copies, f"the {side} towers differ in layer_norm_eps: zeroshot 1e-05, finetuned 1e-06")


def test_last_words_that_differ_are_refused(copies: Folders) -> None:
    """The features of a text are read there; 2 stands for the last word in OpenAI's configurations."""
    words = json.loads((copies[0] / "config.json").read_text())["text_config"]["vocab_size"]
    configure(copies[0], text__eos_token_id=2)
    configure(copies[1], text__eos_token_id=words - 1)
    paired(copies)
    configure(copies[1], text__eos_token_id=5)
    refused(copies, f"the text towers differ in eos_token_id: zeroshot {words - 1}, finetuned 5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_mean": [0.5, 0.5, 0.5]}, "mean is .*0.4815.* for zeroshot, .0.5, 0.5, 0.5. for finetuned"),
        ({"image_std": [0.5, 0.5, 0.5]}, "standard deviation is"),
        ({"resample": 2}, "interpolation is bicubic for zeroshot, bilinear for finetuned"),
        ({"resample": 0, "image_mean": None}, ""),
        ({"image_mean": ["x"]}, ""),
    ],
)
def test_preprocessing_that_differs_is_refused(copies: Folders, change: dict[str, Any], message: str) -> None:
    plain = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954] * 3, "resample": 3}
    for folder, processor in zip(copies, (plain, plain | change), strict=True):
        for name in ("preprocessor_config.json", "processor_config.json"):
            (folder / name).unlink(missing_ok=True)
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    if message:
        refused(copies, f"images are prepared differently: {message}")
    else:
        paired(copies)


def test_the_measured_model_has_the_configuration_that_is_written(copies: Folders) -> None:
    from clipmerge.models.building import build_model

    configure(copies[1], vision__attention_dropout=0.25)
    assert build_model(paired(copies)).module.config.vision_config.attention_dropout == 0.25


@pytest.mark.parametrize("side", ["vision", "text"])
def test_an_activation_that_is_not_stated_is_quick_gelu(copies: Folders, side: str) -> None:
    configure(copies[1], **{f"{side}__hidden_act": ...})
    paired(copies)
    configure(copies[0], **{f"{side}__hidden_act": "gelu"})
    refused(copies, "zeroshot gelu, finetuned quick_gelu")


@pytest.mark.parametrize("side", ["vision", "text"])
def test_heads_that_differ_are_refused(copies: Folders, side: str) -> None:
    configure(copies[1], **{f"{side}__num_attention_heads": 4})
    refused(copies, f"the {side} towers differ in num_attention_heads: zeroshot 2, finetuned 4")


def test_projection_dims_that_differ_are_refused(copies: Folders) -> None:
    configure(copies[1], projection_dim=32)
    refused(copies, "projection_dim differs: zeroshot 16, finetuned 32")


def as_old(folder: Path, how: str) -> None:
    """Rewrite a config in the form used by transformers before 2023."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for side in ("text", "vision"):
        section = config[f"{side}_config"]
        if how == "dict only":
            config[f"{side}_config_dict"] = config.pop(f"{side}_config")
        elif how == "section null":
            config[f"{side}_config_dict"], config[f"{side}_config"] = section, None
        elif how == "dict null":
            config[f"{side}_config_dict"] = None
        else:  # the old form wins over a section left at its defaults
            config[f"{side}_config_dict"], config[f"{side}_config"] = section, {"hidden_act": "gelu"}
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("how", ["dict only", "section null", "dict null", "both"])
def test_old_forms_of_the_config_are_understood(copies: Folders, how: str) -> None:
    as_old(copies[1], how)
    paired(copies)
    configure(copies[0], vision__hidden_act="gelu")
    refused(copies, "the vision towers differ in hidden_act: zeroshot gelu, finetuned quick_gelu")


def test_another_kind_of_model_is_refused(copies: Folders) -> None:
    configure(copies[1], model_type="bert")
    refused(copies, "finetuned: is a 'bert' checkpoint; clipmerge merges CLIP")
    configure(copies[1], model_type=["clip"])
    refused(copies, "is a '.*' checkpoint")


def test_without_a_config_it_is_said_that_activations_were_not_compared(copies: Folders) -> None:
    (copies[1] / "config.json").unlink()
    assert any("its activation could not be compared" in note for note in paired(copies).notes)


def test_broken_inputs_are_all_listed(copies: Folders) -> None:
    edit(copies[1], **{KEY: torch.zeros(2), "logit_scale": torch.tensor(1.0, dtype=torch.float64)})
    configure(copies[1], vision__hidden_act="gelu", projection_dim=3)
    pair = align(*(lambda zs, ft: (zs, [ft]))(*(open_checkpoint(str(folder)) for folder in copies)))
    problems = " ".join(find_mismatches(pair))
    for word in ("hidden_act", "projection_dim", "shape", "dtype"):
        assert word in problems


TOWERS = {"vision": ("vision_model.",), "text": ("text_model.",)}


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "clip.", "module.clip."])
def test_a_wrappers_prefix_is_taken_off(copies: Folders, prefix: str) -> None:
    expected = load_file(copies[1] / "model.safetensors")
    rename_keys(copies[1], lambda key: prefix + key)
    pair = paired(copies)
    assert not pair.is_partial
    assert all(torch.equal(pair.theta_1(name), tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_a_tower_alone_is_found_in_the_full_model(copies: Folders, tower: str, bare: bool, prefix: str) -> None:
    root = f"{tower}_model."
    expected = {k: v for k, v in load_file(copies[1] / "model.safetensors").items() if k.startswith(root)}
    rename_keys(
        copies[1],
        lambda key: prefix + (key.removeprefix(root) if bare else key),
        keep=lambda key: key.startswith(root),
    )
    config = json.loads((copies[1] / "config.json").read_text())[f"{tower}_config"]
    (copies[1] / "config.json").write_text(json.dumps({**config, "model_type": f"clip_{tower}_model"}))
    pair = paired(copies)
    assert pair.is_partial
    assert pair.tower == tower
    assert {name for name in pair.zeroshot_keys if pair.merges(name)} == set(expected)
    assert all(torch.equal(pair.theta_1(name), tensor) for name, tensor in expected.items())
    configure(copies[0], **{f"{tower}__hidden_act": "gelu"})
    refused(copies, f"the {tower} towers differ in hidden_act")


def test_a_tower_that_lacks_a_key_is_refused(copies: Folders) -> None:
    rename_keys(copies[1], lambda key: key, keep=lambda key: key.startswith("vision_model.") and key != KEY)
    refused(copies, f"1 keys are only in the zero-shot checkpoint: {KEY}")


def test_two_keys_of_one_parameter_are_named_with_their_file(copies: Folders) -> None:
    """Of a tower with a block that no family has; of any other, `known_keys` finds another family that it fits."""
    own = "encoder.adapter.weight"
    save_file({f"vision_model.{own}": torch.ones(2), own: torch.ones(2)}, copies[1] / "model.safetensors")
    refused(copies, rf"{copies[1]}: keys '{own}' and 'vision_model\.{own}' are the same parameter, vision_model\.{own}")


def test_the_zero_shot_model_must_hold_the_tower(copies: Folders) -> None:
    rename_keys(copies[0], lambda key: key, keep=lambda key: key.startswith("text_model."))
    for missing in ("error", "keep-zeroshot", "keep-finetuned"):
        refused(copies, "zeroshot: holds the text tower only, the fine-tuned checkpoint both towers", missing=missing)


def test_two_spellings_of_one_parameter_are_two_copies_and_noted(copies: Folders) -> None:
    tensors = load_file(copies[1] / "model.safetensors")
    save_file({**tensors, f"module.{KEY}": tensors[KEY].clone()}, copies[1] / "model.safetensors")
    assert any(
        "module holds the same parameters (--state-key module takes it)" in note for note in paired(copies).notes
    )


@pytest.mark.parametrize("which", [0, 1])
def test_position_ids_of_one_side_do_not_matter(copies: Folders, which: int) -> None:
    edit(copies[which], **{TEXT_IDS: torch.arange(32)[None]})
    pair = paired(copies)
    assert not pair.merges(TEXT_IDS)


def of_several(pair: Folders, copies: Folders, missing: str, *changes: dict[str, Any]) -> list[str]:
    """The notes on several fine-tuned checkpoints, each of them changed."""
    folders = [shutil.copytree(pair[1], copies[1].with_name(f"finetuned{place}")) for place in range(len(changes))]
    for folder, change in zip(folders, changes, strict=True):
        edit(folder, **change)
    return [note.replace(f"{copies[1].parent}/", "") for note in paired((pair[0], *folders), missing=missing).notes]


ZEROSHOT_STAYS = f"1 parameters stay zero-shot because some fine-tuned checkpoints lack them: {KEY}"
LEFT_OUT = "1 parameters are left out because finetuned0, the first fine-tuned checkpoint, lacks them: "
FIRSTS = (
    "1 parameters that the zero-shot checkpoint lacks are copied from finetuned0, the first fine-tuned "
    "checkpoint, not averaged: classifier.weight"
)
HEADS = ({"classifier.weight": torch.zeros(3, 32)}, {"classifier.weight": torch.ones(3, 32)})
LACKS: dict[str, Any] = {KEY: None}


@pytest.mark.parametrize(
    ("missing", "changes", "notes"),
    [
        ("keep-finetuned", HEADS, [FIRSTS]),
        ("keep-finetuned", (HEADS[0], {}), [FIRSTS]),
        ("keep-finetuned", ({}, HEADS[0]), [f"{LEFT_OUT}classifier.weight"]),
        ("keep-finetuned", ({}, LACKS), [ZEROSHOT_STAYS]),
        ("keep-finetuned", (LACKS, {}), [f"{LEFT_OUT}{KEY}"]),
        ("keep-zeroshot", ({}, LACKS), [ZEROSHOT_STAYS]),
        ("keep-zeroshot", (LACKS, {}, {}), [ZEROSHOT_STAYS]),
        ("keep-zeroshot", (LACKS, LACKS), []),
        ("keep-zeroshot", (LACKS,), []),
        ("keep-zeroshot", HEADS, []),
        ("keep-finetuned", ({}, {TEXT_IDS: torch.arange(32)[None]}), []),
        ("error", ({}, {}), []),
    ],
)
def test_what_becomes_of_keys_that_only_some_of_several_have(
    pair: Folders, copies: Folders, missing: str, changes: tuple[dict[str, Any], ...], notes: list[str]
) -> None:
    assert of_several(pair, copies, missing, *changes) == notes


def test_many_keys_are_counted(pair: Folders, copies: Folders) -> None:
    lacks: dict[str, Any] = {name: None for name in load_file(pair[1] / "model.safetensors") if "layers.1.mlp" in name}
    (note,) = of_several(pair, copies, "keep-zeroshot", {}, lacks)
    assert note.startswith("8 parameters stay zero-shot")
    assert note.endswith("and 3 more")


def test_several_finetuned_checkpoints_must_all_fit(copies: Folders, pair: Folders) -> None:
    assert len(paired((copies[0], pair[1], copies[1])).finetuned) == 2
    edit(copies[1], **{KEY: torch.zeros(2)})
    refused((copies[0], pair[1], copies[1]), "differ in shape")
