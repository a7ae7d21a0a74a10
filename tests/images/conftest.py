"""Fixtures for tests of images: a Hub with the organisations of public data sets.

`datasets` reads the variables of its caches when it is imported, so it is imported late.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.hub_double import FakeHub


@pytest.fixture
def hub(hub: "FakeHub", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "FakeHub":
    """The double, and a cache of `datasets` of its own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return hub


@pytest.fixture(autouse=True)
def _quiet() -> None:
    import datasets

    datasets.disable_progress_bars()
