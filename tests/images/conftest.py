"""Fixtures for tests of images: a Hub with the organisations of public data sets, and sources of
each kind."""

from pathlib import Path

import pytest

from tests.support.hub_double import FakeHub
from tests.support.image_files import png, save_plain_parquet, save_tar


@pytest.fixture
def hub(hub: FakeHub) -> FakeHub:
    hub.orgs = ("acme", "clip-benchmark", "tanganke")
    return hub


@pytest.fixture
def table(tmp_path: Path) -> Path:
    columns = {"image": [png(k) for k in range(9)], "label": ["a", "b", "c"] * 3}
    return save_plain_parquet(tmp_path / "x.parquet", columns)


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return save_tar(
        tmp_path / "x.tar", {"a.png": png(0), "a.txt": b"a", "b.png": png(1), "b.txt": b"b"}
    )
