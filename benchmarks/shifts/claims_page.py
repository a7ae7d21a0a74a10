"""The claims' section of the results page, from their JSON file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.shifts.ranks import kendall
from benchmarks.shifts.standing import Resampled
from clipmerge.stats import percentile_interval


def claims_section(found: dict[str, Any], pairs: Sequence[Resampled]) -> str:
    """Write the results of the tests of the paper's claims."""
    parts = [
        "### The paper's claims, tested",
        _ABOUT.format(pairs=", ".join(found), images=_images(found)),
    ]
    parts += [_across(found, pairs)]
    for title, write in (
        ("Does a layer statistic tell what the layer does to accuracy?", _rankings),
        ("Does it matter which layers are held back?", _choices),
        ("Masks against a smaller alpha", _masks),
        ("Are stragglers there, and stable over calibration samples?", _stability),
        ("Are planted stragglers found?", _planted),
    ):
        told = write(found)
        parts += [f"**{title}**", told] if told else []
    return "\n\n".join(part for part in parts if part)


_ABOUT = (
    "On {pairs}; {images} calibration images. A layer is a half of a block (attention or mlp), or"
    " what lies outside the blocks. Intervals are of resampled drawings, for rank correlations of"
    " resampled layers as well."
)


def _images(found: dict[str, Any]) -> int:
    return int(next(iter(found.values()))["images"])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown, all columns but the first aligned to the right."""
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, marks, *rows])


def _told(estimate: dict[str, Any], scale: float, digits: int) -> str:
    if estimate["value"] is None:
        return "none"
    told = f"{scale * estimate['value']:+.{digits}f}"
    if estimate["interval"]:
        low, high = estimate["interval"]
        told += f" [{scale * low:+.{digits}f}, {scale * high:+.{digits}f}]"
    return told


def _across(found: dict[str, Any], pairs: Sequence[Resampled]) -> str:
    """Global against layer-wise sharpness over pairs."""
    had = [pair for pair in pairs if "sharpness" in found.get(pair.name, {})]
    if len(had) < 4:
        return ""
    gain = np.array(
        [pair.ood[0, pair.record["alphas"].index(0.5)] - pair.ood[0, 0] for pair in had]
    )
    rows = []
    for key, title in (
        ("global", "of the whole network"),
        ("largest_layer", "of the sharpest layer"),
    ):
        values = np.array([found[pair.name]["sharpness"][key] for pair in had])
        rng = np.random.default_rng(0)
        picks = [rng.integers(len(had), size=len(had)) for _ in range(1000)]
        drawn = percentile_interval(np.array([kendall(values[pick], gain[pick]) for pick in picks]))
        rows.append([title, _told({"value": kendall(values, gain), "interval": drawn}, 1.0, 2)])
    title = "**Does sharpness at alpha 0.5 go with the OOD gain of alpha 0.5 over zero-shot?** "
    title += f"{len(had)} pairs."
    return f"{title}\n\n{table(['adaptive sharpness (first order, l2)', 'Kendall'], rows)}"


def _having(found: dict[str, Any], part: str) -> dict[str, Any]:
    return {name: record[part] for name, record in found.items() if part in record}


def _rankings(found: dict[str, Any]) -> str:
    had = _having(found, "layers")
    if not had:
        return ""
    about = (
        "Effect: accuracy with that layer at alpha 0 and all others at 0.5, minus accuracy with all"
        " at 0.5. Kendall's tau with the statistic / partial tau given log norm of tau_l. Positive:"
        " layers with a higher statistic are better undone."
    )
    rows = []
    for key in next(iter(had.values()))["kendall"]:
        cells = [record["kendall"][key] for record in had.values()]
        rows.append(
            [key, *(f"{_told(c['plain'], 1.0, 2)} / {_told(c['partial'], 1.0, 2)}" for c in cells)]
        )
    return f"{about}\n\n{table(['statistic, accuracy', *had], rows)}"


def _choices(found: dict[str, Any]) -> str:
    had = _having(found, "layers")
    if not had:
        return ""
    about = (
        "Three layers at alpha 0, all others at 0.5: gain at equal ID accuracy, in points / minus"
        " the mean of five random choices matched in norm of tau_l."
    )
    rows = []
    for key in next(iter(had.values()))["top minus random"]:
        cells = [(r["choices"][key]["gain"], r["top minus random"][key]) for r in had.values()]
        rows.append(
            [
                key,
                *(
                    f"{_told(gain, 100.0, 1)} / {_told(difference, 100.0, 1)}"
                    for gain, difference in cells
                ),
            ]
        )
    return f"{about}\n\n{table(['choice', *had], rows)}"


def _masks(found: dict[str, Any]) -> str:
    had = _having(found, "masks")
    if not had:
        return ""
    about = (
        "Half of every layer's entries dropped, alpha 0.8: ID / OOD accuracy (gain at equal ID"
        " accuracy). `random` keeps half of the change, so its confound is alpha 0.4."
    )
    rows = []
    for key in next(iter(had.values())):
        cells = [record[key] for record in had.values()]
        told = [f"{100 * c['id']:.1f} / {100 * c['ood']:.1f}" for c in cells]
        gains = [f" ({_told(c['gain'], 100.0, 1)})" if "gain" in c else "" for c in cells]
        rows.append([key, *(f"{both}{gain}" for both, gain in zip(told, gains, strict=True))])
    return f"{about}\n\n{table(['mask', *had], rows)}"


def _stability(found: dict[str, Any]) -> str:
    had = _having(found, "stability")
    rows = []
    for name, record in had.items():
        flagged = "; ".join(", ".join(each) or "none" for each in record["flagged"])
        rows.append([name, flagged, f"{record['jaccard of top']:.2f}"])
    head = [
        "pair",
        "stragglers by barrier, one calibration sample after the other",
        "mean Jaccard of the top three",
    ]
    return table(head, rows) if rows else ""


def _planted(found: dict[str, Any]) -> str:
    rows = []
    for name, record in _having(found, "planted").items():
        before = set(record["flagged before"])
        for test, trials in {**record, **found[name].get("permuted", {})}.items():
            if test == "flagged before":
                continue
            hits = sum(
                row["layer"] in row["flagged"] and row["layer"] not in before for row in trials
            )
            others = sum(len(set(row["flagged"]) - {row["layer"]} - before) for row in trials)
            z = ", ".join(f"{row['z before']:.1f} to {row['z after']:.1f}" for row in trials)
            rows.append([name, test, f"{hits} of {len(trials)}", str(others), z])
    if not rows:
        return ""
    about = (
        "The task vector of one layer times 4 (planted), or a placebo: its sign turned, or random"
        " of equal length. Or the hidden units of one mlp of the fine-tuned model in another order:"
        " it computes the same, but the path to it passes a barrier that this layer alone makes."
    )
    head = ["pair", "change of one layer", "that layer flagged", "other layers flagged", "its z"]
    return f"{about}\n\n{table(head, rows)}"
