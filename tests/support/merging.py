"""Run a merge by the command, and check what holds for every output."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.support.command import done


def run_and_check_merge(
    folders: Sequence[Path], output: Path, *flags: object, alpha: float | None = None
) -> Any:
    """Merge, and return the printed record; with an ``alpha``, every weight is the formula's."""
    record = done("merge", *folders, *flags, "-o", output, "--json").json
    assert json.loads((output / "clipmerge.json").read_text()) == record
    for name, sha256 in record["files"].items():
        assert hashlib.sha256((output / name).read_bytes()).hexdigest() == sha256
    named = {*record["files"], "clipmerge.json", "README.md", "report.html", "plan"}
    assert {file.name for file in output.iterdir()} <= named
    assert record["output"] == output.name
    assert not any(str(folder.parent) in json.dumps(record) for folder in folders)
    zeroshot, finetuned, merged = (
        load_file(folder / "model.safetensors") for folder in (folders[0], folders[-1], output)
    )
    assert merged.keys() == finetuned.keys()
    for name, weight in merged.items():
        assert (weight.shape, weight.dtype) == (finetuned[name].shape, finetuned[name].dtype)
        if alpha is not None:
            change = finetuned[name] - zeroshot[name]
            expected = zeroshot[name] + np.float32(alpha) * change if alpha else zeroshot[name]
            np.testing.assert_array_equal(weight, finetuned[name] if alpha == 1 else expected)
    return record
