"""Made-up records of merges, for what is drawn from records alone."""

import io
import math
from typing import Any

from clipmerge.cli._console import SafeConsole
from clipmerge.evaluation.probe import RELATED, UNRELATED
from clipmerge.output.record import MergeRecord
from clipmerge.report import terminal

SHARE = {"signed": True, "unit": "nats"}
CHANGE = {
    "title": "relative change",
    "about": (
        "length of the layer's change by fine-tuning divided by the length of its zero-shot"
        " weights."
    ),
}
STATISTICS = {
    "change": CHANGE,
    "barrier": {
        **SHARE,
        "title": "barrier share",
        "about": "the layer's part of the barrier.",
    },
    "loss_drop": {
        **SHARE,
        "title": "loss-drop share",
        "about": "the layer's part of the drop.",
    },
}


def layer_names(vision: int, text: int) -> list[str]:
    names = ["vision.embeddings", "vision.pre_norm"]
    names += [f"vision.{block}.{half}" for block in range(vision) for half in ("attn", "mlp")]
    names += ["vision.norm", "vision.projection", "text.embeddings"]
    names += [f"text.{block}.{half}" for block in range(text) for half in ("attn", "mlp")]
    return [*names, "text.norm", "text.projection", "logit_scale"]


def example(
    vision: int = 24, text: int = 12, stragglers: tuple[str, ...] = ("vision.3.mlp",)
) -> dict[str, Any]:
    """A record as a straggler-sparse merge of a ViT-L writes it, with smooth made-up statistics."""
    layers, measured, scores = {}, {}, {}
    names = layer_names(vision, text)
    for index, name in enumerate(names):
        flagged = name in stragglers
        block = 20 * math.sin(index * 1.7) ** 2 + (index % 7)
        layers[name] = {
            "alpha": 0.2 if flagged else 0.5,
            "density": 0.5 if flagged else 1.0,
            "mask": "saliency" if flagged else None,
            "reason": (
                "straggler: barrier z 4.1, in 97% of the resamples" if flagged else "base alpha"
            ),
            "parameters": 12,
            "size": 1 if name == "logit_scale" else 4_198_400,
            "change": 0.004 + 0.0009 * block * (3 if flagged else 1),
        }
        barrier = 0.094 if flagged else -0.003 * block * (0.2 if name.startswith("text") else 1.0)
        measured[name] = {"barrier": barrier, "loss_drop": -0.002 * block - 0.01 * (index % 3)}
        scores[name] = {
            "z": 4.1 if flagged else math.cos(index) * 1.3,
            "stability": 0.97 if flagged else 0.02,
        }
    alphas = [0.0, 0.0563, 0.25, 0.4437, 0.5, 0.5563, 0.75, 0.9437, 1.0]
    return {
        "format": "clipmerge-record/3",
        "clipmerge": "0.1.0",
        "output": "merged",
        "files": {"model.safetensors": "ab" * 32, "config.json": "cd" * 32},
        "recipe": {
            "name": "straggler-outlier",
            "measure": {"name": "path-barrier", "nodes": 3},
            "method": {
                "name": "straggler-outlier",
                "alpha": 0.5,
                "straggler_alpha": 0.2,
                "density": 0.5,
            },
            "overrides": [{"layers": "logit_scale", "alpha": 0.5, "density": None}],
            "missing": "error",
        },
        "zeroshot": {
            "source": "openai/clip-vit-large-patch14",
            "revision": "32bd64288804d66eefd0ccbe215aa642df71cc41",
            "files": {"model.safetensors": "01" * 32},
        },
        "finetuned": [
            {
                "source": "runs/vit-l-imagenet",
                "revision": None,
                "files": {"model.safetensors": "23" * 32},
            }
        ],
        "layers": layers,
        "stragglers": list(stragglers),
        "straggler_scores": scores,
        "decision": _decision(stragglers),
        "measurements": measured,
        "statistics": STATISTICS,
        "straggler_statistic": "barrier",
        "path": {
            "alphas": alphas,
            "losses": [3.41, 2.9, 1.31, 0.61, 0.46, 0.37, 0.25, 0.223, 0.2202],
        },
        "checks": {
            "barrier": {"sum_of_layers": -1.38171, "measured": -1.38143},
            "loss_drop": {"sum_of_layers": -3.18966, "measured": -3.18992},
        },
        "calibration": {
            "source": "val/",
            "images": 819,
            "requested": 1024,
            "classes": 10,
            "batch_size": 128,
            "seed": 0,
        }
        | {"templates": ["a photo of a {}."]},
        "warnings": ["the fine-tuned checkpoint lacks logit_bias: the zero-shot model's is kept"],
        "seconds": {"read": 0.1, "measure": 12.0, "apply": 3.0},
    }


def _decision(stragglers: tuple[str, ...]) -> dict[str, Any]:
    if stragglers:
        values: dict[str, Any] = {"statistic": "barrier", "layers": list(stragglers)}
        return {"kind": "stragglers", "values": values}
    values = {"statistic": "barrier", "layer": "vision.3.mlp", "z": 1.3, "limit": 3.5}
    return {"kind": "no-stragglers", "values": values | {"mirror": 2.5, "lowest": None}}


def data_free() -> dict[str, Any]:
    """A record as `wise-ft` writes it: one alpha everywhere and not one statistic."""
    record = example(12, 12, ())
    for layer in record["layers"].values():
        layer |= {"reason": "one alpha for all layers", "change": None}
    record["recipe"] = {
        "name": "wise-ft",
        "measure": None,
        "method": {"name": "wise-ft", "alpha": 0.5},
    }
    record |= {"statistics": {}, "straggler_statistic": None}
    record |= {
        "measurements": {},
        "path": None,
        "checks": {},
        "calibration": None,
        "straggler_scores": {},
    }
    return record | {"warnings": [], "decision": None}


def learned(vision: int = 12, text: int = 12, stragglers: tuple[str, ...] = ()) -> dict[str, Any]:
    """A record as `auto` writes it, or `straggler-sparse` with stragglers, of a ViT-B."""
    record = example(vision, text, stragglers)
    for index, (name, layer) in enumerate(record["layers"].items()):
        sparse = name in stragglers
        layer |= {
            "alpha": 0.31 + 0.02 * math.sin(index) - 0.1 * sparse,
            "alpha_range": [0.0, 0.86],
            "density": 1.0,
        }
        layer |= {"mask": None, "zeroshot_share": 0.5 if sparse else 0.004 * (index % 3)}
        layer["reason"] = "straggler with 12% of the sharpness; learned" if sparse else "learned"
    record["layers"]["logit_scale"] |= {"alpha": 0.0, "alpha_range": None, "zeroshot_share": None}
    record["layers"]["logit_scale"] |= {"reason": "fine-tuning did not change it", "change": None}
    record["recipe"] |= {"name": "straggler-sparse" if stragglers else "auto", "overrides": []}
    record["recipe"] |= {"measure": {"name": "learned-coefficients", "steps": 120}}
    record["recipe"]["method"] = {
        "name": "straggler-sparse" if stragglers else "learned",
        "alpha": 1.0,
    }
    steps = range(120)
    record["trace"] = {
        "cross_entropy": [0.9 * math.exp(-n / 40) + 0.1 + 0.05 * math.sin(5 * n) for n in steps],
        "distillation_loss": [
            0.5 * math.exp(-n / 70) + 0.1 + 0.03 * math.cos(7 * n) for n in steps
        ],
    }
    bell = [math.exp(-(((n - 6) / 3) ** 2)) for n in range(20)] + [0.0] * 20
    record["coefficients"] = {
        "vision": _counts(bell, _size(record, "vision")),
        "text": _counts([*bell[19::-1], *[0.001] * 3, *[0.0] * 17], _size(record, "text")),
    }
    alphas = [n / 10 for n in range(11)]
    record["path"] = {"alphas": alphas, "losses": [1.4 - 2.2 * a + 1.3 * a * a for a in alphas]}
    record |= {"checks": {}, "statistics": {"change": CHANGE}, "straggler_scores": {}}
    record |= {"measurements": {name: {"at_zero": 0.0} for name in record["layers"]}}
    record |= {"straggler_statistic": "sharpness" if stragglers else None}
    learned = sum(map(sum, record["coefficients"].values()))
    values: dict[str, Any] = {"coefficients": learned, "factor": 1.0}
    if stragglers:
        values |= {"stragglers": len(stragglers), "layers": 55, "dropped": 0.5}
    record["decision"] = {"kind": "learned-sparse" if stragglers else "learned", "values": values}
    record["choice"] = {
        "images": 204,
        "alpha": None,
        "extrapolation": 0.3,
        "accuracy": 0.951,
        "finetuned_accuracy": 0.956,
    }
    return record | {"effect": effect()}


def _size(record: dict[str, Any], tower: str) -> int:
    return sum(layer["size"] for name, layer in record["layers"].items() if name.startswith(tower))


def _counts(shape: list[float], size: int) -> list[int]:
    """Counts of this shape that add up to the size of a tower."""
    counts = [int(size * share / sum(shape)) for share in shape]
    counts[counts.index(max(counts))] += size - sum(counts)
    return counts


def effect() -> dict[str, Any]:
    """The effect of a merge, on 205 images."""

    def estimate(value: float) -> dict[str, Any]:
        return {"value": value, "interval": [max(0.0, value - 0.04), min(1.0, value + 0.03)]}

    def model(clean: float, corrupted: float, related: float) -> dict[str, Any]:
        means = {
            "clean": estimate(clean),
            "corrupted": estimate(corrupted),
            "related": estimate(related),
        }
        named = [*((name, corrupted) for name in UNRELATED), *((name, related) for name in RELATED)]
        corruptions = {
            name: estimate(mean + 0.02 * (n % 5 - 2)) for n, (name, mean) in enumerate(named)
        }
        return {**means, "corruptions": corruptions}

    gain = {
        "clean": {"value": -0.01, "interval": [-0.03, 0.01]},
        "corrupted": {"value": 0.14, "interval": [0.1, 0.18]},
    }
    return {
        "source": "val/",
        "images": 205,
        "classes": 10,
        "classes_without_images": 0,
        "classes_with_one_image": 1,
        "corruptions_per_image": 2,
        "related": list(RELATED),
        "related_per_image": 1,
        "zeroshot": model(0.61, 0.55, 0.5),
        "finetuned": [model(0.956, 0.62, 0.66)],
        "merged": model(0.946, 0.76, 0.81),
        "over_finetuned": gain,
        "over_zeroshot": gain,
        "agreement": estimate(0.7),
        "recommendation": "use",
        "reason": {
            "kind": "gains",
            "values": {"corrupted": gain["corrupted"], "price": 0.01},
        },
    }


RECORDS = {
    "vit-l": example(),
    "no stragglers": example(12, 12, ()),
    "many stragglers": example(stragglers=tuple(layer_names(24, 12)[4:44:2])),
    "data-free": data_free(),
    "auto": learned(),
    "straggler-sparse": learned(stragglers=("vision.3.mlp", "vision.4.mlp", "text.2.attn")),
}


def printed(record: dict[str, Any], width: int = 80, *, verbose: bool = True) -> str:
    """The summary of a record on a terminal of so many columns."""
    stream = io.StringIO()
    SafeConsole(file=stream, width=width, force_terminal=False).print(
        terminal.summary(MergeRecord.model_validate(record), verbose=verbose)
    )
    return stream.getvalue()
