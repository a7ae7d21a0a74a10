"""Checkpoints from strangers: a small file does not create a large object, and refusals are fast."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from clipmerge.checkpoint import open_checkpoint, state_dict
from clipmerge.checkpoint.adapter_config import read_adapter_config
from clipmerge.conversion import keys
from clipmerge.errors import CheckpointError
from clipmerge.files import safetensors
from tests.support.raw_safetensors import entry, raw_file


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


# --- PyTorch's own files ---


def test_a_tensor_of_one_number_that_shows_many_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"a.weight": torch.zeros(1).expand(1 << 28)})
    with pytest.raises(CheckpointError, match=r"x.pt: its tensors span 1024 MiB, but it holds only 0 KiB"):
        open_checkpoint(str(path))


def test_tied_weights_are_read(tmp_path: Path) -> None:
    weight = torch.zeros(4, 4)
    found = open_checkpoint(str(saved(tmp_path / "x.pt", {"a.weight": weight, "b.weight": weight.T})))
    assert set(found.entries) == {"a.weight", "b.weight"}


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    plain = zipfile.ZipFile(saved(tmp_path / "plain.pt", {"a": torch.zeros(2)}))
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in plain.namelist():
            content = plain.read(name)
            archive.writestr(name, content + b"." * (1 << 20) if name.endswith("data.pkl") else content)
    with pytest.raises(CheckpointError, match=r"x.pt: is compressed inside, which torch.save does not do"):
        open_checkpoint(str(path))


def test_a_large_pickle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_dict, "LARGEST_PICKLE", 100)
    with pytest.raises(CheckpointError, match=r"x\.pt: its pickle is larger than"):
        open_checkpoint(str(saved(tmp_path / "x.pt", {"a": torch.zeros(2)})))


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x.bin"])
def test_a_pipe_by_the_name_of_weights_keeps_nobody_waiting(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError):
        open_checkpoint(str(tmp_path / name))
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors: cannot be read .not a regular file"):
        open_checkpoint(str(tmp_path))


def test_torn_pickles_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pickle.dump({"a": 1}, buffer)
    for cut in range(1, len(buffer.getvalue())):
        (tmp_path / "x.pt").write_bytes(buffer.getvalue()[:cut])
        with pytest.raises(CheckpointError):
            open_checkpoint(str(tmp_path / "x.pt"))


# --- headers ---


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ({"a": entry(shape=[int("9" * 90)] * 3)}, "the header's entry for 'a' is malformed"),
        ({"a": entry(shape=[1] * 65)}, "the header's entry for 'a' is malformed"),
        ({"a" * 1001: entry()}, "a tensor's name has more than 1000 characters"),
        ({f"vision_model.encoder.layers.{'9' * 5000}.mlp.fc1.bias": entry()}, "more than 1000 characters"),
        ({"a": [[]] * 3_000_000}, "more than 2500000 values"),
    ],
)
def test_headers_within_limits(tmp_path: Path, header: Any, told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        safetensors.read_header(raw_file(tmp_path / "x.safetensors", header, bytes(8)))


def test_a_number_of_very_many_digits_in_a_header(tmp_path: Path) -> None:
    text = '{"a":{"dtype":"F32","shape":[' + ",".join(["9" * 4200] * 1000) + '],"data_offsets":[0,8]}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + bytes(8))
    with pytest.raises(CheckpointError, match=r"its header is not JSON .a number of 4200 digits"):
        safetensors.read_header(path)


def test_more_tensors_than_any_clip_has(tmp_path: Path) -> None:
    header = {f"unknown.{number}": entry(shape=[0], offsets=[0, 0]) for number in range(20_001)}
    with pytest.raises(CheckpointError, match="holds 20001 tensors, more than 20000"):
        safetensors.read_header(raw_file(tmp_path / "x.safetensors", header))


def test_a_blocks_number_lists_no_blocks(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a block has the number 999999999, but there are only 1 tensors"):
        keys.match_keys({"visual.transformer.resblocks.999999999.ln_1.weight"}, "open-clip")


# --- adapters ---


def configured(folder: Path, text: str) -> Path:
    path = folder / "adapter_config.json"
    path.write_text('{"peft_type": "LORA", ' + text)
    return path


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(.*)*",
        "(a|a)" * 30,
        ".*.*.*.*x",
        "a{1,99}{1,99}{1,99}",
        "(?=a)",
        "a" * 501,
        "(?:a*)*",
        "[",
        "(a)\\1?*",
    ],
)
def test_patterns_that_could_take_long_are_refused(tmp_path: Path, pattern: str) -> None:
    escaped = pattern.replace("\\", "\\\\")
    path = configured(tmp_path, f'"r": 4, "lora_alpha": 8, "rank_pattern": {{"{escaped}": 2}}}}')
    with pytest.raises(CheckpointError, match="not a LoRA configuration"):
        read_adapter_config(path)


@pytest.mark.parametrize(
    "pattern", ["q_proj", r"^vision_model\.encoder\.layers\.\d+\.self_attn\.(q|k|v)_proj", ".*fc[12]"]
)
def test_patterns_as_they_are_written_are_understood(tmp_path: Path, pattern: str) -> None:
    escaped = pattern.replace("\\", "\\\\")
    path = configured(tmp_path, f'"r": 4, "lora_alpha": 8, "rank_pattern": {{"{escaped}": 2}}}}')
    assert read_adapter_config(path).rank_pattern == {pattern: 2}


@pytest.mark.parametrize(
    "text",
    [
        '"r": 1e999, "lora_alpha": 1}',
        '"r": 1, "lora_alpha": NaN}',
        '"r": 1, "lora_alpha": 1, "x": ' + "[" * 100_000,
        '"r": ' + "1" * 5000 + ', "lora_alpha": 1}',
        '"r": 1, "lora_alpha": 1, "alpha_pattern": {"a": 1e999}}',
    ],
)
def test_numbers_without_end_and_brackets_without_end(tmp_path: Path, text: str) -> None:
    with pytest.raises(CheckpointError, match=r"adapter_config.json: (not a LoRA configuration|cannot be read)"):
        read_adapter_config(configured(tmp_path, text))


def test_a_member_that_states_another_size_is_refused(tmp_path: Path) -> None:
    """torch would make room for four gigabytes before it finds out."""
    file = tmp_path / "x.pt"
    torch.save({"state_dict": {"visual.proj": torch.ones(2, 2)}}, file)
    content = file.read_bytes()
    entry = content.rfind(b"archive/version") if b"archive/version" in content else content.rfind(b"/version") - 1
    at = content.rfind(b"PK\x01\x02", 0, entry)
    file.write_bytes(content[: at + 24] + b"\xff\xff\xff\xfe" + content[at + 28 :])
    with pytest.raises(CheckpointError, match=r"is compressed inside, which torch\.save does not do"):
        open_checkpoint(str(file))


def test_a_module_that_is_a_link_out_of_its_folder_is_not_opened(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "sentences"
    folder.mkdir()
    (folder / "modules.json").write_text('[{"path": "0_CLIPModel"}]')
    (folder / "0_CLIPModel").symlink_to(pair[0])
    with pytest.raises(CheckpointError, match=r"no model\.safetensors in this folder"):
        open_checkpoint(str(folder))
