"""A merge output to publish: a real tiny model's folder with a record of how it came to be."""

import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from clipmerge.output.record import MergeRecord
from clipmerge.publish.card import model_card

RECORD: dict[str, Any] = {
    "format": "clipmerge-record/3",
    "clipmerge": "0.1.0",
    "output": "/home/me/out/merged",
    "recipe": {
        "name": "straggler-sparse",
        "measure": {"name": "path-barrier", "nodes": 3},
        "method": {"name": "straggler-sparse", "alpha": 0.5},
        "overrides": [],
        "missing": "error",
    },
    "zeroshot": {
        "source": "acme/base",
        "revision": "c" * 40,
        "files": {"model.safetensors": "cd" * 32},
    },
    "finetuned": [
        {
            "source": "/home/me/models/cars",
            "revision": None,
            "files": {"model.safetensors": "ef" * 32},
        }
    ],
    "layers": {
        "vision.0.attn": {"alpha": 0.5, "density": 1.0, "mask": None, "reason": "keeps its place"},
        "vision.1.mlp": {
            "alpha": 0.25,
            "density": 0.1,
            "mask": "magnitude",
            "reason": "straggler | top",
        },
    },
    "stragglers": ["vision.1.mlp"],
    "decision": "One layer of two is a straggler.",
    "path": {"alphas": [0, 0.5, 1], "losses": [1.0, 1.5, 0.5]},
    "calibration": {
        "source": "hf://datasets/acme/cars:train",
        "images": 1024,
        "classes": 2,
        "batch_size": 32,
        "templates": ["a photo of a {}."],
        "seed": 0,
    },
    "command": (
        "clipmerge merge acme/base /home/me/models/cars --recipe straggler-sparse --data"
        " hf://datasets/acme/cars:train --output /home/me/out/merged --push acme/robust --private"
    ),
    "warnings": ["/home/me/models/cars: an odd tensor"],
    "seconds": {"read": 1.0},
    "accuracy": {"ImageNet-R": 0.71, "cars": 0.8},
}


def save_output(finetuned: Path, folder: Path) -> Path:
    """Save a whole output, merged from local checkpoints: publishing it asks for no licences."""
    shutil.copytree(finetuned, folder)
    record = copy.deepcopy(RECORD)
    record["zeroshot"] = {"source": "/home/me/models/base", "revision": None, "files": {}}
    record["files"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("config.json", "model.safetensors")
    }
    (folder / "clipmerge.json").write_text(json.dumps(record))
    (folder / "README.md").write_text(model_card(MergeRecord.model_validate(record), repo_id=None))
    (folder / "report.html").write_text("<p>/home/me/models/base</p>")
    return folder
