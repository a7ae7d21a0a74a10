"""Every command prints and writes what the published JSON Schemas say."""

import runpy
from pathlib import Path

import pytest

from clipmerge.cli.app import COMMANDS
from tests.support.command import anywhere, done
from tests.support.hub_double import FakeHub
from tests.support.schemas import PUBLISHED, check_schema, schema_of
from tests.support.tiny_clip import Folders, save_images

SCHEMAS = runpy.run_path(str(PUBLISHED.parents[1] / "scripts" / "schemas"))["TEXTS"]
NAMES = {file.stem for file in PUBLISHED.iterdir()}


def test_the_published_schemas_are_current() -> None:
    for name, text in SCHEMAS.items():
        assert (PUBLISHED / f"{name}.json").read_text() == text, f"run scripts/schemas ({name})"
    page = (PUBLISHED.parent / "reference" / "json.md").read_text()
    assert [name for name in NAMES if f"(../schema/{name}.json)" not in page] == []


@pytest.mark.slow
def test_every_command_prints_what_its_schema_says(
    pair: Folders, images: Path, tmp_path: Path, hub: FakeHub
) -> None:
    """Each is run with ``--json``, but `demo`, which takes a minute and is judged in
    tests/api/test_demo.py."""
    far = save_images(tmp_path / "far", each=4, seed=9)
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    sweep = (
        "--id",
        f"val={images}",
        "--ood",
        f"far={far}",
        "--alphas",
        "0,1",
        "-o",
        tmp_path / "s",
    )
    few = ("--data", images, "--images", "8", "--set", "measure.steps=1")
    commands = [
        ("plan", *pair, "-r", "wise-ft", "-o", plan),
        ("apply", plan, "-o", out),
        ("push", out, "alice/robust", "--license", "mit"),
        (
            "merge",
            *pair,
            "-r",
            "wise-ft",
            "-o",
            tmp_path / "p",
            "--push",
            "alice/other",
            "--license",
            "mit",
        ),
        ("merge", *pair, "-r", "auto", *few, "--ood", f"far={far}", *anywhere()),
        (
            "merge",
            *pair,
            "-r",
            "straggler-outlier",
            "--data",
            images,
            "--set",
            "measure.nodes=1",
            *anywhere(),
        ),
        ("evaluate", pair[0], "--data", f"val={images}", "--ood", f"far={far}"),
        ("inspect", *pair),
        ("inspect", pair[0]),
        ("sweep", *pair, *sweep, "-r", "wise-ft", "--ood", f"t={far}", "--point", f"x={pair[1]}"),
        ("recipes",),
        ("recipes", "list"),
        ("recipes", "show", "auto"),
    ]
    printed = set()
    for command in commands:
        ended = done(*command, "--json")
        name = schema_of([str(word) for word in command])
        check_schema(name, ended.out)
        printed.add(name)
    assert printed == NAMES - {"plan", "demo"}
    assert {str(command[0]) for command in commands} == set(COMMANDS) - {"demo"}
    written = {
        "plan": plan,
        "record": out / "clipmerge.json",
        "sweep": tmp_path / "s" / "sweep.json",
    }
    for name, file in written.items():
        check_schema(name, file.read_text())
