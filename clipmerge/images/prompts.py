"""Prompt templates, and the class prompts written from them."""

from __future__ import annotations

from clipmerge.errors import UsageError

DEFAULT_TEMPLATE = "a photo of a {}."


def check_templates(templates: list[str]) -> tuple[str, ...]:
    """Check prompt templates; none given means the default.

    Args:
        templates: Texts with ``{}`` where the class name goes.

    Returns:
        The templates.

    Raises:
        UsageError: If one has no ``{}``.
    """
    for template in templates:
        if "{}" not in template:
            raise UsageError(f"--template '{template}': has no {{}} for the class name, as in '{DEFAULT_TEMPLATE}'")
    return tuple(templates) or (DEFAULT_TEMPLATE,)


def class_prompts(class_names: tuple[str, ...], templates: tuple[str, ...]) -> list[str]:
    """Write out the prompts, class by class: entry ``c * len(templates) + t``."""
    return [template.replace("{}", name) for name in class_names for template in templates]
