"""Build the zero-shot counterpart of a classification head that only the fine-tuned checkpoint has,
from class prompts.

The rows are class embeddings of unit length, times exp(logit_scale); the bias is zero. On features
of unit length, which the heads of WiSE-FT and model soups take, it gives the zero-shot model's
logits.
"""

from __future__ import annotations

from clipmerge.checkpoint import Inputs, align_checkpoints
from clipmerge.checkpoint.alignment import HEAD_BIAS, HEAD_WEIGHT
from clipmerge.checkpoint.views import with_head
from clipmerge.errors import CheckpointError
from clipmerge.parallel import one_thread
from clipmerge.planning.plan import HeadRecord


def lacks_zeroshot_head(inputs: Inputs) -> bool:
    """Whether the fine-tuned checkpoints have a head on the model's embeddings that the zero-shot
    one lacks.
    """
    return inputs.keeps_head and all(HEAD_WEIGHT in keys for keys in inputs.finetuned_keys)


def build_zeroshot_head(inputs: Inputs, head: HeadRecord) -> Inputs:
    """Give the zero-shot checkpoint a head for the fine-tuned one's classes, which are in the order
    of its rows.

    Source:
        Wortsman et al. 2022, arXiv:2109.01903.
    """
    import torch

    from clipmerge.images.classes import class_prompts
    from clipmerge.models.building import build_two_towers
    from clipmerge.models.classifier import Prompts

    finetuned, keys = inputs.finetuned[0], inputs.finetuned_keys[0]
    entry = finetuned.entries[keys[HEAD_WEIGHT]]
    if entry.shape[0] != len(head.classes):
        raise CheckpointError(
            f"{finetuned.source}: its head has {entry.shape[0]} classes, but {len(head.classes)}"
            " were named; give `classes` with one line per class, in the head's order"
        )
    model = build_two_towers(inputs)
    model.load(inputs.theta_0, inputs.zeroshot.source)
    with torch.no_grad(), one_thread():
        texts = class_prompts(tuple(head.classes), tuple(head.templates))
        prompts = Prompts(model, texts, len(head.templates), torch.device("cpu"))
        embeddings = prompts.class_features()
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
            dtype = finetuned.tensor(keys[name], 0, 1).dtype
            made[keys[name]] = value.to(dtype).contiguous()
    zeroshot = with_head(inputs.zeroshot, finetuned, made)
    return align_checkpoints(
        zeroshot, list(inputs.finetuned), missing=inputs.missing, dtype=inputs.dtype
    )
