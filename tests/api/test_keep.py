"""--keep: what each model keeps of tasks that it was not fine-tuned for."""

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import clipmerge as api
from clipmerge.checkpoint import open_checkpoint
from clipmerge.errors import DataError, UsageError, VerdictError
from clipmerge.evaluation.accuracy import load_model
from clipmerge.evaluation.scorer import Scorer
from clipmerge.images.dataset import load_images
from clipmerge.progress import Progress
from clipmerge.request import Calibration
from tests.support.command import clipmerge, done, refused
from tests.support.raw_safetensors import edit_json
from tests.support.tiny_clip import Folders, save_images


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Another task with classes, and pictures with captions beside them."""
    folder = tmp_path_factory.mktemp("others")
    classes = save_images(folder / "classes", each=8, seed=9)
    (folder / "captions").mkdir()
    for file in sorted(classes.rglob("[0-3].png")):
        name = f"{file.parent.name}-{file.stem}"
        shutil.copyfile(file, folder / "captions" / f"{name}.png")
        (folder / "captions" / f"{name}.txt").write_text(
            f"a photo of a {file.parent.name}.\n{file.parent.name}\n"
        )
    return {"classes": classes, "captions": folder / "captions"}


def scores(record: Any, name: str) -> dict[str, Any]:
    return next(task for task in record["other_tasks"] if task["name"] == name)


@pytest.fixture(scope="module")
def keep(others: dict[str, Path]) -> list[str]:
    return [word for name, source in others.items() for word in ("--keep", f"{name}={source}")]


def test_a_sweep_has_them_everywhere(
    far: Folders, others: dict[str, Path], keep: list[str], tmp_path: Path
) -> None:
    target = tmp_path / "target"
    for name in ("bird", "cat"):
        shutil.copytree(others["classes"] / name, target / name)
    flags = [
        "--id",
        f"target={target}",
        "--ood",
        f"all={others['classes']}",
        "--alphas",
        "0,0.3,1",
        *keep,
    ]
    ended = done("sweep", *far, *flags, "--recipe", "lines", "--output", tmp_path / "sweep")
    record = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [task["name"] for task in record["other_tasks"]] == ["classes", "captions"]
    points = [*record["curve"], *record["recipes"]]
    for point in points:
        assert (
            point["other_tasks"]["classes"]["accuracy"]["value"] == point["accuracy"]["all"]
        )  # the same images
        assert set(point["other_tasks"]["captions"]["recall"]["text_to_image"]) == {"1", "5", "10"}
    page = (tmp_path / "sweep" / "sweep.html").read_text()
    assert "captions: image to text R@5" in page
    said = [line.split() for line in ended.out.splitlines()]
    assert ["other", "tasks,", "%", "classes"] in said
    (heads,) = [line for line in ended.out.splitlines() if line.startswith("captions, %")]
    assert heads.count("R@") == 6  # at three ranks to text, and to image
    assert max(map(len, ended.out.splitlines()[-20:-2])) <= 80


def test_tasks_are_checked(far: Folders, others: dict[str, Path], tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"progress": Progress()}
    with pytest.raises(UsageError, match="two `keep` have the same name"):
        api.merge(*far, "wise-ft", keep=["a=x", "a=y"], **quiet)
    with pytest.raises(DataError, match="nowhere"):
        api.merge(*far, "wise-ft", keep={"a": tmp_path / "nowhere"}, **quiet)
    (tmp_path / "odd.csv").write_text("image,name\n1.png,a\n")
    with pytest.raises(DataError, match="so in `keep` call the column 'label' or 'caption'"):
        api.merge(*far, "wise-ft", keep={"a": str(tmp_path / "odd.csv")}, **quiet)
    with pytest.raises(UsageError, match="nothing to evaluate on"):
        api.evaluate(far[0], **quiet)
    out = ("--output", others["classes"].parent, "--overwrite")
    assert "report" not in refused(
        clipmerge("merge", *far, "-r", "wise-ft", "--keep", others["classes"], *out)
    )


def test_a_plan_keeps_them_until_it_is_edited(
    far: Folders, others: dict[str, Path], tmp_path: Path
) -> None:
    keep = {"c": others["captions"]}
    plan = api.plan(*far, "wise-ft", keep=keep, allow="at-chance", progress=Progress())
    plan.save(tmp_path / "plan.json")
    result = api.apply(tmp_path / "plan.json", output=tmp_path / "out", progress=Progress())
    assert result.record.other_tasks == plan.other_tasks
    edit_json(tmp_path / "plan.json", layers={"vision.0.attn": {"alpha": 0.1}})
    edited = api.apply(tmp_path / "plan.json", output=tmp_path / "edited", progress=Progress())
    assert edited.record.other_tasks == ()
    assert [warning.kind for warning in edited.record.warnings] == ["stale-effect"]


@pytest.mark.parametrize(
    "recipe", [("straggler-outlier", "--set", "measure.nodes=2"), ("wise-ft",)], ids=lambda r: r[0]
)
def test_images_of_a_task_that_the_merge_was_decided_or_judged_on_are_reported(
    pair: Folders, images: Path, recipe: tuple[str, ...]
) -> None:
    few = ("--images", "9", "--batch-size", "9", "--dry-run")
    ended = done(
        "merge",
        *pair,
        "-r",
        *recipe,
        "--data",
        images,
        "--keep",
        f"other={images}",
        *few,
    )
    assert re.search(
        rf"--keep other: \d images are also in --data {images} \(.* is in both\)", ended.err
    )


def answered(checkpoint: Path, folder: Path, seed: int) -> Path:
    """Pictures in folders of the classes that a model takes them for: it recognises all of them."""
    drawn = save_images(folder / "drawn", each=30, seed=seed)
    images = load_images(str(drawn))
    scorer = Scorer(load_model(open_checkpoint(str(checkpoint))), None, Calibration(device="cpu"))
    best = scorer.score_one(images, Progress()).best
    for file, answer in zip(images.store.paths, best.tolist(), strict=True):
        target = folder / "answered" / images.class_names[answer]
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / f"{Path(file).parent.name}-{Path(file).name}")
    return folder / "answered"


def test_a_merge_that_is_fine_on_the_target_is_doubted_for_what_it_lost_elsewhere(
    far: Folders, tmp_path: Path
) -> None:
    target = answered(far[1], tmp_path / "target", seed=1)
    elsewhere = answered(far[0], tmp_path / "elsewhere", seed=2)
    result = api.merge(
        *far, alpha=1, data=target, keep={"elsewhere": elsewhere}, progress=Progress()
    )
    (task,) = result.plan.other_tasks
    assert task.zeroshot.accuracy.value == 1
    assert task.merged.accuracy.value < 0.8
    assert result.plan.effect.merged.clean.value == 1
    assert result.plan.effect.recommendation == "other-tasks"


def test_a_strict_sweep_writes_nothing_where_a_recipe_loses_too_much(
    far: Folders, tmp_path: Path
) -> None:
    target = answered(far[1], tmp_path / "target", seed=1)
    sweep = partial(api.sweep, *far, id={"target": target}, ood={"far": target}, alphas="0,1")
    options: Any = {"recipes": "wise-ft", "set": {"method.alpha": 0.1}, "progress": Progress()}
    options["allow"] = "zeroshot-at-chance"
    assert "loses" in " ".join(sweep(**options).warnings)
    with pytest.raises(VerdictError, match="nothing was written"):
        sweep(strict=True, output=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
