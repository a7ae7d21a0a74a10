"""What a bug report needs: versions, devices, folders, and settings in force. It contains no secrets."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from clipmerge import __version__
from clipmerge.files.cache import user_cache

_PACKAGES = (
    *("torch", "transformers", "accelerate", "safetensors", "huggingface_hub", "datasets"),
    *("numpy", "matplotlib", "typer", "open_clip_torch", "peft"),
)
# Variables that change the behaviour; of tokens, only their presence is shown.
_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE")
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def env() -> dict[str, Any]:
    """Describe this installation; returns the fields of an `Environment`, without defaults of flags."""
    import torch

    cards = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    others = [] if current is None or current.type == "cuda" else [current.type]
    devices = ["cpu", *(f"cuda ({name})" for name in cards), *others]
    ours = [name for name in os.environ if name.startswith("CLIPMERGE_")]
    variables = {name: os.environ[name] for name in (*_VARIABLES, *sorted(ours)) if name in os.environ}
    return {
        "clipmerge": __version__,
        "installed in": str(Path(__file__).parents[1]),
        "python": f"{sys.version.split()[0]} ({sys.executable})",
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": ", ".join(devices),
        "cache": str(user_cache("")),
        "packages": {name: _version(name) for name in _PACKAGES},
        "environment": variables | {name: "set" for name in _SECRETS if os.environ.get(name)},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
