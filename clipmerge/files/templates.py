"""Render templates: pages in HTML and cards in Markdown, with one configuration of jinja."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

_Filter = Callable[..., Any]


def render(
    template: Path,
    values: Mapping[str, Any],
    *,
    html: bool,
    filters: Mapping[str, _Filter] | None = None,
) -> str:
    """Render a template."""
    environment = _environment(template.parent, html, tuple((filters or {}).items()))
    return environment.get_template(template.name).render(values)


@lru_cache(maxsize=8)  # keeps the templates compiled
def _environment(
    folder: Path, html: bool, filters: tuple[tuple[str, _Filter], ...]
) -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not html,
        optimized=False,  # folding constants takes a quarter of the time to compile
    )
    environment.filters.update(filters)
    return environment
