"""Measure the effect of a merge: zero-shot, fine-tuned and merged model on the same images, unseen
by the decision.

The weights that the merge would write are set in place, so nothing needs to be written first.
`docs/explanation/the-answer.md` explains the rules.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
from numpy.typing import NDArray

from clipmerge.checkpoint import Inputs
from clipmerge.evaluation.conclusion import conclude
from clipmerge.evaluation.moving_model import MovingModel
from clipmerge.evaluation.probe import RELATED, UNRELATED, ScaledImages, probe, side_of
from clipmerge.evaluation.scorer import Move, Scorer
from clipmerge.evaluation.settings import EvalSettings
from clipmerge.images.dataset import LabelledImages
from clipmerge.models.building import build_model
from clipmerge.planning.merge_effect import Difference, Estimate, Gain, MergeEffect, ModelAccuracy
from clipmerge.planning.plan import Plan
from clipmerge.progress import Pace, Progress
from clipmerge.stats import mean_share, paired_accuracy_interval, wilson

# Bytes of preprocessed images in memory at once. Moving a model costs as much as a few images, so
# this can be small.
_LOAD_BYTES = 256 << 20
_CLEAN = "clean"


def measure_effect(
    inputs: Inputs,
    plan: Plan,
    images: LabelledImages,
    settings: EvalSettings,
    *,
    max_loss: float,
    learned: bool = False,
    progress: Progress,
) -> MergeEffect:
    """Measure the effect of a plan on images that its decision did not see, which are in a random
    order.

    ``learned`` says whether the plan has learned coefficients.
    """
    model = build_model(inputs)
    scaled = ScaledImages(images, side_of(model))
    unrelated = probe(scaled, UNRELATED, enough=512, fewest=2)
    related = probe(scaled, RELATED, enough=256, fewest=1)
    sentence = f"measuring the effect of the merge, on {len(images)} images held back, takes about"
    pace = Pace(progress, settings.context.device, sentence, " (`verdict=False` skips it)")
    scorer = Scorer(model, inputs, settings, load_bytes=_LOAD_BYTES)
    sources = {_CLEAN: images, **unrelated.sources, **related.sources}
    answers = scorer.answer(moves_of(plan), sources, pace)
    # by source, shape (models, images): row 0 is zero-shot, then come the fine-tuned models, the
    # last row is merged
    right = {name: answers[name] == np.asarray(source.labels) for name, source in sources.items()}
    clean = right.pop(_CLEAN)
    corrupted, related_right = unrelated.mean_by_image(right), related.mean_by_image(right)

    def accuracy(model: int) -> ModelAccuracy:
        return ModelAccuracy(
            clean=estimate(float(clean[model].mean()), len(images)),
            corrupted=_mean_estimate(corrupted[model]),
            related=_mean_estimate(related_right[model]),
            corruptions={
                name: estimate(float(each[model].mean()), each.shape[1])
                for name, each in right.items()
            },
        )

    def gain(other: int) -> Gain:
        return Gain(
            clean=_difference(clean[-1].astype(np.float64) - clean[other]),
            corrupted=_difference(corrupted[-1] - corrupted[other], unrelated.per_image),
        )

    zeroshot, *finetuned, merged = [accuracy(model) for model in range(len(clean))]
    counts = Counter(images.labels)
    reference = int(np.argmax(clean[1:-1].sum(axis=1)))
    over_finetuned, over_zeroshot = gain(1 + reference), gain(0)
    conclusion = conclude(
        finetuned=finetuned[reference],
        merged=merged,
        over_finetuned=over_finetuned,
        over_zeroshot=over_zeroshot,
        images=len(images),
        max_loss=max_loss,
        learned=learned,
    )
    return MergeEffect(
        source=images.source,
        revision=images.revision,
        images=len(images),
        classes=len(images.class_names),
        classes_without_images=len(images.class_names) - len(counts),
        classes_with_one_image=sum(count == 1 for count in counts.values()),
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
        agreement=estimate(float((answers[_CLEAN][-1] == answers[_CLEAN][0]).mean()), len(images)),
        recommendation=conclusion.recommendation,
        reason=conclusion.reason,
        possible_loss=conclusion.possible_loss,
        warnings=conclusion.warnings,
    )


def moves_of(plan: Plan) -> list[Move]:
    """List the functions that move the model to each model compared: zero-shot, each fine-tuned
    one, merged.
    """
    finetuned = [
        partial(MovingModel.become_finetuned, which=which) for which in range(len(plan.finetuned))
    ]
    return [
        partial(MovingModel.interpolate, alpha=0.0),
        *finetuned,
        partial(MovingModel.follow, plan=plan),
    ]


def estimate(share: float, images: int) -> Estimate:
    """A share of images, with its interval."""
    return Estimate(value=share, interval=wilson(share, images))


def _mean_estimate(by_image: NDArray[np.float64]) -> Estimate:
    return Estimate(value=float(by_image.mean()), interval=mean_share(by_image))


def _difference(by_image: NDArray[np.float64], views: int = 1) -> Difference:
    return Difference(
        value=float(by_image.mean()), interval=paired_accuracy_interval(by_image, views)
    )
