"""The results page, from the JSON files alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.shifts import densities, summary
from benchmarks.shifts.claims_page import claims_section
from benchmarks.shifts.emoji.shift import ABOUT as EMOJI
from benchmarks.shifts.emoji_roles.shift import ABOUT as EMOJI_ROLES
from benchmarks.shifts.evaluation import contestants
from benchmarks.shifts.experiment import About
from benchmarks.shifts.fashion.shift import ABOUT as FASHION
from benchmarks.shifts.fonts.shift import ABOUT as FONTS
from benchmarks.shifts.laboratory import read_claims
from benchmarks.shifts.plots import regime_png
from benchmarks.shifts.standing import Floats, Resampled, over_pairs, resampled

RESULTS = Path(__file__).parents[1] / "results"
DOCS = Path(__file__).parents[2] / "docs"
#: Every benchmark, in the order of the page.
_BENCHMARKS = (EMOJI, FONTS, EMOJI_ROLES, FASHION)
#: The group of contestants with a table of its own.
_ABLATIONS = "ablations"
#: Folder of the pairs that were trained a second time, beside the files of the first.
_AGAIN_FOLDER = "again"
#: The regime whose merges are not pairs.
_SEVERAL = "several"
_ABOUT = Path(__file__).with_name("results_about.md")
#: The mark in the page that the first screen replaces.
_FIRST_SCREEN = "<!-- first screen -->"


def write_page(results: Path = RESULTS, docs: Path = DOCS) -> list[Path]:
    """Write `results.md` and its pictures from every benchmark's JSON files.

    Args:
        results: Folder with one folder per benchmark.
        docs: Folder for the page; pictures go into its folder `results`.

    Returns:
        The files.
    """
    testbeds = {about.title: read_pairs(results / about.name) for about in _BENCHMARKS}
    groups = summary.held_out(testbeds)
    written = []
    if groups:
        (docs / "results").mkdir(parents=True, exist_ok=True)
        written.append(docs / "results" / "summary.png")
        written[0].write_bytes(summary.summary_png(groups))
    parts = [_ABOUT.read_text(encoding="utf-8").rstrip().replace(_FIRST_SCREEN, _first_screen(groups))]
    for about in _BENCHMARKS:
        folder = results / about.name
        pairs = testbeds[about.title]
        parts += [f"## {about.title}", about.note.read_text(encoding="utf-8").rstrip()]
        if not pairs:
            parts.append(f"Not run yet: `{about.command}` does.")
        else:
            parts.append(section(about, pairs, read_pairs(folder / _AGAIN_FOLDER)))
            written += _pictures(about, pairs, docs / "results")
            parts += _claims(folder, pairs)
    page = docs / "results.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [page, *written]


def _first_screen(groups: summary.Groups) -> str:
    """One table and one figure: the main recipes on all held-out pairs."""
    if not groups:
        return "No held-out pair has been run yet."
    head = ["held-out pairs", "zero-shot", "fine-tuned", "`auto`", *(f"gain of `{recipe}`" for recipe in summary.MAIN)]
    return f"{_table(head, summary.rows(groups))}\n\n![Gains on held-out pairs](results/summary.png)"


def read_pairs(folder: Path) -> list[Resampled]:
    """Read the pairs of one benchmark, in the order of their names."""
    files = sorted(file for file in folder.glob("*.json") if file.stem != "claims")
    return [resampled(json.loads(file.read_text(encoding="utf-8"))) for file in files]


def section(about: About, pairs: Sequence[Resampled], again: Sequence[Resampled] = ()) -> str:
    """Write one benchmark's section, without its heading.

    Args:
        about: The benchmark.
        pairs: All of its pairs.
        again: Held-out pairs that were trained a second time with the same settings.
    """
    absent = _not_run(about, pairs)
    several = [pair for pair in pairs if pair.record["regime"] == _SEVERAL]
    pairs = [pair for pair in pairs if pair not in several]
    held_out = [pair for pair in pairs if not pair.record["tuning"]]
    tuning = [pair for pair in pairs if pair.record["tuning"]]
    images = pairs[0].record["images"]
    lines = [_how(about, [*pairs, *several]), ""]
    lines += ["Pictures: " + ", ".join(f"{source} {count}" for source, count in images.items()) + ".", ""]
    lines += [absent, ""]
    if held_out:
        lines += ["### Held-out pairs", "", _ends_table(held_out), ""]
        lines += [_GAIN, "", _gain_table(held_out), ""]
        lines += _unseen(about, held_out)
        lines += [_ORACLE, "", _oracle_table(held_out), ""]
        lines += [f"![{regime}](results/{about.name}-{regime}.png)" for regime in _regimes(held_out)]
        lines += ["", *_ablations(held_out), *_again(about, again), *against([*held_out, *again])]
    if tuning:
        lines += ["### Tuning pairs", "", "Recipes may have been tuned on these; no claim rests on them.", ""]
        lines += [_ends_table(tuning), "", _gain_table(tuning), "", *_ablations(tuning), *_densities(about, tuning)]
    if several:
        lines += ["### Several fine-tuned models of one zero-shot model", "", _TOGETHER, ""]
        lines += [_ends_table(several), "", _gain_table(several), ""]
    lines += ["### Every pair", "", _pairs_table(pairs)]
    return "\n".join(lines)


def _not_run(about: About, pairs: Sequence[Resampled]) -> str:
    """Say which pairs of the benchmark have no file, and that cells may be empty."""
    had = {(pair.record["regime"], pair.record["seed"]) for pair in pairs}
    absent = [f"{regime} {seed}" for regime, each in about.seeds.items() for seed in each if (regime, seed) not in had]
    told = f"Not run yet, for want of time: {', '.join(absent)}. " if absent else ""
    return f"{told}An empty cell is a recipe that was not run on that pair."


def _ablations(pairs: Sequence[Resampled]) -> list[str]:
    """Results of `auto` without one of its parts, on the pairs that were merged in this way."""
    rows = ["auto", *_recipes(pairs, ablations=True)]
    chosen = [pair for pair in pairs if any(pair.has(recipe) for recipe in rows[1:])]
    if not chosen:
        return []
    head = ["`auto` with", *(f"{pair.record['regime']} {pair.record['seed']}" for pair in chosen)]
    told = [[f"`{rows[0]}` itself", *(_ablated(pair, rows[0]) for pair in chosen)]]
    told += [[recipe, *(_ablated(pair, recipe) for pair in chosen)] for recipe in rows[1:]]
    return [_ABLATED, "", _table(head, told), ""]


def _densities(about: About, pairs: Sequence[Resampled]) -> list[str]:
    """Gain against density for sharp, flat and random layers."""
    lines = []
    for pair in (pair for pair in pairs if densities.curves(pair)):
        head = [
            f"density, {pair.record['regime']} {pair.record['seed']}",
            *(f"{kind}" for kind in densities.curves(pair)),
        ]
        lines += [_table(head, densities.rows(pair)), ""]
    picture = f"![gain against density](results/{about.name}-densities.png)"
    return [_THINNED, "", *lines, picture, ""] if lines else []


def _ablated(pair: Resampled, recipe: str) -> str:
    if not pair.has(recipe):
        return ""
    place = pair.point(recipe)
    return f"{100 * pair.id[0, place]:.1f} / {100 * pair.ood[0, place]:.1f} ({_told([pair.gain(recipe)], 1)})"


def _again(about: About, pairs: Sequence[Resampled]) -> list[str]:
    """Results on held-out pairs of models trained again with the same settings."""
    if not pairs:
        return []
    told = _TRAINED_AGAIN.format(machines=_machines(pairs))
    tables = [_ends_table(pairs), "", "Gain at equal ID accuracy, as above:", "", _gain_table(pairs), ""]
    tables += [
        *_unseen(about, pairs),
        "Against the oracle, as above:",
        "",
        _oracle_table(pairs),
        "",
        *_ablations(pairs),
    ]
    return ["### Held-out pairs, trained once more", "", told, "", *tables]


def against(pairs: Sequence[Resampled]) -> list[str]:
    """Make the table of gains of `auto` over each other recipe, over all pairs that were merged with both.

    Args:
        pairs: Held-out pairs.

    Returns:
        Lines of the page.
    """
    pairs = _having("auto", pairs)
    rivals = [recipe for recipe in _recipes(pairs) if not recipe.startswith("auto")]
    if not rivals:
        return []
    rows = _rows(pairs, rivals, lambda pair, rival: pair.gain("auto") - pair.gain(rival))
    counts = [f"{regime} ({len(_of(pairs, regime))})" for regime in _regimes(pairs)]
    return [_AGAINST, "", _table(["`auto` above", *counts, f"all ({len(pairs)})"], rows), ""]


def _unseen(about: About, pairs: Sequence[Resampled]) -> list[str]:
    """The same gains, on the sources whose styles no model was trained on."""
    sources = [source for source in about.unseen if source in pairs[0].record["ood"]]
    if not sources:
        return []
    alone = [resampled({**pair.record, "ood": sources}) for pair in pairs]
    told = f"The same gain on the OOD sources whose styles no model was trained on ({', '.join(sources)}):"
    return [told, "", _gain_table(alone), ""]


_GAIN = (
    "*Gain at equal ID accuracy*, in OOD points above the WiSE-FT curve (mean over pairs, 95% interval, pairs in "
    "brackets where some have none: not run, or the curve does not reach their ID accuracy):"
)
_TOGETHER = (
    "One of each regime, all held out. Alpha 1 of the curve, here called fine-tuned, is their average; all that the "
    "checkpoints have in common is the base and the data, so this is not a test of merging different tasks."
)
_ABLATED = (
    "What `auto` is without one of its parts, or with another: ID / OOD accuracy, % (gain at equal ID accuracy, "
    "points, with its interval)."
)
_THINNED = (
    "`straggler-sparse` with other layers and densities: gain at equal ID accuracy with its interval. The sharpest "
    "layers are the recipe's own; the flattest, and five random sets, hold about as many weights. The interval of the "
    "random sets resamples the sets too."
)
_TRAINED_AGAIN = (
    "The same settings and seeds on another kind of processor, which rounds differently and so ends with other models, "
    "merged by the same recipes. {machines}."
)
_AGAINST = (
    "`auto` against each other recipe: the difference of their gains at equal ID accuracy, pair by pair, over all "
    "held-out pairs above (mean in points, 95% interval, pairs in brackets where one of both has none). Pairs trained "
    "twice count twice; their drawings are resampled together."
)
_ORACLE = (
    "Against the *oracle*, the one alpha of the curve with the best OOD accuracy, chosen with OOD labels: "
    "ID points / OOD points above it, each with its interval. Both at least 0 means better without an OOD label."
)


def _how(about: About, pairs: Sequence[Resampled]) -> str:
    record = pairs[0].record
    further = [
        f"{pair.record['regime']}-{pair.record['seed']}"
        for pair in pairs
        if pair.record["seed"] not in about.seeds.get(pair.record["regime"], ())
    ]
    command = f"`{about.command}`"
    asked = f", and once more with `--only {','.join(further)}`," if further else ""
    return (
        f"{command}{asked} regenerates this. Sweep seed {record['sweep_seed']}, at most "
        f"{record['calibration_images']} calibration images, alphas in steps of {record['alphas'][1]:g}. "
        f"{_machines(pairs)}."
    )


def _machines(pairs: Sequence[Resampled]) -> str:
    """Where each pair was trained and evaluated: the last digits depend on it."""
    found: dict[str, list[str]] = {}
    for pair in pairs:
        machine = pair.record["machine"]
        told = f"{machine['cpu']}, Python {machine['python']}, torch {machine['torch']}"
        told += f", transformers {machine['transformers']}, {machine['threads']} thread per job"
        found.setdefault(told, []).append(f"{pair.record['regime']} {pair.record['seed']}")
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{', '.join(names)}: {told}" for told, names in found.items())


def _regimes(pairs: Iterable[Resampled]) -> list[str]:
    return list(dict.fromkeys(pair.record["regime"] for pair in pairs))


def _of(pairs: Sequence[Resampled], regime: str) -> list[Resampled]:
    return [pair for pair in pairs if pair.record["regime"] == regime]


def _recipes(pairs: Sequence[Resampled], *, ablations: bool = False) -> list[str]:
    """Recipes with which some pair was merged, in the order of the contestants: ablations, or all others."""
    had = {row["name"] for pair in pairs for row in pair.record["recipes"]}
    groups = {each.name: each.group for each in contestants()}
    names = [name for name in groups if name in had] + sorted(had - set(groups))
    if ablations:
        return [name for name in names if groups.get(name) == _ABLATIONS]
    return [name for name in names if groups.get(name) not in (_ABLATIONS, densities.GROUP)]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, marks, *rows])


def _ends_table(pairs: Sequence[Resampled]) -> str:
    """ID / OOD accuracy of the well-known baselines and of every recipe."""
    regimes = _regimes(pairs)
    rows = {
        "zero-shot": lambda _: 0,
        "fine-tuned": lambda pair: len(pair.record["curve"]) - 1,
        "WiSE-FT, alpha 0.5": lambda pair: pair.record["alphas"].index(0.5),
        "WiSE-FT, oracle alpha": lambda pair: pair.oracle,
    }
    head = ["ID / OOD accuracy, %", *(f"{regime} ({len(_of(pairs, regime))})" for regime in regimes)]
    told = [[name, *(_both(_of(pairs, regime), place) for regime in regimes)] for name, place in rows.items()]
    for recipe in _recipes(pairs):
        place = partial(_place, recipe)
        told.append([f"`{recipe}`", *(_both(_having(recipe, _of(pairs, regime)), place) for regime in regimes)])
    return _table(head, told)


def _place(recipe: str, pair: Resampled) -> int:
    return pair.point(recipe)


def _having(recipe: str, pairs: Iterable[Resampled]) -> list[Resampled]:
    return [pair for pair in pairs if pair.has(recipe)]


def _both(pairs: Sequence[Resampled], place: Callable[[Resampled], int]) -> str:
    if not pairs:
        return ""
    both = [(pair.id[0, place(pair)], pair.ood[0, place(pair)]) for pair in pairs]
    return " / ".join(f"{100 * sum(side) / len(side):.1f}" for side in zip(*both, strict=True))


def _gain_table(pairs: Sequence[Resampled]) -> str:
    return _table(["recipe", *_regimes(pairs), "all"], _rows(pairs, _recipes(pairs), Resampled.gain))


def _rows(
    pairs: Sequence[Resampled], recipes: Iterable[str], value: Callable[[Resampled, str], Floats]
) -> Iterable[list[str]]:
    """One row per recipe: its value over the pairs of each regime, and over all pairs."""
    groups = [*(_of(pairs, regime) for regime in _regimes(pairs)), pairs]
    for recipe in recipes:
        cells = [_told([value(pair, recipe) for pair in _having(recipe, group)], len(group)) for group in groups]
        yield [f"`{recipe}`", *cells]


def _oracle_table(pairs: Sequence[Resampled]) -> str:
    regimes = _regimes(pairs)
    rows = []
    for recipe in _recipes(pairs):
        cells = []
        for group in (_of(pairs, regime) for regime in regimes):
            both = [pair.above_oracle(recipe) for pair in _having(recipe, group)]
            cells.append(" / ".join(_told(list(side), len(group)) for side in zip(*both, strict=True)))
        rows.append([f"`{recipe}`", *cells])
    return _table(["recipe", *regimes], rows)


def _told(measured: Sequence[Floats], pairs: int) -> str:
    """The mean over pairs in points, its interval, and how many of the pairs have a value if not all."""
    if not measured:
        return ""
    estimate = over_pairs(measured)
    if estimate.value is None or estimate.pairs == pairs:
        return estimate.told
    return f"{estimate.told} ({estimate.pairs} of {pairs})"


def _pairs_table(pairs: Sequence[Resampled]) -> str:
    """ID / OOD accuracy and gain of every recipe on every pair."""
    head = ["recipe", *(f"{pair.record['regime']} {pair.record['seed']}" for pair in pairs)]
    rows = []
    for recipe in _recipes(pairs):
        rows.append([f"`{recipe}`", *(_pair_cell(pair, recipe) for pair in pairs)])
    return _table(head, rows)


def _pair_cell(pair: Resampled, recipe: str) -> str:
    if not pair.has(recipe):
        return ""
    place, gain = pair.point(recipe), pair.gain(recipe)[0]
    told = "no height" if gain != gain else f"{100 * gain:+.1f}"
    return f"{100 * pair.id[0, place]:.1f} / {100 * pair.ood[0, place]:.1f} ({told})"


def _pictures(about: About, pairs: Sequence[Resampled], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    held_out = [pair for pair in pairs if not pair.record["tuning"] and pair.record["regime"] != _SEVERAL]
    thinned = [pair for pair in pairs if densities.curves(pair)]
    written = []
    if thinned:
        written.append(folder / f"{about.name}-densities.png")
        written[0].write_bytes(densities.densities_png(thinned))
    for regime in _regimes(held_out):
        file = folder / f"{about.name}-{regime}.png"
        file.write_bytes(regime_png(about.title, regime, _of(held_out, regime), _recipes(held_out)))
        written.append(file)
    return written


def _claims(folder: Path, pairs: Sequence[Resampled]) -> list[str]:
    found = read_claims(folder / "claims.json")
    return [claims_section(found, pairs)] if found else []
