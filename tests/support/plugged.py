"""Files of measures, methods, masks and combinations, found beside those of clipmerge."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from clipmerge.plugins import load_plugin, plugin_names


@contextmanager
def plugged(files: Sequence[Path]) -> Iterator[None]:
    """Find files in folders that are named after their packages."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in {file.parent for file in files}:
            package = importlib.import_module(f"clipmerge.{folder.name}")
            patch.setattr(package, "__path__", [*package.__path__, str(folder)])
        _forget()
        yield
    for file in files:
        sys.modules.pop(f"clipmerge.{file.parent.name}.{file.stem}", None)
    _forget()


def _forget() -> None:
    for cached in (plugin_names, load_plugin):
        cached.cache_clear()
    importlib.invalidate_caches()
