"""Make a fine-tuned CLIP robust again by merging it with its zero-shot self.

Every command of the command line is a function here, with the same name and the same result:

    >>> import clipmerge
    >>> result = clipmerge.merge(  # doctest: +SKIP
    ...     "zeroshot", "finetuned", "auto", data="val", output="merged"
    ... )

Names are imported on first use, so that ``import clipmerge`` takes a millisecond.
"""

from __future__ import annotations

__version__ = "0.1.0"

# the public names and their modules, as the stub lists them for type checkers
with open(f"{__file__}i", encoding="utf-8") as _stub:  # noqa: PTH123 - pathlib takes as long as everything else here
    _HOMES = {words[3]: words[1] for line in _stub if (words := line.split())[:1] == ["from"]}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    # nothing is imported before that: until `__main__` begins, Ctrl-C prints a traceback
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'clipmerge' has no attribute '{name}'")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return __all__
