"""The table of mistakes: each is made, and its message and exit code are those of the
page."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clipmerge
from tests.support.command import clipmerge as command_line
from tests.support.tiny_clip import Folders, save_captions, save_images, save_pair

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "troubleshoot.md"
#: Words that the tiny models' tokenizer can tell apart.
KNOWN = ("cat", "dog", "bird")
#: The command that makes each mistake, in the folder `place`.
COMMANDS = {
    "checkpoints that do not belong together": "merge zeroshot other/zeroshot -r wise-ft -o out",
    "one checkpoint given twice": "merge zeroshot zeroshot -r wise-ft -o out",
    "a copy of the zero-shot model as fine-tuned": "merge zeroshot copy -r wise-ft -o out",
    "a folder without weights": "merge zeroshot empty -r wise-ft -o out",
    "a file that is not a checkpoint": "merge zeroshot notes.txt -r wise-ft -o out",
    "another architecture": "merge zeroshot shallow/zeroshot -r wise-ft -o out",
    "a misspelt recipe": "merge zeroshot finetuned -r wiseft -o out",
    "a misspelt option of a recipe": "merge zeroshot finetuned -r wise-ft --set method.alhpa=0.4 -o out",
    "an option without its section": "merge zeroshot finetuned -r wise-ft --set alpha=0.4 -o out",
    "an alpha that is not a number": "merge zeroshot finetuned -r wise-ft --alpha half -o out",
    "no images for a recipe that learns": "merge zeroshot finetuned -r auto -o out",
    "a folder of yours as the output": "merge zeroshot finetuned -r wise-ft -o thesis",
    "no output": "merge zeroshot finetuned -r wise-ft",
    "images that are not there": "merge zeroshot finetuned -r wise-ft --data nowhere -o out",
    "a folder without images": "merge zeroshot finetuned -r wise-ft --data empty -o out",
    "a single class": "merge zeroshot finetuned -r wise-ft --data one -o out",
    "folders named 0, 1, 2 ...": "merge zeroshot finetuned -r wise-ft --data numbers -o out",
    "folders named by codes": "merge zeroshot finetuned -r wise-ft --data codes -o out",
    "folders of splits in place of classes": "merge zeroshot finetuned -r wise-ft --data splits -o out",
    "numbers from 0 to 1 saved as whole numbers": "merge zeroshot finetuned -r wise-ft --data flat -o out",
    "the same image again and again": "merge zeroshot finetuned -r wise-ft --data same -o out",
    "too few class names": "merge zeroshot finetuned -r wise-ft --data images --classes two.txt -o out",
    "class names in another order than the folders": "merge zeroshot finetuned -r wise-ft --data images --classes order.txt -o out",
    "a template without `{}`": "merge zeroshot finetuned -r wise-ft --data images --template photo -o out",
    "one image to learn from": "merge zeroshot finetuned --data few --images 1 -o out",
    "a handful of images": "merge zeroshot finetuned -r wise-ft --data few -o out",
    "an empty class folder": "merge zeroshot finetuned -r wise-ft --data hollow -o out",
    "a column that is not there": "merge zeroshot finetuned -r wise-ft --data table.csv --caption-column caption -o out",
    "an unreadable image": "evaluate zeroshot --data broken",
    "an image without a caption": "merge zeroshot finetuned -r wise-ft --data blank -o out",
    "a row of a table whose file is missing": "merge zeroshot finetuned -r wise-ft --data table.csv -o out",
    "an `--ood` source that is not there": "merge zeroshot finetuned -r auto --data images --ood other=nowhere -o out",
    "a misspelt check": "merge zeroshot finetuned -r wise-ft --allow swaped -o out",
    "an unknown device": "merge zeroshot finetuned -r wise-ft --data images --device gpu -o out",
    "a sweep without images of a shift": "sweep zeroshot finetuned --id val=images -o out",
    "two sources of one name": "sweep zeroshot finetuned --id a=images --ood a=images -o out",
    "a file that is not a plan": "apply notes.txt -o out",
    "a plan for other weights": "apply plan.json -o out",
    "a misspelt command": "mrege zeroshot finetuned",
    "a misspelt flag": "merge zeroshot finetuned -r wise-ft --ouput out",
}


def table() -> dict[str, tuple[str, int]]:
    """What is said, and the exit code, by mistake."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {mistake: (re.findall(r"`(.+?)`", said)[0], int(code)) for mistake, said, code in rows}


@pytest.fixture(scope="module")
def place(pair: Folders, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, images and files to make mistakes with."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name, source in (("zeroshot", pair[0]), ("finetuned", pair[1]), ("images", images)):
        (folder / name).symlink_to(source)
    shutil.copytree(pair[0], folder / "copy")
    save_pair(folder / "other", seed=5)
    save_pair(folder / "shallow", blocks=2)
    (folder / "empty").mkdir()
    (folder / "thesis").mkdir()
    blank = save_captions(folder / "blank", each=2)
    hollow = save_images(folder / "hollow", each=2)
    (hollow / "empty").mkdir()
    broken = save_images(folder / "broken", each=2)
    next(iter(sorted(broken.glob("*/*.png")))).write_bytes(b"not an image")
    rows = [f"blank/{number:04}.png,{KNOWN[number % 3]} {number}" for number in range(7)]
    texts = {
        folder / "thesis" / "thesis.txt": "mine",
        folder / "notes.txt": "hello",
        folder / "two.txt": "bird\ncat\n",
        folder / "order.txt": "bird\ndog\na kitten\n",
        folder / "table.csv": "\n".join(["filepath,title", *rows]),
        blank / "0000.txt": " ",
    }
    for file, text in texts.items():
        file.write_text(text)
    for name, classes, each in (
        ("one", ["cat"], 4),
        ("few", ["cat", "dog"], 2),
        ("numbers", ["0", "1", "2"], 2),
        ("splits", ["test", "train"], 20),
        ("codes", [f"class_ci_{code}" for code in "abcdef"], 20),
    ):
        save_images(folder / name, each=each, classes=tuple(classes))
    for name in ("flat", "same"):
        for number in range(8):
            path = folder / name / ("cat", "dog")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(0).integers(0, 2 if name == "flat" else 256, (9, 9, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    plan = clipmerge.plan(*pair, "wise-ft", progress=clipmerge.Progress())
    other = plan.finetuned[0].replace(source="other/zeroshot")
    plan.replace(finetuned=(other,)).save(folder / "plan.json")
    return folder


def test_the_page_has_the_mistakes_that_are_made() -> None:
    assert table().keys() == COMMANDS.keys()
    assert len(COMMANDS) >= 30


@pytest.mark.parametrize("mistake", COMMANDS)
def test_a_mistake_is_met_as_the_page_says(
    place: Path, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    said, code = table()[mistake]
    ended = command_line(*COMMANDS[mistake].split(" "))
    assert ended.code == code
    words = " ".join(f"{ended.out} {ended.err}".split()).replace("`", "")
    assert said in words
    assert Path("out").exists() == (code == 0 and "-o out" in COMMANDS[mistake])
    shutil.rmtree("out", ignore_errors=True)
