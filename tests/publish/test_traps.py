"""A merge among traps, pushed: no byte of them arrives, wherever the server looks."""

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from clipmerge.errors import CheckpointError
from clipmerge.files import side_files
from clipmerge.files.side_files import SIDE_FILES, copy_side_file
from tests.support.command import clipmerge, done, refused
from tests.support.hub_double import FakeHub
from tests.support.merged_output import save_output
from tests.support.raw_safetensors import edit_json

# Stands in every name, path and content that is nobody's business.
SECRET = "Zq9Secret"
_SURROUNDED = re.compile(rb".{0,80}(?:Zq9Secret|PRIVATE KEY).{0,80}", re.IGNORECASE)
ODD = f'{SECRET} it\'s "quoted" & <b>, a\tb; $HOME'
PLACES = {
    "_name_or_path": f"{SECRET}/x",
    "data": f"/home/{SECRET}/images",
    "inner": [
        {"cache_dir": f"C:\\{SECRET}\\cache", "log": f"~/{SECRET}", "at": f"file:///{SECRET}"}
    ],
}


def add_traps(folder: Path, elsewhere: Path) -> None:
    """Put traps beside the weights."""
    (elsewhere / "id_rsa").write_text(f"PRIVATE KEY {SECRET}")
    (folder / "id_rsa.safetensors").symlink_to(elsewhere / "id_rsa")
    (folder / "keys").symlink_to(elsewhere)
    for name in (
        ".env",
        "credentials.json",
        "notes.txt",
        f"{SECRET}.json",
        "training_args.bin",
        "a\nb\x1b[31m.json",
    ):
        (folder / name).write_text(f'{{"token": "hf_{SECRET}{SECRET}"}}')
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text(SECRET)


def add_more_traps(folder: Path, elsewhere: Path) -> None:
    """Put links in the place of files that are copied, and paths into the configuration and the
    weights' metadata."""
    add_traps(folder, elsewhere)
    for name in ("config.json", "tokenizer_config.json"):
        edit_json(folder / name, **PLACES)
    for name in ("LICENSE", "merges.txt", "NOTICE"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(elsewhere / "id_rsa")
    weights = load_file(folder / "model.safetensors")
    save_file(
        weights, folder / "model.safetensors", metadata={"format": "pt", "path": f"/home/{SECRET}"}
    )


def add_every_side_file(folder: Path) -> None:
    """Put paths and tokens into each file that is copied, existing or not, and a file that is no
    JSON among them."""
    trap = PLACES | {
        "use_auth_token": SECRET,
        "hub_key": f"hf_{SECRET}{SECRET}",
        f"/home/{SECRET}/": 1,
    }
    trap |= {"dir": f"../{SECRET}/x", "seen": f"read from /my own/{SECRET} dir/x"}
    trap |= {"windows": f"D:\\my own\\{SECRET}", "shell": f"$HOME/{SECRET}"}
    whole = {
        "open_clip_config.json": {"model_cfg": trap},
        "chat_template.json": {"chat_template": "x"} | trap,
    }
    whole |= {"tokenizer.json": {}, "vocab.json": {}}
    whole["special_tokens_map.json"] = {key: value for key, value in trap.items() if key != "inner"}
    for name in sorted(SIDE_FILES - {"added_tokens.json"}):
        file = folder / name
        if not name.endswith(".json") or not whole.get(name, trap):
            continue
        held = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(held | whole.get(name, trap)))
    (folder / "video_preprocessor_config.json").write_text(f"{{'path': '/home/{SECRET}'}}")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(trap))
    (folder / "adapter_config.json").write_text(json.dumps(trap))


RECIPE = f"""
# tuned by {SECRET} on /home/{SECRET}/x, hf_{SECRET}{SECRET}
name: "as in /home/my {SECRET} runs/third"
method: {{name: wise-ft, alpha: 0.5}}
overrides:
- {{layers: "vision.*", density: 0.5}}  # {SECRET}
"""


@pytest.mark.slow
def test_no_byte_of_the_traps_arrives(
    hub: FakeHub,
    pair: tuple[Path, Path],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither of those beside the inputs and the output, nor in side files, recipe, prompts,
    command and results."""
    home = tmp_path / ODD
    elsewhere = home / "elsewhere"
    elsewhere.mkdir(parents=True)
    zeroshot, finetuned = (Path(shutil.copytree(folder, home / folder.name)) for folder in pair)
    for folder in (zeroshot, finetuned):
        add_more_traps(folder, elsewhere)
        add_every_side_file(folder)
    photos = Path(shutil.copytree(images, home / "photos & more"))
    (photos / "bird").rename(photos / f"{SECRET} bird")
    (home / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(home)
    flags = (
        "-r",
        home / "recipe.yaml",
        "--data",
        photos,
        "--template",
        "a {}",
        "--template",
        f"{{}} in ~/{SECRET}/x",
    )
    made = ("--set", f"name=hf_{SECRET}{SECRET} x", "-o", home / "out", "--push", "alice/robust")
    # the tokenizers among the side files do not fit, so nothing can be measured
    line = refused(clipmerge("merge", zeroshot, finetuned, *flags, *made), 1)
    assert "cannot be measured, so nothing was written" in line
    done("merge", zeroshot, finetuned, *flags, "--no-verdict", *made)
    assert arrived(hub, tmp_path, "alice/robust") == []
    measured = done("evaluate", "out", "--data", f"mine={photos}", "--json")
    (home / "measured.json").write_text(measured.out)
    out = home / "out"
    add_traps(out, elsewhere)
    for name in (
        "README.md",
        ".gitattributes",
        "report.html",
        "path.png",
        "model.safetensors.index.json",
        "config.py",
    ):
        (out / name).write_text(f"{SECRET} & hf_{SECRET}{SECRET}")
    (out / "notes").mkdir()
    (out / "notes" / "x.json").write_text(SECRET)
    more = ("--evaluation", home / "measured.json", "--message", "Merge")
    pushed = done("push", out, "alice/again", *more)
    assert "alice/again" in pushed.out
    assert arrived(hub, tmp_path, "alice/again") == []
    files = set(hub.files("alice/again"))
    assert {"README.md", "clipmerge.json", "report.html", "model.safetensors"} <= files
    assert (
        not {
            "path.png",
            "config.py",
            "model.safetensors.index.json",
            "credentials.json",
            "notes.txt",
        }
        & files
    )


@pytest.mark.parametrize("secret", [f"hf_{SECRET * 4}", "-----BEGIN OPENSSH PRIVATE KEY-----"])
def test_a_secret_in_a_published_file_is_refused(
    hub: FakeHub, pair: tuple[Path, Path], tmp_path: Path, secret: str
) -> None:
    output = save_output(pair[1], tmp_path / "merged")
    (output / "LICENSE").write_text(f"mine\n{secret}\n")
    line = refused(clipmerge("push", output, "alice/robust"))
    assert "LICENSE: holds a token or a private key. Nothing was published." in line
    assert hub.repos == {}


def arrived(hub: FakeHub, folder: Path, repo_id: str) -> list[str]:
    """Names of whatever the server holds that has the secret in it; nothing else may be where
    uploads are kept."""
    stored = [path for path in (folder / "hub-store").rglob("*") if path.is_file()]
    held = {str(path): path.read_bytes() for path in stored} | dict(hub.blobs)
    titles = [commit.title for repo in hub.repos.values() for commit in repo.commits.values()]
    held["titles, requests and names of files"] = json.dumps(
        [titles, hub.log, [*hub.files(repo_id)]]
    ).encode()
    assert len(hub.files(repo_id)) > 5
    return [
        f"{name}: {found[0]!r}"
        for name, content in held.items()
        if (found := _SURROUNDED.search(content))
    ]


def test_a_file_to_be_copied_is_bounded(tmp_path: Path) -> None:
    with (tmp_path / "merges.txt").open("wb") as file:
        file.truncate(side_files.MAX_SIDE_FILE_BYTES + 1)
    with pytest.raises(
        CheckpointError, match=r"merges.txt: cannot be read \(larger than 256 MiB\)"
    ):
        copy_side_file(tmp_path / "merges.txt", tmp_path / "copy.txt")
    assert not (tmp_path / "copy.txt").exists()
