"""Configurations from strangers: no code of theirs runs, no file is opened that they name, and no
model grows."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipmerge.checkpoint import open_checkpoint
from clipmerge.evaluation.accuracy import load_model
from tests.support.command import clipmerge, refused
from tests.support.raw_safetensors import edit, edit_json
from tests.support.tiny_clip import CLASSES, Folders, save_classifiers, save_pair
from tests.support.tiny_open_clip import build, model_config, save

CODE = """
from pathlib import Path
from transformers import CLIPProcessor, CLIPTokenizerFast
Path({place!r}).touch()
class Evil(CLIPTokenizerFast): pass
"""
Change = Callable[[Path], object]


def config(**sections: Any) -> Change:
    return lambda folder: edit_json(folder / "config.json", **sections)


KEY = "vision_model.encoder.layers.1.mlp.fc1.weight"
DAMAGED: dict[str, tuple[Change, str]] = {
    "a missing weight": (
        lambda folder: edit(folder, **{KEY.replace(".", "__"): None}),
        f"has no {KEY}",
    ),
    "another width": (config(projection_dim=24), "config.json does not match the weights"),
    "an activation that runs code": (
        config(vision_config={"hidden_act": "exec"}),
        "cannot build the model of its configuration ('exec')",
    ),
    "images of another size": (
        lambda folder: edit_json(
            folder / "processor_config.json", image_processor={"do_center_crop": False}
        ),
        "its image processor does not fit its model (Input image size",
    ),
    "a class out of its folder": (
        lambda folder: (folder / "processor_config.json").write_text(
            '{"processor_class": "../x", "image_processor_type": 5}'
        ),
        "",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_folder_of_transformers_is_an_error_of_one_line(
    copies: Folders, images: Path, name: str
) -> None:
    change, told = DAMAGED[name]
    change(copies[0])
    line = refused(clipmerge("evaluate", copies[0], "--data", f"val={images}"))
    assert line.startswith(f"error: {copies[0]}")
    assert told in line
    assert "zero-shot" not in line


def open_clip_with(folder: Path, **changes: Any) -> Path:
    """A tiny OpenCLIP folder whose configuration says something else than the weights."""
    save(build(model_config()), model_config(), folder)
    edit_json(folder / "open_clip_config.json", **changes)
    return folder


def test_a_tokenizer_of_open_clip_runs_no_code_of_its_folder(images: Path, tmp_path: Path) -> None:
    """open_clip passes the configuration's options on to transformers, where one of them says that
    code may run."""
    kwargs: dict[str, Any] = {"tokenizer_kwargs": {"trust_remote_code": True}}
    folder = open_clip_with(tmp_path / "oc", model_cfg={"text_cfg": kwargs})
    (folder / "evil.py").write_text(CODE.format(place=str(tmp_path / "it ran")))
    edit_json(
        folder / "tokenizer_config.json",
        tokenizer_class="Evil",
        auto_map={"AutoTokenizer": [None, "evil.Evil"]},
    )
    line = refused(clipmerge("evaluate", folder, "--data", f"val={images}"))
    assert "its tokenizer cannot be loaded" in line
    assert not (tmp_path / "it ran").exists()
    kwargs["tokenizer_kwargs"] = {"trust_remote_code": ..., "strip_sep_token": True}
    edit_json(folder / "open_clip_config.json", model_cfg={"text_cfg": kwargs})
    clipmerge("evaluate", folder, "--data", f"val={images}")
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"model_cfg": {"vision_cfg": {"head_widht": 16}}},
            "open_clip cannot build the model of open_clip_config.json.*head_widht",
        ),
        ({"preprocess_cfg": {"mean": [1, 2, 3, 4]}}, r"its images cannot be prepared \("),
        ({"model_cfg": {"text_cfg": 3}}, "has no model_cfg with vision_cfg and text_cfg"),
    ],
)
def test_what_open_clip_cannot_build_is_an_error_of_one_line(
    images: Path, tmp_path: Path, changes: Any, told: str
) -> None:
    folder = open_clip_with(tmp_path / "oc", **changes)
    assert re.search(told, refused(clipmerge("evaluate", folder, "--data", f"val={images}")))


def test_nobody_is_asked_whether_code_may_run(
    copies: Folders, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers asks on the terminal; whatever is piped into the command would answer."""
    (copies[0] / "evil.py").write_text(CODE.format(place=str(tmp_path / "it ran")))
    for file in copies[0].glob("*config.json"):
        classes = dict.fromkeys(("AutoProcessor", "AutoImageProcessor", "AutoConfig"), "evil.Evil")
        edit_json(
            file, auto_map={**classes, "AutoTokenizer": [None, "evil.Evil"]}, processor_class="Evil"
        )
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    clipmerge("evaluate", copies[0], "--data", f"val={images}")
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("headed", [False, True])
def test_no_kernel_that_a_configuration_names_is_fetched(tmp_path: Path, headed: bool) -> None:
    """transformers would download it from the Hub and run it."""
    folder, *_ = save_classifiers(tmp_path, CLASSES) if headed else save_pair(tmp_path)
    strange = {"attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel"}
    edit_json(folder / "config.json", **strange, text_config=strange, vision_config=strange)
    model = load_model(open_checkpoint(str(folder)))
    assert "evil" not in str(model.module.config.to_dict())
    assert model.module.config._attn_implementation in ("sdpa", "eager")
