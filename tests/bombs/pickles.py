"""Bombs in PyTorch's own format, one function for each, from a path to a file there."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

from tests.bombs.registry import MIB, bomb


def _saved(path: Path, held: Any) -> None:
    import torch

    torch.save(held, path)


def _with_pickle(path: Path, content: bytes, *, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", content)
        archive.writestr("x/version", "3\n")


@bomb("pickle", "x.pt")
def tensors_of_one_number(path: Path) -> None:
    import torch

    _saved(path, {f"a{number}.weight": torch.zeros(1).expand(1 << 24) for number in range(100)})


@bomb("pickle", "x.pt", slow=True)
def pickle_of_1_GB_deflated(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x/data.pkl", "w") as member:
        member.write(b"\x80\x02")
        for _ in range(1024):
            member.write(b"]" * MIB)


@bomb("pickle", "x.pt", slow=True)
def pickle_of_lists_above_its_limit(path: Path) -> None:
    _with_pickle(path, b"\x80\x02" + b"]" * (65 * MIB) + b".")


@bomb("pickle", "x.pt")
def pickle_of_doubling_tuples(path: Path) -> None:
    _with_pickle(path, b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 100 + b".")


@bomb("old_pickle", "x.pt")
def storage_of_a_terabyte(path: Path) -> None:
    import torch

    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3, 5)}, buffer, _use_new_zipfile_serialization=False)
    path.write_bytes(buffer.getvalue().replace(b"K\x0f", b"\x8a\x06" + (1 << 38).to_bytes(6, "little")))
