"""A record is read back unchanged, and an invalid one is an error of one line."""

import json
from pathlib import Path

import pytest

from clipmerge.errors import ClipmergeError, OutputError
from clipmerge.planning.record import read_output
from tests.support.command import done, one_line


@pytest.fixture(scope="module")
def output(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge, and what its command printed."""
    folder = tmp_path_factory.mktemp("record")
    printed = done("merge", *pair, "-r", "lines", "-o", folder / "out", "--json").json
    (folder / "printed.json").write_text(json.dumps(printed))
    return folder / "out"


def test_a_merge_writes_what_it_prints_and_it_reads_back(output: Path) -> None:
    printed = json.loads((output.parent / "printed.json").read_text())
    record = read_output(output)
    assert record.as_json().items() <= printed.items()
    assert record.format == "clipmerge-record/5"
    assert record.plan.recipe.name == "lines"
    assert record.plan.zeroshot.source == "zeroshot"  # not the folder that it lies in
    assert record.measured.reasons["vision.0.mlp"] == "block 1 of 3, vision tower"
    assert set(record.files) == {path.name for path in output.iterdir()} - {
        *("README.md", "report.html", "clipmerge.json")
    }


def test_an_invalid_record_is_an_error_of_one_line(output: Path, tmp_path: Path) -> None:
    data = json.loads((output / "clipmerge.json").read_text())
    (tmp_path / "clipmerge.json").write_text(json.dumps(data | {"layer": {}}))
    with one_line(OutputError, r"clipmerge\.json: is not a record .* layer: .*; give a folder"):
        read_output(tmp_path)


def test_a_folder_that_no_merge_wrote_is_refused(output: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with one_line(ClipmergeError, "give a folder that `clipmerge merge --output`"):
            read_output(folder)
    (tmp_path / "clipmerge.json").write_bytes((output / "clipmerge.json").read_bytes())
    with one_line(OutputError, r"model\.safetensors.* missing; merge again"):
        read_output(tmp_path)
