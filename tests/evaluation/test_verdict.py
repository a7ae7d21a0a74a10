"""The rules of the verdict, each at its edge, and the numbers of a judged merge counted by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clipmerge
from clipmerge import Progress
from clipmerge.demo.pair import prepare
from clipmerge.evaluation.corruptions import CORRUPTIONS, corrupt, corrupted_sets
from clipmerge.evaluation.verdict import recommend
from clipmerge.images.image_set import LabelledImages, Pictures
from tests.support.merge_records import estimate, source
from tests.support.tiny_clip import save_images, save_pair

#: What differs from a target without a sure change that fine-tuning surely helped, and the reason.
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "zero-shot surely better": (
        {"target": source(0.0, 0.05, finetuning_change=estimate(-0.1, 0.09))},
        "check-images",
        "zeroshot-better",
    ),
    "merging helped two fifths as much": (
        {"target": source(0.1, 0.09, finetuning_change=estimate(0.24, 0.08))},
        "check-images",
        "better-as-on-a-shift",
    ),
    "merging helped a third as much": (
        {"target": source(0.1, 0.09, finetuning_change=estimate(0.3, 0.08))},
        "use",
        "better",
    ),
    "only merging helped, under corruptions": (
        {
            "corrupted": source(0.1, 0.09),
            "target": source(0, 0.02, finetuning_change=estimate(0, 0.1)),
        },
        "probably-use",
        "little-lost",
    ),
    "fine-tuning did worse, perhaps": (
        {"target": source(0.0, 0.1, finetuning_change=estimate(-0.01, 0.1))},
        "too-few-images",
        "nothing-learned",
    ),
    "fine-tuning changed nothing": ({"nothing_learned": True}, "too-few-images", "nothing-learned"),
    "a sure loss beyond the limit": ({"target": source(-0.1, 0.06)}, "keep-finetuned", "loses"),
    "a sure loss within the limit": (
        {"target": source(-0.02, 0.01)},
        "probably-use",
        "little-lost",
    ),
    "a loss beyond the limit, not sure": (
        {"target": source(-0.05, 0.06)},
        "too-few-images",
        "unclear-loss",
    ),
    "the limit in whole images": (
        {"target": source(-1 / 29, 0.1, images=29)},
        "probably-use",
        "little-lost",
    ),
    "plain interpolation surely better": (
        {"target": source(0.08, 0.07), "better_alpha": 0.75},
        "use-alpha",
        "plain-better",
    ),
    "surely better": ({"target": source(0.08, 0.07)}, "use", "better"),
    "surely better under corruptions": ({"corrupted": source(0.02, 0.01)}, "use", "better"),
    "surely better on a shift, and surely little lost": (
        {"target": source(0.0, 0.03), "ood": [source(0.1, 0.09)]},
        "use",
        "better",
    ),
    "surely better on a shift alone": (
        {"ood": [source(0.1, 0.09)]},
        "probably-use",
        "little-lost",
    ),
    "a sure loss on a shift": ({"ood": [source(-0.1, 0.06)]}, "keep-finetuned", "loses"),
    "a perhaps lost shift": ({"ood": [source(-0.05, 0.06)]}, "too-few-images", "unclear-loss"),
    "lost in rare classes": (
        {"corrupted": source(0.1, 0.01), "class_change": -0.04},
        "too-few-images",
        "unclear-loss",
    ),
    "nothing changes much": (
        {"target": source(0.0, 0.029, finetuning_change=estimate(0.01, 0.015))},
        "either",
        "little-changed",
    ),
    "no prediction differs": ({"same_answers": True}, "either", "same-answers"),
    "no images chose": ({"images_chose": False}, "too-few-images", "unclear-loss"),
    "no images chose, and surely little is lost": (
        {"images_chose": False, "target": source(0.0, 0.03), "corrupted": source(-0.1, 0.01)},
        "probably-use",
        "little-lost",
    ),
}


def told_of(**changes: Any) -> tuple[str, str, str]:
    nothing = source(0.0, 0.05)
    given = {"target": nothing, "corrupted": nothing, "images_chose": True, "max_loss": 3.0}
    return recommend(**given | changes)


@pytest.mark.parametrize("case", CASES)
def test_each_rule_holds_where_it_should(case: str) -> None:
    changes, *expected = CASES[case]
    assert list(told_of(**changes)[:2]) == expected


def test_one_image_of_few_is_not_called_a_loss_within_the_limit() -> None:
    *_, told = told_of(target=source(-1 / 29, 0.1, images=29))
    assert "no measured loss is more than one image" in told
    *_, told = told_of(target=source(-0.03, 0.1, images=29))
    assert "no measured loss is more than 3 points (`max_loss`)" in told


def test_the_limit_is_the_users() -> None:
    lost = source(-0.1, 0.06)
    assert told_of(target=lost, max_loss=4.1)[0] == "too-few-images"
    assert told_of(target=lost, max_loss=11)[0] == "probably-use"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"target": source(0.02, 0.08)},
            " A `sweep` on more labelled images would show whether the loss is within the limit."
            " 100 labelled images of the shift, as `ood`, would show the change there.",
        ),
        (
            {"target": source(0.0, 0.01), "ood": [source(0.0, 0.08)]},
            " More images of the shift would show the change there.",
        ),
        (
            {"target": source(0.0, 0.01), "ood": [source(0.1, 0.09)]},
            "",
        ),
        # whatever the limit
        (
            {"target": source(-0.02, 0.01), "ood": [source(0.1, 0.09)]},
            " The merged model surely loses on your images.",
        ),
    ],
)
def test_it_says_what_is_lost_and_what_would_tell_more(changes: dict[str, Any], told: str) -> None:
    limit = "3 points (`max_loss`)."
    assert told_of(**changes)[2].partition(limit)[2] == told


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corruption_changes_every_image_alike_in_every_run(corruption: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    first, again, other = (np.asarray(corrupt(image, corruption, seed)) for seed in (3, 3, 4))
    assert first.shape == pixels.shape
    assert np.array_equal(first, again)
    assert not np.array_equal(first, pixels)
    assert np.array_equal(first, other) == (corruption != "occlusion")
    if corruption == "occlusion":  # a quarter is hidden
        changed = (first != pixels).any(axis=2)
        assert (changed.any(axis=1).sum(), changed.any(axis=0).sum()) == (20, 30)


@pytest.mark.parametrize(("images", "copies"), [(60, 5), (256, 2), (500, 1)])
def test_few_images_are_corrupted_in_several_ways(images: int, copies: int) -> None:
    pictures = Pictures(lambda _: Image.new("RGB", (8, 8)), str, range(images))
    given = LabelledImages("here", pictures, (0, 1) * (images // 2), ("a", "b"))
    assert len(corrupted_sets(given, 8)) == copies


def test_a_merge_is_judged_by_its_own_answers(images: Path, tmp_path: Path) -> None:
    far = save_pair(tmp_path, change=1.0)
    other = save_images(tmp_path / "other", each=7, seed=5)
    options: dict[str, Any] = {"allow": "at-chance", "progress": Progress()}
    made = clipmerge.merge(
        *far, "wise-ft", output=tmp_path / "out", data=images, ood={"other": other}, **options
    )
    assert made.verdict is not None
    target, shift = made.verdict.sources
    assert target.images == 30  # all of them, since nothing was learned
    for name, path in (("zero-shot", far[0]), ("fine-tuned", far[1]), ("merged", made.path)):
        accuracy = clipmerge.evaluate(path, {"x": other}, **options).accuracy["x"]
        assert shift.models[name].value == pytest.approx(accuracy)
    merged, finetuned = (target.models[name].value for name in ("merged", "fine-tuned"))
    assert target.change.value == pytest.approx(merged - finetuned)
    made_at: Any = clipmerge.sweep(
        *far, id=images, ood={"other": other}, alphas=made.verdict.alphas, **options
    )
    curve = made_at.record["curve"]
    assert target.curve == pytest.approx([row["mean"]["target"]["value"] for row in curve])
    assert shift.curve == pytest.approx([row["accuracy"]["other"] for row in curve])
    assert made.verdict.answers.keys() == {"target", "shift"}
    gain = made.verdict.answers["shift"].gain
    assert gain is not None
    assert gain.value <= 0  # the merge is the middle of the curve
    said = f" Best plain alpha {made.verdict.best_alpha:g}: "
    assert made.verdict.sentence.count(said) == 1


@pytest.mark.parametrize(
    ("data", "alpha", "recommendation", "reason"),
    [
        ("calibration", 2, "use-alpha", "plain-better"),
        ("calibration", 1, "either", "same-answers"),
        ("inversion", 0.5, "check-images", "zeroshot-better"),
    ],
)
def test_the_verdict_on_trained_models(
    tmp_path: Path, data: str, alpha: float, recommendation: str, reason: str
) -> None:
    pair = prepare(tmp_path)
    made = clipmerge.merge(
        pair.zeroshot,
        pair.finetuned,
        alpha=alpha,
        data={"calibration": pair.calibration, **pair.shifted}[data],
        ood={"rotation": pair.shifted["rotation"]},
        images=150,
        allow="swapped",
        progress=Progress(),
    )
    verdict = made.verdict
    assert verdict is not None
    assert (verdict.recommendation, verdict.reason) == (recommendation, reason)
    command = f"clipmerge merge ZEROSHOT FINETUNED --output DIR --alpha {verdict.best_alpha:g}"
    assert (command in verdict.sentence) == (recommendation == "use-alpha")
