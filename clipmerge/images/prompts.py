"""Prompt templates, and the class prompts written from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipmerge.errors import UsageError, did_you_mean
from clipmerge.types import Names

DEFAULT_TEMPLATE = "a photo of a {}."


_SETS = Path(__file__).parent / "templates"


def template_set(name: str) -> Names:
    """Templates of a set: one text file per set, ``#`` in front of comments."""
    lines = (_SETS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if not line.startswith("#"))


def check_templates(templates: Sequence[str]) -> Names:
    """Check the prompt templates that the user named, and spell out sets of templates."""
    checked: list[str] = []
    sets = sorted(file.stem for file in _SETS.glob("*.txt"))
    for text in templates:
        template = text.replace("{c}", "{}")
        if "{}" not in template and text not in sets:
            raise UsageError(
                f"`template` '{text}': has no {{}} for the class name, as in '{DEFAULT_TEMPLATE}',"
                f" and is not a template set ({', '.join(sets)}).{did_you_mean(text, sets)}"
            )
        checked += [template] if "{}" in template else template_set(text)
    return tuple(checked)


def templates_for(from_user: Sequence[str], from_source: Sequence[str]) -> Names:
    """Choose the templates for a source."""
    return tuple(from_user) or tuple(from_source) or (DEFAULT_TEMPLATE,)


def source_templates(from_user: Sequence[str], sources: Mapping[str, Any]) -> dict[str, list[str]]:
    """The templates of the sources that are evaluated with their own; for records."""
    return (
        {}
        if from_user
        else {name: list(images.templates) for name, images in sources.items() if images.templates}
    )


def class_prompts(class_names: Names, templates: Names) -> list[str]:
    """Write the prompts, class by class: entry ``c * len(templates) + t``."""
    return [template.replace("{}", name) for name in class_names for template in templates]
