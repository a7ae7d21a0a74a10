"""Ends of a path for tests of measures; read only."""

import pytest

from tests.support.small_objective import Ends, save_ends


@pytest.fixture(scope="session")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    """Ends whose text towers are the same."""
    return save_ends(tmp_path_factory.mktemp("frozen"), moves=("vision_", "visual_"))


@pytest.fixture(scope="session")
def short_ends(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    """Ends of a narrow model with one block per tower, for references that take long."""
    return save_ends(tmp_path_factory.mktemp("short"), blocks=1, width=8)
