"""The first screen of the results page: the gains of the main recipes on the held-out pairs of every testbed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.shifts.standing import Estimate, Resampled, over_pairs, told_accuracies
from clipmerge.report.palette import mark_styles

#: Recipes of the first screen, with the colour and marker that they have in every picture.
_SHOWN = ("auto", "straggler-sparse", "auto-first-round")
MAIN = dict(zip(_SHOWN, mark_styles(_SHOWN), strict=True))
Groups = Mapping[tuple[str, str], Sequence[Resampled]]


def held_out(testbeds: Mapping[str, Sequence[Resampled]]) -> dict[tuple[str, str], list[Resampled]]:
    """Held-out pairs on which the main recipe has been run, by title of the testbed and regime."""
    found: dict[tuple[str, str], list[Resampled]] = {}
    for title, pairs in testbeds.items():
        for pair in pairs:
            if not pair.record["tuning"] and pair.has("auto"):
                found.setdefault((title, pair.record["regime"]), []).append(pair)
    return dict(sorted(found.items(), key=lambda item: (item[0][1], list(testbeds).index(item[0][0]))))


def gain_of(recipe: str, pairs: Sequence[Resampled]) -> Estimate:
    """Mean gain at equal ID accuracy of one recipe, over the pairs merged with it."""
    having = [pair.gain(recipe) for pair in pairs if pair.has(recipe)]
    return over_pairs(having) if having else Estimate(None, None, 0)


def rows(groups: Groups) -> list[list[str]]:
    """Rows of the table: pairs, accuracies of both ends and of `auto`, and gains of the main recipes."""
    lines = []
    for (title, regime), pairs in groups.items():
        zeroshot = told_accuracies(pairs, lambda pair: 0)
        finetuned = told_accuracies(pairs, lambda pair: len(pair.record["curve"]) - 1)
        merged = told_accuracies(pairs, lambda pair: pair.point("auto"))
        gains = [gain_of(recipe, pairs).told for recipe in MAIN]
        lines.append([f"{title}, {regime} ({len(pairs)})", zeroshot, finetuned, merged, *gains])
    return lines


def summary_png(groups: Groups) -> bytes:
    """Draw the gains with their intervals, one line per testbed and regime."""
    figure = Figure(figsize=(8.0, 1.2 + 0.62 * len(groups)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axvline(0, color="#1f6fb2", linewidth=1.2)
    for shift, (recipe, (colour, marker)) in enumerate(MAIN.items()):
        for line, pairs in enumerate(groups.values()):
            estimate = gain_of(recipe, pairs)
            if estimate.value is None:
                continue
            at, value = line + 0.22 * (shift - 1), 100 * estimate.value
            ends = np.array(estimate.interval or (np.nan, np.nan)) * 100
            axes.errorbar(
                [value],
                [at],
                xerr=np.abs(ends - value)[:, None],
                color=colour,
                marker=marker,
                markersize=7,
                capsize=2,
                linestyle="none",
                label=recipe if line == 0 else None,
            )
    axes.set_yticks(
        range(len(groups)), [f"{title},\n{regime} ({len(pairs)})" for (title, regime), pairs in groups.items()]
    )
    axes.invert_yaxis()
    axes.set_xlabel("OOD points above the WiSE-FT curve (blue) at equal ID accuracy")
    axes.grid(axis="x", color="#eceff2")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(fontsize=8, loc="best")
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
