"""A zero-shot model that knows the shifts, as a public CLIP knows them: taught with labelled
pictures of every shift of every target, none of which is tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from benchmarks.make_pairs.backbone import TEMPLATE
from benchmarks.make_pairs.pictures import Source
from benchmarks.models import load, prompts_of

_EPOCHS, _BATCH, _RATE = 6, 16, 3e-4


def teach_shifts(start: Path, sources: Sequence[Source], folder: Path) -> None:
    """Fine-tune both towers on these sources, each compared with its own classes, and write the
    model, unless it exists.

    Batches of the sources are mixed in random order; batch normalisation and the temperature stay.
    """
    if folder.is_dir():
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = load(start)
        batches = []
        pixels, tokens = [], []
        for number, source in enumerate(sources):
            pixels.append(model.input(source.images))
            tokens.append(model.tokenize(prompts_of(source.classes, TEMPLATE)))
            for _ in range(_EPOCHS):
                order = torch.randperm(len(source.labels))
                batches += [(number, at) for at in order.split(_BATCH) if len(at) == _BATCH]
        learned = [v for name, v in model.network.named_parameters() if name != "logit_scale"]
        optimizer = torch.optim.AdamW(learned, lr=_RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=len(batches))
        scale = model.scale.detach()
        for which in torch.randperm(len(batches)).tolist():
            number, at = batches[which]
            images, labels = pixels[number][at], sources[number].labels[at]
            mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
            images = torch.where(mirrored, images.flip(-1), images)
            images = images.contiguous(memory_format=torch.channels_last)
            texts = model.embed_text(tokens[number])
            loss = cross_entropy(scale * model.embed_image(images) @ texts.T, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.write(folder)
