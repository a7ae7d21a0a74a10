"""The model card: what was merged, how far each layer went, and how to do it again.

Everything in it comes from the record that is also written to ``clipmerge.json``. Nothing in it, and nothing
in the record that is published, names a folder of the author's machine: a local path shrinks to its end.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import yaml

from clipmerge.hub import parse_hub_id

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

TEMPLATES = Path(__file__).parent / "templates"
RECORD = "clipmerge.json"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
_ABSOLUTE_PATH = re.compile(r"(?<![\w:/.~])~?/(?:[^\s/'\"`]+/)*([^\s/'\"`]+)/?")
_HUB_DATASET = re.compile(r"hf://datasets/([^/@:\s]+/[^/@:\s]+)")
_NOT_REPEATED = {"--push": True, "--private": False}  # flag: whether a value follows it


def model_card(
    record: dict[str, Any],
    *,
    repo_id: str | None,
    license: str | None = None,
    datasets: Iterable[str] = (),
) -> str:
    """Write the README.md of a merged model.

    Args:
        record: What ``clipmerge.json`` holds; layers, recipe, zeroshot and finetuned are needed.
        repo_id: Where it is published; None for a folder that is not (yet).
        license: The Hub's name of its licence, when known.
        datasets: Hub ids of data it was made with; the calibration data is added when it came from the Hub.

    Returns:
        Markdown under YAML front matter, the same text for the same record.
    """
    import jinja2

    shown = public_record(record)
    sources = sources_of(shown)
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    env.filters["cell"] = _cell
    return str(
        env.get_template("model_card.md.j2").render(
            front_matter=_front_matter(shown, repo_id, license, datasets).to_yaml(),
            title=repo_id.split("/")[-1] if repo_id else "A merged CLIP",
            where=repo_id or ".",
            open_clip=OPEN_CLIP_WEIGHTS in shown.get("files", {}),
            record=shown,
            sources=sources,
            local=[source["source"] for source in sources if source.get("revision") is None],
            recipe=_recipe_yaml(shown["recipe"]),
            command=_repeatable(shown, sources),
        )
    )


def published_texts(
    folder: Path, record: dict[str, Any], *, repo_id: str, license: str | None = None
) -> dict[str, str]:
    """Write the files of an output that are published otherwise than they lie in its folder.

    Returns:
        File name to text: the card with ``repo_id`` in it, the record and the report without local paths.
    """
    texts = {
        "README.md": model_card(record, repo_id=repo_id, license=license),
        RECORD: json.dumps(public_record(record), indent=2, ensure_ascii=False) + "\n",
    }
    report = folder / "report.html"
    if report.is_file():
        text = report.read_text(encoding="utf-8")
        for path in _local_paths(record):
            if PurePath(path).is_absolute():  # anything shorter might stand for something else in a page
                text = text.replace(path, _last(path))
        texts[report.name] = text
    return texts


def sources_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """List the merged checkpoints with their role, the zero-shot one first."""
    finetuned = record["finetuned"]
    several = finetuned if isinstance(finetuned, list) else [finetuned]
    return [{"role": "zero-shot", **record["zeroshot"]}, *({"role": "fine-tuned", **one} for one in several)]


def public_record(record: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a record in which every local path is its last component, wherever it stands.

    Example:
        >>> public_record({"zeroshot": {"source": "/home/me/clip", "revision": None}, "finetuned": [],
        ...                "command": "clipmerge merge /home/me/clip b"})["command"]
        'clipmerge merge clip b'
    """
    known = _local_paths(record)

    def shorten(text: str) -> str:
        for path in known:
            text = re.sub(rf"(?<![\w./-]){re.escape(path)}(?![\w./-])", lambda found: _last(found[0]), text)
        return _ABSOLUTE_PATH.sub(r"\1", text)

    return dict(_map_text(record, shorten))


def _local_paths(record: dict[str, Any]) -> list[str]:
    """List the sources that are not on the Hub and are more than a name, the longest first."""
    local = {str(source["source"]) for source in sources_of(record) if source.get("revision") is None}
    return sorted((path for path in local if path != _last(path)), key=len, reverse=True)


def parse_hub_dataset(source: str) -> str | None:
    """Return the id in ``hf://datasets/org/name...``, None for any other source."""
    match = _HUB_DATASET.match(source)
    return match[1] if match else None


def _map_text(value: Any, change: Callable[[str], str]) -> Any:
    """Apply ``change`` to every string value in nested dicts and lists; keys stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _map_text(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_text(item, change) for item in value]
    return value


def _last(path: str) -> str:
    return PurePath(path).name or path


def _cell(value: object) -> str:
    """Fit a value into one cell of a Markdown table."""
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _front_matter(
    record: dict[str, Any], repo_id: str | None, license: str | None, datasets: Iterable[str]
) -> ModelCardData:
    """Build the metadata by which the Hub files the model; absent fields are left out."""
    from huggingface_hub import ModelCardData

    bases = [
        parsed.repo_id
        for source in sources_of(record)
        if source.get("revision") and (parsed := parse_hub_id(source["source"]))
    ]
    calibration = parse_hub_dataset((record.get("calibration") or {}).get("source") or "")
    data = list(dict.fromkeys([*datasets, *([calibration] if calibration else [])]))
    results = _eval_results(record)
    return ModelCardData(
        base_model=list(dict.fromkeys(bases)) or None,
        base_model_relation="merge" if bases else None,
        library_name="open_clip" if OPEN_CLIP_WEIGHTS in record.get("files", {}) else "transformers",
        pipeline_tag="zero-shot-image-classification",
        license=license,
        datasets=data or None,
        tags=["clip", "merge", "clipmerge"],
        eval_results=results or None,
        model_name=(repo_id.split("/")[-1] if repo_id else "merged") if results else None,
    )


def _eval_results(record: dict[str, Any]) -> list[Any]:
    """Turn measured accuracies (shares in 0..1) into model-index entries."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="zero-shot-image-classification",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "images",
            dataset_name=name,
            metric_type="accuracy",
            metric_value=value,
        )
        for name, value in sorted((record.get("accuracy") or {}).items())
    ]


def _recipe_yaml(recipe: dict[str, Any]) -> str:
    told = {key: value for key, value in recipe.items() if value not in (None, [], {}) and key != "name"}
    text = yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=100).rstrip()
    return f"# {recipe.get('name', 'recipe')}\n{text}"


def _repeatable(record: dict[str, Any], sources: list[dict[str, Any]]) -> str:
    """Return the command with its revisions spelled out and without the push."""
    recipe = record["recipe"].get("name", "recipe.yaml")
    named = " ".join(shlex.quote(source["source"]) for source in sources)
    command = record.get("command") or f"clipmerge merge {named} --recipe {recipe} --output merged"
    pinned = {
        source["source"]: f"{source['source'].partition('@')[0]}@{source['revision']}"
        for source in sources
        if source.get("revision")
    }
    try:
        words = iter(shlex.split(command))
    except ValueError:  # quoting that a shell would refuse: show it as it is
        return str(command)
    kept = []
    for word in words:
        flag = word.partition("=")[0]
        if flag not in _NOT_REPEATED:
            kept.append(pinned.get(word, word))
        elif _NOT_REPEATED[flag] and "=" not in word:
            next(words, None)
    return shlex.join(kept)
