"""Judge a merge on images from which nothing was learned.

The merge is compared with the zero-shot model, the fine-tuned model and plain interpolation, before
anything is written. `recommend` has the rules, and `docs/how-to/verdict.md` explains them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from clipmerge.evaluation.corruptions import corrupted_sets
from clipmerge.evaluation.scorer import Move, Scorer, stack_correct
from clipmerge.evaluation.tradeoff import (
    gains_over_curve,
    mean_accuracy,
    mean_estimate,
    question_of,
)
from clipmerge.images.image_set import CaptionedImages, Images
from clipmerge.learning.interpolate import WeightPath
from clipmerge.options import ImageOptions
from clipmerge.planning.plan import Plan, public_source
from clipmerge.planning.record import (
    QUESTIONS,
    Answer,
    Comparison,
    Estimate,
    Question,
    Verdict,
    finetuned_names,
)
from clipmerge.progress import Progress
from clipmerge.stats import class_weights, mean_share, paired_accuracy_interval
from clipmerge.types import Recommendation

#: Alphas of plain interpolation that are scored beside a merge.
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Side, in pixels, of a blank image that is preprocessed to find the size of a model's input.
_USUAL_SIDE = 224
# Most bytes of preprocessed images in memory at once. Few are enough, because setting a model's
# weights takes only as long as scoring a few images.
_LOAD_BYTES = 256 << 20
# Tolerance when accuracies are compared. They are ratios of counts, so rounding errors are far
# smaller.
_ROUNDING = 1e-9
# If merging gains more than this share of the gain by fine-tuning, the images may be of a shift. Of
# six merges that were surely better on their target, five had a share of 0.36 or less, and one,
# where fine-tuning hardly helped, had 1.1. On images of a shift, the share was at least 0.49.
_MOST_CHANGED = 0.4
# Number of classes in the example prompts of a model card.
_EXAMPLES = 3
#: A recommendation, its reason as a word for programs, and both as a sentence.
Advice = tuple[Recommendation, str, str]


def recommend(
    target: Comparison,
    corrupted: Comparison,
    ood: Sequence[Comparison] = (),
    *,
    max_loss: float,
    same_answers: bool = False,
    nothing_learned: bool = False,
    images_chose: bool,
    class_change: float = 0.0,
    better_alpha: float | None = None,
) -> Advice:
    """Return a recommendation for a merge, from the first of the rules that applies.

    Args:
        target: The models on the target's images.
        corrupted: The models on the same images, corrupted.
        ood: The models on each ``--ood`` source.
        max_loss: Accepted loss of accuracy, in points.
        same_answers: Whether the merged and the fine-tuned model give the same answer on every
            image.
        nothing_learned: Whether fine-tuning changed no answer on the target's images.
        images_chose: Whether held-out images chose how far the merge goes.
        class_change: Accuracy of the merged minus that of the fine-tuned model, as a mean over
            classes; 0 if the classes have similar sizes.
        better_alpha: Alpha of plain interpolation that is surely better than the merge, if any.
    """
    limit = max_loss / 100 + _ROUNDING
    points = f"{max_loss:g} points (`max_loss`)"
    if advice := _suspect_images(target):
        return advice
    if better_alpha is not None:
        written = f"`clipmerge merge ZEROSHOT FINETUNED --output DIR --alpha {better_alpha:g}`"
        text = f"plain interpolation is surely better than this merge. {written} writes it."
        return "use-alpha", "plain-better", f"Use alpha {better_alpha:g}: {text}"
    at_home = {"your images": target}
    # if fine-tuning did not surely help, the images may be of a shift, and corruptions say little
    if target.finetuning_change.interval[0] > 0:
        at_home["corruptions of your images"] = corrupted
    shifts = {each.name: each for each in ood}
    sources = {"your images": target} | shifts
    if lost := _surely_lost(sources, limit):
        text = f"the merged model surely loses more than {points} on {' and '.join(lost)}."
        return "keep-finetuned", "loses", f"Keep the fine-tuned model: {text}"
    if same_answers:
        text = "the merged model gives the fine-tuned one's answer on every image."
        return "either", "same-answers", f"Either will do: {text}"
    gained_at_home = _surely_gained(at_home)
    gained = gained_at_home + _surely_gained(shifts)
    is_kept = target.change.interval[0] >= -limit
    unclear = [name for name, at in sources.items() if _may_lose(at, limit)]
    if not (images_chose or is_kept or unclear):
        unclear.append("your images")
    if class_change < -limit:
        unclear.append("the rarer classes")
    loss = ""
    if lost := _surely_lost(sources):
        loss = f" The merged model surely loses on {' and '.join(lost)}."
    then = loss + _suggest_more_images(ood, is_kept=is_kept)
    if unclear:
        text = f"the merged model may lose more than {points} on {' and '.join(unclear)}"
        return "too-few-images", "unclear-loss", f"Too few images: {text}.{then}"
    is_beyond = any(at.change.value < -limit for at in sources.values())
    accepted = "one image" if is_beyond else points
    kept = f"no measured loss is more than {accepted}"
    # a gain on a shift says nothing about the target: the true loss there may exceed the measured
    if gained_at_home or (gained and is_kept):
        text = f"the merged model is surely better on {' and '.join(gained)}, and {kept}"
        return "use", "better", f"Use it: {text}.{loss}"
    if max(map(abs, target.finetuning_change.interval + target.change.interval)) < limit:
        text = f"on your images fine-tuning and merging surely change less than {points}."
        return "either", "little-changed", f"Either will do: {text}{loss}"
    # if answers changed, an equal accuracy is no reason to doubt the images: it is as frequent on
    # the target as on a shift
    if nothing_learned or target.finetuning_change.value < 0:
        text = "as measured, fine-tuning did not help on your images"
        return "too-few-images", "nothing-learned", f"Too few images: {text}.{then}"
    # if images chose how far the merge goes, a few are enough: the fewer they are, the nearer to
    # fine-tuned the merge stays
    text = kept if images_chose else f"the loss is surely within {points}"
    if gained:
        text = f"it is surely better on {' and '.join(gained)}, and {text}"
    return "probably-use", "little-lost", f"Probably use it: {text}.{then}"


def _surely_gained(sources: Mapping[str, Comparison]) -> list[str]:
    return [name for name, at in sources.items() if at.change.interval[0] > 0]


def _surely_lost(sources: Mapping[str, Comparison], limit: float = 0.0) -> list[str]:
    return [name for name, at in sources.items() if at.change.interval[1] < -limit]


def _may_lose(at: Comparison, limit: float) -> bool:
    """Whether the measured accuracy drops by more than the limit and by more than one image."""
    one_image = 1 / at.images + _ROUNDING
    return at.change.value < -max(limit, one_image)


def _suspect_images(target: Comparison) -> Advice | None:
    """Advise to check the images if they do not seem to be of the target, else return ``None``.

    There are two signs. The zero-shot model is surely better than the fine-tuned one. Or merging
    surely helps, and more than `_MOST_CHANGED` times as much as fine-tuning did: on its own task,
    fine-tuning leaves less to gain.
    """
    learned = target.finetuning_change
    change = target.change
    if learned.interval[1] < 0:
        reason = "zeroshot-better"
        found = "the zero-shot model is surely better on them than the fine-tuned one"
        better = max(("zero-shot", "merged"), key=lambda name: target.models[name].value)
        then = f"fine-tuning failed, or the two are swapped: take the {better} model"
    elif change.interval[0] > 0 and change.value > _MOST_CHANGED * learned.value:
        reason = "better-as-on-a-shift"
        found = "merging surely helps on them, more than two fifths as much as fine-tuning did"
        then = "use the merged model"
    else:
        return None
    question = "Are they images of what the model was fine-tuned for?"
    return "check-images", reason, f"Check the images: {found}. {question} If so, {then}."


def _suggest_more_images(ood: Sequence[Comparison], *, is_kept: bool) -> str:
    """Name the further images that would show the loss on the target or the change under shift."""
    advice = []
    if not is_kept:
        advice.append(
            "A `sweep` on more labelled images would show whether the loss is within the limit."
        )
    if not ood:
        advice.append("100 labelled images of the shift, as `ood`, would show the change there.")
    elif any(at.change.interval[0] <= 0 for at in ood):
        advice.append("More images of the shift would show the change there.")
    return "".join(f" {sentence}" for sentence in advice)


def judge(
    path: WeightPath,
    plan: Plan,
    images: Images,
    settings: ImageOptions,
    progress: Progress,
    *,
    ood: Mapping[str, Images],
    max_loss: float,
    images_chose: bool,
    test_images_chose: bool,
) -> Verdict:
    """Return the verdict on a plan, from test images of the target and of `ood` sources.

    Plain interpolation is scored on the same images, but not on corrupted ones.

    Args:
        path: The model.
        plan: The plan of the merge.
        images: Test images of the target.
        settings: Options about images.
        progress: Receives the progress.
        ood: Test images of each ``--ood`` source, by name.
        max_loss: Accepted loss of accuracy, in points.
        images_chose: Whether held-out images chose how far the merge goes.
        test_images_chose: Whether some of the test images were among them.
    """
    pixels = path.model.pixels([Pillow.new("RGB", (_USUAL_SIDE, _USUAL_SIDE))])
    # models that take an image as a list of patches have no fixed size
    copies = corrupted_sets(images, min(pixels.shape[-2:]) if pixels.ndim == 4 else _USUAL_SIDE)
    sources = {"target": images, **ood}
    plain_moves = [partial(WeightPath.set_alpha, alpha=alpha) for alpha in ALPHAS[1:]]
    scorer_of = partial(Scorer, path.model, settings, progress, path=path, load_bytes=_LOAD_BYTES)
    plain = scorer_of(sources).score(plain_moves)
    outcomes = scorer_of(sources | copies).score(moves_to_models(path, plan))
    right = {name: stack_correct(of).astype(np.float64) for name, of in outcomes.items()}
    # rows: zero-shot, which is alpha 0; the other alphas; merged
    curves = {
        name: np.vstack([right[name][0], stack_correct(plain[name]), right[name][-1]])
        for name in sources
    }
    # the fine-tuned model that is most accurate on the target
    reference = 1 + int(np.argmax(right["target"][1:-1].sum(axis=1)))
    names = ["zero-shot", *finetuned_names(len(plan.finetuned)), "merged"]
    questions = {name: question_of(source, [images]) for name, source in ood.items()}
    target, *shifts = (
        compare(
            name,
            source,
            right[name],
            models=names,
            reference=reference,
            recall={
                model: outcome.recall
                for model, outcome in zip(names, outcomes[name], strict=True)
                if outcome.recall
            },
            question=questions.get(name),
            curve=tuple(curves[name][:-1].mean(axis=1).tolist()),
        )
        for name, source in sources.items()
    )
    each_copy = np.stack([right[name] for name in copies]).mean(axis=0)
    corrupted = compare(
        "corrupted", images, each_copy, models=names, reference=reference, views=len(copies)
    )
    answers = _answer_questions(curves, questions | {"target": "target"}, plan.seed)
    least = target.models[names[reference]].value - max_loss / 100 - _ROUNDING
    best, is_better = _best_plain(answers, least)

    recommendation, reason, sentence = recommend(
        target,
        corrupted,
        shifts,
        max_loss=max_loss,
        same_answers=all(
            np.array_equal(of[-1].best, of[reference].best) for of in outcomes.values()
        ),
        nothing_learned=np.array_equal(
            outcomes["target"][0].best, outcomes["target"][reference].best
        ),
        images_chose=images_chose,
        class_change=_class_change(images, right["target"][-1] - right["target"][reference]),
        better_alpha=ALPHAS[best] if is_better else None,
    )
    return Verdict(
        recommendation=recommendation,
        reason=reason,
        sentence=f"{sentence} {_describe_best_plain(answers, best)}",
        max_loss=max_loss,
        alphas=ALPHAS,
        best_alpha=ALPHAS[best],
        chose=test_images_chose,
        target=target,
        corrupted=corrupted,
        ood=tuple(shifts),
        answers=answers,
    )


def _answer_questions(
    curves: Mapping[str, NDArray[np.float64]], questions: Mapping[str, Question], seed: int
) -> dict[Question, Answer]:
    """Average the accuracies of the sources that answer each question, and compute its gain.

    Args:
        curves: Whether each image is recognised, at each of `ALPHAS` and by the merge, by source:
            (alphas + 1, images).
        questions: The question that each source answers.
        seed: Seed of the resamples.
    """
    answers: dict[Question, Answer] = {}
    for question in QUESTIONS:
        group = [scored for name, scored in curves.items() if questions[name] == question]
        if not group:
            continue
        gain = None
        if question != "target":
            (gain,) = gains_over_curve([curves["target"]], group, len(ALPHAS), seed=seed)
        curve = mean_accuracy(group)[:-1]
        merged = mean_estimate([right[-1] for right in group])
        answers[question] = Answer(merged=merged, curve=tuple(curve.tolist()), gain=gain)
    return answers


def _best_plain(answers: Mapping[Question, Answer], least: float) -> tuple[int, bool]:
    """Find `Verdict.best_alpha` among the alphas that have at least the accuracy ``least`` on the
    target; if none has, among all.

    Returns:
        Its position in `ALPHAS`; and whether it is surely better than the merge under shift or, if
        there is no shift, on other tasks.
    """
    target, *others = answers.values()
    deciding = others[0] if others else target
    every = range(len(ALPHAS))
    kept = [at for at in every if target.curve[at] >= least]
    best = max(kept or every, key=lambda at: (deciding.curve[at], target.curve[at]))
    is_surely_worse = deciding.gain is not None and deciding.gain.interval[1] < 0
    return best, is_surely_worse and deciding.curve[best] > deciding.merged.value


def _describe_best_plain(answers: Mapping[Question, Answer], best: int) -> str:
    """Report the accuracies of the best plain alpha, and the gains of the merge."""
    shares = []
    gains = []
    for question, answer in answers.items():
        where = QUESTIONS[question]
        shares.append(f"{100 * answer.curve[best]:.{answer.merged.digits}f}% {where}")
        if answer.gain:
            gains.append(f"{answer.gain.as_difference()} {where}")
    text = f"Best plain alpha {ALPHAS[best]:g}: {', '.join(shares)}."
    return f"{text} Gain: {', '.join(gains)}." if gains else text


def compare(
    name: str,
    images: Images,
    right: NDArray[np.float64],
    *,
    models: Sequence[str],
    reference: int,
    views: int = 1,
    **about: Any,
) -> Comparison:
    """Compare the models on one source of images. The last of the models is the merged one.

    Args:
        name: Name of the source in the verdict.
        images: The images.
        right: Share of each image's ``views`` that each model recognises, (models, images).
        models: The models' names.
        reference: Position of the fine-tuned model with which the others are compared.
        views: Number of views of each image.
        **about: Further fields of the comparison.
    """

    def difference(first: int, second: int) -> Estimate:
        by_image = right[first] - right[second]
        interval = paired_accuracy_interval(by_image, views)
        return Estimate(value=by_image.mean(), interval=interval)

    return Comparison(
        name=name,
        source=public_source(images.source, images.revision),
        revision=images.revision,
        images=len(images),
        models={
            model: Estimate(value=row.mean(), interval=mean_share(row))
            for model, row in zip(models, right, strict=True)
        },
        change=difference(-1, reference),
        finetuning_change=difference(reference, 0),
        class_names=() if isinstance(images, CaptionedImages) else images.class_names[:_EXAMPLES],
        **about,
    )


def moves_to_models(path: WeightPath, plan: Plan) -> list[Move]:
    """Return functions that set the weights to those of the zero-shot, of each fine-tuned and of
    the merged model. The merged weights are computed once, here.
    """
    moves: list[Move] = [partial(WeightPath.set_alpha, alpha=0.0)]
    for before in range(len(plan.finetuned)):
        moves.append(partial(WeightPath.set_mixture, weights=(0.0,) * before + (1.0,)))
    merged = list(path.merged_weights(plan))
    moves.append(partial(WeightPath.set_merged, weights=merged))
    return moves


def _class_change(images: Images, by_image: NDArray[np.float64]) -> float:
    """Average a difference, (images,), over classes if their sizes differ more than twofold; else
    return 0.
    """
    if isinstance(images, CaptionedImages):
        return 0.0
    counts = Counter(images.labels).values()
    if max(counts) <= 2 * min(counts):
        return 0.0
    return float((by_image * class_weights(images.labels)).mean())
