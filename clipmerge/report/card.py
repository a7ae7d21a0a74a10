"""The model card, from the record alone: verdict, loading code, inputs, recipe, command."""

from __future__ import annotations

from typing import Any

from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, WEIGHTS
from clipmerge.families import FAMILIES, tower_of
from clipmerge.output.record import Record
from clipmerge.report.decision import settings_sentence
from clipmerge.report.page import render

#: The card, and the report beside it.
CARD = "README.md"
REPORT = "report.html"
# What the Hub offers an output for, by its towers.
_PIPELINES = {
    "full": "zero-shot-image-classification",
    "vision": "image-feature-extraction",
    "text": "feature-extraction",
    "classifier": "image-classification",
}


def model_card(record: Record, *, repo_id: str | None = None, license: str | None = None) -> str:
    """Write the README.md of a merged model."""
    tower = tower_of(record.plan.layers)
    is_open_clip = OPEN_CLIP_WEIGHTS[0] in record.files
    kind = "classifier" if record.classifier else tower
    values: dict[str, Any] = {
        "record": record,
        "name": repo_id.split("/")[-1] if repo_id else None,
        "where": repo_id or ".",
        "license": license,
        "bases": [],
        "datasets": {},
        "library": "open_clip" if is_open_clip else "transformers",
        "pipeline": _PIPELINES[kind],
        "use": kind if kind != "full" else "model",
        "weights": next((name for name in record.files if name.endswith(WEIGHTS)), WEIGHTS),
        "family": next((family for family in FAMILIES if family.name == record.family), None),
        "tower": tower,
        "labels": [],
        "settings": settings_sentence(record.plan),
    }
    if record.files and not record.files.keys() & {"config.json", OPEN_CLIP_CONFIG}:
        values["use"] = "weights"  # of single files, which had no configuration beside them
    elif record.family == "timm":
        values["use"] = values["library"] = "timm"
    elif is_open_clip:
        values["use"] = "open_clip-classifier" if record.classifier else "open_clip"
    if any(source.revision for source in record.plan.checkpoints):
        values["bases"] = _repositories(record)
    if record.verdict:
        values |= _judged(record)
    return render("card.md.j2", values)


def _repositories(record: Record) -> list[str]:
    """The models on the Hub that were merged."""
    from clipmerge.hub.ids import parse_hub_id

    ids = [parse_hub_id(source.source) for source in record.plan.checkpoints if source.revision]
    return list(dict.fromkeys(found.repo_id for found in ids if found))


def _judged(record: Record) -> dict[str, Any]:
    """What the card tells of the verdict, and prompts of classes that were judged."""
    from clipmerge.hub.ids import dataset_repo
    from clipmerge.options import with_flags
    from clipmerge.report.numbers import verdict_table

    assert record.verdict is not None
    names = record.verdict.target.class_names
    return {
        "verdict": with_flags(record.verdict.sentence),
        "accuracies": verdict_table(record.verdict),
        "labels": [
            f"a photo of {'an' if name[0].lower() in 'aeiou' else 'a'} {name}" for name in names
        ],
        "datasets": {
            source.name: repo
            for source in record.verdict.sources
            if (repo := dataset_repo(source.source))
        },
    }
