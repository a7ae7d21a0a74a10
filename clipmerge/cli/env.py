"""`clipmerge env`: versions, devices, folders and settings in force, for a bug report. It contains
no secrets.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from clipmerge import __version__
from clipmerge.cli._defaults import read_defaults
from clipmerge.cli._options import command
from clipmerge.cli._terminal import Terminal
from clipmerge.errors import UsageError
from clipmerge.files.paths import user_cache
from clipmerge.types import Json

_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "huggingface_hub",
    "datasets",
    "numpy",
    "matplotlib",
    "typer",
    "open_clip_torch",
    "peft",
)
# Variables that change the behaviour; of tokens, only their presence is shown.
_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
)
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@command(verbose=False)
def env_command(terminal: Terminal) -> None:
    """Print versions, devices and settings for a bug report."""
    import torch

    cards = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    others = [] if current is None or current.type == "cuda" else [current.type]
    devices = ["cpu", *(f"cuda ({name})" for name in cards), *others]
    ours = [name for name in os.environ if name.startswith("CLIPMERGE_")]
    variables = {
        name: os.environ[name] for name in (*_VARIABLES, *sorted(ours)) if name in os.environ
    }
    record = {
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
        "defaults": _defaults(),
    }
    terminal.result(record, lambda: _record_lines(record))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _defaults() -> dict[str, str]:
    """The defaults of flags set by files and variables here, or the error in them."""
    try:
        defaults = read_defaults()
    except UsageError as error:
        return {"unusable": str(error)}
    return {
        f"--{name.replace('_', '-')}": f"{value} ({defaults.origins[name]})"
        for name, value in defaults.values.items()
    }


def _record_lines(record: Json) -> str:
    """One line per fact."""
    flat = {key: value for key, value in record.items() if not isinstance(value, dict)}
    for name, values in record.items():
        if isinstance(values, dict):
            flat |= {f"{name}: {key}": value for key, value in values.items()}
    width = max(map(len, flat))
    return "\n".join(
        f"{key:{width}}  {'none' if value is None else value}" for key, value in flat.items()
    )
