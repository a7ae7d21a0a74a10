"""One function for each reader, from bytes to an answer or a `ClipmergeError`; and valid files to begin with."""

from __future__ import annotations

import contextlib
import io
import json
import math
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.support.merged_output import RECORD
from tests.support.raw_safetensors import entry, raw_file

Target = Callable[[bytes, Path], object]
SOURCE = {"source": "a", "revision": None, "files": {}}
#: Targets whose executions take milliseconds rather than microseconds.
SLOW = (
    *("pickle", "old_pickle", "parquet", "tar", "image", "checkpoint", "report"),
    *("open_clip_folder", "transformers_folder"),
)


def _written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _read_all(module: Any, path: Path) -> object:
    found = module.load_images(str(path))
    return [found.store.read([at]) for at in range(min(4, len(found)))]


def _first_captions(module: Any, path: Path) -> object:
    found = module.load_captions(str(path))
    return [found.captions[at] for at in range(min(4, len(found)))]


def _settings(module: Any, path: Path) -> object:
    from clipmerge.files.side_files import read_side_json

    config = read_side_json(path.parent, path.name) or {}
    return module.family_of(config, ["logit_scale", "visual_projection.weight"]).settings(config)


#: Readers of one file: its name, the module, and what is called there. A name of a module is imported by its target.
READERS: dict[str, tuple[str, str, Callable[[Any, Path], object]]] = {
    "header": ("x.safetensors", "files.safetensors", lambda module, path: module.read_header(path)),
    "index": ("model.safetensors.index.json", "checkpoint", lambda module, path: module.open_checkpoint(str(path))),
    "modules": ("modules.json", "checkpoint", lambda module, path: module.open_checkpoint(str(path.parent))),
    "configuration": ("config.json", "families", _settings),
    "tokenizer": ("tokenizer.json", "conversion.tokens", lambda module, path: module.is_clips_own(path.parent)),
    "side_file": ("tokenizer_config.json", "files.side_files", lambda m, path: m.side_file_bytes(path, path.name)),
    "pickle": ("x.pt", "checkpoint.state_dict", lambda module, path: module.read_state_dict(path)),
    "old_pickle": ("x.pt", "checkpoint.state_dict", lambda module, path: module.read_state_dict(path)),
    "adapter": (
        *("adapter_config.json", "checkpoint.adapter"),
        lambda module, path: module.read_adapter_config(path).scale_of(
            "vision_model.encoder.layers.0.self_attn.q_proj"
        ),
    ),
    "recipe": ("x.yaml", "planning.recipe", lambda module, path: module.load_recipe(path).model_dump(mode="json")),
    "plan": ("plan.json", "planning.plan", lambda module, path: module.read_plan(path).to_json()),
    "suite": ("x.yaml", "evaluation.suites.suite", lambda module, path: module.load_suite(str(path))),
    "shapes_of_a_release": (
        *("release.safetensors", "evaluation.suites.release"),
        lambda module, path: module.write_config(path),
    ),
    "captions": ("x.tar", "images.retrieval", _first_captions),
    "parquet": ("x.parquet", "images.dataset", _read_all),
    "tar": ("x.tar", "images.dataset", _read_all),
    # those of a file that a stranger may have put into the working folder
    "defaults": (
        *("clipmerge.toml", "cli._defaults"),
        lambda module, path: module.read_defaults({}, folder=path.parent).words(["merge"]),
    ),
}


def _reader(name: str, module: str, read: Callable[[Any, Path], object]) -> Target:
    return lambda data, folder: read(import_module(f"clipmerge.{module}"), _written(folder, name, data))


TARGETS: dict[str, Target] = {name: _reader(*reader) for name, reader in READERS.items()}


def target(function: Target) -> Target:
    TARGETS[function.__name__] = function
    return function


# --- checkpoints ---


@target
def checkpoint(data: bytes, folder: Path) -> object:
    """A header whose names are matched with a family, aligned with itself and compared."""
    from clipmerge.checkpoint import open_checkpoint
    from clipmerge.checkpoint.alignment import align, find_mismatches

    found = open_checkpoint(str(_written(folder, "x.safetensors", data)))
    return find_mismatches(align(found, [found]))


@target
def open_clip_folder(data: bytes, folder: Path) -> object:
    """A configuration of OpenCLIP, converted with everything beside it."""
    return _converted(folder / "oc", {"open_clip_config.json": data}, "transformers")


@target
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


@target
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


# --- what is asked for ---


@target
def names_of_places(data: bytes, folder: Path) -> object:
    from clipmerge.errors import ClipmergeError
    from clipmerge.hub.ids import parse_dataset, parse_hub_id
    from clipmerge.images.file_store import expand_ranges

    text = data.decode("utf-8", "surrogateescape")
    parse_hub_id(text)
    with contextlib.suppress(ClipmergeError):
        parse_dataset(text)
    return expand_ranges(text)


# --- images ---


@target
def class_names(data: bytes, folder: Path) -> object:
    from clipmerge.images.class_names import read_class_names

    suffix = "json" if data[:1] in b"[{" else "txt"
    return read_class_names(_written(folder, f"names.{suffix}", data), ["0", "1"], numbered=True)


@target
def texts_of_a_set(data: bytes, folder: Path) -> object:
    from clipmerge.images import description

    names = (description.CLASS_NAMES, description.TEMPLATES, description.KIND, description.SHARDS)
    for name, text in zip(names, data.split(b"\0"), strict=False):
        _written(folder, name, text)
    return description.describe_folder(folder)


@target
def image(data: bytes, folder: Path) -> object:
    from clipmerge.images.decoding import decode

    return decode("x", {"bytes": data, "path": None})


@target
def card(data: bytes, folder: Path) -> object:
    from clipmerge.errors import ClipmergeError
    from clipmerge.files.reading import Unreadable
    from clipmerge.hub import ids
    from clipmerge.images import hub_dataset

    try:
        found = hub_dataset.front_matter(data.decode("utf-8", "replace"))
    except Unreadable as error:
        raise ClipmergeError(str(error)) from None
    dataset = ids.parse_dataset("hf://datasets/acme/cars")
    return hub_dataset._splits("x", dataset, found, ["data/train-00000-of-00001.parquet", "data/test.parquet"])


# --- what is published ---


@target
def evaluation(data: bytes, folder: Path) -> object:
    from clipmerge.output.record import parse_record
    from clipmerge.publish.evaluations import add_results

    held = parse_record(json.dumps(RECORD | {"files": {"model.safetensors": "ab"}}), "x")
    return add_results(held, [_written(folder, "e.json", data)])


@target
def record(data: bytes, folder: Path) -> object:
    from clipmerge.output.record import read_output
    from clipmerge.publish.card import published_texts

    _written(folder, "clipmerge.json", data)
    _written(folder, "model.safetensors", b"")
    return published_texts(folder, read_output(folder), repo_id="acme/robust")


@target
def report(data: bytes, folder: Path) -> object:
    """A record, as a page and in the terminal; drawing takes 25 times as long, so one page in eight has pictures."""
    from rich.console import Console

    from clipmerge.output.record import parse_record
    from clipmerge.report import page
    from clipmerge.report.terminal import summary

    record = parse_record(data.decode("utf-8", "replace"), "x")
    with (folder / "said").open("w", encoding="utf-8", errors="backslashreplace") as said:
        Console(file=said, width=100).print(summary(record, verbose=True))
    if zlib.crc32(data) % 8 == 0:
        return page.html_page(record)
    with patch.object(page, "_pictures", lambda *_: []):
        return page.html_page(record)


# --- valid files to begin with ---


def _torch_saved(*, old: bool) -> bytes:
    import torch

    buffer = io.BytesIO()
    held = {"state_dict": {"visual.proj": torch.zeros(2, 2), "a": torch.zeros(3).half()}, "epoch": 3}
    torch.save(held, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def _safetensors(shapes: Mapping[str, list[int]]) -> bytes:
    from clipmerge.files.safetensors import header_bytes

    size = sum(4 * math.prod(shape) for shape in shapes.values())
    return header_bytes({name: ("F32", shape) for name, shape in shapes.items()}, {"format": "pt"}) + bytes(size)


def _parquet(**options: Any) -> bytes:
    from tests.support.image_files import png, save_hub_parquet, save_plain_parquet

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.parquet"
        if options.pop("hub", False):
            return save_hub_parquet(path, [0, 1, 0]).read_bytes()
        return save_plain_parquet(path, {"image": [png(0, 4), png(1, 4)], "label": options["labels"]}).read_bytes()


def _tar(kind: int, labels: Mapping[str, bytes] | None = None) -> bytes:
    from tests.support.image_files import png

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        contents = {"a.png": png(0, 4), "b.png": png(1, 4), **(labels or {"a.cls": b"0", "b.json": b'{"label": 1}'})}
        for name, content in sorted(contents.items()):
            info = tarfile.TarInfo(name if kind == tarfile.USTAR_FORMAT else f"{'long/' * 40}{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _images() -> list[bytes]:
    import numpy as np
    from PIL import Image

    found = []
    shades = np.arange(48, dtype=np.uint16).reshape(6, 8)
    pictures = [Image.fromarray(shades), Image.fromarray(shades.astype(np.uint8)).convert("RGB")]
    pictures += [pictures[1].convert("P"), pictures[1].convert("CMYK"), Image.fromarray(shades.astype(np.float32))]
    for picture in pictures:
        for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
            buffer = io.BytesIO()
            try:
                picture.save(buffer, kind)
            except (OSError, ValueError):  # a format that has no such numbers
                continue
            found.append(buffer.getvalue())
    return found


def _json(*values: Any) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


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


_BLOCK = {"ln_1": [4], "mlp.c_fc": [8, 4]}
_FACTORS = {"A": [2, 2], "B": [4, 2]}


def seeds(name: str) -> list[bytes]:
    """Valid files for a target, from which damaged ones are made."""
    block = {"vision_model.encoder.layers.0.mlp.fc1.bias": [2], "text_model.encoder.layers.0.mlp.fc1.bias": [2]}
    open_clip = {"visual.transformer.resblocks.0.ln_1.bias": [2], "transformer.resblocks.0.ln_1.bias": [2]}
    headers = [_safetensors({**block, "logit_scale": []}), _safetensors({**open_clip, "visual.proj": [2, 2]})]
    layer = {"alpha": 0.5, "density": 0.1, "mask": "magnitude", "mask_options": {}, "reason": "x"}
    tower = {
        **{"visual.conv1.weight": [4, 3, 2, 2], "visual.positional_embedding": [5, 4], "visual.proj": [4, 2]},
        **{f"visual.transformer.resblocks.0.{name}.weight": shape for name, shape in _BLOCK.items()},
        "classification_head.weight": [3, 2],
    }
    factors = {f"base_model.model.visual_projection.lora_{side}.weight": shape for side, shape in _FACTORS.items()}
    measured = {"measurements": {"vision.0.attn": {"change": 0.5, "barrier": -1.0}, "vision.1.mlp": {"change": 1e-9}}}
    made: dict[str, Callable[[], list[bytes]]] = {
        "header": lambda: headers,
        "checkpoint": lambda: headers,
        "index": lambda: _json(
            {"metadata": {"total_size": 8}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
        ),
        "configuration": lambda: _json(
            {"model_type": "clip", "text_config": {"hidden_act": "gelu"}, "vision_config": {"num_attention_heads": 2}},
            {"model_cfg": {"embed_dim": 2, "vision_cfg": {"layers": 1}, "text_cfg": {"heads": 1}, "quick_gelu": True}},
            {"model_type": "siglip", "dtype": "float16", "text_config": None, "vision_config": []},
        ),
        "tokenizer": lambda: _json({"model": {"vocab": {"a": 0, "b": 1}}}),
        "side_file": lambda: _json(
            {"_name_or_path": "/home/me", "model_max_length": 10**30, "x": [{"vocab_file": ""}]}
        ),
        "pickle": lambda: [_torch_saved(old=False)],
        "old_pickle": lambda: [_torch_saved(old=True)],
        "adapter": lambda: _json(
            {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 2}, "modules_to_save": ["a"]}
        ),
        "recipe": lambda: [
            b"measure:\n  name: path-barrier\n  nodes: 3\nmethod:\n  name: straggler-sparse\n  alpha: 0.5\n",
            b"method: {name: wise-ft, alpha: !!float 0.5}\noverrides:\n- {match: 'vision.*', alpha: 1}\nmissing: error",
        ],
        "plan": lambda: _json(
            {
                "format": "clipmerge-plan/1",
                "recipe": {"name": "x", "method": {"name": "wise-ft"}},
                "zeroshot": SOURCE,
                "finetuned": [SOURCE],
                "weights": [1.0],
                "layers": {"vision.0.attn": layer},
            }
        ),
        "names_of_places": lambda: [b"acme/clip@v1", b"hf://datasets/a/b@c:d/e", b"x-{00..11}-{1..2}.tar"],
        "texts_of_a_set": lambda: [b"cat\ndog\n\0a {c}.\n\0retrieval\n\0002\n"],
        "captions": lambda: [_tar(tarfile.USTAR_FORMAT, {"a.txt": b"a cat", "b.txt": b"a dog"})],
        "suite": lambda: [b"title: t\nmodel: m\ngflops: 1\nzeroshot: a/b\nfinetuned: a/c\nid: {t: x}\nood: {u: y}\n"],
        "class_names": lambda: [b"cat\ndog\n", b"0\tcat\n1\tdog", *_json(["cat", "dog"], {"0": "cat", "1": "dog"})],
        "parquet": lambda: [_parquet(labels=["a", "b"]), _parquet(labels=[0, 1]), _parquet(hub=True)],
        "tar": lambda: [_tar(kind) for kind in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)],
        "image": _images,
        "card": lambda: [
            b"---\nlicense: mit\nconfigs:\n- config_name: x\n  data_files:\n  - split: train\n    path: data/*\n---\n#"
        ],
        "record": lambda: _json(RECORD | {"files": {"model.safetensors": "ab"}}),
        "evaluation": lambda: _json(
            {
                "checkpoint": {"files": {"model.safetensors": "ab"}, "source": "x"},
                "accuracy": {"id": 0.5},
                "images": {"id": 3},
                "sources": {"id": {"source": "x", "revision": None}},
            },
            {"recipes": [{"name": "x", "recipe": {}, "calibration": None}], "zeroshot": SOURCE, "finetuned": SOURCE}
            | {"seed": 0, "images": {}, "sources": {}},
        ),
        "defaults": lambda: [b'images = 64\nseed = 1\ntemplate = ["a {}"]\n', b'device = "cpu"\nbatch-size = 8\n'],
        "modules": lambda: [b'[{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "x.CLIPModel"}]'],
        "shapes_of_a_release": lambda: [_safetensors(tower)],
        "lora": lambda: [_safetensors(factors)],
        "report": lambda: _json(RECORD | measured | {"files": {"model.safetensors": "ab"}}),
        "open_clip_folder": lambda: _configurations()["open_clip_folder"],
        "transformers_folder": lambda: _configurations()["transformers_folder"],
    }
    return made[name]()
