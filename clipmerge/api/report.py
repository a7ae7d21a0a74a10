"""`clipmerge report`: read an output folder again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipmerge.output.record import MergeRecord


def report(folder: str | os.PathLike[str]) -> MergeRecord:
    """Read the record of an earlier merge.

    Args:
        folder: Folder written by `merge` or `apply`.

    Returns:
        The record of the merge.

    Raises:
        OutputError: If the folder is missing, was not written by clipmerge, or lacks a recorded file.
    """
    from clipmerge.output.record import read_output

    return read_output(Path(folder))
