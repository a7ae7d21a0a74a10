"""A recipe: a measure and a method, as YAML that people read, copy and override."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import yaml
from pydantic import Field, ValidationError

from clipmerge.errors import UsageError, did_you_mean
from clipmerge.files.paths import local_path, recipe_files
from clipmerge.planning import Frozen
from clipmerge.planning.verdict import MAX_LOSS
from clipmerge.plugins import (
    Alpha,
    Density,
    check_mask_options,
    check_options,
    plugin_names,
    plugin_options,
)
from clipmerge.types import Json, Missing, StrPath


class Override(Frozen):
    """Set the coefficient or density of some layers, overriding the method; later overrides take
    precedence.

    Attributes:
        layers: Glob over layer names, such as ``text.*``.
        alpha: Coefficient; ``None`` leaves the method's.
        density: Share of the task vector kept; ``None`` leaves the method's.
    """

    layers: str
    alpha: Alpha | None = None
    density: Density | None = None


class Recipe(Frozen):
    """A validated recipe: every name exists, every option is known and in its range.

    Attributes:
        name: Name that it was loaded by.
        measure: ``{"name": ..., options}``, or ``None`` for a data-free recipe.
        method: ``{"name": ..., options}``.
        overrides: Applied after the method, in order.
        missing: Treatment of keys that only one checkpoint has: an ``error``, or keep the key set
            of the zero-shot or of the fine-tuned checkpoint.
    """

    name: Annotated[str, Field(min_length=1)]
    measure: Json | None = None
    method: Json
    overrides: tuple[Override, ...] = ()
    missing: Missing = "error"

    @property
    def measure_options(self) -> Json:
        """Options of the measure; empty if there is none."""
        return _without_name(self.measure or {})

    @property
    def method_options(self) -> Json:
        """Options of the method."""
        return _without_name(self.method)

    @property
    def max_loss(self) -> float:
        """Points of accuracy that may be lost against the fine-tuned model: the limit of the
        recipe's measure, if it has one.
        """
        return float(self.measure_options.get("max_loss", MAX_LOSS))

    @property
    def learns(self) -> bool:
        """Whether the recipe's measure learns step by step."""
        return "steps" in self.measure_options

    def to_yaml(self) -> str:
        """Write it as a recipe file, without empty top-level keys."""
        data = self.model_dump(mode="json")
        data["overrides"] = [override.model_dump(exclude_none=True) for override in self.overrides]
        content = {key: value for key, value in data.items() if value not in (None, [])}
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


#: Name of a recipe, path of a YAML file, a mapping like a recipe file, or a `Recipe`.
RecipeLike: TypeAlias = StrPath | Mapping[str, Any] | Recipe


def _without_name(section: Json) -> Json:
    return {key: value for key, value in section.items() if key != "name"}


def recipe_text(name: str) -> str:
    """Text of a recipe that is known by name, including comments."""
    known = recipe_files()
    if name not in known:
        raise UsageError(
            f"no recipe '{name}' (recipes: {', '.join(known)}).{did_you_mean(name, known)}"
        )
    return known[name].read_text(encoding="utf-8")


def load_recipe(
    recipe: RecipeLike,
    set: Mapping[str, Any] | Sequence[str] | None = None,
    *,
    alpha: float | None = None,
    max_loss: float | None = None,
) -> Recipe:
    """Load a recipe and apply overrides.

    Args:
        recipe: Name of a recipe, path of a YAML file, a mapping like such a file, or a
            recipe.
        set: ``{"method.alpha": 0.4}``, keys dotted; or ``["method.alpha=0.4"]``, values in YAML.
        alpha: The same as ``method.alpha``.
        max_loss: The limit of the measure, if it has one.

    Returns:
        The validated recipe.

    Raises:
        UsageError: If the file cannot be read, or a part of it is unknown or out of range.

    Example:
        >>> load_recipe("wise-ft", {"method.alpha": 0.3}).method["alpha"]
        0.3
    """
    source, data = _read_raw(recipe)
    changes = _parse_assignments(set)
    named = {"method.alpha": alpha, "measure.max_loss": max_loss}
    for key in [key for key, value in named.items() if value is not None and key in changes]:
        raise UsageError(
            f"`{key.partition('.')[2]}` and `set={key}`: both set the same option; give one of them"
        )
    if alpha is not None:
        changes["method.alpha"] = alpha
    for key, value in changes.items():
        _assign(data, key, value)
    loaded = _validate(source, data)
    if max_loss is not None and "max_loss" in loaded.measure_options:
        return loaded.replace(measure={**(loaded.measure or {}), "max_loss": max_loss})
    return loaded


def _read_raw(recipe: RecipeLike) -> tuple[str, Json]:
    """Name of a recipe in messages, and a copy of its content, not validated."""
    if isinstance(recipe, Recipe):
        return recipe.name, recipe.model_dump(mode="json")
    if isinstance(recipe, Mapping):
        return "recipe", {"name": "custom", **copy.deepcopy(dict(recipe))}
    if not isinstance(recipe, (str, os.PathLike)):
        raise UsageError(
            f"{type(recipe).__name__} is not a recipe; give a name, a YAML file, a dict or a Recipe"
        )
    name, path = os.fspath(recipe), local_path(recipe)
    # a file may have the name of a recipe
    if name in recipe_files() or not (path.suffix in (".yaml", ".yml") or path.is_file()):
        text = recipe_text(name)
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:  # ValueError: not UTF-8
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"{name}: cannot be read ({reason})") from None
    data = _from_yaml(f"{name}:", text)
    if not isinstance(data, dict):
        raise UsageError(
            f"{name}: is not a recipe; see `clipmerge recipes show straggler-sparse` for one"
        )
    return name, {"name": path.stem, **data}


def _parse_assignments(assignments: Mapping[str, Any] | Sequence[str] | None) -> Json:
    """Values by key."""
    if isinstance(assignments, Mapping):
        return {str(key): value for key, value in assignments.items()}
    parsed = {}
    for assignment in [assignments] if isinstance(assignments, str) else assignments or ():
        key, equals, raw = str(assignment).partition("=")
        if not equals or not key.strip():
            raise UsageError(f"`set` {assignment}: expected KEY=VALUE, such as method.alpha=0.4")
        parsed[key.strip()] = _from_yaml(f"`set` {assignment[:80]}: the value", raw)
    return parsed


def _assign(data: Json, key: str, value: Any) -> None:
    """Set one value by its dotted key."""
    *parents, last = key.split(".")
    for parent in parents:
        if data.get(parent) is None:  # a `Recipe` has all of its keys
            data[parent] = {}
        data = data[parent]
        if not isinstance(data, dict):
            raise UsageError(f"`set` {key}={value}: '{parent}' holds no options")
    data[last] = value


def _from_yaml(subject: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except Exception as error:  # a tag that does not fit its text makes PyYAML raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{subject} is not YAML: {reason}") from None


def _validate(source: str, data: Json) -> Recipe:
    try:
        recipe = Recipe.model_validate(data)
        sections = {
            section: _checked_section(section, value)
            for section, value in (("measure", recipe.measure), ("method", recipe.method))
            if value is not None
        }
    except ValidationError as error:
        raise UsageError(f"{source}: {_explain(error, data)}") from None
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from None
    return recipe.replace(**sections)


def _checked_section(section: str, value: Json) -> Json:
    """A measure or a method with all of its options."""
    package = f"{section}s"
    if not isinstance(value.get("name"), str):
        raise UsageError(f"{section}: needs a `name:`, one of {', '.join(plugin_names(package))}")
    checked = check_options(package, value["name"], _without_name(value))
    if checked.get("mask") is not None:  # checked now, before minutes of measuring
        check_mask_options(checked["mask"], checked.get("mask_options") or {})
    return {"name": value["name"], **checked}


def _explain(error: ValidationError, data: Json) -> str:
    """What is wrong with a recipe, and what may be meant."""
    first = error.errors()[0]
    *places, key = first["loc"]
    if not places and first["type"] == "extra_forbidden":
        for section in ("method", "measure"):  # an option that was given without its section
            given = data.get(section)
            name = given.get("name") if isinstance(given, dict) else None
            if name in plugin_names(f"{section}s") and key in plugin_options(f"{section}s", name):
                return f"unknown key '{key}'. Did you mean '{section}.{key}'?"
        known = list(Recipe.model_fields)
        return f"unknown key '{key}' (keys: {', '.join(known)}).{did_you_mean(str(key), known)}"
    where = ".".join(str(part) for part in first["loc"])
    hint = did_you_mean(str(key), Override.model_fields)
    return f"{where}: {first['msg']}.{hint}"
