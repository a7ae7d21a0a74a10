"""Only known, regular files of the folder are copied with the weights: no link, no secret, no local
path."""

import json
import os
import shutil
from pathlib import Path

import pytest

from clipmerge.errors import CheckpointError
from clipmerge.files import side_files
from clipmerge.files.side_files import (
    copy_side_file,
    find_inside,
    read_side_json,
    side_file_bytes,
    without_private_fields,
)
from tests.support.command import done

SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "home" / ".ssh" / "id_ed25519"
    path.parent.mkdir(parents=True)
    path.write_text(SECRET)
    return path


def test_what_is_a_file_of_the_folder(tmp_path: Path, secret: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "vocab.txt").write_text("a")
    (folder / "merges.txt").symlink_to("vocab.txt")
    assert (
        find_inside(folder, "vocab.txt")
        == find_inside(folder, "merges.txt")
        == (folder / "vocab.txt").resolve()
    )
    (folder / "inner").symlink_to(secret.parent)
    for name, target in (("by-file", secret), ("by-folder", Path("inner") / secret.name)):
        (folder / name).symlink_to(target)
        with pytest.raises(CheckpointError, match=rf"{name}: is a link out of its folder"):
            side_files.require_inside(folder, name)
    (folder / "a-circle").symlink_to("of-links")
    (folder / "of-links").symlink_to("a-circle")
    os.mkfifo(folder / "LICENSE")
    for name in (
        "by-file",
        "by-folder",
        "a-circle",
        "of-links",
        "LICENSE",
        "nothing",
        "a" * 300,
        "a\0b",
    ):
        assert find_inside(folder, name) is None


def test_a_snapshot_of_the_hubs_cache_links_to_its_own_blobs(tmp_path: Path, secret: Path) -> None:
    repository = tmp_path / "models--acme--clip"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "b1").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/b1")
    (snapshot / "vocab.txt").symlink_to(secret)
    assert find_inside(snapshot, "config.json") == (repository / "blobs" / "b1").resolve()
    assert find_inside(snapshot, "vocab.txt") is None
    (snapshot / "wds").mkdir()
    (snapshot / "wds" / "nshards.txt").symlink_to("../../../blobs/b1")
    (snapshot / "wds" / "classnames.txt").symlink_to(secret)
    assert find_inside(snapshot / "wds", "nshards.txt") is not None
    assert find_inside(snapshot / "wds", "classnames.txt") is None
    shutil.rmtree(repository / "blobs")
    (repository / "blobs").symlink_to(secret.parent)
    (snapshot / "merges.txt").symlink_to(f"../../blobs/{secret.name}")
    assert find_inside(snapshot, "merges.txt") is None


def test_places_on_the_machine_go_and_everything_else_keeps_its_bytes(tmp_path: Path) -> None:
    held = {
        "_name_or_path": "/home/me/secret project",
        "text_config": {"name_or_path": "a/b/c", "vocab_size": 3},
    }
    (tmp_path / "config.json").write_text(json.dumps(held))
    (tmp_path / "vocab.json").write_text('{ "a":1}')
    copy_side_file(tmp_path / "config.json", tmp_path / "tokenizer_config.json")
    copy_side_file(tmp_path / "vocab.json", tmp_path / "added_tokens.json")
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {
        "text_config": {"vocab_size": 3}
    }
    assert (tmp_path / "added_tokens.json").read_text() == '{ "a":1}'
    assert without_private_fields([{"vocab_file": 1}]) == [{}]
    paths = ("/home/me/x", "~/x", "C:\\x", "D:/x", "\\\\server\\x", "file:///x", "~me/x/y")
    assert [without_private_fields({"any": [{"name": path}]}) for path in paths] == [
        {"any": [{}]}
    ] * len(paths)
    texts = ("/", "</s>", "https://a.b/c", "org/name/x", "{{/x/}}", "/think", float("nan"))
    kept = dict(zip("abcdefg", texts, strict=True))
    assert without_private_fields(kept) == kept
    copy_side_file(tmp_path / "vocab.json", tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "text",
    [
        '\ufeff{"_name_or_path": "/home/me/x", "a": 1}',
        '{"a": "/home/me/x", "a": 1}',
        '{"a": 1, "b": [["see /home/me/x"]]}',
        '{"a": 1, "command": "python /home/me/x.py"}',
        '{"a": 1, "b": "cache=\\"/home/me/x\\""}',
        '{"a": 1, "/home/me/x": 2}',
        '{"a": 1, "token": "hf_abcdefghijklmnopqrstuvwxyz"}',
        '{"a": 1, "auto_map": {"AutoModel": "evil/home--me.X"}}',
        '{"a": 1, "b": "../home/x"}',
        '{"a": 1, "b": "see:/srv/home"}',
        '{"a": 1, "b": "$HOME/home/x", "c": "%USERPROFILE%\\\\home", "d": "~\\\\home"}',
        '{"a": 1, "use_auth_token": "home", "password": "home"}',
        '{"a": 1, "word": "\\ud800", "name_or_path": "/home/me/x"}',
    ],
)
def test_no_way_to_write_a_path_a_token_or_code_is_copied(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(text, encoding="utf-8")
    published = side_file_bytes(
        tmp_path / "tokenizer_config.json", "tokenizer_config.json"
    ).decode()
    assert json.loads(published)["a"] == 1
    assert not any(private in published for private in ("home", "hf_", "evil"))


def test_words_that_look_like_paths_stay_words(tmp_path: Path) -> None:
    text = (
        '{"model": {"vocab": [["/usr/", 0]], "merges": ["/a /b/"]}, "added_tokens": [{"content":'
        ' "<s>"}]}'
    )
    (tmp_path / "tokenizer.json").write_text(text)
    assert side_file_bytes(tmp_path / "tokenizer.json", "tokenizer.json").decode() == text
    assert without_private_fields({"chat_template": "{{ '/x/y' }} /a/b"}) == {
        "chat_template": "{{ '/x/y' }} /a/b"
    }


def test_the_name_of_a_text_tower_is_copied_and_not_published(tmp_path: Path) -> None:
    """OpenCLIP cannot build the tower without it, and a folder's path is nobody else's business."""
    file = tmp_path / "open_clip_config.json"
    file.write_text(
        '{"model_cfg": {"text_cfg": {"hf_model_name": "/home/me/a", "hf_tokenizer_name":'
        ' "/home/me/t"}}}'
    )
    copy_side_file(file, tmp_path / "copy.json")
    copied = json.loads((tmp_path / "copy.json").read_text())
    assert copied["model_cfg"]["text_cfg"] == {"hf_model_name": "/home/me/a"}
    assert json.loads(side_file_bytes(file, file.name)) == {"model_cfg": {"text_cfg": {}}}


def test_a_merge_takes_no_link_no_secret_and_no_local_path(
    copies: tuple[Path, Path], secret: Path
) -> None:
    zeroshot, finetuned = copies
    (finetuned / "LICENSE").symlink_to(secret)
    (finetuned / "credentials.json").write_text('{"token": "hf_secretsecretsecret"}')
    (finetuned / "notes.txt").write_text("ask Bob")
    (finetuned / "generation_config.json").write_text("export KEY=/home/me")
    config = json.loads((finetuned / "config.json").read_text())
    config |= {"_name_or_path": "/home/me/private run", "log": "/home/me/log"}
    (finetuned / "config.json").write_text(
        json.dumps(config), encoding="utf-8-sig"
    )  # with a byte order mark
    output = finetuned.parent / "out"
    ended = done("merge", zeroshot, finetuned, "--recipe", "wise-ft", "--output", output)
    assert "credentials.json, notes.txt not copied" in ended.err
    assert "LICENSE not copied" in ended.err
    assert "generation_config.json not copied: it cannot be read as JSON" in ended.err
    written = {path.name for path in output.iterdir()}
    own = {"model.safetensors", "clipmerge.json", "README.md", "report.html", "path.png"}
    assert written <= side_files.SIDE_FILES | own
    assert "generation_config.json" not in written
    held = b"".join(
        path.read_bytes()
        for path in output.iterdir()
        if path.is_file() and path.name != "clipmerge.json"
    )
    assert not any(
        text.encode() in held for text in (SECRET, "hf_secret", "ask Bob", "private run", "KEY=")
    )
    assert not {"_name_or_path", "log"} & json.loads((output / "config.json").read_text()).keys()


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[1]", '{"a": ' + "1" * 5000 + "}", "\udcff", '"\\ud800"']
)
def test_what_is_no_json_object_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(
        CheckpointError, match=r"config.json: (cannot be read as JSON \(|is not a JSON object)"
    ):
        read_side_json(tmp_path, "config.json")
