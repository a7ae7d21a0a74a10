"""Tables made from the JSON files, written between their marks into Markdown pages.

A mark is `<!-- table: NAME -->`; everything up to `<!-- end -->` is replaced.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.advice import by_images, counted, is_right, read_merges
from benchmarks.pair_results import CURVE, PAIRS_FOLDER, Results, every_result
from benchmarks.statistics import (
    Accuracies,
    Estimate,
    accuracies,
    chosen_alpha,
    curve_of,
    gain,
    over_targets,
    standing,
)

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md", ROOT / "docs" / "research.md")
PICTURE = ROOT / "docs" / "assets" / "results.png"
_MARK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
#: Forms of `auto`, today's first: the same with the work of b6559b43, that of 7fea82b5 with a
#: quarter of its work, and with all of it.
_FORMS = ("auto", "auto-160x20", "auto-quarter", "auto-whole")
_MAX_LOSS = 0.03
Rows = list[list[str]]


def write_pages(pages: Iterable[Path] = PAGES, folder: Path = PAIRS_FOLDER) -> list[Path]:
    """Write every marked table again, and return the pages that have changed."""
    every = every_result(folder)
    changed = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        filled = _MARK.sub(lambda mark: f"{mark[1]}{table(mark[2], every)}\n{mark[3]}", text)
        if filled != text:
            page.write_text(filled, encoding="utf-8")
            changed.append(page)
    return changed


def table(name: str, every: Sequence[Results]) -> str:
    """One table in Markdown."""
    head, *rows = _TABLES[name](every)
    if not rows:
        return "(no pair has these results yet)"
    lines = [_line(head), "|---|" + "---:|" * (len(head) - 1)]
    lines += [_line(row) for row in rows]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def point_of(results: Results, method: str) -> Accuracies | None:
    """The point for which a method stands.

    ``wise-ft-id`` and ``recalibrated`` are the points of their curves that the validation pictures
    choose; ``anew`` and ``continued`` are those that the fifth of the pictures chooses which they
    did not learn from, by the most accurate alpha, or with ``-3`` the smallest within 3 points of
    alpha 1.
    """
    if method == "zero-shot":
        return curve_of(results).point(0)
    if method == "fine-tuned":
        return curve_of(results).point(-1)
    if method == CURVE:
        return curve_of(results).point(results.methods[CURVE]["alphas"].index(0.5))
    base = method.removesuffix("-3")
    if base == "wise-ft-id" and base not in results.methods:
        base = CURVE
    if base not in results.methods:
        return None
    found = accuracies(results, base)
    if "alphas" not in results.methods[base]:
        return found
    correct = results.correct(base)
    source = "choose" if "choose" in correct else "val"
    if source not in correct:
        return None
    max_loss = _MAX_LOSS if method.endswith("-3") else None
    return found.point(chosen_alpha(results, base, source, max_loss))


def _having(every: Sequence[Results], methods: Sequence[str]) -> list[Results]:
    """Held-out pairs on which all of these methods have been run."""
    found = []
    for each in every:
        points = [point_of(each, method) for method in methods]
        if all(points) and not each.told["tuned"]:
            found.append(each)
    return found


def _by_target(every: Iterable[Results]) -> dict[str, list[Results]]:
    found: dict[str, list[Results]] = defaultdict(list)
    for each in every:
        found[each.target].append(each)
    return dict(found)


def _accuracy(results: Results, method: str, axis: str) -> np.ndarray:
    """Accuracy of a method's point, the measured one first."""
    return getattr(point_of(results, method), axis)[:, 0]


def _mean(pairs: Sequence[Results], figure: Callable[[Results], np.ndarray]) -> Estimate:
    """Mean of a figure, each target counted once."""
    return over_targets([(each.target, figure(each)) for each in pairs])


def _both(pairs: Sequence[Results], method: str, digits: int = 1) -> str:
    """Mean ID / OOD accuracy."""
    target = _mean(pairs, lambda each: _accuracy(each, method, "id"))
    shift = _mean(pairs, lambda each: _accuracy(each, method, "ood"))
    return f"{target.value:.{digits}f} / {shift.value:.{digits}f}"


def _change(
    pairs: Sequence[Results], method: str, axis: str, since: str = "fine-tuned"
) -> Estimate:
    def figure(each: Results) -> np.ndarray:
        return _accuracy(each, method, axis) - _accuracy(each, since, axis)

    return _mean(pairs, figure)


def _gain(pairs: Sequence[Results], method: str, curve: str = CURVE) -> str:
    def figure(each: Results) -> np.ndarray:
        return gain(point_of(each, method), accuracies(each, curve))

    return str(_mean(pairs, figure))


def _standing(pairs: Sequence[Results], method: str, curve: str = CURVE) -> str:
    counted: Counter[str] = Counter()
    for each in pairs:
        stands = standing(point_of(each, method), accuracies(each, curve))
        counted[stands] += 1
    return f"{counted['beats']} / {counted['beaten']} / {counted['neither']}"


def draw(file: Path, folder: Path = PAIRS_FOLDER) -> None:
    """Draw ID and OOD accuracy of zero-shot, fine-tuned and merged models, one line per target."""
    from matplotlib.figure import Figure

    groups = _by_target(_having(every_result(folder), ["auto"]))
    figure = Figure(figsize=(8.6, 1.3 + 0.4 * len(groups)), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"id": "on the target", "ood": "under shifts"}
    for axes, (axis, title) in zip(panels, titles.items(), strict=True):
        for method, marker in {"zero-shot": "o", "fine-tuned": "s", "auto": "D"}.items():
            means = []
            for pairs in groups.values():
                values = [_accuracy(each, method, axis)[0] for each in pairs]
                means.append(100 * np.mean(values))
            axes.scatter(means, list(groups), marker=marker, label=method, zorder=3)
        axes.set_title(f"accuracy {title}, %", fontsize=10)
        axes.grid(color="#dddddd")
    panels[0].invert_yaxis()
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(file, metadata={"Software": None})


def leaderboard(every: Sequence[Results]) -> Rows:
    """Every method that was judged: change of OOD and ID accuracy for each target."""
    counted: Counter[str] = Counter()
    for each in every:
        counted.update(list(each.methods))
    del counted[CURVE]
    targets = sorted(_by_target(every))
    rows = [["method", "commit", *targets, "processor minutes", "who"]]
    for name in sorted(counted, key=lambda name: (-counted[name], name)):
        ours = [each for each in every if name in each.methods and point_of(each, name)]
        by_target = _by_target(ours)
        cells = [_moved(by_target.get(target, []), name) for target in targets]
        told = [each.methods[name] for each in ours]
        commits = _named(told, "commit")
        minutes = [one["seconds"] / 60 for one in told if "seconds" in one]
        spent = f"{np.median(minutes):.1f}" if minutes else ""
        who = ", ".join(_named(told, "who"))
        rows.append([name, ", ".join(commits[:2]), *cells, spent, who])
    return rows


def _named(told: Sequence[dict[str, Any]], key: str) -> list[str]:
    return sorted({one[key] for one in told if one.get(key)})


def _moved(pairs: Sequence[Results], method: str) -> str:
    """Mean change since the fine-tuned model, OOD / ID, in points, of one target."""
    if not pairs:
        return ""
    shift = _change(pairs, method, "ood")
    target = _change(pairs, method, "id")
    return f"{shift.value:+.1f} / {target.value:+.1f} ({len(pairs)})"


def merged(every: Sequence[Results]) -> Rows:
    """`auto` of now on held-out pairs, by target: accuracies, standing, gain."""
    return [_MERGED, *_merged_rows(_having(every, ["auto"]), "auto")]


def merged_before(every: Sequence[Results]) -> Rows:
    """The same by the newest earlier form of `auto`, on pairs that today's has not met."""
    rows = [_MERGED]
    met = _having(every, ["auto"])
    for form in _FORMS[1:]:
        pairs = [each for each in _having(every, [form]) if each not in met]
        rows += _merged_rows(pairs, form)
        met += pairs
    return rows


_FIGURES = ["beats / beaten / neither", "gain"]
_MERGED = ["target (pairs)", "zero-shot", "fine-tuned", "merged", *_FIGURES]
_SMALL = ("digits", "emoji-3d", "emoji-lines")


def face(every: Sequence[Results]) -> Rows:
    """Two rows for README: real pictures, and what small transformers were trained on."""
    models = ("zero-shot", "fine-tuned", "auto")
    rows = [["pairs", "zero-shot", "fine-tuned", "merged", "gain"]]
    pairs = _having(every, ["auto"])
    for name, is_small in (("real pictures", False), ("digits and emoji", True)):
        ours = [each for each in pairs if (each.target in _SMALL) == is_small]
        if ours:
            accurate = [_both(ours, model, digits=0) for model in models]
            rows.append([f"{len(ours)} of {name}", *accurate, _gain(ours, "auto")])
    return rows


def _merged_rows(pairs: Sequence[Results], form: str) -> Rows:
    prefix = "" if form == "auto" else f"{form}: "
    groups = _by_target(pairs)
    rows = []
    for target, ours in [*groups.items(), (f"{len(groups)} targets", pairs)]:
        if ours:
            rows.append(_merged_row(f"{prefix}{target} ({len(ours)})", ours, form))
    return rows


def _merged_row(name: str, pairs: Sequence[Results], form: str) -> list[str]:
    models = [_both(pairs, method) for method in ("zero-shot", "fine-tuned", form)]
    return [name, *models, _standing(pairs, form), _gain(pairs, form)]


#: Pairs of targets that nothing had been tuned on, of one kind each; and what is shown of them.
_NEW = (
    "aggressive-office-0",
    "mild-cartoon-0",
    "mild-scenes-0",
    "mild-waste-0",
    "vit-mild-photo-0",
)
_SHOWN = ("zero-shot", "fine-tuned", CURVE, "continued", "anew", "auto")


def new_targets(every: Sequence[Results]) -> Rows:
    """Every method on new targets: ID / OOD, and the advice on `auto`."""
    rows = [["pair", *_SHOWN, "gain", "advice"]]
    for each in _having(every, ["auto"]):
        if each.name in _NEW:
            row = [each.name]
            for method in _SHOWN:
                is_known = point_of(each, method) is not None
                row.append(_both([each], method) if is_known else "")
            row += [_gain([each], "auto"), _advice(each)]
            rows.append(row)
    return rows


def _advice(results: Results) -> str:
    """What was said of a merge by `auto`, and whether it was right."""
    changes = {}
    for axis in ("id", "ood"):
        changes[axis] = _change([results], "auto", axis).value / 100
    stands = "right" if is_right(changes) else "wrong"
    return f"{results.methods['auto']['recommendation']}, {stands}"


#: What the labels could have bought: method, how it is called.
_EQUAL = {
    "fine-tuned": "fine-tuned",
    CURVE: "wise-ft, alpha 0.5",
    "wise-ft-id": "wise-ft-id",
    "recalibrated": "wise-ft-id, batch norms recalibrated",
    "continued": "continued on val, best alpha",
    "continued-3": "continued on val, smallest alpha",
    "anew": "anew on train + val, best alpha",
    "anew-3": "anew on train + val, smallest alpha",
    "auto": "auto",
    "auto measure.distill_weight=0": "auto without its restraint",
    "ensemble": "ensemble (two models)",
    "dawin": "DaWin (two models)",
    "vrf": "VRF (two models)",
}
#: Those of which only the mean over targets is shown.
_MEANS_ONLY = (CURVE, "recalibrated", "continued-3", "dawin", "vrf")
_WITH_LABELS = ("continued", "anew", "auto")


def equal_labels(every: Sequence[Results]) -> Rows:
    """What else the labels could have bought: mean over targets, each on the pairs that have it."""
    pairs = _having(every, _WITH_LABELS)
    rows = [
        [
            "method (pairs)",
            "ID / OOD",
            "OOD since fine-tuned",
            "gain over the curve",
            "auto minus it: OOD",
            "auto minus it: ID",
        ]
    ]
    for method, told in _EQUAL.items():
        ours = _having(pairs, [method])
        if ours:
            row = [
                f"{told} ({len(ours)})",
                _both(ours, method),
                str(_change(ours, method, "ood")),
                _gain(ours, method),
            ]
            for axis in ("ood", "id"):
                ahead = _change(ours, "auto", axis, method)
                row.append("" if method == "auto" else str(ahead))
            rows.append(row)
    return rows


def equal_by_target(every: Sequence[Results]) -> Rows:
    """The same by target: ID / OOD."""
    by_target = _by_target(_having(every, _WITH_LABELS))
    head = ["method"]
    for name, ours in by_target.items():
        head.append(f"{name} ({len(ours)})")
    rows = [head]
    for method, told in _EQUAL.items():
        cells = []
        for ours in by_target.values():
            every_pair = len(_having(ours, [method])) == len(ours)
            cells.append(_both(ours, method) if every_pair else "")
        if any(cells) and method not in _MEANS_ONLY:
            rows.append([told, *cells])
    return rows


def seeds(every: Sequence[Results]) -> Rows:
    """`auto` of b6559b43 learned several times: ID / OOD of each seed."""
    names = ("auto-160x20", "auto-160x20 seed=1", "auto-160x20 seed=2")
    rows = [["pair", "seed 0", "seed 1", "seed 2"]]
    for each in every:
        if all(name in each.methods for name in names):
            rows.append([each.name, *(_both([each], name) for name in names)])
    return rows


def over_curves(every: Sequence[Results]) -> Rows:
    """`auto` against the whole curve of each way to use the labels, at equal ID accuracy."""
    pairs = _having(every, _WITH_LABELS)
    rows = [["target (pairs)", "the curve", "continued", "anew", "beats / beaten / neither, anew"]]
    groups = {**_by_target(pairs), "every target": pairs}
    for target, ours in groups.items() if pairs else ():
        row = [f"{target} ({len(ours)})"]
        for curve in (CURVE, "continued", "anew"):
            row.append(_gain(ours, "auto", curve))
        row.append(_standing(ours, "auto", "anew"))
        rows.append(row)
    return rows


def advice(_: Sequence[Results]) -> Rows:
    """Advice by number of images: merges that are right, of those that were told so."""
    found = counted(read_merges(), by_images)
    advices = sorted(found["all"])
    rows = [["images", *advices]]
    for size, told in found.items():
        cells = [size]
        for each in advices:
            right, count = told.get(each, (0, 0))
            cells.append(f"{right} of {count}")
        rows.append(cells)
    return rows


_TABLES: dict[str, Callable[[Sequence[Results]], Rows]] = {
    "leaderboard": leaderboard,
    "merged": merged,
    "merged-before": merged_before,
    "equal-labels": equal_labels,
    "equal-by-target": equal_by_target,
    "over-curves": over_curves,
    "seeds": seeds,
    "advice": advice,
    "new-targets": new_targets,
    "face": face,
}
