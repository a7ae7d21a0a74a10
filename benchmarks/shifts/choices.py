"""How far to go from what was learned: all points that could be chosen, recorded once, and rules
compared on random draws of few images.

`python -m benchmarks.shifts.choices record printed.mild.0 --images 64` learns as `auto` does and
writes which pictures each point recognises; `simulate` lets every rule choose by draws from the
target's test pictures, and says how often it loses too much, and what it gains under the shifts.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.digits.printed import make_pair
from benchmarks.shifts.emoji.small import small_emoji
from benchmarks.shifts.evaluation import unpacked
from benchmarks.shifts.experiment import TrainedPair
from benchmarks.shifts.experiment import make_pair as make_shift_pair
from benchmarks.shifts.report import RESULTS
from clipmerge.api.merge import plan
from clipmerge.demo.pair import prepare
from clipmerge.evaluation.conclusion import exceeds_max_loss
from clipmerge.files.paths import user_cache
from clipmerge.images.batches import read_batches
from clipmerge.images.dataset import load_images
from clipmerge.learning.learn import _Run
from clipmerge.models.precision import passes
from clipmerge.planning.recipe import load_recipe
from clipmerge.progress import Progress
from clipmerge.stats import paired_accuracy_interval, paired_mean_and_error

Differences = NDArray[np.float64]
#: Whether a point may be taken, by what it loses on each image, its distance from fine-tuned in
#: units of the learned point's, and the limit.
Rule = Callable[[Differences, float, float], bool]
#: Shares of the way from what was learned to fine-tuned.
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
ALPHAS = tuple(round(0.1 * step, 1) for step in range(11))
LIMIT = 0.03
_MOST_PICTURES, _DRAWS = 300, 400


class _Recorded(Exception):
    """All points are recorded, and nothing needs to be chosen."""


def pair_of(name: str, cache: Path) -> TrainedPair:
    """Make the tuning pair of this name: ``demo``, or KIND.REGIME.SEED of ``printed`` and the small
    emoji."""
    if name == "demo":
        made = prepare(cache / "demo")
        places = (made.zeroshot, made.finetuned, made.calibration, made.clean, made.shifted)
        return TrainedPair("demo", 0, *places, tuning=True)
    kind, regime, seed = name.split(".")
    if kind == "printed":
        return make_pair(cache, "tuning", regime, int(seed))
    return make_shift_pair(
        small_emoji(cache / "emoji", kind), cache / "emoji" / kind, regime, int(seed)
    )


def record(pair: TrainedPair, images: int, sets: Sequence[str], *, labels: bool) -> dict[str, Any]:
    """Learn as `auto` does, and record which pictures each point recognises."""
    found: dict[str, Any] = {"images": images, "settings": list(sets), "labels": labels}

    def choose(run: Any, _: Any) -> None:
        found.update(_points(run, {"test": pair.test, **pair.ood}))
        raise _Recorded

    classes = [name.replace("_", " ") for name in load_images(str(pair.calibration)).class_names]
    given: Any = str(pair.calibration)
    if not labels:
        labelled = load_images(given)
        given = [labelled.image(at) for at in range(len(labelled))]
    try:
        with patch.object(_Run, "_choose", choose), sdpa_kernel(SDPBackend.MATH):
            plan(
                str(pair.zeroshot),
                str(pair.finetuned),
                load_recipe("auto", sets),
                data=given,
                classes=None if labels else classes,
                images=images,
                device="cpu",
                progress=Progress(),
            )
    except _Recorded:
        pass
    return found


@torch.no_grad()
def _points(run: Any, sources: Mapping[str, Path]) -> dict[str, Any]:
    """Outcomes on every source at every point: those of the way, then those of the curve."""
    objective, coefficients = run._objective, run._coefficients
    model = objective.criterion.model
    batches = {
        name: list(read_batches(_some(load_images(str(source))), 256, model.pixels))
        for name, source in sources.items()
    }
    rows: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in batches}

    def look() -> None:
        with passes(objective.data.context.device, "auto"):
            classes = objective.criterion.class_features().float()
            for name, parts in batches.items():
                right = [
                    model.logits(objective.criterion.embed(part.pixels).float(), classes).argmax(1)
                    == part.labels
                    for part in parts
                ]
                rows[name].append(torch.cat(right).numpy())

    for share in SHARES[:-1]:
        coefficients.extrapolate(share)
        coefficients.place()
        look()
    for alpha in (1.0, *ALPHAS):
        objective.weights.set_alpha(alpha)
        look()
    return {"correct": {name: pack(np.stack(each)) for name, each in rows.items()}}


def _some(images: Any) -> Any:
    order = np.random.default_rng(0).permutation(len(images))[:_MOST_PICTURES]
    return images.subset(sorted(order.tolist()))


def pack(right: NDArray[np.bool_]) -> dict[str, Any]:
    """Bits as `unpacked` reads them, (points, pictures)."""
    import base64

    bits = base64.b64encode(np.packbits(right).tobytes()).decode()
    return {"shape": [*right.shape, 1], "bits": bits}


def plain(lost: Differences, distance: float, limit: float) -> bool:
    """The mean loss and its standard error, the rule before 30 November 2026."""
    return bool(lost.mean() + lost.std(ddof=1) / math.sqrt(len(lost)) <= limit)


def added(scale: Callable[[float], float], credit: float = 1.0) -> Rule:
    """The same with Agresti and Min's images, whose squared differences are scaled by a function of
    the distance; a gain counts ``credit`` times."""

    def rule(lost: Differences, distance: float, limit: float) -> bool:
        return sum(
            paired_mean_and_error(np.where(lost < 0, credit * lost, lost), scale(distance))
        ) <= (limit)

    return rule


RULES: dict[str, Rule] = {
    "mean + error": plain,
    "with two added images": added(lambda distance: 1.0),
    "the same x distance (now)": added(lambda distance: distance),
    "the same x distance squared": added(lambda distance: distance**2),
    "the same x distance, gains count half": added(lambda distance: distance, 0.5),
    "the same x distance, gains count nothing": added(lambda distance: distance, 0.0),
}


def simulate(records: Sequence[dict[str, Any]], images: int, rule: Rule) -> tuple[float, ...]:
    """Let a rule choose by draws of so many test pictures.

    Returns:
        Share of draws that lose more than the limit and the standard error of all test pictures;
        gain under the shifts over fine-tuned; the same of what was learned; share of draws whose
        advice is "use it" and how many of these keep the limit: by other images, a quarter more, by
        those and the images that chose, and by the images that chose alone.
    """
    generator = np.random.default_rng(0)
    rows = []
    for each in records:
        right = {name: unpacked(told)[:, :, 0] for name, told in each["correct"].items()}
        test = right.pop("test")[: len(SHARES)].astype(np.float64)
        ood = np.mean([other.mean(axis=1) for other in right.values()], axis=0)[: len(SHARES)]
        lost = test[-1] - test
        error = lost.std(axis=1) / math.sqrt(lost.shape[1])
        judges = math.ceil(1.25 * images)
        for _ in range(_DRAWS):
            drawn = generator.permutation(lost.shape[1])
            chose, judge = drawn[:images], drawn[images : images + judges]
            chosen = next(
                (
                    at
                    for at, share in enumerate(SHARES[:-1])
                    if rule(lost[at, chose], 1 - share, LIMIT)
                ),
                len(SHARES) - 1,
            )
            loss = lost[chosen].mean()
            use = [
                _is_used(-lost[chosen, judges]) if chosen < len(SHARES) - 1 else math.nan
                for judges in (judge, drawn[: images + len(judge)], chose)
            ]
            kept = float(loss <= LIMIT)
            too_much = float(loss > LIMIT + error[chosen])
            advice = [value for used in use for value in (used, kept if used == 1 else math.nan)]
            rows.append([too_much, ood[chosen] - ood[-1], ood[0] - ood[-1], *advice])
    return tuple(np.nanmean(np.array(rows), axis=0).tolist())


def _is_used(gained: Differences) -> float:
    """Whether the answer's rules on unchanged images leave "use it"."""
    low, high = paired_accuracy_interval(gained)
    is_coarse = high - low > 4 * LIMIT and exceeds_max_loss(low, 200 * LIMIT)
    return float(not is_coarse and not exceeds_max_loss(float(gained.mean()), 100 * LIMIT))


def main() -> None:
    """Record a pair, or compare the rules on all records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("record", "simulate"))
    parser.add_argument("pairs", nargs="*")
    parser.add_argument("--cache", type=Path, default=user_cache("printed"))
    parser.add_argument("--results", type=Path, default=RESULTS / "decisions" / "choices")
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--no-labels", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "record":
        given.results.mkdir(parents=True, exist_ok=True)
        for name in given.pairs:
            labels = not given.no_labels
            found = record(pair_of(name, given.cache), given.images, given.set, labels=labels)
            file = given.results / f"{name}-{given.images}{'' if labels else '-no-labels'}.json"
            file.write_text(json.dumps({"pair": name, **found}) + "\n", encoding="utf-8")
        return
    records = [json.loads(file.read_text()) for file in sorted(given.results.glob("*.json"))]
    records = [each for each in records if each["labels"]]
    print(
        f"{len(records)} merges: beyond the limit, gain, of; 'use it' and kept: by other images,"
        " by all, by those that chose"
    )
    for name, rule in RULES.items():
        for images in (5, 10, 13, 23, 25, 38, 51, 86, 100):
            shares = simulate(records, images, rule)
            print(f"{name}, {images} images: ", *(f"{100 * share:.1f}" for share in shares))


if __name__ == "__main__":
    main()
