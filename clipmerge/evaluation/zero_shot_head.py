"""Build a zero-shot head from class prompts, for pairs in which only the fine-tuned model has one.

Each row is a class embedding of unit length times exp(logit_scale), and the bias is zero. So on
image features of unit length, as in WiSE-FT and model soups, the head gives the logits of the
zero-shot model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipmerge.checkpoint import Inputs, OutputKind, align_checkpoints
from clipmerge.checkpoint.alignment import HEAD_BIAS, HEAD_WEIGHT
from clipmerge.checkpoint.views import with_head
from clipmerge.distributed import DistributedContext, exact_float32
from clipmerge.errors import CheckpointError, UsageError
from clipmerge.parallel import one_thread
from clipmerge.planning.plan import HeadRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from clipmerge.models import ImageTextModel


def lacks_zeroshot_head(inputs: Inputs) -> bool:
    """Whether only the fine-tuned checkpoints have a head on the embeddings."""
    is_headed = inputs.output is OutputKind.FINETUNED_CLASSIFIER
    return is_headed and all(HEAD_WEIGHT in keys for keys in inputs.finetuned_keys)


def add_zeroshot_head(inputs: Inputs, head: HeadRecord) -> Inputs:
    """Return the inputs with a head, built from class prompts, on the zero-shot checkpoint.
    ``head.classes`` names the rows of the fine-tuned head, in order.

    Source:
        Wortsman et al. 2022, arXiv:2109.01903.
    """
    import torch

    from clipmerge.models.building import build_two_towers

    finetuned, keys = inputs.finetuned[0], inputs.finetuned_keys[0]
    entry = finetuned.entries[keys[HEAD_WEIGHT]]
    if entry.shape[0] != len(head.classes):
        raise CheckpointError(
            f"{finetuned.source}: its head has {entry.shape[0]} classes, but {len(head.classes)}"
            " were named; give `classes` with one line per class, in the head's order"
        )
    model = build_two_towers(inputs)
    model.load(inputs.theta_0, inputs.zeroshot.source)
    notes = []
    try:
        device = DistributedContext(head.device).device
    except UsageError:  # the plan comes from a machine with another device
        device = torch.device("cpu")
        notes.append(
            f"the plan's zero-shot head was built on {head.device}, and is now built on the CPU, so"
            " its last digits differ"
        )
    embeddings = embed_classes(model, head, device).cpu()
    with one_thread():
        scale = inputs.theta_0("logit_scale").float().exp()
    if embeddings.shape[1:] != entry.shape[1:]:
        raise CheckpointError(
            f"{finetuned.source}: its head takes {entry.shape[1]} features, but the zero-shot"
            f" model's embeddings have {embeddings.shape[1]}; only a head on the embeddings has a"
            " zero-shot counterpart"
        )
    values = {HEAD_WEIGHT: embeddings * scale, HEAD_BIAS: torch.zeros(len(head.classes))}
    made = {}
    for name, value in values.items():
        if name in keys:
            dtype = finetuned.tensor(keys[name]).dtype
            made[keys[name]] = value.to(dtype).contiguous()
    zeroshot = with_head(inputs.zeroshot, finetuned, made)
    aligned = align_checkpoints(
        zeroshot, list(inputs.finetuned), missing=inputs.missing, dtype=inputs.dtype
    )
    aligned.notes.extend(notes)
    return aligned


def embed_classes(model: ImageTextModel, head: HeadRecord, device: torch.device) -> Tensor:
    """Compute text embeddings of the classes on the device, (classes, width), of unit length."""
    import torch

    from clipmerge.images.classes import class_prompts
    from clipmerge.models.classifier import Prompts

    model.module.to(device)
    texts = class_prompts(head.classes, head.templates)
    with torch.no_grad(), exact_float32(), one_thread():
        return Prompts(model, texts, len(head.templates), device).class_features()
