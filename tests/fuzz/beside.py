"""More readers: files beside weights and images, defaults in the working folder, what a report is made from."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.support.merged_output import RECORD
from tests.support.raw_safetensors import entry, raw_file


def defaults(data: bytes, folder: Path) -> object:
    """Those of a file that a stranger may have put into the working folder."""
    from clipmerge.cli._defaults import read_defaults

    (folder / "clipmerge.toml").write_bytes(data)
    return read_defaults({}, folder=folder).words(["merge"])


def variables(data: bytes, folder: Path) -> object:
    """One line per variable."""
    from clipmerge.cli._defaults import read_defaults

    shutil.rmtree(folder / "none", ignore_errors=True)
    lines = (line.partition("=") for line in data.decode("utf-8", "surrogateescape").split("\n"))
    found = read_defaults({f"CLIPMERGE_{name}": value for name, _, value in lines}, folder=folder / "none")
    return found.words(["merge"]), found.note


def open_clip_folder(data: bytes, folder: Path) -> object:
    """A configuration of OpenCLIP, converted with everything beside it."""
    return _converted(folder / "oc", {"open_clip_config.json": data}, "transformers")


def transformers_folder(data: bytes, folder: Path) -> object:
    """A configuration and an image processor, converted."""
    config, _, processor = data.partition(b"\0")
    return _converted(folder / "hf", {"config.json": config, "preprocessor_config.json": processor}, "open-clip")


def _converted(folder: Path, contents: Mapping[str, bytes], to: Any) -> object:
    from clipmerge.checkpoint import open_checkpoint
    from clipmerge.checkpoint.converted import ConvertedCheckpoint, convert_checkpoint
    from clipmerge.output.layout_files import write_layout_files

    (folder / "made").mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    name = "open_clip_model" if to == "transformers" else "model"
    weights = folder / f"{name}.safetensors"
    if not weights.exists():
        from tests.support.tiny_clip import tiny_processor

        weights.write_bytes(_weights(to))
        tiny_processor().tokenizer.save_pretrained(folder)
    converted = convert_checkpoint(open_checkpoint(str(folder)), to)
    if not isinstance(converted, ConvertedCheckpoint) or converted.config is None:
        return converted
    return write_layout_files(folder / "made", converted, "keep")


@cache
def _weights(to: str) -> bytes:
    """The weights of a tiny model in the layout that is converted from."""
    from safetensors.torch import save

    from tests.support import tiny_open_clip
    from tests.support.tiny_clip import tiny_config

    if to == "transformers":
        return save(tiny_open_clip.build(tiny_open_clip.model_config()).state_dict())
    from transformers import CLIPModel

    return save({name: value.contiguous() for name, value in CLIPModel(tiny_config()).state_dict().items()})


def modules(data: bytes, folder: Path) -> object:
    """The list of modules in a folder of sentence-transformers."""
    from clipmerge.checkpoint import open_checkpoint

    (folder / "modules.json").write_bytes(data)
    return open_checkpoint(str(folder))


def shapes_of_a_release(data: bytes, folder: Path) -> object:
    """The configuration of a release file, from the shapes in its header."""
    from clipmerge.evaluation.suites.release import write_config

    file = folder / "release.safetensors"
    file.write_bytes(data)
    return write_config(file)


def lora(data: bytes, folder: Path) -> object:
    """An adapter's weights, on a base."""
    from clipmerge.checkpoint import open_checkpoint

    base, adapter = folder / "base.safetensors", folder / "adapter_model.safetensors"
    if not base.exists():
        raw_file(base, {"visual_projection.weight": entry(shape=[4, 2], offsets=[0, 32])}, bytes(32))
    adapter.write_bytes(data)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["visual_projection"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    adapted = open_checkpoint(str(adapter), base=open_checkpoint(str(base)))
    return [adapted.tensor(key) for key in adapted.entries]


def report(data: bytes, folder: Path) -> object:
    """A record, as a page and in the terminal; drawing takes 25 times as long, so one page in eight has pictures."""
    from rich.console import Console

    from clipmerge.output.record import parse_record
    from clipmerge.report import page
    from clipmerge.report.terminal import summary_table

    record = parse_record(data.decode("utf-8", "replace"), "x")
    with (folder / "said").open("w", encoding="utf-8", errors="backslashreplace") as said:
        Console(file=said, width=100).print(summary_table(record))
    if zlib.crc32(data) % 8 == 0:
        return page.html_page(record)
    with patch.multiple(page, _pictures=_none):
        return page.html_page(record)


def _none(*_arguments: object) -> list[object]:
    return []


#: By name, and valid files to begin with.
TARGETS: dict[str, Callable[[bytes, Path], object]] = {
    function.__name__: function
    for function in (
        *(defaults, variables, open_clip_folder, transformers_folder, modules),
        *(shapes_of_a_release, lora, report),
    )
}
SLOW = ("report", "open_clip_folder", "transformers_folder")


def _header(shapes: Mapping[str, list[int]]) -> bytes:
    at, header = 0, {}
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = entry(shape=shape, offsets=[at, at + size])
        at += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(at)


def _configurations() -> dict[str, list[bytes]]:
    from tests.support import tiny_open_clip
    from tests.support.tiny_clip import tiny_config

    plain = tiny_open_clip.model_config(text={"hf_tokenizer_name": "a/b"})
    named = tiny_open_clip.model_config(text={"hf_tokenizer_name": "a/b", "pool_type": "eos"}, quick_gelu=True)
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"}
    processor = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.5, 0.5]}
    ours = json.dumps(tiny_config().to_dict()).encode()
    return {
        "open_clip_folder": [
            json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}).encode() for model in (plain, named)
        ],
        "transformers_folder": [
            ours + b"\0" + json.dumps({**processor, "resample": 3}).encode(),
            ours + b"\0" + json.dumps({"image_processor": {"size": 32, "do_normalize": False}}).encode(),
        ],
    }


def seeds(name: str) -> list[bytes]:
    """Valid files for a target, from which damaged ones are made."""
    if name in ("open_clip_folder", "transformers_folder"):
        return _configurations()[name]
    shapes = {
        "visual.conv1.weight": [4, 3, 2, 2],
        "visual.positional_embedding": [5, 4],
        "visual.proj": [4, 2],
        "visual.transformer.resblocks.0.ln_1.weight": [4],
        "visual.transformer.resblocks.0.mlp.c_fc.weight": [8, 4],
        "classification_head.weight": [3, 2],
    }
    factors = {
        "base_model.model.visual_projection.lora_A.weight": [2, 2],
        "base_model.model.visual_projection.lora_B.weight": [4, 2],
    }
    measured = {"measurements": {"vision.0.attn": {"change": 0.5, "barrier": -1.0}, "vision.1.mlp": {"change": 1e-9}}}
    made: dict[str, list[bytes]] = {
        "defaults": [b'images = 64\nseed = 1\ntemplate = ["a {}"]\n', b'device = "cpu"\nbatch-size = 8\n'],
        "variables": [b"IMAGES=64\nSTRICT=1\nTEMPLATE=a {}", b"RECIPE=auto\nDATA=x\nCLASSES=y\nVERBOSE=0"],
        "modules": [b'[{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "x.CLIPModel"}]'],
        "shapes_of_a_release": [_header(shapes)],
        "lora": [_header(factors)],
        "report": [json.dumps(RECORD | measured | {"files": {"model.safetensors": "ab"}}).encode()],
    }
    return made[name]
