"""Small emoji pairs, minutes each: fine-tuned in a third style, tested on three other styles, of
which the zero-shot model has seen two.

It knows much of the third style where that is Fluent's 3D, and little where it is line art.
`python -m benchmarks.shifts.emoji.small` merges one of the pairs as a user would.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.shifts.emoji.glyphs import load_glyphs
from benchmarks.shifts.experiment import Shift, Source, make_pair
from benchmarks.shifts.photos.judging import add_judging_options, judge_pair
from benchmarks.shifts.training import Pretraining, Regime, logged
from clipmerge.files.paths import user_cache

_CLASSES = 80


@dataclass(frozen=True)
class Styles:
    """Which vendors' drawings the zero-shot model has seen, which fine-tuning learns, and on which
    both are tested."""

    seen: tuple[str, ...]
    target: str
    others: tuple[str, ...]


STYLES = {
    "third": Styles(
        ("openmoji", "fluent-flat"), "fluent-3d", ("fluent-flat", "openmoji", "twemoji")
    ),
    "line-art": Styles(
        ("twemoji", "fluent-3d"), "openmoji-black", ("fluent-3d", "fluent-flat", "twemoji")
    ),
}
REGIMES = {
    "mild": Regime(steps=150, rate=2e-4, batch=64),
    "aggressive": Regime(steps=150, rate=3e-3, weight_decay=0.0, batch=64),
}


def small_emoji(folder: Path, name: str = "third", images: int = 0) -> Shift:
    """Lay out the pairs of one of the `STYLES`, with at least ``images`` pictures to
    merge on."""
    copies = max(6, -(-images // _CLASSES))
    styles = STYLES[name]
    names, glyphs = load_glyphs(folder, 2 * _CLASSES)
    glyphs = {vendor: drawings[::2] for vendor, drawings in glyphs.items()}
    labels = torch.arange(_CLASSES)
    return Shift(
        name=f"small-{name}",
        folders=names[::2],
        pretraining=Source(
            torch.cat([glyphs[vendor] for vendor in styles.seen]), labels.repeat(len(styles.seen))
        ),
        finetuning=Source(glyphs[styles.target], labels),
        calibration=Source(glyphs[styles.target], labels, copies=copies),
        test=Source(glyphs[styles.target], labels, copies=4),
        ood={vendor: Source(glyphs[vendor], labels, copies=2) for vendor in styles.others},
        zeroshot=Pretraining(steps=600, batch=64, width=64, vision_layers=3, text_layers=1),
        regimes=REGIMES,
    )


def main() -> None:
    """Merge one pair with its defaults, and write its JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=user_cache("emoji"))
    parser.add_argument("--styles", choices=STYLES, default="third")
    parser.add_argument("--regime", choices=REGIMES, default="aggressive")
    add_judging_options(parser, images=400)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with logged():
        shift = small_emoji(given.cache, given.styles, given.images)
        pair = make_pair(shift, given.cache / given.styles, given.regime, given.seed)
        judge_pair(pair, f"{given.styles}-{pair.name}", given)


if __name__ == "__main__":
    main()
