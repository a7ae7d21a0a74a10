"""Merging in memory: torch models and state dicts; no output is written."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import closing
from typing import TypeVar, Unpack

import numpy as np
import torch

from clipmerge.api._in_memory import unwrap_model
from clipmerge.api.merge import merge_requested, prepare
from clipmerge.config import RecipeOptions, complete_options, with_options
from clipmerge.errors import CheckpointError, UsageError
from clipmerge.families import is_index_buffer
from clipmerge.files.writer import iter_contents
from clipmerge.merging.stream import plan_tensors
from clipmerge.planning.recipe import RecipeLike
from clipmerge.request import as_list
from clipmerge.types import Tensors

Model = TypeVar("Model", bound=torch.nn.Module)


@with_options(RecipeOptions)
def merge_models(
    zeroshot: torch.nn.Module,
    finetuned: Model | Sequence[Model],
    recipe: RecipeLike | None = None,
    **options: Unpack[RecipeOptions],
) -> Model:
    """Merge models in memory.

    The weights equal, bit for bit, those that `merge` writes for the same models saved to disk.
    During the merge a temporary folder holds both models: it takes their size on disk, and about a
    second per gigabyte.

    Args:
        zeroshot: Model of transformers or open_clip with theta_0's weights; it is not changed.
        finetuned: Model with theta_1's weights, of the same class; several for theta_1 ... theta_K.
            Not changed.
        recipe: Name of a recipe, path of a YAML file, a mapping like a recipe file, or a `Recipe`;
            by default ``auto`` with ``data`` and without ``alpha``, else ``wise-ft``.
        **options: See `RecipeOptions`.

    Returns:
        A copy of the fine-tuned model with the merged weights, on the same device and in the same
        mode; a copy of the zero-shot model if the fine-tuned one is a single tower.

    Raises:
        ClipmergeError: If an argument cannot be used; one line says what, where and what to do
            next.

    Example:
        >>> robust = merge_models(zeroshot, finetuned, "wise-ft")  # doctest: +SKIP
    """
    for model in (zeroshot, *as_list(finetuned)):
        if not isinstance(model, torch.nn.Module):
            raise UsageError(
                f"{type(model).__name__} is not a model; give torch modules here, and paths to"
                " merge()"
            )
    models = [unwrap_model(model) for model in as_list(finetuned)]
    settings = complete_options(RecipeOptions, options)
    with merge_requested(zeroshot, models, recipe, settings) as request:
        run = prepare(request, settings["progress"])
        if run.plan is None:
            raise UsageError(
                "merge_models works in one process; under `accelerate launch` use merge"
            )
        tensors = plan_tensors(run.inputs, run.plan)
        with closing(iter_contents(tensors, np.empty)) as contents:
            weights = {
                tensor.key: tensor.tensor(content)
                for tensor, content in zip(tensors, contents, strict=True)
            }
        form = unwrap_model(zeroshot) if run.inputs.takes_zeroshot_layout else models[0]
        run.finish()
    return _copy_with_weights(form, weights, run.plan.dtype)  # type: ignore[return-value]


def _copy_with_weights(form: torch.nn.Module, weights: Tensors, dtype: str) -> torch.nn.Module:
    merged = copy.deepcopy(form)
    if dtype != "keep":
        merged = merged.to(getattr(torch, dtype))
    keys = merged.load_state_dict(weights, strict=False)
    wrong = [
        name for name in (*keys.missing_keys, *keys.unexpected_keys) if not is_index_buffer(name)
    ]
    if wrong:
        raise CheckpointError(
            f"{type(form).__name__}: its merged weights have names that the model lacks, such as"
            f" {wrong[0]}; save both models and use `clipmerge.merge`"
        )
    return merged
