"""All sentences about a merge: each kind of finding in words, the same on terminal, page, card and
in JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from string import Formatter
from typing import Any, Literal, NamedTuple

from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG
from clipmerge.config import with_flags
from clipmerge.errors import counted, shorten
from clipmerge.finding import NOTE, Finding
from clipmerge.methods.learned import UNCHANGED
from clipmerge.output.record import Measured, Record, map_text
from clipmerge.planning.measurements import HeldBackChoice, takes_learned
from clipmerge.planning.merge_effect import Estimate, MergeEffect, Recommendation
from clipmerge.planning.other_tasks import OtherTaskScores, measures_of
from clipmerge.planning.plan import Combination, LayerPlan, Plan
from clipmerge.types import Json

#: The recommendation in words, the same on the terminal, the page and the card.
ADVICE: dict[Recommendation, str] = {
    "use": "Use it",
    "prefer-finetuned": "Do not use it: keep the fine-tuned model",
    "prefer-zeroshot": "Do not use it: take the zero-shot model",
    "either": "Either will do",
    "cannot-tell": "Your images cannot tell",
    "too-few-images": "Too few images to tell",
    "check-names": "Check the class names",
    "check-models": "Check the two models",
    "other-tasks": "Look at the other tasks",
}

#: In place of "Use it" where the user's own images show no difference, or have no labels.
ON_EXPERIENCE = "Probably use it"
#: In place of "Check the class names" where there are none.
CHECK_CAPTIONS = "Check the captions"


def advice_text(effect: MergeEffect) -> str:
    """The recommendation in words."""
    if effect.rests_on_experience:
        return ON_EXPERIENCE
    if effect.recommendation == "check-names" and effect.captions:
        return CHECK_CAPTIONS
    return ADVICE[effect.recommendation]


def text_of(finding: Finding | str) -> str:
    """A finding in words; one of an unknown kind, or with other numbers, as it is.

    Example:
        >>> text_of(Finding.of("base-alpha")), text_of(Finding.of("unheard-of", count=2))
        ('base alpha', 'unheard-of (count 2)')
    """
    if isinstance(finding, str):
        return finding
    sentence = SENTENCES.get(finding.kind)
    return str(finding) if sentence is None else _say(sentence, finding)


def _say(sentence: str | Callable[..., str], finding: Finding) -> str:
    """A sentence with the numbers of a finding; if they do not fit it, the finding as it is."""
    try:
        if isinstance(sentence, str):
            return _FORMAT.vformat(sentence, (), finding.values)
        return sentence(**finding.values)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return str(finding)  # a record that was edited, or written by another version


def texts_of(findings: Iterable[Finding | str]) -> list[str]:
    """Several findings in words."""
    return [text_of(finding) for finding in findings]


def with_texts(data: Any) -> Any:
    """Add its sentence to each finding in JSON data."""
    if isinstance(data, list | tuple):
        return [with_texts(item) for item in data]
    if not isinstance(data, dict):
        return data
    if "kind" in data and data.keys() <= {"kind", "values", "text"}:
        finding = Finding.model_validate(data)
        return finding.model_copy(update={"text": text_of(finding)}).model_dump(mode="json")
    return {key: with_texts(value) for key, value in data.items()}


def record_json(record: Record) -> Json:
    """The JSON object of a record, with all of its sentences."""
    data: Json = with_texts(record.as_json())
    if record.verdict:
        data["verdict"]["text"] = answer_text(record.verdict)
    return data


def record_text(record: Record) -> str:
    """The text of ``clipmerge.json``; in a path that is not UTF-8, the bytes that are not are
    escaped.
    """
    data = map_text(
        record_json(record), lambda text: text.encode("utf-8", "backslashreplace").decode()
    )
    return json.dumps(data, indent=2) + "\n"


def record_texts(record: Record, *, images: str = "your images") -> Json:
    """The sentences and tables that page and card have alike; ``images`` are the user's own."""
    effect = record.verdict
    texts: Json = {
        "headline": headline(record.plan, record.measured),
        "warnings": list(map(with_flags, record.warnings)),
        "other_tasks": other_task_rows(record.other_tasks),
        "other_tasks_heads": HEADS,
        "other_tasks_facts": other_task_facts(record.other_tasks),
        "other_tasks_explanation": EXPLANATION,
    }
    if effect is None:
        return texts
    sentences = [answer_text(effect), reason_text(effect), examples_text(effect)]
    sentences += texts_of(effect.warnings)
    answer, reason, examples, *warnings = (
        with_flags(text.replace("your images", images)) for text in sentences
    )
    return texts | {
        "answer": answer,
        "reason": reason,
        "examples_text": examples,
        "effect_warnings": warnings,
        "effect_title": effect_title(effect),
        "effect_facts": effect_facts(effect),
        "effect_rows": effect_rows(effect),
        "effect_explanation": effect_explanation(effect),
    }


# The decision, and the settings of the layers


def headline(plan: Plan, measured: Measured) -> str:
    """The decision as a sentence: what was found, and what the settings are."""
    parts = [measured.decision]
    if measured.trace:
        parts.append(_losses_text(measured.trace))
    if measured.choice:
        parts.append(_choice_text(measured.choice))
    parts.append(settings_text(plan, measured.reasons))
    text = "; ".join(filter(None, parts))
    return f"{text[:1].upper()}{text[1:]}."


def _losses_text(trace: Mapping[str, Sequence[float]]) -> str:
    """The change of the losses from the first tenth of learning to the last."""
    parts = []
    names = {"cross_entropy": "loss", "distillation_loss": "distillation loss"}
    for name, label in names.items():
        values = trace.get(name, ())
        if any(values):
            length = max(1, len(values) // 10)
            first, last = sum(values[:length]) / length, sum(values[-length:]) / length
            parts.append(f"{label} from {first:.3f} to {last:.3f}")
    return ", ".join(parts) + " nats while learning" if parts else "nothing was learned"


def _choice_text(choice: HeldBackChoice) -> str:
    """The choice on held-out images."""
    images = f"on {choice.images} held-out images"
    if choice.alpha == 1:
        return (
            f"on {choice.images} images nothing else surely keeps the accuracy, so it is the"
            " fine-tuned model"
        )
    if choice.alpha is not None:
        return (
            "nothing learned surely keeps the accuracy on held-out images, but alpha"
            f" {choice.alpha:.3g} for all weights does on all {choice.images}: it recognises"
            f" {choice.accuracy:.1%} of them and their views, the fine-tuned model"
            f" {choice.finetuned_accuracy:.1%}"
        )
    way = (
        f"{choice.extrapolation:.0%} of the way from the learned merge to fine-tuned was needed to"
        " keep the accuracy"
        if choice.extrapolation
        else "all that was learned keeps the accuracy"
    )
    # what is counted are slightly altered views, several of each image, and with labels the images
    # as they are
    if not choice.labelled:
        return (
            f"{images} {way}; the fine-tuned model gives the learned merge's answer on"
            f" {choice.accuracy:.1%} of their views, and its own on {choice.finetuned_accuracy:.1%}"
        )
    return (
        f"{images} {way}; the learned merge recognises {choice.accuracy:.1%} of them and their"
        f" views, the fine-tuned model {choice.finetuned_accuracy:.1%}"
    )


def settings_text(plan: Plan, reasons: Mapping[str, str]) -> str:
    """How far the layers go, and which have a mask."""
    entries = list(plan.layers.values())
    moved = {name: e for name, e in plan.layers.items() if reasons.get(name) != UNCHANGED}
    parts = [_distance_text(moved or plan.layers, _target_text(plan.weights, plan.combine))]
    masked = [entry for entry in entries if entry.mask]
    if masked:
        rules = ", ".join(sorted({str(entry.mask) for entry in masked}))
        densities = sorted({entry.density for entry in masked})
        ends = [f"{density:g}" for density in dict.fromkeys((densities[0], densities[-1]))]
        shares = "" if densities == [1.0] else f", density {' to '.join(ends)}"
        layers_have = counted(
            len(masked), f"of {len(entries)} layers has", f"of {len(entries)} layers have"
        )
        parts.append(f"{layers_have} a mask ({rules}{shares})")
    return "; ".join(parts)


def _distance_text(layers: Mapping[str, LayerPlan], target: str) -> str:
    entries = layers.values()
    ends = [end for entry in entries for end in (entry.alpha_range or (entry.alpha,))]
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    way = f"of the way from zero-shot to {target}"
    if low == high:
        towers = {name.partition(".")[0] for name in layers if "." in name}
        whose = f" of the {towers.pop()} tower" if len(towers) == 1 else ""
        end = "stays zero-shot" if high == 0 else f"goes {high:g} {way}"
        return f"every layer{whose} {end}"
    kind = "coefficients go" if any(entry.alpha_range for entry in entries) else "layers go"
    return f"the {kind} {low:.4g} to {high:.4g} {way}"


def _target_text(weights: Sequence[float], combine: Combination | None) -> str:
    count = len(weights)
    if combine:
        return (
            f"the {combine.rule} combination of {count} fine-tuned model{'s' if count > 1 else ''}"
        )
    if count == 1:
        return (
            "the fine-tuned model"
            if weights[0] == 1
            else f"{weights[0]:g} times the fine-tuned change"
        )
    if all(weight == 1 / count for weight in weights):
        return f"the average of {count} fine-tuned models"
    return (
        f"the sum of {count} fine-tuned changes weighted"
        f" {', '.join(f'{weight:g}' for weight in weights)}"
    )


def distillation_text(record: Record) -> str:
    """What learning distilled; empty if nothing restrained it."""
    if not any(record.measured.trace.get("distillation_loss", ())):
        return ""
    target = record.measured.choice.distill_target if record.measured.choice else "predictions"
    path = "image features of the zero-shot model and of the middle of the straight path"
    if target == "both":
        return f"the predictions and {path}"
    if target == "path-features":
        return f"the {path}"
    return f"the zero-shot model's {'image features' if target == 'features' else 'predictions'}"


def learned_text(record: Record, images: int) -> list[str]:
    """What was learned in short."""
    choice = record.measured.choice
    images = (choice and choice.training_images) or images
    where = f"with {images:,} of your images"
    lines = []
    if choice and not takes_learned(record.measured.trace, choice):
        sentence = f"Nothing learned {where} surely keeps the fine-tuned model's accuracy, so " + (
            "its weights were taken"
            if choice.alpha in (None, 1)
            else f"alpha {choice.alpha:.3g} was taken"
        )
    else:
        sentence = f"How far each weight goes from zero-shot to fine-tuned was learned {where}"
        found = record.measured.decision
        lines.append(f"{found[:1].upper()}{found[1:]}.")
    return [*lines, f"{sentence} (-v says more)."]


def straggler_meaning(record: Record) -> str:
    """What the report calls a straggler, by the rule that looked for stragglers."""
    measure = record.plan.recipe.measure or {}
    if measure.get("rule") == "share" and "share" in measure:
        return (
            "one of the sharpest layers of the blocks, the fewest that together hold"
            f" {measure['share']:.0%} of the blocks' sharpness."
        )
    if measure.get("rule") == "outlier" or any(
        "z" in row for row in record.measured.straggler_scores.values()
    ):
        return (
            "a layer whose statistic stands out from the other layers by a robust outlier rule, and"
            " does so in nearly every bootstrap resample of the calibration batches."
        )
    statistic = record.measured.straggler_statistic or "statistic"
    return f"a layer that the method singled out by its {statistic}; its reason says why."


# The measured effect


def answer_text(effect: MergeEffect) -> str:
    """The recommendation, and the main numbers in a sentence."""
    low, high = effect.merged.clean.interval
    finetuned = effect.finetuned[effect.reference]
    images = counted(effect.images, "held-out image", "held-out images")
    against = f" (fine-tuned {_percent(finetuned.clean.value)})"
    if effect.captions:
        images += f" with {counted(effect.captions, 'caption', 'captions')}"
        shown = f"has a recall at 1 of {_percent(effect.merged.clean.value)}%"
    elif effect.labelled:
        shown = f"is {_percent(effect.merged.clean.value)}% accurate"
    else:
        images += " without labels"
        shown = f"gives the fine-tuned model's answer on {_percent(effect.merged.clean.value)}%"
        against = ""
    return (
        f"{advice_text(effect)}. On {images} the merged model {shown}"
        f" [{_percent(low)}, {_percent(high)}]{against}; under unrelated corruptions"
        f" {_percent(effect.merged.corrupted.value)}%"
        f" (zero-shot {_percent(effect.zeroshot.corrupted.value)}, fine-tuned"
        f" {_percent(finetuned.corrupted.value)})."
    )


def inputs_text(record: Record) -> str:
    """The models, the images and the day of a merge."""
    finetuned = " and ".join(model.source for model in record.plan.finetuned)
    parts = [f"{record.plan.zeroshot.source} merged with {finetuned}"]
    if record.verdict:
        count = counted(record.verdict.images, "image", "images")
        parts.append(f"judged on {count} of {record.verdict.source}")
    return ", ".join([*parts, *filter(None, [record.date])])


def unmeasured_text(record: Record) -> str:
    """Why a merge has no measured effect."""
    if record.classifier:
        return (
            "The effect of this merge is not known: it is a classifier with a head of its own,"
            " which clipmerge cannot evaluate; measure it where it was trained."
        )
    if record.calibration is not None:
        return (
            "The effect of this merge was not measured on held-out images, so it is not known;"
            " `clipmerge evaluate` measures it on images of yours."
        )
    return (
        "Nothing was measured on images, so the effect of this merge is not known; give labelled"
        " images of your task with `data` to measure it."
    )


def effect_title(effect: MergeEffect) -> str:
    """The heading of a table of an effect's scores."""
    if not effect.labelled:
        return "agreement with fine-tuned, %"
    return "recall at 1, %" if effect.captions else "accuracy, %"


def effect_facts(effect: MergeEffect) -> str:
    """Sentences about the images of the measurement."""
    facts = (
        "The merged and the zero-shot model agree on"
        f" {_percent(effect.agreement.value)}% of the images ({effect.images})."
    )
    if effect.choosers:
        these = "These" if effect.choosers == effect.images else f"{effect.choosers} of these"
        facts += f" {these} images also chose how far to go; nothing was learned from them."
    counts = (
        (effect.classes_without_images, "no image"),
        (effect.classes_with_one_image, "one image"),
    )
    rare = [counted(count, f"has {number}", f"have {number}") for count, number in counts if count]
    if not rare:
        return facts
    return f"{facts} Of {effect.classes} classes, {' and '.join(rare)} among them."


def examples_text(effect: MergeEffect) -> str:
    """A sentence about the example captions."""
    return (
        f"For {counted(len(effect.examples), 'caption', 'captions')} of the held-out images, taken"
        " at random: its image, and the best images for it by the fine-tuned and by the merged"
        " model, best first; a caption's own image is framed."
    )


def effect_explanation(effect: MergeEffect) -> str:
    """A sentence about the corruptions."""
    unrelated = ", ".join(name for name in effect.merged.corruptions if name not in effect.related)
    return (
        f"Each image was seen under {effect.corruptions_per_image} of the unrelated corruptions"
        f" {unrelated}, of kinds that no recipe learns from, and under {effect.related_per_image}"
        f" of the related ones {', '.join(effect.related)}, stronger forms of changes that auto"
        " learns from; the answer does not rest on those."
    )


def effect_rows(effect: MergeEffect) -> list[list[str]]:
    """A row per model, in per cent: clean, under unrelated and related corruptions, and under each
    by itself.
    """
    compared = f"fine-tuned {effect.reference + 1}"
    return [
        [
            f"{name} (compared with)" if name == compared else name,
            *map(_with_interval, (model.clean, model.corrupted, model.related)),
            *(_percent(estimate.value) for estimate in model.corruptions.values()),
        ]
        for name, model in effect.models.items()
    ]


def _with_interval(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"{_percent(estimate.value)} [{_percent(low)}, {_percent(high)}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(difference: Mapping[str, Any], *, lost: bool = False, unit: str = " points") -> str:
    """A difference of accuracies, or a loss without its sign."""
    value, (low, high) = difference["value"], difference["interval"]
    if lost:
        value, low, high = -value, -high, -low
    return f"{_percent(value)}{unit} [{_percent(low)}, {_percent(high)}]"


def _differences(corrupted: Any, clean: Any, *, lost: bool = False) -> str:
    parts = ((corrupted, "under unrelated corruptions"), (clean, "on your images"))
    return " and ".join(
        f"{_points(estimate, lost=lost)} {where}" for estimate, where in parts if estimate
    )


def _price_clause(points: float) -> str:
    return f", at the price of {_percent(points)} points on your images" if points > 0 else ""


def _no_worse_zeroshot_text(corrupted: Any = None, clean: Any = None) -> str:
    return (
        "The zero-shot model recognises as many of your images as the fine-tuned one or more, and"
        f" the merged model loses {_differences(corrupted, clean, lost=True)} against it."
    )


def _gains_text(corrupted: Any = None, clean: Any = None, price: float = 0.0) -> str:
    return (
        f"The merged model gains {_differences(corrupted, clean)} over the fine-tuned"
        f" model{_price_clause(price)}."
    )


def _range(interval: Sequence[float]) -> str:
    low, high = interval
    return f"{signed_points(low)} to {signed_points(high)}"


def _disagrees_text(clean: Mapping[str, Any]) -> str:
    return (
        f"The merged model answers otherwise than the fine-tuned one on"
        f" {_points(clean, lost=True, unit='%')} of your images."
    )


def _votes_text(clean: Mapping[str, Any], voted: Mapping[str, Any]) -> str:
    return (
        f"{_disagrees_text(clean)} By the fine-tuned model's answers on altered views of these"
        f" images, the accuracy changes by {signed_points(voted['value'])} points"
        f" ({_range(voted['interval'])}). On the held-out pairs that were tried without labels,"
        " such merges kept the accuracy and were at least as robust."
    )


def _same_accuracy_text(clean: Sequence[float], corrupted: Sequence[float]) -> str:
    return (
        f"No significant loss of accuracy was measured on your images ({_range(clean)} points"
        " against the fine-tuned model), and unrelated corruptions show no difference"
        f" ({_range(corrupted)}). On the real shifts that were tried, merges by this recipe that"
        " kept the accuracy were nearly always at least as robust."
    )


def _score_changes(tasks: Sequence[Mapping[str, Any]], start: str) -> str:
    return "; ".join(
        f"{task['task']} ({task['measure']}): {_percent(task[start])} to"
        f" {_percent(task['merged'])}%"
        for task in tasks
    )


def reason_text(effect: MergeEffect) -> str:
    """Why this is recommended, and how large the loss may be."""
    text = text_of(effect.reason)
    if text.startswith("the "):  # a doubt about the inputs, which is a note elsewhere
        text = f"T{text[1:]}"
    if effect.possible_loss is not None:
        text += f" {text_of(effect.possible_loss)}"
    if not effect.labelled:
        text += (
            " Without labels, accuracy here is agreement with the fine-tuned model's answers: how"
            " often they are right, which model is right where they differ, and whether the class"
            " names are those of fine-tuning, cannot be known."
        )
    return text


def _loses_text(who: str, where: str, accuracy: float, finetuned: float, limit: float) -> str:
    return (
        f"{who} loses {_format_loss(finetuned - accuracy, limit)} points of the fine-tuned model's"
        f" {where} ({_percent(accuracy)}% against {_percent(finetuned)}%), more than the limit of"
        f" {limit:g}"
    )


def _may_lose_text(loss: float, limit: float) -> str:
    return (
        f"The loss on your images may be as large as {_format_loss(loss, limit)} points, more than"
        f" the limit of {limit:g}."
    )


def _format_loss(loss: float, limit: float) -> str:
    """Write a loss with enough digits to show that it is beyond the limit.

    Example:
        >>> _format_loss(0.402, 3), _format_loss(0.0304, 3)
        ('40.2', '3.04')
    """
    texts = [f"{100 * loss:.{digits}f}" for digits in range(1, 9)]
    return next((text for text in texts if float(text) > limit), texts[-1])


# Other tasks

#: Headings of the columns after the task.
HEADS = ("measure", "zero-shot", "fine-tuned", "merged", "change", "back")
#: Explanation of the last two columns.
EXPLANATION = (
    "Tasks that the model was not fine-tuned for. In points: the change by fine-tuning against"
    " zero-shot, and what the merge gives back against fine-tuned."
)


def other_task_rows(tasks: Sequence[OtherTaskScores]) -> list[list[str]]:
    """A row per number of a task: the task, in its first row only, then what `HEADS` says, in per
    cent and points.
    """
    rows = []
    for task in tasks:
        finetuned = [measures_of(score) for score in task.finetuned]
        merged = measures_of(task.merged)
        for index, (measure, zeroshot) in enumerate(measures_of(task.zeroshot).items()):
            middle = fmean(score[measure] for score in finetuned)
            values = [_percent(value) for value in (zeroshot, middle, merged[measure])]
            changes = (middle - zeroshot, merged[measure] - middle)
            row = ["" if index else task.name, measure, *values, *map(signed_points, changes)]
            rows.append(row)
    return rows


def other_task_facts(tasks: Sequence[OtherTaskScores]) -> str:
    """How many images each task has, in one sentence."""
    counts = [
        f"{task.name}: {task.images:,} images"
        + (
            f" with {task.captions:,} captions"
            if task.captions
            else f" of {task.classes:,} classes"
        )
        for task in tasks
    ]
    return "; ".join(counts) + "."


# Sweeps


class SweepAnswer(NamedTuple):
    """What to do: the colour of the page's answer, the answer in a few words, and the numbers for
    it.
    """

    kind: Literal["yes", "no", "open"]
    label: str
    numbers: str


def off_curve_rows(record: Json) -> list[Json]:
    """The rows that are not points of the curve: recipes, then other checkpoints."""
    return [*record["recipes"], *record.get("points", [])]


def sweep_headline(record: Json) -> str:
    """The result of a sweep as one sentence."""
    _, label, numbers = sweep_answer(record)
    return f"{label}: {numbers}"


def sweep_answer(record: Json) -> SweepAnswer:
    """Compare the best recipe with the alpha curve, or say why that is not possible.

    A recipe is recommended only if it is off the curve, its gain has an interval, and it does not
    lose too much.
    """
    judged = [row for row in off_curve_rows(record) if row["gain_interval"]]
    if judged:
        return _compare_with_curve(max(judged, key=_rank))
    unjudged = [row for row in off_curve_rows(record) if row["alpha"] is None]
    best = max(unjudged or record["curve"], key=lambda row: float(row["ood"]))
    ood, id = (f"{_percent(best[mean])}%" for mean in ("ood", "id"))
    if not unjudged:
        label = f"Alpha {best['alpha']:g} has the highest mean OOD accuracy of the curve"
        return SweepAnswer("open", label, f"{ood}, with {id} ID accuracy.")
    why = gain_note(best) or "no interval was made"
    return SweepAnswer(
        "open",
        "Not known",
        f"{best['name']} has {ood} mean OOD accuracy with {id} ID accuracy, but it cannot be"
        f" compared with the alpha curve: {why}.",
    )


def _rank(row: Json) -> tuple[bool, float]:
    """Rows that surely gain and keep the accuracy come before those that may gain more."""
    return row["gain_interval"][0] > 0 and row.get("exceeds_max_loss") is False, float(row["gain"])


def _compare_with_curve(row: Json) -> SweepAnswer:
    low, high = row["gain_interval"]
    where = "its most accurate point" if row["gain_note"] else "equal ID accuracy"
    numbers = f"{signed_points(row['gain'])} points {interval_text(row['gain_interval'])}"
    numbers = f"{numbers} of mean OOD accuracy against the alpha curve at {where}"
    name = row["name"]
    if low > 0 and row.get("exceeds_max_loss") is not False:  # `None`: alpha 1 was not measured
        return SweepAnswer("open", f"{name} gains", f"{numbers}.")
    if low > 0:
        return SweepAnswer("yes", f"Use {name}", f"{numbers}.")
    if high < 0:
        return SweepAnswer(
            "no", "Keep to the alpha curve", f"{name}, the best of the others, has {numbers}."
        )
    return SweepAnswer(
        "open", "No difference is shown", f"{name} has {numbers}; more images would tell."
    )


def gain_note(row: Mapping[str, Any]) -> str:
    """Why a row has no gain or no interval, or what its gain is compared with; empty if nothing is
    to be said.
    """
    note = row.get("gain_note")
    return text_of(Finding.model_validate(note)) if note else ""


def gain_notes(record: Json) -> list[str]:
    """One line for each recipe that had unlabelled images, and for each row without a gain or an
    interval.
    """
    notes = [
        f"{row['name']}: also learned from {images['images']} unlabelled images of"
        f" {images['source']}."
        for row in record["recipes"]
        if (images := (row.get("calibration") or {}).get("unlabelled"))
    ]
    for row in off_curve_rows(record):
        if row["alpha"] is not None:
            notes.append(
                f"{row['name']}: the same weights as alpha {row['alpha']:g}, a point of the curve."
            )
        elif note := gain_note(row):
            notes.append(f"{row['name']}: {note}.")
    return notes


def signed_points(share: float) -> str:
    """A difference of shares in points, with its sign.

    Example:
        >>> signed_points(0.0123), signed_points(-0.0001)
        ('+1.2', '0.0')
    """
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def interval_text(ends: Sequence[float] | None, *, with_sign: bool = True) -> str:
    """An interval in brackets, in points; empty if there is none.

    Example:
        >>> interval_text((0.01, 0.02)), interval_text((0.5, 0.62), with_sign=False)
        ('[+1.0, +2.0]', '[50.0, 62.0]')
    """
    if not ends:
        return ""
    low, high = (signed_points(end) if with_sign else _percent(end) for end in ends)
    return f"[{low}, {high}]"


def _weights_inside_text(file: str, inside: str, others: Sequence[str]) -> str:
    beside = ""
    if others:
        beside = f"; {shorten(others)} holds weights too (`state_key` {others[0]} takes them)"
    return f"{file}: the weights are those under {inside}{beside}"


def _inner_folder_text(source: str, library: str, folder: str) -> str:
    pipeline = (
        "; its pipeline loads a merge by CLIPTextModel.from_pretrained, and measures of images with"
        " classes say nothing about the pictures that it makes"
    )
    is_text = folder.startswith("text_encoder")
    return (
        f"{source}: is a folder of {library}, and its CLIP is {folder}{pipeline if is_text else ''}"
    )


def _unwrapped_text(
    file: str,
    inside: Sequence[str],
    copies: Sequence[str],
    averages: int,
    others: int,
    examples: Sequence[str],
) -> str:
    attributes = " and ".join(name or "no name" for name in inside)
    parts = [f"the CLIP is what lies under {attributes}"] if any(inside) else []
    if copies:
        parts.append(
            f"{shorten(copies)} holds the same parameters (`state_key` {copies[0]} takes it)"
        )
    whats = ("an average of weights", "not part of a CLIP")
    for number, what, names in zip((averages, others), whats, examples, strict=True):
        if number:
            tensors = counted(number, "tensor", "tensors")
            parts.append(f"left out {tensors} beside it, {what}: {names}")
    return f"{file}: {'; '.join(parts)}"


def _timm_text(source: str, head: bool) -> str:
    classifier = " and its head as a classifier" if head else ""
    return f"{source}: is a ViT of timm, read as a vision tower{classifier}"


def _no_config_text(source: str, config: str) -> str:
    named = "; a merge with `model` names it" if config == OPEN_CLIP_CONFIG else ""
    return f"{source}: no {config} beside it, so its activation could not be compared{named}"


def _other_encoder_text(
    source: str, encoder: str, tensors: int, changed: int | None, share: float | None
) -> str:
    end = ""
    if changed == 0:
        end = "; it is the same in both"
    elif changed is not None:
        end = (
            f"; fine-tuning changed {changed} of its {tensors} tensors, {share:.1%} of the change"
            f" of both (sum of squares), so merge it too (#{encoder}), and replace both in a copy"
            " of the file"
        )
    return f"{source}: its other text encoder, {encoder}, is not merged{end}"


def _shared_images_text(source: str, other: str, images: int, example: str, measured: bool) -> str:
    therefore = ", which flatters recipes that measure" if measured else ""
    also = counted(images, "image is", "images are")
    return f"{source}: {also} also in {other} ({example}){therefore}"


def _not_copied_text(source: str, files: Sequence[str], reason: str) -> str:
    why = {
        "not-read": "not among the files that loaders read",
        "link": "not a file of this folder",
        "not-json": "it cannot be read as JSON",
    }
    return f"{source}: {shorten(files)} not copied: {why[reason]}"


def _unrelated_text(
    zeroshot: str, finetuned: str, evidence: Sequence[str], *, swapped: bool = False
) -> str:
    order = "the two are probably swapped: " if swapped else ""
    return (
        f"{zeroshot} is probably not what {finetuned} started from ({order}{'; '.join(evidence)})"
    )


def _equal_models_text(first: str, second: str, with_zeroshot: bool) -> str:
    effect = "merging them changes nothing" if with_zeroshot else "that model counts twice"
    return f"{first} and {second} are equal in all weights that can be merged, so {effect}"


def _accuracy_text(
    model: str,
    accuracy: float,
    images: int,
    classes: int,
    prompt: str,
    source: str = "",
    captions: bool = False,
    keep: bool = False,
) -> str:
    whose = f"{source}: " if source else ""
    who = f"the {model} model" if model else "the model"
    of = "" if captions else f" of {classes} classes"
    how = " by their captions" if captions else ""
    return (
        f"{whose}{who} recognises {accuracy:.1%} of {images} images{of}{how} (chance is"
        f" {1 / classes:.1%}); a {'caption' if captions else 'prompt'} was '{prompt}'"
    )


def _at_chance_text(*, model: str = "fine-tuned", **values: Any) -> str:
    if values.get("keep"):
        advice = "such a score tells nothing, so the advice does not count it"
    elif values.get("captions"):
        advice = (
            "give captions that are those of the images, in a language that the model knows"
            " (`caption_column` names others)"
        )
    else:
        advice = (
            "pass the names of the classes, in English, with `classes`, or `template`, or give"
            " images of its own task"
        )
    return f"{_accuracy_text(model, **values)}; {advice}"


def _odd_names_text(look: str, example: str, **values: Any) -> str:
    looks = {
        "numbers": "are bare numbers",
        "wordnet": "are WordNet ids",
        "numbered": "begin with numbers",
        "splits": "are those of splits, so give the folder of one split",
        "pattern": "differ by a few letters or digits only",
    }
    names = "captions" if values.get("captions") else "class names"
    return f"the {names} {looks[look]}, such as '{example}', and {_at_chance_text(**values)}"


def _zeroshot_at_chance_text(**values: Any) -> str:
    advice = (
        "it may not know what they show, or not in these words"
        if values.get("captions")
        else "it may not know these classes, or not by these names"
    )
    return f"{_accuracy_text('zero-shot', **values)}; {advice}"


def _files_left_out_text(source: str, kinds: str, inside: int) -> str:
    parts = [f"files that are not images ({kinds})"] if kinds else []
    parts += [f"images in folders inside class folders ({inside})"] if inside else []
    return f"{source}: left out {' and '.join(parts)}"


class _Format(Formatter):
    """Formats a list as names, and a number of things, or a list, by ``{images:image/images}`` as
    what is counted.
    """

    def format_field(self, value: Any, format_spec: str) -> str:
        one, slash, several = format_spec.partition("/")
        if slash:
            return counted(value if isinstance(value, int) else len(value), one, several)
        shown = shorten(value) if isinstance(value, list) else value
        return str(super().format_field(shown, format_spec))


_FORMAT = _Format()
#: The sentence of each kind of finding: a format of its values, or a function of them.
SENTENCES: dict[str, str | Callable[..., str]] = {
    NOTE: "{text}",
    # decisions
    # reasons of a layer's settings
    # reasons of a recommendation
    "no-worse-zeroshot": _no_worse_zeroshot_text,
    "surely-loses": lambda clean: (
        f"The merged model loses {_points(clean, lost=True)} of accuracy on your images."
    ),
    "disagrees": _disagrees_text,
    "votes": _votes_text,
    "unclear-accuracy": lambda clean: (
        f"The accuracy may have changed by anything from {_range(clean)} points; more images would"
        " tell."
    ),
    "loses-under-corruptions": lambda corrupted: (
        f"The merged model loses {_points(corrupted, lost=True)} under unrelated corruptions. On"
        " the real shifts that were tried, such a loss foretold nothing; images of your shift would"
        " tell (clipmerge sweep --ood)."
    ),
    "gains": _gains_text,
    "same-accuracy": _same_accuracy_text,
    "same-model": "The merged model is the fine-tuned model itself.",
    "is-zeroshot": "The merged model is the zero-shot model itself.",
    "uneven-classes": lambda finetuned, merged: (
        "Some classes have few of your images, and the merged model may have lost them: on the mean"
        f" over classes it is {_percent(merged)}% accurate, the fine-tuned one"
        f" {_percent(finetuned)}%; more images of rare classes would tell."
    ),
    "no-difference": (
        "The merged and the fine-tuned model differ by no more than {limit:g} points, with and"
        " without unrelated corruptions."
    ),
    "unclear-robustness": lambda corrupted: (
        "Whether the merged model is more robust cannot be told: under unrelated corruptions it"
        f" differs by {_range(corrupted)} points; more images would tell."
    ),
    "may-lose": _may_lose_text,
    "worse-on-other-tasks": lambda tasks: (
        "On other tasks the merged model is worse than the fine-tuned one:"
        f" {_score_changes(tasks, 'finetuned')}."
    ),
    "regains-other-tasks": lambda tasks: (
        "On your images both are about equally good, and the merged model gets back what"
        f" fine-tuning lost on other tasks: {_score_changes(tasks, 'finetuned')}."
    ),
    "lost-on-other-tasks": lambda tasks: (
        "On your images both are about equally good, and both have lost other tasks against the"
        f" zero-shot model: {_score_changes(tasks, 'zeroshot')}; a smaller alpha gives some of it"
        " back."
    ),
    # warnings
    "loses-accuracy": _loses_text,
    "unmeasurable": "{what} could not be measured: {why}",
    "overfitting": (
        "overfitting: {train:.0%} of the views of training images are recognised, and"
        " {held_out:.0%} of held-out images and views; use more images or fewer steps"
        " (measure.steps)"
    ),
    "bent-path": (
        "the loss bends along the path: {nodes} points on each half were needed for shares that add"
        " up"
    ),
    "incomplete-shares": (
        "the layers' shares are off the measured total by {error:.1%} even with {nodes} nodes on"
        " each half"
    ),
    "estimated-text-layers": (
        "text layers: values of single batches are estimated from {drawn} of {prompts} prompts,"
        " their means are exact (set measure.exact=true to take all)"
    ),
    "not-linear": "{weights} weights of two or more dimensions are not linear maps",
    "not-compared": (
        "{source}: its images are preprocessed, so they were not compared with those of other"
        " sources"
    ),
    "copies": (
        "{source}: {images:image is a copy/images are copies} of others in it; each counts in its"
        " accuracy"
    ),
    "shared-images": _shared_images_text,
    "empty-captions": "{source}: left out {captions:empty caption/empty captions}",
    "recall": (
        "{source}: accuracy stands for recall at 1, per image the mean of image to text and of the"
        " share of its captions that find it, among {images:image/images} with"
        " {captions:caption/captions}"
    ),
    "not-copied": _not_copied_text,
    "files-not-copied": "some files beside the weights were not copied",
    "left-out": "a note was removed because it names files on the author's machine",
    # notes about images
    "captions": lambda source, origin: (
        f"{source}: images with captions{f', from {origin}' if origin else ''}"
    ),
    "unused-classes": (
        "{source}: the names of `classes` are not used, because its images have captions (classes"
        " with `label_column`)"
    ),
    "many-classes": (
        "{source}: {classes} classes for {images} images; are the labels captions? Then give"
        " `caption_column` {column}"
    ),
    "no-labels": (
        "{source}: its images have no labels; the fine-tuned model's answers stand in for them"
    ),
    "classes-taken": (
        "{source}: has classes ('{label}') and captions ('{caption}'); the classes are taken"
        " (captions with `caption_column` {caption})"
    ),
    "class-folders-taken": (
        "{source}: has class folders, and captions beside images; the classes are taken (captions"
        " with `caption_column` txt)"
    ),
    "lone-texts": (
        "{source}: left out {texts:text without its image/texts without their images} ({examples})"
    ),
    "files-left-out": _files_left_out_text,
    "sampled-copies": (
        "{source}: {images:sampled image is a copy/sampled images are copies} of others and left"
        " out, so that none is both seen and held back"
    ),
    "example-prompt": lambda prompt, source, captions: (
        f"{'captions' if captions else 'prompts'}{f' of {source}' if source else ''} look like"
        f" '{prompt}'"
    ),
    "unreadable": (
        "{source}: left out {images:image/images} (of {total}) that cannot be read: {examples}"
    ),
    "numbered-classes": (
        "{source}: its classes are numbered, such as '{example}'; prompts have the name without the"
        " number, '{name}'"
    ),
    "wordnet-classes": (
        "{source}: its classes are WordNet ids, such as '{example}'; prompts have ImageNet's names,"
        " '{name}'"
    ),
    "labels-from-one": "{source}: the labels are 1 to {names}, so the first name is that of 1",
    "shared-names": (
        "{source}: gives several classes the same name {examples}; a model always predicts the"
        " first of them"
    ),
    "unit-floats": (
        "{source}: its floats lie within [0, 1], as ToTensor() leaves them, so they are taken as"
        " images and preprocessed for the model"
    ),
    "not-shuffled": (
        "{source}: its first {images} images show {seen} of {classes} classes; shuffle it"
    ),
    "only-split": "{source}: reading its only split, {split}",
    "few-classes-so-far": (
        "{source}: {read} of {shards} shards hold {classes} classes, too few for a balanced sample;"
        " reading further shards"
    ),
    "captions-cut": (
        "{source}: {captions:caption is/captions are} as long as the {tokens} tokens that the model"
        " reads, or longer (of {total}); what is beyond is cut off"
    ),
    "unknown-tokens": (
        "{source}: {share:.0%} of the captions' tokens are unknown to the model's tokenizer; are"
        " they in a language that the model knows?"
    ),
    "spelled-captions": (
        "{source}: the model's tokenizer spells the captions nearly letter by letter"
        " ({tokens_per_byte:.2f} tokens for a byte; about 0.25 for a known language); are they in a"
        " language that the model knows?"
    ),
    # notes about a measurement, and about the files of an output
    "drawn-templates": lambda used, templates, what="": (
        f"{f'{what} ' if what else ''}measured with {used} of {templates} templates, drawn at"
        " random, to bound the cost"
    ),
    "less-at-once": "memory does not suffice for {images} images at once: going on with {now}",
    "config-made": (
        "the fine-tuned checkpoint has no {config}; one was made from the zero-shot one's"
    ),
    "side-files-copied": (
        "the fine-tuned checkpoint has no {config}; the zero-shot one's side files were copied"
    ),
    "part-copied": "the fine-tuned checkpoint has no {part}; the zero-shot one's was copied",
    "no-preprocessing": (
        "{source}: has no preprocessor_config.json; OpenAI's mean and deviation were written"
    ),
    "no-tokenizer": (
        "{source}: has no tokenizer, and its vocabulary is not CLIP's; OpenCLIP will need one"
    ),
    "own-tokenizer": (
        "the tokenizer is not CLIP's own: text_cfg.hf_tokenizer_name is '{name}'; make it ORG/NAME"
        " when you publish"
    ),
    "other-resizing": (
        "images are resized to {edges} there, but OpenCLIP resizes to the model's {size} pixels:"
        " accuracy may differ a little"
    ),
    "other-filter": (
        "images are resampled with Pillow's filter {filter} there, which OpenCLIP lacks; bicubic"
        " was set"
    ),
    # notes about checkpoints
    "cached-commit": "{why}: {source} is the cached commit {commit}, not checked against the Hub",
    "activation-by-name": ("taken as {model} with GELU; weights trained from OpenAI's are {other}"),
    "weights-inside": _weights_inside_text,
    "read-into-memory": (
        "{file}: is read into memory; saved again as .pt by torch 1.6 or newer, it would be mapped"
    ),
    "formed-weights": (
        "{source}: {weights:weight is/weights are} formed from the parts that it holds ({kinds});"
        " the output has plain weights"
    ),
    "inner-folder": _inner_folder_text,
    "unwrapped": _unwrapped_text,
    "timm": _timm_text,
    "converted-layout": "{source}: is converted to the layout of {layout}, like {like}",
    "other-base": (
        "{source}: was trained on '{trained_on}' and is applied to {base}; make sure they are the"
        " same"
    ),
    "other-head": (
        "{source}: its head has {rows} rows, the fine-tuned one's {finetuned_rows}; it is left out"
    ),
    "no-config": _no_config_text,
    "built-head": (
        "the fine-tuned checkpoint is a classifier: the zero-shot side of its head is built from"
        " class prompts, and the output is a classifier too"
    ),
    "unchanged-head": (
        "the fine-tuned checkpoint is a classifier: its head is kept unchanged, and the output is a"
        " classifier too, without the rest of the zero-shot model (`set=missing=keep-zeroshot`"
        " writes the whole zero-shot model with the merged tower instead)"
    ),
    "one-tower": (
        "the fine-tuned checkpoint holds the {tower} tower only; the rest stays zero-shot"
    ),
    "unknown-layers": (
        "{layers:layer that is not known is/layers that are not known are} named after their"
        " modules: {examples}"
    ),
    "batch-norms": (
        "{statistics} running means and variances of batch norms are interpolated like their"
        " layers' weights, and never masked"
    ),
    "left-behind": (
        "{source}: {tensors:tensor/tensors} that the zero-shot model lacks ({share:.1%} of its"
        " numbers) are left behind, and whatever they learned is lost: {examples}"
    ),
    "mixed-layers": (
        "parameters of {layers:layer/layers} stay zero-shot, because the fine-tuned checkpoint"
        " lacks them; what is measured as fine-tuned is a mixture of both: {examples}"
    ),
    "some-stay-zeroshot": (
        "parameters that some fine-tuned checkpoints lack stay zero-shot: {examples}"
    ),
    "some-left-out": (
        "parameters that {source}, the first fine-tuned checkpoint, lacks are left out: {examples}"
    ),
    "some-copied": (
        "parameters that the zero-shot checkpoint lacks are copied from {source}, the first"
        " fine-tuned checkpoint, not averaged: {examples}"
    ),
    "other-encoder": _other_encoder_text,
    "other-dtype": (
        "the zero-shot and the fine-tuned weights differ in dtype; the output has the fine-tuned"
        " one, {dtype} (`dtype` names another)"
    ),
    # checks of the inputs
    "swapped": lambda **values: _unrelated_text(**values, swapped=True),
    "unrelated": _unrelated_text,
    "equal-models": _equal_models_text,
    "at-chance": _at_chance_text,
    "odd-names": _odd_names_text,
    "zeroshot-at-chance": _zeroshot_at_chance_text,
    "all-recognised": (
        "the fine-tuned model recognises all of {images} images; if it was fine-tuned on them, it"
        " looks better than it is, and every merge worse: give images that it has not seen"
    ),
    "half-zeroshot": (
        "{share:.0%} of the numbers of the merged layers stay zero-shot, because {source} lacks"
        " them: what is measured as fine-tuned is a mixture; give a checkpoint that has all"
    ),
    "blank-images": (
        "{source}: {images} images that were looked at show nothing: all of their pixels are from"
        " {darkest} to {brightest} (0 is black, 255 white); values from 0 to 1 that were saved as"
        " whole numbers look so, and numbers of 12 bits in files of 16; scale them to the full"
        " range"
    ),
    "same-images": "{source}: all of {images} images that were looked at are the same image",
    "pixel-range": (
        "{source}: the floats of {images} images go from {least:.3g} to {most:.3g}, but the model's"
        " own preprocessing makes {low:.3g} to {high:.3g} of black and white; give the images"
        " without normalisation, or with the model's mean and deviation"
    ),
    "swapped-sources": (
        "the fine-tuned model is surely worse than the zero-shot one on the ID images ({id}) and"
        " surely better on the OOD images ({ood}): `id` and `ood` are probably swapped"
    ),
    "limit-in-fractions": lambda limit: (
        f"`max_loss` is in points of accuracy, and {limit:g} points are less than one image in a"
        f" thousand; if you meant {100 * limit:g}%, pass {100 * limit:g}"
    ),
    # gains of a sweep
    "below-curve": "no point of the curve has so low an ID accuracy",
    "rarely-defined": (
        "the curve has this ID accuracy in only {share:.0%} of the resamples, so there is no"
        " interval"
    ),
    "beyond-curve": (
        "no alpha is as accurate on the ID images; compared with the most accurate one"
    ),
    "on-curve": "a point of the curve",
}
