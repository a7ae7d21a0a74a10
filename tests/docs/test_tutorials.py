"""The tutorials' commands, run as they stand with small models and a few steps of learning."""

import shlex
import shutil
from pathlib import Path

import pytest
import torch

from tests.checkpoint.test_kinds import adapter_of
from tests.support import tiny_open_clip
from tests.support.command import clipmerge
from tests.support.pages import lines, programs
from tests.support.quick import shorten_recipes
from tests.support.tiny_clip import Folders, save_captions

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"
#: Beginning of the error that a page shows on purpose.
SHOWN_ERROR = "error: zershot: no such folder or file"


def commands(tutorial: str) -> list[list[str]]:
    """The words of every command that needs neither the network nor the repository."""
    return [
        shlex.split(line.removeprefix("$ "), comments=True)
        for line in lines(TUTORIALS / f"{tutorial}.md", "", "sh")
        if line.startswith(("clipmerge ", "$ clipmerge ", "cp "))
    ]


def save_open_clip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model under the name of the architecture, and a checkpoint of its training."""
    import open_clip

    config = tiny_open_clip.model_config()
    config["text_cfg"]["vocab_size"] = 49408  # the architecture's own tokenizer
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", config)
    model = open_clip.create_model("ViT-B-32")
    torch.save(model.state_dict(), folder / "ViT-B-32.pt")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape))
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    (folder / "logs/cars/checkpoints").mkdir(parents=True)
    torch.save({"epoch": 3, "state_dict": state}, folder / "logs/cars/checkpoints/epoch_3.pt")


@pytest.mark.slow
@pytest.mark.uncounted
@pytest.mark.draws
@pytest.mark.filterwarnings("default")  # as for a user
@pytest.mark.parametrize("tutorial", ["first-merge", "captions", "lora", "openclip"])
def test_a_tutorial_runs(
    tutorial: str,
    pair: Folders,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shorten_recipes(monkeypatch)
    if tutorial == "first-merge":  # which makes everything itself
        few = {"train": 1457, "calibration": 240, "test": 100}
        monkeypatch.setattr("clipmerge.demo.data._SPLITS", few)
    else:
        shutil.copytree(images, "val")
    if tutorial == "captions":
        for name, source in zip(("zeroshot", "finetuned"), pair, strict=True):
            shutil.copytree(source, name)
        for seed, name in enumerate(("catalogue", "elsewhere")):
            save_captions(tmp_path / name, seed=seed)
    elif tutorial == "lora":
        shutil.copytree(pair[0], "base")
        adapter_of(pair[0], tmp_path / "lora")
    elif tutorial == "openclip":
        save_open_clip(tmp_path, monkeypatch)
    for program, *words in commands(tutorial):
        if program == "cp":
            *sources, folder = words[1:]
            for source in sources:
                place = Path(folder) / Path(source).name if len(sources) > 1 else Path(folder)
                shutil.copytree(source, place)
        else:
            judges = words[0] in ("merge", "evaluate", "sweep")
            guesses = judges and tutorial != "first-merge"  # random weights
            ended = clipmerge(*words, *(["--allow", "at-chance"] if guesses else []))
            assert ended.code == 0 or ended.err.startswith(SHOWN_ERROR), ended.err
    if tutorial == "openclip":
        exec(programs(TUTORIALS / "openclip.md")[0], {})


def test_every_tutorial_is_run() -> None:
    names = {page.stem for page in TUTORIALS.glob("*.md")}
    assert names == {
        "first-merge",
        "captions",
        "lora",
        "openclip",
        "publish",
    }  # test_readme: publish
