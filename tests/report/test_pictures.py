"""Every picture: of the effect, of the loss path, and of a sweep."""

from typing import Any

import pytest

from clipmerge.files.paths import recipe_files
from clipmerge.planning.measurements import LossPath
from clipmerge.report.figures import (
    RECIPES,
    curve_files,
    figure_bytes,
    mark_styles,
    path_figure,
    path_picture,
    sweep_figure,
)
from tests.support.sweep_records import LONG, with_recipes, with_sources
from tests.support.sweep_records import SWEEP as RECORD
from tests.support.sweep_records import sweep_recipe as recipe
from tests.support.sweep_records import sweep_row as row


def test_loss_chart_keeps_order_and_scale():
    path = LossPath(alphas=(1.0, 0.0, 0.5), losses=(1.0, 3.0, 1.0))
    figure = path_figure(path)
    assert figure is not None
    straight, curve, gap = figure.axes[0].get_lines()
    assert curve.get_xydata().tolist() == [[0, 3], [0.5, 1], [1, 1]]
    assert straight.get_xydata().tolist() == [[0, 3], [1, 1]]
    assert gap.get_xydata().tolist() == [[0.5, 2], [0.5, 1]]
    assert path.barrier == (-1.0, 2.0)


def test_without_the_middle_no_barrier_is_drawn():
    path = LossPath(alphas=(0.0, 0.3, 1.0), losses=(3.0, 1.0, 1.0))
    figure = path_figure(path)
    assert figure is not None
    assert len(figure.axes[0].get_lines()) == 2
    assert path_picture(LossPath(alphas=(0.0,), losses=(3.0,))) is None
    picture = path_picture(path)
    assert picture is not None
    assert "alpha 0.3: 1.000 nats" in picture.image
    assert "barrier" not in picture.caption


def marks_in(record: dict[str, Any]) -> dict[str, Any]:
    """The marks of the recipes by name, as drawn."""
    lines = [
        line
        for line in sweep_figure(record).axes[0].get_lines()
        if line.get_marker() not in ("o", "None", None)
    ]
    return {each["name"]: line for each, line in zip(record["recipes"], lines, strict=True)}


def test_every_recipe_has_a_style_of_its_own_in_all_pictures() -> None:
    assert set(RECIPES) == set(recipe_files())
    styles = mark_styles(RECIPES)
    assert len(set(styles)) == len(RECIPES)
    for name, style in zip(RECIPES, styles, strict=True):
        assert mark_styles(["mine", f"{name} (3 of 5)", "other"])[1] == style
    names = ["mine", "auto", *(f"other-{n}" for n in range(15))]
    assert len(set(mark_styles(names))) == len(names)


def test_the_marks_and_their_intervals_lie_where_the_numbers_say() -> None:
    for each, mark in zip(RECORD["recipes"], marks_in(RECORD).values(), strict=True):
        assert mark.get_xydata().tolist() == [[100 * each["id"], 100 * each["ood"]]]
    lines = [
        line.get_xydata().round(6).tolist() for line in sweep_figure(RECORD).axes[0].get_lines()
    ]
    assert [[79.0, 60.0], [81.0, 60.0]] in lines
    assert [[80.0, 58.0], [80.0, 62.0]] in lines
    assert [[40.0, 54.0], [60.0, 56.0], [90.0, 50.0], [98.5, 34.2]] in lines


ODD: dict[str, dict[str, Any]] = {
    "crowded": {
        "curve": [row(0.9 + n / 10_000, 0.5 - n / 10_000, alpha=n / 30) for n in range(31)],
        "recipes": [recipe(f"recipe-{n}", 0.9 + n / 5_000, 0.5, 0.0) for n in range(8)],
    },
    "no recipes": {"recipes": []},
    "many sources": with_sources(9),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_records_are_drawn(case: str) -> None:
    assert len(figure_bytes(sweep_figure({**RECORD, **ODD[case]}), "png")) > 10_000


@pytest.mark.parametrize(
    "names",
    [["W" * 90] * 3, [f"{LONG}-{n}" for n in range(70)], ["混" * 90]],
    ids=["broad", "many", "wide"],
)
def test_nothing_in_the_picture_is_cut_off_or_hidden_by_the_legend(names: list[str]) -> None:
    figure = sweep_figure(with_recipes(*names))
    figure_bytes(figure, "png")
    (axes,), (legend,) = figure.axes, figure.legends
    width, height = figure.bbox.size
    for artist in (axes.xaxis.label, axes.yaxis.label, legend):
        left, bottom, right, top = artist.get_window_extent().extents
        assert left >= 0, artist
        assert bottom >= 0, artist
        assert right <= width, artist
        assert top <= height, artist
    assert legend.get_window_extent().y1 < axes.get_window_extent().y0
    assert axes.get_window_extent().height > 0.6 * 5.6 * 160  # the picture grows by the legend
    assert [text.get_text()[:1] for text in legend.get_texts()[3:]] == [name[:1] for name in names]


@pytest.mark.uncounted
@pytest.mark.parametrize("name", ["混合レシピ 🚀", "_$x^{$ </script> \\frac"])
def test_names_in_any_script_are_drawn_without_a_warning(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(curve_files(with_recipes(name))["curve.png"]) > 10_000  # a warning is an error here
    assert caplog.text == ""
