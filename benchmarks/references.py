"""References that are no merges, on the pictures of a pair.

``ensemble``, ``dawin`` and ``vrf`` keep both models and need them at inference:

- ``ensemble``: the mean of both models' probabilities, each with the temperature of least loss on
  the validation pictures.
- ``dawin`` (arXiv 2410.03782): every picture has weights of its own, interpolated by how sure both
  models are of it. Here its alpha is the nearest of the recorded curve, and not clustered.
- ``vrf`` (arXiv 2411.06966): the fine-tuned model counts less, the further a picture lies from the
  validation pictures that only this model recognises. Its two constants are those of its code.

``recalibrated`` is the WiSE-FT curve with the statistics of its batch norms taken anew, at each
alpha, from the validation pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.judge import Judge, add_curve
from benchmarks.make_pairs.pair import Pair
from benchmarks.models import load, prompts_of
from benchmarks.pair_results import CURVE, PAIRS_FOLDER, open_results, stacked

ALPHAS = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_TEMPERATURES = tuple(2 ** (step / 4) for step in range(-8, 17))
_VRF_MIDDLE, _VRF_WIDTH = 1.5, 0.6
Right = dict[str, np.ndarray]


def references(pair: Pair, folder: Path = PAIRS_FOLDER) -> None:
    """Add every reference to the results of a pair."""
    results = open_results(pair, folder)
    tests = Judge(pair, {"val": pair.source("val")})
    add_curve(tests, results)
    zeroshot = _answers(pair.zeroshot, tests)
    finetuned = _answers(pair.finetuned, tests)
    labels = results.labels
    alphas = torch.tensor(results.methods[CURVE]["alphas"])
    found = {
        "ensemble": _ensemble(zeroshot, finetuned, tests),
        "dawin": _dawin(zeroshot, finetuned, alphas, results.correct(CURVE)),
        "vrf": _vrf(zeroshot, finetuned, tests),
    }
    for name, right in found.items():
        results.add(name, correct=stacked([right]), labels=labels)
    norms = [each for each in tests.model.network.modules() if isinstance(each, nn.BatchNorm2d)]
    if norms:

        def prepare() -> None:
            _recalibrate(norms, lambda: tests.model.embedded(tests.pixels["val"]))

        curve = tests.curve(pair.finetuned, ALPHAS, prepare)
        results.add("recalibrated", alphas=ALPHAS, correct=curve, labels=labels)


@dataclass(frozen=True)
class Answers:
    """What one model says of the pictures of each source.

    Attributes:
        features: Unit embeddings, shape (N, width).
        shares: Calibrated probabilities of the classes, shape (N, C).
    """

    features: dict[str, Tensor]
    shares: dict[str, Tensor]


def _answers(folder: Path, tests: Judge) -> Answers:
    model = load(folder)
    features = {}
    logits = {}
    for name, source in tests.sources.items():
        prompts = prompts_of(source.classes, tests.pair.template)
        texts = model.texts(prompts).detach().cpu()
        features[name] = model.embedded(tests.pixels[name])
        logits[name] = model.scale.item() * features[name] @ texts.T
    labels = tests.sources["val"].labels
    losses = []
    for temperature in _TEMPERATURES:
        loss = cross_entropy(logits["val"] / temperature, labels)
        losses.append(loss.item())
    cooled = _TEMPERATURES[int(np.argmin(losses))]
    shares = {}
    for name, each in logits.items():
        shares[name] = (each / cooled).softmax(dim=1)
    return Answers(features, shares)


def _ensemble(zeroshot: Answers, finetuned: Answers, tests: Judge) -> Right:
    right = {}
    for name, source in tests.sources.items():
        mean = zeroshot.shares[name] + finetuned.shares[name]
        right[name] = (mean.argmax(dim=1) == source.labels).numpy()
    return right


def _dawin(zeroshot: Answers, finetuned: Answers, alphas: Tensor, curve: Right) -> Right:
    right = {}
    for name, of_alphas in curve.items():
        start = _entropies(zeroshot.shares[name])
        end = _entropies(finetuned.shares[name])
        offset = (_spread(start) + _spread(end)) / 2
        share = start.mean() / (start.mean() + end.mean())
        sure_start = (-start).exp()
        sure_end = (-end).exp()
        alpha = (sure_end + offset * share) / (sure_start + sure_end + offset)
        nearest = (alpha[:, None] - alphas).abs().argmin(dim=1)
        right[name] = of_alphas[nearest, np.arange(len(nearest))]
    return right


def _spread(values: Tensor) -> Tensor:
    return values.std() / values.mean()


def _entropies(shares: Tensor) -> Tensor:
    return -(shares * shares.clamp(min=1e-12).log()).sum(dim=1)


def _vrf(zeroshot: Answers, finetuned: Answers, tests: Judge) -> Right:
    labels = tests.sources["val"].labels
    known_before = zeroshot.shares["val"].argmax(dim=1) == labels
    known_since = finetuned.shares["val"].argmax(dim=1) == labels
    gained = finetuned.features["val"][known_since & ~known_before]
    right = {}
    for name, source in tests.sources.items():
        distances = torch.cdist(finetuned.features[name], gained).square()
        nearest = distances.amin(dim=1, keepdim=True)
        weight = torch.sigmoid((_VRF_MIDDLE - nearest) / _VRF_WIDTH)
        mean = torch.lerp(zeroshot.shares[name], finetuned.shares[name], weight)
        right[name] = (mean.argmax(dim=1) == source.labels).numpy()
    return right


def _recalibrate(norms: Sequence[nn.BatchNorm2d], see: Callable[[], Tensor]) -> None:
    """Means and variances of the inputs of all batch norms, over the pictures that are seen."""
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    see()
    for norm in norms:
        norm.eval()
