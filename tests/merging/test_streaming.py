"""The streamed output: the bytes of a plain loop, for any number of threads."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import clipmerge as api
from clipmerge.files.safetensors import is_finite
from tests.support.raw_safetensors import edit
from tests.support.tiny_clip import Folders
from tests.test_parallel import threads


def merge(pair: Folders, output: Path) -> bytes:
    record = api.merge(*pair, alpha=0.3, output=output).record
    assert record
    merged = (output / "model.safetensors").read_bytes()
    assert record.files["model.safetensors"] == hashlib.sha256(merged).hexdigest()
    return merged


def plain_loop(pair: Folders, folder: Path) -> bytes:
    zeroshot, finetuned = (load_file(path / "model.safetensors") for path in pair)
    merged = {
        name: theta_0 + 0.3 * (finetuned[name] - theta_0) for name, theta_0 in zeroshot.items()
    }
    save_file(merged, folder / "plain.safetensors", metadata={"format": "pt"})
    return (folder / "plain.safetensors").read_bytes()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_bytes_are_a_plain_loops_for_any_number_of_threads(
    pair: Folders, tmp_path: Path, count: int
) -> None:
    with threads(count):
        assert merge(pair, tmp_path / "out") == plain_loop(pair, tmp_path)


def test_finite_values_whose_sum_overflows_are_no_fault(copies: Folders, tmp_path: Path) -> None:
    for folder in copies:
        edit(folder, visual_projection__weight=torch.full((16, 32), 3e38))
    assert merge(copies, tmp_path / "out") == plain_loop(copies, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("where", [0, 17, 9_999])
def test_one_entry_that_is_not_finite_shows_among_any_others(
    dtype: torch.dtype, where: int
) -> None:
    tensor = torch.randn(10_000).to(dtype)
    assert is_finite(tensor)
    assert is_finite(torch.full((10_000,), torch.finfo(dtype).max, dtype=dtype))
    for broken in (float("nan"), float("inf"), float("-inf")):
        tensor[where] = broken
        assert not is_finite(tensor)
        tensor[(where + 1) % 10_000] = -broken  # Inf and -Inf do not cancel out
        assert not is_finite(tensor)
        tensor[(where + 1) % 10_000] = 0.0
