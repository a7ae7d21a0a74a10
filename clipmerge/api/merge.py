"""`clipmerge merge`: read, measure, decide, merge and write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from clipmerge.api._in_memory import CheckpointLike, as_sources
from clipmerge.api._results import MergeResult
from clipmerge.api.apply import finished
from clipmerge.api.plan import prepare
from clipmerge.api.push import check_push, push
from clipmerge.config import MergeOptions, complete_options, with_options
from clipmerge.images.file_store import local_inputs
from clipmerge.progress import Logged, Progress
from clipmerge.request import (
    MergeRequest,
    RecipeLike,
    as_list,
    command_text,
    default_recipe,
    parse_size,
    recipe_files,
)


@with_options(MergeOptions)
def merge(
    zeroshot: CheckpointLike,
    finetuned: CheckpointLike | Sequence[CheckpointLike],
    recipe: RecipeLike | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    processor: Any = None,
    progress: Progress | None = None,
    command: str | None = None,
    **options: Unpack[MergeOptions],
) -> MergeResult:
    """Merge a fine-tuned model with its zero-shot self, and write the result.

    Args:
        zeroshot: theta_0: a folder, a file, ``org/name[@revision]``, or a model of transformers or
            open_clip.
        finetuned: theta_1, likewise; a sequence for several fine-tuned from the same zero-shot
            model.
        recipe: Name of a recipe, path of a YAML file, a mapping like a recipe file, or a `Recipe`;
            by default ``auto`` with ``data``, else ``wise-ft``.
        output: Folder to write, completely or not at all; ``None`` to measure and decide only.
        processor: For models in memory: their processor, or the model's open_clip name.
        progress: Receiver of progress reports; by default Python's logger ``clipmerge``.
        command: Command that repeats the call, for the record; by default derived from the
            arguments.
        **options: See `MergeOptions`.

    Returns:
        The folder, the plan and the record.

    Raises:
        ClipmergeError: If an argument cannot be used; one line says what, where and what to do
            next.
    """
    given = complete_options(MergeOptions, options)
    target, progress = None if output is None else Path(output), progress or Logged()
    limit = parse_size(given["max_shard_size"])
    if recipe is None:
        recipe = default_recipe(given, progress)
    with as_sources([zeroshot, *as_list(finetuned)], processor) as (base, *others):
        command = command or command_text(
            "merge", base, *others, options=options, recipe=recipe, output=output
        )
        request = MergeRequest.from_options(
            base, others, recipe, given, state_key=given["state_key"], command=command
        )
        if target is not None:
            from clipmerge.output.checks import check_output

            check_output(
                target,
                overwrite=given["overwrite"],
                inputs=local_inputs(*request.checkpoints),
                read=[*request.files, *recipe_files(recipe)],
            )
        if given["push"] is not None:
            check_push(given["push"], target, private=given["private"])
        run = prepare(request, progress)
        result = finished(run, target, overwrite=given["overwrite"], max_shard_size=limit)
    if given["push"] is None or target is None or not run.is_main:
        return result
    published = push(
        target, given["push"], private=given["private"], license=given["license"], progress=progress
    )
    return replace(result, published=published)
