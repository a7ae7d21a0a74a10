"""The results page, from the JSON files alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.shifts import advice, densities, summary
from benchmarks.shifts.claims_page import claims_section, table
from benchmarks.shifts.emoji.shift import ABOUT as EMOJI
from benchmarks.shifts.emoji_roles.shift import ABOUT as EMOJI_ROLES
from benchmarks.shifts.evaluation import contestants
from benchmarks.shifts.experiment import About
from benchmarks.shifts.fonts.shift import ABOUT as FONTS
from benchmarks.shifts.icons.shift import ABOUT as ICONS
from benchmarks.shifts.laboratory import read_claims
from benchmarks.shifts.natural.pairs import ABOUT as NATURAL
from benchmarks.shifts.photos.pairs import ABOUT as PHOTOS
from benchmarks.shifts.plots import regime_png
from benchmarks.shifts.standing import Floats, Resampled, over_pairs, resampled, told_accuracies

RESULTS = Path(__file__).parents[1] / "results"
DOCS = Path(__file__).parents[2] / "docs" / "research"
#: Every benchmark, in the order of the page.
_BENCHMARKS = (PHOTOS, NATURAL, EMOJI, ICONS, FONTS, EMOJI_ROLES)
#: The group of contestants with a table of its own.
_ABLATIONS = "ablations"
#: Rows of README's table and picture: results of pairs held out from today's rule.
_README_ROWS = {
    "groceries and aerial pictures, mild fine-tuning": ("mild-groceries-0", "mild-aerial-0"),
    "photographs, paintings, sketches, CIFAR-10": (
        "aggressive-photo-0",
        "aggressive-photo-2",
        "mild-photo-0",
        "mild-photo-1",
        "mild-photo-2",
        "aggressive-art-1",
        "aggressive-art-2",
        "mild-art-1",
        "mild-art-2",
        "aggressive-photo-3",
        "mild-photo-3",
        "aggressive-art-3",
        "mild-art-3",
        "both-towers-art-0",
        "lite2-aggressive-sketch-0",
        "lite2-aggressive-cifar10-0",
    ),
    "printed digits": (
        "aggressive-printed-held-out-8-240",
        "mild-printed-held-out-8-240",
        "aggressive-printed-same-typefaces-6-240",
        "mild-printed-same-typefaces-6-240",
        "aggressive-printed-same-typefaces-7-240",
        "mild-printed-same-typefaces-7-240",
        "aggressive-printed-same-typefaces-9-240",
        "mild-printed-same-typefaces-9-240",
    ),
    "emoji in line art": (
        "line-art-aggressive-3-1024",
        "line-art-mild-3-1024",
        "line-art-aggressive-4-400",
        "line-art-mild-4-400",
    ),
    "emoji in 3D": (
        "third-aggressive-3-1024",
        "third-mild-3-1024",
        "third-aggressive-4-400",
        "third-mild-4-400",
    ),
    "emoji of other vendors": (
        "emoji-aggressive-1",
        "emoji-aggressive-2",
        "emoji-mild-1",
        "emoji-mild-2",
    ),
}
#: Further rows of the first table of the results page.
_FURTHER_ROWS = {
    "emoji, the vendors in other roles": (
        "roles-aggressive-1",
        "roles-aggressive-2",
        "roles-mild-1",
        "roles-mild-2",
    ),
    "characters in other typefaces": (
        "fonts-aggressive-1",
        "fonts-aggressive-2",
        "fonts-mild-1",
        "fonts-mild-2",
    ),
    "icons with captions": ("icons-aggressive-1", "icons-mild-1"),
}
#: Folder of the results of pairs held out from today's rule.
_TODAY = "half-views"
# In it: real pictures with all of the work, which have a quarter of it beside.
_WHOLE = "whole"
_README = Path(__file__).parents[2] / "README.md"
_README_TABLE = re.compile(r"(<!-- results: .* -->\n).*(?=<!-- end of the results -->)", re.DOTALL)
_ABOUT = Path(__file__).with_name("results_about.md")
#: The marks in the page that its first two tables replace.
_TODAY_MARK, _COMPARISON_MARK = "<!-- today -->", "<!-- comparison -->"


def write_page(results: Path = RESULTS, docs: Path = DOCS) -> list[Path]:
    """Write `results.md` and the pictures beside it from the JSON files of every benchmark."""
    testbeds = {about.title: read_pairs(results / about.name) for about in _BENCHMARKS}
    groups = summary.held_out(testbeds)
    pictures = docs / "results"
    pictures.mkdir(parents=True, exist_ok=True)
    written = []
    if groups:
        written.append(pictures / "summary.png")
        written[0].write_bytes(summary.summary_png(groups))
    about_page = _ABOUT.read_text(encoding="utf-8").rstrip()
    today = "No held-out pair has been judged by today's rule yet."
    if (results / _TODAY).is_dir():
        today = _today_table(_read_rows(results, _README_ROWS | _FURTHER_ROWS))
    about_page = about_page.replace(_TODAY_MARK, today)
    parts = [about_page.replace(_COMPARISON_MARK, _comparison(groups))]
    for about in _BENCHMARKS:
        pairs = testbeds[about.title]
        parts += [f"## {about.title}", about.note.read_text(encoding="utf-8").rstrip()]
        if not pairs:
            parts.append(f"Not run yet: `{about.command}` does.")
            continue
        parts.append(section(about, pairs))
        written += _pictures(about, pairs, pictures)
        found = read_claims(results / about.name / "claims.json")
        parts += [claims_section(found, pairs)] if found else []
    page = docs / "results.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [page, *written]


def write_readme(results: Path = RESULTS, readme: Path = _README, docs: Path = DOCS) -> list[Path]:
    """Write README's table and picture from the JSON files of its rows."""
    rows = _read_rows(results, _README_ROWS)
    picture = docs / "results" / "accuracy.png"
    picture.write_bytes(summary.accuracies_png(rows))
    lines = _today_table(rows)
    text = readme.read_text(encoding="utf-8")
    text = _README_TABLE.sub(lambda found: f"{found[1]}{lines}\n", text)
    readme.write_text(text, encoding="utf-8")
    return [readme, picture]


def _read_rows(results: Path, rows: Mapping[str, Sequence[str]]) -> dict[str, list[Resampled]]:
    """The pairs of each row that were judged by today's rule, with all of the work if they were
    judged so too.
    """

    def file_of(pair: str) -> Path:
        whole = results / _TODAY / _WHOLE / f"{pair}.json"
        return whole if whole.exists() else results / _TODAY / f"{pair}.json"

    return {name: [_read_pair(file_of(pair)) for pair in row] for name, row in rows.items()}


def _today_table(rows: Mapping[str, Sequence[Resampled]]) -> str:
    """Accuracies and gains by today's rule."""
    head = ["held-out pairs", "zero-shot", "fine-tuned", "merged (`auto`)", "gain"]
    return table(head, summary.readme_rows(rows))


def _comparison(groups: summary.Groups) -> str:
    """One table and one figure: the main recipes on all held-out pairs."""
    if not groups:
        return "No held-out pair has been run yet."
    head = [
        "held-out pairs",
        "zero-shot",
        "fine-tuned",
        "`auto`",
        *(f"gain of `{recipe}`" for recipe in summary.MAIN),
    ]
    return f"{table(head, summary.rows(groups))}\n\n![Gains on held-out pairs](results/summary.png)"


def read_pairs(folder: Path) -> list[Resampled]:
    """Read the pairs of one benchmark, in the order of their names."""
    files = sorted(file for file in folder.glob("*.json") if file.stem != "claims")
    return [_read_pair(file) for file in files]


def _read_pair(file: Path) -> Resampled:
    return resampled(json.loads(file.read_text(encoding="utf-8")))


def section(about: About, pairs: Sequence[Resampled]) -> str:
    """Write one benchmark's section, without its heading."""
    held_out = [pair for pair in pairs if not pair.record["tuning"]]
    parts = [_how(about, pairs), f"Pictures: {_images(pairs)}.{_not_run(about, pairs)}"]
    if held_out:
        parts += [_held_out_table(about, held_out)]
        parts += [
            "\n".join(
                f"![{regime}](results/{about.name}-{regime}.png)" for regime in _regimes(held_out)
            )
        ]
    told = [*advice.tables(pairs), " ".join(advice.kept_accuracy(pairs))]
    return "\n\n".join([*parts, *filter(None, told), *_ablations(pairs), *_densities(about, pairs)])


def _images(pairs: Sequence[Resampled]) -> str:
    """Number of pictures of each source, by target if there are several."""
    by_target = {pair.record.get("target", ""): pair.record["images"] for pair in pairs}
    listed = {
        target: ", ".join(f"{source} {count}" for source, count in images.items())
        for target, images in by_target.items()
    }
    return "; ".join(
        f"{target}: {images}" if target else images for target, images in listed.items()
    )


def _how(about: About, pairs: Sequence[Resampled]) -> str:
    """The command, its settings, and the machines: the last digits depend on them."""
    record = pairs[0].record
    further = [pair.name for pair in pairs if pair.name not in about.pairs]
    once_more = f", and once more with `--only {','.join(further)}`," if further else ""
    machines: dict[str, list[str]] = {}
    for pair in pairs:
        at = pair.record["machine"]
        machine = (
            f"{at['cpu']}, Python {at['python']}, torch {at['torch']}, transformers"
            f" {at['transformers']}"
        )
        machines.setdefault(machine, []).append(pair.name)
    if len(machines) == 1:
        where = next(iter(machines))
    else:
        where = "; ".join(f"{', '.join(names)}: {machine}" for machine, names in machines.items())
    return (
        f"`{about.command}`{once_more} regenerates this. Sweep seed {record['sweep_seed']}, at most"
        f" {record['calibration_images']} calibration images, {_points(record['alphas'])}, one"
        f" thread. {where}."
    )


def _points(alphas: Sequence[float]) -> str:
    """The points of the curve in a few words."""
    if len(alphas) == 1 + round(1 / alphas[1]):
        return f"alphas in steps of {alphas[1]:g}"
    return f"alphas {', '.join(f'{alpha:g}' for alpha in alphas)}"


def _not_run(about: About, pairs: Sequence[Resampled]) -> str:
    """Name the pairs of the benchmark that have no file."""
    had = {pair.name for pair in pairs}
    absent = [name for name in about.pairs if name not in had]
    return f" Not run yet, for want of time: {', '.join(absent)}." if absent else ""


def _held_out_table(about: About, pairs: Sequence[Resampled]) -> str:
    """Accuracies and gains of the ends, of the curve, and of every recipe, by regime."""
    regimes = {
        regime: [pair for pair in pairs if pair.record["regime"] == regime]
        for regime in _regimes(pairs)
    }
    unseen = [source for source in about.unseen if source in pairs[0].record["ood"]]
    alone = {
        regime: [resampled({**pair.record, "ood": unseen}) for pair in group] if unseen else []
        for regime, group in regimes.items()
    }
    head = ["held-out pairs"]
    for regime, group in regimes.items():
        head += [f"{regime} ({len(group)})", "gain", *(["gain, unseen styles"] if unseen else [])]
    on_curve: dict[str, Callable[[Resampled], int]] = {
        "zero-shot": lambda _: 0,
        "fine-tuned": lambda pair: len(pair.record["curve"]) - 1,
        "WiSE-FT, alpha 0.5": lambda pair: pair.record["alphas"].index(0.5),
        "WiSE-FT, oracle alpha": lambda pair: pair.oracle,
    }
    blank = [""] * (2 if unseen else 1)
    rows = []
    for name, place in on_curve.items():
        cells = [[told_accuracies(group, place), *blank] for group in regimes.values()]
        rows.append([name, *(text for cell in cells for text in cell)])
    for recipe in _recipes(pairs):
        row = [f"`{recipe}`"]
        for regime, group in regimes.items():
            merged = [pair for pair in group if pair.has(recipe)]
            row.append(told_accuracies(merged, partial(Resampled.point, recipe=recipe)))
            row.append(_gain(group, recipe))
            row += [_gain(alone[regime], recipe)] if unseen else []
        rows.append(row)
    note = f" Unseen styles, which no model was trained on: {', '.join(unseen)}." if unseen else ""
    return f"{_HELD_OUT}{note}\n\n{table(head, rows)}"


_HELD_OUT = (
    "ID / OOD accuracy in %, and the *gain at equal ID accuracy* in OOD points above the WiSE-FT"
    " curve, both the mean over pairs; in brackets the pairs with a value if some have none (not"
    " run, or no such ID accuracy on the curve)."
)
_ABLATED = (
    "`auto` without one of its parts, or with another: ID / OOD accuracy in %, and the gain at"
    " equal ID accuracy with its interval."
)
_THINNED = (
    "`straggler-sparse` with other layers and densities: gain at equal ID accuracy with its"
    " interval. The sharpest layers are the recipe's own; the flattest, and five random sets, hold"
    " about as many weights. The interval of the random sets resamples the sets too."
)


def _ablations(pairs: Sequence[Resampled]) -> list[str]:
    """Results of `auto` without one of its parts, on the pairs that were merged in this way."""
    rows = ["auto", *_recipes(pairs, ablations=True)]
    chosen = [pair for pair in pairs if any(pair.has(recipe) for recipe in rows[1:])]
    if not chosen:
        return []
    cells = [[f"`{rows[0]}` itself", *(_ablated(pair, rows[0]) for pair in chosen)]]
    cells += [[recipe, *(_ablated(pair, recipe) for pair in chosen)] for recipe in rows[1:]]
    return [_ABLATED, table(["`auto` with", *(pair.name for pair in chosen)], cells)]


def _ablated(pair: Resampled, recipe: str) -> str:
    if not pair.has(recipe):
        return ""
    return (
        f"{told_accuracies([pair], partial(Resampled.point, recipe=recipe))}"
        f" ({_gain([pair], recipe)})"
    )


def _densities(about: About, pairs: Sequence[Resampled]) -> list[str]:
    """Gain against density for sharp, flat and random layers."""
    chosen = [pair for pair in pairs if densities.curves(pair)]
    tables = [
        table([f"density, {pair.name}", *densities.curves(pair)], densities.rows(pair))
        for pair in chosen
    ]
    return (
        [_THINNED, *tables, f"![gain against density](results/{about.name}-densities.png)"]
        if tables
        else []
    )


def _regimes(pairs: Iterable[Resampled]) -> list[str]:
    return list(dict.fromkeys(pair.record["regime"] for pair in pairs))


def _recipes(pairs: Sequence[Resampled], *, ablations: bool = False) -> list[str]:
    """Recipes with which some pair was merged, in the order of the contestants: ablations, or all
    others."""
    had = {row["name"] for pair in pairs for row in pair.record["recipes"]}
    groups = {each.name: each.group for each in contestants()}
    names = [name for name in groups if name in had] + sorted(had - set(groups))
    if ablations:
        return [name for name in names if groups.get(name) == _ABLATIONS]
    return [name for name in names if groups.get(name) not in (_ABLATIONS, densities.GROUP)]


def _gain(pairs: Sequence[Resampled], recipe: str) -> str:
    """The mean gain over pairs in points, its interval, and how many of the pairs have a value if
    not all."""
    measured: list[Floats] = [pair.gain(recipe) for pair in pairs if pair.has(recipe)]
    if not measured:
        return ""
    estimate = over_pairs(measured)
    if estimate.value is None or estimate.pairs == len(pairs):
        return estimate.told
    return f"{estimate.told} ({estimate.pairs} of {len(pairs)})"


def _pictures(about: About, pairs: Sequence[Resampled], folder: Path) -> list[Path]:
    held_out = [pair for pair in pairs if not pair.record["tuning"]]
    thinned = [pair for pair in pairs if densities.curves(pair)]
    drawn = {f"{about.name}-densities.png": densities.densities_png(thinned)} if thinned else {}
    for regime in _regimes(held_out):
        group = [pair for pair in held_out if pair.record["regime"] == regime]
        drawn[f"{about.name}-{regime}.png"] = regime_png(about, regime, group, _recipes(held_out))
    for name, content in drawn.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in drawn]
