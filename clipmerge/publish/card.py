"""The model card: what was merged, how far each layer went, and how to do it again.

Everything in it comes from the record that is also written to ``clipmerge.json``. Nothing in it, and nothing
in the record that is published, names a folder of the author's machine: a local path shrinks to its end.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import yaml

from clipmerge.hub.ids import parse_hub_id
from clipmerge.images.hub_dataset import parse_dataset
from clipmerge.publish.evaluations import eval_result_files, hub_dataset_of, model_index

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

TEMPLATES = Path(__file__).parent / "templates"
RECORD = "clipmerge.json"
#: The loss on the path, drawn; lies beside the card where there is one.
PICTURE = "path.png"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
_ABSOLUTE_PATH = re.compile(r"(?<![\w:/.~])~?/(?:[^\s/'\"`]+/)*([^\s/'\"`]+)/?")
_NOT_REPEATED = {"--push": True, "--private": False}  # flag: whether a value follows it


def model_card(
    record: dict[str, Any],
    *,
    repo_id: str | None,
    license: str | None = None,
    datasets: Iterable[str] = (),
    picture: bool = False,
) -> str:
    """Write the README.md of a merged model.

    Args:
        record: What ``clipmerge.json`` holds; layers, recipe, zeroshot and finetuned are needed.
        repo_id: Where it is published; None for a folder that is not (yet).
        license: The Hub's name of its licence, when known.
        datasets: Hub ids of data it was made with; those it was calibrated and evaluated on are added.
        picture: Whether the picture of the path lies beside it.

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
    env.filters["digest"] = _digest
    return str(
        env.get_template("model_card.md.j2").render(
            front_matter=_front_matter(shown, repo_id, license, datasets).to_yaml(),
            title=repo_id.split("/")[-1] if repo_id else "A merged CLIP",
            where=repo_id or ".",
            open_clip=OPEN_CLIP_WEIGHTS in shown.get("files", {}),
            record=shown,
            sources=sources,
            picture=PICTURE if picture else None,
            local=_local_names(shown, sources),
            recipe=_recipe_yaml(shown["recipe"]),
            command=_repeatable(shown, sources),
        )
    )


def published_texts(
    folder: Path, record: dict[str, Any], *, repo_id: str, license: str | None = None
) -> dict[str, str]:
    """Write the files of an output that are published otherwise than they lie in its folder.

    Returns:
        File name to text: the card with ``repo_id`` in it, the record and the report without local paths, and
        results on the Hub's datasets in the Hub's own form.
    """
    card = model_card(record, repo_id=repo_id, license=license, picture=(folder / PICTURE).is_file())
    # by this a later push knows the card for its own
    shown = public_record(record) | {"card": blob_id(card.encode())}
    texts = {
        "README.md": card,
        RECORD: json.dumps(shown, indent=2, ensure_ascii=False) + "\n",
        **eval_result_files(record),
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
    images = [record.get("calibration") or {}, *(record.get("sources") or {}).values()]
    sources = [each["source"] for each in (*sources_of(record), *images) if each and not each.get("revision")]
    local = {str(source) for source in sources if hub_dataset_of(source) is None}
    return sorted((path for path in local if path != _last(path)), key=len, reverse=True)


def blob_id(data: bytes) -> str:
    """Hash a file as git does, and as the Hub lists it."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def body_of(card: str) -> str:
    r"""Return a card's text without its front matter.

    Example:
        >>> body_of("---\nlicense: mit\n---\n# Mine\n")
        '# Mine'
    """
    return re.sub(r"\A\s*---\s*\n.*?\n---\s*", "", card, flags=re.DOTALL).strip()


def _local_names(record: dict[str, Any], sources: list[dict[str, Any]]) -> list[str]:
    """List what a reader would have to bring: checkpoints and images that are not on the Hub."""
    names = [str(source["source"]) for source in sources if source.get("revision") is None]
    images = (record.get("calibration") or {}).get("source")
    return [*names, images] if images and images != "digits" and hub_dataset_of(images) is None else names


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


def _digest(sha256: str | None) -> str:
    return f"`{sha256}`" if sha256 else "not hashed"


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
    images = [record.get("calibration") or {}, *(record.get("sources") or {}).values()]
    found = [dataset for each in images if (dataset := hub_dataset_of(each.get("source")))]
    data = list(dict.fromkeys([*datasets, *found]))
    results = model_index(record)
    return ModelCardData(
        base_model=list(dict.fromkeys(bases)) or None,
        base_model_relation="merge" if bases else None,
        library_name="open_clip" if OPEN_CLIP_WEIGHTS in record.get("files", {}) else "transformers",
        pipeline_tag="image-classification" if record.get("classifier") else "zero-shot-image-classification",
        license=license,
        datasets=data or None,
        tags=["clip", "merge", "clipmerge"],
        eval_results=results or None,
        model_name=(repo_id.split("/")[-1] if repo_id else "merged") if results else None,
    )


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
    calibration = record.get("calibration") or {}
    if calibration.get("revision") and hub_dataset_of(calibration["source"]):
        pinned[calibration["source"]] = parse_dataset(calibration["source"]).at(calibration["revision"])
    try:
        words = iter(shlex.split(command))
    except ValueError:  # quoting that a shell would refuse: show it as it is
        return str(command)
    kept = []
    for word in words:
        flag, equals, value = word.partition("=")
        if flag not in _NOT_REPEATED:
            kept.append(f"{flag}={pinned[value]}" if equals and value in pinned else pinned.get(word, word))
        elif _NOT_REPEATED[flag] and "=" not in word:
            next(words, None)
    return shlex.join(kept)
