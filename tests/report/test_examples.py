"""Examples of captions with the images that two models find: in the report, and never published
with images of the author's own."""

import io
import re
from base64 import b64encode
from typing import Any

import pytest
from PIL import Image

from clipmerge.errors import OutputError
from clipmerge.output.record import MergeRecord
from clipmerge.publish.card import model_card
from clipmerge.publish.public import public_record
from clipmerge.report.figures import examples_figure
from clipmerge.report.page import card_pictures, html_page
from tests.support.merge_records import effect, learned


def thumbnail(number: int, side: int = 48) -> str:
    file = io.BytesIO()
    Image.new("RGB", (side, 40), (50 * number, 90, 200 - 40 * number)).save(file, "JPEG")
    return b64encode(file.getvalue()).decode()


def captioned(source: str = "/home/me/scans", **changes: Any) -> MergeRecord:
    examples = [
        {"caption": "a price of $5 and $6", "image": 0, "finetuned": [0, 1, 2], "merged": [1, 0]},
        {"caption": "ä" * 300, "image": 3, "finetuned": [2, 1, 0], "merged": [3, 1, 0]},
    ]
    shown = effect() | {"captions": 205, "source": source, "examples": examples}
    shown |= {"thumbnails": [thumbnail(number) for number in range(4)]} | changes
    return MergeRecord.model_validate(learned() | {"effect": shown})


def test_the_report_shows_captions_with_the_images_found() -> None:
    page = html_page(captioned())
    assert "For 2 captions of the held-out images, taken at random" in page
    assert len(re.findall(r'<figure><img src="data:image/svg\+xml;base64', page)) == 1
    assert "http" not in re.sub(r"base64,[^\"]*", "", page).replace("http://www.w3.org", "")
    assert "recall at 1" in page
    assert "Your images: 205 held-out images with 205 captions." in page


def test_an_example_has_its_image_and_those_of_both_models() -> None:
    effect = captioned().effect
    assert effect is not None
    figure = examples_figure(effect)
    shown = [
        len(axes.images) for row in figure.subfigs for part in row.subfigs for axes in part.axes
    ]
    assert sum(shown) == (1 + 3 + 2) + (1 + 3 + 3)
    titles = [row.get_suptitle() for row in figure.subfigs]
    assert titles[0] == r"a price of \$5 and \$6"
    assert len(titles[1]) == 90
    framed = [
        bool(axes.spines["top"].get_linewidth() > 2)
        for part in figure.subfigs[0].subfigs
        for axes in part.axes
    ]
    assert framed == [False, True, False, False, False, True]


def test_images_of_the_authors_own_are_not_published() -> None:
    public = public_record(captioned()).effect
    assert public is not None
    assert (public.examples, public.thumbnails) == ((), ())
    on_hub = public_record(captioned("hf://datasets/acme/products@0123456789:test")).effect
    assert on_hub is not None
    assert len(on_hub.examples) == 2
    assert on_hub.thumbnails == captioned().effect.thumbnails  # type: ignore[union-attr]


def test_the_card_shows_examples_of_public_images() -> None:
    record = captioned("hf://datasets/acme/products@0123456789:test")
    pictures = card_pictures(public_record(record))
    assert pictures["examples.png"].startswith(b"\x89PNG")
    card = model_card(record, repo_id="acme/merged", pictures=pictures)
    assert "](examples.png)\n\nFor 2 captions of the held-out images, taken at random" in card
    own = captioned()
    assert "examples.png" not in card_pictures(public_record(own))
    assert "examples" not in model_card(own, repo_id=None, pictures=["path.png"])


def test_a_thumbnail_of_a_strangers_record_is_small() -> None:
    with pytest.raises(OutputError, match="thumbnail of the record has 4000 pixels a side"):
        html_page(captioned(thumbnails=[thumbnail(0, side=4000)] * 4))
