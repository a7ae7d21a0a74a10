"""Judge a recipe as a user runs it: `clipmerge.merge` with its defaults, and the written model,
loaded by its own library, on pictures that nothing has seen."""

from __future__ import annotations

import json
import logging
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import clipmerge
from benchmarks.make_pairs.pair import Pair
from benchmarks.make_pairs.pictures import Source
from benchmarks.models import Model, interpolated, load, prompts_of
from benchmarks.pair_results import CURVE, PAIRS_FOLDER, Results, open_results, stacked

_LOG = logging.getLogger("benchmarks")
ALPHAS = tuple(round(0.1 * step, 1) for step in range(11))


class Judge:
    """Tests models on the pictures of one pair."""

    def __init__(self, pair: Pair, extra: dict[str, Source] | None = None) -> None:
        """Read the pictures; ``extra`` are tested beside those of the test."""
        self.pair = pair
        self.model: Model = load(pair.zeroshot)
        self.sources = pair.tested() | (extra or {})
        self.pixels = {}
        for name, each in self.sources.items():
            self.pixels[name] = self.model.input(each.images)

    def right(self, model: Model) -> dict[str, np.ndarray]:
        """Which pictures of each source a model recognises, shape (N,)."""
        found = {}
        for name, source in self.sources.items():
            prompts = prompts_of(source.classes, self.pair.template)
            answers = model.logits(self.pixels[name], prompts).argmax(dim=1)
            found[name] = (answers == source.labels).numpy()
        return found

    def curve(
        self, finetuned: Path, alphas: Sequence[float], prepare: Callable[[], None] = lambda: None
    ) -> dict[str, dict[str, Any]]:
        """Bits of the points of a WiSE-FT curve; ``prepare`` is called at each."""
        start = {name: value.clone() for name, value in self.model.network.state_dict().items()}
        end = load(finetuned).network.state_dict()
        rows = []
        for alpha in alphas:
            self.model.network.load_state_dict(interpolated(start, end, alpha))
            prepare()
            rows.append(self.right(self.model))
        self.model.network.load_state_dict(start)
        return stacked(rows)


def add_curve(tests: Judge, results: Results) -> None:
    """Add the pair's own WiSE-FT curve, unless it is there."""
    if CURVE not in results.methods:
        curve = tests.curve(tests.pair.finetuned, ALPHAS)
        results.add(CURVE, alphas=ALPHAS, correct=curve, labels=results.told["labels"]["train"])


def judge(
    pair: Pair,
    recipe: str,
    settings: Sequence[str] = (),
    *,
    seed: int = 0,
    labels: int = 0,
    other: Pair | None = None,
    and_shift: bool = False,
    captions: bool = False,
    who: str = "",
    folder: Path = PAIRS_FOLDER,
) -> str:
    """Judge one recipe on one pair into the pair's JSON file, and return its name there.

    Args:
        pair: The pair.
        recipe: Name or file of the recipe.
        settings: Its settings, ``measure.steps=80``.
        seed: Seed of learning.
        labels: Labelled pictures of one shift that the merge gets as `ood`.
        other: Pair of another target, whose validation pictures these are instead.
        and_shift: Give as many of the shift, too.
        captions: Give the labels of the shift as captions.
        who: Whose row it is.
        folder: Folder of the JSON files.
    """
    results = open_results(pair, folder)
    tests = Judge(pair)
    if CURVE not in results.methods:
        with_val = Judge(pair, {"val": pair.source("val")})
        add_curve(with_val, results)
    name = " ".join([Path(recipe).stem, *settings, *([f"seed={seed}"] if seed else [])])
    ood, shift = {}, None
    if labels:
        name += f" labels={labels}" + (" of another task" if other else "")
    if labels and (and_shift or not other):
        shift = pair.best_labelled
        ood[shift] = str(pair.labelled(f"labels-{shift}", labels, seed, captions))
        name += " as captions" if captions else ""
    if labels and other:
        name += " and a shift" if and_shift else ""
        shift = f"task-{other.spec.target}"
        ood[other.spec.target] = str(other.labelled("val", labels, seed))
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "merged"
        begin = time.process_time()
        clipmerge.merge(
            str(pair.zeroshot),
            str(pair.finetuned),
            recipe,
            output=str(output),
            data=str(pair.file("val")),
            ood=ood,
            template=[pair.template],
            set=list(settings),
            seed=seed,
            allow=["at-chance"] if captions else [],  # sentences of one class look alike
        )
        seconds = time.process_time() - begin
        record = json.loads((output / "clipmerge.json").read_text(encoding="utf-8"))
        correct = stacked([tests.right(load(output))])
    verdict = record.get("verdict") or {}
    results.add(
        name,
        correct=correct,
        labels=results.labels + labels,
        shift=shift,
        seconds=round(seconds, 1),
        recommendation=verdict.get("recommendation"),
        commit=_commit(),
        who=who,
    )
    _LOG.info("%s: %s in %.0f s", pair.spec.name, name, seconds)
    return name


def _commit() -> str:
    folder = str(Path(clipmerge.__file__).parent)
    command = ["git", "-C", folder, "rev-parse", "--short=8", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or clipmerge.__version__
