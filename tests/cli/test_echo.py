"""Names from strangers are shown as text; the errors of the system are one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clipmerge.errors import CheckpointError, printable
from tests.support.command import clipmerge, done, refused
from tests.support.image_files import png
from tests.support.raw_safetensors import entry, raw_file

EVIL = "\x1b]0;owned\x07\x1b[31m\x9b2J\u202eevil"


def is_plain(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


def test_a_text_is_made_printable() -> None:
    assert printable(EVIL) == r"\x1b]0;owned\x07\x1b[31m\x9b2J\u202eevil"
    assert printable("a\nb\tc\udcff\u2028") == r"a b c\xff "
    assert printable("\u242e\U000e0041\ue000") == r"\u242e\U000e0041\ue000"  # unassigned, invisible, private
    assert printable("\N{WOMAN}\u200d\N{ROCKET} 猫\u3000犬") == "\N{WOMAN}\u200d\N{ROCKET} 猫\u3000犬"
    assert printable("x" * 20, limit=8) == "xxxx ... xxxx"
    assert str(CheckpointError(f"{EVIL}\n")) == printable(EVIL) + " "


def test_names_of_tensors(tmp_path: Path) -> None:
    raw_file(tmp_path / "model.safetensors", {EVIL: entry(dtype="F8_E4M3")}, bytes(8))
    assert is_plain(refused(clipmerge("inspect", tmp_path)))
    raw_file(tmp_path / "model.safetensors", {f"visual.{EVIL}": entry()}, bytes(8))
    outcome = clipmerge("inspect", tmp_path)
    assert is_plain(outcome.out + outcome.err)


def test_paths_notes_and_tables(copies: tuple[Path, Path]) -> None:
    zeroshot, finetuned = copies
    strange = finetuned.rename(finetuned.parent / EVIL)
    (strange / f"{EVIL}.txt").write_text("")
    outcome = done("merge", zeroshot, strange, "--recipe", "wise-ft", "--output", zeroshot.parent / f"out{EVIL}")
    assert is_plain(outcome.out)
    assert is_plain(outcome.err)
    assert r"\x1b[31m" in outcome.err
    assert r"\x1b[31m" in outcome.out


def test_a_name_is_neither_markup_nor_emoji(pair: tuple[Path, Path], images: Path, tmp_path: Path) -> None:
    ended = clipmerge("evaluate", pair[0], "--data", f"[red]a:key:b[/red]{100 * 'x'}={images}")
    assert "[red]a:key:b[/red]" in ended.out
    assert ended.out.count("x") == 100
    folder = shutil.copytree(images, tmp_path / "a:key:b")
    (next(folder.iterdir()) / "notes.txt").write_text("")
    ended = clipmerge("evaluate", pair[0], "--data", f"x={folder}")
    assert f"note: {folder}: left out" in ended.err


def test_folders_of_classes(copies: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "photos" / EVIL).mkdir(parents=True)
    (tmp_path / "photos" / EVIL / "1.png").write_bytes(png(0)[:40])
    outcome = clipmerge("evaluate", copies[0], "--data", tmp_path / "photos")
    assert is_plain(outcome.err)


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="such names are not allowed there")
def test_paths_that_are_not_utf8(copies: tuple[Path, Path], tmp_path: Path) -> None:
    zeroshot, finetuned = copies
    strange, output = (tmp_path / os.fsdecode(name) for name in (b"\xff\xfe", b"out\xff"))
    finetuned.rename(strange)
    for flags in ((), ("--overwrite",)):
        outcome = done("merge", zeroshot, strange, "--recipe", "wise-ft", "--output", output, *flags)
    assert "\\udcff" in (output / "clipmerge.json").read_text()
    assert "\\udcff" in (output / "report.html").read_text()
    for command, code in ((("report", output), 0), (("inspect", strange), 0), (("inspect", f"{strange}-not"), 1)):
        outcome = clipmerge(*command)
        assert outcome.code == code, outcome.err
        assert is_plain(outcome.out + outcome.err)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("inspect model", "error: "),
        ("merge {0} {1} --recipe wise-ft --output out", "error: the working folder is gone or cannot be read ("),
    ],
)
def test_a_working_folder_that_is_gone(pair: tuple[Path, Path], tmp_path: Path, command: str, told: str) -> None:
    command = command.format(*pair)
    script = f"cd {tmp_path}/x && rmdir {tmp_path}/x && exec {sys.executable} -m clipmerge {command}"
    (tmp_path / "x").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False, env=environment)
    lines = ended.stderr.strip().splitlines()
    assert ended.returncode == 1
    assert lines[-1].startswith(told)
    assert not any("DEBUG" in line or "unexpectedly" in line for line in lines)
