"""Judge a merge: zero-shot, fine-tuned and merged model on images from which nothing was learned.

`recommend` holds the four rules, which `docs/how-to/verdict.md` explains. The weights that
the merge would write are set in place, so nothing needs to be written first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from clipmerge.checkpoint import Inputs
from clipmerge.evaluation.corruptions import corrupted_sets
from clipmerge.evaluation.scorer import Images, Move, Outcome, Scorer, stack_correct
from clipmerge.images.image_set import CaptionedImages
from clipmerge.learning.interpolate import Path
from clipmerge.models import ImageTextModel
from clipmerge.models.building import build_model
from clipmerge.options import ImageOptions
from clipmerge.planning.plan import Plan, last_part
from clipmerge.planning.verdict import (
    Comparison,
    Difference,
    Estimate,
    SourceComparison,
    Verdict,
    finetuned_names,
)
from clipmerge.progress import Progress
from clipmerge.stats import are_uneven, class_weights, mean_share, paired_accuracy_interval, wilson
from clipmerge.types import Recommendation

#: Of judged merges of which the verdict says "probably use it": those that lose at most 3 points
#: on new images and nothing under the real shift, and all (`benchmarks/advice.py`).
JUDGED = (36, 40)
#: Fewest test images that "probably use it" rests on: the record has no merge judged on fewer.
FEWEST_IMAGES = 25
# Images of which a model's input size is learned.
_USUAL_SIDE = 224
# Bytes of preprocessed images in memory at once; moving a model costs as much as a few images.
_LOAD_BYTES = 256 << 20
# Accuracies are ratios of counts; rounding errors are far below one image in a billion.
_ROUNDING = 1e-9
_MOST_IMAGES = 20_000
# Classes that a model card's example names.
_EXAMPLES = 3


class Rule(NamedTuple):
    """What a rule says."""

    recommendation: Recommendation
    reason: str
    sentence: str


def recommend(
    target: SourceComparison,
    corrupted: Comparison,
    ood: Sequence[SourceComparison] = (),
    *,
    max_loss: float,
    zeroshot_gain: Difference,
    same_answers: bool = False,
    chosen: bool = False,
    class_gain: float = 0.0,
) -> Rule:
    """Apply the rules in order; the first that holds decides.

    Args:
        target: The models on the target's images.
        corrupted: The models on these under corruptions.
        ood: The models on each ``--ood`` source.
        max_loss: Accepted loss, in points.
        zeroshot_gain: Zero-shot minus fine-tuned on the target's images.
        same_answers: Whether merged and fine-tuned model give the same answer on every image.
        chosen: Whether held-out images chose how far the merge goes.
        class_gain: Merged minus fine-tuned as a mean over classes, if their sizes are uneven.
    """
    limit = max_loss / 100
    points = f"{max_loss:g} points (`max_loss`)"
    sources = {"your images": target, **{source.name: source for source in ood}}
    if zeroshot_gain.interval[0] > 0:
        return Rule(
            "check-images",
            "zeroshot-better",
            "Check the images: the zero-shot model is surely better on them than the fine-tuned"
            " one. Are they images of what it was fine-tuned for? If so, fine-tuning failed: take"
            " the zero-shot model.",
        )
    if zeroshot_gain.interval[1] >= 0 and target.gain.interval[0] > 0:
        return Rule(
            "check-images",
            "only-merging-helped",
            "Check the images: fine-tuning did not surely help on them, and merging did, as on a"
            " shift. Are they images of what the model was fine-tuned for?",
        )
    lost = [name for name, at in sources.items() if at.gain.interval[1] < -limit - _ROUNDING]
    if lost:
        return Rule(
            "keep-finetuned",
            "loses",
            f"Keep the fine-tuned model: the merged one surely loses more than {points} on"
            f" {_listed(lost)}.",
        )
    if same_answers:
        return Rule(
            "either",
            "same-answers",
            "Either will do: the merged model gives the fine-tuned one's answer on every image.",
        )
    unclear = [name for name, at in sources.items() if _loses(at, limit)]
    if class_gain < -limit - _ROUNDING:
        unclear = ["the rarer classes", *unclear]
    gains = [name for name, at in sources.items() if at.gain.interval[0] > 0]
    if corrupted.gain.interval[0] > 0:
        gains.append("corruptions of your images")
    if gains and not unclear:
        return Rule(
            "use",
            "gains",
            f"Use it: the merged model surely gains on {_listed(gains)}, and loses nowhere more"
            f" than {points}.",
        )
    settled = _what_would_settle(target, limit, has_ood=bool(ood))
    if unclear:
        return Rule(
            "too-few-images",
            "unclear-loss",
            f"Too few images to tell: whether the merged model loses more than {points} on"
            f" {_listed(unclear)} is open. {settled}",
        )
    if target.images < FEWEST_IMAGES or not chosen:
        why = (
            "merges judged on so few are often worse than they look"
            if chosen
            else "merges whose alpha no images chose are often worse under a shift"
        )
        return Rule(
            "too-few-images",
            "few" if chosen else "not-chosen",
            "Too few images to tell: no gain is sure, and though the measured loss is within"
            f" {points}, {why}. {settled}",
        )
    right, judged = JUDGED
    return Rule(
        "probably-use",
        "like-judged-merges",
        f"Probably use it: the loss measured on your images is within {points}, and {right} of"
        f" {judged} judged merges like this held that on new images and were no worse under the"
        f" real shift. {settled}",
    )


def _loses(source: SourceComparison, limit: float) -> bool:
    """Whether the measured loss is beyond the limit, rounded up to whole images."""
    return source.gain.value < -max(limit, 1 / source.images) - _ROUNDING


def _what_would_settle(target: SourceComparison, limit: float, *, has_ood: bool) -> str:
    """How many images would tell whether the loss is beyond the limit, and what tells more."""
    low, high = target.gain.interval
    margin = max(abs(target.gain.value + limit), _ROUNDING)
    images = target.images * ((high - low) / 2 / margin) ** 2
    more = "More images of the shift"
    if not has_ood:
        more = "100 labelled images of the shift, as `ood`,"
    if images <= target.images:
        return f"{more} would settle it."
    digits = 10 ** max(0, len(str(int(images))) - 2)
    number = f"about {round(images / digits) * digits:,.0f}"
    if images > _MOST_IMAGES:
        number = f"more than {_MOST_IMAGES:,}"
    return (
        f"It takes {number} test images to settle whether it loses more (here {target.images:,});"
        f" {more[:1].lower()}{more[1:]} would settle more."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if names[1:] else "") + names[-1]


def judge(
    inputs: Inputs,
    plan: Plan,
    images: Images,
    settings: ImageOptions,
    *,
    ood: Mapping[str, Images] | None = None,
    max_loss: float,
    chosen: bool = False,
    progress: Progress,
) -> Verdict:
    """Judge a plan on the target's images, from which it was not learned, and on `ood` sources."""
    model = build_model(inputs)
    scorer = Scorer(model, inputs, settings, load_bytes=_LOAD_BYTES)
    copies = corrupted_sets(images, _input_side(model))
    named = dict(ood or {})
    outcomes = scorer.score(moves_of(plan), {"": images, **copies, **named}, progress)
    names = ["zero-shot", *finetuned_names(len(plan.finetuned)), "merged"]
    right = {name: stack_correct(of).astype(np.float64) for name, of in outcomes.items()}
    reference = 1 + int(np.argmax(right[""][1:-1].sum(axis=1)))
    compared = {
        name: compare_sources(name or "target", source, outcomes[name], names, reference)
        for name, source in {"": images, **named}.items()
    }
    corrupted = np.mean([right[name] for name in copies], axis=0)
    zeroshot, finetuned, merged = (right[""][model] for model in (0, reference, -1))
    rule_inputs: dict[str, Any] = {
        "target": compared.pop(""),
        "corrupted": Comparison(
            models=_estimates(names, corrupted),
            gain=difference(corrupted[-1] - corrupted[reference], len(copies)),
        ),
        "ood": tuple(compared.values()),
    }
    rule = recommend(
        **rule_inputs,
        max_loss=max_loss,
        zeroshot_gain=difference(zeroshot - finetuned),
        same_answers=all(
            np.array_equal(of[-1].best, of[reference].best) for of in outcomes.values()
        ),
        chosen=chosen,
        class_gain=_class_gain(images, merged - finetuned),
    )
    return Verdict(
        recommendation=rule.recommendation,
        reason=rule.reason,
        sentence=rule.sentence,
        max_loss=max_loss,
        **rule_inputs,
    )


def compare_sources(
    name: str, images: Images, outcomes: Sequence[Outcome], models: Sequence[str], reference: int
) -> SourceComparison:
    """Compare the models, the last one being the merged one, on one source of images."""
    right = stack_correct(outcomes)
    counts: dict[str, Any] = (
        {"captions": images.caption_count}
        if isinstance(images, CaptionedImages)
        else {"classes": len(images.class_names), "class_names": images.class_names[:_EXAMPLES]}
    )
    return SourceComparison(
        models=_estimates(models, right),
        gain=difference(right[-1].astype(np.float64) - right[reference]),
        name=name,
        source=images.source if images.revision else last_part(images.source),
        revision=images.revision,
        images=len(images),
        **counts,
        recall={
            model: outcome.recall
            for model, outcome in zip(models, outcomes, strict=True)
            if outcome.recall
        },
    )


def moves_of(plan: Plan) -> list[Move]:
    """Functions that move the model to zero-shot, each fine-tuned and the merged one."""
    finetuned = [partial(Path.set_finetuned, which=which) for which in range(len(plan.finetuned))]
    return [
        partial(Path.set_alpha, alpha=0.0),
        *finetuned,
        partial(Path.set_plan, plan=plan),
    ]


def estimate(right: NDArray[Any]) -> Estimate:
    """The mean of one answer per image, right or wrong, or of one share per image."""
    share = float(right.mean())
    binary = right.dtype == np.bool_
    return Estimate(
        value=share, interval=wilson(share, len(right)) if binary else mean_share(right)
    )


def difference(by_image: NDArray[np.float64], views: int = 1) -> Difference:
    """The mean of one model's answers minus another's."""
    return Difference(
        value=float(by_image.mean()), interval=paired_accuracy_interval(by_image, views)
    )


def _estimates(names: Sequence[str], right: NDArray[Any]) -> dict[str, Estimate]:
    return {name: estimate(row) for name, row in zip(names, right, strict=True)}


def _class_gain(images: Images, by_image: NDArray[np.float64]) -> float:
    """The mean difference over classes if some have more than twice the images of others."""
    if isinstance(images, CaptionedImages) or not are_uneven(images.labels):
        return 0.0
    return float((by_image * class_weights(images.labels)).mean())


def _input_side(model: ImageTextModel | Any) -> int:
    """Shorter side of the model's input, in pixels."""
    pixels = model.pixels([Pillow.new("RGB", (_USUAL_SIDE, _USUAL_SIDE))])
    # models that take an image as a list of patches have no fixed size
    return min(pixels.shape[-2:]) if pixels.ndim == 4 else _USUAL_SIDE
