"""Merge models in memory, without an output folder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from clipmerge.api._in_memory import unwrap_model
from clipmerge.api._pair import list_checkpoints
from clipmerge.api.merge import choose_recipe, open_and_decide
from clipmerge.errors import CheckpointError, UsageError, shorten
from clipmerge.families import is_index_buffer
from clipmerge.files.writer import tensors_in_memory
from clipmerge.merging.stream import merged_tensors
from clipmerge.options import PlanOptions
from clipmerge.planning.recipe import RecipeLike
from clipmerge.progress import Journal, Progress
from clipmerge.types import Tensors

Model = TypeVar("Model", bound=torch.nn.Module)


def merge_models(
    zeroshot: torch.nn.Module,
    finetuned: Model | Sequence[Model],
    recipe: RecipeLike | None = None,
    *,
    processor: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> Model:
    """Merge models in memory.

    The weights equal, bit for bit, those that `merge` writes for the same models on disk. During
    the merge the models are saved to temporary folders. This takes as much disk space as their
    weights, and about a second per gigabyte.

    Args:
        zeroshot: Model of transformers or open_clip with theta_0's weights; it is not changed.
        finetuned: Model of the same class with theta_1's weights, or a sequence of models with
            those of theta_1 ... theta_K; they are not changed.
        recipe: See `merge`.
        processor: See `merge`.
        progress: See `merge`.
        **options: The fields of `clipmerge.options.PlanOptions`.

    Returns:
        A copy of the fine-tuned model with the merged weights, on the same device and in the same
        mode; a copy of the zero-shot model if the fine-tuned one is a single tower.

    Raises:
        ClipmergeError: If an argument cannot be used. The message is one line: what is wrong,
            where, and what to do.

    Example:
        >>> robust = merge_models(zeroshot, finetuned, "wise-ft")  # doctest: +SKIP
    """
    models = list_checkpoints(zeroshot, finetuned)
    for model in models:
        if not isinstance(model, torch.nn.Module):
            raise UsageError(
                f"{type(model).__name__} is not a model; give torch modules here, and paths to"
                " merge()"
            )
    opts = PlanOptions.of(options)
    journal = Journal(progress)
    chosen = choose_recipe(recipe, opts, journal)
    with open_and_decide(models, chosen, opts, journal, processor) as (pair, _, record):
        pair.free_model()
        tensors = merged_tensors(pair.inputs, record.plan)
        keys = [tensor.key for tensor in tensors]
        weights = dict(zip(keys, tensors_in_memory(tensors), strict=True))
    layout = models[0] if pair.inputs.layout is pair.inputs.zeroshot else models[1]
    model = unwrap_model(layout)
    return _copy_with_weights(model, weights, pair.inputs.dtype)  # type: ignore[return-value]


def _copy_with_weights(model: torch.nn.Module, weights: Tensors, dtype: str) -> torch.nn.Module:
    merged = copy.deepcopy(model)
    if dtype != "keep":
        merged = merged.to(getattr(torch, dtype))
    keys = merged.load_state_dict(weights, strict=False)
    wrong = [
        name for name in (*keys.missing_keys, *keys.unexpected_keys) if not is_index_buffer(name)
    ]
    if wrong:
        raise CheckpointError(
            f"{type(model).__name__}: its merged weights have names that the model lacks, such as"
            f" {shorten(wrong, 3)}; write an output with merge() instead"
        )
    return merged
