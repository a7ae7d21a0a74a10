"""The summary on the terminal: its size, its rows, and names from strangers."""

import io
import re

import pytest
from rich.console import Console

from clipmerge.output.record import MergeRecord
from clipmerge.publish.card import model_card
from clipmerge.report.terminal import summary
from tests.support.merge_records import RECORDS, example, learned, printed

FINETUNED = {
    "images": 204,
    "alpha": 1.0,
    "extrapolation": 1.0,
    "accuracy": 0.95,
    "finetuned_accuracy": 0.95,
}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            learned(),
            (
                "How far each weight goes from zero-shot to fine-tuned was learned with 819 of your"
                " images"
            ),
        ),
        (
            learned(stragglers=("vision.3.mlp",)),
            "1 straggler of 55 layers; learning put 50% of its weights back to zero-shot.",
        ),
        (
            learned()
            | {"decision": {"kind": "learned", "values": {"coefficients": 9, "factor": 0.5}}},
            ", and multiplied by 0.5 (-v",
        ),
        (
            learned() | {"decision": None},
            "The coefficients go 0 to 0.86 of the way",
        ),
        (
            learned() | {"choice": FINETUNED},
            "Nothing learned with 819 of your images surely keeps the fine-tuned model's accuracy",
        ),
    ],
)
def test_the_summary_says_in_a_sentence_what_was_learned(record, said):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(summary(MergeRecord.model_validate(record)))
    assert said in console.export_text()


def test_stragglers_are_spelled_out_and_many_are_counted():
    text = " ".join(printed(example(stragglers=("vision.3.mlp",))).split())
    assert (
        "vision.3.mlp: alpha 0.2, density 0.5, mask saliency; straggler: barrier z 4.1, in 97% of"
        in text
    )
    assert "and 17 more stragglers" in printed(RECORDS["many stragglers"])
    sparse = MergeRecord.model_validate(learned(stragglers=("vision.3.mlp",)))  # without a mask
    assert "density 0.5; straggler" in str(summary(sparse, verbose=True).renderables)
    assert re.search(
        r"\| vision\.3\.mlp \| \S+ \(0 to 0\.86\) \| 0\.5 \|", model_card(sparse, repo_id=None)
    )


def test_markup_and_control_characters_stay_out_of_the_terminal():
    record = example(1, 1, ())
    record["decision"] = "[red]a\x1b[2Jb[/red]"
    assert r"[red]a\x1b[2Jb[/red]" in printed(record)
