"""For the site: the options behind ``**options`` as arguments of their own, as `help` shows
them.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import griffe

from clipmerge import config


class Options(griffe.Extension):
    """Takes them from the class that a function gives to `clipmerge.config.with_options`."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Add them to the signature and to the docstring."""
        given = next(
            (each.value for each in func.decorators if each.callable_path.endswith("with_options")),
            None,
        )
        if not isinstance(given, griffe.ExprCall) or func.docstring is None:
            return

        def shown() -> None: ...

        shown.__doc__ = func.docstring.value
        config.with_options(getattr(config, str(given.arguments[0])))(shown)
        func.docstring.value = shown.__doc__
        del func.parameters["options"]
        for each in inspect.signature(shown).parameters.values():
            kind = re.sub(
                r"\b(?:\w+\.)+(?=\w)", "", inspect.formatannotation(each.annotation)
            )  # without modules
            func.parameters.add(
                griffe.Parameter(
                    each.name,
                    annotation=kind,
                    kind=griffe.ParameterKind.keyword_only,
                    default=repr(each.default),
                )
            )
