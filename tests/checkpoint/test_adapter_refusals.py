"""Unsupported or broken adapters, and adapters without a base, are refused in one line."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipmerge.checkpoint import open_checkpoint
from clipmerge.checkpoint.adapter import MOST_PATTERNS, read_adapter_config
from clipmerge.errors import CheckpointError
from tests.checkpoint.lora_adapters import Q, configure, save_adapter
from tests.support.command import clipmerge, one_line, refused

NOT_LORA = "not a LoRA configuration"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "LOHA"}, "type LOHA; clipmerge reads LORA.*merge_and_unload"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4', which changes the base"),
    "replication": ({"layer_replication": [[0, 2]]}, "uses layer_replication, whose arithmetic"),
    "rank 0": ({"r": 0}, NOT_LORA),
    "an endless alpha": ({"alpha_pattern": {"a": float("inf")}}, NOT_LORA),
    "another rank": ({"r": 8}, "has rank 4, but adapter_config.json says 8; the scale would be wrong"),
    "many patterns": (
        {"rank_pattern": {f"layer{number}": 4 for number in range(MOST_PATTERNS + 1)}},
        rf"{MOST_PATTERNS + 1} patterns, more than {MOST_PATTERNS}",
    ),
    # patterns that could take long
    **{pattern: ({"rank_pattern": {pattern: 2}}, NOT_LORA) for pattern in (*("(a+)+b", ".*.*.*.*x", "a" * 501, "["),)},
}


@pytest.fixture(scope="module")
def plain(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return save_adapter(pair[0], tmp_path_factory.mktemp("plain") / "adapter")


@pytest.fixture
def adapter(plain: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(plain, tmp_path / "adapter"))


def refuse(adapter: Path | str, base: Path, message: str) -> None:
    with one_line(CheckpointError, message):
        open_checkpoint(str(adapter), base=open_checkpoint(str(base)))


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_understood_is_refused(pair: tuple[Path, Path], adapter: Path, what: str) -> None:
    changes, message = REFUSED[what]
    refuse(configure(adapter, **changes), pair[0], message)


def test_patterns_as_they_are_written_are_understood(adapter: Path) -> None:
    patterns = ("q_proj", r"^vision_model\.encoder\.layers\.\d+\.self_attn\.(q|k|v)_proj", ".*fc[12]")
    configure(adapter, rank_pattern=dict.fromkeys(patterns, 2))
    assert read_adapter_config(adapter / "adapter_config.json").rank_pattern == dict.fromkeys(patterns, 2)


def test_a_broken_configuration_is_refused(pair: tuple[Path, Path], adapter: Path) -> None:
    file = adapter / "adapter_config.json"
    cannot_be_read = r"adapter_config.json: not a LoRA configuration"
    for text in ("[]", "{", '{"peft_type": "LORA", "lora_alpha": 1, "r": 1e999}'):
        file.write_text(text)
        refuse(adapter, pair[0], cannot_be_read)
    file.unlink()
    refuse(adapter, pair[0], cannot_be_read)


A = f"base_model.model.{Q.replace('weight', 'lora_A.weight')}"
LENGTH = A.replace("A.weight", "magnitude_vector")

TENSORS: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "half a pair": ({A: None}, "the LoRA of .*q_proj.weight is incomplete"),
    "torch's attention": (
        {"base_model.model.transformer.resblocks.0.attn.base_layer.out_proj.lora_A.weight": torch.zeros(4, 32)},
        r"LoRA on torch's MultiheadAttention is not supported\. merge it where it was trained",
    ),
    "an unknown factor": ({A.replace("lora_A", "lora_E"): torch.zeros(4)}, "lora_E.weight is of an unknown kind"),
    "an unknown module": (
        {"base_model.model.vision_model.adapter.weight": torch.zeros(2)},
        r"1 of the parameters it changes are not in .*: vision_model\.adapter\.weight; give the base",
    ),
    "another width": ({A: torch.zeros(4, 31)}, r"the LoRA of .* is \(32, 4\) by \(4, 31\), the base's \(32, 32\)"),
    "no matrix A": ({A: torch.ones(4)}, r"the LoRA of .*q_proj\.weight is"),
    "integers": ({A: torch.zeros(4, 32, dtype=torch.int64)}, "is not a float on both sides"),
    "another shape": (
        {"base_model.model.text_projection.weight": torch.zeros(16, 31)},
        r"text_projection\.weight is \(16, 31\), the base's",
    ),
    "another number of lengths": ({LENGTH: torch.ones(31)}, r"magnitude_vector.* is \(31,\), the base's .*\(32, 32\)"),
}


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_that_do_not_fit_are_refused(pair: tuple[Path, Path], adapter: Path, what: str) -> None:
    changes, message = TENSORS[what]
    tensors = {**load_file(adapter / "adapter_model.safetensors"), **changes}
    save_file({key: t for key, t in tensors.items() if t is not None}, adapter / "adapter_model.safetensors")
    refuse(adapter, pair[0], message)


def test_an_adapter_alone_is_no_checkpoint(plain: Path) -> None:
    line = refused(clipmerge("inspect", plain))
    assert "is a peft adapter, not a full model; make a checkpoint from it and its base" in line


def test_an_adapter_beside_a_model_is_ambiguous(copies: tuple[Path, Path], plain: Path) -> None:
    folder = Path(shutil.copytree(plain, copies[1], dirs_exist_ok=True))
    refuse(folder, copies[0], "holds both model.safetensors and adapter_model.safetensors")
    assert open_checkpoint(str(folder / "model.safetensors")).source.endswith("model.safetensors")
    refuse(folder / "adapter_model.safetensors", plain.parent, "no model.safetensors")
