"""The page of a sweep, its headline, and its table on a terminal."""

import copy
import csv
import io
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from clipmerge.cli.sweep import SweepTable
from clipmerge.evaluation.tradeoff import compare_with_curve
from clipmerge.report.figures import as_image, sweep_figure
from clipmerge.report.sweep_table import (
    rows_of,
    shorten_middle,
    sweep_columns,
    sweep_csv,
    sweep_page,
)
from clipmerge.report.text import gain_notes, signed_points, sweep_headline
from tests.support.claims import words_of
from tests.support.read_page import Page
from tests.support.sweep_records import SWEEP as RECORD
from tests.support.sweep_records import sweep_row as row
from tests.support.sweep_records import with_sources


@given(st.text(st.sampled_from("ab \n混🚀"), max_size=40), st.integers(1, 50))
def test_a_shortened_name_fits_and_keeps_both_ends(name: str, cells: int) -> None:
    line, found = " ".join(name.split()), shorten_middle(name, cells)
    assert cell_len(found) <= cells
    if cell_len(line) <= cells:
        assert found == line
    else:
        head, tail = (part.strip() for part in found.split("…"))
        assert line.startswith(head)
        assert line.endswith(tail)


def test_the_page_is_whole_and_asks_for_nothing() -> None:
    text = sweep_page(RECORD, as_image(sweep_figure(RECORD), "the curve"))
    page = Page(text)
    assert page.open == []
    links = [attributes.get("href") or attributes.get("src") for _, attributes in page.tags]
    assert all(link.startswith(("#", "data:")) for link in links if link)
    assert not re.search(r"https?://|url\((?!#)|@import", text)
    assert text.count("<script>") == text.count("<script") == 1  # which sorts the table
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == ["the curve"]
    # a telephone shows the first columns: the means come before the single sources
    assert page.rows[0] == [
        "accuracy, %",
        "val",
        "mean OOD",
        "gain at equal ID accuracy",
        "sketch",
        "noise",
    ]
    assert len(page.rows) == 1 + 4 + 3
    assert page.rows[1] == ["alpha 0 (zero-shot)", "40.0", "54.0 [52.0, 56.0]", "", "44.0", "64.0"]
    assert page.rows[-1] == ["beyond", "35.0", "40.0 [38.0, 42.0]", "–", "30.0", "50.0"]  # noqa: RUF001
    assert "Use monosoup +7.8 points [+6.8, +9.8] of mean OOD accuracy" in words_of(text)
    assert "beyond: no point of the curve has so low an ID accuracy." in text
    assert "lines: the same weights as alpha 0.5, a point of the curve." in text
    assert "1,234 images" in text


def test_names_cannot_break_the_page() -> None:
    record = copy.deepcopy(RECORD)
    record["recipes"][0]["name"] = "<script>alert(1)</script>"
    record["warnings"] = [{"kind": "note", "text": "<b>&"}]
    text = sweep_page(record, "")
    assert "<script>alert" not in text
    assert '<th scope="row">&lt;script&gt;alert(1)&lt;/script&gt;</th>' in text
    assert "&lt;b&gt;&amp;" in text
    assert Page(text).open == []


def test_the_page_answers_first_and_claims_no_more_than_the_interval() -> None:
    record = copy.deepcopy(RECORD)

    def first(kind: str, label: str) -> bool:
        page = sweep_page(record, "")
        return f'<header class="answer {kind}">' in page and f'<p class="label">{label}</p>' in page

    assert first("yes", "Use monosoup")
    for unknown_or_exceeded in (None, True):
        record["recipes"][1]["exceeds_max_loss"] = unknown_or_exceeded
        assert first("open", "monosoup gains")
    record["recipes"][1]["gain_interval"] = [-0.01, 0.1]
    assert first("open", "No difference is shown")
    record["recipes"][1]["gain_interval"] = [-0.1, -0.01]
    assert first("no", "Keep to the alpha curve")
    record["recipes"] = []
    assert first("open", "Alpha 0.25 has the highest mean OOD accuracy of the curve")


@pytest.mark.parametrize("other", [{"gain_interval": [-0.01, 0.2]}, {"exceeds_max_loss": True}])
def test_a_larger_gain_that_is_not_sure_hides_none_that_is(other: dict[str, Any]) -> None:
    record = copy.deepcopy(RECORD)
    sure = record["recipes"][1]
    record["recipes"].insert(0, {**sure, "name": "larger", "gain": sure["gain"] + 0.01, **other})
    assert sweep_headline(record).startswith("Use monosoup")


@pytest.mark.parametrize("checked", [True, False])
def test_only_a_check_lets_the_page_say_that_no_recipe_has_seen_an_ood_image(checked: bool) -> None:
    other = row(
        0.7, 0.52, 0.01, name="ours", alpha=None, checkpoint={"source": "mine", "revision": None}
    )
    text = sweep_page({**RECORD, "ood_checked": checked, "points": [other]}, "")
    assert ("No recipe has seen an OOD image" in text) == checked
    assert ("Of the other checkpoints, nobody knows." in text) == checked


shares = st.integers(0, 8).map(lambda eighth: eighth / 8)


@given(
    st.lists(st.tuples(shares, shares), min_size=2, max_size=4),
    st.lists(st.tuples(shares, shares, st.none() | shares), max_size=4),
    st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_no_headline_contradicts_the_table(
    curve: list[tuple[float, float]], beside: list[tuple[float, float, float | None]], seed: int
) -> None:
    """Images recognised at random, so that recipes lie on, off and beyond the curve."""
    rng = np.random.default_rng(seed)
    accuracies = [*curve, *[(x, y) for x, y, _ in beside]]
    id_right, ood_right = (
        np.array([rng.random(12) < pair[axis] for pair in accuracies]) for axis in (0, 1)
    )
    places = compare_with_curve([id_right], [ood_right], range(len(curve)), seed=seed, resamples=30)
    rows = [{"accuracy": {}, "exceeds_max_loss": False, **place} for place in places]
    recipes = [{**row, "name": f"r{n}", "alpha": None} for n, row in enumerate(rows[len(curve) :])]
    record = {
        "curve": [{**row, "alpha": n} for n, row in enumerate(rows[: len(curve)])],
        "recipes": recipes,
    }
    said = sweep_headline(record)
    assert all(row["gain"] is None and row["gain_note"] for row in record["curve"])
    for each in recipes:
        assert each["gain_interval"] is not None or each["gain_note"]
        named = re.search(rf"\b{each['name']}\b", said) is not None
        if each["gain_interval"] is None:
            assert not (named and "points [" in said)
            assert any(note.startswith(f"{each['name']}: ") for note in gain_notes(record))
        elif named:
            low, high = each["gain_interval"]
            assert (
                f"{signed_points(each['gain'])} points [{signed_points(low)}, {signed_points(high)}]"
                in said
            )
            begins = [said.startswith(words) for words in ("Use ", "Keep to the alpha", "No diff")]
            assert begins == [low > 0, high < 0, low <= 0 <= high]
    assert ("points [" in said) == any(each["gain_interval"] for each in recipes)
    check_page_and_table(record, said)


def check_page_and_table(points: dict[str, Any], said: str) -> None:
    """Check that the page, the CSV and the terminal repeat the headline and the numbers of the
    points."""
    record = {**copy.deepcopy(RECORD), **points}
    for each in (*record["curve"], *record["recipes"]):
        each["accuracy"] = {"val": each["id"], "sketch": each["ood"], "noise": each["ood"]}
        each |= (
            {}
            if "decision" in each
            else {"decision": {"kind": "settings", "text": ""}, "calibration": None}
        )
    text, shown = sweep_page(record, ""), terminal(record, 120)
    assert said.replace(": ", " ", 1) in words_of(
        text
    )  # on the page the answer has a line of its own
    assert said in " ".join(shown.split())
    lines = list(csv.DictReader(io.StringIO(sweep_csv(record))))
    rows = [cells for cells in Page(text).rows if cells and cells[0].startswith(("alpha ", "r"))]
    for cells, each, line in zip(rows, [*record["curve"], *record["recipes"]], lines, strict=True):
        assert cells[1] == f"{100 * each['id']:.1f}"
        assert cells[2].startswith(f"{100 * each['ood']:.1f} [")
        gain = (
            ""
            if "name" not in each
            else "\N{EN DASH}"
            if each["gain"] is None
            else signed_points(each["gain"])
        )
        assert cells[3].partition(" ")[0] == gain
        assert ("[" in cells[3]) == (each["gain_interval"] is not None)
        assert (line["gain"] == "") == (each["gain"] is None)
        assert (line["gain_low"] == "") == (each["gain_interval"] is None)


def test_checkpoints_that_were_placed_stand_beside_the_recipes() -> None:
    placed = row(
        0.7, 0.52, 0.01, name="=ours", alpha=None, checkpoint={"source": "mine", "revision": None}
    )
    record = {**RECORD, "points": [placed]}
    assert rows_of(record)[-1][:2] == ("=ours", True)
    assert [head for head, is_recipe, _ in rows_of(RECORD) if is_recipe] == [
        "lines",
        "monosoup",
        "beyond",
    ]
    assert "<dt>=ours</dt><dd><code>mine</code>" in sweep_page(record, "")
    lines = list(csv.DictReader(io.StringIO(sweep_csv(record))))
    assert [line["kind"] for line in lines] == ["curve"] * 4 + ["recipe"] * 3 + ["checkpoint"]
    assert lines[-1]["name"] == "'=ours"  # a spreadsheet would compute it
    assert float(lines[-1]["gain_low"]) == pytest.approx(0.0)
    assert lines[0]["gain"] == ""
    assert float(lines[1]["sketch"]) == pytest.approx(0.46)


def terminal(record: dict[str, Any], width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(SweepTable(record))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def table_of(text: str) -> list[str]:
    """The table's lines, between the headline and the notes."""
    lines = text.splitlines()
    first = lines.index("") + 1
    return lines[first : lines.index("", first)]


@pytest.mark.parametrize(
    ("count", "width", "sources", "spread"),
    [(2, 120, True, True), (9, 100, False, True), (9, 60, False, False)],
)
def test_the_terminal_gets_what_fits(count: int, width: int, sources: bool, spread: bool) -> None:
    text = terminal(with_sources(count), width)
    assert all(len(line) <= width for line in text.splitlines())
    head = table_of(text)[0]
    assert ("source 1" in head) == sources
    assert "val" in head
    assert ("[+6.8, +9.8]" in " ".join(table_of(text))) == spread
    assert "+7.8" in text
    assert "lines: the same weights as alpha 0.5, a point of the curve." in " ".join(text.split())
    assert "…" not in text


def test_several_id_sources_have_a_mean() -> None:
    record = {**RECORD, "id": ["val", "sketch"], "ood": ["noise"]}
    assert [column.title for column in sweep_columns(record)][:3] == ["val", "sketch", "mean ID"]
