"""Measure the effect of a merge: zero-shot, fine-tuned and merged model on the same images, unseen
by the decision.

The weights that the merge would write are set in place, so nothing needs to be written first.
`docs/explanation/the-answer.md` explains the rules.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections import Counter
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from clipmerge.checkpoint import Inputs
from clipmerge.evaluation.conclusion import conclude
from clipmerge.evaluation.moving_model import MovingModel
from clipmerge.evaluation.probe import RELATED, UNRELATED, ScaledImages, input_side, probe
from clipmerge.evaluation.scorer import Move, Scorer, stack_correct
from clipmerge.images.image_set import CaptionedImages, LabelledImages
from clipmerge.models.building import build_model
from clipmerge.planning.measurements import HeldBackChoice
from clipmerge.planning.merge_effect import (
    THUMBNAIL,
    CaptionExample,
    Difference,
    Estimate,
    Gain,
    MergeEffect,
    ModelAccuracy,
    finetuned_names,
)
from clipmerge.planning.plan import Plan
from clipmerge.progress import Pace, Progress
from clipmerge.request import Calibration
from clipmerge.stats import (
    are_uneven,
    class_weights,
    mean_share,
    normal_interval,
    paired_accuracy_interval,
    wilson,
)
from clipmerge.types import Json

# Bytes of preprocessed images in memory at once. Moving a model costs as much as a few images, so
# this can be small.
_LOAD_BYTES = 256 << 20
_CLEAN = "clean"


def measure_effect(
    inputs: Inputs,
    plan: Plan,
    images: LabelledImages | CaptionedImages,
    settings: Calibration,
    *,
    max_loss: float,
    choosers: int = 0,
    learned: bool = False,
    choice: HeldBackChoice | None = None,
    progress: Progress,
) -> MergeEffect:
    """Measure the effect of a plan on images that it was not learned from, which are in a random
    order; ``choosers`` of them chose how far it goes.

    Of images with captions, the accuracy of an image is the mean of two shares: whether its best
    caption is its own, and of its captions those whose best image it is.

    ``learned`` says whether the plan has learned coefficients, ``choice`` how held-out images chose
    how far they go.
    """
    model = build_model(inputs)
    scaled = ScaledImages(images, input_side(model))
    has_captions = isinstance(images, CaptionedImages)
    # a gallery is whole under every corruption
    unrelated = probe(scaled, UNRELATED, enough=512, fewest=len(UNRELATED) if has_captions else 2)
    related = probe(scaled, RELATED, enough=256, fewest=len(RELATED) if has_captions else 1)
    scorer = Scorer(model, inputs, settings, load_bytes=_LOAD_BYTES)
    sentence = f"measuring the effect of the merge, on {len(images)} images held back, takes about"
    pace = Pace(progress, scorer.device, sentence, " (`verdict=False` skips it)")
    sources: Json = {_CLEAN: images, **unrelated.sources, **related.sources}
    outcomes = scorer.score(moves_of(plan), sources, pace)
    # by source, shape (models, images): row 0 is zero-shot, then come the fine-tuned models, the
    # last row is merged
    right = {name: stack_correct(source_outcomes) for name, source_outcomes in outcomes.items()}
    models = outcomes[_CLEAN]
    names = ("zero-shot", *finetuned_names(len(plan.finetuned)), "merged")
    recall = {
        name: outcome.recall.model_dump()
        for name, outcome in zip(names, models, strict=True)
        if outcome.recall
    }
    clean = right.pop(_CLEAN)
    corrupted, related_right = unrelated.mean_by_image(right), related.mean_by_image(right)

    def accuracy(model: int) -> ModelAccuracy:
        return ModelAccuracy(
            clean=_share_estimate(clean[model]),
            corrupted=_mean_estimate(corrupted[model]),
            related=_mean_estimate(related_right[model]),
            corruptions={name: _share_estimate(correct[model]) for name, correct in right.items()},
        )

    def gain(other: int) -> Gain:
        return Gain(
            clean=_difference(clean[-1].astype(np.float64) - clean[other]),
            corrupted=_difference(corrupted[-1] - corrupted[other], unrelated.per_image),
        )

    zeroshot, *finetuned, merged = [accuracy(model) for model in range(len(clean))]
    reference = int(np.argmax(clean[1:-1].sum(axis=1)))
    about: Json
    if isinstance(images, CaptionedImages):
        labelled = True
        examples, thumbnails = _examples(
            images, cast(Any, models[1 + reference].best_images), cast(Any, models[-1].best_images)
        )
        count = images.caption_count
        about = {"classes": count, "captions": count}
        about |= {"examples": tuple(examples), "thumbnails": tuple(thumbnails)}
    else:
        labelled = images.labelled_by == "source"
        per_class = Counter(images.labels)
        about = {
            "classes": len(images.class_names),
            "classes_without_images": len(images.class_names) - len(per_class),
            "classes_with_one_image": list(per_class.values()).count(1),
        }
    over_finetuned, over_zeroshot = gain(1 + reference), gain(0)
    conclusion = conclude(
        finetuned=finetuned[reference],
        merged=merged,
        over_finetuned=over_finetuned,
        over_zeroshot=over_zeroshot,
        images=len(images),
        max_loss=max_loss,
        learned=learned,
        labelled=labelled,
        is_finetuned=_takes_all_of(plan, reference, inputs),
        is_zeroshot=_takes_nothing(plan, inputs),
        class_means=_class_means(images, clean[[1 + reference, -1]]) if labelled else None,
        voted=None if labelled or choice is None else _voted(choice),
    )
    return MergeEffect(
        source=images.source,
        revision=images.revision,
        images=len(images),
        choosers=choosers,
        labelled=labelled,
        corruptions_per_image=unrelated.per_image,
        related=RELATED,
        related_per_image=related.per_image,
        max_loss=max_loss,
        zeroshot=zeroshot,
        finetuned=tuple(finetuned),
        reference=reference,
        merged=merged,
        over_finetuned=over_finetuned,
        over_zeroshot=over_zeroshot,
        agreement=estimate(float((models[-1].best == models[0].best).mean()), len(images)),
        recall=recall,
        **vars(conclusion),
        **about,
    )


def _examples(
    images: CaptionedImages, finetuned: NDArray[np.int64], merged: NDArray[np.int64]
) -> tuple[list[CaptionExample], list[str]]:
    """The captions of the first images with the images found, (examples, images) for each model,
    and thumbnails of all these images.
    """
    number: dict[int, int] = {}
    shown = [
        [number.setdefault(image, len(number)) for image in (own_image, *found_images.tolist())]
        for own_image, found_images in enumerate(np.concatenate([finetuned, merged], axis=1))
    ]
    count = 1 + finetuned.shape[1]
    examples = [
        CaptionExample(
            caption=captions[0],
            image=numbers[0],
            finetuned=tuple(numbers[1:count]),
            merged=tuple(numbers[count:]),
        )
        for captions, numbers in zip(images.captions, shown, strict=False)
    ]
    return examples, [_thumbnail(images.image(image)) for image in number]


def _thumbnail(image: Image) -> str:
    """A small JPEG in base64."""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG")
    return b64encode(file.getvalue()).decode()


def _takes_all_of(plan: Plan, which: int, inputs: Inputs) -> bool:
    """Whether the merged weights are those of one fine-tuned model."""
    return (
        plan.combine is None
        and all(weight == (at == which) for at, weight in enumerate(plan.weights))
        and all(layer in plan.layers for layer in inputs.layers)
        and all(entry.mask is None for entry in plan.layers.values())
        and all(_is_unchanged(inputs, layer, which) for layer in _layers_without(plan, 1))
    )


def _takes_nothing(plan: Plan, inputs: Inputs) -> bool:
    """Whether the merged weights are those of the zero-shot model."""
    return all(
        _is_unchanged(inputs, layer, which)
        for layer in _layers_without(plan, 0)
        for which in range(len(inputs.finetuned))
    )


def _layers_without(plan: Plan, alpha: float) -> list[str]:
    """The layers that have a coefficient other than this one."""
    layers = plan.layers.items()
    return [name for name, entry in layers if {entry.alpha, *(entry.alpha_range or ())} != {alpha}]


def _is_unchanged(inputs: Inputs, layer: str, which: int) -> bool:
    return all(
        torch.equal(inputs.theta_0(name), inputs.theta_1(name, which=which))
        for name in inputs.merged_layers[layer]
    )


def _class_means(
    images: LabelledImages | CaptionedImages, right: NDArray[Any]
) -> tuple[float, float] | None:
    """Two models' mean accuracies over classes, from (models, images), if classes are uneven."""
    if isinstance(images, CaptionedImages) or not are_uneven(images.labels):
        return None
    finetuned, merged = (right * class_weights(images.labels)).mean(axis=1)
    return float(finetuned), float(merged)


def moves_of(plan: Plan) -> list[Move]:
    """List the functions that move the model to each model compared: zero-shot, each fine-tuned
    one, merged.
    """
    finetuned = [
        partial(MovingModel.set_finetuned, which=which) for which in range(len(plan.finetuned))
    ]
    return [
        partial(MovingModel.interpolate, alpha=0.0),
        *finetuned,
        partial(MovingModel.set_plan, plan=plan),
    ]


def estimate(share: float, images: int) -> Estimate:
    """A share of images, with its interval."""
    return Estimate(value=share, interval=wilson(share, images))


def _share_estimate(right: NDArray[Any]) -> Estimate:
    """The mean of one answer per image, right or wrong, or of one share per image."""
    if right.dtype == np.bool_:
        return estimate(float(right.mean()), len(right))
    return _mean_estimate(right)


def _voted(choice: HeldBackChoice) -> Difference:
    """What the merge costs by the votes that chose it."""
    mean = choice.accuracy - choice.finetuned_accuracy
    return Difference(value=mean, interval=normal_interval(mean, choice.loss_error or 0.0))


def _mean_estimate(by_image: NDArray[np.float64]) -> Estimate:
    return Estimate(value=float(by_image.mean()), interval=mean_share(by_image))


def _difference(by_image: NDArray[np.float64], views: int = 1) -> Difference:
    return Difference(
        value=float(by_image.mean()), interval=paired_accuracy_interval(by_image, views)
    )
