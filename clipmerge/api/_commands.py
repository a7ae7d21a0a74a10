"""Command lines equivalent to calls of the API, for the records."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import Any

from clipmerge.api._in_memory import title_of
from clipmerge.api._requests import RecipeLike
from clipmerge.config import EVERY, Option
from clipmerge.planning.recipe import Recipe

_UNLISTED = Option(None, "", "Output")  # of the functions' own parameters, such as ``output``


def spelled_out(name: str, *positional: Any, **given: Any) -> str:
    """Write a command line from options as they are given; an object in memory is named by its
    type.

    Example:
        >>> options = {"set": {"method.alpha": 1}, "hash": False}
        >>> spelled_out("merge", "zs", "ft", recipe="wise-ft", output="out", **options)
        'clipmerge merge zs ft --recipe wise-ft --output out --set method.alpha=1 --no-hash'
    """
    words = ["clipmerge", name, *map(_word, positional)]
    for option, value in given.items():
        declared = EVERY.get(option, _UNLISTED)
        if isinstance(value, bool):
            words += [declared.flag(option)] * (value is not (declared.default is True))
        elif value is not None:
            for word in _words(value):
                words += [declared.flag(option), word]
    return shlex.join(words)


def in_order(options: Mapping[str, Any]) -> dict[str, Any]:
    """Given options in the order in which they are declared, so that equal calls are spelled out
    alike.
    """
    return {name: options[name] for name in EVERY if name in options}


def _words(value: Any) -> list[str]:
    """The values of a flag that may be repeated, or the only one."""
    if isinstance(value, Mapping):
        return [f"{name}={_word(each)}" for name, each in value.items()]
    if not isinstance(value, (list, tuple)):
        return [_word(value)]
    if value and all(isinstance(each, (int, float)) for each in value):
        return [",".join(f"{each:g}" for each in value)]
    return [_word(each) for each in value]


def recipe_word(recipe: RecipeLike) -> str:
    """Write a recipe as a value of ``--recipe``; a recipe in memory is named."""
    if isinstance(recipe, Recipe):
        return recipe.name
    return (
        str(recipe.get("name", "recipe.yaml")) if isinstance(recipe, Mapping) else os.fspath(recipe)
    )


def _word(value: Any) -> str:
    if isinstance(value, str) and (title := title_of(value)):
        return f"<{title}>"
    if isinstance(value, (str, int, float, os.PathLike, Mapping, list, tuple)):
        return str(value)
    return f"<{type(value).__name__}>"
