"""`clipmerge evaluate`: measure accuracy or recall of one checkpoint on sources of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from clipmerge.api._pair import CheckpointLike, as_addresses
from clipmerge.checkpoint import open_checkpoint
from clipmerge.checks import check_answers, check_classes, check_pixels, raise_unless_allowed
from clipmerge.errors import UsageError
from clipmerge.options import EvaluateOptions, named_sources
from clipmerge.planning import Rows, Tabular
from clipmerge.progress import Journal, Progress
from clipmerge.types import Json, StrPath


@dataclass(frozen=True, repr=False)
class EvaluateResult(Tabular):
    """Result of `evaluate`.

    Attributes:
        accuracy: Accuracy, 0 to 1, by source with classes.
        images: Number of images by source.
        record: The output of ``clipmerge evaluate --json``.
    """

    accuracy: dict[str, float]
    images: dict[str, int]
    record: Json

    @property
    def recall(self) -> dict[str, dict[str, dict[str, float]]]:
        """Recall, 0 to 1, by source with captions, direction (``image_to_text`` or
        ``text_to_image``) and rank as text (``"1"``, ``"5"``, ``"10"``).
        """
        return dict(self.record["recall"])

    def _rows(self) -> Rows:
        rows: Rows = []
        for name, value in self.accuracy.items():
            rows.append({"source": name, "images": self.images[name], "accuracy": value})
        for name, recall in self.recall.items():
            row: Json = {"source": name, "images": self.images[name]}
            for way, by_rank in recall.items():
                for rank, value in by_rank.items():
                    row[f"{way} R@{rank}"] = value
            rows.append(row)
        return rows

    def _caption(self) -> str:
        parts = [f"{name} {value:.1%}" for name, value in self.accuracy.items()]
        for name, recall in self.recall.items():
            first = recall["image_to_text"]["1"]
            parts.append(f"{name} R@1 {first:.1%}")
        return ", ".join(parts)


def evaluate(
    checkpoint: CheckpointLike,
    data: Mapping[str, Any] | Sequence[StrPath] | StrPath,
    *,
    processor: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> EvaluateResult:
    """Measure accuracy on images with classes, and recall on images with captions.

    An image counts as recognised if its class has the highest score. The scores come from class
    prompts or, if the model has a classification head, from the head.

    Args:
        checkpoint: A folder, a file, ``org/name[@revision]``, or a model of transformers or
            open_clip.
        data: Sources of images: a mapping from names to sources, or one or several texts
            ``NAME=SOURCE`` or paths. A source has a form that `merge` accepts as ``data``.
        processor: See `merge`.
        progress: See `merge`.
        **options: The fields of `clipmerge.options.EvaluateOptions`.

    Returns:
        Accuracy or recall, 0 to 1, and number of images by source.

    Raises:
        ClipmergeError: If an argument cannot be used. The message is one line: what is wrong,
            where, and what to do.
    """
    opts = EvaluateOptions.of(options)
    journal = Journal(progress)
    sources = named_sources(data)
    if not sources:
        raise UsageError("nothing to evaluate on: give images with `data` NAME=SOURCE")
    from clipmerge.evaluation.accuracy import load_model
    from clipmerge.evaluation.scorer import Scorer
    from clipmerge.images.dataset import open_images
    from clipmerge.images.image_set import CaptionedImages
    from clipmerge.stats import wilson

    with as_addresses([checkpoint], processor) as (address,):
        part = f"#{opts.state_key}" if opts.state_key else ""
        opened = open_checkpoint(address + part, model=opts.model)
        loaded = {
            name: open_images(source, opts.classes, columns=opts.columns)
            for name, source in sources.items()
        }
        for each in (opened, *loaded.values()):
            journal.warn(*each.notes)
        model = load_model(opened)
        for images in loaded.values():
            doubts = chain(check_classes(images, opened.source, model), check_pixels(images))
            raise_unless_allowed(doubts, opts.allow, journal)
        scored = Scorer(model, opts, journal, loaded, load_bytes=0).score([lambda _: None])
        record: Json = {
            "checkpoint": opened.provenance(),
            "accuracy": {},
            "accuracy_intervals": {},
            "images": {name: len(images) for name, images in loaded.items()},
            "recall": {},
            "captions": {},
            "warnings": journal.warnings,
        }
        for name, images in loaded.items():
            (outcome,) = scored[name]
            if isinstance(images, CaptionedImages):
                record["recall"][name] = outcome.recall
                record["captions"][name] = images.caption_count
            else:
                share = float(outcome.correct.mean())
                record["accuracy"][name] = share
                record["accuracy_intervals"][name] = list(wilson(share, len(images)))
            for doubt in check_answers(name, images, outcome.correct):
                # a warning only, because the model may be poor
                journal.warn(doubt.text)
    return EvaluateResult(record["accuracy"], record["images"], record)
