"""The report: read back by a parser and by eye-level rules, never compared with a stored page."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest

from clipmerge.output.record import MergeRecord
from clipmerge.report.effect_plot import effect_plot
from tests.support.merge_records import CHANGE, RECORDS, data_free, example, learned
from tests.support.read_page import Page


def accuracy(value: float) -> dict[str, Any]:
    return {"accuracy": {"value": value, "interval": [value - 0.02, value + 0.02]}}


def recall(value: float) -> dict[str, Any]:
    by_rank = {"1": value, "5": value + 0.2, "10": value + 0.3}
    return {"recall": {"image_to_text": by_rank, "text_to_image": by_rank}}


OTHER_TASKS: list[dict[str, Any]] = [
    {"name": "flowers", "kind": "accuracy", "source": "f", "images": 1000, "classes": 102}
    | {"zeroshot": accuracy(0.66), "finetuned": [accuracy(0.41)], "merged": accuracy(0.6)},
    {"name": "coco", "kind": "retrieval", "source": "c", "images": 1000, "captions": 5000}
    | {"zeroshot": recall(0.5), "finetuned": [recall(0.2)], "merged": recall(0.45)},
]
Pages = Callable[[dict[str, Any]], str]


def rows_of(html: str, record: dict[str, Any]) -> list[list[str]]:
    """The layers of each row of the table of layers, by its heading."""
    layers = list(record["layers"])
    heads = re.findall(r'<th scope="row" class="layer[^"]*">([^<]+)', html)
    ends = [head.split(" … ") for head in heads]
    return [layers[layers.index(end[0]) : layers.index(end[-1]) + 1] for end in ends]


@pytest.mark.parametrize("name", RECORDS)
def test_a_page_is_whole_and_asks_for_nothing(html_of: Pages, name: str) -> None:
    record = RECORDS[name]
    html = html_of(record)
    page = Page(html)
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert set((attributes.get("aria-labelledby") or "").split()) <= set(ids)
        assert not {"src", "srcset", "xlink:href", "action"} & attributes.keys()
        assert (attributes.get("href") or "#").startswith("#")
    style = re.search(r"<style>(.*?)</style>", html, re.S)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    drawings = [
        attributes
        for tag, attributes in page.tags
        if tag == "svg" and "aria-hidden" not in attributes
    ]
    assert bool(drawings) == bool(record["measurements"])
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in drawings)
    assert page.count("figcaption") <= len(drawings) == page.count("figure")
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert len(html.encode()) < 300_000
    # neither the output nor the seconds nor the run matter
    assert (
        html_of(copy.deepcopy(record) | {"output": "elsewhere-4711", "seconds": {"read": 987.654}})
        == html
    )


@pytest.mark.parametrize("name", RECORDS)
def test_the_rows_hold_every_layer_once_in_network_order(html_of: Pages, name: str) -> None:
    record = RECORDS[name]
    html = html_of(record)
    rows = rows_of(html, record)
    assert [layer for row in rows for layer in row] == list(record["layers"])
    for row in rows:  # only what is equal shares a row
        assert (
            len({repr(record["layers"][layer] | {"parameters": 0, "size": 0}) for layer in row})
            == 1
        )
        assert len(row) == 1 or not set(row) & set(record["stragglers"])
    title, *body = [
        cells for cells in Page(html).rows if cells[0].startswith(("layer", *record["layers"]))
    ]
    for row, cells in zip(rows, body, strict=True):
        told, alpha = dict(zip(title, cells, strict=True)), record["layers"][row[0]]["alpha"]
        assert float(told.get("alphacoefficient", alpha)) == pytest.approx(alpha, abs=5e-4)
    marked = re.findall(r'<tr class="straggler" id="([^"]+)"', html)
    assert marked == [layer for layer in record["layers"] if layer in record["stragglers"]]


def test_what_is_equal_everywhere_is_reported_once(html_of: Pages) -> None:
    record = data_free()
    html = html_of(record)
    assert [len(row) for row in rows_of(html, record)] == [28, 27, 1]
    assert "Equal in every layer" not in html  # without a mask, a density says nothing
    assert "Reason for every layer: one alpha for all layers" in html
    assert "<svg" not in html
    text = Page(html).text
    assert text.count("Nothing was measured on images") == 1
    for absent in ("straggler", "Loss along the path", "Do the numbers add up", "calibration"):
        assert absent not in text
    record |= {"statistics": {"change": CHANGE}}  # one alpha, and changes of many sizes
    for layer, full in zip(
        record["layers"].values(), example(12, 12, ())["layers"].values(), strict=True
    ):
        layer["change"] = full["change"]
    html = html_of(record)
    assert "Equal in every layer: alpha 0.50." in html
    assert ">relative change<" in html
    assert "coefficient</span>" not in html


@pytest.mark.parametrize("path", ["warnings", "source", "reason", "name", "file", "statistic"])
def test_page_escapes_what_the_user_named(html_of: Pages, path: str) -> None:
    evil = "<script>alert('x')</script>&\"onload="
    record = example(2, 2, ("vision.1.mlp",))
    layer = record["layers"]["vision.1.mlp"]
    places: dict[str, tuple[dict[str, Any], str, Any]] = {
        "warnings": (record, "warnings", [evil]),
        "source": (record["finetuned"][0], "source", evil),
        "reason": (layer, "reason", evil),
        "name": (record["recipe"], "name", evil),
        "file": (record["files"], evil, "ab"),
        "statistic": (record["measurements"]["vision.1.mlp"], evil, 0.5),
    }
    target, key, value = places[path]
    target[key] = value
    html = html_of(record)
    page = Page(html)
    assert "<script" not in html
    assert page.open == []
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "<script>alert(" in page.text


@pytest.mark.parametrize(
    ("middle", "fact", "picture", "caption"),
    [
        (
            0.625,
            "barrier at alpha 0.5 none",
            "0.325 below that line",
            "0.325 below the average of the ends (0.950)",
        ),
        (
            1.2,
            "barrier at alpha 0.5 0.250 nats",
            "barrier: 0.25",
            "0.250 above the average of the ends (0.950)",
        ),
    ],
)
def test_page_says_if_there_is_a_barrier(
    html_of: Pages, middle: float, fact: str, picture: str, caption: str
) -> None:
    text = Page(
        html_of(learned() | {"path": {"alphas": [0, 0.5, 1], "losses": [1.4, middle, 0.5]}})
    ).text
    assert fact in text
    assert picture in text
    assert f"{caption}: there is {'no' if middle < 1 else 'a'} barrier" in text


def test_the_finetuned_model_is_not_called_learned(html_of: Pages) -> None:
    choice = {
        "images": 9,
        "alpha": 1.0,
        "extrapolation": 1.0,
        "accuracy": 0.9,
        "finetuned_accuracy": 0.9,
    }
    assert "weights with a learned coefficient" in html_of(learned())
    page = html_of(learned() | {"choice": choice})
    assert "weights with a learned coefficient" not in page
    assert "mean of a layer's learned coefficients" not in page


def test_shares_are_of_the_weights_that_fine_tuning_changed(html_of: Pages) -> None:
    sparse, masked = learned(), data_free()
    for record, changed in (
        (sparse, {"zeroshot_share": 0.25}),
        (masked, {"density": 0.5, "mask": "magnitude"}),
    ):
        for name, layer in record["layers"].items():
            unchanged = {"alpha": 0.0, "alpha_range": None, "zeroshot_share": None}
            layer |= changed if name.startswith("vision") else unchanged
    assert "of these at zero-shot 25%" in Page(html_of(sparse)).text
    assert "of the change kept by masks 50%" in Page(html_of(masked)).text


def test_the_plot_puts_marks_and_intervals_where_the_numbers_say(html_of: Pages) -> None:
    record = MergeRecord.model_validate(learned() | {"other_tasks": OTHER_TASKS})
    plot = effect_plot(record)
    assert plot is not None
    assert [group["title"] for group in plot["groups"]] == [
        "Your images",
        "Your images under unrelated corruptions",
        "Your images under related corruptions",
        "Other task: flowers",
        "Other task: coco, image to text R@1",
        "Other task: coco, text to image R@1",
    ]
    (low, first), *_, (high, last) = plot["ticks"]
    per_point = (high - low) / (float(last[:-1]) - float(first[:-1]))
    for group in plot["groups"]:
        for dot in group["dots"]:
            value, *ends = map(float, re.findall(r"[\d.]+", dot["text"]))
            assert dot["at"] == pytest.approx(
                low + per_point * (value - float(first[:-1])), abs=0.1
            )
            start, stop = ends or (value, value)
            assert dot["start"] == pytest.approx(
                low + per_point * (start - float(first[:-1])), abs=0.1
            )
            assert dot["length"] == pytest.approx(per_point * (stop - start), abs=0.2)
            assert 0 <= dot["start"] <= dot["at"] <= dot["start"] + dot["length"] + 0.02 <= 100.04
    merged = plot["groups"][0]["dots"][-1]
    assert merged["text"] == "94.6 [90.6, 97.6]"
    html = html_of(record.model_dump(mode="json"))
    assert 'fill="var(--mark-0)"' in html  # auto's colour in every picture
    assert "Further scores on other tasks" in html
    assert html.count("<td>image to text R@5</td>") == 1
    assert "<td>image to text R@1</td>" not in html  # it is drawn


def test_page_flags_shares_that_do_not_add_up(html_of: Pages) -> None:
    record = example(1, 1, ())
    record["checks"] = {"barrier": {"sum_of_layers": 1.0, "measured": 1.02}}
    assert "Not every sum agrees within 1%: raise measure.nodes" in Page(html_of(record)).text
    record["checks"]["barrier"]["measured"] = 1.009
    assert "They do, within 1%." in Page(html_of(record)).text
