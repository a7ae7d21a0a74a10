"""Tables of the pages, as rows of cells, each made from the JSON files of the results.

Three questions are asked of every method: how accurate is it on the target, under natural shifts
of the target, and on other tasks? No figure mixes the answers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.pair_results import CURVE, Results
from benchmarks.statistics import (
    FINETUNED,
    ZEROSHOT,
    Estimate,
    accuracies,
    gain,
    over_targets,
    point_of,
)

Rows = list[list[str]]
AUTO, SPARSE = "auto", "straggler-sparse"
TAUGHT = f"{AUTO} labels=100"
INTERPOLATED = "wise-ft-id"
#: The three questions, and their names.
AXES = {"id": "target", "ood": "natural shifts", "tasks": "other tasks"}
#: Targets whose zero-shot models are small transformers that were trained on drawings.
_DRAWN = ("digits", "emoji-3d", "emoji-lines")
_AS_CAPTIONS = f"{TAUGHT} as captions"
#: Every method of the tables, and its name there.
_METHODS = {
    ZEROSHOT: "zero-shot",
    FINETUNED: "fine-tuned",
    INTERPOLATED: "plain interpolation, chosen alpha",
    AUTO: "auto",
    TAUGHT: "auto, 100 labels of a shift",
    SPARSE: "straggler-sparse",
    f"{SPARSE} labels=100": "straggler-sparse, 100 labels",
    f"{AUTO} measure.ood_weight=3 labels=100": "the same with weight 3",
    f"{TAUGHT} of another task": "auto, 100 labels of another task",
    _AS_CAPTIONS: "auto, 100 captions of a shift",
    "lines": "LiNeS",
    "monosoup": "MonoSoup",
    "anew": "fine-tuned anew, best alpha",
    "continued": "fine-tuned further, best alpha",
    "anew-l2-sp": "fine-tuned anew with L2-SP, best alpha",
    "anew-ema": "fine-tuned anew, averaged weights (EMA), best alpha",
    "anew labels=100": "fine-tuned anew, 100 labels",
    "continued labels=100": "fine-tuned further, 100 labels",
    f"{AUTO} measure.distill_weight=0": "auto without its restraint",
    "ensemble": "ensemble (two models)",
}
_WEIGHT_3 = f"{AUTO} measure.ood_weight=3 labels=100"
_OF_TASK = f"{TAUGHT} of another task"
_LABELS = (AUTO, *(f"{AUTO} labels={count}" for count in (20, 50, 100, 200)))


def having(every: Iterable[Results], methods: Sequence[str]) -> list[Results]:
    """Pairs on which all of these methods have been run."""
    return [each for each in every if all(point_of(each, method) for method in methods)]


def by_target(every: Iterable[Results]) -> dict[str, list[Results]]:
    """Pairs of each target."""
    found: dict[str, list[Results]] = defaultdict(list)
    for each in every:
        found[each.target].append(each)
    return dict(found)


def accuracy(results: Results, method: str, axis: str) -> np.ndarray:
    """Accuracy of a method's point on an axis, the measured one first."""
    return getattr(point_of(results, method), axis)[:, 0]


def _mean(
    pairs: Sequence[Results], figure: Callable[[Results], np.ndarray], axis: str
) -> Estimate | None:
    """Mean of a figure, each target counted once, over the pairs that answer the question."""
    known = [each for each in pairs if axis != "tasks" or each.tasks]
    return over_targets([(each.target, figure(each)) for each in known]) if known else None


def _accuracies(pairs: Sequence[Results], method: str, digits: int = 1) -> list[str]:
    """Mean accuracy for each of the three questions."""
    cells = []
    for axis in AXES:
        found = _mean(pairs, lambda each: accuracy(each, method, axis), axis)  # noqa: B023
        cells.append(f"{found.value:.{digits}f}" if found else "")
    return cells


def _changes(pairs: Sequence[Results], method: str, since: str) -> list[str]:
    """Mean change of accuracy since another method, for each of the three questions."""

    def change(each: Results, axis: str) -> np.ndarray:
        return accuracy(each, method, axis) - accuracy(each, since, axis)

    cells = []
    for axis in AXES:
        found = _mean(pairs, lambda each: change(each, axis), axis)  # noqa: B023 - used at once
        cells.append(str(found or ""))
    return cells


def _gains(pairs: Sequence[Results], method: str, curve: str = CURVE) -> list[str]:
    """Mean gain over a curve, under natural shifts and on other tasks."""
    cells = []
    for axis in ("ood", "tasks"):

        def above(each: Results, axis: str = axis) -> np.ndarray:
            return gain(point_of(each, method), accuracies(each, curve), axis)

        cells.append(str(_mean(pairs, above, axis) or ""))
    return cells


def face(every: Sequence[Results]) -> Rows:
    """The rows of README: the means of the pairs of real pictures."""
    pairs = having(_real(every), [AUTO, TAUGHT])
    rows = [["", *AXES.values(), *_GAINS]]
    for method in (ZEROSHOT, FINETUNED, INTERPOLATED, AUTO, TAUGHT):
        is_end = method in (ZEROSHOT, FINETUNED)  # no merge, so nothing to compare with the curve
        gains = ["", ""] if is_end else [each.partition(" ")[0] for each in _gains(pairs, method)]
        rows.append([_METHODS[method], *_accuracies(pairs, method), *gains])
    return rows


def _real(every: Iterable[Results]) -> list[Results]:
    """Pairs of real pictures that answer all three questions."""
    return [each for each in every if each.tasks]


def pairs(every: Sequence[Results]) -> Rows:
    """Accuracies on every pair of real pictures: target / natural shifts / other tasks."""
    methods = (ZEROSHOT, FINETUNED, AUTO, TAUGHT, SPARSE)
    rows = [["pair", *(_METHODS[method] for method in methods)]]
    for each in having(_real(every), [AUTO]):
        cells = []
        for method in methods:
            known = having([each], [method])
            cells.append(" / ".join(_accuracies(known, method)) if known else "")
        rows.append([each.name, *cells])
    return rows


def gains(every: Sequence[Results]) -> Rows:
    """Gains over the curve, by target and by group of pairs."""
    methods = (AUTO, TAUGHT, SPARSE)
    head = ["pairs"]
    for method in methods:
        head += [f"{_METHODS[method]}: shifts", "tasks"]
    rows = [head]
    for name, ours in _groups(having(_real(every), [AUTO])).items():
        row = [f"{name} ({len(ours)})"]
        for method in methods:
            is_known = len(having(ours, [method])) == len(ours)
            row += _gains(ours, method) if is_known else ["", ""]
        rows.append(row)
    return rows


def _groups(known: Sequence[Results]) -> dict[str, list[Results]]:
    """Pairs by target, by what was tuned on, and by which model is better under the shifts."""
    found = by_target(known)
    found["**tuned on**"] = [each for each in known if each.told["tuned"]]
    found["**held out**"] = [each for each in known if not each.told["tuned"]]
    for regime in ("mild", "aggressive"):
        found[f"**{regime}**"] = [each for each in known if regime in each.told["regime"]]
    for name, is_lost in (("fine-tuned is better", False), ("zero-shot is better", True)):
        found[f"**{name} under the shifts**"] = [
            each for each in known if _is_lost(each) == is_lost
        ]
    found["**all**"] = list(known)
    return {name: ours for name, ours in found.items() if ours}


def _is_lost(results: Results) -> bool:
    """Whether fine-tuning lost accuracy under the natural shifts."""
    zeroshot, finetuned = (accuracy(results, each, "ood")[0] for each in (ZEROSHOT, FINETUNED))
    return bool(finetuned < zeroshot)


def labels(every: Sequence[Results]) -> Rows:
    """Changes that labels of a shift or of another task make to `auto`, on the same pairs."""
    head = ["method (pairs)", *AXES.values(), "named source", "other shifts", *_GAINS]
    rest = (_WEIGHT_3, _AS_CAPTIONS, _OF_TASK, "continued labels=100", "anew labels=100")
    rows = [head]
    for method, ours in _beside_auto(every, (*_LABELS[1:], *rest)):
        named = [_source_change(ours, method, is_named) for is_named in (True, False)]
        changes = _changes(ours, method, AUTO)
        rows.append([f"{_name(method)} ({len(ours)})", *changes, *named, *_gains(ours, method)])
    return rows


_GAINS = ("gain, shifts", "gain, tasks")


def others(every: Sequence[Results]) -> Rows:
    """Other ways to use the same labels, or none, beside `auto` on the same pairs."""
    methods = ("continued", "anew", "anew-l2-sp", "anew-ema", "lines", "monosoup")
    rows = [["method (pairs)", *AXES.values(), *_GAINS]]
    for method, ours in _beside_auto(every, methods):
        rows.append(_changes_and_gains(ours, method, AUTO))
    return rows


def _changes_and_gains(ours: Sequence[Results], method: str, since: str) -> list[str]:
    """A row: the method, its changes since another, and its gains."""
    return [f"{_name(method)} ({len(ours)})", *_changes(ours, method, since), *_gains(ours, method)]


def _beside_auto(
    every: Sequence[Results], methods: Sequence[str]
) -> list[tuple[str, list[Results]]]:
    """Methods that have results, and the pairs of real pictures with theirs and with `auto`'s."""
    found = [(method, having(_real(every), [AUTO, method])) for method in methods]
    return [(method, ours) for method, ours in found if ours]


def _name(method: str) -> str:
    return _METHODS.get(method, method)


def _source_change(pairs: Sequence[Results], method: str, is_named: bool) -> str:
    """Mean change since `auto` on the source whose labels were used, or under other shifts."""
    values = []
    for each in pairs:
        after, before = point_of(each, method).sources, point_of(each, AUTO).sources
        named = each.methods[method]["shift"]
        names = [named] if is_named else [name for name in each.shifts if name != named]
        changes = [after[name] - before[name] for name in names]
        if changes:
            values.append((each.target, np.mean(changes, axis=0)[:, 0]))
    return str(over_targets(values)) if values else ""


def drawn(every: Sequence[Results]) -> Rows:
    """`auto` on digits and emoji: accuracies on the target and under shifts, and the gain."""
    known = [each for each in having(every, [AUTO]) if each.target in _DRAWN]
    groups = by_target(known)
    groups["**all**"] = known
    rows = [["pairs", ZEROSHOT, FINETUNED, AUTO, "gain, shifts"]]
    for name, ours in groups.items():
        cells = [
            " / ".join(_accuracies(ours, method)[:2]) for method in (ZEROSHOT, FINETUNED, AUTO)
        ]
        rows.append([f"{name} ({len(ours)})", *cells, _gains(ours, AUTO)[0]])
    return rows


def seeds(every: Sequence[Results]) -> Rows:
    """Changes from seed 0 to seed 1, of learning and of the labels drawn; the gains of seed 1."""
    rows = [["method (pairs)", *AXES.values(), *_GAINS]]
    for first in (AUTO, TAUGHT):
        second = first.replace(AUTO, f"{AUTO} seed=1")
        rows.append(_changes_and_gains(having(_real(every), [first, second]), second, first))
    return rows


def leaderboard(every: Sequence[Results]) -> Rows:
    """Every method that was judged: change since fine-tuned for each question, and gains."""
    pairs_of: dict[str, list[Results]] = defaultdict(list)
    for each in every:
        for method in each.methods:
            if method != CURVE and point_of(each, method):
                pairs_of[method].append(each)
    rows = [["method (pairs)", *AXES.values(), *_GAINS, "processor minutes", "commit", "who"]]
    for method in sorted(pairs_of, key=lambda method: (-len(pairs_of[method]), method)):
        ours = pairs_of[method]
        told = [each.methods[method] for each in ours]
        row = [f"{method} ({len(ours)})", *_changes(ours, method, FINETUNED), *_gains(ours, method)]
        rows.append([*row, _minutes(told), _named(told, "commit"), _named(told, "who")])
    return rows


def _named(told: Sequence[dict[str, Any]], key: str) -> str:
    """At most two of the values that the entries of a method have, such as commits."""
    values = {one[key] for one in told if one.get(key)}
    return ", ".join(sorted(values)[:2])


def _minutes(told: Sequence[dict[str, Any]]) -> str:
    """Median of the minutes that a method took."""
    seconds = [one["seconds"] for one in told if "seconds" in one]
    return f"{np.median(seconds) / 60:.1f}" if seconds else ""


TABLES: dict[str, Callable[[Sequence[Results]], Rows]] = {
    "leaderboard": leaderboard,
    "face": face,
    "pairs": pairs,
    "gains": gains,
    "labels": labels,
    "others": others,
    "drawn": drawn,
    "seeds": seeds,
}
