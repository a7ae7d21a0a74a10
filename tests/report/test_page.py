"""The report: read back by a parser and by eye-level rules, never compared with a stored page."""

import copy
import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest

from clipmerge.finding import Finding
from clipmerge.output.record import MergeRecord
from clipmerge.report.page import repeat_command
from tests.support.merge_records import RECORDS, data_free, example, learned
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


def layers_of(html: str) -> list[dict[str, str]]:
    """The rows of the table of layers, each by heading."""
    rows = iter(Page(html).rows)
    head = next(row for row in rows if row[0] == "layer")
    body = itertools.takewhile(lambda row: len(row) == len(head), rows)
    return [dict(zip(head, row, strict=True)) for row in body]


@pytest.mark.parametrize("name", RECORDS)
def test_a_page_is_whole_and_asks_for_nothing(html_of: Pages, name: str) -> None:
    record = RECORDS[name]
    html = html_of(record)
    page = Page(html)
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert set((attributes.get("aria-labelledby") or "").split()) <= set(ids)
        assert not {"srcset", "xlink:href", "action"} & attributes.keys()
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
    style = re.search(r"<style>(.*?)</style>", html, re.S)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    drawings = [attributes for tag, attributes in page.tags if tag == "img"]
    assert bool(drawings) == bool(record["measurements"] or record.get("effect"))
    assert all(attributes["alt"] for attributes in drawings)
    assert page.count("figcaption") <= len(drawings) == page.count("figure")
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    # neither the output nor the seconds nor the run matter
    assert (
        html_of(copy.deepcopy(record) | {"output": "elsewhere-4711", "seconds": {"read": 987.654}})
        == html
    )


@pytest.mark.parametrize("name", RECORDS)
def test_every_layer_has_a_row_with_its_numbers(html_of: Pages, name: str) -> None:
    record = RECORDS[name]
    html = html_of(record)
    rows = layers_of(html)
    assert [row["layer"].removesuffix("straggler") for row in rows] == list(record["layers"])
    for row, layer in zip(rows, record["layers"].values(), strict=True):
        assert float(row["alpha"]) == pytest.approx(layer["alpha"], abs=5e-4)
        assert row["mask"] == (layer["mask"] or "none")
    marked = re.findall(r'<tr class="straggler" id="([^"]+)"', html)
    assert marked == [layer for layer in record["layers"] if layer in record["stragglers"]]


def test_the_page_says_what_a_straggler_is_by_the_rule_that_found_it(html_of: Pages) -> None:
    by_outliers = example()
    sparse = learned(stragglers=("vision.3.mlp",))
    scores = {name: {"share": 0.1} for name in sparse["layers"]}
    by_rule = {}
    for rule in ("share", "outlier"):
        by_rule[rule] = copy.deepcopy(sparse) | {"straggler_scores": scores}
        by_rule[rule]["recipe"]["measure"] = {"name": "learned-sparse", "rule": rule, "share": 0.15}
    outlier = "a layer whose statistic stands out from the other layers by a robust outlier rule"
    for record, meaning in (
        (by_outliers, outlier),
        (by_rule["outlier"], outlier),
        (by_rule["share"], "the fewest that together hold 15% of the blocks' sharpness"),
        (sparse, "a layer that the method singled out by its sharpness; its reason says why"),
    ):
        assert meaning in Page(html_of(record)).text


def test_there_is_no_section_for_what_was_not_measured(html_of: Pages) -> None:
    html = html_of(data_free())
    assert "<img" not in html
    assert set(layers_of(html)[0]) == {"layer", "alpha", "mask", "reason"}
    text = Page(html).text
    assert text.count("Nothing was measured on images") == 1
    for absent in ("straggler", "Loss along the path", "Do the numbers add up", "calibration"):
        assert absent not in text


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
    ("middle", "caption"),
    [
        (0.625, "0.325 below the average of the ends (0.950): there is no barrier"),
        (1.2, "0.250 above the average of the ends (0.950): there is a barrier"),
    ],
)
def test_page_says_if_there_is_a_barrier(html_of: Pages, middle: float, caption: str) -> None:
    path = {"alphas": [0, 0.5, 1], "losses": [1.4, middle, 0.5]}
    assert caption in Page(html_of(learned() | {"path": path})).text


def test_the_header_names_models_images_and_day(html_of: Pages) -> None:
    record = learned() | {"date": "2026-11-30"}
    record["zeroshot"]["source"], record["finetuned"][0]["source"] = "acme/base", "acme/cars"
    count, source = record["effect"]["images"], record["effect"]["source"]
    said = f"acme/base merged with acme/cars, judged on {count} images of {source}, 2026-11-30"
    assert said in Page(html_of(record)).text


def test_accuracies_and_scores_on_other_tasks_are_in_tables(html_of: Pages) -> None:
    rows = Page(html_of(learned() | {"other_tasks": OTHER_TASKS})).rows
    assert ["merged", "94.6 [90.6, 97.6]"] in [row[:2] for row in rows]
    assert ["flowers", "accuracy", "66.0", "41.0", "60.0", "-25.0", "+19.0"] in rows
    assert ["", "image to text R@5", "70.0", "40.0", "65.0", "-30.0", "+25.0"] in rows


def test_the_command_is_pinned_and_does_not_push() -> None:
    record = example(1, 1, ())
    record["zeroshot"] |= {"source": "acme/base", "revision": "c" * 40}
    record["command"] = "clipmerge merge acme/base ft --push me/it --private --push=me/it --seed=1"
    command = repeat_command(MergeRecord.model_validate(record))
    assert command == f"clipmerge merge acme/base@{'c' * 40} ft --seed=1"


def test_page_flags_shares_that_do_not_add_up(html_of: Pages) -> None:
    record = example(1, 1, ())
    record["checks"] = {"barrier": {"sum_of_layers": 1.0, "measured": 1.02}}
    agree = "They do, within the measure's tolerance."
    assert agree in Page(html_of(record)).text
    wrong = Finding.of("incomplete-shares", error=0.02, nodes=256)
    record["warnings"] = [*record["warnings"], wrong.model_dump(mode="json")]
    text = Page(html_of(record)).text
    assert (
        "what the loss itself says, measured on the whole model. the layers' shares are off" in text
    )
    assert agree not in text
