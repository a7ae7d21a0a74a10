"""Judge a merge: compare zero-shot, fine-tuned and merged model on images that were not learned
from.

`recommend` holds the four rules, which `docs/how-to/verdict.md` explains. The weights that
the merge would write are set in place, so nothing needs to be written first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from clipmerge.evaluation.corruptions import corrupted_sets
from clipmerge.evaluation.scorer import Images, Move, Outcome, Scorer, stack_correct
from clipmerge.images.image_set import CaptionedImages
from clipmerge.learning.interpolate import WeightPath
from clipmerge.options import ImageOptions
from clipmerge.planning.plan import Plan, public_source
from clipmerge.planning.record import Comparison, Estimate, Verdict, finetuned_names
from clipmerge.progress import Progress
from clipmerge.stats import class_weights, mean_share, paired_accuracy_interval
from clipmerge.types import Recommendation

#: Of judged merges of which the verdict says "probably use it": those that lose at most 3 points
#: on new images and nothing under the real shift, and all (`benchmarks/advice.py`).
JUDGED = (187, 198)
#: The same with fewer than `FEW_IMAGES` test images.
JUDGED_FEW = (85, 97)
FEW_IMAGES = 50
#: The same where no images chose how far the merge goes, and no more than that is surely lost.
JUDGED_UNCHOSEN = (76, 78)
#: Images that may judge a merge for which nothing is measured: `images` may be raised, up to what
#: people have.
MOST_IMAGES = 20_000
# Images of which a model's input size is learned.
_USUAL_SIDE = 224
# Bytes of preprocessed images in memory at once; moving a model costs as much as a few images.
_LOAD_BYTES = 256 << 20
# Accuracies are ratios of counts; rounding errors are far below one image in a billion.
_ROUNDING = 1e-9
# Share of what fine-tuning gained that a merge may gain on the same images. Of six judged merges
# that surely gain on images of their target, five are at 0.36 or less, and one, where fine-tuning
# hardly helped, at 1.1; those on images of a shift are at 0.49 or more.
_MOST_GAINED = 0.4
# Classes that a model card's example names.
_EXAMPLES = 3
#: A recommendation, its reason for programs, and both in words.
Advice = tuple[Recommendation, str, str]


def recommend(
    target: Comparison,
    corrupted: Comparison,
    ood: Sequence[Comparison] = (),
    *,
    max_loss: float,
    same_answers: bool = False,
    nothing_learned: bool = False,
    chosen: bool = False,
    class_gain: float = 0.0,
    most_images: int = MOST_IMAGES,
) -> Advice:
    """Apply the rules in order; the first that holds decides.

    Args:
        target: The models on the target's images.
        corrupted: The models on these under corruptions.
        ood: The models on each ``--ood`` source.
        max_loss: Accepted loss, in points.
        same_answers: Whether merged and fine-tuned model give the same answer on every image.
        nothing_learned: Whether fine-tuning changed no answer on the target's images.
        chosen: Whether held-out images chose how far the merge goes.
        class_gain: Merged minus fine-tuned as a mean over classes, if their sizes are uneven.
        most_images: How many images may judge the target.
    """
    limit = max_loss / 100 + _ROUNDING
    points = f"{max_loss:g} points (`max_loss`)"
    if doubt := _doubt(target):
        return doubt
    at_home = {"your images": target}
    # unless fine-tuning surely helped, the images may be of a shift, whose corruptions tell little
    if target.finetuning_gain.interval[0] > 0:
        at_home["corruptions of your images"] = corrupted
    shifts = {each.name: each for each in ood}
    sources = {"your images": target} | shifts
    if lost := [name for name, at in sources.items() if at.gain.interval[1] < -limit]:
        text = f"the merged one surely loses more than {points} on {' and '.join(lost)}."
        return "keep-finetuned", "loses", f"Keep the fine-tuned model: {text}"
    if same_answers:
        text = "the merged model gives the fine-tuned one's answer on every image."
        return "either", "same-answers", f"Either will do: {text}"
    gained_at_home = _surely_gained(at_home)
    gained = gained_at_home + _surely_gained(shifts)
    is_kept = target.gain.interval[0] >= -limit
    unclear = [name for name, at in sources.items() if _may_lose(at, limit)]
    if not (chosen or is_kept or unclear):
        unclear.append("your images")
    if class_gain < -limit:
        unclear.append("the rarer classes")
    then = _what_tells_more(target, ood, limit, most_images)
    if unclear:
        text = f"the merged model may lose more than {points} on {' and '.join(unclear)}"
        return "too-few-images", "unclear-loss", f"Too few images: {text}.{then}"
    is_beyond = any(at.gain.value < -limit for at in sources.values())
    accepted = "one image" if is_beyond else points
    # a gain on a shift tells nothing of the target, where a small measured loss may be a large one
    if gained_at_home or (gained and is_kept):
        text = f"the merged model surely gains on {' and '.join(gained)}, and loses nowhere more"
        return "use", "gains", f"Use it: {text} than {accepted}."
    if max(map(abs, target.finetuning_gain.interval + target.gain.interval)) < limit:
        text = f"on your images fine-tuning and merging surely change less than {points}."
        return "either", "little-changed", f"Either will do: {text}"
    # fine-tuning that changed answers to no better and no worse is as frequent on the target as on
    # a shift, so it is no reason
    if nothing_learned or target.finetuning_gain.value < 0:
        text = "as measured, fine-tuning did not help on your images"
        return "too-few-images", "nothing-learned", f"Too few images: {text}.{then}"
    # no number of images is too small: the fewer choose, the nearer to fine-tuned the merge stays
    others = _say_how_others_fared(accepted, gained, chosen=chosen, images=target.images)
    return "probably-use", "like-judged-merges", f"Probably use it: {others}.{then}"


def _surely_gained(sources: Mapping[str, Comparison]) -> list[str]:
    return [name for name, at in sources.items() if at.gain.interval[0] > 0]


def _may_lose(at: Comparison, limit: float) -> bool:
    """Whether the measured loss exceeds the limit; a loss of one image is always accepted."""
    one_image = 1 / at.images + _ROUNDING
    return at.gain.value < -max(limit, one_image)


def _say_how_others_fared(
    accepted: str, gained: Sequence[str], *, chosen: bool, images: int
) -> str:
    """Say how earlier merges with such a verdict did."""
    found = f"no measured loss is more than {accepted}"
    right, judged = JUDGED if images >= FEW_IMAGES else JUDGED_FEW
    if not chosen:
        found = f"the loss is surely within {accepted}"
        right, judged = JUDGED_UNCHOSEN
    if gained:
        found = f"it surely gains on {' and '.join(gained)}, {found}"
    return (
        f"{found}, and {right} of {judged} judged merges like this lost at most 3 points on new"
        " images and nothing under the real shift"
    )


def _doubt(target: Comparison) -> Advice | None:
    """Doubt images on which fine-tuning surely failed, or merging surely gained a large share of
    what fine-tuning did: on its own task, a fine-tuned model leaves little to gain.
    """
    learned = target.finetuning_gain
    gain = target.gain
    if learned.interval[1] < 0:
        reason = "zeroshot-better"
        found = "the zero-shot model is surely better on them than the fine-tuned one"
        better = max(("zero-shot", "merged"), key=lambda name: target.models[name].value)
        then = f"fine-tuning failed: take the {better} model"
    elif gain.interval[0] > 0 and gain.value > _MOST_GAINED * learned.value:
        reason = "gains-as-on-a-shift"
        found = "merging surely gains on them, more than two fifths of what fine-tuning did"
        then = "use the merged model"
    else:
        return None
    question = "Are they images of what the model was fine-tuned for?"
    return "check-images", reason, f"Check the images: {found}. {question} If so, {then}."


def _what_tells_more(target: Comparison, ood: Sequence[Comparison], limit: float, most: int) -> str:
    """Say how many more images would decide whether the loss keeps to the limit, and which images
    would show a gain under the shift.
    """
    low, high = target.gain.interval
    margin = max(abs(target.gain.value + limit), _ROUNDING)
    images = target.images * ((high - low) / 2 / margin) ** 2
    told = []
    if images > most:
        told.append(f"not even {most:,} test images would tell whether the loss keeps to the limit")
    elif images > target.images:
        rounded = float(f"{images:.2g}")
        number = f"about {rounded:,.0f} test images (here {target.images:,})"
        told.append(f"{number} would tell whether the loss keeps to the limit")
    if not ood:
        told.append("100 labelled images of the shift, as `ood`, would tell what is gained there")
    elif any(at.gain.interval[0] <= 0 for at in ood):
        told.append("more images of the shift would tell what is gained there")
    text = "; ".join(told)
    return f" {text[0].upper()}{text[1:]}." if text else ""


def judge(
    path: WeightPath,
    plan: Plan,
    images: Images,
    settings: ImageOptions,
    progress: Progress,
    *,
    ood: Mapping[str, Images],
    max_loss: float,
    chosen: bool,
    most_images: int,
) -> Verdict:
    """Judge a plan on the target's test images and on `ood` sources; see `recommend`."""
    pixels = path.model.pixels([Pillow.new("RGB", (_USUAL_SIDE, _USUAL_SIDE))])
    # models that take an image as a list of patches have no fixed size
    side = min(pixels.shape[-2:]) if pixels.ndim == 4 else _USUAL_SIDE
    copies = corrupted_sets(images, side)
    scorer = Scorer(path.model, settings, path, load_bytes=_LOAD_BYTES)
    sources = {"": images, **copies, **ood}
    outcomes = scorer.score(moves_of(path, plan), sources, progress)
    right = {name: stack_correct(of).astype(np.float64) for name, of in outcomes.items()}
    reference = 1 + int(np.argmax(right[""][1:-1].sum(axis=1)))
    names = ["zero-shot", *finetuned_names(len(plan.finetuned)), "merged"]
    compared = partial(compare, models=names, reference=reference)
    target = compared("target", images, right[""], outcomes[""])
    each_copy = np.stack([right[name] for name in copies])
    corrupted = compared("corrupted", images, each_copy.mean(axis=0), views=len(copies))
    judged_ood = tuple(
        compared(name, source, right[name], outcomes[name]) for name, source in ood.items()
    )
    recommendation, reason, sentence = recommend(
        target,
        corrupted,
        judged_ood,
        max_loss=max_loss,
        same_answers=all(
            np.array_equal(of[-1].best, of[reference].best) for of in outcomes.values()
        ),
        nothing_learned=np.array_equal(outcomes[""][0].best, outcomes[""][reference].best),
        chosen=chosen,
        class_gain=_class_gain(images, right[""][-1] - right[""][reference]),
        most_images=most_images,
    )
    return Verdict(
        recommendation=recommendation,
        reason=reason,
        sentence=sentence,
        max_loss=max_loss,
        target=target,
        corrupted=corrupted,
        ood=judged_ood,
    )


def compare(
    name: str,
    images: Images,
    right: NDArray[np.float64],
    outcomes: Sequence[Outcome] = (),
    *,
    models: Sequence[str],
    reference: int,
    views: int = 1,
) -> Comparison:
    """Compare the models on one source of images; the last one is the merged model.

    Args:
        name: Its name in the verdict.
        images: The images.
        right: Share of each image's ``views`` that each model recognises, (models, images).
        outcomes: What else is known of each model, for recall.
        models: The models' names.
        reference: Position of the fine-tuned model that the others are compared with.
        views: Number of views of each image.
    """

    def paired_difference(first: int, second: int) -> Estimate:
        by_image = right[first] - right[second]
        interval = paired_accuracy_interval(by_image, views)
        return Estimate(value=by_image.mean(), interval=interval)

    shares = {
        model: Estimate(value=row.mean(), interval=mean_share(row))
        for model, row in zip(models, right, strict=True)
    }
    recall = {
        model: outcome.recall
        for model, outcome in zip(models, outcomes, strict=False)
        if outcome.recall
    }
    return Comparison(
        name=name,
        source=public_source(images.source, images.revision),
        revision=images.revision,
        images=len(images),
        models=shares,
        gain=paired_difference(-1, reference),
        finetuning_gain=paired_difference(reference, 0),
        class_names=() if isinstance(images, CaptionedImages) else images.class_names[:_EXAMPLES],
        recall=recall,
    )


def moves_of(path: WeightPath, plan: Plan) -> list[Move]:
    """Make the moves to zero-shot, to each fine-tuned model and to the merged one, which is merged
    once for all batches of images.
    """
    moves: list[Move] = [partial(WeightPath.set_alpha, alpha=0.0)]
    for before in range(len(plan.finetuned)):
        moves.append(partial(WeightPath.set_mixture, weights=(0.0,) * before + (1.0,)))
    merged = list(path.merged_weights(plan))
    moves.append(partial(WeightPath.set_merged, weights=merged))
    return moves


def _class_gain(images: Images, by_image: NDArray[np.float64]) -> float:
    """The mean difference over classes, if one class has more than twice the images of another;
    else 0.
    """
    if isinstance(images, CaptionedImages):
        return 0.0
    counts = Counter(images.labels).values()
    if max(counts) <= 2 * min(counts):
        return 0.0
    return float((by_image * class_weights(images.labels)).mean())
