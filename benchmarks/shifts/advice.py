"""Each pair alone, with the advice that the merge gave about itself, and whether the test pictures
agree."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.shifts.claims_page import table
from benchmarks.shifts.standing import Floats, Resampled, over_pairs, told_accuracies
from benchmarks.shifts.summary import QUARTER

#: Recipes whose merges are shown pair by pair.
_RECIPES = ("auto", QUARTER, "straggler-sparse")
# a loss of exactly 3 points may come out a little larger, as a difference of ratios
_LIMIT = 0.03 + 1e-9
_ABOUT = (
    "Pair by pair, ID / OOD accuracy in %: the gain is at equal ID accuracy, the next column the"
    " OOD accuracy above that of alpha 0.5, both with their interval over pictures. The last column"
    " is the advice that the merge ended with, and whether the test pictures agree: *use* is right"
    " if the merged model has at least the fine-tuned model's OOD accuracy and at most 3 points"
    " less ID accuracy, *prefer-finetuned* if not, *either* if both differ by at most 3 points."
)


def tables(pairs: Sequence[Resampled], recipes: Sequence[str] = _RECIPES) -> list[str]:
    """Paragraphs and tables of one benchmark's page; none if its recipes gave no advice."""
    parts = []
    for title, tuning in (("Held-out pairs", False), ("Tuning pairs", True)):
        chosen = [pair for pair in pairs if pair.record["tuning"] == tuning]
        for recipe in recipes:
            rows = [_row(pair, recipe) for pair in chosen if _advice(pair, recipe)]
            if rows:
                head = [
                    "zero-shot",
                    "fine-tuned",
                    "alpha 0.5",
                    "best alpha",
                    f"`{recipe}`",
                    "gain",
                    "above 0.5",
                    "advice",
                ]
                parts.append(table([f"{title}, `{recipe}`", *head], rows))
                parts.append(_counted([pair for pair in chosen if _advice(pair, recipe)], recipe))
    return [_ABOUT, *parts] if parts else []


def kept_accuracy(pairs: Sequence[Resampled], recipes: Sequence[str] = _RECIPES) -> list[str]:
    """Sentences on the robustness of merges that keep the fine-tuned model's ID accuracy, by
    recipe."""
    sentences = []
    for recipe in recipes:
        kept = [
            pair
            for pair in pairs
            if pair.has(recipe) and _over_finetuned(pair.id, pair, recipe) >= -_LIMIT
        ]
        gains = [
            [
                _over_finetuned(pair.ood, pair, recipe)
                for pair in kept
                if pair.record["tuning"] == tuning
            ]
            for tuning in (False, True)
        ]
        if any(gains):
            held_out, tuned = [
                f"{sum(gain >= 0 for gain in found)} of {len(found)}" for found in gains
            ]
            sentences.append(
                f"Where `{recipe}` loses at most 3 points of the fine-tuned model's ID accuracy, it"
                f" has at least its OOD accuracy on {held_out} held-out and {tuned} tuning pairs;"
                " the worst difference is"
                f" {100 * min(min(found, default=1.0) for found in gains):+.1f} points."
            )
    return sentences


def agrees(pair: Resampled, recipe: str) -> bool | None:
    """Whether the test pictures agree with the advice; ``None`` if it was that there were too few
    images to tell."""
    advice, at = _advice(pair, recipe), pair.point(recipe)
    lost, gained = -_over_finetuned(pair.id, pair, recipe), _over_finetuned(pair.ood, pair, recipe)
    if advice == "use":
        return bool(gained >= 0 and lost <= _LIMIT)
    if advice == "prefer-finetuned":
        return bool(gained < 0 or lost > _LIMIT)
    if advice == "prefer-zeroshot":
        return bool(pair.id[0, 0] >= pair.id[0, at] and pair.ood[0, 0] >= pair.ood[0, at])
    return bool(abs(gained) <= _LIMIT and abs(lost) <= _LIMIT) if advice == "either" else None


def _over_finetuned(accuracy: Floats, pair: Resampled, recipe: str) -> float:
    return float(accuracy[0, pair.point(recipe)] - accuracy[0, pair.curve.stop - 1])


def _advice(pair: Resampled, recipe: str) -> str:
    found = [
        row.get("recommendation") or "" for row in pair.record["recipes"] if row["name"] == recipe
    ]
    return found[0] if found else ""


def _row(pair: Resampled, recipe: str) -> list[str]:
    half = pair.record["alphas"].index(0.5)
    best = (
        f"{told_accuracies([pair], lambda pair: pair.oracle)}"
        f" ({pair.record['alphas'][pair.oracle]:g})"
    )
    ends = [
        told_accuracies([pair], lambda _, place=place: place)
        for place in (0, pair.curve.stop - 1, half)
    ]
    agreed = {True: "right", False: "wrong", None: "undecided"}[agrees(pair, recipe)]
    gains = [over_pairs([each]).told for each in (pair.gain(recipe), _above_half(pair, recipe))]
    return [
        pair.name,
        *ends,
        best,
        told_accuracies([pair], lambda pair: pair.point(recipe)),
        *gains,
        f"{_advice(pair, recipe)}: {agreed}",
    ]


def _counted(pairs: Sequence[Resampled], recipe: str) -> str:
    found = [agrees(pair, recipe) for pair in pairs]
    gain = over_pairs([pair.gain(recipe) for pair in pairs]).told
    above = over_pairs([_above_half(pair, recipe) for pair in pairs]).told
    counts = (
        f"right on {found.count(True)}, wrong on {found.count(False)}, undecided on"
        f" {found.count(None)}"
    )
    safe = [pair for pair in pairs if _is_above_both(pair, recipe)]
    within = [pair for pair in pairs if _is_within_limit(pair, recipe)]
    return (
        f"`{recipe}` over the {len(pairs)} pairs: gain {gain}, above alpha 0.5 {above}; advice"
        f" {counts}. More accurate under shift than both alpha 0.5 and the fine-tuned model, at a"
        f" loss of at most 3 points of ID accuracy: {len(safe)}. A loss of ID accuracy within 3"
        f" points plus its standard error: {len(within)}."
    )


def _is_above_both(pair: Resampled, recipe: str) -> bool:
    """Whether a merge is above alpha 0.5 and fine-tuned under shift, at a small loss of ID
    accuracy."""
    better = min(_above_half(pair, recipe)[0], _over_finetuned(pair.ood, pair, recipe))
    return bool(better > 0 and _over_finetuned(pair.id, pair, recipe) >= -_LIMIT)


def _is_within_limit(pair: Resampled, recipe: str) -> bool:
    """Whether the loss of ID accuracy is within the limit, with a standard error over pictures."""
    lost = pair.id[:, pair.curve.stop - 1] - pair.id[:, pair.point(recipe)]
    return bool(lost[0] <= _LIMIT + lost[1:].std())


def _above_half(pair: Resampled, recipe: str) -> Floats:
    """OOD accuracy above that of alpha 0.5."""
    above: Floats = pair.ood[:, pair.point(recipe)] - pair.ood[:, pair.record["alphas"].index(0.5)]
    return above
