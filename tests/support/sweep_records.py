"""A made-up record of a sweep, for what is drawn from records alone."""

import copy
from typing import Any

SHIFTS = ("sketch", "noise")


def sweep_row(
    id_accuracy: float, ood: float, gain: float | None = 0.0, **more: Any
) -> dict[str, Any]:
    accuracy = {"val": id_accuracy, "sketch": ood - 0.1, "noise": ood + 0.1}
    ends = None if gain is None else [gain - 0.01, gain + 0.02]
    interval = [ood - 0.02, ood + 0.02]
    return {
        "accuracy": accuracy,
        "id": id_accuracy,
        "id_interval": [id_accuracy - 0.01, min(1.0, id_accuracy + 0.01)],
        "ood": ood,
        "ood_interval": interval,
        "gain": gain,
        "gain_interval": ends,
        "gain_note": None if ends else {"kind": "below-curve"},
        "exceeds_max_loss": False,
        **more,
    }


def sweep_recipe(name: str, *numbers: Any, alpha: float | None = None) -> dict[str, Any]:
    said = {
        "decision": {"kind": "note", "text": f"what {name} did"},
        "calibration": None,
        "recipe": {"name": name},
    }
    return sweep_row(*numbers, name=name, alpha=alpha, **said)


SWEEP: dict[str, Any] = {
    "clipmerge": "0.1.0",
    "output": "out",
    "command": "clipmerge sweep zeroshot finetuned --id val=val",
    "zeroshot": {"source": "zeroshot", "revision": None, "files": {}},
    "finetuned": [{"source": "acme/cars", "revision": "c" * 40, "files": {}}],
    "id": ["val"],
    "ood": list(SHIFTS),
    "sources": {"val": "val", "sketch": "sketch", "noise": "hf://noise"},
    "images": {"val": 1234, "sketch": 5, "noise": 6},
    "calibration_source": None,
    "templates": ["a photo of a {}."],
    "seed": 0,
    "bootstrap": {"resamples": 1000, "level": 0.95},
    "warnings": [],
    "curve": [
        sweep_row(0.40, 0.54, None, alpha=0.0),
        sweep_row(0.60, 0.56, None, alpha=0.25),
        sweep_row(0.90, 0.50, None, alpha=0.5),
        sweep_row(0.985, 0.342, None, alpha=1.0),
    ],
    "recipes": [
        sweep_recipe("lines", 0.9, 0.5, None, alpha=0.5),
        sweep_recipe("monosoup", 0.8, 0.6, 0.078),
        sweep_recipe("beyond", 0.35, 0.4, None),
    ],
}
LONG = "straggler-sparse-density-0.2-of-the-image-tower-only-with-text-left-as-it-is-alpha-0.35"


def with_recipes(*names: str) -> dict[str, Any]:
    places = [
        (0.9, 0.5),
        (0.8, 0.6),
        (0.99, 0.4),
        (0.6, 0.5),
        (0.7, 0.45),
        (0.42, 0.35),
        (0.97, 0.5),
    ]
    return {
        **SWEEP,
        "recipes": [sweep_recipe(name, *places[n % 7], 0.0) for n, name in enumerate(names)],
    }


def with_sources(count: int) -> dict[str, Any]:
    record = copy.deepcopy(SWEEP)
    record["ood"] = [f"source {n}" for n in range(count)]
    for each in [*record["curve"], *record["recipes"]]:
        each["accuracy"] |= dict.fromkeys(record["ood"], 0.5)
    return record
