"""Merging in memory: torch models and state dicts; no output is written."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, TypeVar, Unpack

import numpy as np
import torch
from torch import Tensor

from clipmerge.api._in_memory import unwrap_model
from clipmerge.api.merge import merge_requested, prepare
from clipmerge.config import RecipeOptions, complete_options, with_options
from clipmerge.errors import CheckpointError, UsageError, counted, shorten
from clipmerge.families import is_counter, is_index_buffer, is_statistic
from clipmerge.files.finite import is_finite, require_finite
from clipmerge.files.writer import iter_contents
from clipmerge.merging.selection import RandomKey
from clipmerge.merging.stream import plan_tensors
from clipmerge.merging.tensor import complete_mask_options, merge_tensor
from clipmerge.parallel import one_thread
from clipmerge.planning.recipe import RecipeLike
from clipmerge.plugins import needs_score, plugin_options
from clipmerge.request import as_list
from clipmerge.types import Json, Tensors

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
    with merge_requested("merge", zeroshot, models, recipe, None, settings, options) as request:
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
        form = unwrap_model(zeroshot) if run.inputs.takes_zeroshot_form else models[0]
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


def merge_state_dicts(
    theta_0: Mapping[str, Tensor],
    theta_1: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
    *,
    alpha: float,
    density: float = 1.0,
    mask: str | None = None,
    mask_options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Tensors:
    """Merge state dicts of any architecture, treating all tensors alike.

    Computes theta_0 + mask(alpha * mean_i(theta_i - theta_0)) in float32 or wider, and rounds once.
    Integers are copied from theta_0; scalars and statistics of batch norms are never masked.

    Args:
        theta_0: Zero-shot tensors by name, on any device; never written to. What is computed, the
            CPU computes.
        theta_1: Fine-tuned tensors by name, the same names and shapes; several for theta_1 ...
            theta_K.
        alpha: Mixing coefficient, no unit: 0 = zero-shot, 1 = fine-tuned; outside [0, 1] it
            extrapolates.
        density: Share of the change kept by the mask, in (0, 1].
        mask: Name of a mask, such as ``magnitude``; ``None`` keeps the whole change.
        mask_options: Further options of the mask.
        seed: Seed of random masks; entries depend only on the seed and the tensor's name.

    Returns:
        Merged tensors by name, in theta_0's order, with theta_0's shapes, dtypes and devices.

    Raises:
        CheckpointError: If names, shapes or integers differ, or a tensor holds NaN or Inf.
        RecipeError: If the mask or an option is unknown or out of its range.
        UsageError: If alpha is not a finite number, a density is given without a mask that has one,
            or the mask needs scores of a measure.

    Source:
        Wortsman et al. 2022, arXiv:2109.01903.

    Example:
        >>> merge_state_dicts({"w": torch.zeros(2)}, {"w": torch.tensor([2.0, 4.0])}, alpha=0.5)
        {'w': tensor([1., 2.])}
    """
    if isinstance(alpha, bool) or not isinstance(alpha, numbers.Real) or not math.isfinite(alpha):
        raise UsageError(f"alpha {alpha!r} is not a finite number")
    finetuned = [theta_1] if isinstance(theta_1, Mapping) else list(theta_1)
    if not finetuned:
        raise UsageError("theta_1 holds no state dict; give at least one")
    chosen = _mask_arguments(mask, density, dict(mask_options or {}))
    _check_names(theta_0, finetuned)
    with one_thread(), torch.no_grad():
        return {
            name: (
                _merge_parameter(
                    name,
                    tensor.cpu(),
                    [state_dict[name].cpu() for state_dict in finetuned],
                    alpha,
                    chosen,
                    seed,
                ).to(tensor.device)
            )
            for name, tensor in theta_0.items()
        }


def _mask_arguments(mask: str | None, density: float, options: Json) -> Json:
    if mask is None:
        if density != 1.0:
            raise UsageError(f"density {density} needs a mask; name one, such as mask='magnitude'")
        return {}
    if density != 1.0 and "density" not in plugin_options("masks", mask):
        raise UsageError(f"mask '{mask}' has no density; set its mask_options")
    chosen = complete_mask_options(mask, density, options)
    if needs_score(mask):
        raise UsageError(
            f"mask '{mask}' needs scores of a measure; use merge or merge_models with a recipe"
        )
    return {"mask": mask, **chosen}


def _check_names(theta_0: Mapping[str, Tensor], finetuned: Sequence[Mapping[str, Tensor]]) -> None:
    for number, tensors in enumerate(finetuned, start=1):
        if differing := sorted(theta_0.keys() ^ tensors.keys()):
            missing = counted(len(differing), "name is", "names are")
            raise CheckpointError(
                f"{missing} missing in theta_0 or theta_{number}: {shorten(differing)}"
            )
        for name, tensor in tensors.items():
            for given in (theta_0[name], tensor):
                _require_mergeable(name, given)
            if tensor.is_floating_point() != theta_0[name].is_floating_point():
                raise CheckpointError(
                    f"{name}: is {theta_0[name].dtype} in theta_0 and {tensor.dtype} in"
                    f" theta_{number}"
                )
            if tensor.shape != theta_0[name].shape:
                shapes = f"{tuple(theta_0[name].shape)} and {tuple(tensor.shape)}"
                raise CheckpointError(
                    f"{name}: shapes differ between theta_0 and theta_{number}: {shapes}"
                )


def _require_mergeable(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise CheckpointError(
            f"{name}: is {type(value).__name__}, not a tensor; give the state dict itself"
        )
    is_small_float = value.is_floating_point() and value.element_size() == 1
    if value.is_complex() or is_small_float:
        raise CheckpointError(f"{name}: {value.dtype} cannot be merged; convert it first")


def _merge_parameter(
    name: str,
    theta_0: Tensor,
    finetuned: list[Tensor],
    alpha: float,
    mask: Json,
    seed: int,
) -> Tensor:
    if not theta_0.is_floating_point():
        if not is_counter(name) and any(not torch.equal(theta_0, other) for other in finetuned):
            raise CheckpointError(f"{name}: integers differ, and integers cannot be merged")
        return theta_0.clone()
    for number, tensor in enumerate((theta_0, *finetuned)):
        require_finite(tensor, name, f"theta_{number}")
    chosen = {} if is_statistic(name) or theta_0.numel() < 2 else mask
    weights = (1.0 / len(finetuned),) * len(finetuned)
    merged = merge_tensor(
        theta_0, finetuned, alpha=alpha, weights=weights, key=RandomKey(seed, name), **chosen
    )
    if not is_finite(merged):
        raise CheckpointError(
            f"{name}: overflows {theta_0.dtype} at alpha {alpha:g}; choose an alpha in [0, 1]"
        )
    return (
        merged.clone()
        if merged is theta_0 or any(merged is other for other in finetuned)
        else merged
    )
