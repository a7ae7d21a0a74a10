"""Names from files, and paths as users write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipmerge.files.paths import is_plain_name, local_path


@pytest.mark.parametrize("name", [None, 3, "", ".", "..", "a\nb", "a/b", "a\\b", "\ud800", "x" * 5000])
def test_what_is_no_plain_name(name: object) -> None:
    assert not is_plain_name(name)


def test_a_home_is_expanded_and_an_unknown_one_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/models") == tmp_path / "models"
    assert local_path("~there-is-no-such-user/models") == Path("~there-is-no-such-user/models")
