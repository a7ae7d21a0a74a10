"""What an output folder holds: weights, index and side files, streamed; and a plan with its tensors."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clipmerge.checkpoint import Checkpoint, Inputs
from clipmerge.checkpoint.converted import ConvertedCheckpoint
from clipmerge.checkpoint.source import INDEX, OPEN_CLIP_CONFIG, TOKENIZER_FILES, WEIGHTS
from clipmerge.conversion import layout_of
from clipmerge.errors import CheckpointError, OutputError
from clipmerge.files.hashes import sha256_of
from clipmerge.files.safetensors import DTYPES
from clipmerge.files.staging import staged_files
from clipmerge.files.writer import output_file
from clipmerge.merging.stream import MergedTensor, contents_of
from clipmerge.output.layout_files import write_layout_files
from clipmerge.planning.plan import Plan, TensorsRecord, tensors_path
from clipmerge.planning.tensors import PlanTensors

# The order that safetensors' own save_file uses: widest dtype first, then by name.
_DTYPE_RANK = {
    name: rank for rank, name in enumerate(("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL"))
}
_SIDE_SUFFIXES = (".json", ".txt", ".model", ".jinja")
_NOT_SIDE = (
    "clipmerge.json",
    "conversion.json",
    "trainer_state.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
)
_PROCESSOR = ("preprocessor_config.json", "processor_config.json")


def write_weights(
    folder: Path,
    tensors: list[MergedTensor],
    layout: dict[str, str] | None,
    advance: Callable[[int], None],
    *,
    single: str = WEIGHTS,
    hashed: bool = True,
) -> dict[str, str | None]:
    """Write the merged tensors as safetensors, one file or shards with their index.

    Args:
        folder: Where to.
        tensors: The tensors; their content is pulled chunk by chunk.
        layout: Key to shard name; ``None`` for one file.
        advance: Called with the number of bytes written, for progress.
        single: That one file's name.
        hashed: Whether to hash the weights.

    Returns:
        File name to sha256; to ``None`` where the weights are not hashed.

    Raises:
        CheckpointError: If an input turns out broken while it is read.
    """
    files: dict[str, list[MergedTensor]] = {}
    first = next(iter(layout.values())) if layout else single
    for tensor in tensors:
        files.setdefault(layout.get(tensor.key, first) if layout else first, []).append(tensor)
    hashes = {name: _write_file(folder / name, files[name], advance, hashed=hashed) for name in sorted(files)}
    if layout:
        hashes[INDEX] = _write_index(folder / INDEX, files)
    return hashes


def _write_file(path: Path, tensors: list[MergedTensor], advance: Callable[[int], None], *, hashed: bool) -> str | None:
    tensors = sorted(tensors, key=lambda tensor: (_DTYPE_RANK[tensor.dtype], tensor.key))
    header = np.frombuffer(_header(tensors), np.uint8)
    with output_file(path, len(header) + sum(tensor.nbytes for tensor in tensors), hashed=hashed) as file:
        file.append(header)
        with contextlib.closing(contents_of(tensors, file.room)) as contents:
            for chunk in itertools.chain.from_iterable(contents):
                file.append(chunk)
                advance(chunk.nbytes)
        return file.finish()


def _header(tensors: list[MergedTensor]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        header[tensor.key] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _write_index(path: Path, files: dict[str, list[MergedTensor]]) -> str:
    everything = [tensor for tensors in files.values() for tensor in tensors]
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in everything)},
        "weight_map": {tensor.key: name for name in sorted(files) for tensor in files[name]},
    }
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return sha256_of(path)


def output_layout(
    inputs: Inputs, tensors: list[MergedTensor], max_shard_size: int | None = None
) -> dict[str, str] | None:
    """Say which shard each tensor goes to.

    Args:
        inputs: The checkpoints.
        tensors: The output's tensors.
        max_shard_size: Bytes a shard holds at most, unless one tensor alone is larger; ``None`` for shards as the
            checkpoint has them that gives the output its form.

    Returns:
        Key to shard; ``None`` when the output is one file.

    Raises:
        OutputError: If shards are asked for that the family's library cannot load.
    """
    layout = None if max_shard_size is None else _sized_layout(tensors, max_shard_size)
    if layout and inputs.family.weights != WEIGHTS:
        raise OutputError(f"open_clip loads {inputs.family.weights} and no shards; leave out --max-shard-size")
    form = inputs.form
    if max_shard_size is not None or not form.sharded or inputs.family.weights != WEIGHTS:
        return layout
    return {inputs.output_keys[name]: _shard_name(form.entries[key].file) for name, key in inputs.form_keys.items()}


def _sized_layout(tensors: list[MergedTensor], limit: int) -> dict[str, str] | None:
    """Fill shards in the order of the tensors, as the libraries do."""
    shards: dict[str, int] = {}
    number, held = 1, 0
    for tensor in tensors:
        size = tensor.nbytes
        if held and held + size > limit:
            number, held = number + 1, 0
        shards[tensor.key], held = number, held + size
    if number == 1:
        return None
    return {key: f"model-{shard:05}-of-{number:05}.safetensors" for key, shard in shards.items()}


def _shard_name(file: Path) -> str:
    """What a shard is called in the output, whose shards are safetensors whatever the input's are."""
    return f"{file.stem.removeprefix('pytorch_')}.safetensors" if file.suffix != ".safetensors" else file.name


def write_side_files(folder: Path, inputs: Inputs, dtype: str) -> tuple[dict[str, str], list[str]]:
    """Copy configuration, processor and tokenizer, so that the output loads where its sources load.

    They come from the fine-tuned checkpoint, verbatim but for the config's dtype; what it lacks, and everything
    when it is one tower of a full model, comes from the zero-shot one. A classifier needs no tokenizer.

    Args:
        folder: Where to.
        inputs: The checkpoints.
        dtype: Output dtype, or ``keep``.

    Returns:
        File name to sha256, and notes for the user.
    """
    form = inputs.form if inputs.form.config is not None else inputs.zeroshot
    if isinstance(form, ConvertedCheckpoint):
        return _converted_files(folder, form, inputs, dtype)
    chosen = _side_files(form)
    notes = []
    if form is inputs.zeroshot and not inputs.takes_zeroshot_form:
        notes.append(
            f"the fine-tuned checkpoint has no {inputs.family.config}; the zero-shot one's side files were copied"
        )
    for what, names in _lendable(inputs).items():
        if form is not inputs.zeroshot and not any(name in chosen for name in names):
            lent = {name: path for name, path in _side_files(inputs.zeroshot).items() if name not in chosen}
            lent = {name: path for name, path in lent.items() if name not in ("config.json", *_other(names))}
            if any(name in lent for name in names):
                chosen |= lent
                notes.append(f"the fine-tuned checkpoint has no {what}; the zero-shot one's was copied")
    for name, path in chosen.items():
        if name == "config.json":
            with _readable(path):
                text = _config_text(path, form, dtype)
            (folder / name).write_text(text, encoding="utf-8")
        else:
            with _readable(path):
                shutil.copyfile(path, folder / name)
    return {name: sha256_of(folder / name) for name in sorted(chosen)}, notes


def _converted_files(
    folder: Path, form: ConvertedCheckpoint, inputs: Inputs, dtype: str
) -> tuple[dict[str, str], list[str]]:
    """Make the files anew: those that the form's checkpoint has beside it are another library's."""
    if form.config is None:
        return {}, []
    before = {path.name for path in folder.iterdir()}
    notes = write_layout_files(folder, form, dtype)
    if not inputs.takes_zeroshot_form:
        notes.append(f"the fine-tuned checkpoint has no {inputs.family.config}; one was made from the zero-shot one's")
    made = sorted(path.name for path in folder.iterdir() if path.name not in before)
    return {name: sha256_of(folder / name) for name in made}, notes


def _lendable(inputs: Inputs) -> dict[str, tuple[str, ...]]:
    """What the zero-shot checkpoint lends where the fine-tuned one lacks it, and the files by which that is known.

    Nothing of another library's; a classifier needs no tokenizer, and OpenCLIP has no processor.
    """
    lendable = {"processor": _PROCESSOR, "tokenizer": TOKENIZER_FILES}
    if isinstance(inputs.zeroshot, ConvertedCheckpoint):
        return {}
    if inputs.keeps_head:
        del lendable["tokenizer"]
    if layout_of(inputs.zeroshot.entries) == "open-clip":
        del lendable["processor"]
    return lendable


def _other(names: tuple[str, ...]) -> tuple[str, ...]:
    return TOKENIZER_FILES if names is _PROCESSOR else _PROCESSOR


def _side_files(checkpoint: Checkpoint) -> dict[str, Path]:
    if checkpoint.config is None:
        return {}
    # a folder may hold both layouts; what describes the other one is not true of the output
    strange = "config.json" if layout_of(checkpoint.entries) == "open-clip" else OPEN_CLIP_CONFIG
    with _readable(checkpoint.folder):
        paths = sorted(checkpoint.folder.iterdir())
    return {
        path.name: path
        for path in paths
        if path.is_file()
        and not path.name.startswith(".")
        and path.name not in (*_NOT_SIDE, strange)
        and not path.name.endswith(".index.json")
        and (path.suffix in _SIDE_SUFFIXES or path.stem == "LICENSE")
    }


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Blame an input that cannot be read on the input: everything else that fails here is of the output."""
    try:
        yield
    except OSError as error:
        if error.filename is None or Path(error.filename) != path:
            raise
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None


def _config_text(path: Path, form: Checkpoint, dtype: str) -> str:
    """The config, its dtype made that of the weights: the config wins over the file when transformers loads."""
    text = path.read_text(encoding="utf-8")
    floats = {DTYPES[entry.dtype][0] for entry in form.entries.values() if entry.is_float}
    actual = dtype if dtype != "keep" else floats.pop() if len(floats) == 1 else None
    config = json.loads(text)
    if actual is None or not _set_dtype(config, actual):
        return text
    return json.dumps(config, indent=2) + "\n"


def _set_dtype(config: dict[str, Any], dtype: str) -> bool:
    """Correct every dtype that a config states; say whether anything changed."""
    changed = False
    sections = [config, *(value for value in config.values() if isinstance(value, dict))]
    for section in sections:
        for key in ("dtype", "torch_dtype"):
            if section.get(key) not in (None, dtype):
                section[key] = dtype
                changed = True
    if config.get("dtype") is None and config.get("torch_dtype") is None and dtype != "float32":
        config["dtype"] = dtype
        changed = True
    return changed


def write_plan_files(path: Path, plan: Plan, tensors: PlanTensors) -> Plan:
    """Write a plan and, beside it, the tensors that it needs; both whole or not at all.

    Args:
        path: The JSON file.
        plan: The plan.
        tensors: Scores and learned coefficients.

    Returns:
        The plan as written, naming the tensors' file by hash.

    Raises:
        OutputError: If a file cannot be written.
    """
    with staged_files(path) as folder:
        if tensors:
            from safetensors.torch import save_file

            file = folder / tensors_path(path).name
            save_file(tensors.to_file(), file)
            file.chmod(0o666 & ~_umask())  # save_file makes it readable for its owner alone
            plan = plan.model_copy(update={"tensors": TensorsRecord(file=file.name, sha256=sha256_of(file))})
        (folder / path.name).write_text(plan.to_json(), encoding="utf-8")
    return plan


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
