"""The model card, from the record alone: verdict, loading code, inputs, recipe, command."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, WEIGHTS
from clipmerge.families import FAMILIES, tower_of
from clipmerge.hub.ids import dataset_repo, parse_hub_id
from clipmerge.options import with_flags
from clipmerge.output.record import Record
from clipmerge.report.decision import settings_sentence
from clipmerge.report.numbers import verdict_table
from clipmerge.report.page import render

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

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
_MARKDOWN = re.compile(r"([\\`*\[\]|~])")


def model_card(record: Record, *, repo_id: str | None = None, license: str | None = None) -> str:
    """Write the README.md of a merged model."""
    heads, rows = verdict_table(record.verdict) if record.verdict else ([], [])
    values = {
        "front_matter": _front_matter(record, repo_id, license).to_yaml(),
        "title": repo_id.split("/")[-1] if repo_id else "A merged CLIP",
        "where": repo_id or ".",
        "use": _loader_kind(record),
        "tower": _tower_class(record),
        "weights": next((name for name in record.files if name.endswith(WEIGHTS)), WEIGHTS),
        "padded": any(f.reads_padding for f in FAMILIES if f.name == record.family),
        "labels": _prompts(record),
        "record": record,
        "verdict": with_flags(record.verdict.sentence) if record.verdict else "",
        "settings": settings_sentence(record.plan),
        "heads": heads,
        "rows": rows,
    }
    template = Path(__file__).parent / "templates" / "model_card.md.j2"
    return render(template, values, html=False, cell=_cell, fence=_fence)


def _prompts(record: Record) -> list[str]:
    """Prompts of classes that were judged, for the example."""
    names = record.verdict.target.class_names if record.verdict else ()
    return [f"a photo of {'an' if name[0].lower() in 'aeiou' else 'a'} {name}" for name in names]


def _loader_kind(record: Record) -> str:
    """The form of the output, each of which is loaded in a way of its own."""
    if not record.files.keys() & {"config.json", OPEN_CLIP_CONFIG} and record.files:
        return "weights"  # of single files, which had no configuration beside them
    if record.family == "timm":
        return "timm"
    if _is_open_clip(record):
        return "open_clip-classifier" if record.classifier else "open_clip"
    if record.classifier:
        return "classifier"
    tower = tower_of(record.plan.layers)
    return "model" if tower == "full" else tower


def _tower_class(record: Record) -> str:
    """The class of transformers that one tower has."""
    family = next((candidate for candidate in FAMILIES if candidate.name == record.family), None)
    if family is None or family.model_type in (None, "vision-text-dual-encoder"):
        return "AutoModel"
    tower = tower_of(record.plan.layers)
    has_projection = f"{tower}.projection" in record.plan.layers and not family.reads_padding
    ending = "WithProjection" if has_projection else ""
    return f"{family.model_class.removesuffix('Model')}{tower.title()}Model{ending}"


def _is_open_clip(record: Record) -> bool:
    return OPEN_CLIP_WEIGHTS[0] in record.files


def _cell(value: object) -> str:
    """Escape a value for one cell or line of Markdown, so that it is neither markup nor HTML."""
    return _MARKDOWN.sub(r"\\\1", html.escape(" ".join(str(value).split()), quote=False))


def _fence(text: str) -> str:
    """A code fence that a text inside cannot close."""
    return "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))


def _front_matter(record: Record, repo_id: str | None, license: str | None) -> ModelCardData:
    """The metadata by which the Hub finds the model."""
    from huggingface_hub import ModelCardData

    bases = [
        parsed.repo_id
        for _, checkpoint in record.checkpoints
        if checkpoint.revision and (parsed := parse_hub_id(checkpoint.source))
    ]
    sources = record.verdict.sources if record.verdict else ()
    datasets = [repo for source in sources if (repo := dataset_repo(source.source))]
    library = "timm" if record.family == "timm" else "transformers"
    kind = "classifier" if record.classifier else tower_of(record.plan.layers)
    results = _eval_results(record)
    return ModelCardData(
        base_model=list(dict.fromkeys(bases)) or None,
        base_model_relation="merge" if bases else None,
        library_name="open_clip" if _is_open_clip(record) else library,
        pipeline_tag=_PIPELINES[kind],
        license=license,
        datasets=list(dict.fromkeys(datasets)) or None,
        tags=["clip", "merge", "clipmerge"],
        eval_results=results or None,
        model_name=(repo_id.split("/")[-1] if repo_id else "merged") if results else None,
    )


def _eval_results(record: Record) -> list[Any]:
    """The merged model's accuracies in the verdict."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=_PIPELINES["full"],
            dataset_type=dataset_repo(source.source) or re.sub(r"\W+", "-", source.name),
            dataset_name=source.source,
            dataset_revision=source.revision,
            metric_type="recall_at_1" if source.captions else "accuracy",
            metric_value=source.models["merged"].value,
        )
        for source in (record.verdict.sources if record.verdict else ())
    ]
