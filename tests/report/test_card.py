"""The model card: the code that it shows runs, for every kind of output, and its fields fit."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers as hf
import yaml

from clipmerge.planning.record import read_output
from clipmerge.report.pages import model_card
from tests.models.test_heads import of_wise_ft
from tests.support.command import done
from tests.support.merge_records import record, source, verdict
from tests.support.tiny_clip import save_pair
from tests.support.tiny_open_clip import model_config, save_open_clip_pair


def metadata_of(card: str) -> dict[str, object]:
    return dict(yaml.safe_load(card.split("---\n")[1]))


def test_the_cards_metadata_come_from_record_and_verdict() -> None:
    shift = source(0.1, 0.04, name="r", source="hf://datasets/acme/shift", revision="a" * 40)
    made = record(verdict=verdict(ood=(shift,)))
    data = metadata_of(model_card(made, repo_id="alice/robust", license="mit"))
    assert data["base_model"] == ["acme/base"]
    assert data["base_model_relation"] == "merge"
    assert data["license"] == "mit"
    assert data["datasets"] == ["acme/shift"]
    assert data["library_name"] == "transformers"
    results = data["model-index"][0]["results"]  # type: ignore[index]
    values = {row["dataset"]["name"]: row["metrics"][0]["value"] for row in results}
    assert values == pytest.approx({"digits": 0.76, "hf://datasets/acme/shift": 0.84})


def test_the_example_names_the_classes_that_were_judged_or_none() -> None:
    judged = verdict(target=source(0.0, 0.1, class_names=("eight", "two")))
    prompts = ["a photo of a eight", "a photo of a two"]
    assert f"labels = {prompts}" in model_card(record(verdict=judged))
    assert "labels" not in model_card(record(verdict=None))


def test_a_card_is_neither_markup_nor_closed_by_its_content() -> None:
    card = model_card(record(command="clipmerge `merge` ```x"))
    assert "sketch &lt;&amp;" in card
    assert "\n\n    clipmerge `merge` ```x\n\n" in card


def one_tower(name: str) -> Callable[[Path], tuple[Path, ...]]:
    """A pair of one tower, of a class of transformers."""

    def make(folder: Path) -> tuple[Path, ...]:
        paths = save_pair(folder)
        for path in paths:
            full = hf.CLIPConfig.from_pretrained(path)
            config = full.vision_config if "Vision" in name else full.text_config
            config.projection_dim = full.projection_dim
            tower = getattr(hf, name).from_pretrained(path, config=config)
            tower.save_pretrained(path)
        return paths

    return make


def bare(name: str) -> Callable[[Path], tuple[Path, ...]]:
    """A pair of files, without the configuration beside them."""

    def make(folder: Path) -> tuple[Path, ...]:
        paths = save_pair(folder)
        (folder / "bare").mkdir()
        return tuple(
            Path(shutil.copy(path / name, folder / "bare" / f"{path.name}.safetensors"))
            for path in paths
        )

    return make


ZERO_SHOT, IMAGES, TEXTS = (
    "zero-shot-image-classification",
    "image-feature-extraction",
    "feature-extraction",
)
#: Each kind of output: its inputs, the Hub's library and task, and what the code prints.
KINDS: dict[str, tuple[Callable[[Path], tuple[Path, ...]], str, str, str]] = {
    "CLIPModel": (save_pair, "transformers", ZERO_SHOT, "a photo of a eight"),
    "CLIPVisionModel": (one_tower("CLIPVisionModel"), "transformers", IMAGES, "[1, 32]"),
    "CLIPVisionModelWithProjection": (
        one_tower("CLIPVisionModelWithProjection"),
        "transformers",
        IMAGES,
        "[1, 16]",
    ),
    "CLIPTextModel": (one_tower("CLIPTextModel"), "transformers", TEXTS, "[2, 32]"),
    "CLIPTextModelWithProjection": (
        one_tower("CLIPTextModelWithProjection"),
        "transformers",
        TEXTS,
        "[2, 16]",
    ),
    "OpenCLIP": (
        lambda folder: save_open_clip_pair(folder, model_config()),
        "open_clip",
        ZERO_SHOT,
        "a photo of a eight",
    ),
    "OpenCLIP classifier": (
        lambda folder: of_wise_ft(folder)[:2],
        "open_clip",
        "image-classification",
        "[0.",
    ),
    "file": (bare("model.safetensors"), "transformers", ZERO_SHOT, " tensors"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_a_card_runs(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, library, task, printed = KINDS[kind]
    pair = make(tmp_path / "pair")
    done("merge", *pair, "--recipe", "wise-ft", "--output", tmp_path / "out")
    card = model_card(read_output(tmp_path / "out").replace(verdict=verdict()))
    assert f"library_name: {library}\n" in card
    assert f"pipeline_tag: {task}\n" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    monkeypatch.chdir(tmp_path / "out")
    capsys.readouterr()
    exec(code, {})
    assert printed in capsys.readouterr().out
