"""Publish accuracies measured by `evaluate` and `sweep`.

They are published with a model only if they belong to it: weights are compared by sha256, a sweep's
point by its inputs, recipe and seed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from clipmerge.errors import UsageError, shorten
from clipmerge.files.reading import read_json, refusing
from clipmerge.hub.ids import dataset_repo, parse_dataset
from clipmerge.output.record import SWEEP_FORMAT, DataSource, Record
from clipmerge.types import Json

_TASK = "zero-shot-image-classification"
#: Keys of a record that hold results by name: shares in 0..1, numbers of images, and sources of the
#: images.
KEYS = ("accuracy", "images", "sources")


def add_results(record: Record, files: Iterable[Path]) -> Record:
    """Add measured accuracies to a merge's record."""
    merged: dict[str, Json] = {key: dict(getattr(record, key) or {}) for key in KEYS}
    for file in files:
        try:
            if None in record.files.values():
                raise UsageError(
                    "it cannot be matched with weights merged with `hash=False`; merge again"
                    " without it"
                )
            with refusing(UsageError, "cannot be read as JSON"):
                content = read_json(file)
            if not isinstance(content, dict):
                raise UsageError("is not a JSON object")
            results = (
                _of_sweep(content, record)
                if "recipes" in content
                else _of_evaluation(content, record)
            )
            for key in KEYS:
                merged[key] |= results[key]
            measured = {key: value for key, value in merged.items() if value}
            record = Record.model_validate(record.as_json() | measured)
        except UsageError as error:
            raise UsageError(f"`evaluations` {file}: {error}") from None
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            if isinstance(error, KeyError):
                reason = f"it has no {error}"
            raise UsageError(
                f"`evaluations` {file}: not written by `clipmerge evaluate --format json` or"
                f" `sweep` ({reason})"
            ) from None
    return record


def _of_evaluation(evaluation: Json, record: Record) -> Json:
    measured = evaluation["checkpoint"]["files"]
    other = [name for name, sha in measured.items() if record.files.get(name) != sha]
    if other or not measured:
        raise UsageError(
            f"measured {evaluation['checkpoint']['source']}, whose weights are not these "
            f"({shorten(other) or 'no file'} differs); evaluate the folder that you push"
        )
    return {key: evaluation[key] for key in KEYS}


def _of_sweep(sweep: Json, record: Record) -> Json:
    if sweep["format"] != SWEEP_FORMAT:
        raise UsageError(
            f"has the format {str(sweep['format'])[:40]!r}, but this version of clipmerge reads "
            f"{SWEEP_FORMAT!r}; update clipmerge, or sweep again"
        )
    same = [
        sweep["zeroshot"]["files"],
        [checkpoint["files"] for checkpoint in sweep["finetuned"]],
        sweep["seed"],
    ]
    ours = [
        record.plan.zeroshot.files,
        [checkpoint.files for checkpoint in record.plan.finetuned],
        record.plan.seed,
    ]
    data = record.model_dump(mode="json")
    point = _merge_key(data["plan"] | {"calibration": data["calibration"]})
    rows = [row for row in sweep["recipes"] if same == ours and _merge_key(row) == point]
    if not rows:
        names = shorten(row["name"] for row in sweep["recipes"])
        raise UsageError(
            f"holds no point of this merge (recipes: {names or 'none'}); it needs the same "
            "checkpoints, recipe, seed and calibration images"
        )
    revisions = sweep.get("revisions") or {}
    sources = {
        name: {"source": source, "revision": revisions.get(name)}
        for name, source in sweep["sources"].items()
    }
    return {"accuracy": rows[0]["accuracy"], "images": sweep["images"], "sources": sources}


def _merge_key(row: Json) -> Any:
    """Key that is equal for a sweep's row and a merge's record if and only if they are the same
    merge.
    """
    calibration = {
        key: value for key, value in (row["calibration"] or {}).items() if key != "source"
    }
    return [row["recipe"], calibration]


def _results(record: Record) -> list[tuple[str, float, DataSource]]:
    """Name, accuracy and source of the images of each result."""
    sources = record.sources or {}
    return [
        (name, value, sources.get(name) or DataSource())
        for name, value in sorted((record.accuracy or {}).items())
    ]


def model_index(record: Record) -> list[Any]:
    """Turn measured accuracies (shares in 0..1) into a card's model-index entries."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=_TASK,
            dataset_type=dataset_repo(source.source) or _slug(name),
            dataset_name=name,
            dataset_split=_split_of(source.source),
            dataset_revision=source.revision,
            metric_type="accuracy",
            metric_value=value,
        )
        for name, value, source in _results(record)
    ]


def eval_result_files(record: Record, repo_id: str) -> dict[str, str]:
    """Write the Hub's ``.eval_results/*.yaml``, one file per result on a dataset of the Hub."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    files: dict[str, str] = {}
    for name, value, source in _results(record):
        dataset = dataset_repo(source.source)
        if dataset is None:
            continue
        split = _split_of(source.source)
        images = (record.images or {}).get(name)
        details = [
            "zero-shot accuracy",
            f"split {split}" if split else "",
            f"{images} images" if images else "",
        ]
        entry = EvalResultEntry(
            dataset_id=dataset,
            task_id="default",
            value=value,
            dataset_revision=source.revision,
            date=source.date,
            source_url=f"https://huggingface.co/{repo_id}",
            source_name="clipmerge evaluate",
            notes=", ".join(part for part in details if part),
        )
        path = f".eval_results/{_slug(name)}.yaml"
        path = path if path not in files else f".eval_results/{_slug(name)}-{len(files)}.yaml"
        files[path] = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
    return files


def _split_of(source: str | None) -> str | None:
    return parse_dataset(source).split if source and dataset_repo(source) else None


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "images"
