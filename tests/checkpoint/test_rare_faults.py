"""Checkpoints whose faults are rare: too much of something, two keys of one parameter, files that cannot be opened."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from clipmerge.checkpoint import adapter_config, open_checkpoint
from clipmerge.checkpoint.preview import preview_checkpoint
from clipmerge.errors import CheckpointError
from clipmerge.families import known_keys
from clipmerge.families.clip import FAMILY as CLIP
from tests.support.hub_double import serving, upload
from tests.support.lora_adapters import configure, save_adapter

Folders = tuple[Path, Path]
KEY = "vision_model.encoder.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def adapter(pair: Folders, tmp_path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return save_adapter(pair[0], tmp_path / "adapter", use_dora=True)


def refuse(adapter: Path, base: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(adapter), base=open_checkpoint(str(base)))


def with_tensor(adapter: Path, ending: str, tensor: torch.Tensor) -> Path:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if "layers.0.self_attn.q_proj" in key and key.endswith(ending))
    save_file({**tensors, key: tensor}, file)
    return adapter


def test_lengths_of_another_number_are_refused(pair: Folders, adapter: Path) -> None:
    changed = with_tensor(adapter, "lora_magnitude_vector", torch.ones(31))
    refuse(changed, pair[0], r"lora_magnitude_vector.* is \(31,\), the base's .*q_proj\.weight \(32, 32\)")


@pytest.mark.parametrize("ending", ["lora_A.weight", "lora_B.weight"])
def test_a_factor_that_is_no_matrix_is_refused(pair: Folders, adapter: Path, ending: str) -> None:
    refuse(with_tensor(adapter, ending, torch.ones(4)), pair[0], r"the LoRA of .*q_proj\.weight is")


def test_many_patterns_are_refused(pair: Folders, adapter: Path) -> None:
    most = adapter_config.MOST_PATTERNS
    changed = configure(adapter, rank_pattern={f"layer{number}": 4 for number in range(most + 1)})
    refuse(changed, pair[0], rf"{most + 1} patterns, more than {most}")


def test_a_file_with_two_keys_of_one_parameter_is_no_clip(pair: Folders) -> None:
    """A tower's own spelling beside that of the whole model."""
    vision = [key for key in load_file(pair[1] / "model.safetensors") if key.startswith("vision_model.")]
    own = KEY.removeprefix("vision_model.")
    assert known_keys(CLIP, vision) == len(vision)
    assert known_keys(CLIP, [*vision, own]) == 0
    with pytest.raises(CheckpointError, match=rf"keys '.*{own}' and '.*{own}' are the same parameter"):
        CLIP.canonical_names([*vision, own])


def test_offline_nothing_is_previewed(pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, monkeypatch) as hub:
        sha = upload(hub, "acme/base", {path.name: path.read_bytes() for path in pair[0].iterdir()})
        shown = preview_checkpoint(f"acme/base@{sha}")
        assert shown is not None
        opened = open_checkpoint(f"acme/base@{sha}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert preview_checkpoint(f"acme/base@{sha}") is None
        assert shown.entries.keys() == opened.entries.keys()
