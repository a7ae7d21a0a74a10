"""The model card: inputs, coefficients of the layers, and the command to repeat the merge.

Everything in it comes from the record that is also written to ``clipmerge.json``. Neither the card
nor the published record names a folder on the author's machine: a local path is reduced to its last
part.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, WEIGHTS
from clipmerge.errors import printable
from clipmerge.families import FAMILIES, tower_of
from clipmerge.files.staging import RECORD
from clipmerge.hub.ids import dataset_repo, parse_hub_id
from clipmerge.output.record import Record
from clipmerge.publish.evaluations import eval_result_files, model_index
from clipmerge.publish.public import data_sources, public_record
from clipmerge.report.page import card_pictures, html_page, repeat_command
from clipmerge.report.prose import render
from clipmerge.report.text import record_text, record_texts

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

#: The report beside the card.
REPORT = "report.html"
# What the Hub offers an output for, by its towers.
_PIPELINES = {
    "full": "zero-shot-image-classification",
    "vision": "image-feature-extraction",
    "text": "feature-extraction",
    "classifier": "image-classification",
}
_MARKDOWN = re.compile(r"([\\`*\[\]|~])")


def model_card(
    record: Record,
    *,
    repo_id: str | None,
    license: str | None = None,
    pictures: Collection[str] = (),
) -> str:
    """Write the README.md of a merged model."""
    shown = public_record(record)
    values = record_texts(shown, images="the target images") | {
        "front_matter": _front_matter(shown, repo_id, license).to_yaml(),
        "title": repo_id.split("/")[-1] if repo_id else "A merged CLIP",
        "where": repo_id or ".",
        "use": _loader_kind(shown),
        "tower": _tower_class(shown),
        "weights": next((name for name in shown.files if name.endswith(WEIGHTS)), WEIGHTS),
        "record": shown,
        "effect": shown.verdict,
        "padded": any(family.reads_padding for family in FAMILIES if family.name == shown.family),
        "pictures": pictures,
        "local": _local_names(shown),
        "command": repeat_command(shown),
    }
    template = Path(__file__).parent / "templates" / "model_card.md.j2"
    return render(template, values, html=False, cell=_cell, digest=_digest, fence=_fence)


def published_texts(
    folder: Path, record: Record, *, repo_id: str, license: str | None = None
) -> dict[str, bytes]:
    """Make the files of an output whose published form differs from that in its folder."""
    shown = public_record(record)
    drawn = {
        name: content for name, content in card_pictures(shown).items() if (folder / name).is_file()
    }
    card = model_card(record, repo_id=repo_id, license=license, pictures=drawn)
    # identifies the card as clipmerge's own in a later push
    shown = shown.model_copy(update={"card": blob_id(card.encode())})
    texts = {"README.md": card, RECORD: record_text(shown), **eval_result_files(shown, repo_id)}
    if (folder / REPORT).is_file():
        texts[REPORT] = html_page(shown)
    contents = {name: text.encode() for name, text in texts.items()}
    return contents | drawn


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
    return "model" if tower_of(record.plan.layers) == "full" else tower_of(record.plan.layers)


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


def blob_id(data: bytes) -> str:
    """Hash a file like git, which is the hash that the Hub lists."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def body_of(card: str) -> str:
    r"""Return a card's text without its front matter.

    Example:
        >>> body_of("---\nlicense: mit\n---\n# Mine\n")
        '# Mine'
    """
    return re.sub(r"\A\s*---\s*\n.*?\n---\s*", "", card, flags=re.DOTALL).strip()


def _local_names(record: Record) -> list[str]:
    """List the checkpoints and images that are not on the Hub, which a reader would need."""
    names = [
        checkpoint.source for _, checkpoint in record.checkpoints if checkpoint.revision is None
    ]
    images = [record.calibration, record.calibration.unlabelled] if record.calibration else []
    sources = [entry.source for entry in images if entry]
    return [
        *names,
        *(source for source in sources if source != "digits" and dataset_repo(source) is None),
    ]


def _digest(sha256: str | None) -> str:
    return f"`{sha256}`" if sha256 else "not hashed"


def _cell(value: object) -> str:
    """Escape a value for one cell of a Markdown table, or one line, so that it is neither markup
    nor HTML.
    """
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else printable(str(value))
    return _MARKDOWN.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _fence(text: str) -> str:
    """A code fence that a text inside cannot close: longer than any run of backticks in the
    text.
    """
    return "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))


def _front_matter(record: Record, repo_id: str | None, license: str | None) -> ModelCardData:
    """Build the metadata that the Hub uses to index the model, without empty fields."""
    from huggingface_hub import ModelCardData

    bases = [
        parsed.repo_id
        for _, checkpoint in record.checkpoints
        if checkpoint.revision and (parsed := parse_hub_id(checkpoint.source))
    ]
    datasets = [
        dataset for source in data_sources(record) if (dataset := dataset_repo(source.source))
    ]
    results = model_index(record)
    return ModelCardData(
        base_model=list(dict.fromkeys(bases)) or None,
        base_model_relation="merge" if bases else None,
        library_name="open_clip"
        if _is_open_clip(record)
        else "timm"
        if record.family == "timm"
        else "transformers",
        pipeline_tag=_PIPELINES[
            "classifier" if record.classifier else tower_of(record.plan.layers)
        ],
        license=license,
        datasets=list(dict.fromkeys(datasets)) or None,
        tags=["clip", "merge", "clipmerge"],
        eval_results=results or None,
        model_name=(repo_id.split("/")[-1] if repo_id else "merged") if results else None,
    )
