"""Data sets laid out as CLIP_benchmark's are: tar shards with texts beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.image_files import png, save_tar

TEMPLATES = ("a bad photo of a {c}.", "a photo of the {c}.")


def webdataset(
    folder: Path,
    shards: Sequence[Sequence[object]],
    ending: str,
    texts: Mapping[str, Sequence[str]],
) -> dict[str, bytes]:
    """Files of a set: image k is ``png(k)``, and the k-th of all shards lies beside it; texts have
    lines.
    """
    files = {name: "\n".join(lines).encode() for name, lines in texts.items()}
    files["test/nshards.txt"] = str(len(shards)).encode()
    key = 0
    for number, shard in enumerate(shards):
        members = {}
        for beside in shard:
            members |= {f"{key:07d}.png": png(key), f"{key:07d}.{ending}": str(beside).encode()}
            key += 1
        file = save_tar(folder / "test" / f"{number}.tar", members)
        files[f"test/{number}.tar"] = file.read_bytes()
    return files


def classification_set(
    folder: Path, labels: Sequence[int], names: Sequence[str]
) -> dict[str, bytes]:
    """A set for classification, in two shards."""
    texts = {"classnames.txt": names, "zeroshot_classification_templates.txt": TEMPLATES}
    return webdataset(folder, [labels[:5], labels[5:]], "cls", texts)


def save_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Write a repository's files to a folder, as a download of it has them."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
