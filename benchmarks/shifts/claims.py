"""Tests of the claims in the paper behind clipmerge, each with a result that would refute it, on
pairs trained here."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shifts.experiment import TrainedPair, locked
from benchmarks.shifts.laboratory import IMAGES, Floats, Laboratory, read_claims
from benchmarks.shifts.ranks import kendall, partial_kendall
from clipmerge.evaluation.points import Point
from clipmerge.evaluation.tradeoff import curve_height
from clipmerge.methods import Task
from clipmerge.planning.measurements import Measurements
from clipmerge.planning.stragglers import find_stragglers
from clipmerge.request import ALPHAS
from clipmerge.stats import percentile_interval

_LOG = logging.getLogger("benchmarks")
DRAWS = 300
_BASE, _BACK, _EDITED = 0.5, 0.0, 3
_CALIBRATION_SEEDS = (0, 1, 2)
_RANDOM_CHOICES = 5
_PLANTED, _PLANTED_FACTOR = 3, 4.0
_BARRIER: dict[str, Any] = {"name": "path-barrier", "nodes": 3, "tolerance": 0.01}
_INSTABILITY: dict[str, Any] = {"name": "layer-instability", "points": 3}
_CUMULATIVE: dict[str, Any] = {"name": "cumulative-barrier", "points": 3}
_SHARPNESS: dict[str, Any] = {
    "name": "first-order",
    "norm": "l2",
    "rho": 0.5,
    "adaptive": True,
    "at": 0.5,
}


def examine(trained: TrainedPair, file: Path, parts: Iterable[str]) -> None:
    """Run tests on one pair and add their results to a JSON file; tests with results in the file
    are skipped."""
    laboratory = Laboratory(trained)
    for name in parts:
        if name in read_claims(file).get(trained.name, {}):
            continue
        found = PARTS[name](laboratory)
        with locked(
            trained.zeroshot.parent / ".claims.lock"
        ):  # other pairs may be examined at the same time
            record = read_claims(file)
            record.setdefault(trained.name, {"tuning": trained.tuning, "images": IMAGES})[name] = (
                found
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(record, allow_nan=False) + "\n", encoding="utf-8")
        _LOG.info("%s: %s", trained.name, name)


def sharpness(laboratory: Laboratory) -> dict[str, Any]:
    """Sharpness of the whole network at alpha 0.5: the loss added by the worst perturbation of all
    layers, in nats."""
    found = laboratory.measured(**_SHARPNESS)
    values = np.array(list(found["first_order"].values.values()))
    return {"global": float(np.sqrt((values**2).sum())), "largest_layer": float(values.max())}


def layers(laboratory: Laboratory) -> dict[str, Any]:
    """The effect of each layer's return to zero-shot, how well statistics rank it, and whether
    choosing by it helps."""
    barrier, sharp = laboratory.measured(**_BARRIER), laboratory.measured(**_SHARPNESS)
    instability, cumulative = (
        laboratory.measured(**_INSTABILITY),
        laboratory.measured(**_CUMULATIVE),
    )
    names = list(laboratory.layers)
    lengths = np.log([laboratory.length(laboratory.layers[name]) for name in names])
    statistics = {
        "barrier": _values(barrier, "barrier", names),
        "loss drop": -_values(barrier, "loss_drop", names),
        "sharpness": _values(sharp, "first_order", names),
        "sharpness per entry": _values(sharp, "first_order_scaled", names),
        "relative change": _values(barrier, "change", names),
        "instability": _values(instability, "instability", names),
        "cumulative from first": _values(cumulative, "from_first", names),
        "cumulative from last": _values(cumulative, "from_last", names),
    }
    edits = [[name] for name in names]
    chosen = {
        f"top {_EDITED} by {name}": _top(names, values) for name, values in statistics.items()
    }
    rng = np.random.default_rng(0)
    for draw in range(_RANDOM_CHOICES):
        chosen[f"random {draw}"] = _matched(
            names, lengths, chosen[f"top {_EDITED} by barrier"], rng
        )
    points = [Point(alpha) for alpha in ALPHAS]
    points += [_edit(laboratory, edit) for edit in [*edits, *chosen.values()]]
    id_, ood = laboratory.accuracy(points, DRAWS)
    base, first = ALPHAS.index(_BASE), len(ALPHAS)
    effects = {
        kind: values[:, first : first + len(names)] - values[:, [base]]
        for kind, values in (("id", id_), ("ood", ood))
    }
    gains = _gains(id_, ood)[:, first + len(names) :]
    return {
        "layers": names,
        "effect": {kind: values[0].tolist() for kind, values in effects.items()},
        "statistics": {name: values.tolist() for name, values in statistics.items()},
        "kendall": {
            f"{name}, {kind}": _correlations(values, effect, lengths)
            for name, values in statistics.items()
            for kind, effect in effects.items()
        },
        "choices": {
            name: {"layers": chosen[name], "gain": _with_interval(gains[:, place])}
            for place, name in enumerate(chosen)
        },
        "top minus random": {
            name: _with_interval(gains[:, place] - gains[:, -_RANDOM_CHOICES:].mean(axis=1))
            for place, name in enumerate(list(chosen)[: len(statistics)])
        },
    }


def _values(found: Measurements, statistic: str, names: list[str]) -> Floats:
    return np.array([found[statistic].values[name] for name in names])


def _top(names: list[str], values: Floats) -> list[str]:
    return [names[place] for place in np.argsort(-values, kind="stable")[:_EDITED]]


def _matched(
    names: list[str], lengths: Floats, chosen: list[str], rng: np.random.Generator
) -> list[str]:
    """For each chosen layer, another one whose ||tau_l|| is among the four nearest."""
    picked: list[str] = []
    for name in chosen:
        distance = np.abs(lengths - lengths[names.index(name)])
        near = [names[place] for place in np.argsort(distance, kind="stable")]
        free = [each for each in near if each not in chosen and each not in picked][:4]
        picked.append(str(rng.choice(free)))
    return picked


def _edit(laboratory: Laboratory, back: list[str]) -> Point:
    return laboratory.planned({name: {"alpha": _BACK} for name in back}, alpha=_BASE)


def _gains(id_: Floats, ood: Floats) -> Floats:
    curve = slice(0, len(ALPHAS))
    gain: Floats = ood - curve_height(id_[:, curve], ood[:, curve], id_)
    return gain


def _with_interval(values: Floats) -> dict[str, Any]:
    """The measured value first, then the resampled ones."""
    measured = float(values[0])
    return {
        "value": None if np.isnan(measured) else measured,
        "interval": percentile_interval(values[1:]),
    }


def _correlations(statistic: Floats, effect: Floats, lengths: Floats) -> dict[str, Any]:
    """Kendall's tau, plain and given log ||tau_l||; layers are drawn with replacement along with
    the drawings.

    Args:
        statistic: Shape (layers,).
        effect: Effect of each layer, shape (1 + draws, layers), the measured one first.
        lengths: log ||tau_l||, shape (layers,).
    """
    rng = np.random.default_rng(0)
    count = len(statistic)
    chosen = [np.arange(count), *(rng.integers(count, size=count) for _ in range(len(effect) - 1))]
    plain = [kendall(statistic[pick], row[pick]) for pick, row in zip(chosen, effect, strict=True)]
    partial = [
        partial_kendall(statistic[pick], row[pick], lengths[pick])
        for pick, row in zip(chosen, effect, strict=True)
    ]
    return {"plain": _with_interval(np.array(plain)), "partial": _with_interval(np.array(partial))}


def masks(laboratory: Laboratory) -> dict[str, Any]:
    """Each mask on every layer at density 0.5, against its confound on the curve."""
    plans = ("random", "random-rescale", "magnitude", "weights-random")
    points = [Point(alpha) for alpha in ALPHAS]
    points += [laboratory.planned({}, alpha=0.8, density=0.5, mask=mask) for mask in plans]
    id_, ood = laboratory.accuracy(points, DRAWS)
    gains = _gains(id_, ood)
    return {
        name: {
            "id": float(id_[0, len(ALPHAS) + place]),
            "ood": float(ood[0, len(ALPHAS) + place]),
            "gain": _with_interval(gains[:, len(ALPHAS) + place]),
        }
        for place, name in enumerate(plans)
    } | {
        "alpha 0.4": {
            "id": float(id_[0, ALPHAS.index(0.4)]),
            "ood": float(ood[0, ALPHAS.index(0.4)]),
        }
    }


def stability(laboratory: Laboratory) -> dict[str, Any]:
    """Layers that are flagged, and layers with the highest scores, over calibration samples."""
    found = [
        _scored(laboratory, laboratory.measured(seed, **_BARRIER)) for seed in _CALIBRATION_SEEDS
    ]
    top = [set(sorted(z, key=lambda layer: -z[layer])[:_EDITED]) for _, z in found]
    pairs = [(one, two) for one in range(len(found)) for two in range(one)]
    return {
        "flagged": [sorted(names) for names, _ in found],
        "top": [sorted(each) for each in top],
        "jaccard of top": float(
            np.mean([len(top[i] & top[j]) / len(top[i] | top[j]) for i, j in pairs])
        ),
    }


def _scored(
    laboratory: Laboratory, found: Measurements
) -> tuple[tuple[str, ...], dict[str, float]]:
    stragglers = find_stragglers(found, Task(laboratory.inputs).sizes)
    return stragglers.names, {layer: score["z"] for layer, score in stragglers.scores.items()}


def planted(laboratory: Laboratory) -> dict[str, Any]:
    """Are planted stragglers found, and placebos not?"""
    factors = {"planted": _PLANTED_FACTOR, "sign-flipped": -1.0, "random of equal length": None}
    return _flags(
        laboratory,
        list(laboratory.layers),
        {test: partial(laboratory.altered, factor=factor) for test, factor in factors.items()},
    )


def permuted(laboratory: Laboratory) -> dict[str, Any]:
    """Is a barrier found that permuting the hidden units of one layer creates?"""
    mlps = [layer for layer in laboratory.layers if layer.endswith(".mlp")]
    return _flags(laboratory, mlps, {"hidden units permuted": laboratory.permuted})


def _flags(
    laboratory: Laboratory, layers: list[str], tests: dict[str, Callable[[Path, str], Path]]
) -> dict[str, Any]:
    """Alter a few layers in turn, and see which are flagged."""
    before, z = _scored(laboratory, laboratory.measured(**_BARRIER))
    rng = np.random.default_rng(0)
    names = [
        str(name) for name in rng.choice(sorted(set(z) & set(layers)), size=_PLANTED, replace=False)
    ]
    rows: dict[str, Any] = {"flagged before": list(before)}
    with tempfile.TemporaryDirectory() as scratch:
        for test, alter in tests.items():
            rows[test] = []
            for name in names:
                altered = alter(Path(scratch) / "altered", name)
                flagged, after = _scored(
                    laboratory, laboratory.measured(finetuned=altered, **_BARRIER)
                )
                rows[test].append(
                    {
                        "layer": name,
                        "z before": z[name],
                        "z after": after[name],
                        "flagged": sorted(flagged),
                    }
                )
    return rows


PARTS: dict[str, Callable[[Laboratory], dict[str, Any]]] = {
    "sharpness": sharpness,
    "layers": layers,
    "masks": masks,
    "stability": stability,
    "planted": planted,
    "permuted": permuted,
}
"""Every test."""
