"""`clipmerge merge`: read, measure, decide, merge and write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from clipmerge.api._arguments import (
    CheckpointLike,
    MergeOptions,
    RecipeLike,
    check_apart,
    merge_request,
    several,
    with_options,
)
from clipmerge.api._commands import command_of
from clipmerge.api._in_memory import as_sources
from clipmerge.api._results import MergeResult
from clipmerge.api._sizes import byte_count
from clipmerge.api.apply import finished
from clipmerge.api.plan import prepare
from clipmerge.api.push import check_push, publish
from clipmerge.progress import Logged, Progress


@with_options(merge_request)
def merge(
    zeroshot: CheckpointLike,
    finetuned: CheckpointLike | Sequence[CheckpointLike],
    recipe: RecipeLike,
    *,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    max_shard_size: int | str | None = None,
    push: str | None = None,
    private: bool = False,
    license: str | None = None,
    processor: Any = None,
    progress: Progress | None = None,
    **options: Unpack[MergeOptions],
) -> MergeResult:
    """Merge a fine-tuned model with its zero-shot self, and write the result.

    Args:
        zeroshot: theta_0: a folder, a file, ``org/name[@revision]``, or a model of transformers or open_clip.
        finetuned: theta_1, likewise; a sequence for several fine-tuned from the same zero-shot model.
        recipe: Name of a recipe, path of a YAML file, a mapping like a recipe file, or a `Recipe`.
        output: Folder to write, completely or not at all; ``None`` to measure and decide only.
        overwrite: Whether an earlier output may be replaced.
        max_shard_size: Largest size of a shard, such as ``5GB`` or a number of bytes; ``None`` for shards like the
            fine-tuned checkpoint's.
        push: ``org/name`` on the Hub to publish the output to.
        private: With ``push``: whether the repository is created private.
        license: With ``push``: the licence, if the sources' differ.
        processor: For models in memory: their processor, or the model's open_clip name.
        progress: Receiver of progress reports; by default Python's logger ``clipmerge``.
        **options: See `MergeOptions`.

    Returns:
        The folder, the plan and the record.

    Raises:
        ClipmergeError: If an argument cannot be used; one line says what, where and what to do next.
    """
    target, progress = None if output is None else Path(output), progress or Logged()
    limit = byte_count("--max-shard-size", max_shard_size)
    with as_sources(zeroshot, several(finetuned), processor) as (base, others):
        request = merge_request(
            base,
            others,
            recipe,
            **command_of("merge", base, others, recipe, options, max_shard_size=max_shard_size, output=output),
        )
        check_apart(target, request, recipe, overwrite=overwrite)
        if push is not None:
            check_push(push, target, private=private)
        run = prepare(request, progress)
        result = finished(run, target, overwrite=overwrite, max_shard_size=limit)
    if push is None or target is None or not run.is_main:
        return result
    return publish(result, push, progress, private=private, license=license)
