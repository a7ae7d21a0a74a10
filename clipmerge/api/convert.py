"""`clipmerge convert`: the same model in the other library's layout, with the files needed to load
it there.
"""

from __future__ import annotations

import json
from typing import Unpack, cast, get_args

from clipmerge import __version__
from clipmerge.api._in_memory import CheckpointLike, as_sources, open_source
from clipmerge.api._results import ConvertResult
from clipmerge.checkpoint.converted import ConvertedCheckpoint, convert_checkpoint
from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, WEIGHTS
from clipmerge.config import ConvertOptions, complete_options, with_options
from clipmerge.conversion.keys import Layout
from clipmerge.distributed import is_main_process
from clipmerge.errors import CheckpointError, UsageError
from clipmerge.files.hashes import sha256_of
from clipmerge.files.paths import local_path
from clipmerge.files.staging import staged
from clipmerge.merging.stream import copied_tensors
from clipmerge.output.checks import check_output
from clipmerge.output.folder import write_weights
from clipmerge.output.layout_files import write_layout_files
from clipmerge.progress import say_all
from clipmerge.report.text import texts_of
from clipmerge.request import command_text
from clipmerge.types import StrPath

#: The record of a conversion, which identifies its output.
CONVERSION = "conversion.json"


@with_options(ConvertOptions)
def convert(
    checkpoint: CheckpointLike,
    output: StrPath,
    *,
    to: str,
    **options: Unpack[ConvertOptions],
) -> ConvertResult:
    """Write a checkpoint in the other library's layout, completely or not at all.

    Args:
        checkpoint: A folder, a file, ``org/name[@revision]``, or a model of transformers or
            open_clip.
        output: The folder to write.
        to: ``transformers`` or ``open-clip``.
        **options: See `ConvertOptions`.

    Returns:
        The folder and the record.

    Raises:
        CheckpointError: If it already has that layout, or a part of it has no counterpart.
        OutputError: If the folder cannot be written.
    """
    settings = complete_options(ConvertOptions, options)
    overwrite = settings["overwrite"]
    reports = settings["progress"]
    layout = _layout(to)
    target = local_path(output)
    if not is_main_process():  # only one process writes
        return ConvertResult(target, {})
    with as_sources([checkpoint], settings["processor"]) as (source,):
        reports.stage("read")
        opened = open_source(source)
        check_output(target, overwrite=overwrite, inputs=[opened.folder], record=CONVERSION)
        converted = convert_checkpoint(opened, layout)
        if not isinstance(converted, ConvertedCheckpoint):
            raise CheckpointError(
                f"{source}: is already in the layout of {layout}; there is nothing to convert"
            )
        if converted.config is None:
            needed = OPEN_CLIP_CONFIG if layout == "transformers" else "config.json"
            raise CheckpointError(
                f"{source}: has no {needed} beside it, which holds settings that the weights do not"
                " (QuickGELU, heads); copy that of the model that it was fine-tuned from"
            )
        findings = list(converted.notes)
        with staged(target, CONVERSION, overwrite=overwrite) as folder:
            reports.stage("write")
            single = WEIGHTS if layout == "transformers" else OPEN_CLIP_WEIGHTS[0]
            files = write_weights(folder, copied_tensors(converted), None, reports, single=single)
            findings += write_layout_files(folder, converted, "keep")
            notes = texts_of(findings)
            files |= {
                path.name: sha256_of(path)
                for path in sorted(folder.iterdir())
                if path.name not in files
            }
            record = {
                "clipmerge": __version__,
                "output": str(output),
                "files": files,
                "to": layout,
                "source": opened.provenance(),
                "warnings": notes,
                "command": settings["command"]
                or command_text("convert", source, output, options=options, to=to),
            }
            (folder / CONVERSION).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    say_all(reports, notes)
    return ConvertResult(target, record, tuple(notes))


def _layout(name: str) -> Layout:
    layout = name.lower()
    if layout not in get_args(Layout):
        raise UsageError(f"`to` {name}: choose from {', '.join(get_args(Layout))}")
    return cast(Layout, layout)
