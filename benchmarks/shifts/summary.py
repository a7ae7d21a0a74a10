"""The first tables of the results page, and README's table and picture: the main recipes on
held-out pairs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.shifts.standing import Estimate, Resampled, over_pairs, told_accuracies
from clipmerge.report.figures import CURVE, GRID, mark_styles

#: Recipes of the comparison on the results page, with their colour and marker in every picture.
_SHOWN = ("auto", "straggler-sparse", "auto-first-round")
MAIN = dict(zip(_SHOWN, mark_styles(_SHOWN), strict=True))
#: Models of README's picture, with the names of its table.
_DRAWN = {"zero-shot": "zero-shot", "fine-tuned": "fine-tuned", "auto": "merged (auto)"}
#: `auto` with a quarter of the work, which stands for it where it took too long.
QUARTER = "auto-quarter"
Groups = Mapping[tuple[str, str], Sequence[Resampled]]


def held_out(testbeds: Mapping[str, Sequence[Resampled]]) -> dict[tuple[str, str], list[Resampled]]:
    """Held-out pairs on which the main recipe has been run, by title of the testbed and regime."""
    found: dict[tuple[str, str], list[Resampled]] = {}
    for title, pairs in testbeds.items():
        for pair in pairs:
            if not pair.record["tuning"] and pair.has(as_run(pair, "auto")):
                found.setdefault((title, pair.record["regime"]), []).append(pair)
    return dict(
        sorted(found.items(), key=lambda item: (item[0][1], list(testbeds).index(item[0][0])))
    )


def as_run(pair: Resampled, recipe: str) -> str:
    """The recipe, or the form of it with which the pair was merged."""
    return QUARTER if recipe == "auto" and not pair.has(recipe) else recipe


def gain_of(recipe: str, pairs: Sequence[Resampled]) -> Estimate:
    """Mean gain at equal ID accuracy of one recipe, over the pairs merged with it."""
    forms = [(pair, as_run(pair, recipe)) for pair in pairs]
    having = [pair.gain(form) for pair, form in forms if pair.has(form)]
    return over_pairs(having) if having else Estimate(None, None, 0)


def rows(groups: Groups) -> list[list[str]]:
    """Rows of the results page: pairs, accuracies, and gains of the main recipes."""
    return [
        [f"{title}, {regime} ({len(pairs)})", *_accuracies(pairs)]
        + [gain_of(recipe, pairs).told for recipe in MAIN]
        for (title, regime), pairs in groups.items()
    ]


def readme_rows(named: Mapping[str, Sequence[Resampled]]) -> list[list[str]]:
    """Rows of README's table and of the results page's first: pairs, accuracies, gain of `auto`."""
    return [
        [f"{name} ({len(pairs)})", *_accuracies(pairs), gain_of("auto", pairs).told]
        for name, pairs in named.items()
    ]


def _accuracies(pairs: Sequence[Resampled]) -> list[str]:
    """Accuracies of the zero-shot, the fine-tuned and the merged model."""
    return [
        told_accuracies(pairs, lambda pair: 0),
        told_accuracies(pairs, lambda pair: len(pair.record["curve"]) - 1),
        told_accuracies(pairs, lambda pair: pair.point(as_run(pair, "auto"))),
    ]


def summary_png(groups: Groups) -> bytes:
    """Draw the gains with their intervals, one line per testbed and regime."""
    figure = Figure(figsize=(8.0, 1.2 + 0.62 * len(groups)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axvline(0, color=CURVE, linewidth=1.2)
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
                label=None if recipe in axes.get_legend_handles_labels()[1] else recipe,
            )
    axes.set_yticks(
        range(len(groups)),
        [f"{title},\n{regime} ({len(pairs)})" for (title, regime), pairs in groups.items()],
    )
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlabel("OOD points above the WiSE-FT curve (blue) at equal ID accuracy")
    axes.grid(axis="x", color=GRID)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(fontsize=8, loc="best")
    return _png(figure)


def accuracies_png(rows: Mapping[str, Sequence[Resampled]]) -> bytes:
    """Draw what each model can do on the target data and under shifts, one line per row of README's
    table."""
    figure = Figure(figsize=(8.6, 1.3 + 0.6 * len(rows)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, kind, title in zip(
        panels, ("id", "ood"), ("on the target data", "under shifts"), strict=True
    ):
        for line, pairs in enumerate(rows.values()):
            for shift, model in enumerate(_DRAWN):
                found = over_pairs([getattr(pair, kind)[:, _place(pair, model)] for pair in pairs])
                ends = np.array(found.interval or (found.value, found.value))
                axes.errorbar(
                    [100 * found.value],
                    [line + 0.18 * (shift - 1)],
                    xerr=100 * np.abs(ends - found.value)[:, None],
                    linestyle="none",
                    label=None if line else _DRAWN[model],
                    **_mark(model),
                )
        axes.set_title(f"accuracy {title}, %", fontsize=10)
        axes.grid(axis="x", color=GRID)
        axes.spines[["top", "right", "left"]].set_visible(False)
    panels[0].set_yticks(range(len(rows)), [f"{name} ({len(rows[name])})" for name in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    key = figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    key.set_title("Lines are 95% intervals; in brackets, the number of held-out pairs.")
    return _png(figure)


def _place(pair: Resampled, model: str) -> int:
    ends = {"zero-shot": 0, "fine-tuned": len(pair.record["curve"]) - 1}
    return ends[model] if model in ends else pair.point(as_run(pair, model))


def _mark(model: str) -> dict[str, Any]:
    """Colour and marker of a model, as in every report and sweep."""
    colour, marker = MAIN.get(model, (CURVE, "o"))
    return {"color": colour, "marker": marker, "markersize": 7, "elinewidth": 1.2} | (
        {"markerfacecolor": "white", "markeredgewidth": 1.6} if model == "zero-shot" else {}
    )


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
