"""Merging OpenCLIP checkpoints of every kind: open_clip loads the output strictly."""

import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel

from clipmerge.families.open_clip import OPEN_CLIP
from tests.conversion.test_conversion import features, same
from tests.support import tiny_open_clip
from tests.support.command import clipmerge, done, refused
from tests.support.hub_double import FakeHub, upload
from tests.support.raw_safetensors import edit_json
from tests.support.tiny_clip import Folders
from tests.support.tiny_open_clip import (
    ARCHITECTURES,
    load,
    model_config,
    outputs,
    save_open_clip_pair,
)

WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A pair of plain ViTs; read only."""
    return save_open_clip_pair(tmp_path_factory.mktemp("ours"), model_config(quick_gelu=True))


@pytest.fixture(scope="module")
def ours(folders: Folders) -> Path:
    return folders[0]


@pytest.fixture
def theirs(pair: Folders) -> Path:
    return pair[0]


def merge(
    zeroshot: object, finetuned: object, output: Path, alpha: float = 0.5, *more: object
) -> tuple[object, ...]:
    """The words of a command."""
    return (
        "merge",
        zeroshot,
        finetuned,
        "-r",
        "wise-ft",
        "--set",
        f"method.alpha={alpha}",
        "-o",
        output,
        *more,
    )


@pytest.mark.uncounted
@pytest.mark.parametrize("kind", [*ARCHITECTURES, "bert text"])
def test_every_kind_is_merged_and_loaded(kind: str, tmp_path: Path) -> None:
    settings = (
        ARCHITECTURES[kind]
        if kind != "bert text"
        else {"text": tiny_open_clip.bert_text(tmp_path / "bert")}
    )
    zeroshot, finetuned = save_open_clip_pair(tmp_path / "pair", model_config(**settings))
    theta_0, theta_1 = (load_file(folder / WEIGHTS) for folder in (zeroshot, finetuned))
    for alpha, source in ((0, zeroshot), (1, finetuned), (0.5, None)):
        output = tmp_path / f"merged-{alpha}"
        done(*merge(zeroshot, finetuned, output, alpha))
        merged = load_file(output / WEIGHTS)
        assert merged.keys() == theta_0.keys()
        for key, value in merged.items():
            if not value.is_floating_point():
                assert torch.equal(value, theta_1[key] if alpha == 1 else theta_0[key]), key
            else:
                assert (
                    torch.equal(value, theta_0[key] + alpha * (theta_1[key] - theta_0[key]))
                    or source
                ), key
        model = load(output)
        if source:
            for ours, theirs in zip(outputs(model), outputs(load(source)), strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    files = {path.name for path in output.iterdir()}
    assert {"open_clip_config.json", "tokenizer.json", "clipmerge.json", "README.md"} <= files
    assert not files & {"config.json", "model.safetensors"}


LAYERS = {
    "vit": [
        "vision.embeddings",
        "vision.pre_norm",
        "vision.0.attn",
        "vision.0.mlp",
        "vision.1.attn",
        "vision.1.mlp",
        "vision.2.attn",
        "vision.2.mlp",
        "vision.norm",
        "vision.projection",
        "text.embeddings",
        "text.0.attn",
        "text.0.mlp",
        "text.1.attn",
        "text.1.mlp",
        "text.2.attn",
        "text.2.mlp",
        "text.norm",
        "text.projection",
        "logit_scale",
    ],
    "resnet": [
        "vision.embeddings",
        "vision.0.conv",
        "vision.1.conv",
        "vision.2.conv",
        "vision.3.conv",
        "vision.4.conv",
        "vision.pooler",
    ],
    "timm vit": [
        "vision.embeddings",
        "vision.0.attn",
        "vision.0.mlp",
        "vision.1.attn",
        "vision.1.mlp",
    ],
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_named_in_network_order(name: str) -> None:
    keys = tiny_open_clip.build(model_config(**ARCHITECTURES[name])).state_dict()
    layers = list(OPEN_CLIP.group(OPEN_CLIP.by_canonical_name(keys)))
    assert layers[: len(LAYERS[name])] == LAYERS[name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"quick_gelu": False},
            "the vision towers differ in quick_gelu: zeroshot False, finetuned True",
        ),
        (
            {"vision_cfg": {"head_width": 8}},
            "the vision towers differ in head_width: zeroshot 8, finetuned 16",
        ),
        ({"text_cfg": {"pool_type": "eos", "eos_id": 57}}, "the text towers differ in pool_type"),
    ],
)
def test_models_that_look_alike_fail(
    folders: Folders, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    zeroshot = shutil.copytree(folders[0], tmp_path / "zeroshot")
    edit_json(zeroshot / "open_clip_config.json", model_cfg=changes)
    assert message in refused(clipmerge(*merge(zeroshot, folders[1], tmp_path / "merged")))


def test_a_text_tower_apart_is_the_same_text_tower(tmp_path: Path) -> None:
    """``CLIP`` and ``CustomTextCLIP`` differ in names alone; the output is spelled like the
    fine-tuned one."""
    zeroshot, _ = save_open_clip_pair(tmp_path / "plain", model_config())
    _, finetuned = save_open_clip_pair(tmp_path / "custom", model_config(custom_text=True))
    done(*merge(zeroshot, finetuned, tmp_path / "merged", 0))
    merged = load(tmp_path / "merged")
    assert isinstance(merged, open_clip.CustomTextCLIP)
    same(outputs(merged), outputs(load(zeroshot)))


def test_shards_that_open_clip_cannot_load_are_refused(folders: Folders, tmp_path: Path) -> None:
    line = refused(
        clipmerge(*merge(*folders, tmp_path / "merged", 0.5, "--max-shard-size", "20KB"))
    )
    assert "open_clip loads open_clip_model.safetensors but no shards" in line
    done(*merge(*folders, tmp_path / "merged", 0.5, "--max-shard-size", "1GB"))
    assert (tmp_path / "merged" / WEIGHTS).is_file()


def test_a_file_is_merged_and_takes_the_zero_shot_files(folders: Folders, tmp_path: Path) -> None:
    file = shutil.copy(folders[1] / WEIGHTS, tmp_path / "epoch_5.safetensors")
    ended = done(*merge(folders[0], file, tmp_path / "merged", 1))
    assert "no open_clip_config.json beside it" in ended.err
    same(outputs(load(tmp_path / "merged")), outputs(load(folders[1])))
    assert load_file(tmp_path / "merged" / WEIGHTS).keys() == load_file(file).keys()


def test_the_cards_snippet_loads_the_output(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(*merge(*folders, tmp_path / "merged"))
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "library_name: open_clip" in card
    snippet = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "merged")
    printed: list[Any] = []
    exec(snippet, {"print": printed.append})
    assert sum(printed[0].values()) == pytest.approx(1)


def test_a_pair_is_read_from_the_hub(
    folders: Folders, theirs: Path, hub: FakeHub, tmp_path: Path
) -> None:
    """One repository holds both libraries' configurations and a pickle besides, as those on the Hub
    do."""
    for name, folder in (("base", folders[0]), ("cars", folders[1]), ("clip", theirs)):
        upload(hub, f"acme/{name}", {path.name: path.read_bytes() for path in folder.iterdir()})
    upload(hub, "acme/cars", {"open_clip_pytorch_model.bin": b"\x80\x04never taken"})
    for base in ("base", "clip"):
        done(*merge(f"acme/{base}", "acme/cars", tmp_path / base, 1))
        same(outputs(load(tmp_path / base)), outputs(load(folders[1])))
    assert not hub.requests("GET", "/resolve/.*open_clip_pytorch_model.bin")


@pytest.mark.parametrize(
    ("ours", "custom_text"), [("zeroshot", False), ("finetuned", False), ("finetuned", True)]
)
def test_a_mixed_pair_gets_the_finetuned_layout(
    ours: str, custom_text: bool, theirs: Path, tmp_path: Path
) -> None:
    config = model_config(quick_gelu=True, **({"custom_text": True} if custom_text else {}))
    open_clip_folder = save_open_clip_pair(tmp_path / "ours", config)[0]
    zeroshot, finetuned = (
        (open_clip_folder, theirs) if ours == "zeroshot" else (theirs, open_clip_folder)
    )
    for alpha in (0, 1):
        output = tmp_path / f"merged-{alpha}"
        ended = done(*merge(zeroshot, finetuned, output, alpha))
        assert f"{zeroshot}: is converted to the layout of" in ended.err
        expected = (zeroshot, finetuned)[alpha]
        sources = (
            outputs(load(expected))
            if expected == open_clip_folder
            else features(CLIPModel.from_pretrained(expected))
        )
        merged = (
            outputs(load(output))
            if ours == "finetuned"
            else features(CLIPModel.from_pretrained(output))
        )
        same(merged, sources)
    half = tmp_path / "merged-half"
    done(*merge(zeroshot, finetuned, half))
    names = ("model.safetensors", WEIGHTS)[:: 1 if ours == "zeroshot" else -1]
    theta_1, merged_half = load_file(finetuned / names[0]), load_file(half / names[0])
    assert merged_half.keys() == theta_1.keys()
    assert not (half / names[1]).exists()
    key = "logit_scale"
    theta_0 = load_file(zeroshot / names[1])[key]
    assert torch.equal(merged_half[key], theta_0 + 0.5 * (theta_1[key] - theta_0))


def test_a_mixed_pair_that_cannot_be_merged_is_refused(theirs: Path, tmp_path: Path) -> None:
    ours = save_open_clip_pair(tmp_path / "ours", model_config())[0]
    resnet = save_open_clip_pair(tmp_path / "resnet", model_config(**ARCHITECTURES["resnet"]))[0]
    for zeroshot, finetuned, told in (
        (theirs, ours, "the vision towers differ in quick_gelu: zeroshot True"),
        (ours, theirs, "differ in hidden_act: zeroshot gelu, finetuned quick_gelu"),
        (resnet, theirs, "have no counterpart in a transformers CLIPModel"),
        (theirs, resnet, "the vision towers differ in image_size"),
    ):
        assert told in refused(clipmerge(*merge(zeroshot, finetuned, tmp_path / "merged")))


def test_a_plan_of_a_mixed_pair_gives_the_merges_bytes(
    ours: Path, theirs: Path, tmp_path: Path
) -> None:
    done(*merge(theirs, ours, tmp_path / "merged"))
    done("plan", theirs, ours, "--recipe", "wise-ft", "--output", tmp_path / "plan.json")
    done("apply", tmp_path / "plan.json", "--output", tmp_path / "applied")
    assert (tmp_path / "merged" / WEIGHTS).read_bytes() == (
        tmp_path / "applied" / WEIGHTS
    ).read_bytes()


def test_a_bare_file_takes_its_files_from_the_other_library(
    ours: Path, theirs: Path, tmp_path: Path
) -> None:
    """A bare OpenCLIP file over a transformers base: configuration and tokenizer are made from the
    base's."""
    bare = shutil.copy(ours / WEIGHTS, tmp_path / "epoch_5.safetensors")
    done(*merge(theirs, Path(bare), tmp_path / "merged", 0))
    same(outputs(load(tmp_path / "merged")), features(CLIPModel.from_pretrained(theirs)))
    ids = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'merged'}")(["a cat"])
    assert ids.shape == (1, tiny_open_clip.TEXT["context_length"])


def test_a_tower_of_transformers_goes_into_an_open_clip_base(
    ours: Path, theirs: Path, tmp_path: Path
) -> None:
    tensors = load_file(theirs / "model.safetensors")
    tower = tmp_path / "tower"
    CLIPModel.from_pretrained(theirs).vision_model.save_pretrained(tower)
    done(*merge(ours, tower, tmp_path / "merged", 1))
    merged = CLIPModel.from_pretrained(tmp_path / "merged")
    same(features(merged)[1:], outputs(load(ours))[1:])
    key = "vision_model.post_layernorm.weight"
    assert torch.equal(merged.state_dict()[key], tensors[key])
