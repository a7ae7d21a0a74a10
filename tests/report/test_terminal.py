"""The summary on the terminal: its size, its rows, and names from strangers."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from clipmerge.output.record import MergeRecord
from clipmerge.report.terminal import summary
from tests.support.merge_records import RECORDS, data_free, example, learned, printed, varied

PATH = {"images": 204, "alpha": 0.4, "part": 0.0, "beyond": 0.0, "goal": 0.4, "right": 0.9, "path_alpha": 0.4} | {
    "path_goal": 0.4,
    "finetuned_right": 0.95,
}


@pytest.mark.parametrize("name", RECORDS)
def test_table_fits_a_terminal(name):
    lines = printed(RECORDS[name]).splitlines()
    assert len(lines) <= 25 + 2 * 3  # two lines for each of three stragglers, which are always named
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (learned(), "How far each weight goes from zero-shot to fine-tuned was learned on 819 of your images"),
        (learned(stragglers=("vision.3.mlp",)), "1 stragglers of 55 layers, 50% of their weights back at zero-shot."),
        (learned() | {"choice": PATH}, "Nothing learned on 819 of your images is proven better than alpha 0.4 for all"),
        (
            learned(stragglers=("vision.3.mlp",)) | {"choice": PATH | {"finetuned_rank": 0.8}, "trace": {}},
            "1 stragglers of 55 layers, 50% of their weights back at zero-shot.\nFine-tuning left the zero-shot model "
            "80% of the effective rank of its features, so nothing was learned, and alpha 0.4 for all weights was",
        ),
    ],
)
def test_the_summary_says_in_a_sentence_what_was_learned(record, said):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(summary(MergeRecord.model_validate(record)))
    assert said in console.export_text()


@pytest.mark.parametrize("name", RECORDS)
def test_numbers_are_not_broken_on_a_narrow_terminal(name):
    lines = printed(RECORDS[name], width=60).splitlines()
    head = next(line for line in lines if line.startswith("layer "))
    assert "alpha" in head
    assert "mask" in head  # one line, and so are the rows below
    assert max(map(len, lines)) <= 60


def test_table_fits_when_every_layer_differs():
    record = varied(data_free())
    lines = printed(record).splitlines()
    assert len(lines) <= 25
    assert any("0.300 to 0.435" in line for line in lines)


def test_table_spells_stragglers_out_and_collapses_the_rest():
    text = printed(example(stragglers=("vision.3.mlp",)))
    assert re.search(r"^vision\.3\.mlp +0\.20 +0\.50 +saliency +\+0\.0940", text, re.M)
    assert "straggler: barrier z 4.1, in 97% of the resamples" in text
    assert "70 layers: base alpha" in text
    assert "3.410 at 0, 0.460 at 0.5, 0.220 at 1" in text


def test_stragglers_are_named_however_long_the_rest_is():
    names = ("vision.3.mlp", "text.2.attn")
    record = example(stragglers=names)
    record["verdict"] = " ".join(["a long verdict"] * 60)
    text = printed(record)
    assert all(re.search(rf"^{re.escape(name)} ", text, re.M) for name in names)
    assert "in them" not in text


def test_table_sums_shares_over_the_layers_of_a_row():
    record = example(1, 1, ())
    for statistics in record["measurements"].values():
        statistics["barrier"] = 0.25
    row = next(line for line in printed(record).splitlines() if line.startswith("all "))
    assert f"+{0.25 * len(record['layers']):.3f}" in row


def test_table_keeps_markup_and_control_characters_out_of_the_terminal():
    record = example(1, 1, ())
    record["verdict"] = "[red]a\x1b[2Jb[/red]"
    assert "[red]a [2Jb[/red]" in printed(record)
