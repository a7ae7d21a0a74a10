"""Flags that several commands share, errors that name the right command, and the flags and outputs
of a sweep."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clipmerge as api
from clipmerge.errors import PlanError, UsageError
from clipmerge.evaluation.scorer import write_correct
from clipmerge.progress import Progress
from clipmerge.request import parse_alphas, parse_named
from tests.support.command import clipmerge, counted, done, printed, refused
from tests.support.several import several
from tests.support.tiny_clip import Folders, save_images


@pytest.fixture(scope="module")
def sources(images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    other = save_images(tmp_path_factory.mktemp("other"), seed=1)
    return ["--id", f"val={images}", "--ood", f"odd={other}", "--alphas", "0,1"]


def test_recipes_alone_lists_them_in_the_format_asked_for() -> None:
    listed = done("recipes", "--format", "json")
    assert listed.json == printed("recipes", "list")
    assert "auto" in listed.json["recipes"]
    assert "--format goes after the command" in refused(
        clipmerge("recipes", "--format", "json", "show", "auto"), 2
    )


@pytest.mark.slow
def test_fewer_images_at_once_change_no_number(
    pair: Folders, sources: list[object], tmp_path: Path
) -> None:
    swept = []
    for name, flags in (("whole", []), ("pieces", ["--images-at-once", 3])):
        done("sweep", *pair, *sources, *flags, "-o", tmp_path / name, "--format", "json")
        swept.append((tmp_path / name / "correct.safetensors").read_bytes())
    assert swept[0] == swept[1]


def test_a_plan_without_hashes_is_applied_and_a_plan_with_them_may_be(
    pair: Folders, tmp_path: Path
) -> None:
    plans = [tmp_path / "hashed.json", tmp_path / "bare.json"]
    done("plan", *pair, "-r", "wise-ft", "-o", plans[0])
    done("plan", *pair, "-r", "wise-ft", "--no-hash", "-o", plans[1])
    assert set(json.loads(plans[1].read_text())["zeroshot"]["files"].values()) == {None}
    weights = []
    for plan, flags, note in (
        (plans[0], [], ""),
        (plans[0], ["--no-hash"], "was not compared with the sha256"),
        (plans[1], [], "has no sha256 of"),
    ):
        output = tmp_path / f"{plan.stem}{len(flags)}"
        applied = done("apply", plan, *flags, "-o", output, "--format", "json")
        assert note in applied.err
        weights.append((output / "model.safetensors").read_bytes())
        assert (applied.json["files"]["model.safetensors"] is None) is bool(flags)
    assert weights[0] == weights[1] == weights[2]


def test_what_cannot_be_is_refused(pair: Folders, tmp_path: Path) -> None:
    asked = clipmerge("merge", *pair, "--recipe", "wise-ft", "--dry-run", "--push", "acme/robust")
    assert "--push needs --output: a dry run writes nothing to push" in refused(asked, code=2)
    plan = api.plan(*pair, "wise-ft", progress=Progress())
    with pytest.raises(PlanError, match="is for 1 fine-tuned checkpoints, but 2 were given"):
        api.apply(
            plan,
            output=tmp_path / "out",
            zeroshot=pair[0],
            finetuned=[pair[1], pair[1]],
            progress=Progress(),
        )
    asked = clipmerge(
        "merge", *pair, "--recipe", "wise-ft", "--alpha", "1e39", "--output", tmp_path / "out"
    )
    assert "overflow" in refused(asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,0.1,...,1", tuple(n / 10 for n in range(11))),
        ("0, 0.5,1", (0.0, 0.5, 1.0)),
        ("0,0.1,...,0.3,0.5,...,0.9", (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)),
        ("0,0.4,...,1", (0.0, 0.4, 0.8, 1.0)),
    ],
)
def test_alphas_are_read(text: str, expected: tuple[float, ...]) -> None:
    assert parse_alphas(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "0,...,1",
        "0,0,...,1",
        "0,1,...,-1",
        "0,0.1,...",
        "0,1e-999999,...,1",
        "0,1,...,1002",
        "0,1e400",
        "nan,1",
    ],
)
def test_alphas_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"^`alphas` .*: expected finite numbers .* at most 1000 numbers"
    ):
        parse_alphas(text)
    assert len(parse_alphas("0,1,...,1001")) == 1002


@pytest.mark.parametrize("points", [0.5, [0, "a"], [0, float("nan")], [], [[0, 1]]])
def test_alphas_that_are_not_numbers_are_refused(points: Any) -> None:
    with pytest.raises(UsageError, match=r"^`alphas` .*: expected finite numbers"):
        parse_alphas(points)


def test_a_source_is_named_by_a_text(images: Path) -> None:
    sources: Any = {1: images}
    with pytest.raises(UsageError, match="a source cannot be named 1; give a text"):
        parse_named("id", sources)


@pytest.mark.parametrize(
    ("flag", "name", "said"),
    [
        ("--id", "__metadata__", "'__metadata__', which safetensors reserves"),
        *((flag, "\udcff", r"'\udcff', which is not UTF-8") for flag in ("--ood", "--point")),
    ],
)
def test_a_name_that_no_tensor_can_have_is_refused(
    flag: str, name: str, said: str, tmp_path: Path
) -> None:
    flags = {"--id": "x", "--ood": "x", "--point": "p"} | {flag: name}
    words = [word for each, called in flags.items() for word in (each, f"{called}={tmp_path}")]
    places = Path(__file__).parents[:2]  # any folders: whether they exist is checked first
    ended = clipmerge("sweep", *places, *words, "-o", str(tmp_path / "out"))
    assert ended.code == 2
    assert f"a source cannot be named {said}" in ended.err
    assert len(ended.err.splitlines()) == 1
    with pytest.raises(UsageError, match="cannot be named"):
        write_correct(tmp_path / "correct.safetensors", {name: np.zeros((1, 2), dtype=np.bool_)})
    assert list(tmp_path.iterdir()) == []


def test_an_output_among_the_images_is_refused(pair: Folders, images: Path, tmp_path: Path) -> None:
    source = save_images(tmp_path / "images", each=2, seed=9)
    before = sorted(tmp_path.rglob("*"))
    words = ["sweep", *pair, "--id", f"val={images}", "--ood", source, "-o", source / "sweep"]
    line = refused(clipmerge(*words, "--alphas", "0,1"))
    assert (
        f"{source / 'sweep'}: lies inside {source}, which this command reads as images; choose"
        " another" in line
    )
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_two_processes_find_the_same(
    pair: Folders, images: Path, sources: list[object], tmp_path: Path
) -> None:
    recipes = (
        "--data",
        images,
        "--device",
        "cpu",
        "--recipe",
        "straggler-outlier",
        "--recipe",
        "lines",
    )
    words = ["sweep", *pair, *sources, *recipes, "--batch-size", 4, "--output", tmp_path / "out"]
    run = several(2, "clipmerge", *words, env=counted())
    assert run.returncode == 0, run.stderr
    two = json.loads((tmp_path / "out" / "sweep.json").read_text())
    one = done(*words, "--overwrite", "--format", "json").json
    for record in (one, two):
        for key in ("seconds", "command"):
            record.pop(key)
    assert one == two
