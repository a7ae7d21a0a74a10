"""Inputs that are overwritten, replaced or truncated while they are read give one line, with
nothing left behind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipmerge.checkpoint import open_checkpoint
from clipmerge.errors import CheckpointError
from clipmerge.files import local_path
from clipmerge.merging import folder as output_folder
from tests.support.command import clipmerge, refused


def overwritten(file: Path) -> None:
    save_file({key: tensor + 1 for key, tensor in load_file(file).items()}, file)


def test_an_input_that_changes_meanwhile_is_reported(
    copies: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    zeroshot, finetuned = copies
    written: Any = output_folder.write_safetensors

    def changing(*arguments: Any, **options: Any) -> Any:
        overwritten(finetuned / "model.safetensors")
        return written(*arguments, **options)

    monkeypatch.setattr(output_folder, "write_safetensors", changing)
    output = finetuned.parent / "out"
    inputs = (zeroshot, finetuned, "--recipe", "wise-ft", "--output", output)
    outcome = clipmerge("merge", *inputs)
    assert (
        "model.safetensors: changed while it was read, or could not be read to its end"
        in refused(outcome)
    )
    assert {path.name for path in output.parent.iterdir()} == {zeroshot.name, finetuned.name}


def test_an_input_that_is_cut_short_or_removed_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a.weight": torch.ones(1 << 20), "b.weight": torch.ones(1 << 10)}, file)
    found = open_checkpoint(str(file))
    assert found.array("a.weight", 5, 8).tolist() == [1.0] * 3
    with file.open("r+b") as handle:
        handle.truncate(1000)
    changed = r"x\.safetensors: changed while it was read, or could not be read to its end"
    with pytest.raises(CheckpointError, match=changed):
        found.array("b.weight")
    file.unlink()
    with pytest.raises(CheckpointError, match=changed):
        found.provenance(hashed=False)


def test_a_home_is_expanded_and_an_unknown_one_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/models") == tmp_path / "models"
    assert local_path("~there-is-no-such-user/models") == Path("~there-is-no-such-user/models")
