"""Parallel work: in order, within bounds, and the same bytes for any number of threads."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

import clipmerge
from clipmerge.errors import CheckpointError
from clipmerge.parallel import run_in_threads
from tests.support.raw_safetensors import edit
from tests.support.tiny_clip import Folders


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch and clipmerge compute in so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with mock.patch.dict(os.environ, OMP_NUM_THREADS=str(count)):
            yield
        assert torch.get_num_threads() == count  # given back
    finally:
        torch.set_num_threads(before)


def test_jobs_are_begun_ahead_but_hold_no_more_than_they_may() -> None:
    sizes = [4, 4, 4, 30, 1, 1, 1, 1]
    lock, now, seen = threading.Lock(), set[int](), list[frozenset[int]]()

    def job(number: int) -> None:
        with lock:
            now.add(number)
            seen.append(frozenset(now))
        time.sleep(0.03)
        with lock:
            now.remove(number)

    jobs = ((size, partial(job, number)) for number, size in enumerate(sizes))
    with threads(4):
        list(run_in_threads(jobs, max_bytes=10))
    assert max(len(each) for each in seen) > 1
    assert all(len(each) == 1 or sum(sizes[number] for number in each) <= 10 for each in seen)


#: Changes to each layer's mask and to the dtype, beside recipes of methods.
MASKED = {"set": ['overrides=[{layers: "vision.*", density: 0.3}]'], "dtype": "bfloat16"}


def merged(sources: list[Path], output: Path, count: int, recipe: str, **options: Any) -> bytes:
    with threads(count):
        clipmerge.merge(sources[0], sources[1:], recipe, output=output, **options)
    return (output / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("recipe", "models", "options"),
    [
        ("wise-ft", 1, {}),
        ("wise-ft", 1, MASKED),
        ("ties", 2, {}),
        ("dare", 2, {}),
        ("monosoup", 1, {}),
    ],
)
def test_bytes_are_the_same_for_any_number_of_threads(
    recipe: str, models: int, options: dict[str, Any], family: list[Path], tmp_path: Path
) -> None:
    sources = family[: 1 + models]
    alone = merged(sources, tmp_path / "1", 1, recipe, **options)
    assert merged(sources, tmp_path / "5", 5, recipe, **options) == alone


@pytest.mark.parametrize("count", [1, 4])
def test_of_several_broken_tensors_the_first_in_the_file_is_named(
    copies: Folders, tmp_path: Path, count: int
) -> None:
    sources = [*copies]
    tensors = load_file(sources[1] / "model.safetensors")
    broken = [name for name, tensor in sorted(tensors.items()) if tensor.ndim == 2][-3:]
    edit(sources[1], **{name: tensors[name] * float("nan") for name in broken})
    with pytest.raises(CheckpointError, match=f"tensor {broken[0]} holds NaN"):
        merged(sources, tmp_path / "out", count, "wise-ft", **MASKED)
    assert not (tmp_path / "out").exists()
