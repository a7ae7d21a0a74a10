"""`clipmerge convert`: the target library loads its output, including processor and tokenizer."""

import hashlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer

from clipmerge.conversion.config import image_processor_config, preprocess_cfg
from clipmerge.errors import CheckpointError
from clipmerge.output import layout_files
from clipmerge.report.text import text_of
from tests.conversion.test_conversion import features, same
from tests.support import tiny_open_clip
from tests.support.command import clipmerge, done, refused
from tests.support.raw_safetensors import edit_json
from tests.support.tiny_clip import Folders
from tests.support.tiny_open_clip import build, load, model_config, outputs

TEXTS = ["a photo of a cat.", "Two dogs,  running", "it's 3 o'clock on the Zürichsee", "x" * 300]


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """An OpenCLIP folder."""
    config = model_config(quick_gelu=True)
    return tiny_open_clip.save(build(config), config, tmp_path / "ours")


@pytest.fixture
def theirs(copies: Folders) -> Path:
    """A transformers folder."""
    return copies[0].rename(copies[0].with_name("theirs"))


LAYOUTS = {
    "ours": ("open_clip_config.json", "transformers"),
    "theirs": ("config.json", "open-clip"),
}


def test_open_clip_becomes_transformers(ours: Path, tmp_path: Path) -> None:
    (ours / "LICENSE").write_text("MIT")
    (ours / "NOTICE").write_text("mine")
    converted = done("convert", ours, tmp_path / "out", "--to", "transformers", "--format", "json")
    model, info = CLIPModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    same(features(model.eval()), outputs(load(ours)))
    processor = CLIPProcessor.from_pretrained(tmp_path / "out")
    words = processor.tokenizer(["a cat", "dog"], padding="max_length", max_length=32).input_ids
    assert torch.equal(
        torch.tensor(words), open_clip.get_tokenizer(f"local-dir:{ours}")(["a cat", "dog"])
    )
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{ours}")
    image = Image.linear_gradient("L").convert("RGB").resize((32, 32))
    pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, transform(image)[None], atol=1e-6, rtol=0)
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record == converted.json
    written = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (tmp_path / "out").iterdir()
    }
    assert record["files"] == {
        name: digest for name, digest in written.items() if name != "conversion.json"
    }
    assert {"LICENSE", "NOTICE"} <= written.keys()


def test_transformers_becomes_open_clip(theirs: Path, tmp_path: Path) -> None:
    converted = done("convert", theirs, tmp_path / "out", "--to", "open-clip")
    assert "local-dir:" in converted.err + converted.out
    assert (
        "the tokenizer is not CLIP's own: text_cfg.hf_tokenizer_name is 'theirs'" in converted.err
    )
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    source = CLIPModel.from_pretrained(theirs).eval()
    same(outputs(model.eval()), features(source))
    processor = CLIPProcessor.from_pretrained(theirs)
    ids = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")(["a cat", "dog"])
    assert torch.equal(
        ids, torch.tensor(processor.tokenizer(["a cat", "dog"], padding="max_length").input_ids)
    )
    image = Image.linear_gradient("L").convert("RGB").resize((32, 32))
    pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(transform(image)[None], pixels, atol=1e-6, rtol=0)


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_there_and_back_gives_the_same_bytes(
    first: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(first)
    there, back = (
        ("transformers", "open-clip") if first == "ours" else ("open-clip", "transformers")
    )
    done("convert", folder, tmp_path / "there", "--to", there)
    done("convert", tmp_path / "there", tmp_path / "back", "--to", back)
    name = "open_clip_model.safetensors" if first == "ours" else "model.safetensors"
    before, after = load_file(folder / name), load_file(tmp_path / "back" / name)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.fixture(scope="module")
def with_clips_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OpenCLIP folder with CLIP's own vocabulary and no tokenizer, as most are."""
    config = model_config(text={"vocab_size": 49408, "context_length": 77})
    return tiny_open_clip.save(
        build(config), config, tmp_path_factory.mktemp("clip") / "model", tokenizer=False
    )


def test_clips_own_tokenizer_is_made(with_clips_words: Path, tmp_path: Path) -> None:
    done("convert", with_clips_words, tmp_path / "out", "--to", "transformers")
    ids = CLIPTokenizer.from_pretrained(tmp_path / "out")(
        TEXTS, padding="max_length", truncation=True
    ).input_ids
    expected = open_clip.get_tokenizer(f"local-dir:{with_clips_words}")(TEXTS)
    length = expected.argmax(
        dim=-1
    )  # behind the end OpenCLIP pads with 0, transformers with the end
    for row, end in enumerate(length.tolist()):
        assert ids[row][: end + 1] == expected[row, : end + 1].tolist()
    assert layout_files.has_clip_vocabulary(tmp_path / "out")
    done("convert", tmp_path / "out", tmp_path / "back", "--to", "open-clip")
    back = json.loads((tmp_path / "back" / "open_clip_config.json").read_text())
    assert "hf_tokenizer_name" not in back["model_cfg"]["text_cfg"]
    assert torch.equal(open_clip.get_tokenizer(f"local-dir:{tmp_path / 'back'}")(TEXTS), expected)


def test_without_open_clip_one_line_says_what_to_install(
    with_clips_words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "open_clip" else find_spec(name)
    )
    line = refused(clipmerge("convert", with_clips_words, tmp_path / "out", "--to", "transformers"))
    assert "install clipmerge[open-clip]" in line
    assert not (tmp_path / "out").exists()


def test_a_foreign_tokenizer_must_lie_there(ours: Path, tmp_path: Path) -> None:
    (ours / "tokenizer.json").unlink()
    line = refused(clipmerge("convert", ours, tmp_path / "out", "--to", "transformers"))
    assert "its tokenizer is that of acme/tiny" in line
    edit_json(ours / "open_clip_config.json", model_cfg={"text_cfg": {"hf_tokenizer_name": ...}})
    line = refused(clipmerge("convert", ours, tmp_path / "out", "--to", "transformers"))
    assert "has 58 tokens, but open_clip_config.json names no tokenizer" in line


def test_what_cannot_be_converted_is_an_error_of_one_line(
    ours: Path, theirs: Path, tmp_path: Path
) -> None:
    for source, to in ((ours, "open-clip"), (theirs, "transformers")):
        line = refused(clipmerge("convert", source, tmp_path / "out", "--to", to))
        assert f"is already in the layout of {to}" in line
    line = refused(clipmerge("convert", ours, tmp_path / "out", "--to", "jax"), code=2)
    assert "--to jax: choose from transformers, open-clip" in line
    (ours / "open_clip_config.json").unlink()
    line = refused(
        clipmerge(
            "convert",
            ours / "open_clip_model.safetensors",
            tmp_path / "out",
            "--to",
            "transformers",
        )
    )
    assert "has no open_clip_config.json beside it" in line


@pytest.mark.parametrize(
    ("which", "key", "value", "message"),
    [
        ("ours", "model_cfg.embed_dim", ..., r"cannot be understood \(KeyError: 'embed_dim'\)"),
        ("ours", "model_cfg.vision_cfg", [1], "cannot be understood"),
        (
            "ours",
            "model_cfg.vision_cfg.head_width",
            64,
            "head_width makes 0 heads, which do not divide 32 channels",
        ),
        (
            "ours",
            "model_cfg.vision_cfg.norm_kwargs",
            {"eps": "x"},
            "cannot be understood .*float: 'x'",
        ),
        (
            "ours",
            "model_cfg.text_cfg.heads",
            5,
            "text_cfg.heads makes 5 heads, which do not divide 32 channels",
        ),
        ("ours", "preprocess_cfg.interpolation", "lanczos", "preprocessing cannot be understood"),
        ("theirs", "text_config.hidden_size", "32", "cannot be understood .*TypeError"),
        (
            "theirs",
            "vision_config.num_attention_heads",
            3,
            "makes 3 heads, which do not divide 32 channels",
        ),
        (
            "theirs",
            "vision_config.num_hidden_layers",
            10**12,
            "tower has 1000000000000 layers, but the weights have 3",
        ),
    ],
)
def test_settings_that_fit_no_model_are_named(
    which: str, key: str, value: Any, message: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(which)
    name, to = LAYOUTS[which]
    changes = value
    for part in reversed(key.split(".")):
        changes = {part: changes}
    edit_json(folder / name, **changes)
    for old_form in (False, True) if key.startswith("vision_config.") else (False,):
        if old_form:
            config = json.loads((folder / name).read_text())
            edit_json(folder / name, vision_config_dict=config["vision_config"], vision_config=...)
        line = refused(clipmerge("convert", folder, tmp_path / "out", "--to", to))
        assert re.search(message, line), line
        assert name in line or "preprocessing" in message
        assert not (tmp_path / "out").exists()


def test_an_output_is_replaced_only_when_asked(ours: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    arguments = ("convert", ours, tmp_path / "out", "--to", "transformers")
    for flags in ((), ("--overwrite",)):
        assert "holds no conversion.json" in refused(clipmerge(*arguments, *flags))
    (tmp_path / "out" / "notes.txt").unlink()
    done(*arguments)
    assert "already exists" in refused(clipmerge(*arguments))
    done(*arguments, "--overwrite")
    assert ", which this command reads" in refused(
        clipmerge("convert", ours, ours, "--to", "transformers")
    )


def test_a_broken_weight_is_named_and_half_precision_stays(ours: Path, tmp_path: Path) -> None:
    weights = load_file(ours / "open_clip_model.safetensors")
    weights["visual.proj"][0, 0] = float("nan")
    save_file(weights, ours / "open_clip_model.safetensors")
    line = refused(clipmerge("convert", ours, tmp_path / "out", "--to", "transformers"))
    assert "tensor visual_projection.weight holds NaN" in line
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
    weights["visual.proj"][0, 0] = 0.0  # and half precision stays half
    save_file(
        {key: value.bfloat16() for key, value in weights.items()},
        ours / "open_clip_model.safetensors",
    )
    done("convert", ours, tmp_path / "out", "--to", "transformers")
    assert CLIPModel.from_pretrained(tmp_path / "out").dtype is torch.bfloat16


def test_preprocessing_is_reported_in_the_others_words() -> None:
    squash = {
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    said = image_processor_config(squash, 64)
    assert (said["size"], said["resample"], said["do_center_crop"]) == (
        {"height": 64, "width": 64},
        2,
        False,
    )
    assert preprocess_cfg(said, 64) == (squash, [])
    with pytest.raises(CheckpointError, match="resize_mode=longest has no counterpart"):
        image_processor_config({"resize_mode": "longest"}, 64)


def test_preprocessing_that_open_clip_lacks_is_reported() -> None:
    for changes, message in (
        (
            {"size": {"shortest_edge": 256}},
            "resized to 256 there, but OpenCLIP resizes to the model's 224",
        ),
        ({"resample": 0}, "Pillow's filter 0 there"),
    ):
        _, (note,) = preprocess_cfg({"size": 224, "crop_size": 224, **changes}, 224)
        assert message in text_of(note)
