"""`clipmerge merge`: read, measure, decide, merge and write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from clipmerge.api._in_memory import CheckpointLike
from clipmerge.api._results import MergeResult
from clipmerge.api.apply import finish_merge
from clipmerge.api.plan import merge_requested, prepare
from clipmerge.api.push import check_push, push
from clipmerge.config import MergeOptions, complete_options, with_options
from clipmerge.images.local_files import local_inputs
from clipmerge.request import (
    RecipeLike,
    parse_size,
    recipe_files,
)
from clipmerge.types import StrPath


@with_options(MergeOptions)
def merge(
    zeroshot: CheckpointLike,
    finetuned: CheckpointLike | Sequence[CheckpointLike],
    recipe: RecipeLike | None = None,
    *,
    output: StrPath | None = None,
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
        **options: See `MergeOptions`.

    Returns:
        The folder, the plan and the record.

    Raises:
        ClipmergeError: If an argument cannot be used; one line says what, where and what to do
            next.
    """
    given = complete_options(MergeOptions, options)
    target, progress = None if output is None else Path(output), given["progress"]
    limit = parse_size(given["max_shard_size"])
    with merge_requested("merge", zeroshot, finetuned, recipe, output, given, options) as request:
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
        result = finish_merge(run, target, overwrite=given["overwrite"], max_shard_size=limit)
    if given["push"] is None or target is None or not run.is_main:
        return result
    published = push(
        target, given["push"], private=given["private"], license=given["license"], progress=progress
    )
    return replace(result, published=published)
