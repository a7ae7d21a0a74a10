"""A public CLIP on public pictures: an hour of one card, and the network.

`python -m benchmarks judge auto mild-office-home-0` downloads OpenAI's ViT-B/32 and Office-Home
(65 kinds of things, Venkateswara et al. 2017), fine-tunes on photographs, merges, and adds its row.
Nobody has run it on the real weights yet.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import snapshot_download

from benchmarks.make_pairs.pair import Pair, Places, Roles, Spec, sampled, write_pair
from benchmarks.make_pairs.pictures import Picture, encoded, of_domains
from benchmarks.models import Regime

_CLIP, _DATA, _TARGET = "openai/clip-vit-base-patch32", "flwrlabs/office-home", "Real World"
_FILES = ["*.json", "*.txt", "model.safetensors", "pytorch_model.bin"]
_TEST, _VAL = 800, 600
_REGIMES = {"aggressive": Regime(3e-5, 10, text=True), "mild": Regime(1e-5, 3)}
PAIRS = tuple(
    Spec(f"{how}-office-home-0", "office-home", "b32", regime) for how, regime in _REGIMES.items()
)


def make_pair(spec: Spec, places: Places) -> Pair:
    """Make one pair, each part once."""
    given = places.zeroshots.get(spec.model)
    zeroshot = given or Path(snapshot_download(_CLIP, allow_patterns=_FILES))
    data: Any = datasets.load_dataset(_DATA, split="train")
    label = data.features["label"]
    classes = tuple(name.replace("_", " ").lower() for name in label.names)
    pictures = []
    for row in data:
        name = classes[row["label"]]
        image = row["image"].convert("RGB")
        pictures.append(Picture(row["domain"], name, encoded(image, "jpeg")))
    of_domain = of_domains(pictures)
    own = of_domain.pop(_TARGET)
    random.Random(spec.seed).shuffle(own)
    others = own[_TEST:]
    positions = {"train": others[_VAL:], "val": others[:_VAL], "test": sorted(own[:_TEST])}
    for name, ours in of_domain.items():
        positions[f"ood-{name.lower()}"] = sampled(ours, _TEST)
    roles = Roles(classes, positions)
    return write_pair(spec, places.cache, zeroshot, "a photo of a {}.", pictures, roles)
