"""A recipe: a measure and a method, as YAML that people read, copy and override."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import yaml
from pydantic import Field, ValidationError

from clipmerge.errors import UsageError, did_you_mean, did_you_mean_path, list_choices
from clipmerge.files import local_path, recipe_files
from clipmerge.planning import Frozen
from clipmerge.plugins import (
    Alpha,
    Density,
    MeasureKind,
    check_mask_options,
    check_options,
    measure_is,
    plugin_names,
    plugin_options,
)
from clipmerge.types import Json, Missing, StrPath, as_tuple

#: Default for the accepted loss of accuracy, in points.
MAX_LOSS = 3.0


class Override(Frozen):
    """Settings of some layers that replace those of the method. If two overrides match a layer, the
    later one counts.

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
        name: Name of the recipe; by default that of its file, without the ending.
        measure: ``{"name": ..., options}``, or ``None`` for a data-free recipe.
        method: ``{"name": ..., options}``.
        overrides: Changes of the method's result for some layers, applied in order.
        missing: Treatment of keys that only one checkpoint has: an error, or keep the keys of the
            zero-shot or of the fine-tuned checkpoint.
    """

    name: Annotated[str, Field(min_length=1)]
    measure: Json | None = None
    method: Json
    overrides: tuple[Override, ...] = ()
    missing: Missing = "error"

    @property
    def measure_options(self) -> Json:
        """Options of the measure; empty if there is none."""
        return {key: value for key, value in (self.measure or {}).items() if key != "name"}

    @property
    def max_loss(self) -> float:
        """Points of accuracy that the merge may lose against the fine-tuned model."""
        limit = self.measure_options["max_loss"] if self.measure_is("HOLDS_BACK") else MAX_LOSS
        return float(limit)

    def measure_is(self, kind: MeasureKind) -> bool:
        """Whether the recipe has a measure of this kind."""
        return self.measure is not None and measure_is(self.measure["name"], kind)

    def to_yaml(self) -> str:
        """Return the text of a recipe file, without empty top-level keys."""
        data = self.model_dump(mode="json", exclude_none=True)
        content = {key: value for key, value in data.items() if value}
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


#: Name of a recipe, path of a YAML file, a mapping like a recipe file, or a `Recipe`.
RecipeLike: TypeAlias = StrPath | Mapping[str, Any] | Recipe


def load_recipe(
    recipe: RecipeLike,
    set: Mapping[str, Any] | Sequence[str] | str | None = None,
    *,
    alpha: float | None = None,
    max_loss: float | None = None,
) -> Recipe:
    """Load a recipe, change single options, and validate everything.

    Args:
        recipe: Name of a recipe, path of a YAML file, a mapping like a recipe file, or a `Recipe`.
        set: Changes: a mapping by dotted key; or one or several texts ``KEY=VALUE``, with values in
            YAML.
        alpha: Value for ``method.alpha``.
        max_loss: Value for ``measure.max_loss``, if the measure has this option.

    Returns:
        The validated recipe.

    Raises:
        UsageError: If the file cannot be read, or a part of it is unknown or out of range.

    Example:
        >>> load_recipe("wise-ft", {"method.alpha": 0.3}).method["alpha"]
        0.3
    """
    source, content = _read_recipe(recipe)
    changes = _parse_assignments(set)
    if alpha is not None:
        if "method.alpha" in changes:
            raise UsageError("`alpha` is short for `set` method.alpha; give one of them")
        changes["method.alpha"] = alpha
    for key, value in changes.items():
        _set_by_dotted_key(content, key, value)
    try:
        loaded = Recipe.model_validate(content)
        method = _check_section("method", loaded.method)
        measure = loaded.measure and _check_section("measure", loaded.measure)
    except ValidationError as error:
        raise UsageError(f"{source}: {_explain_invalid_recipe(error, content)}") from None
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from None
    checked = loaded.replace(method=method, measure=measure)
    if measure and max_loss is not None and checked.measure_is("HOLDS_BACK"):
        measure["max_loss"] = max_loss
    return checked


def _read_recipe(recipe: RecipeLike) -> tuple[str, Json]:
    """Return a recipe's name for messages, and a copy of its content before validation."""
    if isinstance(recipe, Recipe):
        return recipe.name, recipe.model_dump(mode="json")
    if isinstance(recipe, Mapping):
        return "recipe", {"name": "custom", **copy.deepcopy(dict(recipe))}
    name = str(recipe)
    content = _from_yaml(f"{name}:", recipe_text(name))
    if not isinstance(content, dict):
        raise UsageError(
            f"{name}: is not a recipe; see `clipmerge recipes show straggler-sparse` for one"
        )
    return name, {"name": Path(name).stem, **content}


def recipe_text(recipe: str) -> str:
    """Read the text of a shipped recipe or of the user's file, with its comments."""
    known = recipe_files()
    file = known.get(recipe) or local_path(recipe)
    if not file.exists():
        hint = list_choices("recipes", recipe, known)
        if file.suffix in (".yaml", ".yml"):
            hint = f".{did_you_mean_path(file)}"
        raise UsageError(f"no recipe '{recipe}'{hint}")
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{recipe}: cannot be read ({reason})") from None


def _parse_assignments(assignments: Any) -> Json:
    """Read changes by key from a mapping, or from texts ``KEY=VALUE``."""
    if isinstance(assignments, Mapping):
        return {str(key): value for key, value in assignments.items()}
    parsed = {}
    for assignment in as_tuple(assignments):
        key, equals, raw = str(assignment).partition("=")
        if not equals:
            raise UsageError(f"`set` {assignment}: expected KEY=VALUE, such as method.alpha=0.4")
        parsed[key] = _from_yaml(f"`set` {assignment}: the value", raw)
    return parsed


def _set_by_dotted_key(data: Json, key: str, value: Any) -> None:
    """Set the value at a dotted key, such as ``method.alpha``, in nested dictionaries."""
    *parents, last = key.split(".")
    for parent in parents:
        section = data.get(parent) or {}  # the measure of a `Recipe` may be ``None``
        if not isinstance(section, dict):
            raise UsageError(f"`set` {key}={value}: '{parent}' holds no options")
        data[parent] = section
        data = section
    data[last] = value


def _from_yaml(subject: str, text: str) -> Any:
    """Parse YAML. If that fails, the error begins with ``subject``."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        reason = " ".join(str(error).split())
        raise UsageError(f"{subject} is not YAML: {reason}") from None


def _check_section(section: str, value: Json) -> Json:
    """Validate the options of a measure or a method, and add defaults."""
    package, options = f"{section}s", dict(value)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise UsageError(f"{section}: needs a `name:`, one of {', '.join(plugin_names(package))}")
    checked = check_options(package, name, options)
    if checked.get("mask") is not None:  # an error now saves minutes of measuring
        check_mask_options(checked["mask"], checked.get("mask_options") or {})
    return {"name": name, **checked}


def _explain_invalid_recipe(error: ValidationError, data: Json) -> str:
    """Describe the first fault of a recipe, and suggest the key that may be meant."""
    first = error.errors()[0]
    *section, key = map(str, first["loc"])
    if section or first["type"] != "extra_forbidden":
        place = ".".join([*section, key])
        return f"{place}: {first['msg']}.{did_you_mean(key, Override.model_fields)}"
    method = data["method"].get("name")
    if method in plugin_names("methods") and key in plugin_options("methods", method):
        return f"unknown key '{key}'. Did you mean 'method.{key}'?"
    return f"unknown key '{key}'{list_choices('keys', key, Recipe.model_fields)}"
