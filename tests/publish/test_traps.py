"""A merge among traps, pushed: no byte of them arrives, wherever the server looks."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from clipmerge.errors import CheckpointError
from clipmerge.files import side_files
from clipmerge.files.side_files import copy_side_file
from tests.support.command import clipmerge
from tests.support.hub_double import FakeHub, serving

# Stands in every name, path and content that is nobody's business.
SECRET = "Zq9Secret"
_SURROUNDED = re.compile(rb".{0,80}(?:Zq9Secret|PRIVATE KEY).{0,80}", re.IGNORECASE)
ODD = f'{SECRET} it\'s "quoted" & <b>, a\tb; $HOME'


PLACES = {
    "_name_or_path": f"{SECRET}/x",
    "data": f"/home/{SECRET}/images",
    "inner": [{"cache_dir": f"C:\\{SECRET}\\cache", "log": f"~/{SECRET}", "at": f"file:///{SECRET}"}],
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving(tmp_path, monkeypatch) as server:
        yield server


def add_traps(folder: Path, elsewhere: Path) -> None:
    """Put traps beside the weights."""
    (elsewhere / "id_rsa").write_text(f"PRIVATE KEY {SECRET}")
    (folder / "id_rsa.safetensors").symlink_to(elsewhere / "id_rsa")
    (folder / "keys").symlink_to(elsewhere)
    for name in (".env", "credentials.json", "notes.txt", f"{SECRET}.json", "training_args.bin", "a\nb\x1b[31m.json"):
        (folder / name).write_text(f'{{"token": "hf_{SECRET}{SECRET}"}}')
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text(SECRET)


def add_more_traps(folder: Path, elsewhere: Path) -> None:
    """Put links in the place of files that are copied, and paths into the configuration and the weights' metadata."""
    add_traps(folder, elsewhere)
    for name in ("config.json", "tokenizer_config.json"):
        data = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(data | PLACES))
    for name in ("LICENSE", "merges.txt", "NOTICE"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(elsewhere / "id_rsa")
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt", "path": f"/home/{SECRET}"})


def test_no_byte_of_the_traps_arrives(
    hub: FakeHub, pair: tuple[Path, Path], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / ODD
    elsewhere = home / "elsewhere"
    elsewhere.mkdir(parents=True)
    zeroshot, finetuned = (Path(shutil.copytree(folder, home / folder.name)) for folder in pair)
    add_more_traps(zeroshot, elsewhere)
    add_more_traps(finetuned, elsewhere)
    photos = shutil.copytree(images, home / "photos & more")
    (home / "classes.txt").write_text("bird\ncat\ndog\n")
    monkeypatch.chdir(home)
    data = ("--data", photos, "--classes", home / "classes.txt")
    merged = clipmerge("merge", zeroshot, finetuned, "-r", "wise-ft", *data, "-o", "out", "--push", "alice/robust")
    assert merged.code == 0, merged.err
    assert arrived(hub, tmp_path, "alice/robust") == []
    add_traps(home / "out", elsewhere)
    pushed = clipmerge("push", "out", "alice/again", "--message", "Merge")
    assert pushed.code == 0, pushed.err
    assert arrived(hub, tmp_path, "alice/again") == []


def arrived(hub: FakeHub, folder: Path, repo_id: str) -> list[str]:
    """Names of whatever the server holds that has the secret in it; nothing else may be where uploads are kept."""
    stored = [path for path in (folder / "hub-store").rglob("*") if path.is_file()]
    held = {str(path): path.read_bytes() for path in stored} | dict(hub.blobs)
    titles = [commit.title for repo in hub.repos.values() for commit in repo.commits.values()]
    held["titles, requests and names of files"] = json.dumps([titles, hub.log, [*hub.files(repo_id)]]).encode()
    assert len(hub.files(repo_id)) > 5
    return [f"{name}: {found[0]!r}" for name, content in held.items() if (found := _SURROUNDED.search(content))]


def test_a_file_to_be_copied_is_bounded(tmp_path: Path) -> None:
    with (tmp_path / "merges.txt").open("wb") as file:
        file.truncate(side_files.LARGEST_SIDE_FILE + 1)
    with pytest.raises(CheckpointError, match=r"merges.txt: cannot be read \(larger than 256 MiB\)"):
        copy_side_file(tmp_path / "merges.txt", tmp_path / "copy.txt")
    assert not (tmp_path / "copy.txt").exists()
