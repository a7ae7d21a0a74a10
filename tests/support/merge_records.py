"""Made-up records of merges, and an output folder to publish."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from clipmerge.planning.record import Answer, Comparison, Estimate, Record, Verdict
from clipmerge.report.pages import model_card


def layer_names(vision: int, text: int) -> list[str]:
    names = ["vision.embeddings", "vision.pre_norm"]
    names += [f"vision.{block}.{half}" for block in range(vision) for half in ("attn", "mlp")]
    names += ["vision.norm", "vision.projection", "text.embeddings"]
    names += [f"text.{block}.{half}" for block in range(text) for half in ("attn", "mlp")]
    return [*names, "text.norm", "text.projection", "logit_scale"]


def estimate(value: float, half: float) -> Estimate:
    return Estimate(value=value, interval=(max(-1, value - half), min(1, value + half)))


def source(value: float, half: float, **about: Any) -> Comparison:
    """A source of 100 images that the merge changes so much, give or take ``half``."""
    models = {
        name: Estimate(value=share, interval=(share - 0.08, share + 0.08))
        for name, share in (("zero-shot", 0.52), ("fine-tuned", 0.74), ("merged", 0.74 + value))
    }
    about = {"name": "target", "source": "digits", "images": 100} | about
    about = {"models": models, "finetuning_change": estimate(0.22, 0.1)} | about
    return Comparison(change=estimate(value, half), **about)


def verdict(**changes: Any) -> Verdict:
    target = source(0.02, 0.08, class_names=("eight", "two"), curve=(0.52, 0.7, 0.74))
    curve = (0.6, 0.7, 0.5)
    ood = source(0.11, 0.04, name="sketch", source="sketches", question="shift", curve=curve)
    answers = {
        each.question or "target": Answer(merged=each.models["merged"], curve=each.curve)
        for each in (target, ood)
    }
    answers["shift"] = answers["shift"].replace(gain=estimate(0.13, 0.05))
    return Verdict(
        recommendation="use",
        reason="better",
        sentence="Use it: the merged model is surely better on sketch <&>.",
        alphas=(0, 0.5, 1),
        best_alpha=0.5,
        target=target,
        corrupted=source(0.01, 0.03, name="corrupted", models=target.models),
        ood=(ood,),
        answers=answers,
    ).replace(**changes)


def record(**changes: Any) -> Record:
    """The record of a merge of a ViT-L whose layers go different ways."""
    names = layer_names(24, 12)
    plan = {
        "recipe": {"name": "straggler-outlier", "method": {"name": "straggler-outlier"}},
        "zeroshot": {"source": "acme/base", "revision": "c" * 40, "files": {"a.safetensors": "0"}},
        "finetuned": [{"source": "cars", "files": {"b.safetensors": "1" * 64}}],
        "weights": [1.0],
        "layers": {
            name: {"alpha": 0.2, "density": 0.5, "mask": "magnitude"}
            if name == "vision.3.mlp"
            else {"alpha": 0.5 + 0.4 * (number % 5) / 5}
            for number, name in enumerate(names)
        },
        "stragglers": ["vision.3.mlp"],
    }
    made = Record.model_validate(
        {
            "output": "merged",
            "files": {"model.safetensors": "ab" * 32, "config.json": "cd" * 32},
            "family": "clip",
            "plan": plan,
            "measurements": {name: {"barrier": 0.01 * at} for at, name in enumerate(names)},
            "measured": {
                "decision": "one layer of 77 is a straggler",
                "statistics": {"barrier": {"unit": "nats"}},
                "reasons": {"vision.3.mlp": "straggler: z 4.1 | <b>"},
                "straggler_scores": {"vision.3.mlp": {"z": 4.1}},
            },
            "warnings": ["an odd tensor was left out"],
            "command": "clipmerge merge acme/base cars --output merged",
            "date": "2026-12-01",
        }
    )
    return made.replace(**{"verdict": verdict(), **changes})


def save_output(finetuned: Path, folder: Path) -> Path:
    """Save a whole output of a real tiny model."""
    shutil.copytree(finetuned, folder)
    files = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("config.json", "model.safetensors")
    }
    made = record(files=files)
    (folder / "clipmerge.json").write_text(json.dumps(made.as_json()))
    (folder / "README.md").write_text(model_card(made))
    (folder / "report.html").write_text("<p>report</p>")
    return folder
