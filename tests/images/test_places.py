"""Ranges of files: written out, and bounded before they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipmerge.errors import DataError
from clipmerge.images.dataset import load_images
from clipmerge.images.file_store import expand_ranges, local_inputs


def test_several_ranges_are_every_combination() -> None:
    assert expand_ranges("{1..2}/{09..10}.tar") == ["1/09.tar", "1/10.tar", "2/09.tar", "2/10.tar"]
    assert len(expand_ranges("{1..100000}.tar")) == 100_000


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x-{0..99999999}.tar", r"names 100000000 files, more than 100000; give the range of those there are"),
        ("x-{0..999999999999999999}.parquet", r"names 10{18} files"),
        ("{0..999}/{0..100}.tar", r"names 101000 files"),
        ("x-{3..1}.tar", r"\{3\.\.1\} runs backwards; write \{1\.\.3\}"),
        ("x-{-3..1}.tar", r"no such file"),
    ],
)
def test_a_range_that_no_data_set_has_is_one_line(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_images(source)


def test_an_input_may_have_braces_in_its_name(tmp_path: Path) -> None:
    named = tmp_path / "model-{3..1}"
    named.mkdir()
    (tmp_path / "2.tar").touch()
    assert local_inputs(named, None, tmp_path / "{1..3}.tar") == [named, tmp_path / "2.tar"]
