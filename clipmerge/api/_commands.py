"""Command lines equivalent to calls of the API, for the records."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from clipmerge.api._arguments import MergeOptions, RecipeLike, name_of
from clipmerge.planning.recipe import Recipe
from clipmerge.request import SweepRequest


def command_of(
    name: str, zeroshot: str, finetuned: Sequence[str], recipe: RecipeLike, options: MergeOptions, **own: Any
) -> MergeOptions:
    """Add the equivalent command line to the options, as far as it can be written down.

    Args:
        name: The command.
        zeroshot: Source of theta_0.
        finetuned: Sources of theta_1 ... theta_K.
        recipe: The recipe as given.
        options: The options as given.
        **own: The command's own flags, in order.

    Returns:
        The options, including ``command``.
    """
    if options.get("command") is not None:
        return options
    given = {key: options[key] for key in _FLAGS if key in options}  # type: ignore[literal-required]
    given |= {"keep": keep_words(options.get("keep"))}
    given |= {"set": set_words(options.get("set")), "no_hash": not options.get("hash", True)}
    given |= {"no_verdict": not options.get("verdict", True)}
    words = spelled_out(name, zeroshot, *finetuned, recipe=recipe_word(recipe), **given, **own)
    return {**options, "command": words}


# The flags in the order of `--help`.
_FLAGS = (
    "state_key",
    "data",
    "unlabelled",
    "classes",
    "template",
    "set",
    "images",
    "batch_size",
    "images_at_once",
    "max_loss",
    "strict",
    "seed",
    "device",
    "dtype",
    "image_column",
    "label_column",
)


def sweep_words(request: SweepRequest, recipes: Sequence[RecipeLike], output: Any, options: MergeOptions) -> str:
    """Write the command line of a sweep.

    Args:
        request: The curve and its sources.
        recipes: The recipes as given.
        output: The output folder.
        options: The options as given.
    """
    given = {key: options[key] for key in _FLAGS if key in options}  # type: ignore[literal-required]
    return spelled_out(
        "sweep",
        *request.checkpoints,
        id=[f"{name}={name_of(source)}" for name, source in request.id_sources.items()],
        ood=[f"{name}={name_of(source)}" for name, source in request.ood_sources.items()],
        recipe=[recipe_word(recipe) for recipe in recipes],
        point=[f"{name}={source}" for name, source in request.points.items()],
        alphas=",".join(f"{alpha:g}" for alpha in request.alphas),
        keep=keep_words(options.get("keep")),
        **given | {"set": set_words(options.get("set")), "no_hash": not options.get("hash", True)},
        output=output,
    )


def keep_words(given: Mapping[str, Any] | Sequence[str] | None) -> list[str]:
    """Write tasks as values of ``--keep``."""
    if isinstance(given, Mapping):
        return [f"{name}={name_of(source)}" for name, source in given.items()]
    return list(given or ())


def set_words(given: Mapping[str, Any] | Sequence[str] | None) -> list[str]:
    """Write overrides of a recipe as values of ``--set``."""
    return [f"{key}={value}" for key, value in given.items()] if isinstance(given, Mapping) else list(given or ())


def spelled_out(name: str, *positional: Any, **flags: Any) -> str:
    """Write a command line; an object in memory is named by its type.

    Args:
        name: The command.
        *positional: Its arguments.
        **flags: Its flags; ``None`` and ``False`` are left out.

    Example:
        >>> spelled_out("merge", "zs", "ft", recipe="wise-ft", output="out", set=None, template=["a {}.", "b {}."])
        "clipmerge merge zs ft --recipe wise-ft --output out --template 'a {}.' --template 'b {}.'"
    """
    words = ["clipmerge", name, *map(_word, positional)]
    for flag, value in flags.items():
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if each is not None and each is not False:
                words += [f"--{flag.replace('_', '-')}", *([] if each is True else [_word(each)])]
    return shlex.join(words)


def recipe_word(recipe: RecipeLike) -> str:
    """Write a recipe as a value of ``--recipe``; a recipe in memory is named."""
    if isinstance(recipe, Recipe):
        return recipe.name
    return str(recipe.get("name", "recipe.yaml")) if isinstance(recipe, Mapping) else os.fspath(recipe)


def _word(value: Any) -> str:
    if called := getattr(value, "called", None):
        return f"<{called}>"
    if isinstance(value, (str, int, float, os.PathLike)):
        return str(value)
    return f"<{type(value).__name__}>"
