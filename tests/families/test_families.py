"""Every family: a merged real model loads with its own class and agrees with its sources."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clipmerge.api.apply import write_merge
from clipmerge.api.merge import prepare
from clipmerge.checkpoint import open_checkpoint
from clipmerge.errors import CheckpointError
from clipmerge.evaluation.moving_model import MovingModel
from clipmerge.families import families, family_of
from clipmerge.models.building import build_model
from tests.support.command import clipmerge, printed, refused
from tests.support.raw_safetensors import edit_json, rename_keys
from tests.support.tasks import inputs_of, request_for
from tests.support.tiny_clip import Folders
from tests.support.tiny_families import TINY

Pairs = Callable[[str], Folders]


def merged(folders: Folders, output: Path, alpha: float, *settings: str) -> dict[str, Any]:
    run = prepare(request_for(folders, "wise-ft", f"method.alpha={alpha}", *settings))
    return write_merge(run, output).as_json()


def loaded(name: str, folder: Path) -> Any:
    """Load with the family's own class, nothing missing, unexpected or mismatched."""
    model, info = TINY[name].model.from_pretrained(folder, output_loading_info=True)
    assert not any(
        info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    ), info
    return model


def average(name: str, folders: Folders, alpha: float) -> Any:
    """The merge as a reader would write it: both models in memory, in float64; a lone head
    stays."""
    model = loaded(name, folders[1]).double()
    zeroshot = loaded(TINY[name].base or name, folders[0]).state_dict()
    for key, value in model.state_dict().items():
        if value.is_floating_point() and key in zeroshot:
            value.copy_((1 - alpha) * zeroshot[key].double() + alpha * value)
    return model


@pytest.mark.uncounted
@pytest.mark.parametrize("name", TINY)
def test_a_merged_model_says_what_its_sources_say(
    name: str, family_pairs: Pairs, tmp_path: Path
) -> None:
    tiny, folders = TINY[name], family_pairs(name)
    merged(folders, tmp_path / "out", 0.5)
    found = tiny.outputs(loaded(name, tmp_path / "out"))
    expected = tiny.outputs(average(name, folders, 0.5))
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)
    apart = tiny.outputs(average(name, folders, 0.0))
    assert not torch.allclose(expected, apart, rtol=1e-3, atol=1e-3)  # or this test could not fail


@pytest.mark.parametrize("name", [name for name, tiny in TINY.items() if not tiny.base])
@pytest.mark.parametrize("which", [0, 1])
def test_the_ends_are_the_sources_byte_for_byte(
    name: str, which: int, family_pairs: Pairs, tmp_path: Path
) -> None:
    merged(family_pairs(name), tmp_path / "out", float(which))
    weights = [
        (folder / "model.safetensors").read_bytes()
        for folder in (family_pairs(name)[which], tmp_path / "out")
    ]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("name", TINY)
def test_inspect_names_every_layer(name: str, family_pairs: Pairs) -> None:
    record = printed("inspect", family_pairs(name)[1])
    layers = list(record["layers"])
    assert record["family"] == TINY[name].family
    around = tuple(
        layer for layer in layers if not any(part.isdigit() for part in layer.split("."))
    )
    assert around == TINY[name].layers
    assert set(TINY[name].blocks) <= set(layers)
    assert (
        sum(layer["parameters"] for layer in record["layers"].values())
        == record["total"]["parameters"]
    )


def test_a_classifier_keeps_its_head_or_leaves_it_when_asked(
    family_pairs: Pairs, tmp_path: Path
) -> None:
    for name in (name for name, tiny in TINY.items() if tiny.base):
        record = merged(family_pairs(name), tmp_path / name, 0.5)
        assert any("unchanged-head" in str(warning) for warning in record["warnings"])
        before, after = (
            load_file(folder / "model.safetensors")
            for folder in (family_pairs(name)[1], tmp_path / name)
        )
        assert before.keys() == after.keys()
        assert torch.equal(before["classifier.weight"], after["classifier.weight"])
    folders = family_pairs("CLIP classifier")
    told = refused(clipmerge("merge", *folders, "--data", "digits", "--output", tmp_path / "out"))
    assert "learns by class prompts, and the output is a classifier, which has none" in told
    merged(folders, tmp_path / "out", 1.0, "missing=keep-zeroshot")
    output = loaded("CLIP", tmp_path / "out").state_dict()
    zeroshot, finetuned = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(
        torch.equal(value, finetuned.get(key, zeroshot[key])) for key, value in output.items()
    )


def test_two_classifiers_merge_their_heads(family_pairs: Pairs, tmp_path: Path) -> None:
    other = TINY["CLIP classifier"].make(seed=3)
    other.save_pretrained(tmp_path / "base")
    pair = family_pairs("CLIP classifier")
    assert "head" in merged((tmp_path / "base", pair[1]), tmp_path / "out", 0.5)["layers"]
    folders = (tmp_path / "base", pair[1], tmp_path / "out")
    zeroshot, finetuned, middle = (
        load_file(folder / "model.safetensors")["classifier.bias"] for folder in folders
    )
    assert torch.allclose(middle, (zeroshot + finetuned) / 2, rtol=1e-6)
    with pytest.raises(CheckpointError, match="one head can be kept, not several"):
        inputs_of((pair[0], pair[1], pair[1]))


def test_batch_norm_statistics_are_interpolated_and_never_masked(
    family_pairs: Pairs, tmp_path: Path
) -> None:
    folders = family_pairs("ALIGN")
    sparse = "overrides=[{layers: 'vision.*', density: 0.1}]"
    record = merged(folders, tmp_path / "out", 0.25, sparse)
    assert any("batch-norms" in str(warning) for warning in record["warnings"])
    zeroshot, finetuned, output = (
        load_file(f / "model.safetensors") for f in (*folders, tmp_path / "out")
    )
    for name in (name for name in output if "running" in name):
        assert torch.allclose(
            output[name], 0.75 * zeroshot[name] + 0.25 * finetuned[name], rtol=1e-5, atol=1e-7
        )
    weight = next(name for name in output if name.endswith("project_conv.weight"))
    assert (output[weight] == zeroshot[weight]).float().mean() > 0.8
    counters = [name for name in output if name.endswith("num_batches_tracked")]
    assert counters
    assert all(torch.equal(output[name], zeroshot[name]) for name in counters)
    assert not any(torch.equal(zeroshot[name], finetuned[name]) for name in counters)


def test_a_variance_that_would_be_negative_is_refused(family_pairs: Pairs, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a variance and becomes negative"):
        merged(family_pairs("ALIGN"), tmp_path / "out", -40.0)
    assert not (tmp_path / "out").exists()
    inputs = inputs_of(family_pairs("ALIGN"))
    moving = MovingModel(build_model(inputs), inputs, torch.device("cpu"))
    with pytest.raises(CheckpointError, match=r"becomes negative at alpha -40; give `alphas` in"):
        moving.interpolate(-40.0)


@pytest.mark.parametrize(
    "other", [name for name, tiny in TINY.items() if not tiny.base and tiny.family != "CLIP"]
)
def test_families_do_not_merge_with_each_other(other: str, family_pairs: Pairs) -> None:
    ours, theirs = family_pairs("CLIP"), family_pairs(other)
    for folders in ((theirs[0], ours[1]), (ours[0], theirs[1])):
        line = (
            rf"{folders[1]} is a.*{re.escape(TINY[other].family)} .*different families do not merge"
        )
        with pytest.raises(CheckpointError, match=line):
            inputs_of(folders)


@pytest.mark.parametrize("name", [name for name, tiny in TINY.items() if not tiny.base])
def test_a_family_is_recognised_with_and_without_its_config(name: str, family_pairs: Pairs) -> None:
    checkpoint = open_checkpoint(str(family_pairs(name)[0]))
    assert family_of(checkpoint.config, checkpoint.entries).name == TINY[name].family
    # these have the same names as another family, or fit any tower
    unsure = {"MetaCLIP2": "CLIP", "SigLIP2": "SigLIP", "CLIP+RoBERTa": "Chinese-CLIP"}
    assert family_of(None, checkpoint.entries).name == unsure.get(name, TINY[name].family)


def test_a_checkpoint_without_config_is_of_the_others_family(
    family_pairs: Pairs, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.safetensors"
    shutil.copyfile(family_pairs("MetaCLIP2")[1] / "model.safetensors", bare)
    pair = inputs_of((family_pairs("MetaCLIP2")[0], bare))
    assert pair.family.name == "MetaCLIP 2"


SETTINGS = [
    ("SigLIP", "vision", "hidden_act", "gelu"),
    ("SigLIP2", "text", "num_attention_heads", 4),
    ("MetaCLIP2", "vision", "hidden_act", "gelu"),
    ("ChineseCLIP", "text", "hidden_act", "relu"),
    ("AltCLIP", "text", "num_attention_heads", 4),
    ("ALIGN", "vision", "pooling_type", "max"),
    ("ViT+BERT", "text", "model_type", "roberta"),
]


@pytest.mark.parametrize(("name", "side", "setting", "value"), SETTINGS)
def test_settings_that_change_the_function_are_compared(
    name: str, side: str, setting: str, value: Any, family_pairs: Pairs, tmp_path: Path
) -> None:
    copy = shutil.copytree(family_pairs(name)[1], tmp_path / "copy")
    edit_json(copy / "config.json", **{f"{side}_config": {setting: value}})
    with pytest.raises(
        CheckpointError, match=f"the {side} towers differ in {setting}: .* finetuned {value}"
    ):
        inputs_of((family_pairs(name)[0], copy))


@pytest.mark.parametrize("name", ["ViT+BERT", "AltCLIP"])
def test_names_of_transformers_in_memory_are_known(
    name: str, family_pairs: Pairs, tmp_path: Path
) -> None:
    folders = family_pairs(name)
    copy = shutil.copytree(folders[1], tmp_path / "copy")
    saved, memory = load_file(copy / "model.safetensors"), loaded(name, copy).state_dict()
    in_memory = {float(value.sum()): key for key, value in memory.items()}
    rename_keys(copy, lambda key: in_memory[float(saved[key].sum())])
    assert load_file(copy / "model.safetensors").keys() == memory.keys() != saved.keys()
    merged((folders[0], copy), tmp_path / "out", 1.0)
    output = loaded(name, tmp_path / "out").state_dict()
    assert all(torch.equal(output[key], value) for key, value in memory.items())


@pytest.mark.parametrize("name", ["SigLIP", "ChineseCLIP"])
def test_a_tower_of_a_family_goes_into_its_full_model(
    name: str, family_pairs: Pairs, tmp_path: Path
) -> None:
    copy = shutil.copytree(family_pairs(name)[1], tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())["vision_config"]
    (copy / "config.json").write_text(json.dumps(config))
    rename_keys(
        copy,
        lambda key: key.removeprefix("vision_model."),
        keep=lambda key: key.startswith("vision_model."),
    )
    record = merged((family_pairs(name)[0], copy), tmp_path / "out", 1.0)
    assert any("one-tower" in str(warning) for warning in record["warnings"])
    zeroshot, finetuned, output = (
        load_file(f / "model.safetensors") for f in (*family_pairs(name), tmp_path / "out")
    )
    loaded(name, tmp_path / "out")
    for key, value in output.items():
        assert torch.equal(
            value, (finetuned if key.startswith("vision_model.") else zeroshot)[key]
        ), key


def test_the_cards_snippet_runs(
    family_pairs: Pairs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, task, says in (
        ("SigLIP", "zero-shot-image-classification", "a photo of a cat"),
        ("CLIP classifier", "image-classification", "LABEL_2"),
    ):
        merged(family_pairs(name), tmp_path / name, 0.5)
        card = (tmp_path / name / "README.md").read_text()
        assert f"pipeline_tag: {task}" in card
        assert f"\n{TINY[name].family} " in card
        monkeypatch.chdir(tmp_path / name)
        exec(card.partition("```python\n")[2].partition("```")[0], {})
        assert says in capsys.readouterr().out


def test_every_family_is_tested_here() -> None:
    untested = (
        {family.name for family in families()}
        - {tiny.family for tiny in TINY.values()}
        - {"OpenCLIP"}
    )
    assert not untested
