"""`--unlabelled` from the command to the card: used, recorded, published without local paths, and
refused."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from clipmerge.api._data import open_data, open_unlabelled
from clipmerge.api.sweep import check_sweep, load_source, overlap_notes, sweep
from clipmerge.errors import UsageError
from clipmerge.finding import Finding
from clipmerge.output.record import MergeRecord
from clipmerge.planning.recipe import load_recipe
from clipmerge.progress import Progress
from clipmerge.publish.card import model_card
from clipmerge.publish.public import public_record
from clipmerge.report.page import html_page
from clipmerge.report.text import gain_notes
from clipmerge.request import Calibration, MergeRequest, SweepRequest
from clipmerge.run import Run, RunCache
from tests.support.command import clipmerge, done, refused
from tests.support.merged_output import RECORD
from tests.support.tasks import inputs_of, sweep_of
from tests.support.tiny_clip import Folders, save_images
from tests.support.told import Told

QUICK = ("--batch-size", 8, "--set", "measure.steps=3", "--set", "measure.batch=8", "--no-verdict")
GIVEN = {"source": "/home/me/secret/camera", "revision": None, "images": 12, "sha256": "ab" * 32}


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder of 12 images."""
    folder = tmp_path_factory.mktemp("camera") / "flat"
    folder.mkdir()
    for number, file in enumerate(
        sorted(save_images(folder.parent / "classes", each=4, seed=7).rglob("*.png"))
    ):
        shutil.copyfile(file, folder / f"{number}.png")
    return folder


def with_unlabelled(given: dict[str, Any]) -> MergeRecord:
    record = copy.deepcopy(RECORD)
    record["calibration"]["unlabelled"] = given
    record["command"] += f" --unlabelled {given['source']}"
    return MergeRecord.model_validate(record)


@pytest.mark.slow
def test_a_merge_learns_from_a_flat_folder_and_says_so(
    pair: Folders, images: Path, camera: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # few held-back images prove nothing, so the straight path would be taken; holding features
    # halves the steps
    whole = ["--set", "measure.held_back=0", "--set", "measure.distill=predictions"]
    merge = ["merge", *pair, "--recipe", "auto", "--data", images, *QUICK, "--images", 20, *whole]
    found = done(*merge, "--unlabelled", camera, "--output", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "clipmerge.json").read_text())
    given = record["calibration"]["unlabelled"]
    assert (given["source"], given["images"], len(given["sha256"])) == (str(camera), 12, 64)
    plan = tmp_path / "out" / "plan" / "plan.json"
    assert json.loads(plan.read_text())["calibration"]["unlabelled"] == given
    assert "also learned from 12 unlabelled images" in found.out.replace("\n", " ")
    assert (
        f"It also learned from 12 unlabelled images of {camera}."
        in (tmp_path / "out" / "report.html").read_text()
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "It also learned from 12 unlabelled images of flat." in card
    assert str(camera) not in card
    clipmerge("apply", plan, "--output", tmp_path / "applied")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "applied")]
    assert weights[0] == weights[1]
    done(*merge, "--output", tmp_path / "without")
    assert (tmp_path / "without" / "model.safetensors").read_bytes() != weights[0]


def test_what_cannot_be_used_is_refused(
    pair: Folders, images: Path, camera: Path, tmp_path: Path
) -> None:
    given = ("--unlabelled", camera)
    mixed = Path(shutil.copytree(camera, tmp_path / "mixed"))
    shutil.copyfile(images / "cat" / "3.png", mixed / "x.png")
    for recipe, flags, said in (
        (
            "wise-ft",
            given,
            "recipe 'wise-ft' does not learn from unlabelled images; leave out --unlabelled",
        ),
        ("tpgm", given, "recipe 'tpgm' does not learn"),
        ("auto", (*given, "--set", "measure.distill_weight=0"), "has measure.distill_weight 0"),
        (
            "auto",
            (*given, "--set", "measure.strong_aug=1"),
            "has one strongly augmented image per step",
        ),
        ("auto", ("--unlabelled", images), "these are the images of --data"),
        (
            "auto",
            ("--unlabelled", mixed),
            f"--unlabelled {mixed}: 1 image is also in --data {images}",
        ),
    ):
        line = refused(
            clipmerge("merge", *pair, "--recipe", recipe, "--data", images, "--dry-run", *flags), 2
        )
        assert said in line


def request_for(
    pair: Folders, near: Path, far: Path, unlabelled: Path, *recipes: str
) -> SweepRequest:
    calibration = Calibration(source=str(near), unlabelled=str(unlabelled))
    return sweep_of(pair, near, far, *map(load_recipe, recipes), calibration=calibration)


@pytest.mark.parametrize("flag", ["`id` near", "`ood` far"])
def test_a_sweep_refuses_to_judge_on_unlabelled_images(
    pair: Folders, images: Path, camera: Path, tmp_path: Path, flag: str
) -> None:
    far = save_images(tmp_path / "far", each=2, seed=5)
    mixed = Path(shutil.copytree(camera, tmp_path / "mixed"))
    shutil.copyfile((images if flag == "`id` near" else far) / "dog" / "1.png", mixed / "x.png")
    request = request_for(pair, images, far, mixed, "auto")
    loaded = {name: load_source(name, request, Progress()) for name in request.sources}
    with pytest.raises(
        UsageError, match=f"`unlabelled` {mixed}: 1 image is also in {flag} .*a model is not judged"
    ):
        overlap_notes(request, loaded, {}, RunCache(), Progress())
    assert overlap_notes(
        request_for(pair, images, far, camera, "auto"), loaded, {}, RunCache(), Progress()
    )  # --data in --id is noted


def test_a_sweep_gives_them_to_the_recipes_that_learn(
    pair: Folders, images: Path, camera: Path
) -> None:
    request = request_for(pair, images, images, camera, "auto", "lines")
    check_sweep(request)
    given = [request.merge_request(recipe).calibration.unlabelled for recipe in request.recipes]
    assert given == [str(camera), None]
    with pytest.raises(UsageError, match="recipe 'lines' does not learn"):
        check_sweep(request_for(pair, images, images, camera, "lines"))
    with pytest.raises(UsageError, match="no recipe is given"):
        sweep(*map(str, pair), id={"near": str(images)}, ood={"far": "x"}, unlabelled=str(camera))
    row = {"name": "auto", "alpha": None, "calibration": {"unlabelled": GIVEN}}
    said = gain_notes({"recipes": [row, {**row, "name": "lines", "calibration": None}]})
    assert said == ["auto: also learned from 12 unlabelled images of /home/me/secret/camera."]


def test_a_local_source_is_published_by_its_last_part_and_one_of_the_hub_is_pinned() -> None:
    record = with_unlabelled(GIVEN)
    for text in (
        model_card(record, repo_id="me/merged"),
        json.dumps(public_record(record).as_json()),
    ):
        assert "/home" not in text
        assert "camera" in text
    assert "bring your own: cars, camera." in model_card(record, repo_id=None)
    page = html_page(record)
    assert "It also learned from 12 unlabelled images of /home/me/secret/camera." in page
    assert "--unlabelled /home/me/secret/camera" in page.replace("<span>", "").replace(
        "</span>", ""
    )
    assert "/home" not in html_page(public_record(record))
    hub = with_unlabelled(
        GIVEN | {"source": "hf://datasets/acme/camera:train", "revision": "a" * 40}
    )
    card = model_card(hub, repo_id=None)
    assert "--unlabelled hf://datasets/acme/camera@" + "a" * 40 + ":train" in card
    assert "- acme/camera\n" in card


def test_sources_are_opened_and_their_notes_told_once(
    images: Path, camera: Path, tmp_path: Path
) -> None:
    labelled = shutil.copytree(images, tmp_path / "labelled")
    for folder in (labelled / "cat", camera):
        (folder / "notes.heic").write_bytes(b"no image")
    request = MergeRequest(
        "zeroshot",
        ("finetuned",),
        load_recipe("auto"),
        calibration=Calibration(source=str(labelled), unlabelled=str(camera), device="cpu"),
    )
    cache, told = RunCache(), Told()
    for _ in range(2):
        assert open_data(request, cache, told) is cache.data[1]
        assert open_unlabelled(request, cache, told) is cache.unlabelled
    assert told.lines == [
        f"{folder}: left out files that are not images (1 .heic)" for folder in (labelled, camera)
    ]
    (camera / "notes.heic").unlink()


def test_a_process_that_does_not_decide_keeps_no_warning(pair: Folders) -> None:
    run = Run(inputs_of(pair), Progress())
    run.add_warning(Finding.of("left-out"))
    assert run.light_plan.warnings == ()
