"""--keep: a real small fine-tune loses what it was not trained on, and the merge gives some of it back."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from transformers import CLIPModel

import clipmerge as api
from clipmerge.errors import DataError, UsageError
from clipmerge.progress import Progress
from tests.support.command import clipmerge, done, printed, refused
from tests.support.tiny_clip import Folders, tiny_config, tiny_processor

#: Colours by name; the model learns all of them, and is fine-tuned on two.
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "grey": (120, 120, 120)}
TASK = ("red", "green")


def pictures(colour: str, count: int, seed: int) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    noise = rng.integers(-30, 30, (count, 32, 32, 3))
    return [Image.fromarray(np.clip(np.array(COLOURS[colour]) + each, 0, 255).astype(np.uint8)) for each in noise]


def trained(model: CLIPModel, colours: tuple[str, ...], *, steps: int, rate: float) -> None:
    processor = tiny_processor()
    tokens = processor.tokenizer([f"a photo of a {name}." for name in colours], padding=True, return_tensors="pt")
    images = [image for number, name in enumerate(colours) for image in pictures(name, 4, number)]
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    labels = torch.arange(len(colours)).repeat_interleave(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(**tokens, pixel_values=pixels).logits_per_image, labels).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A model that knows four colours, and the same after a hard fine-tuning with two of them, names exchanged."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    model = CLIPModel(tiny_config(blocks=2, width=32))
    trained(model, tuple(COLOURS), steps=40, rate=3e-3)
    model.save_pretrained(folder / "zeroshot")
    trained(model, ("green", "red"), steps=25, rate=3e-3)
    model.save_pretrained(folder / "finetuned")
    for name in ("zeroshot", "finetuned"):
        tiny_processor().save_pretrained(folder / name)
    return folder / "zeroshot", folder / "finetuned"


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Another task with classes, and pictures with captions beside them."""
    folder = tmp_path_factory.mktemp("others")
    (folder / "captions").mkdir()
    for number, name in enumerate(COLOURS):
        (folder / "colours" / name).mkdir(parents=True)
        for index, image in enumerate(pictures(name, 6, 100 + number)):
            image.save(folder / "colours" / name / f"{index}.png")
        for index, image in enumerate(pictures(name, 3, 200 + number)):
            image.save(folder / "captions" / f"{name}-{index}.png")
            text = f"a photo of a {name}.\n{name}\n"
            (folder / "captions" / f"{name}-{index}.txt").write_text(text)
    return {"colours": folder / "colours", "captions": folder / "captions"}


def scores(record: Any, name: str) -> dict[str, Any]:
    return next(task for task in record["kept"] if task["name"] == name)


@pytest.fixture(scope="module")
def keep(others: dict[str, Path]) -> list[str]:
    return [word for name, source in others.items() for word in ("--keep", f"{name}={source}")]


def test_a_fine_tune_loses_and_the_merge_gives_back(
    models: Folders, others: dict[str, Path], keep: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "merged"
    flags = ["--recipe", "wise-ft", "--set", "method.alpha=0.3", *keep, "--output", output]
    ended = done("merge", *models, *flags)
    record = json.loads((output / "clipmerge.json").read_text())
    task = scores(record, "colours")
    models_of_the_task = (task["zeroshot"], task["finetuned"][0], task["merged"])
    before, after, merged = (each["accuracy"]["value"] for each in models_of_the_task)
    assert before > 0.9
    assert after < before - 0.2
    assert merged > after + 0.1
    assert (task["kind"], task["images"], task["classes"]) == ("accuracy", 24, 4)
    retrieval = scores(record, "captions")
    assert (retrieval["kind"], retrieval["images"], retrieval["captions"]) == ("retrieval", 12, 24)
    told = (
        (task["zeroshot"], retrieval["zeroshot"], models[0]),
        (task["finetuned"][0], retrieval["finetuned"][0], models[1]),
        (task["merged"], retrieval["merged"], output),
    )
    for accuracy, recall, folder in told:
        own = printed("evaluate", folder, *keep)
        assert scores(own, "colours")["score"]["accuracy"] == accuracy["accuracy"]
        assert scores(own, "captions")["score"]["recall"] == recall["recall"]
    lines = clipmerge("evaluate", output, *keep).out.splitlines()
    rows = {line.rpartition("  ")[0].strip(): line.split()[-1] for line in lines if line}
    assert f"{merged:.1%}" in [value for row, value in rows.items() if row.startswith("colours")]
    for way in ("image to text", "text to image"):
        (value,) = [value for row, value in rows.items() if row.startswith(f"captions, {way} R@5")]
        assert value == f"{retrieval['merged']['recall'][way.replace(' ', '_')]['5']:.1%}"
    page = (output / "report.html").read_text().replace("\N{MINUS SIGN}", "-")
    for text in (ended.out, page, (output / "README.md").read_text()):
        assert "text to image R@10" in " ".join(text.split())
        assert f"{100 * after:.1f}" in text
        assert f"{100 * (after - before):+.1f}" in text
        assert f"{100 * (merged - after):+.1f}" in text
    card = (output / "README.md").read_text()
    assert str(others["colours"]) not in card
    done("report", output)


def test_a_sweep_has_them_everywhere(models: Folders, others: dict[str, Path], keep: list[str], tmp_path: Path) -> None:
    target = tmp_path / "target"
    for name in TASK:
        shutil.copytree(others["colours"] / name, target / name)
    flags = ["--id", f"target={target}", "--ood", f"all={others['colours']}", "--alphas", "0,0.3,1", *keep]
    ended = done("sweep", *models, *flags, "--recipe", "lines", "--output", tmp_path / "sweep")
    record = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [task["name"] for task in record["kept"]] == ["colours", "captions"]
    points = [*record["curve"], *record["recipes"]]
    for point in points:
        assert point["kept"]["colours"]["accuracy"]["value"] == point["accuracy"]["all"]  # the same images
        assert set(point["kept"]["captions"]["recall"]["text_to_image"]) == {"1", "5", "10"}
    page = (tmp_path / "sweep" / "sweep.html").read_text()
    assert "captions: image to text R@5" in page
    said = [line.split() for line in ended.out.splitlines()]
    assert ["other", "tasks,", "%", "colours"] in said
    (heads,) = [line for line in ended.out.splitlines() if line.startswith("captions, %")]
    assert heads.count("R@") == 6  # at three ranks to text, and to image
    assert max(map(len, ended.out.splitlines()[-20:-2])) <= 80


def test_tasks_are_checked(models: Folders, others: dict[str, Path], tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"progress": Progress()}
    with pytest.raises(UsageError, match="two --keep have the same name"):
        api.merge(*models, "wise-ft", keep=["a=x", "a=y"], **quiet)
    with pytest.raises(DataError, match="nowhere"):
        api.merge(*models, "wise-ft", keep={"a": tmp_path / "nowhere"}, **quiet)
    with pytest.raises(UsageError, match="nothing to evaluate on"):
        api.evaluate(models[0], **quiet)
    captions = shutil.copytree(others["captions"], tmp_path / "captions")
    (captions / "red-0.txt").unlink()
    with pytest.raises(DataError, match=r"red-0\.png has no captions beside it"):
        api.evaluate(models[0], keep={"c": captions}, **quiet)
    (captions / "red-0.txt").write_text("\n")
    with pytest.raises(DataError, match=r"red-0\.txt holds no caption; write one per line"):
        api.evaluate(models[0], keep={"c": captions}, **quiet)
    out = ("--output", others["colours"].parent, "--overwrite")
    assert "report" not in refused(clipmerge("merge", *models, "-r", "wise-ft", "--keep", others["colours"], *out))


def test_a_plan_keeps_them_until_it_is_edited(models: Folders, others: dict[str, Path], tmp_path: Path) -> None:
    plan = api.plan(*models, "wise-ft", keep={"c": others["captions"]}, progress=Progress())
    plan.save(tmp_path / "plan.json")
    result = api.apply(tmp_path / "plan.json", output=tmp_path / "out", progress=Progress())
    assert result.record is not None
    assert result.record.kept == plan.kept
    text = json.loads((tmp_path / "plan.json").read_text())
    text["layers"]["vision.0.attn"]["alpha"] = 0.1
    (tmp_path / "plan.json").write_text(json.dumps(text))
    edited = api.apply(tmp_path / "plan.json", output=tmp_path / "edited", progress=Progress())
    assert edited.record is not None
    assert edited.record.kept == ()
    assert any("not known" in warning for warning in edited.record.warnings)


def test_images_of_a_task_that_the_merge_was_decided_on_are_said(pair: Folders, images: Path) -> None:
    few = ("--images", "9", "--batch-size", "9", "--set", "measure.nodes=2", "--dry-run")
    ended = done("merge", *pair, "-r", "straggler-outlier", "--data", images, "--keep", f"other={images}", *few)
    assert re.search(rf"--keep other: \d images are also in --data {images} \(.* is in both\)", ended.err)
