"""Whatever the settings are, no table, fact or sentence of a page, a terminal or a card contradicts the record."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from clipmerge.output.record import MergeRecord
from clipmerge.planning.layer_plan import LayerPlan
from clipmerge.planning.verdict import verdict_on
from clipmerge.publish.card import model_card
from clipmerge.report.columns import columns_of
from clipmerge.report.page import html_page
from tests.support.merge_records import bought, example, printed

_TAG = re.compile(r"<style>.*?</style>|<[^>]+>", re.DOTALL)
shares = st.sampled_from([0.0, 0.1, 0.25, 0.3333, 0.5, 1.0, 1.5])
#: Settings of one layer, as a method, an override or an edit by hand may leave them.
plain = st.fixed_dictionaries({"alpha": shares, "reason": st.sampled_from(["base alpha", "override 'text.*'"])})
masked = st.fixed_dictionaries(
    {
        "alpha": shares,
        "density": st.sampled_from([0.2, 0.5]),
        "mask": st.sampled_from(["magnitude", "weights-random"]),
        "reason": st.just("edited by hand"),
    }
)
learned = st.fixed_dictionaries(
    {
        "alpha": st.sampled_from([0.2, 0.31]),
        "alpha_range": st.just([0.0, 0.9]),
        "zeroshot_share": st.sampled_from([0.0, 0.004, 0.5]),
        "reason": st.just("learned"),
    }
)
layers = st.lists(plain | masked | learned, min_size=8, max_size=8)


def record_of(given_layers: list[dict[str, Any]], stragglers: list[int], looked: bool, judged: bool) -> MergeRecord:
    record = example(1, 1, ())
    names = list(record["layers"])
    for name, entry in zip(names, given_layers * 2, strict=False):
        record["layers"][name] = {"size": 100, "parameters": 2, "change": 0.1, **entry}
    found = [names[place % len(names)] for place in stragglers] if looked else []
    plans = {
        name: LayerPlan(
            **{key: entry[key] for key in ("alpha", "alpha_range", "density", "mask", "reason") if key in entry}
        )
        for name, entry in record["layers"].items()
    }
    record |= {"stragglers": found, "straggler_statistic": "barrier" if looked else None, "straggler_scores": {}}
    record |= {"measurements": {}, "path": None, "checks": {}}  # without pictures, which take a second each
    record["recipe"] |= {"name": "mine", "measure": None, "method": {"name": "wise-ft", "alpha": 0.5}}
    record |= {"verdict": verdict_on(plans, names, (1.0,), None), "bought": bought() if judged else None}
    return MergeRecord.model_validate(record)


def text_of(html: str) -> str:
    return " ".join(unescape(_TAG.sub(" ", html)).replace("\N{MINUS SIGN}", "-").split())


def rows_of(page: str, record: MergeRecord) -> list[tuple[list[str], str]]:
    """The layers and the text of each row of the table of layers."""
    names = list(record.layers)
    found = []
    for row in re.findall(r"<tr[^>]*>\s*<th scope=\"row\" class=\"layer[^\"]*\">.*?</tr>", page, re.DOTALL):
        head = re.search(r"class=\"layer[^\"]*\">([^<]+)", row)
        assert head is not None
        ends = head[1].split(" … ")
        found.append((names[names.index(ends[0]) : names.index(ends[-1]) + 1], text_of(row)))
    return found


@settings(max_examples=25, deadline=None)
@given(layers, st.lists(st.integers(0, 20), max_size=3), st.booleans(), st.booleans())
def test_no_page_card_or_terminal_contradicts_the_record(
    given_layers: list[dict[str, Any]], stragglers: list[int], looked: bool, judged: bool
) -> None:
    record = record_of(given_layers, stragglers, looked, judged)
    page, card, terminal = (
        html_page(record),
        model_card(record, repo_id=None),
        printed(record.model_dump(mode="json"), width=80),
    )
    alpha = columns_of(record)[0]
    said = text_of(page)
    check_rows(page, record)
    # what holds for all layers is said of all layers only
    equal = re.search(r"<p>Equal in every layer: (.*)\.</p>", page)
    claims = unescape(equal[1]).replace("\N{MINUS SIGN}", "-").split(", ") if equal else []
    columns = columns_of(record)
    same = [each for each in columns if len({each.text(each.values.get(layer)) for layer in record.layers}) == 1]
    masks = any(entry.mask for entry in record.layers.values())  # without one, a density says nothing
    expected = [
        column
        for column in same
        if (column != alpha or len(same) < len(columns)) and (masks or column.key != "density")
    ]
    assert claims == [f"{column.title} {column.span(list(record.layers))}" for column in expected]
    alphas = [entry.alpha for entry in record.layers.values() if entry.alpha_range]
    assert ("mean of a layer's learned coefficients" in said) == bool(alphas)
    alphas = alphas or [entry.alpha for entry in record.layers.values()]
    low, high = alpha.text(min(alphas)), alpha.text(max(alphas))
    assert (low if low == high else f"{low} to {high}") in said
    # stragglers are spoken of where somebody looked, and counted right
    assert ("straggler" in said.lower()) == looked
    count = len(record.found_stragglers)
    assert (f"straggler layer{'s' * (count != 1)} {count or 'none'} " in said) == looked
    # advice needs a measurement
    for text in (said, card, terminal):
        assert ("Use it" in text) == judged
    assert ("so the effect of this merge is not known" in said or "so it is not known" in said) == (not judged)
    assert ("Nothing was measured on images" in said) == (not judged and record.calibration is None)
    for name, entry in record.layers.items():
        assert re.search(rf"\| {re.escape(name)} \| {entry.alpha:.4g}(?: \(|\s)", card), name
    assert record.headline[:60] in card.replace("\\", "")


def check_rows(page: str, record: MergeRecord) -> None:
    rows = rows_of(page, record)
    alpha = columns_of(record)[0]
    said = text_of(page)
    equal = "".join(re.findall(r"Equal in every layer: [^<]*", page))
    assert [layer for layers, _ in rows for layer in layers] == list(record.layers)
    for members, text in rows:
        for layer in members:
            entry = record.layers[layer]
            assert alpha.text(entry.alpha) in text or f"alpha {alpha.text(entry.alpha)}" in equal, (layer, text)
            assert (entry.mask or "none") in text or not any(each.mask for each in record.layers.values())
            assert entry.reason in text or f": {entry.reason}." in said
            assert ("straggler" in text) == (layer in record.found_stragglers)
