"""A small CLIP trained from nothing: image against caption, in batches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

_PATCH, _WIDTH, _LAYERS, _TEXT_LAYERS = 8, 64, 3, 1
_TOKENS = 32  # of the longest prompt
_STEPS, _RATE = 600, 1.5e-3
#: A batch: pixels in [0, 1], the caption of each picture as an index, by the share of steps done.
Batches = Callable[[float, Generator], tuple[Tensor, Tensor]]


def pretrain(captions: list[str], batches: Batches, folder: Path, size: int) -> None:
    """Train a zero-shot model and write it, unless it exists.

    Args:
        captions: Every caption of the training.
        batches: Draws a batch.
        folder: Folder to write.
        size: Side of a picture.
    """
    if folder.is_dir():
        return
    tools = processor(captions, size)
    encoded = tools.tokenizer(captions, padding=True, return_tensors="pt")["input_ids"]
    model = _untrained(tools.tokenizer, size)
    generator = torch.Generator().manual_seed(0)

    def loss(done: float) -> Tensor:
        pixels, drawn = batches(done, generator)
        rows, target = torch.unique(drawn, return_inverse=True)
        scaled = (pixels.float() - 0.5) / 0.5
        output = model(input_ids=encoded[rows], pixel_values=scaled)
        return _contrastive_loss(output.logits_per_image, target)

    fit(list(model.parameters()), loss, _STEPS, _RATE)
    scratch = folder.with_name(f".{folder.name}")
    model.save_pretrained(scratch)
    tools.save_pretrained(scratch)
    scratch.rename(folder)


def processor(captions: list[str], size: int) -> CLIPProcessor:
    """Images scaled to [-1, 1], and CLIP's tokenizer with a small vocabulary."""
    half = [0.5] * 3
    images = CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=half,
        image_std=half,
    )
    return CLIPProcessor(image_processor=images, tokenizer=_tokenizer(captions))


def _tokenizer(captions: list[str]) -> CLIPTokenizer:
    """A byte-level BPE in which each word of the captions is one token.

    As in OpenAI's vocabulary the end-of-text token has the highest id and is used for padding.
    """
    from tokenizers import pre_tokenizers

    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    words: set[str] = set()
    for caption in captions:
        words.update(caption.rstrip(".").split())
    merges = _merges(words)
    pieces = [*bytes_, *(f"{byte}</w>" for byte in bytes_)]
    pieces += ["".join(merge) for merge in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=_TOKENS)


def _merges(words: set[str]) -> list[tuple[str, str]]:
    """Merge the most common pair of pieces until every word is one piece, the same in every run.

    Example:
        >>> _merges({"one", "on"})
        [('o', 'n</w>'), ('o', 'n'), ('on', 'e</w>')]
    """
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in sorted(words)]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for pieces in spelled for pair in pairwise(pieces)):
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        for pieces in spelled:
            for at in reversed(range(len(pieces) - 1)):
                if tuple(pieces[at : at + 2]) == best:
                    pieces[at : at + 2] = ["".join(best)]
    return merges


def _untrained(tokenizer: Any, size: int) -> CLIPModel:
    tower = {
        "hidden_size": _WIDTH,
        "intermediate_size": 4 * _WIDTH,
        "num_attention_heads": _WIDTH // 32,
        "projection_dim": _WIDTH,
    }
    text = {
        "num_hidden_layers": _TEXT_LAYERS,
        "max_position_embeddings": _TOKENS,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"num_hidden_layers": _LAYERS, "image_size": size, "patch_size": _PATCH}
    config = CLIPConfig(
        text_config=tower | text, vision_config=tower | vision, projection_dim=_WIDTH
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(config)
        # over 17 patches the fused kernel's backward pass takes ten times as long
        model.set_attn_implementation("eager")
        # CLIP's own 0.02 is negligible compared with the patches, and a few hundred steps are too
        # few to learn positions
        torch.nn.init.normal_(model.vision_model.embeddings.position_embedding.weight, std=0.3)
    return model


def _contrastive_loss(logits: Tensor, target: Tensor) -> Tensor:
    """CLIP's symmetric loss for images that may share a caption; each caption is encoded once."""
    matches = one_hot(target, logits.shape[1]).to(logits.dtype)
    shares = matches.sum(dim=0)
    image_to_text = torch.nn.functional.cross_entropy(logits + shares.log(), target)
    text_to_image = -(torch.log_softmax(logits, dim=0) * matches / shares).sum(dim=0).mean()
    return (image_to_text + text_to_image) / 2


def fit(parameters: list[Any], loss: Callable[[float], Tensor], steps: int, rate: float) -> None:
    """Minimise with AdamW: a short warm-up to ``rate``, then half a cosine to zero."""
    warm_up = max(1, steps // 10)

    def factor(step: int) -> float:
        return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)))

    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for step in range(steps):
        optimizer.zero_grad()
        loss(step / steps).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
