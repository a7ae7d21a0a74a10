"""Tables of the pages, as rows of cells, each made from the JSON files of the results."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.pair_results import CURVE, SMALLER_FOLDER, Results, every_result
from benchmarks.statistics import (
    FINETUNED,
    ZEROSHOT,
    Estimate,
    accuracies,
    gain,
    over_targets,
    point_of,
    standing,
)

Rows = list[list[str]]
AUTO = "auto"
#: Targets on no pair of which anything was tuned, and those with pictures that are no photographs.
_NEVER_TUNED = ("office", "cartoon", "scenes", "waste")
_DRAWN = ("digits", "emoji-3d", "emoji-lines")
#: Pairs with natural shifts, one of each kind.
_NATURAL = (
    "aggressive-office-0",
    "mild-cartoon-0",
    "mild-scenes-0",
    "mild-waste-0",
    "mild-aerial-0",
    "mild-groceries-0",
    "vit-mild-photo-0",
)
#: Every method of the tables about equal labels, and how it is called there.
_METHODS = {
    ZEROSHOT: "zero-shot",
    f"{CURVE} 0.3": "wise-ft, alpha 0.3",
    f"{CURVE} 0.5": "wise-ft, alpha 0.5",
    f"{CURVE} 0.7": "wise-ft, alpha 0.7",
    FINETUNED: "fine-tuned",
    "wise-ft-id": "wise-ft-id",
    "lines": "lines",
    "monosoup": "monosoup",
    "straggler-sparse": "straggler-sparse",
    "recalibrated": "wise-ft-id, batch norms recalibrated",
    "continued": "continued on val, best alpha",
    "anew": "anew on train + val, best alpha",
    "anew-3": "anew on train + val, smallest alpha",
    AUTO: "auto",
    f"{AUTO} measure.distill_weight=0": "auto without its restraint",
    "ensemble": "ensemble (two models)",
    "dawin": "DaWin (two models)",
    "vrf": "VRF (two models)",
}
#: Those of which only the mean over targets is shown.
_MEANS_ONLY = ("recalibrated", "anew-3", "dawin", "vrf")
_FEATURES = "measure.distill=features"
#: What the table of ablations has, and how it is called there.
_ABLATED = {
    AUTO: "as it is",
    f"{AUTO} seed=1": "the same, another seed",
    f"{AUTO} measure.distill=predictions": "close to predictions alone",
    f"{AUTO} {_FEATURES}": "close to features alone",
    f"{AUTO} measure.distill=path-features": "close to features, the middle's too",
    f"{AUTO} measure.distill_weight=0": "no restraint",
    f"{AUTO} measure.weak_aug=0": "no weak changes",
}
_WITH_LABELS = ("continued", "anew", AUTO)


def having(every: Iterable[Results], methods: Sequence[str]) -> list[Results]:
    """Held-out pairs on which all of these methods have been run."""
    found = []
    for each in every:
        points = [point_of(each, method) for method in methods]
        if all(points) and not each.told["tuned"]:
            found.append(each)
    return found


def by_target(every: Iterable[Results]) -> dict[str, list[Results]]:
    """Pairs of each target."""
    found: dict[str, list[Results]] = defaultdict(list)
    for each in every:
        found[each.target].append(each)
    return dict(found)


def accuracy(results: Results, method: str, axis: str) -> np.ndarray:
    """Accuracy of a method's point on the axis ``id`` or ``ood``, the measured one first."""
    return getattr(point_of(results, method), axis)[:, 0]


def _mean(pairs: Sequence[Results], figure: Callable[[Results], np.ndarray]) -> Estimate:
    """Mean of a figure, each target counted once."""
    return over_targets([(each.target, figure(each)) for each in pairs])


def _both(pairs: Sequence[Results], method: str, digits: int = 1) -> str:
    """Mean ID / OOD accuracy."""
    target = _mean(pairs, lambda each: accuracy(each, method, "id"))
    shift = _mean(pairs, lambda each: accuracy(each, method, "ood"))
    return f"{target.value:.{digits}f} / {shift.value:.{digits}f}"


def _change(pairs: Sequence[Results], method: str, axis: str, since: str = FINETUNED) -> Estimate:
    def figure(each: Results) -> np.ndarray:
        return accuracy(each, method, axis) - accuracy(each, since, axis)

    return _mean(pairs, figure)


def _above(results: Results, method: str, curve: str = CURVE) -> np.ndarray:
    """Gain of a method over the curve of another one."""
    return gain(point_of(results, method), accuracies(results, curve))


def _gain(pairs: Sequence[Results], method: str, curve: str = CURVE) -> str:
    return str(_mean(pairs, lambda each: _above(each, method, curve)))


def _standing(pairs: Sequence[Results], method: str) -> str:
    found: Counter[str] = Counter()
    for each in pairs:
        stands = standing(point_of(each, method), accuracies(each, CURVE))
        found[stands] += 1
    return f"{found['beats']}/{found['beaten']}/{found['neither']}"


def leaderboard(every: Sequence[Results]) -> Rows:
    """Every method that was judged: change of OOD and ID accuracy for each target."""
    pairs_of: dict[str, list[Results]] = defaultdict(list)
    for each in every:
        for method in each.methods:
            if method != CURVE and point_of(each, method):
                pairs_of[method].append(each)
    targets = sorted(by_target(every))
    rows = [["method", "commit", *targets, "processor minutes", "who"]]
    for method in sorted(pairs_of, key=lambda method: (-len(pairs_of[method]), method)):
        pairs = pairs_of[method]
        told = [each.methods[method] for each in pairs]
        row = [method, _named(told, "commit")]
        grouped = by_target(pairs)
        for target in targets:
            row.append(_moved(grouped.get(target, []), method))
        row.append(_minutes(told))
        row.append(_named(told, "who"))
        rows.append(row)
    return rows


def _named(told: Sequence[dict[str, Any]], key: str) -> str:
    """At most two of the values that the entries of a method have, such as commits."""
    values = {one[key] for one in told if one.get(key)}
    return ", ".join(sorted(values)[:2])


def _minutes(told: Sequence[dict[str, Any]]) -> str:
    """Median of the minutes that a method took."""
    seconds = [one["seconds"] for one in told if "seconds" in one]
    return f"{np.median(seconds) / 60:.1f}" if seconds else ""


def _moved(pairs: Sequence[Results], method: str) -> str:
    """Mean change since the fine-tuned model, OOD / ID, in points, of one target."""
    if not pairs:
        return ""
    shift = _change(pairs, method, "ood")
    target = _change(pairs, method, "id")
    return f"{shift.value:+.1f} / {target.value:+.1f} ({len(pairs)})"


def merged(every: Sequence[Results]) -> Rows:
    """`auto` on held-out pairs, by target: accuracies, standing, gain."""
    rows = [_MERGED]
    for name, pairs in _merged_groups(every).items():
        rows.append([name, *_merged_cells(pairs)])
    return rows


def face(every: Sequence[Results]) -> Rows:
    """Two rows for README: real pictures, and what small transformers were trained on."""
    pairs = having(every, [AUTO])
    rows = [["pairs", ZEROSHOT, FINETUNED, "merged", "gain"]]
    for name, is_drawn in (("real pictures", False), ("digits and emoji", True)):
        ours = [each for each in pairs if (each.target in _DRAWN) == is_drawn]
        if ours:
            accurate = [_both(ours, model, digits=0) for model in (ZEROSHOT, FINETUNED, AUTO)]
            rows.append([f"{len(ours)} of {name}", *accurate, _gain(ours, AUTO)])
    return rows


_MERGED = ["target (pairs)", FINETUNED, "merged", "beats/beaten/neither", "gain"]


def _merged_groups(every: Sequence[Results]) -> dict[str, list[Results]]:
    """Pairs of each target, and of targets together; never tuned ones first."""
    pairs = having(every, [AUTO])
    pairs.sort(key=lambda each: (each.target not in _NEVER_TUNED, each.target in _DRAWN))
    found = by_target(pairs)
    found["**never tuned on**"] = [each for each in pairs if each.target in _NEVER_TUNED]
    found["**all**"] = pairs
    return {f"{name} ({len(ours)})": ours for name, ours in found.items() if ours}


def _merged_cells(pairs: Sequence[Results]) -> list[str]:
    finetuned = _both(pairs, FINETUNED)
    return [finetuned, _both(pairs, AUTO), _standing(pairs, AUTO), _gain(pairs, AUTO)]


def new_targets(every: Sequence[Results]) -> Rows:
    """Every method on the pairs with natural shifts."""
    pairs = {each.name: [each] for each in having(every, [AUTO])}
    return _methods({name: pairs[name] for name in _NATURAL if name in pairs})


def equal_by_target(every: Sequence[Results]) -> Rows:
    """Every method on the other targets on which labels were spent otherwise."""
    pairs = having(every, _WITH_LABELS)
    return _methods(by_target(each for each in pairs if each.name not in _NATURAL))


def _methods(columns: dict[str, list[Results]]) -> Rows:
    """Accuracies of every method, gains, and the advice on `auto`, in columns of pairs."""
    groups = list(columns.values())
    head = ["ID / OOD"]
    for name, pairs in columns.items():
        head.append(name if name == pairs[0].name else f"{name} ({len(pairs)})")
    rows = [head]
    for method, called in _METHODS.items():
        if method not in _MEANS_ONLY:
            rows.append([called, *_cells(groups, method, _both)])
    for method in ("straggler-sparse", *_WITH_LABELS):
        rows.append([f"gain, {method}", *_cells(groups, method, _gain)])
    over_anew = _cells(groups, "anew", lambda pairs, curve: _gain(pairs, AUTO, curve))
    rows.append(["auto over the curve of anew", *over_anew])
    rows.append(["beats/beaten/neither, auto", *_cells(groups, AUTO, _standing)])
    rows.append(["advice on auto", *_cells(groups, AUTO, _advice)])
    return [row for row in rows if any(row[1:])] or [head]


def _cells(
    columns: Sequence[Sequence[Results]],
    method: str,
    figure: Callable[[Sequence[Results], str], str],
) -> list[str]:
    """One cell for each column; empty where not all of its pairs have the method."""
    cells = []
    for pairs in columns:
        is_known = len(having(pairs, [method])) == len(pairs)
        cells.append(figure(pairs, method) if is_known else "")
    return cells


def _advice(pairs: Sequence[Results], method: str) -> str:
    """What was said of each merge, and whether that was right."""
    found = []
    for each in pairs:
        said = each.methods[method]["recommendation"]
        changes = {axis: _change([each], method, axis).value for axis in ("id", "ood")}
        if said in ("use", "probably-use"):
            # at most 3 points lost on the target, and nothing under the shift
            is_right = changes["ood"] > -1e-9 and changes["id"] > -3 - 1e-9
            said += ": right" if is_right else ": wrong"
        found.append(said)
    return ", ".join(found)


def equal_labels(every: Sequence[Results]) -> Rows:
    """What else the labels could have bought: mean over targets, each on the pairs that have it."""
    pairs = having(every, _WITH_LABELS)
    rows = [["method (pairs)", "ID / OOD", "gain", *_AHEAD]]
    for method, called in _METHODS.items():
        ours = having(pairs, [method])
        if ours:
            row = [f"{called} ({len(ours)})", _both(ours, method), _gain(ours, method)]
            for axis in ("id", "ood"):
                row.append(str(_change(ours, AUTO, axis, method)))
            has_curve = method in ("continued", "anew")
            row.append(_gain(ours, AUTO, method) if has_curve else "")
            rows.append(row)
    return rows


#: `auto` minus the method, and against the whole curve of the method, at equal ID accuracy.
_AHEAD = ("auto minus it: ID", "OOD", "auto over its curve")


def ablations(every: Sequence[Results]) -> Rows:
    """`auto` with a part taken out, on tuning pairs: change since fine-tuned, and gain."""
    columns = by_target(each for each in every if f"{AUTO} {_FEATURES}" in each.methods)
    rows = [["auto"]]
    for target in columns:
        rows[0] += [f"{target}: OOD / ID", "gain"]
    for method, called in _ABLATED.items():
        row = [called]
        for ours in columns.values():
            is_known = all(method in each.methods for each in ours)
            row += [_moved(ours, method), _gain(ours, method)] if is_known else ["", ""]
        rows.append(row)
    return rows


def smaller(every: Sequence[Results]) -> Rows:
    """Gains on the smaller models, with all images and with 64."""
    groups: dict[str, list[Results]] = defaultdict(list)
    for each in every:
        tuned = ", tuned on" if each.told["tuned"] else ""
        groups[f"{each.target}, {each.told['regime']}{tuned}"].append(each)
    groups["**held out**"] = [each for each in every if not each.told["tuned"]]
    rows = [["pairs", "gain", "with 64 images"]]
    for name, pairs in groups.items():
        few = _gain(pairs, f"{AUTO} images=64")
        rows.append([f"{name} ({len(pairs)})", _gain(pairs, AUTO), few])
    return rows


TABLES: dict[str, Callable[[Sequence[Results]], Rows]] = {
    "leaderboard": leaderboard,
    "face": face,
    "merged": merged,
    "new-targets": new_targets,
    "equal-labels": equal_labels,
    "equal-by-target": equal_by_target,
    "ablations": lambda every: ablations([*every_result(SMALLER_FOLDER), *every]),
    "smaller": lambda _: smaller(every_result(SMALLER_FOLDER)),
}
