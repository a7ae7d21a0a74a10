"""Readers by name, from bytes to an answer or a `ClipmergeError`, and valid files for each."""

import contextlib
import io
import json
import math
import os
import resource
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save
from transformers import CLIPModel

from benchmarks.public.release import write_config
from benchmarks.public.suite import load_suite
from clipmerge.checkpoint import open_checkpoint
from clipmerge.checkpoint.adapter import read_adapter_config
from clipmerge.checkpoint.alignment import align, find_mismatches
from clipmerge.checkpoint.converted import ConvertedCheckpoint, convert_checkpoint
from clipmerge.checkpoint.state_dict import read_state_dict
from clipmerge.errors import ClipmergeError
from clipmerge.families import family_of
from clipmerge.files.reading import Unreadable
from clipmerge.files.safetensors import header_bytes, read_header
from clipmerge.files.side_files import read_side_json, side_file_bytes
from clipmerge.hub.ids import parse_dataset, parse_hub_id
from clipmerge.images import hub_splits, shard_texts
from clipmerge.images.classes import read_class_names
from clipmerge.images.dataset import load_images, open_images
from clipmerge.images.decoding import decode
from clipmerge.images.local_files import expand_ranges
from clipmerge.output.layout_files import has_clip_vocabulary, write_layout_files
from clipmerge.output.record import parse_record, read_output
from clipmerge.planning.plan import read_plan
from clipmerge.planning.recipe import load_recipe
from clipmerge.publish.card import published_texts
from clipmerge.publish.evaluations import add_results
from clipmerge.report import page
from clipmerge.report.terminal import summary
from tests.support import tiny_open_clip
from tests.support.image_files import png, save_hub_parquet, save_plain_parquet, saved
from tests.support.merged_output import RECORD
from tests.support.raw_safetensors import entry, raw_file
from tests.support.several import context
from tests.support.tiny_clip import tiny_config, tiny_processor

#: Times as many files as in a usual run of the tests; with 2 or more, bombs that take long are read
#: too.
TRIALS = int(os.environ.get("CLIPMERGE_TRIALS", "1"))
#: Seconds of computing that one file may take, and bytes of memory that it may add. The largest
#: files that are read take up to 5 seconds on an idle core, and several times that on a busy one;
#: a file that fools a reader takes minutes.
SLOWEST, LARGEST = 30, 1 << 30
#: Joiners of scripts and emoji, and wide blanks, which Python does not count as printable.
JOINERS = "\u200c\u200d\xa0\u2002\u2003\u2009\u202f\u3000"
SOURCE = {"source": "a", "revision": None, "files": {}}
PUBLISHED = RECORD | {"files": {"model.safetensors": "ab"}}


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """Do something in a process of its own, in which libraries are imported: memory is that of the
    work alone."""
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


class TookTooLong(Exception):
    """A file that took longer than any may."""


def _alarm(_number: int, _frame: FrameType | None) -> None:
    raise TookTooLong


def peak() -> int:
    """The highest resident memory of this process, in bytes: `getrusage` may hide it below its
    parent's peak."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def verdict(name: str, data: bytes, folder: Path) -> str:
    """Run one file through a reader; what is wrong with that."""
    begin, before = time.process_time(), peak()
    signal.signal(signal.SIGPROF, _alarm)
    signal.setitimer(signal.ITIMER_PROF, SLOWEST)
    try:
        with warnings.catch_warnings(action="ignore"):
            READERS[name].read(data, folder)
    except ClipmergeError as error:
        text = str(error)
        if not all(letter.isprintable() or letter in JOINERS for letter in text):
            return f"not one printable line: {text!r}"
    except TookTooLong:
        return f"took over {SLOWEST} s"
    except Exception:
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    took, grown = time.process_time() - begin, peak() - before
    if grown > LARGEST:
        return f"took {grown >> 20} MiB more"
    # The alarm waits for C code to return.
    return f"took {took:.0f} s" if took > SLOWEST else ""


@dataclass(frozen=True)
class Reader:
    """Reads a file's content, in a folder to write it to; makes valid files; takes milliseconds per
    file, or less."""

    read: Callable[[bytes, Path], object]
    seeds: Callable[[], list[bytes]]
    slow: bool = False


def _file(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    """Read a file of this name."""

    def read_file(data: bytes, folder: Path) -> object:
        (folder / name).write_bytes(data)
        return read(folder / name)

    return read_file


def _json(*values: Any) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(value).encode() for value in values]


# --- checkpoints ---


def _settings(path: Path) -> object:
    config = read_side_json(path.parent, path.name) or {}
    return family_of(config, ["logit_scale", "visual_projection.weight"]).settings(config)


def _aligned(path: Path) -> object:
    """A header whose names are matched with a family, aligned with itself and compared."""
    found = open_checkpoint(str(path))
    return find_mismatches(align(found, [found]))


def _headers() -> list[bytes]:
    block = {
        "vision_model.encoder.layers.0.mlp.fc1.bias": [2],
        "text_model.encoder.layers.0.mlp.fc1.bias": [2],
    }
    open_clip = {
        "visual.transformer.resblocks.0.ln_1.bias": [2],
        "transformer.resblocks.0.ln_1.bias": [2],
    }
    return [
        _safetensors({**block, "logit_scale": []}),
        _safetensors({**open_clip, "visual.proj": [2, 2]}),
    ]


def _safetensors(shapes: Mapping[str, list[int]]) -> bytes:
    size = sum(4 * math.prod(shape) for shape in shapes.values())
    return header_bytes(
        {name: ("F32", shape) for name, shape in shapes.items()}, {"format": "pt"}
    ) + bytes(size)


def _torch_saved(*, old: bool) -> list[bytes]:
    buffer = io.BytesIO()
    content = {
        "state_dict": {"visual.proj": torch.zeros(2, 2), "a": torch.zeros(3).half()},
        "epoch": 3,
    }
    torch.save(content, buffer, _use_new_zipfile_serialization=not old)
    return [buffer.getvalue()]


def _read_open_clip(data: bytes, folder: Path) -> object:
    """A configuration of OpenCLIP, converted with everything beside it."""
    return _converted(folder / "oc", {"open_clip_config.json": data}, "transformers")


def _open_clip_configurations() -> list[bytes]:
    plain = tiny_open_clip.model_config(text={"hf_tokenizer_name": "a/b"})
    named = tiny_open_clip.model_config(
        text={"hf_tokenizer_name": "a/b", "pool_type": "eos"}, quick_gelu=True
    )
    preprocess = {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    return _json(
        *({"model_cfg": model, "preprocess_cfg": preprocess} for model in (plain, named))
    )()


def _read_transformers(data: bytes, folder: Path) -> object:
    """A configuration and an image processor, converted."""
    config, _, processor = data.partition(b"\0")
    return _converted(
        folder / "hf", {"config.json": config, "preprocessor_config.json": processor}, "open-clip"
    )


def _transformers_configurations() -> list[bytes]:
    processor = {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "image_mean": [0.5, 0.5, 0.5],
    }
    processors = (
        {**processor, "resample": 3},
        {"image_processor": {"size": 32, "do_normalize": False}},
    )
    config = json.dumps(tiny_config().to_dict()).encode()
    return [config + b"\0" + json.dumps(each).encode() for each in processors]


def _converted(folder: Path, contents: Mapping[str, bytes], to: Any) -> object:
    (folder / "made").mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    weights = folder / (
        "open_clip_model.safetensors" if to == "transformers" else "model.safetensors"
    )
    if not weights.exists():
        weights.write_bytes(_weights(to))
        tiny_processor().tokenizer.save_pretrained(folder)
    converted = convert_checkpoint(open_checkpoint(str(folder)), to)
    if not isinstance(converted, ConvertedCheckpoint) or converted.config is None:
        return converted
    return write_layout_files(folder / "made", converted, "keep")


@cache
def _weights(to: str) -> bytes:
    """The weights of a tiny model in the layout that is converted from."""
    if to == "transformers":
        return save(tiny_open_clip.build(tiny_open_clip.model_config()).state_dict())
    return save(
        {name: value.contiguous() for name, value in CLIPModel(tiny_config()).state_dict().items()}
    )


def _read_lora(data: bytes, folder: Path) -> object:
    """An adapter's weights, on a base."""
    base, adapter = folder / "base.safetensors", folder / "adapter_model.safetensors"
    raw_file(base, {"visual_projection.weight": entry(shape=[4, 2], offsets=[0, 32])}, bytes(32))
    adapter.write_bytes(data)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["visual_projection"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    adapted = open_checkpoint(str(adapter), base=open_checkpoint(str(base)))
    return [adapted.tensor(key) for key in adapted.entries]


_TOWER = {
    "visual.conv1.weight": [4, 3, 2, 2],
    "visual.positional_embedding": [5, 4],
    "visual.proj": [4, 2],
    "visual.transformer.resblocks.0.ln_1.weight": [4],
    "visual.transformer.resblocks.0.mlp.c_fc.weight": [8, 4],
    "classification_head.weight": [3, 2],
}
_FACTORS = {
    "base_model.model.visual_projection.lora_A.weight": [2, 2],
    "base_model.model.visual_projection.lora_B.weight": [4, 2],
}


# --- images ---


def _names_of_places(data: bytes, _folder: Path) -> object:
    text = data.decode("utf-8", "surrogateescape")
    parse_hub_id(text)
    with contextlib.suppress(ClipmergeError):
        parse_dataset(text)
    return expand_ranges(text)


def _first_images(path: Path) -> object:
    found = load_images(str(path))
    return [found.store.read([at]) for at in range(min(4, len(found)))]


def _first_captions(path: Path) -> object:
    (path.parent / "dataset_type.txt").write_text("retrieval")
    found = open_images(str(path))
    assert found is not None
    return [found.captions[at] for at in range(min(4, len(found)))]


def _class_names(data: bytes, folder: Path) -> object:
    path = folder / ("names.json" if data[:1] in b"[{" else "names.txt")
    path.write_bytes(data)
    return read_class_names(path, ["0", "1"])


def _texts_of_a_set(data: bytes, folder: Path) -> object:
    names = (shard_texts.CLASS_NAMES, shard_texts.TEMPLATES, shard_texts.KIND, shard_texts.SHARDS)
    for name, text in zip(names, data.split(b"\0"), strict=False):
        (folder / name).write_bytes(text)
    return shard_texts.describe_folder(folder)


def _card(data: bytes, _folder: Path) -> object:
    try:
        found = hub_splits.front_matter(data.decode("utf-8", "replace"))
    except Unreadable as error:
        raise ClipmergeError(str(error)) from None
    dataset = parse_dataset("hf://datasets/acme/cars")
    return hub_splits.find_splits(
        "x", dataset, found, ["data/train-00000-of-00001.parquet", "data/test.parquet"]
    )


def _parquets() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.parquet"
        found = [save_hub_parquet(path, [0, 1, 0]).read_bytes()]
        for labels in (["a", "b"], [0, 1]):
            found.append(
                save_plain_parquet(
                    path, {"image": [png(0, 4), png(1, 4)], "label": labels}
                ).read_bytes()
            )
    return found


def _tar(kind: int, labels: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for name, content in sorted({"a.png": png(0, 4), "b.png": png(1, 4), **labels}.items()):
            info = tarfile.TarInfo(
                name if kind == tarfile.USTAR_FORMAT else f"{'long/' * 40}{name}"
            )
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _tars() -> list[bytes]:
    kinds = (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
    return [_tar(kind, {"a.cls": b"0", "b.json": b'{"label": 1}'}) for kind in kinds]


def _images() -> list[bytes]:
    found = []
    grey = Image.linear_gradient("L").resize((8, 6))
    colours = grey.convert("RGB")
    for picture in (
        grey.convert("I;16"),
        colours,
        colours.convert("P"),
        colours.convert("CMYK"),
        grey.convert("F"),
    ):
        for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
            with contextlib.suppress(OSError, ValueError):  # a format that has no such numbers
                found.append(saved(picture, kind))
    return found


# --- what is published ---


def _evaluation(path: Path) -> object:
    return add_results(parse_record(json.dumps(PUBLISHED), "x"), [path])


def _record(path: Path) -> object:
    (path.parent / "model.safetensors").touch()
    return published_texts(path.parent, read_output(path.parent), repo_id="acme/robust")


def _report(data: bytes, folder: Path) -> object:
    """A record, as a page and in the terminal; drawing takes 25 times as long, so one page in eight
    has pictures."""
    record = parse_record(data.decode("utf-8", "replace"), "x")
    with (folder / "said").open("w", encoding="utf-8", errors="backslashreplace") as said:
        Console(file=said, width=100).print(summary(record, verbose=True))
    if zlib.crc32(data) % 8 == 0:
        return page.html_page(record)
    with patch.object(page, "_pictures", lambda *_: []):
        return page.html_page(record)


READERS = {
    "header": Reader(_file("x.safetensors", read_header), _headers),
    "checkpoint": Reader(_file("x.safetensors", _aligned), _headers, slow=True),
    "index": Reader(
        _file("model.safetensors.index.json", lambda path: open_checkpoint(str(path))),
        _json(
            {"metadata": {"total_size": 8}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
        ),
    ),
    "modules": Reader(
        _file("modules.json", lambda path: open_checkpoint(str(path.parent))),
        _json([{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "x.CLIPModel"}]),
    ),
    "configuration": Reader(
        _file("config.json", _settings),
        _json(
            {
                "model_type": "clip",
                "text_config": {"hidden_act": "gelu"},
                "vision_config": {"num_attention_heads": 2},
            },
            {
                "model_cfg": {
                    "embed_dim": 2,
                    "vision_cfg": {"layers": 1},
                    "text_cfg": {"heads": 1},
                    "quick_gelu": True,
                }
            },
            {"model_type": "siglip", "dtype": "float16", "text_config": None, "vision_config": []},
        ),
    ),
    "tokenizer": Reader(
        _file("tokenizer.json", lambda path: has_clip_vocabulary(path.parent)),
        _json({"model": {"vocab": {"a": 0, "b": 1}}}),
    ),
    "side_file": Reader(
        _file("tokenizer_config.json", lambda path: side_file_bytes(path, path.name)),
        _json({"_name_or_path": "/home/me", "model_max_length": 10**30, "x": [{"vocab_file": ""}]}),
    ),
    "pickle": Reader(_file("x.pt", read_state_dict), lambda: _torch_saved(old=False), slow=True),
    "old_pickle": Reader(_file("x.pt", read_state_dict), lambda: _torch_saved(old=True), slow=True),
    "adapter": Reader(
        _file(
            "adapter_config.json",
            lambda path: read_adapter_config(path).scale_of(
                "vision_model.encoder.layers.0.self_attn.q_proj"
            ),
        ),
        _json(
            {
                "peft_type": "LORA",
                "r": 4,
                "lora_alpha": 8,
                "rank_pattern": {"q_proj": 2},
                "modules_to_save": ["a"],
            }
        ),
    ),
    "lora": Reader(_read_lora, lambda: [_safetensors(_FACTORS)]),
    "open_clip_folder": Reader(_read_open_clip, _open_clip_configurations, slow=True),
    "transformers_folder": Reader(_read_transformers, _transformers_configurations, slow=True),
    "recipe": Reader(
        _file("x.yaml", lambda path: load_recipe(path).model_dump(mode="json")),
        lambda: [
            (
                b"measure:\n  name: path-barrier\n  nodes: 3\nmethod:\n  name: straggler-sparse\n "
                b" alpha: 0.5\n"
            ),
            (
                b"method: {name: wise-ft, alpha: !!float 0.5}\noverrides:\n- {match: 'vision.*',"
                b" alpha: 1}\nmissing: error"
            ),
        ],
    ),
    "plan": Reader(
        _file("plan.json", lambda path: read_plan(path).to_json()),
        _json(
            {
                "format": "clipmerge-plan/2",
                "recipe": {"name": "x", "method": {"name": "wise-ft"}},
                "zeroshot": SOURCE,
                "finetuned": [SOURCE],
                "weights": [1.0],
                "layers": {
                    "vision.0.attn": {
                        "alpha": 0.5,
                        "density": 0.1,
                        "mask": "magnitude",
                        "reason": "x",
                    }
                },
            }
        ),
    ),
    "suite": Reader(
        _file("x.yaml", lambda path: load_suite(str(path))),
        lambda: [
            b"title: t\nmodel: m\ngflops: 1\nzeroshot: a/b\nfinetuned: a/c\nid: {t: x}\nood: {u:"
            b" y}\n"
        ],
    ),
    "shapes_of_a_release": Reader(
        _file("release.safetensors", write_config), lambda: [_safetensors(_TOWER)]
    ),
    # that of a file that a stranger may have put into the working folder
    "defaults": Reader(
        lambda: [
            b'images = 64\nseed = 1\ntemplate = ["a {}"]\n',
            b'device = "cpu"\nbatch-size = 8\n',
        ],
    ),
    "names_of_places": Reader(
        _names_of_places,
        lambda: [b"acme/clip@v1", b"hf://datasets/a/b@c:d/e", b"x-{00..11}-{1..2}.tar"],
    ),
    "class_names": Reader(
        _class_names,
        lambda: [b"cat\ndog\n", b"0\tcat\n1\tdog", b'["cat", "dog"]', b'{"0": "cat", "1": "dog"}'],
    ),
    "texts_of_a_set": Reader(
        _texts_of_a_set, lambda: [b"cat\ndog\n\0a {c}.\n\0retrieval\n\0002\n"]
    ),
    "image": Reader(lambda data, _: decode("x", data), _images, slow=True),
    "card": Reader(
        _card,
        lambda: [
            b"---\nlicense: mit\nconfigs:\n- config_name: x\n  data_files:\n  - split: train\n   "
            b" path: data/*\n---\n#"
        ],
    ),
    "captions": Reader(
        _file("x.tar", _first_captions),
        lambda: [_tar(tarfile.USTAR_FORMAT, {"a.txt": b"a cat", "b.txt": b"a dog"})],
    ),
    "parquet": Reader(_file("x.parquet", _first_images), _parquets, slow=True),
    "tar": Reader(_file("x.tar", _first_images), _tars, slow=True),
    "evaluation": Reader(
        _file("e.json", _evaluation),
        _json(
            {
                "checkpoint": {"files": {"model.safetensors": "ab"}, "source": "x"},
                "accuracy": {"id": 0.5},
                "images": {"id": 3},
                "sources": {"id": {"source": "x", "revision": None}},
            },
            {
                "recipes": [{"name": "x", "recipe": {}, "calibration": None}],
                "zeroshot": SOURCE,
                "finetuned": SOURCE,
                "seed": 0,
                "images": {},
                "sources": {},
            },
        ),
    ),
    "record": Reader(_file("clipmerge.json", _record), _json(PUBLISHED)),
    "report": Reader(
        _report,
        _json(PUBLISHED | {"measurements": {"vision.0.attn": {"change": 0.5, "barrier": -1.0}}}),
        slow=True,
    ),
}
