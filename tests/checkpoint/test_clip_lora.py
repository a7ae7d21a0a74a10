"""Files of CLIP-LoRA, written as its save_lora writes them, against the weights added by hand."""

import math
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from clipmerge.checkpoint import open_checkpoint
from clipmerge.errors import CheckpointError
from tests.support.command import clipmerge, done, refused
from tests.support.tiny_clip import Folders
from tests.support.tiny_open_clip import build, model_config, save

WIDTH, RANK, ALPHA = 32, 2, 3.0
BLOCKS = {"all": [0, 1, 2], "top1": [2], "top2": [1, 2], "bottom": [0], "mid": [1], "up": [2]}
Weights = dict[str, dict[str, dict[str, torch.Tensor]]]


def save_lora(file: Path, layers: int, params: str, **metadata: Any) -> Weights:
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"layer_{number}": {
            {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "proj"}[letter]: {
                "w_lora_A": torch.randn(RANK, WIDTH, generator=generator),
                "w_lora_B": torch.randn(WIDTH, RANK, generator=generator),
            }
            for letter in params
        }
        for number in range(layers)
    }
    settings = {"r": RANK, "alpha": ALPHA, "params": list(params), **metadata}
    torch.save({"weights": weights, "metadata": settings}, file)
    return weights


def change(factors: dict[str, torch.Tensor]) -> torch.Tensor:
    return ALPHA / math.sqrt(RANK) * factors["w_lora_B"] @ factors["w_lora_A"]


@pytest.mark.parametrize("position", BLOCKS)
@pytest.mark.parametrize("encoder", ["text", "vision", "both"])
def test_every_matrix_is_its_base_plus_the_product(
    pair: Folders, tmp_path: Path, encoder: str, position: str
) -> None:
    towers = ["text", "vision"] if encoder == "both" else [encoder]
    places = [(tower, block) for tower in towers for block in BLOCKS[position]]
    file = tmp_path / "lora.pt"
    weights = save_lora(file, len(places), "qvo", encoder=encoder, position=position)
    expected = load_file(pair[0] / "model.safetensors")
    for number, (tower, block) in enumerate(places):
        attention = f"{tower}_model.encoder.layers.{block}.self_attn"
        for ours, theirs in (("q_proj", "q_proj"), ("v_proj", "v_proj"), ("proj", "out_proj")):
            expected[f"{attention}.{theirs}.weight"] += change(weights[f"layer_{number}"][ours])
    found = open_checkpoint(str(file), base=open_checkpoint(str(pair[0])))
    assert found.entries.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found.tensor(key), tensor, rtol=1e-6, atol=1e-6)


def test_of_stacked_matrices_the_right_rows_change(tmp_path: Path) -> None:
    settings, file = model_config(), tmp_path / "lora.pt"
    base = save(build(settings), settings, tmp_path / "base")
    weights = save_lora(file, 6, "kvo", encoder="both", position="all")
    done("merge", base, file, "-r", "wise-ft", "--alpha", "1", "-o", tmp_path / "out")
    before, after = (
        open_clip.create_model(f"local-dir:{folder}").state_dict()
        for folder in (base, tmp_path / "out")
    )
    for number in range(6):
        tower = "" if number < 3 else "visual."
        key = f"{tower}transformer.resblocks.{number % 3}.attn.in_proj_weight"
        moved = (after[key] - before[key]).reshape(3, WIDTH, WIDTH)
        layer = weights[f"layer_{number}"]
        wanted = [torch.zeros(WIDTH, WIDTH), change(layer["k_proj"]), change(layer["v_proj"])]
        torch.testing.assert_close(moved, torch.stack(wanted), rtol=1e-5, atol=1e-5)
        key = f"{tower}transformer.resblocks.{number % 3}.attn.out_proj.weight"
        torch.testing.assert_close(
            after[key] - before[key], change(layer["proj"]), rtol=1e-5, atol=1e-5
        )


def test_what_does_not_fit_is_an_error_of_one_line(pair: Folders, tmp_path: Path) -> None:
    file, base = tmp_path / "lora.pt", open_checkpoint(str(pair[0]))
    save_lora(file, 4, "q", encoder="text", position="all")
    with pytest.raises(CheckpointError, match=r"changes 4 blocks, and position 'all' of .* has 3;"):
        open_checkpoint(str(file), base=base)
    save_lora(file, 3, "q", encoder="neither", position="all")
    with pytest.raises(CheckpointError, match="but not its settings"):
        open_checkpoint(str(file), base=base)
    save_lora(file, 3, "q", encoder="text", position="all", r=4)
    with pytest.raises(CheckpointError, match=r"layer_0.q_proj.w_lora_A is \(2, 32\), the base's"):
        open_checkpoint(str(file), base=base)
    assert "is a LoRA adapter, not a full model" in refused(clipmerge("inspect", file))
