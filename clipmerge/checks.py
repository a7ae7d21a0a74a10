"""Sanity before learning: inputs that would make any answer wrong, found cheaply.

A check is a function that yields findings. What follows from a finding depends on its kind alone:
an error before learning, a headline in place of an advice, or a warning. To add a
check, yield its finding from one of the functions here (or pass it to `settle`), enter its kind in
`clipmerge.planning.merge_effect.CONSEQUENCES`, and its sentence in `clipmerge.report.text`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipmerge.checkpoint.ancestry import ancestry_of, are_equal
from clipmerge.errors import CheckpointError, DataError
from clipmerge.planning.finding import Finding
from clipmerge.planning.merge_effect import CONSEQUENCES, Estimate, Recommendation
from clipmerge.report.text import text_of

if TYPE_CHECKING:
    from clipmerge.checkpoint import Inputs
    from clipmerge.evaluation.settings import EvalSettings
    from clipmerge.images.dataset import LabelledImages
    from clipmerge.progress import Progress

#: Images that are classified before learning: half a per cent of the passes that learning takes.
PROBE = 128
_WORDNET = re.compile(r"n\d{8}")
_NUMBERED = re.compile(r"\d+[._ -]+\D.*")
_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True)
class EndAccuracy:
    """How well both ends recognise some images of the target, and how those were prompted."""

    zeroshot: Estimate
    finetuned: Estimate
    images: int
    class_names: tuple[str, ...]
    prompt: str  # of the first class


def check_models(inputs: Inputs) -> Iterator[Finding]:
    """Doubt the pair, by its weights: equal, unrelated or swapped."""
    sources = [model.source for model in (*inputs.finetuned, inputs.zeroshot)]
    for which, source in enumerate(sources[:-1]):
        equal = next(
            (other for other in (-1, *range(which)) if are_equal(inputs, which, other)), None
        )
        if equal is not None:
            yield Finding.of(
                "equal-models", first=sources[equal], second=source, with_zeroshot=equal == -1
            )
            continue
        found = ancestry_of(inputs, which)
        if found.relation != "related":
            yield Finding.of(
                found.relation,
                zeroshot=inputs.zeroshot.source,
                finetuned=source,
                evidence=list(found.evidence),
            )


def check_answers(ends: EndAccuracy) -> Iterator[Finding]:
    """Doubt the class names, by how well both ends recognise the target with them."""
    chance = 1 / len(ends.class_names)
    low, high = ends.finetuned.interval
    halfway = (1 + chance) / 2
    values = {
        "accuracy": ends.finetuned.value,
        "images": ends.images,
        "classes": len(ends.class_names),
        "prompt": ends.prompt,
    }
    look = odd_names(ends.class_names)
    # With few images a good model may seem to guess: then nothing is said. Names that the zero-shot
    # model surely knows are not at fault.
    if low <= chance and high < halfway and ends.zeroshot.interval[0] <= chance:
        yield Finding.of("at-chance", **values)
    elif look and low < halfway:
        yield Finding.of("odd-names", look=look, example=ends.class_names[0], **values)
    elif ends.zeroshot.interval[0] <= chance < low and ends.zeroshot.interval[1] < halfway:
        yield Finding.of(
            "zeroshot-at-chance",
            accuracy=ends.zeroshot.value,
            images=ends.images,
            classes=len(ends.class_names),
            prompt=ends.prompt,
        )


def odd_names(names: Sequence[str]) -> str:
    """How class names look unlike names: ``numbers``, ``wordnet``, ``numbered`` or ``pattern``;
    empty if they look like names.

    Example:
        >>> [odd_names(names) for names in (["0", "1"], ["class a", "class b"], ["cat", "car"])]
        ['numbers', 'pattern', '']
    """
    if all(name.strip().isdecimal() for name in names):
        return "numbers"
    if all(_WORDNET.fullmatch(name) for name in names):
        return "wordnet"
    if all(_NUMBERED.fullmatch(name) for name in names):
        return "numbered"
    shared = 0
    for letters in zip(*names, strict=False):
        if len(set(letters)) > 1:
            break
        shared += 1
    has_prefix = len(names) > 1 and shared >= 3
    return "pattern" if has_prefix and not any(_WORD.search(n[shared:]) for n in names) else ""


def end_accuracy(
    inputs: Inputs, images: LabelledImages, settings: EvalSettings, progress: Progress
) -> EndAccuracy:
    """Classify a few images with the zero-shot and the first fine-tuned model, by one template."""
    from dataclasses import replace
    from functools import partial

    import numpy as np

    from clipmerge.evaluation.moving_model import MovingModel
    from clipmerge.evaluation.scorer import Scorer
    from clipmerge.images.prompts import templates_for
    from clipmerge.models.building import build_model
    from clipmerge.stats import wilson

    template = templates_for(settings.templates, images.templates)[0]
    scorer = Scorer(build_model(inputs), inputs, replace(settings, templates=(template,)))
    moves = [
        partial(MovingModel.interpolate, alpha=0.0),
        partial(MovingModel.become_finetuned, which=0),
    ]
    (answers,) = scorer.answer(moves, {"checked": images}, progress).values()
    zeroshot, finetuned = (
        Estimate(value=float(row.mean()), interval=wilson(float(row.mean()), len(row)))
        for row in answers == np.asarray(images.labels)
    )
    prompt = template.format(images.class_names[0])
    return EndAccuracy(zeroshot, finetuned, len(images), images.class_names, prompt)


def settle(
    findings: Iterable[Finding], *, allow: Collection[str] = (), strict: bool = False
) -> list[Finding]:
    """Raise the first finding that is an error, and return the others.

    ``allow`` names kinds to go on with in spite of a check; ``strict`` makes all others errors.
    """
    settled = list(findings)
    for finding in settled:
        if finding.kind in allow:
            continue
        error = DataError if is_about_names(finding) else CheckpointError
        if CONSEQUENCES.get(finding.kind) == "error":
            raise error(f"{text_of(finding)}; nothing was written (`allow={finding.kind}` goes on)")
        if strict:
            raise error(f"{text_of(finding)}; nothing was written (`strict=True`)")
    return settled


def is_about_names(finding: Finding) -> bool:
    """Whether images and class names are in doubt, not the checkpoints."""
    return CONSEQUENCES.get(finding.kind) == "check-names" or finding.kind == "zeroshot-at-chance"


def headline_of(
    findings: Iterable[Finding], allow: Collection[str] = ()
) -> tuple[Recommendation, Finding] | None:
    """The advice in place of another, and its reason, if a finding makes every advice doubtful."""
    for finding in findings:
        consequence = CONSEQUENCES.get(finding.kind, "warning")
        if finding.kind not in allow and consequence not in ("error", "warning"):
            return consequence, finding  # type: ignore[return-value]
    return None
