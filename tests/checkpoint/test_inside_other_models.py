"""Towers inside other models: both text encoders of one file, and the towers of models that talk."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipmerge.checkpoint import open_checkpoint
from clipmerge.checkpoint.wrappers import text_encoders
from clipmerge.errors import CheckpointError
from clipmerge.report.text import texts_of
from tests.support.command import clipmerge, done, refused
from tests.support.tiny_clip import Folders
from tests.support.tiny_open_clip import build, model_config

CLIPS, OPEN_CLIPS = "conditioner.embedders.0.transformer", "conditioner.embedders.1.model"


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture
def diffusion(pair: Folders, tmp_path: Path) -> Folders:
    """Two files like those of Stable Diffusion XL: two text encoders and a denoiser."""
    files = (tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    for number, (folder, file) in enumerate(zip(pair, files, strict=True)):
        text = {n: v for n, v in weights_of(folder).items() if n.startswith("text_model.")}
        other = build(model_config(), seed=number).state_dict()
        other = {n: v for n, v in other.items() if not n.startswith("visual.")}
        tensors = {
            **{f"{CLIPS}.{name}": value for name, value in text.items()},
            **{f"{OPEN_CLIPS}.{name}": value.contiguous() for name, value in other.items()},
            "model.diffusion_model.out.0.weight": torch.ones(3),
        }
        save_file(tensors, file)
    return files


def test_a_file_with_two_text_encoders_names_both(diffusion: Folders, tmp_path: Path) -> None:
    line = refused(clipmerge("merge", *diffusion, "-r", "wise-ft", "-o", tmp_path / "out"))
    assert "holds 2 text encoders; name the one that you mean after a #" in line
    assert f"#{CLIPS} or #{OPEN_CLIPS}" in line


@pytest.mark.parametrize(("part", "other"), [(CLIPS, OPEN_CLIPS), (OPEN_CLIPS, CLIPS)])
def test_the_encoder_that_is_asked_for_is_merged_and_the_other_one_named(
    diffusion: Folders, tmp_path: Path, part: str, other: str
) -> None:
    sources = [f"{file}#{part}" for file in diffusion]
    outcome = done("merge", *sources, "-r", "wise-ft", "-o", tmp_path / "out")
    files = [load_file(file) for file in diffusion]
    changed = sum(
        not torch.equal(value, files[1][name])
        for name, value in files[0].items()
        if name.startswith(f"{other}.")
    )
    assert f"its other text encoder, {other}, is not merged; fine-tuning changed {changed} of" in (
        outcome.err
    )
    square = {
        encoder: sum(
            float(((value.double() - files[1][name].double()) ** 2).sum())
            for name, value in files[0].items()
            if name.startswith(f"{encoder}.")
        )
        for encoder in (part, other)
    }
    share = square[other] / sum(square.values())
    assert f"tensors, {share:.1%} of the change of both (sum of squares)" in outcome.err
    (written,) = (tmp_path / "out").glob("*.safetensors")
    names = {name.removeprefix(f"{part}.") for name in files[0] if name.startswith(f"{part}.")}
    assert load_file(written).keys() == names - {"attn_mask"}


def test_an_encoder_that_did_not_change_is_reported_to_be_the_same(
    diffusion: Folders, tmp_path: Path
) -> None:
    base, tuned = map(load_file, diffusion)
    same = {name: value for name, value in base.items() if name.startswith(OPEN_CLIPS)}
    save_file({**tuned, **same}, diffusion[1])
    sources = [f"{file}#{CLIPS}" for file in diffusion]
    outcome = done("merge", *sources, "-r", "wise-ft", "-o", tmp_path / "out")
    assert f"{OPEN_CLIPS}, is not merged; it is the same in both" in outcome.err


def test_an_average_of_weights_beside_the_clip_is_called_one(pair: Folders, tmp_path: Path) -> None:
    weights = {f"clip.{name}": value for name, value in weights_of(pair[1]).items()}
    file = tmp_path / "tuned.safetensors"
    save_file({**weights, "model_ema.diffusion_modelout0weight": torch.ones(3)}, file)
    note = "; ".join(texts_of(open_checkpoint(str(file)).notes))
    assert "1 tensor beside it, an average of weights: model_ema" in str(note)


def test_two_whole_models_in_one_file_are_no_text_encoders() -> None:
    """open_clip's CustomTextCLIP has its text tower under ``text``."""
    custom = build(model_config(custom_text=True)).state_dict()
    plain = build(model_config()).state_dict()
    for model in (custom, plain):
        assert text_encoders([f"{place}.{name}" for place in "ab" for name in model]) == []
    assert text_encoders(custom) == []


def talking(folder: Path, clip: Path, model_type: str, tower: str) -> Path:
    """A model that talks about images, with a CLIP's vision tower under ``model.vision_tower``."""
    folder.mkdir()
    config = json.loads((clip / "config.json").read_text())
    vision = {**config["vision_config"], "model_type": tower}
    settings = {"model_type": model_type, "vision_config": vision, "text_config": {}}
    (folder / "config.json").write_text(json.dumps(settings))
    seen = {n: v for n, v in weights_of(clip).items() if n.startswith("vision_model.")}
    tensors = {f"model.vision_tower.{name}": value for name, value in seen.items()}
    save_file(
        {**tensors, "language_model.embed.weight": torch.ones(3)}, folder / "model.safetensors"
    )
    return folder


def test_the_vision_tower_of_a_model_that_talks_is_named_and_merged(
    pair: Folders, tmp_path: Path
) -> None:
    tuned = talking(tmp_path / "llava", pair[1], "llava", "clip_vision_model")
    line = refused(clipmerge("merge", pair[0], tuned, "-r", "wise-ft", "-o", tmp_path / "out"))
    place = f"{tuned}#model.vision_tower"
    assert f"is a 'llava' model, whose vision tower is a clip_vision_model; give {place}" in line
    alpha = ("--set", "method.alpha=1")
    done("merge", pair[0], place, "-r", "wise-ft", *alpha, "-o", tmp_path / "out")
    merged, expected = weights_of(tmp_path / "out"), weights_of(pair[1])
    vision = [name for name in merged if name.startswith("vision_model.")]
    assert all(torch.equal(merged[name], expected[name]) for name in vision)
    base = talking(tmp_path / "base", pair[0], "llava", "clip_vision_model")
    sources = (f"{base}#model.vision_tower", place)
    done("merge", *sources, "-r", "wise-ft", *alpha, "-o", tmp_path / "tower")
    config = json.loads((tmp_path / "tower" / "config.json").read_text())
    assert config["model_type"] == "clip_vision_model"


def test_a_model_that_talks_without_a_clip_has_nothing_to_merge(
    pair: Folders, tmp_path: Path
) -> None:
    """Qwen2-VL's vision tower has names like OpenCLIP's."""
    folder = talking(tmp_path / "qwen", pair[1], "qwen2_vl", "qwen2_vl")
    save_file({"visual.blocks.0.attn.qkv.weight": torch.ones(3, 3)}, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"is a 'qwen2_vl' model, without a tower of a CLIP or"
    ):
        open_checkpoint(str(folder))


def test_an_encoder_that_the_base_does_not_have_is_only_named(
    diffusion: Folders, pair: Folders, tmp_path: Path
) -> None:
    source = f"{diffusion[1]}#{CLIPS}"
    ended = done(
        "merge", pair[0], source, "-r", "wise-ft", "--allow", "half-zeroshot", "-o", tmp_path / "o"
    )
    assert f"its other text encoder, {OPEN_CLIPS}, is not merged" in ended.err
    assert "of the change of both" not in ended.err
