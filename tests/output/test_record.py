"""The record: typed, versioned, read back unchanged, and refused in one line if it is invalid."""

import json
from pathlib import Path
from typing import Any

import pytest

from clipmerge.errors import OutputError
from clipmerge.output.record import PUBLISHED, parse_record, read_output
from clipmerge.report.text import record_text
from tests.support.command import clipmerge, done, one_line, refused
from tests.support.merged_output import RECORD


def test_a_merge_writes_what_it_prints_and_it_reads_back(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    ended = done("merge", *pair, "-r", "lines", "-o", tmp_path / "out", "--json")
    assert ended.json["format"] == "clipmerge-record/3"
    assert isinstance(ended.json["finetuned"], list)
    assert not set(PUBLISHED) & set(ended.json)
    record = read_output(tmp_path / "out")
    assert record.as_json() == ended.json
    assert parse_record(record_text(record), "x") == record


DEEP = json.loads("[" * 300 + "]" * 300)
NONSENSE: dict[str, Any] = {
    "mask options nested deeply": {
        "layers": {"vision.0.attn": {"alpha": 1, "mask_options": {"a": DEEP}}}
    },
    "layers a number": {"layers": 5},
    "a size of many digits": {"layers": {"vision.0.attn": {"alpha": 1, "size": 10**400}}},
    "an option of many digits": {"recipe": {"name": "x", "method": {"alpha": 2**63}}},
    "finetuned of words": {"finetuned": ["acme/base"]},
    "a path cut short": {"path": {"alphas": [0, 1], "losses": [1]}},
    "an unknown key": {"layer": {}},
    "a format of tomorrow": {"format": "clipmerge-record/4"},
    "no format": {"format": None},
}
TEXTS = {what: json.dumps(RECORD | changes) for what, changes in NONSENSE.items()} | {
    "half": "{",
    "a list": "[]",
    "brackets": "[" * 100_000,
    "many digits": json.dumps(RECORD).replace('"seed": 0', '"seed": ' + "1" * 5000),
    "no text": "\udcff",
}


@pytest.mark.parametrize("what", TEXTS)
def test_nonsense_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    (tmp_path / "clipmerge.json").write_text(TEXTS[what], errors="surrogateescape")
    with one_line(
        OutputError, r"clipmerge\.json: (not a clipmerge record|has the format|cannot be read)"
    ) as caught:
        read_output(tmp_path)
    assert len(str(caught.value)) < 400


def test_a_folder_that_no_merge_wrote_is_reported_what_to_give(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        for arguments in (["push", folder, "alice/robust"],):
            assert "Give a folder written by `clipmerge merge --output`" in refused(
                clipmerge(*arguments), 1
            )


def test_a_record_of_very_many_values_is_refused(tmp_path: Path) -> None:
    for count, told in {
        130_000: "more than 250000 values",
        1001: "layers: .*more than 1000 layers",
    }.items():
        layers = {f"v.{number}": {"alpha": 0.5} for number in range(count)}
        with pytest.raises(OutputError, match=rf"x: not a clipmerge record \({told}\)"):
            parse_record(json.dumps(RECORD | {"layers": layers}), "x")
