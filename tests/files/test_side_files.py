"""Only known files are copied with the weights, without what belongs to the machine they lay on."""

import json
from pathlib import Path

from clipmerge.files.side_files import copy_side_file
from tests.support.command import done
from tests.support.tiny_clip import Folders


def test_private_fields_go_and_everything_else_keeps_its_bytes(tmp_path: Path) -> None:
    held = {
        "_name_or_path": "/home/me/secret project",
        "text_config": {"name_or_path": "a/b/c", "vocab_size": 3, "list": [{"vocab_file": "/x"}]},
        "auto_map": {"AutoModel": "evil/x.Y"},
        "hub_token": "hf_secret",
    }
    (tmp_path / "config.json").write_text(json.dumps(held), encoding="utf-8-sig")
    copy_side_file(tmp_path / "config.json", tmp_path / "tokenizer_config.json")
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {
        "text_config": {"vocab_size": 3, "list": [{}]}
    }
    for name, text in (("vocab.json", '{ "token":1}'), ("preprocessor_config.json", '{ "a":1}')):
        (tmp_path / "source").write_text(text)
        copy_side_file(tmp_path / "source", tmp_path / name)
        assert (tmp_path / name).read_text() == text


def test_a_merge_copies_known_files_alone_and_follows_links(copies: Folders) -> None:
    zeroshot, finetuned = copies
    (finetuned.parent / "words").write_bytes((finetuned / "tokenizer.json").read_bytes())
    (finetuned / "tokenizer.json").unlink()
    (finetuned / "tokenizer.json").symlink_to(finetuned.parent / "words")
    (finetuned / "credentials.json").write_text('{"token": "hf_secretsecretsecret"}')
    output = finetuned.parent / "out"
    done("merge", zeroshot, finetuned, "--recipe", "wise-ft", "--output", output)
    assert not (output / "tokenizer.json").is_symlink()
    assert (output / "tokenizer.json").read_bytes() == (finetuned.parent / "words").read_bytes()
    assert not (output / "credentials.json").exists()
