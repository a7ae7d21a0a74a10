"""Sanity before learning: inputs that would make any answer wrong, found cheaply.

A check is a function that yields findings. What follows from a finding depends on its kind alone:
an error before learning, or a warning. To add a check, yield its finding from one of the functions
here (or pass it to `raise_errors`), enter its kind in `clipmerge.finding.CHECKS`, and its sentence
in `clipmerge.report.text`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipmerge.checkpoint.ancestry import UNRELATED, are_equal, cosines_of
from clipmerge.errors import CheckpointError, DataError, printable
from clipmerge.finding import CHECKS, Finding
from clipmerge.images.store import Pixels
from clipmerge.planning.verdict import Estimate
from clipmerge.report.text import text_of
from clipmerge.stats import paired_accuracy_interval, wilson
from clipmerge.types import Json, Names

if TYPE_CHECKING:
    from clipmerge.checkpoint import Inputs
    from clipmerge.evaluation.scorer import Images
    from clipmerge.images import ImageSet
    from clipmerge.models import ImageTextModel
    from clipmerge.progress import Progress
    from clipmerge.request import Calibration

#: Images that are classified before learning: half a per cent of the passes that learning takes.
PROBE = 128
# Images whose pixels are looked at, and the fewest of which anything is said.
_LOOKED_AT, _FEWEST = 16, 4
# Numbers from 0 to 255 between the darkest and the brightest pixel of images that show nothing.
_BLANK = 16
# Share of the pixels that may lie outside the range of the model's preprocessing, and how far, in
# lengths of the range: interpolation overshoots a little at edges.
_OUTSIDE, _OVERSHOOT = 0.01, 0.05
# Share of a model's numbers that may stay zero-shot for want of fine-tuned ones.
_STAYING = 0.05
# Points of accuracy: a limit below it is less than one image in a thousand: a fraction was meant.
_LEAST_LIMIT = 0.1
# Letters of a prompt that are shown.
_SHOWN = 120
# Findings that doubt images and class names, not checkpoints.
_ABOUT_IMAGES = {
    "blank-images",
    "same-images",
    "pixel-range",
    "at-chance",
    "odd-names",
    "zeroshot-at-chance",
}
# A model that is right on 95% of all images is right on all of 50 in one of 13 draws.
_MANY = 50
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}
_WORDNET = re.compile(r"n\d{8}")
_NUMBERED = re.compile(r"\d+[._ -]+\D.*")
_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True)
class EndAccuracy:
    """How well both ends recognise some images, and an example of the texts to choose from."""

    zeroshot: Estimate
    finetuned: Estimate
    images: int
    names: Names  # of the classes, or the captions
    prompt: str  # of the first class, or a caption
    captions: bool = False
    keep: bool = False  # whether they are of another task
    model: str = "fine-tuned"  # name of the second in sentences
    source: str = ""  # name of the images, where there are several sources

    def note(self) -> Finding:
        """Show an example of the texts, which tells at a glance whether the names are right."""
        return Finding.of(
            "example-prompt", prompt=self.prompt, source=self.source, captions=self.captions
        )


def end_accuracy(
    images: Images,
    zeroshot: Estimate,
    finetuned: Estimate,
    templates: Sequence[str] = (),
    **about: Any,
) -> EndAccuracy:
    """Describe accuracies on images with classes, or recalls at 1 on images with captions."""
    from clipmerge.images.image_set import CaptionedImages
    from clipmerge.images.prompts import class_prompts, templates_for

    if isinstance(images, CaptionedImages):
        names = tuple(captions[0] for captions in images.captions)
        prompt = names[0]
        about["captions"] = True
    else:
        names = images.class_names
        (prompt, *_) = class_prompts(names[:1], templates_for(templates, images.templates))
    shown = printable(prompt, limit=_SHOWN)
    return EndAccuracy(zeroshot, finetuned, len(images), names, shown, **about)


def check_models(inputs: Inputs) -> Iterator[Finding]:
    """Doubt the pair, by its weights: equal, unrelated, or half missing."""
    share = _share_left_zeroshot(inputs)
    if share > _STAYING:
        yield Finding.of("half-zeroshot", source=inputs.finetuned[0].source, share=share)
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
        cosines = cosines_of(inputs, which)
        apart = [
            f"{abs(cosine):.2f} in the {tower} tower"
            for tower, cosine in cosines.items()
            if cosine < UNRELATED
        ]
        if apart:
            yield Finding.of(
                "unrelated",
                zeroshot=inputs.zeroshot.source,
                finetuned=source,
                evidence=[
                    f"the median cosine between their matrices is {' and '.join(apart)}, as between"
                    " models trained apart; fine-tuning leaves it above 0.3"
                ],
            )


def _share_left_zeroshot(inputs: Inputs) -> float:
    """Share of the numbers that fine-tuning could have changed and that stay zero-shot, because
    the fine-tuned checkpoints lack them.
    """
    if inputs.missing != "keep-zeroshot":
        return 0.0
    wanted, absent = 0, 0
    for name in inputs.zeroshot_keys:
        entry = inputs.zeroshot_entry(name)
        if entry.is_float and name in inputs.layer_of and inputs.expects(name):
            wanted += entry.size
            absent += 0 if inputs.merges(name) else entry.size
    return absent / max(1, wanted)


def check_limit(max_loss: float) -> Iterator[Finding]:
    """Doubt a limit on lost accuracy, in points, that looks like a fraction."""
    if 0 < max_loss < _LEAST_LIMIT:
        yield Finding.of("limit-in-fractions", limit=max_loss)


def check_images(images: ImageSet, model: ImageTextModel | None = None) -> Iterator[Finding]:
    """Doubt the images, by the pixels of a few: blank, all the same, or (preprocessed ones) out of
    the range of the model's own preprocessing.
    """
    last = len(images) - 1
    looked_at = sorted({at * last // (_LOOKED_AT - 1) for at in range(_LOOKED_AT)})
    if len(looked_at) < _FEWEST:
        return
    if isinstance(images.store, Pixels):
        if model is not None:
            yield from _check_range(images, images.store, looked_at, model)
        return
    shown = [np.asarray(images.image(at)) for at in looked_at]
    values = {"source": images.source, "images": len(shown)}
    darkest, brightest = min(map(np.min, shown)), max(map(np.max, shown))
    if int(brightest) - int(darkest) <= _BLANK:
        yield Finding.of("blank-images", **values, darkest=int(darkest), brightest=int(brightest))
    elif all(np.array_equal(shown[0], other) for other in shown[1:]):
        yield Finding.of("same-images", **values)


def _check_range(
    images: ImageSet, store: Pixels, looked_at: Sequence[int], model: ImageTextModel
) -> Iterator[Finding]:
    """Compare preprocessed pixels with a black and a white image that the model preprocesses."""
    from PIL import Image

    ends = model.pixels([Image.new("RGB", (64, 64), colour) for colour in ("black", "white")])
    if ends.ndim != 4:  # not of the shape that preprocessed pixels have
        return
    low, high = ends.amin(dim=(2, 3)), ends.amax(dim=(2, 3))
    low, high = low.amin(dim=0)[:, None, None], high.amax(dim=0)[:, None, None]
    pixels = store.batch(looked_at)
    margin = _OVERSHOOT * (high - low)
    outside = ((pixels < low - margin) | (pixels > high + margin)).float().mean()
    lowest, highest = float(pixels.min()), float(pixels.max())
    # what mean and deviation 0.5 make of images that have some black and some white
    is_halved = abs(lowest + 1) < 1e-3 and abs(highest - 1) < 1e-3
    is_other = is_halved and float(high.max()) > 1 + _OVERSHOOT
    if outside > _OUTSIDE or is_other:
        yield Finding.of(
            "pixel-range",
            source=images.source,
            images=len(looked_at),
            least=lowest,
            most=highest,
            low=float(low.min()),
            high=float(high.max()),
        )


def check_answers(ends: EndAccuracy) -> Iterator[Finding]:
    """Doubt the class names, or the captions, by how well both ends recognise images by them."""
    chance = 1 / len(ends.names)
    low, high = ends.finetuned.interval
    halfway = (1 + chance) / 2
    values = {
        "accuracy": ends.finetuned.value,
        "images": ends.images,
        "classes": len(ends.names),
        "prompt": ends.prompt,
        "source": ends.source,
        "captions": ends.captions,
        "keep": ends.keep,
    }
    look = odd_names(ends.names)
    # With few images a good model may seem to guess: then nothing is said. Names that the zero-shot
    # model surely knows are not at fault.
    if look and low < halfway:
        example = ends.names[0]
        yield Finding.of("odd-names", look=look, example=example, model=ends.model, **values)
    elif low <= chance and high < halfway and ends.zeroshot.interval[0] <= chance:
        yield Finding.of("at-chance", model=ends.model, **values)
    elif ends.zeroshot.interval[0] <= chance < low and ends.zeroshot.interval[1] < halfway:
        yield Finding.of("zeroshot-at-chance", **values | {"accuracy": ends.zeroshot.value})


def check_unseen(ends: EndAccuracy) -> Iterator[Finding]:
    """Note that fine-tuning may have seen the images, if the fine-tuned model recognises all of
    many and the zero-shot model surely fewer.
    """
    surely_better = ends.zeroshot.interval[1] < ends.finetuned.interval[0]
    if ends.finetuned.value == 1 and ends.images >= _MANY and surely_better:
        yield Finding.of("all-recognised", images=ends.images)


def check_task(name: str, task: Images, accuracies: Sequence[Estimate]) -> Iterator[Finding]:
    """Doubt the names of a task of ``ood``, by the best of the models that were measured on it:
    what one of them has forgotten is no fault of the names.
    """
    best = max(accuracies, key=lambda estimate: estimate.value)
    model = "best" if len(accuracies) > 1 else ""
    about: Json = {"keep": True, "model": model, "source": f"`ood` {name}"}
    yield from check_answers(end_accuracy(task, best, best, **about))


def odd_names(names: Sequence[str]) -> str:
    """How class names look unlike names: ``numbers``, ``wordnet``, ``numbered``, ``splits`` or
    ``pattern``; empty if they look like names.

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
    if all(name.strip().casefold() in _SPLITS for name in names):
        return "splits"
    shared = 0
    for letters in zip(*names, strict=False):
        if len(set(letters)) > 1:
            break
        shared += 1
    has_prefix = len(names) > 1 and shared >= 3
    return "pattern" if has_prefix and not any(_WORD.search(n[shared:]) for n in names) else ""


def check_sources(
    inputs: Inputs,
    sources: Mapping[str, Images],
    settings: Calibration,
    progress: Progress,
    *,
    max_images: int = PROBE,
    seed: int = 0,
) -> Iterator[Finding]:
    """Doubt images and class names before anything is measured: by some pixels, and by how well
    the zero-shot and the first fine-tuned model classify a few images with one template.
    """
    from clipmerge.models.building import build_model

    model = None if inputs.have_heads_only else build_model(inputs)
    samples: dict[str, Images] = {}
    for name, images in sources.items():
        yield from check_images(images, model)
        images.require_classes()
        samples[name] = images.sample(min(PROBE, max_images), seed)
    if model is None or not samples:
        return
    for ends in _end_accuracies(inputs, model, samples, settings, progress):
        progress.say(text_of(ends.note()))
        yield from check_answers(ends)


def _end_accuracies(
    inputs: Inputs,
    model: ImageTextModel,
    samples: dict[str, Images],
    settings: Calibration,
    progress: Progress,
) -> Iterator[EndAccuracy]:
    """Classify images by one prompt of each class, or by a caption of each image."""
    from functools import partial

    from clipmerge.evaluation.scorer import Scorer
    from clipmerge.images.image_set import CaptionedImages
    from clipmerge.images.prompts import templates_for
    from clipmerge.learning.interpolate import Path

    asked: dict[str, Images] = {}
    for name, images in samples.items():
        if isinstance(images, CaptionedImages):
            drawn = images.with_one_caption(0)
            # an image of each: the most common caption would be guessed too often by chance
            first = dict(zip(reversed(drawn.labels), reversed(range(len(drawn))), strict=True))
            asked[name] = drawn.subset(sorted(first.values()))
        else:
            templates = templates_for(settings.templates, images.templates)[:1]
            asked[name] = replace(images, templates=templates)
    # one batch: on small models most of the cost is that of each
    size = settings.batch_size or PROBE
    scorer = Scorer(model, inputs, replace(settings, templates=(), batch_size=size))
    moves = [
        partial(Path.set_alpha, alpha=0.0),
        partial(Path.set_finetuned, which=0),
    ]
    for name, outcomes in scorer.score(moves, asked, progress).items():
        zeroshot, finetuned = (
            Estimate(value=share, interval=wilson(share, len(outcome.correct)))
            for outcome in outcomes
            for share in [float(outcome.correct.mean())]
        )
        ends = end_accuracy(asked[name], zeroshot, finetuned, source=name)
        yield replace(ends, captions=isinstance(samples[name], CaptionedImages))


def check_shifts(
    id_gains: Mapping[str, NDArray[np.float64]], ood_gains: Mapping[str, NDArray[np.float64]]
) -> tuple[Finding, ...]:
    """Doubt the sources of a sweep, by the fine-tuned model's gain over the zero-shot one on each
    image: what it was fine-tuned for cannot be where it lost, and lose where it gained.
    """
    low = {name: paired_accuracy_interval(gain) for name, gain in ood_gains.items()}
    high = {name: paired_accuracy_interval(gain) for name, gain in id_gains.items()}
    if all(end < 0 for _, end in high.values()) and all(end > 0 for end, _ in low.values()):
        return (Finding.of("swapped-sources", id=list(id_gains), ood=list(ood_gains)),)
    return ()


def raise_errors(findings: Iterable[Finding], *, allow: Collection[str] = ()) -> list[Finding]:
    """Raise the first finding that is an error, and return the others.

    ``allow`` names kinds to go on with in spite of a check.
    """
    settled = list(findings)
    for finding in settled:
        if finding.kind in allow:
            continue
        error = DataError if finding.kind in _ABOUT_IMAGES else CheckpointError
        if CHECKS.get(finding.kind) == "error":
            raise error(f"{text_of(finding)}; nothing was written (`allow={finding.kind}` goes on)")
    return settled
