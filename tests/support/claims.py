"""What a merge's sentences and tables may claim, each checked against its plan, its record and its
weights."""

import re
from collections.abc import Mapping
from html import unescape
from typing import Any

import torch
from torch import Tensor

from clipmerge.output.record import MergeRecord
from clipmerge.report.text import ADVICE


def words_of(page: str) -> str:
    """The words of a page, in one line."""
    words = re.sub(
        r"<style>.*?</style>|<(?:svg|script).*?</(?:svg|script)>", " ", page, flags=re.DOTALL
    )
    return " ".join(
        unescape(re.sub(r"<[^>]+>", "", words.replace("\n", " ")))
        .replace("\N{MINUS SIGN}", "-")
        .split()
    )


def check_weights(
    settings: Mapping[str, Any], tensors: Mapping[str, Any], record: MergeRecord
) -> None:
    """Check that the weights went as far as the settings say."""
    for layer, entry in settings.items():
        if entry["mask"]:
            continue
        low, high = entry["alpha_range"] or (entry["alpha"], entry["alpha"])
        for theta_0, *finetuned, merged in tensors[layer]:
            moved = zip(record.weights, finetuned, strict=True)
            theta_1 = theta_0 + sum(weight * (theta_i - theta_0) for weight, theta_i in moved)
            _check_between(layer, theta_0, theta_1, merged, low, high)


def check_combined(
    settings: Mapping[str, Any], tensors: Mapping[str, Any], record: MergeRecord
) -> None:
    """Check that every entry moved by alpha times what TIES may take of two task vectors: none, one
    or the mean of both."""
    for layer, entry in settings.items():
        for theta_0, first, second, merged in tensors[layer] if entry["mask"] is None else ():
            one, other, moved = first - theta_0, second - theta_0, merged - theta_0
            slack = 1e-6 * (1 + theta_0.abs().max() + first.abs().max() + second.abs().max())
            taken = (0 * one, one, other, (one + other) / 2)
            misses = [(moved - entry["alpha"] * change).abs() for change in taken]
            assert bool((torch.stack(misses).amin(dim=0) <= slack).all()), layer


def _check_between(
    layer: str, theta_0: Tensor, theta_1: Tensor, merged: Tensor, low: float, high: float
) -> None:
    ends = [theta_0 + end * (theta_1 - theta_0) for end in (low, high)]
    slack = 1e-6 * (1 + theta_0.abs().max() + theta_1.abs().max())
    assert bool((merged >= ends[0].minimum(ends[1]) - slack).all()), (layer, low, high)
    assert bool((merged <= ends[0].maximum(ends[1]) + slack).all()), (layer, low, high)


def check_advice(said: str, record: MergeRecord) -> None:
    """Check that only a measured merge is advised, and how."""
    wanted = [ADVICE[record.effect.recommendation]] if record.effect else []
    assert [advice for advice in ADVICE.values() if advice in said] == wanted
