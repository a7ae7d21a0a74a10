"""Configurations from strangers: no code of theirs runs, no file is opened that they name, and no model grows."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipmerge.checkpoint import open_checkpoint
from clipmerge.errors import CheckpointError
from clipmerge.evaluation.accuracy import load_model
from clipmerge.evaluation.retrieval import text_embeddings
from tests.support.command import clipmerge, refused
from tests.support.tiny_open_clip import build, model_config, save

CODE = """
from pathlib import Path
from transformers import CLIPProcessor, CLIPTokenizerFast
Path({place!r}).touch()
class Evil(CLIPTokenizerFast): pass
"""


def changed(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def open_clip_with(folder: Path, *, vocabulary: int | None = None, text: Any = None, vision: Any = None) -> Path:
    """A tiny OpenCLIP folder whose configuration says something else than the weights."""
    model_cfg = model_config(text={"vocab_size": vocabulary} if vocabulary else None)
    save(build(model_cfg), model_cfg, folder, tokenizer=vocabulary is None)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= text or {}
    config["model_cfg"]["vision_cfg"] |= vision or {}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def test_a_tokenizer_of_open_clip_runs_no_code_of_its_folder(images: Path, tmp_path: Path) -> None:
    """open_clip passes the configuration's options on to transformers, where one of them says that code may run."""
    folder = open_clip_with(tmp_path / "oc", text={"tokenizer_kwargs": {"trust_remote_code": True}})
    (folder / "evil.py").write_text(CODE.format(place=str(tmp_path / "it ran")))
    changed(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": [None, "evil.Evil"]})
    line = refused(clipmerge("evaluate", folder, "--data", f"val={images}"))
    assert "has tokenizer_kwargs that are not allowed (trust_remote_code)" in line
    assert not (tmp_path / "it ran").exists()
    config = (folder / "open_clip_config.json").read_text().replace('"trust_remote_code"', '"strip_sep_token"')
    (folder / "open_clip_config.json").write_text(config)
    clipmerge("evaluate", folder, "--data", f"val={images}")
    assert not (tmp_path / "it ran").exists()


def test_a_tokenizer_of_open_clip_opens_no_file_that_its_configuration_names(images: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    options = {"tokenizer_kwargs": {"bpe_path": str(tmp_path / "pipe")}}
    folder = open_clip_with(tmp_path / "oc", vocabulary=49408, text=options)
    assert "not allowed (bpe_path)" in refused(clipmerge("evaluate", folder, "--data", f"val={images}"))


@pytest.mark.parametrize("name", ["hf-hub:evil/model", "local-dir:/tmp", "../x"])
def test_a_tower_of_timm_comes_from_its_own_list(tmp_path: Path, name: str) -> None:
    folder = open_clip_with(tmp_path / "oc", vision={"timm_model_name": name})
    with pytest.raises(CheckpointError, match="is not in timm's own list of models"):
        load_model(open_checkpoint(str(folder)))


def test_nobody_is_asked_whether_code_may_run(
    pair: tuple[Path, Path], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers asks on the terminal; whatever is piped into the command would answer."""
    folder = Path(shutil.copytree(pair[0], tmp_path / "model"))
    (folder / "evil.py").write_text(CODE.format(place=str(tmp_path / "it ran")))
    for file in folder.glob("*config.json"):
        classes = dict.fromkeys(("AutoProcessor", "AutoImageProcessor", "AutoConfig"), "evil.Evil")
        changed(file, auto_map={**classes, "AutoTokenizer": [None, "evil.Evil"]}, processor_class="Evil")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    clipmerge("evaluate", folder, "--data", f"val={images}")
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize(
    "vision", [{"layers": 10**7}, {"width": 10**6, "head_width": 10**6}, {"image_size": 10**6, "patch_size": 1}]
)
def test_open_clip_builds_no_model_far_larger_than_the_weights(tmp_path: Path, vision: dict[str, int]) -> None:
    folder = open_clip_with(tmp_path / "oc", vision=vision)
    with pytest.raises(CheckpointError, match=r"it describes a far larger model|open_clip cannot build the model"):
        load_model(open_checkpoint(str(folder)))


@pytest.mark.uncounted
@pytest.mark.parametrize(
    ("section", "values"),
    [("vision_config", {"num_hidden_layers": 10**7}), ("text_config", {"vocab_size": 10**12})],
)
def test_transformers_builds_no_model_far_larger_than_the_weights(
    pair: tuple[Path, Path], tmp_path: Path, section: str, values: dict[str, int]
) -> None:
    folder = Path(shutil.copytree(pair[0], tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {section: config[section] | values}))
    with pytest.raises(CheckpointError, match="does not match the weights: it describes a far larger model"):
        load_model(open_checkpoint(str(folder)))


def test_a_processor_makes_no_huge_images(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pair[0], tmp_path / "model"))
    (file,) = [path for path in folder.glob("*processor_config.json") if "crop_size" in path.read_text()]
    file.write_text(file.read_text().replace('"shortest_edge": 32', '"shortest_edge": 20000'))
    with pytest.raises(CheckpointError, match="its image processor makes images of more than 2048 pixels per side"):
        load_model(open_checkpoint(str(folder)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", "[1]"),
        ("tokenizer.json", '{"model": {}}'),
        ("tokenizer_config.json", "[]"),
        ("*processor_config.json", "null"),
        ("*processor_config.json", '{"image_processor": {"image_processor_type": "CLIPImageProcessor", "size": "x"}}'),
        ("*processor_config.json", '{"processor_class": "../x", "image_processor_type": 5}'),
        (
            "*processor_config.json",
            '{"processor_class": "CLIPProcessor", "image_processor": {"image_processor_type": "CLIPImageProcessor", '
            '"size": {"shortest_edge": -3}}}',
        ),
        ("tokenizer_config.json", '{"tokenizer_class": "CLIPTokenizer", "pad_token": null}'),
    ],
)
def test_a_damaged_processor_is_one_line(
    pair: tuple[Path, Path], images: Path, tmp_path: Path, name: str, text: str
) -> None:
    folder = Path(shutil.copytree(pair[0], tmp_path / "model"))
    for file in folder.glob(name):
        file.write_text(text)
    refused(clipmerge("evaluate", folder, "--data", f"val={images}"))


@pytest.mark.parametrize(
    ("section", "values", "told"),
    [
        ("vision_config", {"hidden_act": "exec"}, "cannot build the model of its configuration ('exec')"),
        ("vision_config", {"patch_size": 0}, "cannot build the model of its configuration (integer division"),
        ("vision_config", {"image_size": 10**9, "patch_size": 1}, "its configuration"),
    ],
)
def test_a_configuration_that_describes_no_model_is_one_line(
    pair: tuple[Path, Path], images: Path, tmp_path: Path, section: str, values: dict[str, Any], told: str
) -> None:
    folder = Path(shutil.copytree(pair[0], tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {section: config[section] | values}))
    assert told in refused(clipmerge("evaluate", folder, "--data", f"val={images}"))


def test_no_kernel_that_a_configuration_names_is_fetched(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """transformers would download it from the Hub and run it."""
    folder = Path(shutil.copytree(pair[0], tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    strange = {"attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel"}
    inner = {name: config[name] | strange for name in ("text_config", "vision_config")}
    (folder / "config.json").write_text(json.dumps(config | strange | inner))
    model = load_model(open_checkpoint(str(folder)))
    assert "evil" not in str(model.module.config.to_dict())
    assert model.module.config._attn_implementation in ("sdpa", "eager")


@pytest.mark.parametrize(
    "stated", [{"mean": "x"}, {"mean": [1, 2, 3, 4]}, {"std": [0, 0, 0]}, {"interpolation": "x"}, {"mode": "XYZ"}, 5]
)
def test_preprocessing_that_open_clip_does_not_know_is_one_line(images: Path, tmp_path: Path, stated: Any) -> None:
    folder = open_clip_with(tmp_path / "oc")
    changed(folder / "open_clip_config.json", preprocess_cfg=stated)
    line = refused(clipmerge("evaluate", folder, "--data", f"val={images}"))
    assert "its images cannot be prepared (" in line


def test_images_of_another_size_than_the_models(pair: tuple[Path, Path], images: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pair[0], tmp_path / "model"))
    (file,) = [path for path in folder.glob("*processor_config.json") if "crop_size" in path.read_text()]
    file.write_text(file.read_text().replace('"do_center_crop": true', '"do_center_crop": false'))
    line = refused(clipmerge("evaluate", folder, "--data", f"val={images}"))
    assert "its image processor does not fit its model (Input image size" in line


def test_words_that_the_text_tower_does_not_know(pair: tuple[Path, Path], images: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pair[0], tmp_path / "model"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {
        word: 10**6 if number == max(words.values()) else number for word, number in words.items()
    }
    for token in tokenizer["added_tokens"]:
        token["id"] = tokenizer["model"]["vocab"].get(token["content"], token["id"])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    line = refused(clipmerge("evaluate", folder, "--data", f"val={images}"))
    assert "its tokenizer has token 1000000, but its text tower knows" in line
    bad = open_clip_with(tmp_path / "oc")
    shutil.copy(folder / "tokenizer.json", bad / "tokenizer.json")
    assert "its tokenizer has token 1000000, but" in refused(clipmerge("evaluate", bad, "--data", f"val={images}"))


def test_a_long_caption_is_cut_before_it_is_put_into_words(pair: tuple[Path, Path]) -> None:
    model = load_model(open_checkpoint(str(pair[0])))
    seen: list[str] = []
    tokens = model.tokens
    model.tokens = lambda texts: (seen.extend(texts), tokens(texts))[1]  # type: ignore[method-assign]
    text_embeddings(model, ["ab" * 1_000_000], next(model.module.parameters()).device)
    assert [len(text) for text in seen] == [2000]


def test_an_image_that_would_grow_when_its_short_side_does_is_refused(
    pair: tuple[Path, Path], images: Path, tmp_path: Path
) -> None:
    """A line of 65,000 pixels would be resized to 224 times 14,560,000."""
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    Image.new("RGB", (65000, 1)).save(folder / "cat" / "line.png")
    line = refused(clipmerge("evaluate", pair[0], "--data", f"val={folder}"))
    assert "line.png: cannot be read as an image (65000 x 1 pixels, one side more than 30 times the other)" in line
