"""Page, terminal and picture of a merge and of a sweep, from made-up records."""

import io
import re
import struct
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from clipmerge.api.merge import MergeResult
from clipmerge.api.sweep import SweepResult
from clipmerge.planning.recipe import load_recipe
from clipmerge.planning.record import Findings
from clipmerge.report.figures import merge_figure, png, sweep_figure
from clipmerge.report.pages import html_page
from clipmerge.report.sweep import sweep_page, sweep_sentence, sweep_table
from clipmerge.report.terminal import summary, sweep_summary
from clipmerge.report.wording import WITHOUT_IMAGES
from tests.support.merge_records import estimate, record


def told(renderable: Any, width: int = 100) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(renderable)
    return file.getvalue()


class Tags(HTMLParser):
    """Checks that a page is closed properly, and lists addresses that it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [str(value) for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_is_whole_loads_nothing_and_escapes_names() -> None:
    tags = Tags(page := html_page(record()))
    assert tags.open == []
    assert [address[:22] for address in tags.loaded] == ["data:image/png;base64,"]
    assert "sketch &lt;&amp;&gt;" in page
    assert "straggler: z 4.1 | &lt;b&gt;" in page
    assert page == html_page(record())


def test_each_fact_is_said_once() -> None:
    page, lines = html_page(record()), told(summary(record()))
    for text in (page, lines):
        assert text.count("Use it") == 1
        assert text.count("+11.0 [+7.0, +15.0]") == 1  # as fine as its interval
        assert text.count("+2 [-6, +10]") == 1
    assert page.count("an odd tensor was left out") == 1
    assert len(lines.splitlines()) <= 8


def test_an_unjudged_merge_says_so_and_a_plain_one_has_no_picture() -> None:
    unjudged = record(verdict=None)
    assert f"what this merge keeps and loses. {WITHOUT_IMAGES}" in html_page(unjudged)
    learned = unjudged.replace(plan=unjudged.plan.replace(recipe=load_recipe("auto")))
    assert "what this merge keeps and loses.</p>" in html_page(learned)
    assert len(Tags(html_page(unjudged)).loaded) == 1
    layers = {"vision.0.mlp": next(iter(unjudged.plan.layers.values()))}
    plain = unjudged.replace(plan=unjudged.plan.replace(layers=layers, stragglers=()))
    assert Tags(html_page(plain)).loaded == []


def test_a_notebook_shows_the_answer_the_accuracies_and_the_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)  # there it displays tables itself
    made = record()
    result = MergeResult(None, made.plan, made)
    lines = str(result.verdict).splitlines()
    assert lines[0] == made.verdict.sentence if made.verdict else False
    assert [line.split()[-3:] for line in lines[2:3]] == [["+2", "[-6,", "+10]"]]
    merged, swept = result._repr_html_(), SweepResult(None, sweep(), {})._repr_html_()
    for html, answer in ((merged, "<b>Use it:</b>"), (swept, "<b>Use auto &lt;x&gt;:</b>")):
        assert Tags(html).open == []
        assert 0 < html.find(answer) < html.find("<table>") < html.find("data:image/png;base64,")
    assert "vision.0" not in merged
    assert result.verdict is not None
    assert "Use it" in result.verdict._repr_html_()
    unjudged = MergeResult(None, made.plan, record(verdict=None))
    assert unjudged.verdict is None
    assert "The layers go" in unjudged._repr_html_()
    assert "vision.0" in MergeResult(None, made.plan, None)._repr_html_()


def test_statistics_that_were_not_measured_have_no_column() -> None:
    assert '<th scope="col">barrier</th>' not in html_page(record(measured=Findings()))
    assert '<th scope="col">barrier</th>' in html_page(record())


def size_of(picture: bytes) -> tuple[int, int]:
    return struct.unpack(">II", picture[16:24])  # type: ignore[return-value]


def test_pictures_are_narrow_and_equal_in_every_run() -> None:
    figure = merge_figure(record())
    first = png(figure)
    assert size_of(first)[0] == 864
    again = merge_figure(record())
    assert png(again) == first
    assert size_of(png(sweep_figure(sweep())))[0] == 864


def test_the_picture_shows_the_merge_beside_plain_interpolation() -> None:
    learned = Findings(trace={"cross_entropy": (0.5, 0.3, 0.2)})
    tradeoff, learning, layers = merge_figure(record(measured=learned)).axes
    names = [text.get_text() for text in tradeoff.get_legend().get_texts()]
    marked = ["zero-shot", "alpha 1", "best plain alpha"]
    assert names == ["plain interpolation", *marked, "this merge"]
    merged = tradeoff.containers[0].lines[0]
    assert [*merged.get_xdata(), *merged.get_ydata()] == pytest.approx([76, 85])
    assert list(learning.lines[0].get_ydata()) == [0.5, 0.3, 0.2]
    assert layers.get_yticklabels()[0].get_text() == "vision.embeddings"


def sweep(**changes: Any) -> dict[str, Any]:
    def row(id: float, ood: float, gain: float | None = None, **about: Any) -> dict[str, Any]:
        mean = estimate(ood, 0.02).model_dump()
        gains = (
            {}
            if gain is None
            else dict.fromkeys(("shift", "task"), estimate(gain, 0.03).model_dump())
        )
        return {
            "accuracy": {"val": id, "sketch": ood, "cars": ood},
            "mean": {"target": estimate(id, 0.02).model_dump(), "shift": mean, "task": mean},
            "gain": gains,
            "exceeds_max_loss": False,
            **about,
        }

    return {
        "target": ["val"],
        "shift": ["sketch"],
        "task": ["cars"],
        "curve": [row(0.5, 0.6, alpha=0.0), row(0.8, 0.7, alpha=0.5), row(0.9, 0.5, alpha=1.0)],
        "recipes": [
            row(0.89, 0.62, 0.1, name="auto <x>"),
            row(0.91, 0.6, 0.05, name="$high$"),
        ],
        "points": [],
        "zeroshot": {"source": "base"},
        "finetuned": [{"source": "cars"}],
        "sources": {"val": "val/", "sketch": "sketch/", "cars": "cars/"},
        "images": {"val": 400, "sketch": 1000, "cars": 500},
        "bootstrap": {"resamples": 1000, "level": 0.95},
        "command": "clipmerge sweep base cars",
        "clipmerge": "0.1.0",
        "warnings": ["look at <this>"],
    } | changes


def test_a_sweep_has_a_page_a_table_and_an_answer() -> None:
    page = sweep_page(sweep(), png(sweep_figure(sweep())))
    assert Tags(page).open == []
    gain = "+10.0 [+7.0, +13.0]"
    answer = f"Use auto &lt;x&gt;: it has a gain of {gain} under shift, {gain} on other tasks."
    assert answer in page
    assert page.count('class="marked"') == 1
    heads, rows = sweep_table(sweep())
    assert heads == ["accuracy, %", "val", "sketch", "cars", "gain, shift", "gain, task"]
    assert rows[2] == ["alpha 1 (fine-tuned)", "90.0", "50.0", "50.0", "", ""]
    assert rows[3] == ["auto <x>", "89.0", *["62.0"] * 2, *["+10.0 [+7.0, +13.0]"] * 2]
    assert len(told(sweep_summary(sweep()), width=120).splitlines()) == 7


def test_shifts_and_tasks_are_never_in_one_mean() -> None:
    made = sweep(task=["cars", "birds"])
    for row in (*made["curve"], *made["recipes"]):
        row["accuracy"]["birds"] = 0.2
        row["mean"] = row["mean"] | {"task": estimate(0.4, 0.02).model_dump()}
    heads, rows = sweep_table(made)
    assert heads[1:6] == ["val", "sketch", "cars", "birds", "mean task"]
    assert rows[0][1:6] == ["50.0", "60.0", "60.0", "20.0", "40.0"]


@pytest.mark.parametrize(
    ("gain", "lost", "answer"),
    [
        (0.1, True, "auto <x> has a gain of .* but loses more on the target"),
        (0.01, False, "No difference is shown"),
        (-0.1, False, "Keep to the alpha curve"),
    ],
)
def test_the_answer_follows_the_interval(gain: float, lost: bool, answer: str) -> None:
    made = sweep()
    made["recipes"] = made["recipes"][:1]
    row = made["recipes"][0]
    row["exceeds_max_loss"] = lost
    row["gain"] = {"shift": estimate(gain, 0.03).model_dump()}
    assert re.search(answer, sweep_sentence(made))


def test_a_sweep_without_recipes_names_the_best_alpha_within_the_limit() -> None:
    made = sweep(recipes=[])
    made["curve"][1]["exceeds_max_loss"] = True
    told = "The best alpha within `max_loss` is 0: 50.0% on the target, 60.0% under shift"
    assert sweep_sentence(made).startswith(told)
