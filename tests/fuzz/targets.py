"""One function for each reader, from bytes to an answer or a `ClipmergeError`; and valid files to begin with."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.fuzz import beside
from tests.support.merged_output import RECORD

Target = Callable[[bytes, Path], object]
SOURCE = {"source": "a", "revision": None, "files": {}}
TARGETS: dict[str, Target] = dict(beside.TARGETS)
#: Targets whose executions take milliseconds rather than microseconds.
SLOW = ("pickle", "old_pickle", "parquet", "tar", "image", "checkpoint", *beside.SLOW)


def target(function: Target) -> Target:
    TARGETS[function.__name__] = function
    return function


def _written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# --- checkpoints ---


@target
def header(data: bytes, folder: Path) -> object:
    from clipmerge.files.safetensors import read_header

    return read_header(_written(folder, "x.safetensors", data))


@target
def checkpoint(data: bytes, folder: Path) -> object:
    """A header whose names are matched with a family, aligned with itself and compared."""
    from clipmerge.checkpoint import open_checkpoint
    from clipmerge.checkpoint.alignment import align
    from clipmerge.checkpoint.compare import find_mismatches

    found = open_checkpoint(str(_written(folder, "x.safetensors", data)))
    return find_mismatches(align(found, [found]))


@target
def index(data: bytes, folder: Path) -> object:
    from clipmerge.checkpoint import open_checkpoint

    return open_checkpoint(str(_written(folder, "model.safetensors.index.json", data)))


@target
def configuration(data: bytes, folder: Path) -> object:
    from clipmerge.families import family_of
    from clipmerge.files.side_files import read_side_json

    _written(folder, "config.json", data)
    config = read_side_json(folder, "config.json") or {}
    family = family_of(config, ["logit_scale", "visual_projection.weight"])
    return family.settings(config)


@target
def tokenizer(data: bytes, folder: Path) -> object:
    from clipmerge.conversion.tokens import is_clips_own

    _written(folder, "tokenizer.json", data)
    return is_clips_own(folder)


@target
def side_file(data: bytes, folder: Path) -> object:
    from clipmerge.files.side_files import side_file_bytes

    return side_file_bytes(_written(folder, "tokenizer_config.json", data), "tokenizer_config.json")


@target
def pickle(data: bytes, folder: Path) -> object:
    from clipmerge.checkpoint.state_dict import read_state_dict

    return read_state_dict(_written(folder, "x.pt", data))


@target
def old_pickle(data: bytes, folder: Path) -> object:
    return pickle(data, folder)


@target
def adapter(data: bytes, folder: Path) -> object:
    from clipmerge.checkpoint.adapter_config import read_adapter_config

    config = read_adapter_config(_written(folder, "adapter_config.json", data))
    return config.scale_of("vision_model.encoder.layers.0.self_attn.q_proj")


# --- what is asked for ---


@target
def recipe(data: bytes, folder: Path) -> object:
    from clipmerge.planning.recipe import load_recipe

    return load_recipe(_written(folder, "x.yaml", data)).model_dump(mode="json")


@target
def assignment(data: bytes, folder: Path) -> object:
    from clipmerge.planning.recipe import load_recipe

    return load_recipe("wise-ft", [data.decode("utf-8", "surrogateescape")]).model_dump(mode="json")


@target
def plan(data: bytes, folder: Path) -> object:
    from clipmerge.planning.plan import read_plan

    return read_plan(_written(folder, "plan.json", data)).to_json()


@target
def names_of_places(data: bytes, folder: Path) -> object:
    from clipmerge.errors import ClipmergeError
    from clipmerge.hub.ids import parse_hub_id
    from clipmerge.images.dataset_id import parse_dataset
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
def captions(data: bytes, folder: Path) -> object:
    from clipmerge.images.retrieval import load_captions

    found = load_captions(str(_written(folder, "x.tar", data)))
    return [found.captions[at] for at in range(min(4, len(found)))]


@target
def suite(data: bytes, folder: Path) -> object:
    from clipmerge.evaluation.suites.suite import load_suite

    return load_suite(str(_written(folder, "x.yaml", data)))


def _read_all(path: Path) -> object:
    from clipmerge.images.dataset import load_images

    found = load_images(str(path))
    return [found.store.read([at]) for at in range(min(4, len(found)))]


@target
def parquet(data: bytes, folder: Path) -> object:
    return _read_all(_written(folder, "x.parquet", data))


@target
def tar(data: bytes, folder: Path) -> object:
    return _read_all(_written(folder, "x.tar", data))


@target
def image(data: bytes, folder: Path) -> object:
    from clipmerge.images.decoding import decode

    return decode("x", {"bytes": data, "path": None})


@target
def card(data: bytes, folder: Path) -> object:
    from clipmerge.images import dataset_id, hub_dataset

    found = hub_dataset.front_matter("x", data.decode("utf-8", "replace"))
    dataset = dataset_id.parse_dataset("hf://datasets/acme/cars")
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


# --- valid files to begin with ---


def _torch_saved(*, old: bool) -> bytes:
    import torch

    buffer = io.BytesIO()
    held = {"state_dict": {"visual.proj": torch.zeros(2, 2), "a": torch.zeros(3).half()}, "epoch": 3}
    torch.save(held, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def _safetensors(names: dict[str, list[int]]) -> bytes:
    from clipmerge.files.safetensors import header_bytes

    size = sum(4 * _product(shape) for shape in names.values())
    return header_bytes({name: ("F32", shape) for name, shape in names.items()}, {"format": "pt"}) + bytes(size)


def _product(shape: list[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


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


def seeds(name: str) -> list[bytes]:
    """Valid files for a target, from which damaged ones are made."""
    if name in beside.TARGETS:
        return beside.seeds(name)
    block = {"vision_model.encoder.layers.0.mlp.fc1.bias": [2], "text_model.encoder.layers.0.mlp.fc1.bias": [2]}
    open_clip = {"visual.transformer.resblocks.0.ln_1.bias": [2], "transformer.resblocks.0.ln_1.bias": [2]}
    headers = [_safetensors({**block, "logit_scale": []}), _safetensors({**open_clip, "visual.proj": [2, 2]})]
    layer = {"alpha": 0.5, "density": 0.1, "mask": "magnitude", "mask_options": {}, "reason": "x"}
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
        "assignment": lambda: [
            b"method.alpha=0.4",
            b"missing=keep-zeroshot",
            b"overrides=[{match: a, alpha: !!int 1}]",
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
    }
    return made[name]()
