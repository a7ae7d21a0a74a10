"""Open the checkpoints of a merge, and build one model that can take the weights of each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from clipmerge.checkpoint import Inputs, align_checkpoints, open_checkpoints
from clipmerge.checkpoint.alignment import HEAD_WEIGHT
from clipmerge.checks import check_models, raise_unless_allowed
from clipmerge.distributed import DistributedContext
from clipmerge.errors import UsageError
from clipmerge.options import DecisionOptions
from clipmerge.planning.plan import HeadRecord, SourceRecord
from clipmerge.progress import Journal
from clipmerge.types import Device, Json, Missing, Names, StrPath

if TYPE_CHECKING:  # a merge without images imports no module that reads images
    from torch.nn import Module

    from clipmerge.images.image_set import CaptionedImages, LabelledImages
    from clipmerge.learning.interpolate import WeightPath
    from clipmerge.learning.resume import LearningState

#: A folder, a file, ``org/name[@revision]``, or a model in memory (of transformers or open_clip).
CheckpointLike: TypeAlias = "StrPath | Module"


@dataclass(frozen=True)
class Pair:
    """The zero-shot and the fine-tuned checkpoints of a merge, and one model for all of them.

    The weights of this model are set to any point between the checkpoints, to check images, to
    measure and to judge.

    Attributes:
        inputs: The checkpoints.
        device: Device of the model.
        head: Classes of the zero-shot head, if one was built from prompts.
        learning: Saved states of learning, one for each measure that ran.
    """

    inputs: Inputs
    device: Device = "auto"
    head: HeadRecord | None = None
    learning: list[LearningState] = field(default_factory=list)

    @cached_property
    def path(self) -> WeightPath:
        """The model on the device, with methods that set its weights. It is built on first use."""
        from clipmerge.learning.interpolate import WeightPath
        from clipmerge.models.building import build_model
        from clipmerge.models.passes import torch_defaults

        with torch_defaults():
            return WeightPath(
                build_model(self.inputs), self.inputs, DistributedContext(self.device).device
            )

    def free_model(self) -> None:
        """Free the memory of the model. Writing the merge does not need it."""
        self.__dict__.pop("path", None)

    def sources(self, *, hashed: bool = False) -> Json:
        """Return the checkpoints as a plan lists them; ``hashed`` adds the sha256 of their
        files.
        """
        zeroshot, *finetuned = (
            SourceRecord(**checkpoint.provenance(hashed=hashed), model=checkpoint.architecture)
            for checkpoint in self.inputs.checkpoints
        )
        return {"zeroshot": zeroshot, "finetuned": tuple(finetuned)}


@contextmanager
def open_pair(
    checkpoints: Sequence[CheckpointLike],
    options: DecisionOptions,
    journal: Journal,
    *,
    missing: Missing = "error",
    processor: Any = None,
) -> Iterator[Pair]:
    """Open, align and check the checkpoints, and yield them as a `Pair`.

    Models in memory are saved to temporary folders until the ``with`` block ends. The saved states
    of learning are deleted if it succeeds.
    """
    with as_addresses(checkpoints, processor, options.state_key) as sources:
        base, *rest = open_checkpoints(sources, [options.model] * len(sources))
        inputs = align_checkpoints(base, rest, missing=missing, dtype=options.dtype)
        raise_unless_allowed(check_models(inputs), options.allow, journal)
        pair = Pair(inputs, options.device)
        yield pair
        for state in pair.learning:
            state.remove()


@contextmanager
def as_addresses(
    checkpoints: Sequence[CheckpointLike], processor: Any = None, state_key: str | None = None
) -> Iterator[list[str]]:
    """Yield a path or a Hub id for each checkpoint. Models in memory are saved to temporary folders
    until the ``with`` block ends. ``state_key`` is the key of the weights in the fine-tuned files.
    """
    part = f"#{state_key}" if state_key else ""
    with ExitStack() as stack:
        sources: list[str] = []
        for checkpoint in checkpoints:
            if not isinstance(checkpoint, (str, os.PathLike)):
                from clipmerge.api._in_memory import saved_model

                checkpoint = stack.enter_context(saved_model(checkpoint, processor))
            source = os.fspath(checkpoint)
            sources.append(f"{source}{part}" if sources else source)
        yield sources


def with_zeroshot_head(
    pair: Pair, images: LabelledImages | CaptionedImages | None, classes: Any, template: Names
) -> Pair:
    """Return the pair. If only the fine-tuned model has a head, and the classes are known, build a
    zero-shot head from class prompts. The classes are those of the images or, without images,
    ``classes``.
    """
    from clipmerge.evaluation.zero_shot_head import add_zeroshot_head, lacks_zeroshot_head

    if not lacks_zeroshot_head(pair.inputs):
        return pair
    from clipmerge.images.classes import read_class_names, templates_for
    from clipmerge.images.dataset import require_labelled

    if images is not None:
        names, templates = require_labelled(images).class_names, require_labelled(images).templates
    elif classes:
        key = pair.inputs.finetuned_keys[0][HEAD_WEIGHT]
        rows = pair.inputs.finetuned[0].entries[key].shape[0]
        names, templates = read_class_names(classes, list(map(str, range(rows)))), ()
    else:
        return pair
    head = HeadRecord(
        classes=names,
        templates=templates_for(template, templates),
        device=cast("Device", DistributedContext(pair.device).device.type),
    )
    inputs = add_zeroshot_head(pair.inputs, head)
    return replace(pair, inputs=inputs, head=head)


def list_checkpoints(zeroshot: Any, finetuned: Any) -> list[Any]:
    """List the zero-shot checkpoint and the fine-tuned ones, which are given as one or several."""
    if not isinstance(finetuned, (list, tuple)):
        return [zeroshot, finetuned]
    if not finetuned:
        raise UsageError("finetuned: an empty list; give at least one fine-tuned checkpoint")
    return [zeroshot, *finetuned]
