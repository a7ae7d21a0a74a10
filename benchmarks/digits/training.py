"""The demo's two models: a small CLIP trained on digits in every style, then fine-tuned on clean
ones.

Clean digits are rare for the first model. Fine-tuning only on them improves it there and makes it
forget elsewhere: the well-known trade-off that merging addresses.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from benchmarks.digits import styles
from benchmarks.digits.styles import STYLE_RATE
from clipmerge.demo.data import TEMPLATE, shuffled_digits
from clipmerge.images.digits import CLASS_NAMES, SIZE, digits_as_rgb

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from transformers import CLIPModel, CLIPProcessor

_WIDTH = 64
_PROMPT_TOKENS = 77
_PIXEL_MEAN = 0.5
_PIXEL_STD = 0.5
# Share of the contrastive steps during which styles are phased in: digits are learned faster from
# easy images.
_EASY_SHARE = 0.3


@dataclass(frozen=True)
class Training:
    """Settings for training the two models.

    Attributes:
        zeroshot_steps: Contrastive steps on styled digits; fewer leave the zero-shot model worse
            everywhere.
        zeroshot_batch: Images per step.
        zeroshot_rate: Peak learning rate.
        finetune_steps: Cross-entropy steps on clean digits; more make it forget more.
        finetune_batch: Images per step.
        finetune_rate: Peak learning rate; higher makes it forget more.
        images: Digits that both models see, the first ones of `shuffled_digits`.
        seed: Seed of the weights, the batches and the styles.
    """

    zeroshot_steps: int = 280
    zeroshot_batch: int = 128
    zeroshot_rate: float = 1.5e-3
    finetune_steps: int = 300
    finetune_batch: int = 64
    finetune_rate: float = 1e-3
    images: int = 1100
    seed: int = 0


def processor(captions: list[str]) -> CLIPProcessor:
    """Make the processor: images of SIZE x SIZE scaled to [-1, 1], and CLIP's tokenizer with a
    small vocabulary."""
    from transformers import CLIPImageProcessor, CLIPProcessor

    image_processor = CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[_PIXEL_MEAN] * 3,
        image_std=[_PIXEL_STD] * 3,
    )
    return CLIPProcessor(image_processor=image_processor, tokenizer=caption_tokenizer(captions))


def caption_tokenizer(captions: list[str]) -> Any:
    """Learn a byte-level BPE in which each word of the captions is one token; other text is split
    into letters.

    As in OpenAI's vocabulary the end-of-text token has the highest id and is used for padding.
    """
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _learn_merges({word for caption in captions for word in caption.rstrip(".").split()})
    pieces = [*bytes_, *(f"{byte}</w>" for byte in bytes_), *("".join(merge) for merge in merges)]
    vocabulary = {
        piece: index for index, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])
    }
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=_PROMPT_TOKENS)


def _learn_merges(words: set[str]) -> list[tuple[str, str]]:
    """Merge the most common pair of pieces until every word is one piece.

    The trainer in `tokenizers` breaks ties at random, which would give a different vocabulary in
    every run.

    Example:
        >>> _learn_merges({"one", "on"})
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


def untrained_model(tokenizer: Any, seed: int) -> CLIPModel:
    """Make a CLIP of about half a million parameters with random weights."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    tower = {
        "hidden_size": _WIDTH,
        "intermediate_size": 4 * _WIDTH,
        "num_attention_heads": 2,
        "projection_dim": _WIDTH,
    }
    text = {
        "num_hidden_layers": 3,
        "max_position_embeddings": _PROMPT_TOKENS,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"num_hidden_layers": 6, "image_size": SIZE, "patch_size": 8}
    config = CLIPConfig(
        text_config=tower | text, vision_config=tower | vision, projection_dim=_WIDTH
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
        # CLIP's own 0.02 is negligible compared with the patches, and a few hundred steps are too
        # few to learn positions
        torch.nn.init.normal_(model.vision_model.embeddings.position_embedding.weight, std=0.3)
    return model


def train_zeroshot(
    model: CLIPModel,
    tokenizer: Any,
    training: Training,
    generator: Generator,
    report: Callable[[float], None],
) -> None:
    """Train like CLIP: each styled image with its caption, against the other captions of the
    batch."""
    import torch

    ink, digits = (values[: training.images] for values in shuffled_digits())
    ink = ink.float()
    captions = styles.captions()
    tokens = tokenizer(captions, padding=True, return_tensors="pt")["input_ids"]
    row_of = {caption: row for row, caption in enumerate(captions)}

    def loss(done: float) -> Tensor:
        picked = torch.randint(len(ink), (training.zeroshot_batch,), generator=generator)
        rate = STYLE_RATE * min(1.0, done / _EASY_SHARE)
        pixels, texts = styles.styled_batch(ink[picked], digits[picked], generator, rate=rate)
        distinct = sorted(set(texts))
        target = torch.tensor([distinct.index(text) for text in texts])
        rows = [row_of[text] for text in distinct]
        output = model(input_ids=tokens[rows], pixel_values=normalised(pixels))
        return contrastive_loss(output.logits_per_image, target)

    fit(list(model.parameters()), loss, training.zeroshot_steps, training.zeroshot_rate, report)


def contrastive_loss(logits: Tensor, target: Tensor) -> Tensor:
    """CLIP's symmetric loss for images that may share a caption; each caption is encoded once."""
    import torch
    from torch.nn.functional import cross_entropy, one_hot

    matches = one_hot(target, logits.shape[1]).to(logits.dtype)
    shares = matches.sum(dim=0)
    image_to_text = cross_entropy(logits + shares.log(), target)
    text_to_image = -(torch.log_softmax(logits, dim=0) * matches / shares).sum(dim=0).mean()
    return (image_to_text + text_to_image) / 2


def finetune(
    model: CLIPModel,
    tokenizer: Any,
    training: Training,
    generator: Generator,
    report: Callable[[float], None],
) -> None:
    """Train both towers aggressively on clean digits only: class prompts, high rate, no
    augmentation."""
    import torch
    from torch.nn.functional import cross_entropy

    ink, digits = (values[: training.images] for values in shuffled_digits())
    ink = ink.float()
    prompts = [TEMPLATE.format(name) for name in CLASS_NAMES]
    tokens = tokenizer(prompts, padding=True, return_tensors="pt")["input_ids"]

    def loss(_: float) -> Tensor:
        picked = torch.randint(len(ink), (training.finetune_batch,), generator=generator)
        pixels = normalised(digits_as_rgb(ink[picked]))
        return cross_entropy(
            model(input_ids=tokens, pixel_values=pixels).logits_per_image, digits[picked]
        )

    parameters = [
        parameter for name, parameter in model.named_parameters() if name != "logit_scale"
    ]
    fit(parameters, loss, training.finetune_steps, training.finetune_rate, report)


def normalised(pixels: Tensor) -> Tensor:
    """Scale pixels from [0, 1] like the processor."""
    return (pixels - _PIXEL_MEAN) / _PIXEL_STD


def fit(
    parameters: list[Any],
    loss: Callable[[float], Tensor],
    steps: int,
    rate: float,
    report: Callable[[float], None],
    *,
    weight_decay: float = 0.05,
) -> None:
    """Minimise with AdamW: a short warm-up to ``rate``, then half a cosine to zero."""
    import torch

    warm_up = max(1, steps // 10)

    def factor(step: int) -> float:
        return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)))

    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for step in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(loss(step / steps))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        report((step + 1) / steps)
