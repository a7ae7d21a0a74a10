"""Data sets laid out as CLIP_benchmark's are: tar shards with texts beside them."""

from collections.abc import Sequence
from pathlib import Path

from tests.support.image_files import png, save_tar

TEMPLATES = ("a bad photo of a {c}.", "a photo of the {c}.")


def webdataset(
    folder: Path,
    shards: Sequence[Sequence[int]],
    names: Sequence[str],
    *,
    split: str = "test",
    first: int = 0,
    templates: Sequence[str] = TEMPLATES,
) -> dict[str, bytes]:
    """Files of a set for classification: image k is ``png(first + k)``, its label the k-th of all
    shards."""
    texts = {
        "classnames.txt": _lines(names),
        "zeroshot_classification_templates.txt": _lines(templates),
    }
    return texts | _tars(
        folder, [[str(label) for label in shard] for shard in shards], "cls", split, first
    )


def retrieval_set(
    folder: Path, shards: Sequence[Sequence[Sequence[str]]], *, split: str = "test", first: int = 0
) -> dict[str, bytes]:
    """Files of a set for retrieval: image k is ``png(first + k)``, with its captions one per
    line."""
    texts = [["\n".join(captions) for captions in shard] for shard in shards]
    return {"dataset_type.txt": b"retrieval\n", **_tars(folder, texts, "txt", split, first)}


def _tars(
    folder: Path, shards: list[list[str]], ending: str, split: str, first: int
) -> dict[str, bytes]:
    files, key = {f"{split}/nshards.txt": _lines([len(shards)])}, 0
    for number, texts in enumerate(shards):
        members = {}
        for text in texts:
            members |= {f"s{key:07d}.png": png(first + key), f"s{key:07d}.{ending}": text.encode()}
            key += 1
        files[f"{split}/{number}.tar"] = save_tar(
            folder / split / f"{number}.tar", members
        ).read_bytes()
    return files


def save_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Write a repository's files to a folder, as a download of it has them."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def _lines(values: Sequence[object]) -> bytes:
    return "".join(f"{value}\n" for value in values).encode()
