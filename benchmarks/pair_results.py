"""Results of one pair in one JSON file: which pictures every method recognised."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.make_pairs.pair import Pair

PAIRS_FOLDER = Path(__file__).parent / "results" / "pairs"
CURVE = "wise-ft"


def packed(correct: np.ndarray) -> dict[str, Any]:
    """Bits of a table, shape (points, pictures), as they stand in the file."""
    bits = base64.b64encode(np.packbits(correct)).decode("ascii")
    return {"shape": list(correct.shape), "bits": bits}


def unpacked(told: Mapping[str, Any]) -> np.ndarray:
    """The table that `packed` wrote.

    Example:
        >>> unpacked(packed(np.array([[True, False, True]]))).tolist()
        [[True, False, True]]
    """
    bits = np.frombuffer(base64.b64decode(told["bits"]), np.uint8)
    count = int(np.prod(told["shape"]))
    table = np.unpackbits(bits, count=count).reshape(told["shape"])
    return table.astype(bool)


@dataclass(frozen=True, eq=False)  # so that a file's figures can be kept
class Results:
    """Results of one pair.

    Attributes:
        file: The JSON file.
        told: What it says.
    """

    file: Path
    told: dict[str, Any]

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def target(self) -> str:
        return self.told["target"]

    @property
    def methods(self) -> dict[str, dict[str, Any]]:
        return self.told["methods"]

    @property
    def labels(self) -> int:
        """Labelled pictures that fine-tuning and merging may use together."""
        return sum(self.told["labels"].values())

    @cached_property
    def shifts(self) -> list[str]:
        """Natural shifts of the target."""
        return [name for name in self.told["things"] if name != "test" and name not in self.tasks]

    @cached_property
    def tasks(self) -> list[str]:
        """Other tasks."""
        return [name for name in self.told["things"] if name.startswith("task-")]

    def correct(self, method: str) -> dict[str, np.ndarray]:
        """Which pictures of each source a method recognised, shape (points, pictures)."""
        found = {}
        for name, each in self.methods[method]["correct"].items():
            found[name] = unpacked(each)
        return found

    def add(self, method: str, **told: Any) -> None:
        """Add a method, or replace it, and write the file."""
        self.methods[method] = told
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(_text(self.told), encoding="utf-8")


def _text(told: dict[str, Any]) -> str:
    """JSON with a line for each entry and for each method, so that changes can be read."""
    methods = _entries(told["methods"], "  ")
    *entries, _ = _entries(told, " ")
    entries.append(' "methods": {\n' + ",\n".join(methods) + "\n }")
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _entries(told: dict[str, Any], indent: str) -> list[str]:
    return [f'{indent}"{name}": {json.dumps(each)}' for name, each in told.items()]


def open_results(pair: Pair, folder: Path = PAIRS_FOLDER) -> Results:
    """Results of a pair; of one without a file, none yet."""
    file = folder / f"{pair.spec.name}.json"
    if file.is_file():
        return read_results(file)
    spec = pair.spec
    told: dict[str, Any] = {"target": spec.target, "model": spec.model, "seed": spec.seed}
    told["regime"], _, _ = spec.name.partition(f"-{spec.target}")
    told["tuned"] = spec.tuned
    told["labels"] = {}
    for name in ("train", "val"):
        told["labels"][name] = len(pair.source(name).labels)
    told["things"] = {}
    for name, each in pair.tested().items():
        told["things"][name] = each.things.tolist()
    told["methods"] = {}
    return Results(file, told)


def read_results(file: Path) -> Results:
    return Results(file, json.loads(file.read_text(encoding="utf-8")))


def every_result(folder: Path = PAIRS_FOLDER) -> list[Results]:
    """Results of every pair that has any, by name."""
    return [read_results(file) for file in sorted(folder.glob("*.json"))]


def stacked(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, dict[str, Any]]:
    """Bits of each source, from one table of pictures for each point."""
    found = {}
    for name in rows[0]:
        table = np.stack([row[name] for row in rows])
        found[name] = packed(table)
    return found
