"""Fixtures for tests of images: a Hub with the organisations of public data sets."""

import datasets
import pytest

from tests.support.hub_double import FakeHub


@pytest.fixture
def hub(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """The double, to which `datasets` speaks too."""
    hub.orgs = ("acme", "clip-benchmark", "tanganke")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    return hub


@pytest.fixture(autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()
