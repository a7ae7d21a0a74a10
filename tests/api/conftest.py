"""Fixtures of the API's tests."""

from pathlib import Path

import pytest

from tests.support.tiny_clip import save_images, save_pair


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pair whose fine-tuned weights are far enough away for predictions to change on the way."""
    return save_pair(tmp_path_factory.mktemp("far"), change=1.0)


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images(tmp_path_factory.mktemp("shifted"), each=7, seed=5)
