"""The table of mistakes: each is made, and its message and exit code are those of the
page."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.command import clipmerge
from tests.support.tiny_clip import Folders, save_captions, save_images, save_pair

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "troubleshoot.md"
#: Words that the tiny models' tokenizer can tell apart.
KNOWN = ("cat", "dog", "bird")
#: The command that makes each mistake.
COMMANDS = {
    "checkpoints that do not belong together": "merge {z} {other} -r wise-ft -o out",
    "one checkpoint given twice": "merge {z} {z} -r wise-ft -o out",
    "a copy of the zero-shot model as fine-tuned": "merge {z} {copy} -r wise-ft -o out",
    "a folder without weights": "merge {z} {empty} -r wise-ft -o out",
    "a file that is not a checkpoint": "merge {z} {text} -r wise-ft -o out",
    "another architecture": "merge {z} {shallow} -r wise-ft -o out",
    "a misspelt recipe": "merge {z} {f} -r wiseft -o out",
    "a misspelt option of a recipe": "merge {z} {f} -r wise-ft --set method.alhpa=0.4 -o out",
    "an option without its section": "merge {z} {f} -r wise-ft --set alpha=0.4 -o out",
    "an alpha that is not a number": "merge {z} {f} -r wise-ft --alpha half -o out",
    "no images for a recipe that learns": "merge {z} {f} -r auto -o out",
    "a folder of yours as the output": "merge {z} {f} -r wise-ft -o {thesis}",
    "no output": "merge {z} {f} -r wise-ft",
    "images that are not there": "merge {z} {f} -r wise-ft --data nowhere -o out",
    "a folder without images": "merge {z} {f} -r wise-ft --data {empty} -o out",
    "a single class": "merge {z} {f} -r wise-ft --data {one} -o out",
    "folders named 0, 1, 2 ...": "merge {z} {f} -r wise-ft --data {numbers} -o out",
    "folders named by codes": "merge {z} {f} -r wise-ft --data {codes} -o out",
    "folders of splits in place of classes": "merge {z} {f} -r wise-ft --data {splits} -o out",
    "numbers from 0 to 1 saved as whole numbers": "merge {z} {f} -r wise-ft --data {flat} -o out",
    "the same image again and again": "merge {z} {f} -r wise-ft --data {same} -o out",
    "too few class names": "merge {z} {f} -r wise-ft --data {images} --classes {two} -o out",
    "class names in another order than the folders": "merge {z} {f} -r wise-ft --data {images} --classes {order} -o out",
    "a template without `{}`": "merge {z} {f} -r wise-ft --data {images} --template photo -o out",
    "one image to learn from": "merge {z} {f} --data {few} --images 1 -o out",
    "a handful of images": "merge {z} {f} -r wise-ft --data {few} -o out",
    "an empty class folder": "merge {z} {f} -r wise-ft --data {hollow} -o out",
    "a column that is not there": "merge {z} {f} -r wise-ft --data {table} --caption-column caption -o out",
    "an unreadable image": "evaluate {z} --data {broken}",
    "an image without a caption": "merge {z} {f} -r wise-ft --data {blank} -o out",
    "a row of a table whose file is missing": "merge {z} {f} -r wise-ft --data {table} -o out",
    "an `--ood` source that is not there": "merge {z} {f} -r auto --data {images} --ood other=nowhere -o out",
    "a misspelt check": "merge {z} {f} -r wise-ft --allow swaped -o out",
    "an unknown device": "merge {z} {f} -r wise-ft --data {images} --device gpu -o out",
    "a sweep without images of a shift": "sweep {z} {f} --id val={images} -o out",
    "two sources of one name": "sweep {z} {f} --id a={images} --ood a={images} -o out",
    "a file that is not a plan": "apply {text} -o out",
    "a plan for other weights": "apply {plan} -o out",
    "a misspelt command": "mrege {z} {f}",
    "a misspelt flag": "merge {z} {f} -r wise-ft --ouput out",
}


def table() -> dict[str, tuple[str, int]]:
    """What is said, and the exit code, by mistake."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {mistake: (re.findall(r"`(.+?)`", said)[0], int(code)) for mistake, said, code in rows}


@pytest.fixture(scope="module")
def places(
    pair: Folders, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, object]:
    """Models, images and files to make mistakes with."""
    folder = tmp_path_factory.mktemp("mistakes")
    other, _ = save_pair(folder / "other", seed=5)
    for name in ("empty", "thesis"):
        (folder / name).mkdir()
    texts = {
        "thesis/thesis.txt": "mine",
        "notes.txt": "hello",
        "two.txt": "bird\ncat\n",
        "order.txt": "bird\ndog\na kitten\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    blank = save_captions(folder / "blank", each=2)
    (blank / "0000.txt").write_text(" ")
    hollow = save_images(folder / "hollow", each=2)
    (hollow / "empty").mkdir()
    broken = save_images(folder / "broken", each=2)
    next(iter(sorted(broken.glob("*/*.png")))).write_bytes(b"not an image")
    rows = [f"blank/{number:04}.png,{KNOWN[number % 3]} {number}" for number in range(7)]
    (folder / "table.csv").write_text("\n".join(["filepath,title", *rows]))
    for name in ("flat", "same"):
        for number in range(8):
            path = folder / name / ("cat", "dog")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(0).integers(0, 2 if name == "flat" else 256, (9, 9, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    clipmerge("plan", *pair, "-r", "wise-ft", "-o", folder / "plan.json")
    plan = json.loads((folder / "plan.json").read_text())
    plan["finetuned"][0]["source"] = str(other)
    (folder / "plan.json").write_text(json.dumps(plan))
    return {
        "z": pair[0],
        "f": pair[1],
        "other": other,
        "shallow": save_pair(folder / "shallow", blocks=2)[0],
        "copy": shutil.copytree(pair[0], folder / "copy"),
        "empty": folder / "empty",
        "thesis": folder / "thesis",
        "text": folder / "notes.txt",
        "two": folder / "two.txt",
        "order": folder / "order.txt",
        "plan": folder / "plan.json",
        "images": images,
        "one": save_images(folder / "one", each=4, classes=("cat",)),
        "blank": blank,
        "broken": broken,
        "hollow": hollow,
        "table": folder / "table.csv",
        "few": save_images(folder / "few", each=2, classes=("cat", "dog")),
        "numbers": save_images(folder / "numbers", each=2, classes=("0", "1", "2")),
        "flat": folder / "flat",
        "same": folder / "same",
        "splits": save_images(folder / "splits", each=20, classes=("test", "train")),
        "codes": save_images(
            folder / "codes", each=20, classes=tuple(f"class_ci_{code}" for code in "abcdef")
        ),
    }


def test_the_page_has_the_mistakes_that_are_made() -> None:
    assert table().keys() == COMMANDS.keys()
    assert len(COMMANDS) >= 30


@pytest.mark.parametrize("mistake", COMMANDS)
def test_a_mistake_is_met_as_the_page_says(
    places: dict[str, object], mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said, code = table()[mistake]
    ended = clipmerge(*COMMANDS[mistake].format(**places).split(" "))
    assert ended.code == code
    words = " ".join(f"{ended.out} {ended.err}".split()).replace("`", "")
    assert said in words
    assert (tmp_path / "out").exists() == (code == 0 and "-o out" in COMMANDS[mistake])
