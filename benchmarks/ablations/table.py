"""Which rules, which schedule and which start of `auto` earn their place: tables from JSON alone.

`python benchmarks/ablations/table.py` reads `pairs/*.json` beside it, one file a pair, and prints
Markdown. How the numbers were made:

- Pairs are for tuning alone: EfficientNet-Lite0 at 112 pixels on PACS' paintings (made for this:
  seed 10, 400 paintings, "mild"), the demo's digits, printed digits ("tuning"), small emoji (seed
  0). Noise, blur and inversion of the target were added as shifts under which fine-tuning may help.
- A pair has 240 labelled images of the target (emoji 480): 64% learn, 16% are V1 and 20% are
  V2, balanced over the classes. Learning is `auto`'s as its paper-like summary states it, written
  out: cross-entropy of weak views, plus 0.6 times half the KL divergence and twice the cosine
  distance to the mean of two teachers (alpha 0 and 0.5) on strong views; Adam with one second
  moment per tensor, rate 0.033 x cosine. `options` of a run name what differs.
- A run keeps, for each backoff t of its grid (theta = c + t (1 - c)), which held-out images were
  recognised as they are and in how many views, and which test pictures of the target and of each
  shift were. The curve keeps the same for alpha, and for the images of learning from alpha 0.5 up.
- So every rule of choice is computed here, after the fact, from the same learning.

Everything is resampled together: held-out images (the choice is made anew in each resample), images
of learning, and test pictures. A number is the mean over resamples, its interval their 2.5th to
97.5th percentile; pairs of one testbed are averaged, not resampled.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
HERE = Path(__file__).parent
RESAMPLES = 200
MAX_LOSS = 0.03
#: Gain and loss are in points of accuracy.
POINTS = 100


@dataclass(frozen=True)
class Rules:
    """The rules by which held-out images choose.

    Attributes:
        looks: Whether images as they are count ("plain"), their views, or half of each.
        prior: What the standard error adds: Agresti and Min's two images "scaled" by the distance,
            "fixed", or "none".
        together: Whether V1 and V2 choose, or V1 alone.
        alpha: Who chooses an alpha where no backoff is safe: "all" images, those of "val", or
            nobody, which is alpha 1.
        balance: Classes count alike: "uneven" where one has more than twice the images of another,
            "always" or "never".
    """

    looks: str = "half"
    prior: str = "scaled"
    together: bool = True
    alpha: str = "all"
    balance: str = "uneven"


RULES = {
    "as it is": Rules(),
    "plain images alone": Rules(looks="plain"),
    "views alone": Rules(looks="views"),
    "prior of two images, not scaled": Rules(prior="fixed"),
    "no prior": Rules(prior="none"),
    "V1 alone chooses": Rules(together=False),
    "alpha by val alone": Rules(alpha="val"),
    "alpha 1 where nothing is safe": Rules(alpha="none"),
    "never balanced": Rules(balance="never"),
    "always balanced": Rules(balance="always"),
    "all five out": Rules("plain", "fixed", False, "none", "never"),
    "all five out, together kept": Rules("plain", "fixed", True, "none", "never"),
    "lean: plain, scaled, together, no alpha": Rules("plain", "scaled", True, "none", "never"),
}


def unpacked(stored: dict[str, Any]) -> Floats:
    """Bits as numbers."""
    bits = np.frombuffer(base64.b64decode(stored["bits"]), np.uint8)
    count = int(np.prod(stored["shape"]))
    return np.unpackbits(bits, count=count).reshape(stored["shape"]).astype(float)


@dataclass(frozen=True, eq=False)
class Judged:
    """Points as images saw them: (points, images)."""

    plain: Floats
    views: Floats

    @classmethod
    def read(cls, rows: Iterable[dict[str, Any]], rounds: int) -> Judged:
        rows = list(rows)
        plain = np.stack([unpacked(row["plain"]) for row in rows])
        return cls(plain, np.array([row["views"] for row in rows], float) / rounds)

    def by(self, looks: str) -> Floats:
        return {"plain": self.plain, "views": self.views, "half": (self.plain + self.views) / 2}[
            looks
        ]


class Pair:
    """One pair: its curve, and its runs by name."""

    def __init__(self, file: Path) -> None:
        record = json.loads(file.read_text(encoding="utf-8"))
        curve = record["curve"]
        self.name, self.testbed, self.images = curve["pair"], curve["testbed"], curve["images"]
        self.alphas = np.array(curve["alphas"])
        self.count_v1 = curve["v1"]
        self.labels, self.train_labels = map(np.array, (curve["labels"], curve["train_labels"]))
        self.tests = stacked(curve["tests"])
        upper = [str(alpha) for alpha in curve["alphas"] if alpha >= 0.5]
        self.upper = [float(alpha) for alpha in upper]
        self.val = Judged.read((curve["val"][alpha] for alpha in upper), curve["rounds"])
        self.train = Judged.read((curve["train"][alpha] for alpha in upper), curve["train_rounds"])
        self.runs = {name: Run(self, run, curve["rounds"]) for name, run in record["runs"].items()}
        self.shifts = [name for name in self.tests if name != "test"]

    def helped(self, shift: str) -> bool:
        """Whether fine-tuning raised the accuracy under a shift."""
        right = self.tests[shift].mean(1)
        return bool(right[-1] > right[0])


class Run:
    """One learning: points by backoff."""

    def __init__(self, pair: Pair, run: dict[str, Any], rounds: int) -> None:
        self.pair, self.options, self.seconds = pair, run["options"], run["seconds"]
        self.grid = np.array(run["grid"])
        self.val = Judged.read(run["val"], rounds)
        self.tests = stacked(run["tests"])


def stacked(rows: Sequence[dict[str, Any]]) -> dict[str, Floats]:
    """By source, (points, pictures)."""
    return {name: np.stack([unpacked(row[name]) for row in rows]) for name in rows[0]}


@dataclass(frozen=True)
class Draw:
    """One resample of a pair: positions of held-out, learning and test pictures."""

    val: NDArray[np.int64]
    train: NDArray[np.int64]
    tests: dict[str, NDArray[np.int64]]


@cache
def draws(pair: Pair, how: str = "") -> list[Draw]:
    """Resamples, the same for all runs and rules. "uneven" draws the k-th class 1/k as often; "few"
    draws as many held-out and learning images as 64 images give."""
    rng = np.random.default_rng(0)
    weights = 1.0 / (1 + pair.labels) if how == "uneven" else np.ones(len(pair.labels))
    parts = np.split(np.arange(len(pair.labels)), [pair.count_v1])
    counts = (10, 13, 41) if how == "few" else (*map(len, parts), len(pair.train_labels))
    made = []
    for _ in range(RESAMPLES):
        val = [
            rng.choice(part, count, p=weights[part] / weights[part].sum())
            for part, count in zip(parts, counts[:2], strict=True)
        ]
        train = rng.integers(len(pair.train_labels), size=counts[2])
        tests = {
            name: rng.integers(right.shape[1], size=right.shape[1])
            for name, right in pair.tests.items()
        }
        made.append(Draw(np.concatenate(val), train, tests))
    return made


def safe(points: Floats, finetuned: Floats, labels: Any, distance: Floats, rules: Rules) -> Any:
    """Which points lose at most the limit, standard error included: (points,)."""
    differences = finetuned - points
    counts = np.unique(labels, return_counts=True)
    per_class = dict(zip(*counts, strict=True))
    uneven = max(per_class.values()) > 2 * min(per_class.values())
    if rules.balance == "always" or (rules.balance == "uneven" and uneven):
        weights = [len(labels) / (len(per_class) * per_class[label]) for label in labels]
        differences = differences * np.array(weights)
    added = 0.0 if rules.prior == "none" else 2.0
    squares = {"scaled": distance, "fixed": np.ones_like(distance), "none": 0.0}[rules.prior]
    images = differences.shape[1] + added
    mean = differences.sum(1) / images
    square = ((differences**2).sum(1) + squares) / images
    error = np.sqrt(np.maximum(0, square - mean**2) / images)
    return mean + error <= MAX_LOSS + 1e-9


def choose(run: Run, rules: Rules, draw: Draw) -> tuple[str, int]:
    """("backoff", index in the grid) or ("alpha", index in the curve)."""
    pair = run.pair
    val = draw.val if rules.together else draw.val[draw.val < pair.count_v1]
    finetuned = pair.val.by(rules.looks)[-1, val]
    points = run.val.by(rules.looks)[:, val]
    good = safe(points, finetuned, pair.labels[val], 1 - run.grid, rules)
    if good.any():
        return "backoff", int(good.argmax())
    last = len(pair.alphas) - 1
    if rules.alpha == "none":
        return "alpha", last
    points, labels = pair.val.by(rules.looks)[:, val], pair.labels[val]
    if rules.alpha == "all":
        points = np.hstack([points, pair.train.by(rules.looks)[:, draw.train]])
        labels = np.concatenate([labels, pair.train_labels[draw.train]])
    good = safe(points, points[-1], labels, 2 * (1 - np.array(pair.upper)), rules)
    return "alpha", last - len(pair.upper) + 1 + int(good.argmax())


def outcome(run: Run, chosen: tuple[str, int], draw: Draw) -> dict[str, float]:
    """Accuracy by source of the chosen point."""
    tests = (run if chosen[0] == "backoff" else run.pair).tests
    return {name: float(tests[name][chosen[1], at].mean()) for name, at in draw.tests.items()}


def height(pair: Pair, draw: Draw, accuracy: float) -> float:
    """Best mean accuracy under shift of the straight path at this accuracy or more; where no alpha
    is as accurate, that of the most accurate one."""
    one = pair.tests["test"][:, draw.tests["test"]].mean(1)
    other = np.mean([pair.tests[name][:, draw.tests[name]].mean(1) for name in pair.shifts], axis=0)
    fine = np.linspace(0, len(one) - 1, 101)
    one, other = (np.interp(fine, np.arange(len(one)), each) for each in (one, other))
    enough = one >= accuracy
    return float(other[enough].max() if enough.any() else other[one.argmax()])


class TwoStarts:
    """Two learnings, of which val takes the one that it recognises better at its choice; the first
    if it recognises both alike."""

    def __init__(self, *runs: Run) -> None:
        self.runs, self.pair = runs, runs[0].pair
        self.seconds = sum(run.seconds for run in runs)

    def settled(self, rules: Rules, draw: Draw) -> Run:
        def accuracy(run: Run) -> float:
            kind, at = choose(run, rules, draw)
            last = at - len(run.pair.alphas)
            points = run.val.by(rules.looks) if kind == "backoff" else run.pair.val.by(rules.looks)
            return float(points[at if kind == "backoff" else last, draw.val].mean())

        return max(self.runs, key=accuracy)


@cache
def measured(run: Run | TwoStarts, rules: Rules, how: str = "") -> Floats:
    """By resample: accuracy minus fine-tuned, under shift minus fine-tuned, gain over the curve;
    then each shift minus fine-tuned."""
    pair, rows, given = run.pair, [], run
    for draw in draws(pair, how):
        run = given.settled(rules, draw) if isinstance(given, TwoStarts) else given
        found = outcome(run, choose(run, rules, draw), draw)
        ends = {name: pair.tests[name][-1, at].mean() for name, at in draw.tests.items()}
        over = [found[name] - ends[name] for name in pair.shifts]
        shifted = float(np.mean([found[name] for name in pair.shifts]))
        gain = shifted - height(pair, draw, found["test"])
        rows.append([found["test"] - ends["test"], np.mean(over), gain, *over])
    return POINTS * np.array(rows)


def told(values: Floats) -> str:
    """Mean and interval of a mean over resamples."""
    low, high = np.quantile(values, [0.025, 0.975])
    return f"{values.mean():+.1f} [{low:+.1f}, {high:+.1f}]"


def testbeds(pairs: Sequence[Pair]) -> list[str]:
    return sorted({pair.testbed for pair in pairs})


def add_two_starts(pairs: Sequence[Pair], name: str, *runs: str) -> None:
    """Add the choice of val between learnings as a run of its own."""
    for pair in pairs:
        if set(runs) <= set(pair.runs):
            pair.runs[name] = TwoStarts(*(pair.runs[run] for run in runs))


def with_run(pairs: Sequence[Pair], name: str, testbed: str | None = None) -> list[Run]:
    return [
        pair.runs[name] for pair in pairs if name in pair.runs and testbed in (None, pair.testbed)
    ]


def mean_of(runs: Sequence[Run], rules: Rules, column: int, how: str = "") -> Floats:
    return np.mean([measured(run, rules, how)[:, column] for run in runs], axis=0)


def too_much(runs: Sequence[Run], rules: Rules, how: str = "") -> float:
    """Share of choices that lose more than the limit and a standard error of all test pictures."""
    found = []
    for run in runs:
        for draw in draws(run.pair, how):
            kind, at = choose(run, rules, draw)
            right = (run if kind == "backoff" else run.pair).tests["test"][at]
            lost = run.pair.tests["test"][-1] - right
            found.append(lost.mean() - lost.std() / np.sqrt(len(lost)) > MAX_LOSS)
    return POINTS * float(np.mean(found))


def rule_table(pairs: Sequence[Pair], run: str, how: str = "") -> list[str]:
    """Each rule out: change of the gain under shift and over the curve, by testbed."""
    beds = [bed for bed in testbeds(pairs) if with_run(pairs, run, bed)]
    lines = [
        "| rules | " + " | ".join(f"{bed}: shift, gain" for bed in beds) + " | ID, too much lost |",
        "|---" * (len(beds) + 2) + "|",
    ]
    for name, rules in RULES.items():
        cells = []
        for bed in beds:
            runs = with_run(pairs, run, bed)
            values = [mean_of(runs, rules, column, how) for column in (1, 2)]
            if rules != Rules():
                values = [
                    value - mean_of(runs, Rules(), column, how)
                    for value, column in zip(values, (1, 2), strict=True)
                ]
            cells.append(", ".join(map(told, values)))
        runs = with_run(pairs, run)
        lost = f"{mean_of(runs, rules, 0, how).mean():+.1f}, {too_much(runs, rules, how):.1f}%"
        lines.append(f"| {name} | {' | '.join(cells)} | {lost} |")
    return lines


def run_table(
    pairs: Sequence[Pair], names: Sequence[str], rules: Rules = RULES["as it is"]
) -> list[str]:
    """Runs beside each other on the pairs that have all of them."""
    having = [pair for pair in pairs if all(name in pair.runs for name in names)]
    beds = testbeds(having)
    if not having:
        return ["no pair has all of " + ", ".join(names)]
    lines = [
        f"{len(having)} pairs: " + ", ".join(f"{pair.name} ({pair.images})" for pair in having),
        "",
        "| run | ID - fine-tuned | shift - fine-tuned | "
        + " | ".join(f"gain, {bed}" for bed in beds)
        + " | gain, mean | where hurt | where helped | below fine-tuned | both axes | seconds |",
        "|---" * (len(beds) + 9) + "|",
    ]
    for name in names:
        runs = [pair.runs[name] for pair in having]
        gains = [told(mean_of(with_run(having, name, bed), rules, 2)) for bed in beds]
        cells = [told(mean_of(runs, rules, 0)), told(mean_of(runs, rules, 1)), *gains]
        cells.append(told(mean_of(runs, rules, 2)))
        kinds: dict[bool, list[Floats]] = {False: [], True: []}
        below = both = 0
        for run in runs:
            for at, shift in enumerate(run.pair.shifts):
                values = measured(run, rules)[:, 3 + at]
                kinds[run.pair.helped(shift)].append(values)
                below += bool(np.quantile(values, 0.975) < 0)
                both += bool(values.mean() < 0 and measured(run, rules)[:, 0].mean() < 0)
        for helped in (False, True):
            cells.append(told(np.mean(kinds[helped], axis=0)) if kinds[helped] else "")
        total = len(kinds[False]) + len(kinds[True])
        seconds = np.mean([run.seconds for run in runs])
        cells += [f"{below} of {total}", f"{both}", f"{seconds:.0f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def change_table(pairs: Sequence[Pair], names: Sequence[str]) -> list[str]:
    """Gain of the first run, and the change of it by each other one, on the same resamples."""
    having = [pair for pair in pairs if all(name in pair.runs for name in names)]
    if not having:
        return ["no pair has all of " + ", ".join(names)]
    beds = testbeds(having)
    lines = [
        "| run | " + " | ".join([*beds, "mean of pairs"]) + " |",
        "|---" * (len(beds) + 2) + "|",
    ]
    for name in names:
        cells = []
        for bed in [*beds, None]:
            values = mean_of(with_run(having, name, bed), Rules(), 2)
            first = mean_of(with_run(having, names[0], bed), Rules(), 2)
            cells.append(told(values if name == names[0] else values - first))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def detail_table(pairs: Sequence[Pair], names: Sequence[str]) -> list[str]:
    """ID / each shift, minus fine-tuned, pair by pair."""
    lines = ["| pair | source | zero-shot; fine-tuned | " + " | ".join(names) + " |"]
    lines.append("|---" * (3 + len(names)) + "|")
    for pair in pairs:
        for at, source in enumerate(["test", *pair.shifts]):
            ends = POINTS * pair.tests[source].mean(1)[[0, -1]]
            column = 0 if source == "test" else 2 + at
            cells = [
                told(measured(pair.runs[name], Rules())[:, column]) if name in pair.runs else ""
                for name in names
            ]
            lines.append(
                f"| {pair.name} | {source} | {ends[0]:.1f}; {ends[1]:.1f} | {' | '.join(cells)} |"
            )
    return lines


@dataclass(frozen=True)
class Choice:
    """What labelled images of a shift choose among.

    Attributes:
        runs: Learnings, each with its backoffs; the first is `auto` alone.
        alphas: Whether the straight path from 0.5 up is among the points.
        errors: Standard errors by which a point must be better than `auto` alone.
    """

    runs: tuple[str, ...]
    alphas: bool = False
    errors: float = 0.0


def by_labels(
    pair: Pair, runs: Sequence[str], shift: str, draw: Draw, rng: Any, count: int, how: Choice
) -> tuple[float, float, float]:
    """Let half of ``count`` labelled images of a shift choose among safe points.

    Returns:
        Gain over `auto` alone (the first of the runs) on the other pictures of the shift, on the
        other shifts, and on the target.
    """
    rules = Rules()
    order = rng.permutation(pair.tests[shift].shape[1])
    chosen_by, judged_by = order[: count // 2], order[count // 2 :]
    val = draw.val
    finetuned = pair.val.by(rules.looks)[-1, val]
    points: list[dict[str, Floats]] = []
    for name in runs:
        run = pair.runs[name]
        good = safe(run.val.by("half")[:, val], finetuned, pair.labels[val], 1 - run.grid, rules)
        points += [{n: t[at] for n, t in run.tests.items()} for at in np.flatnonzero(good)]
    first = len(pair.alphas) - len(pair.upper)
    if how.alphas:
        straight = pair.val.by("half")[:, val]
        distance = 2 * (1 - np.array(pair.upper))
        good = safe(straight, finetuned, pair.labels[val], distance, rules)
        points += [{n: t[first + at] for n, t in pair.tests.items()} for at in np.flatnonzero(good)]
    points.append({n: t[-1] for n, t in pair.tests.items()})
    kind, at = choose(pair.runs[runs[0]], rules, draw)
    source = pair.runs[runs[0]] if kind == "backoff" else pair
    alone = {n: t[at] for n, t in source.tests.items()}
    best = max(points, key=lambda point: point[shift][chosen_by].mean())
    more = best[shift][chosen_by] - alone[shift][chosen_by]
    if more.mean() <= how.errors * more.std() / np.sqrt(len(more)):
        best = alone
    others = [n for n in pair.shifts if n != shift]
    elsewhere = [best[n].mean() - alone[n].mean() for n in others]
    return (
        best[shift][judged_by].mean() - alone[shift][judged_by].mean(),
        float(np.mean(elsewhere)) if others else np.nan,
        best["test"].mean() - alone["test"].mean(),
    )


def ood_table(pairs: Sequence[Pair], kinds: dict[str, Choice], count: int) -> list[str]:
    """What labels of a shift gain, each shift of each pair in turn."""
    needed = {name for how in kinds.values() for name in how.runs}
    having = [pair for pair in pairs if needed <= set(pair.runs)]
    lines = [
        f"{len(having)} pairs, {sum(len(pair.shifts) for pair in having)} shifts,"
        f" {count} labelled images of each, half of them choose",
        "",
        "| choice among | all: other half; other shifts; target | where hurt | where helped |",
        "|---" * 4 + "|",
    ]
    for name, how in kinds.items():
        found: dict[bool, list[Floats]] = {False: [], True: []}
        for pair in having:
            for shift in pair.shifts:
                rng = np.random.default_rng(1)
                rows = [
                    by_labels(pair, how.runs, shift, draw, rng, count, how) for draw in draws(pair)
                ]
                found[pair.helped(shift)].append(POINTS * np.array(rows))
        cells = []
        for part in (found[False] + found[True], found[False], found[True]):
            cells.append(
                "; ".join(told(np.nanmean(part, axis=0)[:, at]) for at in range(3)) if part else ""
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def read(folder: Path = HERE / "pairs") -> list[Pair]:
    return [Pair(file) for file in sorted(folder.glob("*.json"))]


SIXTEENTH, EIGHTH = "start=.5", "start=.5;steps=160;batch=10;strong=10"
QUARTER, WHOLE = "start=.5;steps=160;batch=20;strong=20", "start=.5;steps=320;batch=40;strong=40"
EIGHTH_FROM_075 = "start=.75;steps=160;batch=10;strong=10"
STARTS = (SIXTEENTH, "start=.75", "start=1.")


def main() -> None:
    """Print every table."""
    pairs = read()
    add_two_starts(pairs, "val of 0.5 and 1", SIXTEENTH, "start=1.")
    for how in ("", "uneven", "few"):
        print(f"\n## Rules of the choice, a sixteenth from 0.5 {how}\n")
        print("\n".join(rule_table(pairs, SIXTEENTH, how)))
    for title, names in {
        "Starts, a sixteenth": (*STARTS, "val of 0.5 and 1"),
        "Schedules": (QUARTER, EIGHTH, SIXTEENTH),
        "Schedules and the start": (EIGHTH, EIGHTH_FROM_075, SIXTEENTH, "start=.75"),
        "The whole": (WHOLE, QUARTER, EIGHTH, SIXTEENTH),
    }.items():
        print(f"\n## {title}\n")
        print("\n".join([*run_table(pairs, names), "", *change_table(pairs, names)]))
    print("\n## Pair by pair\n")
    print("\n".join(detail_table(pairs, STARTS)))
    both = (SIXTEENTH, "start=1.")
    kinds = {
        "backoffs": Choice((SIXTEENTH,)),
        "backoffs and alphas": Choice((SIXTEENTH,), alphas=True),
        "backoffs of two starts": Choice(both),
        "all, if better by a standard error": Choice(both, alphas=True, errors=1.0),
    }
    print("\n## Labels of a shift\n")
    print("\n".join(ood_table(pairs, kinds, 100)))


if __name__ == "__main__":
    main()
