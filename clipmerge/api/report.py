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
        folder: Folder that `merge` or `apply` wrote.

    Returns:
        What the merge returned as its record.

    Raises:
        OutputError: If the folder is missing, is not one that clipmerge wrote, or lacks a file that it names.
    """
    from clipmerge.output.record import read_output

    return read_output(Path(folder))
