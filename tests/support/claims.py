"""What a merge's sentences and tables may claim, each checked against its plan, its record and its
weights."""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from html import unescape
from typing import Any

import torch
from torch import Tensor

from clipmerge.evaluation.conclusion import concluded
from clipmerge.output.record import MergeRecord
from clipmerge.planning.measurements import takes_learned
from clipmerge.planning.plan import Plan

N = r"(-?\d[\d.]*(?:e[+-]?\d+)?)"
Alphas = list[float]


def near(one: float, other: str) -> bool:
    return f"{one:g}" == f"{float(other):g}"


def spans(alphas: Alphas, low: str, high: str) -> bool:
    return near(min(alphas), low) and near(max(alphas), high)


#: What a verdict may claim about the settings, and whether that is so: every verdict must make one
#: of these claims.
CLAIMS: dict[str, Callable[[Alphas, Plan, re.Match[str]], bool]] = {
    rf"every layer goes {N} of the way": lambda alphas, _, m: spans(alphas, m[1], m[1]),
    r"every layer stays zero-shot": lambda alphas, _, m: spans(alphas, "0", "0"),
    rf"the layers go {N} to {N} of the way": lambda alphas, _, m: spans(alphas, m[1], m[2]),
    rf"the coefficients go {N} to {N} of the way": lambda alphas, plan, m: spans(
        [end for entry in plan.layers.values() for end in entry.alpha_range or [entry.alpha]]
        + alphas,
        m[1],
        m[2],
    ),
    r"([\d,]+) (?:learned )?coefficients": lambda alphas, plan, m: any(
        e.alpha_range for e in plan.layers.values()
    ),
    r"([\d,]+) coefficients(?: times [\d.]+)?; nothing was learned": lambda alphas, plan, m: all(
        entry.alpha_range[0] == entry.alpha_range[1]
        for entry in plan.layers.values()
        if entry.alpha_range
    ),
    rf"every layer gets alpha {N}": lambda alphas, _, m: spans(alphas, m[1], m[1]),
    rf"(?:they get|it gets) alpha {N}(?: and the [\w-]+ mask)?, the rest alpha {N}": (
        lambda alphas, _, m: (
            {f"{alpha:g}" for alpha in alphas} == {f"{float(m[1]):g}", f"{float(m[2]):g}"}
        )
    ),
    rf"the coefficient grows with depth from {N} to {N}": lambda alphas, _, m: spans(
        alphas, m[1], m[2]
    ),
    rf"{N} task vectors, .*times {N}": lambda alphas, plan, m: (
        len(plan.finetuned) == int(m[1]) and spans(alphas, m[2], m[2])
    ),
    r"(\d+) of (\d+) fine-tuned checkpoints (is|are) in the soup": lambda alphas, plan, m: (
        [sum(weight > 0 for weight in plan.weights), len(plan.weights)] == [int(m[1]), int(m[2])]
        and (m[3] == "is") == (m[1] == "1")
    ),
    rf"^layers go {N} to {N} of the way": lambda alphas, _, m: (
        [f"{min(alphas):.2f}", f"{max(alphas):.2f}"] == [m[1], m[2]]
    ),
    rf"weighed by its Fisher information at both ends, the fine-tuned one {N}": (
        lambda alphas, plan, m: all(entry.alpha_range is not None for entry in plan.layers.values())
    ),
    rf"(\d+) weight matrices by regression on their inputs, everything else {N}": (
        lambda alphas, plan, m: len(plan.held_tensors) == int(m[1]) and spans(alphas, m[2], m[2])
    ),
    r"every matrix keeps its strong directions": lambda alphas, plan, m: (
        set(alphas) == {1.0} and "spectral" in {entry.mask for entry in plan.layers.values()}
    ),
}
#: Claims beside these, which need not be made.
MORE: dict[str, Callable[[Plan, re.Match[str]], bool]] = {
    r"(\d+) stragglers? of \d+ layers": lambda plan, m: len(plan.stragglers) == int(m[1]),
    r"(\d+) straggler layers? found": lambda plan, m: len(plan.stragglers) == int(m[1]),
    r"no straggler layers found": lambda plan, m: (
        not plan.stragglers and plan.straggler_statistic is not None
    ),
    r"(\d+) of \d+ layers ha(?:s|ve) a mask": lambda plan, m: (
        sum(entry.mask is not None for entry in plan.layers.values()) == int(m[1])
    ),
    r"(\d+) layers? that the plan does not name": lambda plan, m: int(m[1]) > 0,
    r"and the ([\w-]+) mask": lambda plan, m: (
        m[1] in {entry.mask for entry in plan.layers.values()}
    ),
}


def check_verdict(plan: Plan, layers: Mapping[str, Any]) -> None:
    """Check every claim of a plan's verdict, and the reasons of its layers."""
    alphas = [plan.layers[name].alpha if name in plan.layers else 0.0 for name in layers]
    claims = [
        (claim(alphas, plan, m), m[0])
        for p, claim in CLAIMS.items()
        for m in re.finditer(p, plan.verdict)
    ]
    assert claims, plan.verdict
    claims += [
        (claim(plan, m), m[0]) for p, claim in MORE.items() for m in re.finditer(p, plan.verdict)
    ]
    assert all(true for true, _ in claims), (
        plan.verdict,
        [text for true, text in claims if not true],
        alphas,
    )
    assert plan.straggler_statistic is not None or "straggler" not in plan.verdict
    for name, entry in plan.layers.items():
        assert entry.alpha_range or not entry.reason.startswith(("learned", "straggler with")), (
            name,
            entry,
        )
        assert entry.alpha == 0 or entry.reason != "fine-tuning did not change it", (name, entry)


def text_of(page: str) -> str:
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
    """Check that every entry moved by alpha times what a rule may take of two task vectors: none,
    one or both."""
    rule, density = record.combine.rule, record.combine.options["density"]
    for layer, entry in settings.items():
        for theta_0, first, second, merged in tensors[layer] if entry["mask"] is None else ():
            one, other, moved = first - theta_0, second - theta_0, merged - theta_0
            slack = 1e-6 * (1 + theta_0.abs().max() + first.abs().max() + second.abs().max())
            if rule == "della":  # a mean, each divided by a probability of its own
                least = density - record.combine.options["window"] / 2
                most = entry["alpha"] * one.abs().maximum(other.abs()) / least
                assert bool((moved.abs() <= most + slack).all()), layer
                continue
            both = (one + other) / 2 if rule == "ties" else one + other
            rescaled = (
                [each / density for each in (one, other, both)] if rule == "dare" else [one, other]
            )
            misses = [
                (moved - entry["alpha"] * change).abs() for change in (0 * one, both, *rescaled)
            ]
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
    told = {
        "use": "Use it",
        "prefer-finetuned": "Do not use it: keep the fine-tuned model",
        "prefer-zeroshot": "Do not use it: take the zero-shot model",
        "either": "Either will do",
        "cannot-tell": "Your images cannot tell",
        "too-few-images": "Too few images to tell",
    }
    wanted = [told[record.effect.recommendation]] if record.effect else []
    assert [each for each in told.values() if each in said] == wanted


def check_effect(said: str, record: MergeRecord) -> None:
    """Check the sentence about what a merge effect: the advice and its numbers."""
    check_advice(said, record)
    if record.effect is None:
        return
    main = (
        rf"the merged model recognises {N}% \[{N}, {N}\] \(fine-tuned {N}\); under unrelated"
        rf" corruptions {N}% "
    )
    found = re.search(main + rf"\(zero-shot {N}, fine-tuned {N}\)", said)
    assert found, said
    effect = record.effect
    again = concluded(
        zeroshot=effect.zeroshot,
        finetuned=effect.finetuned[effect.reference],
        merged=effect.merged,
        over_finetuned=effect.over_finetuned,
        over_zeroshot=effect.over_zeroshot,
        images=effect.images,
        max_loss=effect.max_loss,
        learned=takes_learned(record.trace, record.choice),
    )
    assert asdict(again).items() <= effect.model_dump().items()
    merged, finetuned, zeroshot = effect.merged, effect.finetuned[effect.reference], effect.zeroshot
    values = [merged.clean.value, *merged.clean.interval, finetuned.clean.value]
    values += [merged.corrupted.value, zeroshot.corrupted.value, finetuned.corrupted.value]
    assert list(found.groups()) == [f"{100 * value:.1f}" for value in values]
    lost = finetuned.clean.value - merged.clean.value
    assert ("points of the fine-tuned model's accuracy" in said) == (lost > 0.03 + 1e-9)
