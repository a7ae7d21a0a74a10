"""Render templates: pages in HTML, and cards in Markdown."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmerge.config import with_flags

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

_CODE = re.compile(r"`([^`]+)`")


def sentence(text: str, names: Collection[str] = ()) -> str:
    """Begin with a capital letter, unless the first word is a name, and end with a full stop.

    Example:
        >>> sentence("the merged model loses 3.3 points")
        'The merged model loses 3.3 points.'
        >>> sentence("auto, the best, loses 5.0 points", ["auto"])
        'auto, the best, loses 5.0 points.'
        >>> sentence("vision.3.mlp has no images"), sentence("")
        ('vision.3.mlp has no images.', '')
    """
    text = text.strip()
    if not text:
        return ""
    first = text.split()[0].rstrip(".:,;")
    # a layer, a file or an option, whose name is not capitalised
    is_name = first in names or not first.isalnum()
    return (text[0] if is_name else text[0].upper()) + text[1:] + "." * (text[-1] not in ".!?:")


def render(template: Path, values: Mapping[str, Any], *, html: bool, **filters: Any) -> str:
    """Render a template, with further filters."""
    return (
        _environment(template.parent, html, tuple(filters.items()))
        .get_template(template.name)
        .render(values)
    )


def mark_code(text: str) -> Markup:
    """Write parameters as flags, and mark what stands between backticks as code.

    Example:
        >>> mark_code("`clipmerge push` & `max_loss`")
        Markup('<code>clipmerge push</code> &amp; --max-loss')
    """
    from markupsafe import Markup, escape

    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(with_flags(text)))))


def render_page(name: str, values: Mapping[str, Any]) -> str:
    """Render a page that loads nothing from the network; its messages name flags."""
    file = Path(__file__).parent / "templates" / name
    return render(file, values, html=True, sentence=sentence, flags=mark_code)


@lru_cache(maxsize=8)  # keeps the templates compiled
def _environment(
    folder: Path, html: bool, filters: tuple[tuple[str, Any], ...]
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
