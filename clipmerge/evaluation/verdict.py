"""Measure the effect of a merge: zero-shot, fine-tuned and merged model on the same images, unseen by the decision.

The weights that the merge would write are set in place, so nothing needs to be written first. `docs/verdict.md`
explains the rules.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipmerge.evaluation.conclusion import concluded
from clipmerge.evaluation.intervals import mean_share, paired, wilson
from clipmerge.evaluation.moving_model import MovingModel
from clipmerge.evaluation.probe import RELATED, UNRELATED, Probe, ScaledImages, probe, side_of
from clipmerge.evaluation.scorer import Answers, Move, Scorer
from clipmerge.evaluation.settings import EvalSettings
from clipmerge.images.dataset import LabelledImages
from clipmerge.models.building import build_model
from clipmerge.planning.merge_effect import Difference, Estimate, Gain, MergeEffect, ModelAccuracy
from clipmerge.progress import Pace, Progress

if TYPE_CHECKING:
    from clipmerge.checkpoint import Inputs
    from clipmerge.planning.plan import Plan
    from clipmerge.planning.tensors import PlanTensors

# Bytes of preprocessed images in memory at once. Moving a model costs as much as a few images, so this can be small.
_LOAD_BYTES = 256 << 20
_CLEAN = "clean"


@dataclass(frozen=True)
class Outcomes:
    """Images recognised by each model: row 0 is zero-shot, then come the fine-tuned models, the last row is merged.

    Attributes:
        clean: Shape (models, images).
        corrupted: Share of each image's unrelated corruptions under which it was recognised, same shape.
        related: The same for its related corruptions.
        corruptions: Shape (models, images of the corruption), by corruption.
        agreement: Share of the images for which the merged and the zero-shot model predict the same class.
    """

    clean: NDArray[np.bool_]
    corrupted: NDArray[np.float64]
    related: NDArray[np.float64]
    corruptions: dict[str, NDArray[np.bool_]]
    agreement: float


def measure_effect(
    inputs: Inputs,
    plan: Plan,
    tensors: PlanTensors,
    images: LabelledImages,
    settings: EvalSettings,
    *,
    max_loss: float,
    progress: Progress,
) -> MergeEffect:
    """Measure the effect of a plan on images that its decision did not see, which are in a random order."""
    model = build_model(inputs)
    scaled = ScaledImages(images, side_of(model))
    unrelated = probe(scaled, UNRELATED, enough=512, fewest=2)
    related = probe(scaled, RELATED, enough=256, fewest=1)
    sentence = f"measuring what the merge bought, on {len(images)} images held back, takes about"
    on_cpu = settings.accelerator.device.type == "cpu"
    pace = Pace(progress, partial("{} {} (--no-verdict skips it)".format, sentence) if on_cpu else None)
    scorer = Scorer(model, inputs, settings, load_bytes=_LOAD_BYTES)
    sources = {_CLEAN: images, **unrelated.sources, **related.sources}
    answers = scorer.answer(moves_of(plan, tensors), sources, pace)
    outcomes = outcomes_of(answers, images, unrelated, related)
    return effect_from(outcomes, images, unrelated.per_image, related.per_image, max_loss=max_loss, plan=plan)


def moves_of(plan: Plan, tensors: PlanTensors) -> list[Move]:
    """List the functions that move the model to each model compared: zero-shot, each fine-tuned one, merged."""

    def finetuned(which: int) -> Move:
        return lambda model: model.become_finetuned(which)

    def zeroshot(model: MovingModel) -> None:
        model.interpolate(0.0)

    def merged(model: MovingModel) -> None:
        model.follow(plan, tensors)

    return [zeroshot, *(finetuned(which) for which in range(len(plan.finetuned))), merged]


def outcomes_of(answers: dict[str, Answers], images: LabelledImages, unrelated: Probe, related: Probe) -> Outcomes:
    """Compare answers with labels, and with the zero-shot model's answers."""
    sources = {**unrelated.sources, **related.sources}
    corruptions = {name: answers[name] == np.asarray(source.labels) for name, source in sources.items()}
    return Outcomes(
        clean=answers[_CLEAN] == np.asarray(images.labels),
        corrupted=unrelated.mean_by_image(corruptions),
        related=related.mean_by_image(corruptions),
        corruptions=corruptions,
        agreement=float((answers[_CLEAN][-1] == answers[_CLEAN][0]).mean()),
    )


def effect_from(
    outcomes: Outcomes, images: LabelledImages, views: int, related_views: int, *, max_loss: float, plan: Plan
) -> MergeEffect:
    """Combine accuracies, intervals and the conclusion; ``views`` counts the corruptions of each image."""
    zeroshot, *finetuned, merged = [_accuracy(outcomes, model) for model in range(len(outcomes.clean))]
    counts = Counter(images.labels)
    reference = int(np.argmax(outcomes.clean[1:-1].sum(axis=1)))
    over_finetuned, over_zeroshot = _gain(outcomes, 1 + reference, views), _gain(outcomes, 0, views)
    conclusion = concluded(
        zeroshot=zeroshot,
        finetuned=finetuned[reference],
        merged=merged,
        over_finetuned=over_finetuned,
        over_zeroshot=over_zeroshot,
        images=len(images),
        max_loss=max_loss,
    )
    return MergeEffect(
        source=images.source,
        revision=images.revision,
        images=len(images),
        classes=len(images.class_names),
        classes_without_images=len(images.class_names) - len(counts),
        classes_with_one_image=sum(count == 1 for count in counts.values()),
        corruptions_per_image=views,
        related=RELATED,
        related_per_image=related_views,
        max_loss=max_loss,
        zeroshot=zeroshot,
        finetuned=tuple(finetuned),
        reference=reference,
        merged=merged,
        over_finetuned=over_finetuned,
        over_zeroshot=over_zeroshot,
        agreement=_estimate(outcomes.agreement, len(images)),
        recommendation=conclusion.recommendation,
        verdict=conclusion.verdict,
        reason=conclusion.reason,
        warnings=conclusion.warnings,
    )


def _accuracy(outcomes: Outcomes, model: int) -> ModelAccuracy:
    return ModelAccuracy(
        clean=_estimate(float(outcomes.clean[model].mean()), outcomes.clean.shape[1]),
        corrupted=_mean_estimate(outcomes.corrupted[model]),
        related=_mean_estimate(outcomes.related[model]),
        corruptions={
            name: _estimate(float(right[model].mean()), right.shape[1]) for name, right in outcomes.corruptions.items()
        },
    )


def _estimate(share: float, images: int) -> Estimate:
    return Estimate(value=share, interval=wilson(share, images))


def _mean_estimate(by_image: NDArray[np.float64]) -> Estimate:
    return Estimate(value=float(by_image.mean()), interval=mean_share(by_image))


def _gain(outcomes: Outcomes, other: int, views: int) -> Gain:
    clean = outcomes.clean.astype(np.float64)
    return Gain(
        clean=_difference(clean[-1] - clean[other]),
        corrupted=_difference(outcomes.corrupted[-1] - outcomes.corrupted[other], views),
    )


def _difference(by_image: NDArray[np.float64], views: int = 1) -> Difference:
    return Difference(value=float(by_image.mean()), interval=paired(by_image, views))
