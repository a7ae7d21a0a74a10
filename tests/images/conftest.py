"""Fixtures for tests of images: a Hub with the organisations of public data sets, and sources of each kind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub_double import FakeHub, serving
from tests.support.image_files import png, save_plain_parquet, save_tar


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving(tmp_path, monkeypatch) as server:
        server.orgs = ("acme", "clip-benchmark", "tanganke")
        yield server


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return save_plain_parquet(
        tmp_path / "x.parquet", {"image": [png(k) for k in range(9)], "label": ["a", "b", "c"] * 3}
    )


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return save_tar(tmp_path / "x.tar", {"a.png": png(0), "a.txt": b"a", "b.png": png(1), "b.txt": b"b"})
