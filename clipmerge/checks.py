"""Checks of names, images and models before anything is learned from them.

Each function yields a `FailedCheck` for each fault. A fault is an error, unless the user allows the
check by name. To add a check, yield its failure here and add its name to `clipmerge.types.CHECKS`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clipmerge.errors import CheckpointError, DataError, printable
from clipmerge.layers import HEAD
from clipmerge.merging.floats import widen
from clipmerge.types import Names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipmerge.checkpoint import Inputs, Location
    from clipmerge.evaluation.scorer import Move
    from clipmerge.images.image_set import Images, ImageSource, LabelledImages
    from clipmerge.learning.interpolate import WeightPath
    from clipmerge.models import ImageTextModel
    from clipmerge.options import ImageOptions
    from clipmerge.progress import Progress

#: Number of images that both models answer before learning: half a per cent of the work.
PROBE = 128
# Number of images whose pixels are checked, and the fewest from which to conclude anything.
_LOOKED_AT, _FEWEST = 16, 4
# Largest difference, of 255, between the darkest and the brightest pixel of blank images.
_BLANK = 16
#: Two models are unrelated if the median cosine between the matrices of a tower is smaller. Models
#: trained apart are within 0.01 of 0. The furthest fine-tuning of `benchmarks/ancestry` (at
#: 7fea82b5) is above 0.3.
UNRELATED = 0.05
# Two models can only be equal if this cosine is larger.
_NEARLY_EQUAL = 0.999
# Number of entries of a matrix that are read: 64 KB in float32.
_SAMPLE = 1 << 14
# Entries of the smallest matrix that counts. The cosine of random matrices is about one over the
# root of their number of entries.
_LEAST = 256
# Number of letters of a class name or a caption in a message.
_SHOWN = 120
#: Patterns of labels that do not name a class, and a description of each.
_LOOKS = {
    r"\d+": "are numbers",
    r"n\d{8}": "are WordNet's codes",
    r"\d+[._ -]+\D.*": "begin with numbers",
    r"(?i:train|training|val|valid|validation|test|testing|dev|eval)": "are names of splits",
}
_WORD = re.compile(r"[^\W\d_]{3,}")


class FailedCheck(NamedTuple):
    """A check that failed, by the name that the user may allow, and a sentence about it."""

    check: str
    text: str


def raise_unless_allowed(
    doubts: Iterable[FailedCheck], allow: Collection[str], progress: Progress
) -> None:
    """Raise an error for the first failed check that the user did not allow. Report allowed ones as
    warnings.
    """
    for check, text in doubts:
        if check not in allow:
            about_models = check in ("equal-models", "unrelated", "swapped", "class-order")
            error = CheckpointError if about_models else DataError
            raise error(f"{text}; nothing was written (`allow={check}` goes on)")
        progress.warn(text)


def check_models(inputs: Inputs) -> Iterator[FailedCheck]:
    """Check that the models of a pair are related but not equal, and that their heads have the
    classes in the same order.
    """
    zeroshot = inputs.zeroshot.source
    for which, finetuned in enumerate(inputs.finetuned):
        source = finetuned.source
        cosines = tower_cosines(inputs, which)
        # only weights of nearly equal direction are worth reading in full
        is_near = min(cosines.values(), default=1) > _NEARLY_EQUAL
        if is_near and hold_same_weights(inputs, which):
            yield FailedCheck(
                "equal-models",
                f"{zeroshot} and {source} hold the same weights, so there is nothing to merge",
            )
            continue
        if HEAD in inputs.merged_layers:
            names = inputs.zeroshot.row_names
            yield from _check_order(zeroshot, names, source, finetuned.row_names)
        for tower, cosine in cosines.items():
            if cosine < UNRELATED:
                yield FailedCheck(
                    "unrelated",
                    f"{source} was not fine-tuned from {zeroshot}: the median cosine between the"
                    f" matrices of their {tower} towers is {abs(cosine):.2f}, as between models"
                    " trained apart; merge it with the model that it was fine-tuned from",
                )


def tower_cosines(inputs: Inputs, which: int = 0) -> dict[str, float]:
    """Compute the median cosine between the matrices of a fine-tuned checkpoint and those of the
    zero-shot one, by tower. The result is empty for an adapter, which fits every base of its shape.

    Even after long training at a high rate, the cosine between a matrix and its start is far above
    0. Between models that were trained apart it is about 0, because the order of their hidden units
    is random.
    """
    if inputs.finetuned[which].is_adapted:
        return {}
    cosines: dict[str, list[float]] = {}
    for name in filter(inputs.merges, inputs.zeroshot_keys):
        entry = inputs.zeroshot_entry(name)
        tower, _, rest = inputs.layer_of[name].partition(".")
        # a head, which is in neither tower, may be new
        if not rest or len(entry.shape) < 2 or entry.size < _LEAST:
            continue
        theta_0, theta_1 = (
            widen(checkpoint.array(key, 0, _SAMPLE), checkpoint.entries[key].dtype).astype(float)
            for checkpoint, key in _two_ends(inputs, name, which)
        )
        with np.errstate(all="ignore"):  # NaN and Inf are errors where they are merged
            # not `dot`: the threads of a BLAS would wait for others
            lengths = (theta_0 * theta_0).sum() * (theta_1 * theta_1).sum()
            cosine = float((theta_0 * theta_1).sum() / np.sqrt(lengths))
        if math.isfinite(cosine):  # not so for matrices of zeros, or with NaN or Inf
            cosines.setdefault(tower, []).append(cosine)
    return {tower: median(values) for tower, values in cosines.items()}


def hold_same_weights(inputs: Inputs, which: int) -> bool:
    """Whether a fine-tuned checkpoint and the zero-shot one have the same weights.

    Samples are compared first, because they usually show a difference.
    """
    for stop in (_SAMPLE, None):
        for name in filter(inputs.merges, inputs.zeroshot_keys):
            first, second = (
                checkpoint.array(key, 0, stop) for checkpoint, key in _two_ends(inputs, name, which)
            )
            if not np.array_equal(first, second):
                return False
    return True


def _two_ends(inputs: Inputs, name: str, which: int) -> tuple[Location, Location]:
    """Locate a parameter in the zero-shot checkpoint and in one of the fine-tuned ones."""
    zeroshot, *finetuned = inputs.locations[name]
    return zeroshot, finetuned[which]


def check_classes(images: Images, source: str, model: ImageTextModel) -> Iterator[FailedCheck]:
    """Check that images and a model's head have the classes in the same order, unless they are
    matched by name. Raise an error for captions if the model has a head.
    """
    from clipmerge.images.classes import positions_among
    from clipmerge.images.image_set import CaptionedImages

    if isinstance(images, CaptionedImages):
        if model.head is not None:
            raise DataError(
                f"{images.source}: has captions, which {source} cannot read, because it is an image"
                " classifier; give images with classes"
            )
    elif not (images.imagenet_rows or positions_among(images.class_names, model.row_names)):
        yield from _check_order(images.source, images.class_names, source, model.row_names)


def _check_order(source: str, names: Names, other: str, rows: Names) -> Iterator[FailedCheck]:
    """Check that no class has the name of another row of the head. Rows and classes are matched by
    order.
    """
    from clipmerge.images.classes import first_misplaced

    if len(names) == len(rows) and (moved := first_misplaced(names, rows)):
        place, row = moved
        yield FailedCheck(
            "class-order",
            f"'{names[place]}' is class {place} of {source}, but row {row} of the head of {other},"
            " and the two are matched by their order; put both in one order (images by `classes`)",
        )


def check_sources(
    path: WeightPath,
    sources: Mapping[str, Images],
    settings: ImageOptions,
    progress: Progress,
    *,
    seed: int = 0,
) -> Iterator[FailedCheck]:
    """Check images and class names: by the pixels of some images, and by the answers of the
    zero-shot and the first fine-tuned model to a sample, with one template.
    """
    from clipmerge.evaluation.scorer import Scorer

    inputs = path.inputs
    samples: dict[str, LabelledImages] = {}
    for name, images in sources.items():
        yield from check_classes(images, inputs.finetuned[0].source, path.model)
        yield from check_pixels(images)
        images.require_classes()
        samples[name] = _with_one_prompt(images.sample(PROBE, seed), settings.template)
    # at theta_0, a head that the zero-shot model lacks is not trained
    if inputs.output.is_classifier and not inputs.zeroshot.has_built_head:
        return
    scorer = Scorer(path.model, replace(settings, template=()), progress, samples, path=path)
    ends: list[Move] = [lambda at: at.set_alpha(0.0), lambda at: at.set_mixture((1.0,))]
    for name, (zeroshot, finetuned) in scorer.score(ends).items():
        among = len(samples[name].class_names)
        images = sources[name]
        yield from check_answers(name, images, finetuned.correct, zeroshot.correct, among=among)


def _with_one_prompt(images: Images, template: Names) -> LabelledImages:
    """Keep one template per class or, if images are captioned, one image per caption."""
    from clipmerge.images.classes import templates_for
    from clipmerge.images.image_set import CaptionedImages

    if isinstance(images, CaptionedImages):
        drawn = images.with_one_caption(0)
        # if many images had one caption, a guess would often be right
        first = dict(zip(reversed(drawn.labels), reversed(range(len(drawn))), strict=True))
        return drawn.subset(sorted(first.values()))
    return replace(images, templates=templates_for(template, images.templates)[:1])


def check_pixels(images: ImageSource) -> Iterator[FailedCheck]:
    """Check the pixels of some images: they must not be blank, or all the same."""
    positions = np.unique(np.linspace(0, len(images) - 1, _LOOKED_AT, dtype=int)).tolist()
    if len(positions) < _FEWEST:
        return
    shown = [np.asarray(images.image(at)) for at in positions]
    darkest, brightest = min(map(np.min, shown)), max(map(np.max, shown))
    if int(brightest) - int(darkest) <= _BLANK:
        yield FailedCheck(
            "blank-images",
            f"{images.source}: {len(shown)} images have pixels from {darkest} to {brightest} of"
            " 255, so they show nothing; were numbers from 0 to 1 saved as whole numbers?",
        )
    elif all(np.array_equal(shown[0], other) for other in shown[1:]):
        yield FailedCheck("same-images", f"{images.source}: {len(shown)} images are all the same")


def check_answers(
    name: str,
    images: Images,
    correct: NDArray[Any],
    zeroshot: NDArray[Any] | None = None,
    *,
    among: int = 0,
) -> Iterator[FailedCheck]:
    """Check that a model is better than chance by these class names or captions, and that the
    zero-shot model is not surely better than the fine-tuned one on the target.

    The check passes if there are too few images to be sure.

    Args:
        name: Name of the source; empty for the target.
        images: The images.
        correct: Whether the fine-tuned model, or the only one, is right, (sampled images,).
        zeroshot: The same for the zero-shot model.
        among: Number of captions from which each was chosen; 0 for one per image.
    """
    from clipmerge.images.image_set import CaptionedImages
    from clipmerge.stats import wilson

    if isinstance(images, CaptionedImages):
        words, look, example = "captions", "", images.captions[0][0]
        chance = 1 / (among or len(images))
    else:
        words, look = "class names", describe_odd_names(images.class_names)
        example = images.class_names[0]
        chance = 1 / len(images.class_names)
    known_share = float((correct if zeroshot is None else zeroshot).mean())
    share = float(correct.mean())
    if name:  # fine-tuning may have forgotten another task
        share = max(share, known_share)
    low, high = wilson(share, len(correct))
    known_low, _ = wilson(known_share, len(correct))
    halfway = (1 + chance) / 2
    where = f"{name}: " if name else ""
    numbers = f"recognises {share:.1%} of {len(correct)} images (chance is {chance:.1%})"
    such_as = f"such as '{printable(example, limit=_SHOWN)}'"
    if look and low < halfway:
        yield FailedCheck(
            "odd-names",
            f"{where}the class names {look}, {such_as}, and the model {numbers}; give the names"
            " with `classes`",
        )
    elif low <= chance and high < halfway and known_low <= chance:
        yield FailedCheck(
            "at-chance",
            f"{where}the model {numbers}; are these the {words} of these images, {such_as}?",
        )
    elif not name and known_low > high:
        yield FailedCheck(
            "swapped",
            f"the zero-shot model recognises {known_share:.1%} of {len(correct)} images, the"
            f" fine-tuned one {share:.1%}: are the two swapped, are these images of another task,"
            " or did fine-tuning fail?",
        )


def describe_odd_names(names: Names) -> str:
    """Say what is odd about class names; empty if nothing is.

    Example:
        >>> describe_odd_names(("0", "1")), describe_odd_names(("cat", "car"))
        ('are numbers', '')
        >>> describe_odd_names(("class a", "class b"))
        'differ in letters or numbers alone'
    """
    for pattern, look in _LOOKS.items():
        if all(re.fullmatch(pattern, name.strip()) for name in names):
            return look
    shared = os.path.commonprefix(names)  # noqa: RUF071 - of strings, not of paths
    different = [name.removeprefix(shared) for name in names]
    begin_alike = len(shared) >= 3 and len(set(names)) > 1
    if begin_alike and not any(map(_WORD.search, different)):
        return "differ in letters or numbers alone"
    return ""
