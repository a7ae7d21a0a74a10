"""The report: read back by a parser and by eye-level rules, never compared with a stored page."""

from __future__ import annotations

import copy
import io
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
import yaml
from rich.console import Console

from clipmerge.output.record import MergeRecord
from clipmerge.planning.measurements import LossPath
from clipmerge.report import page as pages
from clipmerge.report import terminal
from clipmerge.report.numbers import Scale
from clipmerge.report.path_chart import path_chart

VOID = {"meta"}
SHARE = {"signed": True, "additive": True, "unit": "nats"}
STATISTICS = {
    "barrier": {**SHARE, "title": "barrier share", "symbol": "B_l", "about": "the layer's part of the barrier."},
    "loss_drop": {**SHARE, "title": "loss-drop share", "symbol": "G_l", "about": "the layer's part of the drop."},
}


def html_page(record: dict[str, Any]) -> str:
    return pages.html_page(MergeRecord.model_validate(record))


def layer_names(vision: int, text: int) -> list[str]:
    names = ["vision.embeddings", "vision.pre_norm"]
    names += [f"vision.{block}.{half}" for block in range(vision) for half in ("attn", "mlp")]
    names += ["vision.norm", "vision.projection", "text.embeddings"]
    names += [f"text.{block}.{half}" for block in range(text) for half in ("attn", "mlp")]
    return [*names, "text.norm", "text.projection", "logit_scale"]


def example(vision: int = 24, text: int = 12, stragglers: tuple[str, ...] = ("vision.3.mlp",)) -> dict[str, Any]:
    """A record as a straggler-sparse merge of a ViT-L writes it, with smooth made-up statistics."""
    layers, measured, scores = {}, {}, {}
    names = layer_names(vision, text)
    for index, name in enumerate(names):
        flagged = name in stragglers
        block = 20 * math.sin(index * 1.7) ** 2 + (index % 7)
        layers[name] = {
            "alpha": 0.2 if flagged else 0.5,
            "density": 0.5 if flagged else 1.0,
            "mask": "saliency" if flagged else None,
            "reason": "straggler (z 4.1, flagged in 97% of resamples): 0.4 x alpha, the salient half kept"
            if flagged
            else "base alpha",
            "parameters": 12,
            "size": 1 if name == "logit_scale" else 4_198_400,
            "change": 0.004 + 0.0009 * block * (3 if flagged else 1),
        }
        barrier = 0.094 if flagged else -0.003 * block * (0.2 if name.startswith("text") else 1.0)
        measured[name] = {"barrier": barrier, "loss_drop": -0.002 * block - 0.01 * (index % 3)}
        scores[name] = {
            "z": 4.1 if flagged else math.cos(index) * 1.3,
            "stability": 0.97 if flagged else 0.02,
        }
    alphas = [0.0, 0.0563, 0.25, 0.4437, 0.5, 0.5563, 0.75, 0.9437, 1.0]
    return {
        "format": "clipmerge-record/2",
        "clipmerge": "0.1.0",
        "output": "merged",
        "files": {"model.safetensors": "ab" * 32, "config.json": "cd" * 32},
        "recipe": {
            "name": "straggler-sparse",
            "measure": {"name": "path-barrier", "nodes": 3},
            "method": {"name": "straggler-sparse", "alpha": 0.5, "shrink": 0.4, "density": 0.5},
            "overrides": [{"layers": "logit_scale", "alpha": 0.5, "density": None}],
            "missing": "error",
        },
        "zeroshot": {
            "source": "openai/clip-vit-large-patch14",
            "revision": "32bd64288804d66eefd0ccbe215aa642df71cc41",
            "files": {"model.safetensors": "01" * 32},
        },
        "finetuned": [
            {"source": "runs/vit-l-imagenet", "revision": None, "files": {"model.safetensors": "23" * 32}},
        ],
        "layers": layers,
        "stragglers": list(stragglers),
        "straggler_scores": scores,
        "verdict": f"{len(stragglers)} straggler layers found: {', '.join(stragglers)}. "
        "They move less far and keep the salient half of their change.",
        "measurements": measured,
        "statistics": STATISTICS,
        "straggler_statistic": "barrier",
        "path": {"alphas": alphas, "losses": [3.41, 2.9, 1.31, 0.61, 0.46, 0.37, 0.25, 0.223, 0.2202]},
        "checks": {
            "barrier": {"sum_of_layers": -1.38171, "measured": -1.38143},
            "loss_drop": {"sum_of_layers": -3.18966, "measured": -3.18992},
        },
        "calibration": {"source": "val/", "images": 1024, "classes": 10, "batch_size": 128, "seed": 0}
        | {"templates": ["a photo of a {}."]},
        "warnings": ["1,024 images were asked for, 1,000 are there: all were used."],
        "seconds": {"read": 0.1, "measure": 12.0, "apply": 3.0},
    }


def data_free() -> dict[str, Any]:
    """A record as `wise-ft` writes it: one alpha everywhere and not one statistic."""
    record = example(12, 12, ())
    for layer in record["layers"].values():
        layer["reason"] = "the recipe's alpha"
    record["recipe"] = {"name": "wise-ft", "measure": None, "method": {"name": "wise-ft", "alpha": 0.5}}
    record |= {"statistics": {}, "straggler_statistic": None}
    record |= {"measurements": {}, "path": None, "checks": {}, "calibration": None, "straggler_scores": {}}
    return record | {"warnings": [], "verdict": "Every layer moves half way from zero-shot to fine-tuned."}


class Page(HTMLParser):
    """Reads a page back: its tags with their attributes, its text, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


RECORDS = {
    "vit-l": example(),
    "no stragglers": example(12, 12, ()),
    "many stragglers": example(stragglers=tuple(layer_names(24, 12)[4:44:2])),
    "data-free": data_free(),
}


@pytest.fixture(params=RECORDS.values(), ids=RECORDS.keys())
def record(request: pytest.FixtureRequest) -> dict[str, Any]:
    return copy.deepcopy(request.param)


def printed(record: dict[str, Any], width: int = 80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False).print(
        terminal.summary_table(MergeRecord.model_validate(record))
    )
    return stream.getvalue()


def varied(record: dict[str, Any]) -> dict[str, Any]:
    """Give every layer its own alpha, as depth-dependent methods do."""
    for index, layer in enumerate(record["layers"].values()):
        layer["alpha"] = 0.3 + index / 200
        layer["reason"] = f"depth {index}"
    return record


def test_page_is_well_formed_and_has_unique_ids(record):
    page = Page(html_page(record))
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for reference in (attributes.get("aria-labelledby") or "").split():
            assert reference in ids


def test_page_asks_the_network_for_nothing(record):
    html = html_page(record)
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not {"src", "srcset", "xlink:href", "action"} & attributes.keys()
        assert (attributes.get("href") or "#").startswith("#")
    style = re.search(r"<style>(.*?)</style>", html, re.S)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_page_has_one_row_a_layer_in_network_order(record):
    html = html_page(record)
    rows = re.findall(r'<th scope="row" class="layer">([^<]+)', html)
    assert rows == list(record["layers"])


def test_page_describes_every_drawing_and_heads_every_column(record):
    page = Page(html_page(record))
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert drawings
    assert all(attributes["role"] == "img" and attributes["aria-labelledby"] for attributes in drawings)
    assert page.count("desc") == len(drawings)
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")


def test_page_of_a_vit_l_stays_small():
    assert len(html_page(RECORDS["many stragglers"]).encode()) < 300_000


@pytest.mark.parametrize("path", ["verdict", "warnings", "source", "revision", "reason", "name", "file", "statistic"])
def test_page_escapes_what_the_user_named(path):
    evil = "<script>alert('x')</script>&\"onload="
    record = example(2, 2, ("vision.1.mlp",))
    layer = record["layers"]["vision.1.mlp"]
    places: dict[str, tuple[dict[str, Any], str, Any]] = {
        "verdict": (record, "verdict", evil),
        "warnings": (record, "warnings", [evil]),
        "source": (record["finetuned"][0], "source", evil),
        "revision": (record["zeroshot"], "revision", evil),
        "reason": (layer, "reason", evil),
        "name": (record["recipe"], "name", evil),
        "file": (record["files"], evil, "ab"),
        "statistic": (record["measurements"]["vision.1.mlp"], evil, 0.5),
    }
    target, key, value = places[path]
    target[key] = value
    html = html_page(record)
    page = Page(html)
    assert "<script" not in html
    assert page.open == []
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "<script>alert(" in page.text


def test_page_depends_on_neither_output_nor_seconds_nor_the_run(record):
    first = html_page(record)
    assert html_page(copy.deepcopy(record)) == first
    assert html_page(record | {"output": "elsewhere-4711", "seconds": {"read": 987.654}}) == first


def test_page_shows_the_verdict_first_and_the_settings_with_their_reasons():
    record = example()
    text = Page(html_page(record)).text
    assert text.index(record["verdict"]) < text.index("What was merged")
    for wanted in (
        "openai/clip-vit-large-patch14",
        "32bd64288804d66eefd0ccbe215aa642df71cc41",
        "straggler (z 4.1, flagged in 97% of resamples)",
        "1,024 images in 10 classes",
        "0.0203%",
        "ab" * 32,
        record["warnings"][0],
    ):
        assert wanted in text


def test_page_marks_exactly_the_stragglers(record):
    html = html_page(record)
    assert re.findall(r'<tr class="straggler" id="([^"]+)"', html) == [
        layer for layer in record["layers"] if layer in record["stragglers"]
    ]


def test_page_says_whether_there_is_a_barrier():
    record = example(2, 2, ())
    assert "1.355 below the endpoints' average of 1.815: there is no barrier" in Page(html_page(record)).text
    record["path"] = {"alphas": [0, 0.5, 1], "losses": [0.5, 2.0, 0.5]}
    assert "1.500 above the endpoints' average of 0.500: there is a barrier" in Page(html_page(record)).text


def test_page_of_a_data_free_recipe_says_that_nothing_was_measured():
    text = Page(html_page(data_free())).text
    assert text.count("Nothing was measured: this recipe is data-free") == 3
    assert "no images were used" in text
    assert "No straggler" not in text


def test_page_without_stragglers_says_so():
    assert "No straggler layers were found" in Page(html_page(example(2, 2, ()))).text


def test_page_needs_only_what_every_merge_has():
    full = example(1, 1, ())
    bare = {key: full[key] for key in ("recipe", "zeroshot", "finetuned")}
    bare["layers"] = {name: {"alpha": 0.5} for name in full["layers"]}
    assert Page(html_page(bare)).open == []
    assert "8 layers" not in printed(bare)
    assert f"all {len(bare['layers'])} layers" in printed(bare)


def test_page_survives_layers_without_numbers():
    record = example(2, 2, ("vision.1.mlp",))
    del record["measurements"]["vision.0.attn"]
    record["measurements"]["text.0.mlp"] = {"barrier": 0.1}
    record["straggler_scores"] = {"vision.1.mlp": {"z": 9.0}}
    assert Page(html_page(record)).open == []
    printed(record)


def test_page_names_several_finetuned_models():
    record = example(1, 1, ())
    record["finetuned"].append({"source": "runs/second", "files": {"a.safetensors": "ef" * 32}})
    record["weights"] = [0.5, 0.5]
    text = Page(html_page(record)).text
    assert "fine-tuned 2" in text
    assert "clipmerge merge openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41 " in text
    printed(record)


def test_page_speaks_of_stragglers_only_where_somebody_looked():
    record = example(2, 2, ())
    record["recipe"]["method"] = {"name": "learned", "alpha": 1}
    record |= {"straggler_statistic": None, "straggler_scores": {}}
    text = Page(html_page(record)).text
    assert "This recipe does not look for straggler layers" in text
    for claim in ("No straggler", "straggler layers none", "Straggler layer", "stands out"):
        assert claim not in text
    record["straggler_statistic"] = "sharpness"
    text = Page(html_page(record)).text
    assert "No straggler layers were found" in text
    assert "singled out by its sharpness" in text
    assert "outlier rule" not in text
    assert "outlier rule" in Page(html_page(example(2, 2, ()))).text


def test_page_shows_a_recipe_that_loads_again():
    html = html_page(example())
    block = re.search(r'<pre class="yaml"[^>]*>(.*?)</pre>', html, re.S)
    assert block is not None
    loaded = yaml.safe_load(block[1].replace("&#39;", "'"))
    expected = copy.deepcopy(example()["recipe"])
    del expected["overrides"][0]["density"]
    assert loaded == expected


def test_page_flags_shares_that_do_not_add_up():
    record = example(1, 1, ())
    record["checks"] = {"barrier": {"sum_of_layers": 1.0, "measured": 1.02}}
    assert "Not every sum agrees within 1%: raise measure.nodes" in Page(html_page(record)).text
    record["checks"]["barrier"]["measured"] = 1.009
    assert "They do, within 1%." in Page(html_page(record)).text


@pytest.mark.parametrize("name", RECORDS)
def test_table_fits_a_terminal(name):
    lines = printed(RECORDS[name]).splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in "".join(lines)


def test_table_fits_when_every_layer_differs():
    record = varied(data_free())
    lines = printed(record).splitlines()
    assert len(lines) <= 25
    assert any("0.300-0.435" in line for line in lines)


def test_table_spells_stragglers_out_and_collapses_the_rest():
    text = printed(example(stragglers=("vision.3.mlp",)))
    assert re.search(r"^vision\.3\.mlp +0\.20 +0\.50 +saliency +\+0\.0940", text, re.M)
    assert "straggler (z 4.1, flagged in 97% of resamples)" in text
    assert "70 layers: base alpha" in text
    assert "3.410 at 0, 0.460 at 0.5, 0.220 at 1" in text


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


def test_loss_chart_keeps_order_and_scale():
    chart = path_chart(LossPath(alphas=(1.0, 0.0, 0.5), losses=(1.0, 3.0, 1.0)))
    assert chart is not None
    left, middle, right = chart.points
    assert (left.alpha, middle.alpha, right.alpha) == (0.0, 0.5, 1.0)
    assert left.y < middle.y == right.y
    assert middle.x - left.x == pytest.approx(right.x - middle.x)
    assert chart.barrier == -1.0
    assert chart.middle is not None
    assert chart.middle[2] == pytest.approx((left.y + right.y) / 2)


@pytest.mark.parametrize("path", [None, LossPath(alphas=(0.5,), losses=(1.0,)), LossPath(alphas=(), losses=())])
def test_no_loss_chart_without_two_points(path):
    assert path_chart(path) is None


@pytest.mark.parametrize(
    ("value", "expected"), [(-1.0, (0.0, 25.0)), (3.0, (25.0, 75.0)), (0.0, (25.0, 0.0)), (None, (25.0, 0.0))]
)
def test_bars_start_at_zero(value, expected):
    assert Scale.of([-1.0, 3.0]).bar(value) == expected
