"""Records of benchmark pairs, made of shares of recognised drawings."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.shifts.evaluation import ByDrawing, packed


def record_of(correct: dict[str, Any], recipes: dict[str, int], *, curve: int = 3, **told: Any) -> dict[str, Any]:
    things = {name: list(range(right.shape[1])) for name, right in correct.items()}

    def part(points: list[int]) -> dict[str, Any]:
        rows = {name: right[points].reshape(len(points), -1) for name, right in correct.items()}
        return {name: packed(ByDrawing(right, things[name])) for name, right in rows.items()}

    rows = [{"name": name, "correct": part([point])} for name, point in recipes.items()]
    oods = [name for name in correct if name != "test"]
    base = {"things": things, "regime": "mild", "seed": 1, "tuning": False, "id": ["test"], "ood": oods}
    return {**base, "correct": part(list(range(curve))), "recipes": rows, "curve": [{}] * curve, **told}


def bits(shares: list[float], drawings: int = 50, copies: int = 2) -> Any:
    """The first share of the drawings is recognised."""
    return np.array([[[place < share * drawings] * copies for place in range(drawings)] for share in shares])
