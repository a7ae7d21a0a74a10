"""Files and names that cannot be read, and paths as users write them."""

import json
from pathlib import Path

import pytest

from clipmerge.files.paths import is_plain_name, local_path
from clipmerge.files.reading import Unreadable, read_bytes
from clipmerge.files.side_files import lies_in, side_file_bytes


def test_a_name_with_a_zero_byte_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="null"):
        read_bytes(tmp_path / "a\0b", 10)
    assert not lies_in(tmp_path, tmp_path / "a\0b")


def test_half_a_surrogate_pair_survives_the_loss_of_a_path(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"word": "\\ud800", "name_or_path": "/home/me/model"}')
    left = side_file_bytes(tmp_path / "x.json", "x.json")
    assert b"/home/me" not in left
    assert json.loads(left) == {"word": "\ud800"}


@pytest.mark.parametrize("name", [None, 3, "", ".", "..", "a\nb", "a/b", "a\\b", "\ud800", "x" * 5000])
def test_what_is_no_plain_name(name: object) -> None:
    assert not is_plain_name(name)


def test_a_home_is_expanded_and_an_unknown_one_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/models") == tmp_path / "models"
    assert local_path("~there-is-no-such-user/models") == Path("~there-is-no-such-user/models")
