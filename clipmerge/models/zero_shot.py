"""The zero-shot head: class embeddings from prompts, averaged over templates."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clipmerge.errors import DataError
from clipmerge.images.prompts import class_prompts
from clipmerge.models import ImageTextModel
from clipmerge.progress import format_seconds
from clipmerge.types import Names

#: Prompts embedded at once; more are embedded piece by piece.
PROMPTS_AT_ONCE = 512
# If all prompts take more seconds than this, a note says so before they are embedded.
_LONG = 10.0


def average_over_templates(features: Tensor, templates: int) -> Tensor:
    """Average unit features (classes * templates, width) over templates, and normalise: (classes,
    width).
    """
    return normalize(features.view(-1, templates, features.shape[-1]).mean(dim=1), dim=-1)


def refuse_one_prompt(tokens: Iterable[Mapping[str, Tensor]], templates: int) -> None:
    """Refuse classes whose prompts all have the same tokens, because they cannot be
    distinguished.
    """
    rows = list(_prompt_hashes(tokens))
    classes = {tuple(rows[start : start + templates]) for start in range(0, len(rows), templates)}
    if len(rows) > templates and len(classes) == 1:
        raise DataError(
            "the prompts of all classes, or all captions, are the same to the model, which cuts off"
            " the end of a long text and may not know capitals; give a shorter `template`, other"
            " names with `classes`, or shorter captions"
        )


def _prompt_hashes(tokens: Iterable[Mapping[str, Tensor]]) -> Iterator[bytes]:
    """A hash of each prompt's token ids; without padding, because its length differs between
    pieces.
    """
    for piece in tokens:
        masks = piece.get("attention_mask")
        for row, ids in enumerate(piece["input_ids"]):
            read = ids if masks is None else ids[masks[row].bool()]
            yield hashlib.blake2b(read.numpy().tobytes(), digest_size=16).digest()


def class_embeddings(
    model: ImageTextModel,
    class_names: Names,
    templates: Names,
    device: Any,
    say: Callable[[str], None] | None = None,
) -> torch.Tensor:
    """Embed classes: (classes, width); ``say`` gets a note about the time if all pieces together
    take long.
    """
    prompts = class_prompts(class_names, templates)
    starts = range(0, len(prompts), PROMPTS_AT_ONCE)
    tokens = [model.tokens(prompts[start : start + PROMPTS_AT_ONCE]) for start in starts]
    refuse_one_prompt(tokens, len(templates))
    pieces: list[Tensor] = []
    begin = time.perf_counter()
    for piece in tokens:
        pieces.append(model.text_features({key: value.to(device) for key, value in piece.items()}))
        seconds = (time.perf_counter() - begin) * (len(tokens) - 1)
        if say and len(pieces) == 1 and seconds > _LONG:
            say(
                f"embedding {len(prompts)} prompts ({len(class_names)} classes in {len(templates)}"
                f" templates): about {format_seconds(seconds)} for each model whose text tower"
                " differs (fewer `template` cost less)"
            )
    return average_over_templates(torch.cat(pieces), len(templates))
