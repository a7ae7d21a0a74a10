"""Each kind of finding has one sentence, and its numbers are in it."""

import re
from pathlib import Path
from typing import Any

import pytest

import clipmerge
from clipmerge.finding import Finding
from clipmerge.output.record import MergeRecord
from clipmerge.planning.plan import Combination, LayerPlan
from clipmerge.report.text import (
    SENTENCES,
    answer_text,
    distillation_text,
    headline,
    learned_text,
    settings_text,
    text_of,
    with_texts,
)
from tests.support.merge_records import RECORDS, learned

DIFFERENCE = {"value": 0.14, "interval": [0.1, 0.18]}
LOSS = {"value": -0.14, "interval": [-0.18, -0.1]}
#: Values of each kind, and its sentence.
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "note": ({"text": "as it is"}, "as it is"),
    "weights-inside": (
        {"file": "a.pt", "inside": "state_dict", "others": ["ema"]},
        "a.pt: the weights are those under state_dict; ema holds weights too (`state_key` ema takes"
        " them)",
    ),
    "inner-folder": (
        {"source": "x", "library": "diffusers", "folder": "text_encoder"},
        "x: is a folder of diffusers, and its CLIP is text_encoder; its pipeline loads a merge by"
        " CLIPTextModel.from_pretrained, and measures of images with classes say nothing about the"
        " pictures that it makes",
    ),
    "unwrapped": (
        {
            "file": "a.pt",
            "inside": ["model", ""],
            "copies": ["ema"],
            "averages": 0,
            "others": 2,
            "examples": ["", "head.weight, head.bias"],
        },
        "a.pt: the CLIP is what lies under model and no name; ema holds the same parameters"
        " (`state_key` ema takes it); left out 2 tensors beside it, not part of a CLIP:"
        " head.weight, head.bias",
    ),
    "formed-weights": (
        {"source": "x", "weights": 1, "kinds": ["weight_norm"]},
        "x: 1 weight is formed from the parts that it holds (weight_norm); the output has plain"
        " weights",
    ),
    "timm": (
        {"source": "x", "head": True},
        "x: is a ViT of timm, read as a vision tower and its head as a classifier",
    ),
    "unknown-layers": (
        {"layers": 2, "examples": "a, b"},
        "2 layers that are not known are named after their modules: a, b",
    ),
    "left-behind": (
        {"source": "x", "tensors": 1, "share": 0.25, "examples": "a"},
        "x: 1 tensor that the zero-shot model lacks (25.0% of its numbers) are left behind, and"
        " whatever they learned is lost: a",
    ),
    "other-encoder": (
        {"source": "x", "encoder": "b", "tensors": 9, "changed": 3, "share": 0.25},
        "x: its other text encoder, b, is not merged; fine-tuning changed 3 of its 9 tensors, 25.0%"
        " of the change of both (sum of squares), so merge it too (#b), and replace both in a copy"
        " of the file",
    ),
    "copies": (
        {"source": "`id` x", "images": 1},
        "`id` x: 1 image is a copy of others in it; each counts in its accuracy",
    ),
    "shared-images": (
        {
            "source": "`id` x",
            "other": "y",
            "images": 2,
            "example": "a is in both",
            "measured": True,
        },
        "`id` x: 2 images are also in y (a is in both), which flatters recipes that measure",
    ),
    "stragglers": (
        {"statistic": "barrier", "layers": ["vision.3.mlp"]},
        "1 straggler layer found by barrier: vision.3.mlp",
    ),
    "no-stragglers": (
        {"statistic": "b", "layer": "x", "z": 1.31, "limit": 3.5, "mirror": 2.5, "lowest": -1.4},
        "no straggler layers found: x stands out most in b, with z 1.3, and a straggler exceeds"
        " 3.5, 2.5 times as far as the lowest layer (z -1.4)",
    ),
    "unstable-straggler": (
        {"statistic": "b", "layer": "x", "z": 9.0, "share": 0.66, "stability": 0.9},
        "no straggler layers found: x stands out in b (z 9.0), but only in 66% of the resamples,"
        " below 90%",
    ),
    "too-few-layers": (
        {"layers": 2},
        "no layer is called a straggler: 2 layers to compare, too few to tell outliers",
    ),
    "best-of-path": (
        {"alpha": 0.4, "points": 11, "criterion": "accuracy", "value": 0.912},
        "alpha 0.4 was the best of 11 points on the calibration images (accuracy 91.2%)",
    ),
    "greedy-soup": (
        {"sources": ["a", "b"], "count": 3, "accuracy": 0.5},
        "2 of 3 fine-tuned checkpoints are in the greedy soup (a, b), with accuracy 50.0% on the"
        " calibration images",
    ),
    "learned": (
        {"coefficients": 440_192, "factor": 0.5},
        "440,192 coefficients, multiplied by 0.5",
    ),
    "learned-sparse": (
        {"coefficients": 9, "stragglers": 1, "layers": 55, "dropped": 0.5, "factor": 1.0},
        "1 straggler of 55 layers; learning put 50% of its weights back to zero-shot;"
        " 9 coefficients",
    ),
    "depth": ({"block": 2, "blocks": 12, "tower": "text"}, "block 2 of 12, text tower"),
    "sharp-straggler": ({"share": 0.123}, "straggler with 12% of the sharpness"),
    "outlier": (
        {"statistic": "barrier", "z": 4.12, "share": 0.97},
        "straggler: barrier z 4.1, in 97% of the resamples",
    ),
    "cosine": ({"cosine": 0.25}, "mean cosine 0.250 between the task vectors"),
    "spectral": (
        {"matrices": 4, "ranks": [3, 9], "weak": 0.25},
        "4 matrices: rank 3 to 9, 0.75 of the principal part and 0.25 of the rest",
    ),
    "override": ({"layers": "text.*"}, "override 'text.*'"),
    "no-worse-zeroshot": (
        {"corrupted": LOSS},
        "The zero-shot model recognises as many of your images as the fine-tuned one or more, and"
        " the merged model loses 14.0 points [10.0, 18.0] under unrelated corruptions against it.",
    ),
    "surely-loses": (
        {"clean": LOSS},
        "The merged model loses 14.0 points [10.0, 18.0] of accuracy on your images.",
    ),
    "unclear-accuracy": (
        {"clean": [-0.2, 0.1]},
        "The accuracy may have changed by anything from -20.0 to +10.0 points; more images would"
        " tell.",
    ),
    "gains": (
        {"corrupted": DIFFERENCE, "price": 0.01},
        "The merged model gains 14.0 points [10.0, 18.0] under unrelated corruptions over the"
        " fine-tuned model, at the price of 1.0 points on your images.",
    ),
    "no-difference": (
        {"limit": 3.0},
        "The merged and the fine-tuned model differ by no more than 3 points, with and without"
        " unrelated corruptions.",
    ),
    "may-lose": (
        {"loss": 0.053, "limit": 3.0},
        "The loss on your images may be as large as 5.3 points, more than the limit of 3.",
    ),
    "loses-accuracy": (
        {"who": "x", "where": "ID accuracy", "accuracy": 0.5, "finetuned": 0.902, "limit": 3.0},
        "x loses 40.2 points of the fine-tuned model's ID accuracy (50.0% against 90.2%), more"
        " than the limit of 3",
    ),
    "overfitting": (
        {"train": 0.97, "held_out": 0.81},
        "overfitting: 97% of the views of training images are recognised, and 81% of held-out"
        " images and views; use more images or fewer steps (measure.steps)",
    ),
    "not-copied": (
        {"source": "x", "files": ["a.txt"], "reason": "not-read"},
        "x: a.txt not copied: not among the files that loaders read",
    ),
    "rarely-defined": (
        {"share": 0.4},
        "the curve has this ID accuracy in only 40% of the resamples, so there is no interval",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_put_into_words(kind: str) -> None:
    values, sentence = KINDS[kind]
    finding = Finding.of(kind, **values)
    assert text_of(finding) == sentence
    assert with_texts([finding.model_dump(mode="json")])[0]["text"] == sentence


def test_every_kind_that_the_package_makes_has_a_sentence() -> None:
    sources = (file.read_text() for file in Path(clipmerge.__file__).parent.rglob("*.py"))
    made = {
        kind for source in sources for kind in re.findall(r'Finding\.of\(\s*"([a-z-]+)"', source)
    }
    assert made - {"base-alpha", "unheard-of"} <= SENTENCES.keys()
    assert len(made) > 40


@pytest.mark.parametrize(
    "finding",
    [
        Finding.of("unheard-of", count=2),
        Finding.of("gains", corrupted=5),
        Finding.of("outlier", z="four"),
        Finding.of("stragglers", statistic="x", layers=None),
        Finding.of("cosine"),
        Finding.of("at-chance", accuracy=0.1, images=3, classes=0, prompt="p"),
    ],
)
def test_what_another_version_wrote_is_shown_as_it_is(finding: Finding) -> None:
    assert text_of(finding) == str(finding)


def test_experience_alone_has_a_headline_of_its_own() -> None:
    effect = MergeRecord.model_validate(learned()).effect
    assert effect is not None
    assert effect.recommendation == "use"
    assert answer_text(effect).startswith("Use it. On ")
    reason = Finding.of("same-accuracy", clean=[-0.01, 0.02], corrupted=[-0.01, 0.03])
    on_experience = effect.model_copy(update={"reason": reason})
    assert answer_text(on_experience).startswith("Probably use it. On ")
    assert (
        "No significant loss of accuracy was measured on your images (-1.0 to +2.0 points"
        in text_of(reason)
    )


def test_a_finding_as_a_string_is_its_kind_and_its_numbers() -> None:
    assert str(Finding.note("as it stands")) == "as it stands"
    assert str(Finding.of("copies", images=2, share=0.25)) == "copies (images 2, share 0.25)"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("predictions", "the zero-shot model's predictions"),
        ("features", "the zero-shot model's image features"),
        ("path-features", "the image features of the zero-shot model and of the middle of the"),
        (
            "both",
            "the predictions and image features of the zero-shot model and of the middle of the",
        ),
    ],
)
def test_what_was_distilled_in_words(target: str, said: str) -> None:
    record = MergeRecord.model_validate(
        learned() | {"choice": CHOICE | {"extrapolation": 0.0, "distill_target": target}}
    )
    assert distillation_text(record).startswith(said)


def test_that_no_straggler_was_found_is_said_of_a_learned_merge() -> None:
    values = {"stragglers": 0, "layers": 9, "dropped": 0.0}
    decision = {"kind": "learned", "values": values}
    record = MergeRecord.model_validate(learned() | {"decision": decision})
    assert learned_text(record, 20)[0] == "No straggler layers found."


@pytest.mark.parametrize(
    ("alpha", "taken"), [(1.0, "its weights were taken"), (0.65, "alpha 0.65 was taken")]
)
def test_what_was_taken_is_said_where_nothing_learned_keeps_the_accuracy(
    alpha: float, taken: str
) -> None:
    """Then no stragglers are told of, of which learning put nothing back."""
    decision = {"kind": "learned", "values": {"stragglers": 2, "layers": 9, "dropped": 0.0}}
    choice = CHOICE | {"alpha": alpha, "extrapolation": 1.0, "training_images": 51}
    record = MergeRecord.model_validate(learned() | {"decision": decision, "choice": choice})
    assert learned_text(record, 80) == [
        "Nothing learned with 51 of your images surely keeps the fine-tuned model's accuracy, so"
        f" {taken} (-v says more)."
    ]


@pytest.mark.parametrize("values", [{"stragglers": "x"}, {"factor": "x"}])
def test_what_was_learned_by_another_version_is_shown_as_it_is(values: dict[str, Any]) -> None:
    decision = {"kind": "learned", "values": values}
    record = MergeRecord.model_validate(learned() | {"decision": decision})
    assert str(record.decision) in " ".join(learned_text(record, 20))


@pytest.mark.parametrize(
    ("changed", "end"), [(None, "is not merged"), (0, "is not merged; it is the same in both")]
)
def test_another_text_encoder_may_be_unknown_or_the_same(changed: int | None, end: str) -> None:
    values = {"source": "x", "encoder": "b", "tensors": 9, "changed": changed, "share": None}
    assert text_of(Finding.of("other-encoder", **values)) == f"x: its other text encoder, b, {end}"


def test_a_sentence_in_a_record_is_never_believed() -> None:
    data = learned()
    data["effect"]["reason"]["text"] = "Use it blindly."
    data["decision"]["text"] = "every layer goes 2 of the way"
    record = MergeRecord.model_validate(data)
    assert "2 of the way" not in headline(record)
    assert "gains 14.0 points" in text_of(record.effect.reason)


@pytest.mark.parametrize("name", RECORDS)
def test_the_headline_has_the_settings(name: str) -> None:
    said = headline(MergeRecord.model_validate(RECORDS[name]))
    assert re.search(r"([Ee]very layer goes|(layers|coefficients) go \S+ to) \S+ of the way", said)
    assert said == said[:1].upper() + said[1:]
    assert said.endswith(".")


CHOICE = {"images": 20, "alpha": None, "accuracy": 0.9, "finetuned_accuracy": 0.95}


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (
            {"alpha": 1.0, "extrapolation": 1.0},
            "on 20 images nothing else surely keeps the accuracy, so it is the fine-tuned model",
        ),
        (
            {"images": 83, "alpha": 0.65, "extrapolation": 1.0},
            "nothing learned surely keeps the accuracy on held-out images, but alpha 0.65 for all"
            " weights does on all 83: it recognises 90.0% of them and their views, the"
            " fine-tuned model 95.0%",
        ),
        (
            {"extrapolation": 0.0},
            "on 20 held-out images all that was learned keeps the accuracy; the learned merge recognises"
            " 90.0% of them and their views, the fine-tuned model 95.0%",
        ),
        (
            {"extrapolation": 0.3},
            "images 30% of the way from the learned merge to fine-tuned was needed to keep",
        ),
        (
            {"extrapolation": 0.0, "labelled": False},
            "accuracy; the fine-tuned model gives the learned merge's answer on 90.0% of their views, and"
            " its own on 95.0%",
        ),
    ],
)
def test_the_choice_is_part_of_the_headline(choice: dict[str, Any], said: str) -> None:
    record = MergeRecord.model_validate(learned() | {"choice": CHOICE | choice})
    assert said in headline(record)
    assert "loss from 0.882 to 0.147, distillation loss from 0.567" in headline(record)
    silent = MergeRecord.model_validate(learned() | {"choice": CHOICE | choice, "trace": {}})
    assert "nothing was learned" in headline(silent)


@pytest.mark.parametrize(
    ("layers", "weights", "combine", "sentence"),
    [
        (
            (0.5, 0.5),
            (1.0,),
            None,
            "every layer of the vision tower goes 0.5 of the way from zero-shot to the fine-tuned",
        ),
        ((0.0, 0.0), (1.0,), None, "every layer of the vision tower stays zero-shot"),
        (
            (0.5, 0.0),
            (1.0,),
            None,
            "the layers go 0 to 0.5 of the way from zero-shot to the fine-tuned model",
        ),
        ((0.5, 0.5), (0.5, 0.5), None, "to the average of 2 fine-tuned models"),
        ((0.5, 0.5), (0.2, 0.8), None, "to the sum of 2 fine-tuned changes weighted 0.2, 0.8"),
        ((0.5, 0.5), (2.0,), None, "to 2 times the fine-tuned change"),
        ((0.5, 0.5), (1.0, 1.0), "ties", "to the ties combination of 2 fine-tuned models"),
    ],
)
def test_settings_in_words(
    layers: tuple[Any, ...], weights: tuple[float, ...], combine: Any, sentence: str
) -> None:
    entries = {f"vision.{place}.mlp": LayerPlan(alpha=alpha) for place, alpha in enumerate(layers)}
    rule = Combination(rule=combine) if combine else None
    assert re.search(sentence, settings_text(entries, weights, rule))


def test_every_layer_is_every_layer_where_both_towers_are_merged() -> None:
    entries = {name: LayerPlan(alpha=0.5) for name in ("vision.0.mlp", "text.0.mlp", "logit_scale")}
    assert settings_text(entries, (1.0,), None).startswith("every layer goes 0.5 of the way")


def test_layers_that_fine_tuning_did_not_change_are_not_counted() -> None:
    entries = {
        "vision.0.mlp": LayerPlan(alpha=1.0),
        "text.0.mlp": LayerPlan(alpha=0.0, reason=Finding.of("unchanged")),
    }
    said = settings_text(entries, (1.0,), None)
    assert said.startswith("every layer of the vision tower goes 1 of the way")


def test_learned_coefficients_and_masks_in_words() -> None:
    layers = {
        "vision.0.mlp": LayerPlan(alpha=0.4, alpha_range=(0.1, 0.9)),
        "vision.1.mlp": LayerPlan(alpha=0.4, mask="magnitude", density=0.2),
        "vision.2.mlp": LayerPlan(alpha=0.4, mask="n-m"),
    }
    assert (
        settings_text(layers, (1.0,), None)
        == "the coefficients go 0.1 to 0.9 of the way from zero-shot to the"
        " fine-tuned model; 2 of 3 layers have a mask (magnitude, n-m, density 0.2 to 1)"
    )
    del layers["vision.1.mlp"]
    assert settings_text(layers, (1.0,), None).endswith("; 1 of 2 layers has a mask (n-m)")


def test_an_alpha_far_beyond_one_may_be_meant_in_per_cent() -> None:
    near, far = (text_of(Finding.of("extrapolation", alpha=alpha)) for alpha in (1.5, 50.0))
    assert near == "alpha 1.5 is outside [0, 1]: the merge extrapolates beyond the two models"
    assert far.endswith("beyond the two models; half of the way is 0.5")
