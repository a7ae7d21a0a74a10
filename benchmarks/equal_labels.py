"""What else the labels of the validation pictures could have bought.

`auto` learns from labelled pictures that fine-tuning has not seen. With as many labels one can
fine-tune anew on both (``anew``), or fine-tune the fine-tuned model further (``continued``), and
take any point of the WiSE-FT curve of either. Four fifths of the validation pictures are learned
from, and a fifth chooses alpha, as in `auto`. Labelled pictures of a shift are divided likewise.
Without them, ``anew-l2-sp`` and ``anew-ema`` are fine-tuned anew by two ways of training that keep
a model close to its start.
"""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.judge import Judge
from benchmarks.make_pairs.pair import Pair
from benchmarks.make_pairs.pictures import Source, by_group, taken
from benchmarks.models import finetune
from benchmarks.pair_results import PAIRS_FOLDER, open_results
from benchmarks.references import ALPHAS

#: Weight of L2-SP, and decay of the moving average: ten of some twenty steps.
_L2_SP, _EMA = 1.0, 0.9


def equal_labels(pair: Pair, folder: Path = PAIRS_FOLDER, labels: int = 0) -> None:
    """Add ``anew`` and ``continued`` to the results of a pair.

    Args:
        pair: The pair.
        folder: Folder of the JSON files.
        labels: Labelled pictures of one shift that are learned from, too.
    """
    results = open_results(pair, folder)
    val = pair.source("val")
    learn, choose = split(val)
    suffix, shift = "", None
    if labels:
        suffix, shift = f" labels={labels}", pair.best_labelled
        drawn = pair.drawn(f"labels-{shift}", labels, 0)
        images = [image for _, image in drawn]
        positions = torch.tensor([val.classes.index(label) for label, _ in drawn])
        of_shift, chooses = split(Source(images, positions, np.arange(len(images)), val.classes))
        learn, choose = joined(learn, of_shift), joined(choose, chooses)
    tests = Judge(pair, {"choose": choose})
    both = joined(pair.source("train"), learn)
    how = pair.spec.regime
    starts = {"anew": (pair.zeroshot, both, how), "continued": (pair.finetuned, learn, how)}
    if not labels:
        starts["anew-l2-sp"] = (pair.zeroshot, both, replace(how, l2_sp=_L2_SP))
        starts["anew-ema"] = (pair.zeroshot, both, replace(how, ema=_EMA))
    for kind, (start, learned, regime) in starts.items():
        name = kind + suffix
        begin = time.process_time()
        model = pair.folder / name.replace(" ", "-")
        finetune(start, regime, pair.spec.seed, learned, pair.template, model)
        seconds = time.process_time() - begin
        curve = tests.curve(model, ALPHAS)
        labelled = results.labels + labels
        results.add(
            name,
            alphas=ALPHAS,
            correct=curve,
            labels=labelled,
            shift=shift,
            seconds=round(seconds, 1),
        )


def split(val: Source) -> tuple[Source, Source]:
    """Validation pictures that learn and that choose, near-copies together."""
    things = val.things.tolist()
    members = by_group(range(len(things)), things)
    order = sorted(members)
    random.Random(5).shuffle(order)
    choose = taken(members, order, len(things) // 5)
    learn = [at for group in order for at in members[group]]
    return _some(val, learn), _some(val, sorted(choose))


def _some(source: Source, chosen: list[int]) -> Source:
    images = [source.images[at] for at in chosen]
    return replace(
        source, images=images, labels=source.labels[chosen], things=source.things[chosen]
    )


def joined(one: Source, other: Source) -> Source:
    """Pictures of both, the first one's first."""
    labels = torch.cat([one.labels, other.labels])
    things = np.concatenate([one.things, other.things])
    return replace(one, images=[*one.images, *other.images], labels=labels, things=things)
