"""The picture of a sweep."""

from __future__ import annotations

import copy
import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from clipmerge.report.palette import MARKS
from clipmerge.report.sweep_picture import _draw, _families, _is_plain, curve_files
from clipmerge.report.sweep_picture import curve_png as titled_png
from tests.support.sweep_records import LONG, with_recipes, with_sources
from tests.support.sweep_records import SWEEP as RECORD
from tests.support.sweep_records import sweep_recipe as recipe
from tests.support.sweep_records import sweep_row as row


def curve_png(record: dict[str, Any]) -> bytes:
    """The PNG alone, which is that of `curve_files`."""
    return titled_png(record, "")


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


@pytest.mark.parametrize(
    "case",
    [pytest.param("crowded", marks=pytest.mark.slow), "one place", "no recipes", "hostile names", "many sources"],
)
def test_odd_records_are_drawn(case: str) -> None:
    record = copy.deepcopy(RECORD)
    if case == "crowded":
        record["curve"] = [row(0.9 + n / 10_000, 0.5 - n / 10_000, alpha=n / 30) for n in range(31)]
        record["recipes"] = [recipe(f"recipe-{n}", 0.9 + n / 5_000, 0.5, 0.0) for n in range(8)]
    elif case == "one place":
        record["curve"] = [row(0.5, 0.5, alpha=alpha) for alpha in (0.0, 1.0)]
        record["recipes"] = [recipe("x", 0.5, 0.5, 0.0)]
    elif case == "no recipes":
        record["recipes"] = []
    elif case == "hostile names":
        record["recipes"][1]["name"] = "_$x^{$ </script> \\frac"
    else:
        record = with_sources(9)
    assert len(curve_files(record)["curve.png"]) > 10_000


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


@pytest.mark.parametrize(("length", "columns"), [(3, 4), (18, 3), (30, 2), (40, 1)])
def test_the_legend_has_as_many_columns_as_fit(length: int, columns: int) -> None:
    (legend,) = _draw(with_recipes(*(letter * length for letter in "nmu"))).legends
    assert legend._ncols == columns


def test_the_names_of_sources_are_not_cut_off() -> None:
    record = copy.deepcopy(with_sources(5))
    record["id"], record["ood"] = ["x" * 150], [f"a long name of a source, number {n}" for n in range(5)]
    axes = _draw(record).axes[0]
    assert axes.get_xlabel() == f"ID accuracy, % ({'x' * 20}…{'x' * 19})"
    assert axes.get_ylabel() == "mean OOD accuracy, % (5 sources)"


@pytest.mark.uncounted
@pytest.mark.parametrize("name", ["混合レシピ", "🚀 rocket", "two\nlines"])
def test_names_in_any_script_are_drawn_without_a_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert len(curve_files(with_recipes(name))["curve.png"]) > 10_000  # a warning is an error here
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


def test_no_mark_hides_another() -> None:
    """Three recipes almost in one place, one on the curve, and one alone."""
    crowd = [recipe("low", 0.8, 0.6, 0.0), recipe("mid", 0.801, 0.601, 0.0), recipe("top", 0.802, 0.6, 0.0)]
    recipes = [*crowd, recipe("on", 0.9, 0.5, None), recipe("alone", 0.5, 0.4, None)]
    figure = _draw({**RECORD, "recipes": recipes})
    sizes = [line.get_markersize() for line in figure.axes[0].get_lines() if line.get_label() in map(str, range(5))]
    assert sizes[0] > sizes[1] > sizes[2] == sizes[4]
    assert sizes[3] > sizes[4]
    shown = pixels_of(curve_png({**RECORD, "recipes": recipes}))
    alone = pixels_of(curve_png({**RECORD, "recipes": recipes[:1]}))
    assert near(shown, MARKS[0]) > near(alone, MARKS[0]) / 2  # below two others


def test_the_picture_has_intervals_in_both_directions() -> None:
    axes = _draw(RECORD).axes[0]
    ends = {tuple(line.get_xdata()) for line in axes.get_lines() if len(line.get_xdata()) == 2}
    assert (pytest.approx(79.0), pytest.approx(81.0)) in [tuple(map(float, each)) for each in ends]
    heights = [tuple(map(float, line.get_ydata())) for line in axes.get_lines() if len(line.get_ydata()) == 2]
    assert (pytest.approx(58.0), pytest.approx(62.0)) in heights


def test_svg_and_pdf_are_the_same_again_and_whole() -> None:
    first, again = curve_files(RECORD), curve_files(copy.deepcopy(RECORD))
    assert first["curve.png"] == curve_png(RECORD)
    assert first == again
    assert ElementTree.fromstring(first["curve.svg"]).tag.endswith("svg")
    assert first["curve.pdf"].startswith(b"%PDF")
    assert first["curve.pdf"].rstrip().endswith(b"%%EOF")


def test_a_damaged_font_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    usual = _families("見出し")
    broken = font_manager.FontEntry(fname=str(tmp_path / "broken.ttf"), name="AAA Broken", weight=400)
    assert _is_plain(broken)  # or it would be passed over for another reason
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [broken, *font_manager.fontManager.ttflist])
    assert _families("見出し") == usual
