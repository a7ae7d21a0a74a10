from __future__ import annotations

import copy
import csv
import html.parser
import io
import re
import struct
import warnings
import zlib
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.cells import cell_len
from rich.console import Console

from clipmerge.cli.sweep import SweepTable
from clipmerge.evaluation.tradeoff import standings
from clipmerge.report.palette import MARKS
from clipmerge.report.sweep_headline import gain_notes, headline, signed
from clipmerge.report.sweep_page import sweep_page
from clipmerge.report.sweep_picture import _draw, _families, curve_files, curve_markup
from clipmerge.report.sweep_table import heads_of, shortened, sweep_columns, sweep_csv

NAMES = ("sketch", "noise")


def row(id_accuracy: float, ood: float, gain: float | None = 0.0, **more: Any) -> dict[str, Any]:
    accuracy = {"val": id_accuracy, "sketch": ood - 0.1, "noise": ood + 0.1}
    ends = None if gain is None else [gain - 0.01, gain + 0.02]
    interval = [ood - 0.02, ood + 0.02]
    return {
        "accuracy": accuracy,
        "id": id_accuracy,
        "id_interval": [id_accuracy - 0.01, min(1.0, id_accuracy + 0.01)],
        "ood": ood,
        "ood_interval": interval,
        "gain": gain,
        "gain_interval": ends,
        "gain_note": "" if ends else "no point of the curve has this ID accuracy",
        **more,
    }


def recipe(name: str, *numbers: Any, alpha: float | None = None) -> dict[str, Any]:
    said = {"verdict": f"what {name} did", "calibration": None, "recipe": {"name": name}}
    return row(*numbers, name=name, alpha=alpha, **said)


RECORD: dict[str, Any] = {
    "clipmerge": "0.1.0",
    "output": "out",
    "command": "clipmerge sweep zeroshot finetuned --id val=val",
    "zeroshot": {"source": "zeroshot", "revision": None, "files": {}},
    "finetuned": [{"source": "acme/cars", "revision": "c" * 40, "files": {}}],
    "id": ["val"],
    "ood": list(NAMES),
    "sources": {"val": "val", "sketch": "sketch", "noise": "hf://noise"},
    "images": {"val": 1234, "sketch": 5, "noise": 6},
    "calibration_source": None,
    "templates": ["a photo of a {}."],
    "seed": 0,
    "bootstrap": {"resamples": 1000, "level": 0.95},
    "warnings": [],
    "curve": [
        row(0.40, 0.54, None, alpha=0.0),
        row(0.60, 0.56, None, alpha=0.25),
        row(0.90, 0.50, None, alpha=0.5),
        row(0.985, 0.342, None, alpha=1.0),
    ],
    "recipes": [
        recipe("lines", 0.9, 0.5, None, alpha=0.5),
        recipe("monosoup", 0.8, 0.6, 0.078),
        recipe("beyond", 0.99, 0.4, None),
    ],
}
COLUMNS = ["val", "sketch", "noise", "mean OOD", "gain at equal ID accuracy"]


def curve_png(record: dict[str, Any]) -> bytes:
    return curve_files(record)["curve.png"]


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def near(pixels: np.ndarray, colour: str) -> int:
    """How many pixels have a colour."""
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return int((np.abs(pixels - wanted).max(axis=2) <= 3).sum())


def test_the_picture_is_a_whole_png() -> None:
    png = curve_png(RECORD)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    place, kinds = 8, []
    while place < len(png):  # every chunk's checksum, by the format's own rule
        (length,) = struct.unpack(">I", png[place : place + 4])
        body = png[place + 4 : place + 8 + length]
        assert struct.unpack(">I", png[place + 8 + length : place + 12 + length])[0] == zlib.crc32(body)
        kinds.append(body[:4])
        place += 12 + length
    assert kinds[0] == b"IHDR"
    assert kinds[-1] == b"IEND"


def test_the_picture_is_the_same_again() -> None:
    assert curve_png(RECORD) == curve_png(copy.deepcopy(RECORD))


def test_each_recipe_has_a_mark_of_its_own_colour() -> None:
    whole = pixels_of(curve_png(RECORD))
    without = pixels_of(curve_png({**RECORD, "recipes": []}))
    for colour in MARKS[:3]:
        assert near(whole, colour) > 100
        assert near(without, colour) == 0
    assert near(without, "#1f6fb2") > 500


def test_recipes_that_came_out_alike_share_a_mark() -> None:
    twins = [recipe(name, 0.8, 0.6, 0.078) for name in ("one", "two", "three")]
    pixels = pixels_of(curve_png({**RECORD, "recipes": twins}))
    assert near(pixels, MARKS[0]) > 100
    assert near(pixels, MARKS[1]) == 0


def test_the_marks_lie_where_the_numbers_say() -> None:
    """Two recipes: the one of higher ID accuracy lies to the right, the one of lower OOD accuracy below."""
    recipes = [recipe("robust", 0.5, 0.6, 0.0), recipe("sharp", 0.8, 0.45, 0.0)]
    pixels = pixels_of(curve_png({**RECORD, "recipes": recipes}))
    robust, sharp = (blobs(pixels, colour) for colour in MARKS[:2])
    # the legend below has both marks too
    assert len(robust) == len(sharp) == 2
    (robust_x, robust_y), (sharp_x, sharp_y) = (min(spots, key=lambda spot: spot[1]) for spots in (robust, sharp))
    assert robust_x < sharp_x
    assert robust_y < sharp_y  # pixels count downwards


def blobs(pixels: np.ndarray, colour: str, half: int = 3) -> list[tuple[int, int]]:
    """Centres of the solid spots of a colour, in steps of 8 pixels: marks, not letters or thin lines."""
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    hit = np.abs(pixels - wanted).max(axis=2) <= 3
    solid = np.lib.stride_tricks.sliding_window_view(hit, (2 * half + 1, 2 * half + 1)).all(axis=(2, 3))
    left = list(zip(*np.nonzero(solid), strict=True))
    centres = []
    while left:
        y, x = left[0]
        spot = [each for each in left if abs(each[0] - y) < 30 and abs(each[1] - x) < 30]
        left = [each for each in left if each not in spot]
        middle = np.mean(spot, axis=0)
        centres.append((round(middle[1] / 8), round(middle[0] / 8)))
    return centres


@pytest.mark.parametrize("case", ["crowded", "one place", "no recipes", "hostile names", "many sources"])
def test_odd_records_are_drawn(case: str) -> None:
    record = copy.deepcopy(RECORD)
    if case == "crowded":
        record["curve"] = [row(0.9 + n / 10_000, 0.5 - n / 10_000, alpha=n / 50) for n in range(51)]
        record["recipes"] = [recipe(f"recipe-{n}", 0.9 + n / 5_000, 0.5, 0.0) for n in range(12)]
    elif case == "one place":
        record["curve"] = [row(0.5, 0.5, alpha=alpha) for alpha in (0.0, 1.0)]
        record["recipes"] = [recipe("x", 0.5, 0.5, 0.0)]
    elif case == "no recipes":
        record["recipes"] = []
    elif case == "hostile names":
        record["recipes"][1]["name"] = "_$x^{$ </script> \\frac"
    else:
        record = with_sources(9)
    assert len(curve_png(record)) > 10_000


LONG = "straggler-sparse-density-0.2-of-the-image-tower-only-with-text-left-as-it-is-alpha-0.35"


def with_recipes(*names: str) -> dict[str, Any]:
    places = [(0.9, 0.5), (0.8, 0.6), (0.99, 0.4), (0.6, 0.5), (0.7, 0.45), (0.42, 0.35), (0.97, 0.5)]
    return {**RECORD, "recipes": [recipe(name, *places[n % 7], 0.0) for n, name in enumerate(names)]}


@pytest.mark.parametrize(
    "names",
    [("a", "b"), [f"{LONG}-{n}" for n in range(7)], ["W" * 90] * 3, [f"{LONG}-{n}" for n in range(70)], ["混" * 90]],
    ids=["short", "long", "broad", "shared", "wide"],
)
def test_nothing_in_the_picture_is_cut_off_or_hidden_by_the_legend(names: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that no font has
        figure = _draw(with_recipes(*names))
        figure.draw_without_rendering()
    (axes,), (legend,) = figure.axes, figure.legends
    width, height = figure.bbox.size
    for artist in (*axes.texts, axes.xaxis.label, axes.yaxis.label, legend):
        left, bottom, right, top = artist.get_window_extent().extents
        assert left >= 0, artist
        assert bottom >= 0, artist
        assert right <= width, artist
        assert top <= height, artist
    assert legend.get_window_extent().y1 < axes.get_window_extent().y0
    assert axes.get_window_extent().height > 0.6 * 5.6 * 160  # the picture grows by the legend


def test_the_names_of_sources_are_not_cut_off() -> None:
    record = copy.deepcopy(with_sources(5))
    record["id"], record["ood"] = ["x" * 150], [f"a long name of a source, number {n}" for n in range(5)]
    axes = _draw(record).axes[0]
    assert axes.get_xlabel() == f"ID accuracy, % ({'x' * 20}…{'x' * 19})"
    assert axes.get_ylabel() == "mean OOD accuracy, % (5 sources)"


@pytest.mark.parametrize("name", ["混合レシピ", "🚀 rocket", "two\nlines"])
def test_names_in_any_script_are_drawn_without_a_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert len(curve_png(with_recipes(name))) > 10_000  # a warning is an error here
    assert caplog.text == ""


def test_a_font_that_has_the_characters_is_found() -> None:
    letter = "\ue000"  # matplotlib itself brings a font that has it, and it is not the usual one
    usual = matplotlib.rcParams["font.family"]
    assert _families("plain – and é") == usual  # noqa: RUF001
    found = _families(letter)
    assert found[: len(usual)] == usual
    assert "STIXNonUnicode" in found
    assert not [family for family in found if "Last Resort" in family]


def test_recipes_that_differ_by_rounding_alone_share_a_mark() -> None:
    twins = [recipe("one", 0.4, 0.6, 0.0), recipe("two", (0.7 + 0.1) / 2, 0.6, 0.0)]
    assert twins[0]["id"] != twins[1]["id"]
    texts = [text.get_text() for text in _draw({**RECORD, "recipes": twins}).axes[0].texts]
    assert "one\ntwo" in texts


def test_a_mark_that_many_share_names_a_few() -> None:
    shared = [recipe(f"r{n}", 0.8, 0.6, 0.0) for n in range(9)]
    texts = [text.get_text() for text in _draw({**RECORD, "recipes": shared}).axes[0].texts]
    assert "r0\nr1\nr2\nand 6 more" in texts


@given(st.text(st.sampled_from("ab \n混🚀"), max_size=40), st.integers(1, 50))
def test_a_shortened_name_fits_and_keeps_both_ends(name: str, cells: int) -> None:
    line, found = " ".join(name.split()), shortened(name, cells)
    assert cell_len(found) <= cells
    if cell_len(line) <= cells:
        assert found == line
    else:
        head, tail = (part.strip() for part in found.split("…"))
        assert line.startswith(head)
        assert line.endswith(tail)


class Page(html.parser.HTMLParser):
    """Reads tags, the table's cells and anything that would ask the network."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.fetched: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.fetched += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_the_page_is_whole_and_asks_for_nothing() -> None:
    text = sweep_page(RECORD, curve_markup(RECORD))
    page = Page(text)
    assert page.open == []
    assert page.fetched
    assert all(each.startswith("#") for each in page.fetched)
    assert not re.search(r"https?://|url\((?!#)|@import|<script", text)
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert text.count("<svg") == 2  # for a wide window and for a narrow one
    assert page.rows[0] == ["accuracy, %", *COLUMNS]
    assert len(page.rows) == 1 + 4 + 3
    assert page.rows[1] == ["alpha 0 (zero-shot)", "40.0", "44.0", "64.0", "54.0 [52.0, 56.0]", ""]
    assert page.rows[-1] == ["beyond", "99.0", "30.0", "50.0", "40.0 [38.0, 42.0]", "–"]  # noqa: RUF001
    assert "monosoup gains: +7.8 points [+6.8, +9.8] of mean OOD accuracy" in text
    assert "beyond: no point of the curve has this ID accuracy." in text
    assert "lines: the same weights as alpha 0.5, a point of the curve." in text
    assert "1,234 images" in text


def test_names_cannot_break_the_page() -> None:
    record = copy.deepcopy(RECORD)
    record["recipes"][0]["name"] = "<script>alert(1)</script>"
    record["warnings"] = ["<b>&"]
    text = sweep_page(record, "")
    assert "<script" not in text
    assert "&lt;b&gt;&amp;" in text
    assert Page(text).open == []


def test_the_headline_does_not_claim_what_the_interval_leaves_open() -> None:
    record = copy.deepcopy(RECORD)
    assert "no difference is shown" not in sweep_page(record, "")
    record["recipes"][1]["gain_interval"] = [-0.01, 0.1]
    assert "no difference is shown" in sweep_page(record, "")
    record["recipes"] = []
    assert "highest at alpha 0.25" in sweep_page(record, "")


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
    id_right, ood_right = (np.array([rng.random(12) < pair[axis] for pair in accuracies]) for axis in (0, 1))
    places = standings([id_right], [ood_right], range(len(curve)), seed=seed, resamples=30)
    rows = [{"accuracy": {}, **vars(place)} for place in places]
    for each in rows:
        each |= {"id": each.pop("id_accuracy"), "ood": each.pop("ood_accuracy")}
    recipes = [{**row, "name": f"r{n}", "alpha": None} for n, row in enumerate(rows[len(curve) :])]
    record = {"curve": [{**row, "alpha": n} for n, row in enumerate(rows[: len(curve)])], "recipes": recipes}
    said = headline(record)
    assert all(row["gain"] is None and row["gain_note"] for row in record["curve"])
    for row in recipes:
        assert (row["gain_interval"] is None) == bool(row["gain_note"])
        named = said.startswith((f"{row['name']}:", f"{row['name']} ", f"{row['name']},"))
        if row["gain_interval"] is None:
            assert not (named and "points [" in said)
            assert any(note.startswith(f"{row['name']}: ") for note in gain_notes(record))
        elif named:
            low, high = row["gain_interval"]
            assert f"{signed(row['gain'])} points [{signed(low)}, {signed(high)}]" in said
            assert (" gains: " in said, " loses: " in said, "no difference" in said) == (
                low > 0,
                high < 0,
                low <= 0 <= high,
            )
    assert ("points [" in said) == any(row["gain_interval"] for row in recipes)


def test_checkpoints_that_were_placed_stand_beside_the_recipes() -> None:
    placed = row(0.7, 0.52, 0.01, name="=ours", alpha=None, checkpoint={"source": "mine", "revision": None})
    record = {**copy.deepcopy(RECORD), "points": [placed]}
    assert heads_of(record)[-1] == ("=ours", True)
    assert "<dt>=ours</dt><dd><code>mine</code>" in sweep_page(record, curve_markup(record))
    lines = list(csv.DictReader(io.StringIO(sweep_csv(record))))
    assert [line["kind"] for line in lines] == ["curve"] * 4 + ["recipe"] * 3 + ["checkpoint"]
    assert lines[-1]["name"] == "'=ours"  # a spreadsheet would compute it
    assert float(lines[-1]["gain_low"]) == pytest.approx(0.0)
    assert lines[0]["gain"] == ""
    assert float(lines[1]["sketch"]) == pytest.approx(0.46)


def test_the_picture_has_intervals_in_both_directions() -> None:
    axes = _draw(RECORD).axes[0]
    ends = {tuple(line.get_xdata()) for line in axes.get_lines() if len(line.get_xdata()) == 2}
    assert (pytest.approx(79.0), pytest.approx(81.0)) in [tuple(map(float, each)) for each in ends]
    heights = [tuple(map(float, line.get_ydata())) for line in axes.get_lines() if len(line.get_ydata()) == 2]
    assert (pytest.approx(58.0), pytest.approx(62.0)) in heights


def test_svg_and_pdf_are_the_same_again_and_whole() -> None:
    first, again = curve_files(RECORD), curve_files(copy.deepcopy(RECORD))
    assert first == again
    assert ElementTree.fromstring(first["curve.svg"]).tag.endswith("svg")
    assert first["curve.pdf"].startswith(b"%PDF")
    assert first["curve.pdf"].rstrip().endswith(b"%%EOF")


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


def with_sources(count: int) -> dict[str, Any]:
    record = copy.deepcopy(RECORD)
    record["ood"] = [f"source {n}" for n in range(count)]
    for each in [*record["curve"], *record["recipes"]]:
        each["accuracy"] |= dict.fromkeys(record["ood"], 0.5)
    return record


@pytest.mark.parametrize(
    ("count", "width", "sources", "spread"),
    [(2, 120, True, True), (2, 66, True, False), (9, 60, False, True), (9, 50, False, False)],
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


@pytest.mark.parametrize("name", [LONG[:56], LONG, "混" * 60])
@pytest.mark.parametrize("width", [120, 80, 50, 30])
def test_a_long_name_gives_way_and_numbers_never(name: str, width: int) -> None:
    record = with_recipes("other", name)
    table = table_of(terminal(record, width))
    assert all(cell_len(line) <= width for line in table)
    short = table_of(terminal(with_recipes("other", "a name of thirty cells, say it"), max(width, 60)))[0]
    if width >= 60:
        assert table[0].split() == short.split()  # no column is left out for a longer name
    for line, row in zip(table[1:], [*record["curve"], *record["recipes"]], strict=True):
        assert f"{100 * row['id']:.1f}  " in line
        assert f"{100 * row['ood']:.1f}" in line
    assert ("…" in table[-1]) == (cell_len(name) > 56 or width < 120)
    assert "…" not in "".join(line[30 if width > 60 else 12 :] for line in table[1:5])


def test_names_get_the_room_that_numbers_leave() -> None:
    lines = table_of(terminal(with_recipes(LONG[:60]), 160))
    assert any(line.startswith(LONG[:60]) for line in lines)
    assert cell_len(table_of(terminal(with_recipes(LONG), 100))[5]) == 100


def test_a_long_name_of_a_source_gives_way_too() -> None:
    record = copy.deepcopy(RECORD)
    record["id"] = ["x" * 90]
    for each in [*record["curve"], *record["recipes"]]:
        each["accuracy"]["x" * 90] = each["id"]
    lines = table_of(terminal(record, 60))
    assert "xxxxxx…xxxxx" in lines[0]
    assert "40.0" in lines[1]
    assert "alpha 0 (zero-shot)" in lines[1]


def test_rows_and_columns_agree() -> None:
    heads, columns = heads_of(RECORD), sweep_columns(RECORD)
    assert [column.title for column in columns] == COLUMNS
    assert all(len(column.cells) == len(column.spread) == len(heads) == 7 for column in columns)
    assert [head for head, is_recipe in heads if is_recipe] == ["lines", "monosoup", "beyond"]


def test_several_id_sources_have_a_mean() -> None:
    record = copy.deepcopy(RECORD)
    record["id"] = ["val", "more"]
    for each in [*record["curve"], *record["recipes"]]:
        each["accuracy"]["more"] = 0.2
    assert [column.title for column in sweep_columns(record)][:3] == ["val", "more", "mean ID"]
