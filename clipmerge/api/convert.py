"""`clipmerge convert`: the same model in the other library's layout, with the files that library loads it by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmerge import __version__
from clipmerge.checkpoint import open_checkpoint
from clipmerge.checkpoint.converted import ConvertedCheckpoint, convert_checkpoint
from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, WEIGHTS
from clipmerge.errors import CheckpointError
from clipmerge.files.hashes import sha256_of
from clipmerge.files.staging import staged
from clipmerge.merging.stream import copied_tensors
from clipmerge.output.checks import check_output
from clipmerge.output.folder import write_weights
from clipmerge.output.layout_files import write_layout_files

if TYPE_CHECKING:
    from clipmerge.conversion import Layout
    from clipmerge.progress import Progress

#: The record of a conversion, by which its output is known.
CONVERSION = "conversion.json"


def convert(
    source: str, to: Layout, output: Path, *, overwrite: bool = False, progress: Progress, command: str = ""
) -> dict[str, Any]:
    """Write a checkpoint in the other layout, whole or not at all.

    Args:
        source: Where the checkpoint comes from.
        to: The layout wanted.
        output: The folder to write.
        overwrite: Whether an earlier conversion there may be replaced.
        progress: Where to report.
        command: How to run this again, for the record.

    Returns:
        JSON-ready: ``output``, ``files`` {name: sha256}, ``to``, ``source`` {source, revision, files}, ``warnings``.

    Raises:
        CheckpointError: If it has that layout already, or something in it has no counterpart.
        OutputError: If the folder cannot be written.
    """
    progress.stage("read")
    checkpoint = open_checkpoint(source)
    check_output(output, overwrite=overwrite, inputs=[checkpoint.folder], record=CONVERSION)
    converted = convert_checkpoint(checkpoint, to)
    if not isinstance(converted, ConvertedCheckpoint):
        raise CheckpointError(f"{source}: is in the layout of {to} already; there is nothing to convert")
    if converted.config is None:
        needed = OPEN_CLIP_CONFIG if to == "transformers" else "config.json"
        raise CheckpointError(
            f"{source}: has no {needed} beside it, which says what the weights do not (QuickGELU, heads)"
        )
    notes = [converted.note] if converted.note else []
    with staged(output, overwrite=overwrite) as folder:
        progress.stage("write")
        single = WEIGHTS if to == "transformers" else OPEN_CLIP_WEIGHTS[0]
        advance = _ByteCount(progress, converted.bytes)
        files = write_weights(folder, copied_tensors(converted), None, advance, single=single)
        notes += write_layout_files(folder, converted, "keep")
        files |= {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.name not in files}
        record = {
            "clipmerge": __version__,
            "output": str(output),
            "files": files,
            "to": to,
            "source": checkpoint.provenance(),
            "warnings": notes,
            "command": command,
        }
        (folder / CONVERSION).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for note in notes:
        progress.say(note)
    return record


class _ByteCount:
    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, count: int) -> None:
        self._done += count
        self._progress.advance(self._done, self._total)
