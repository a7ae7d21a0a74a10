"""The output file: what safetensors itself writes, however tensors lie on blocks, and its hash."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from clipmerge.files import writer
from clipmerge.files.writer import OutputTensor, write_safetensors

DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "U8": "u1"}
# Elements of each tensor, beside blocks of 8,192 bytes.
SIZES = (0, 1, 100, 1024, 5_000, 30_000)


def test_the_file_is_what_safetensors_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"BLOCK": 8192, "BLOCKS": 3, "RUN": 700}.items():
        monkeypatch.setattr(writer, name, value)
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    tensors = []
    for number, size in enumerate(SIZES):
        for dtype, kind in DTYPES.items():
            values = generator.integers(0, 100, size).astype(kind)

            def fill(start: int, out: Any, change: Any, values: Any = values) -> None:
                out[:] = values[start : start + len(out)]

            key = f"{dtype}.{number}"
            arrays[key] = values
            tensors.append(OutputTensor(key, key, dtype, values.shape, fill))
    advanced: list[int] = []
    digest = write_safetensors(tmp_path / "ours", tensors, advanced.append)
    save_file(arrays, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert digest == hashlib.sha256((tmp_path / "theirs").read_bytes()).hexdigest()
    assert sum(advanced) == sum(values.nbytes for values in arrays.values())
    with pytest.raises(FileExistsError):
        write_safetensors(tmp_path / "ours", tensors, advanced.append)
