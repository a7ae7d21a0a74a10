"""The published JSON Schemas are those of the models, and the commands print what the models say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clipmerge.output.schemas import SCHEMAS, schema_text
from tests.support.command import clipmerge
from tests.support.tiny_clip import save_images

PUBLISHED = Path(__file__).parents[2] / "docs" / "schema"


def test_the_published_schemas_are_current() -> None:
    assert {file.stem for file in PUBLISHED.iterdir()} == set(SCHEMAS)
    for name in SCHEMAS:
        assert (PUBLISHED / f"{name}.json").read_text() == schema_text(name), f"run scripts/schemas ({name})"


def fits(name: str, data: dict[str, Any]) -> bool:
    """Whether a model reads JSON without another key, and writes the same values."""
    written = SCHEMAS[name].model_validate_json(json.dumps(data)).model_dump(mode="json")
    return all(written[key] == value for key, value in data.items() if isinstance(value, (str, int, float)))


def test_commands_print_what_the_schemas_say(pair: tuple[Path, Path], images: Path, tmp_path: Path) -> None:
    far = save_images(tmp_path / "far", each=4, seed=9)
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    sweep = ("--id", f"val={images}", "--ood", f"far={far}", "--alphas", "0,1", "-r", "wise-ft", "-o", tmp_path / "s")
    printed = {
        ("plan", *pair, "-r", "wise-ft", "-o", plan): "record",
        ("apply", plan, "-o", out): "record",
        ("report", out): "record",
        ("merge", *pair, "-r", "wise-ft", "--data", images, "--dry-run"): "record",
        ("evaluate", pair[0], "--data", f"val={images}", "--keep", f"far={far}"): "evaluate",
        ("inspect", *pair): "inspect",
        ("inspect", pair[0]): "inspect",
        ("convert", pair[0], tmp_path / "c", "--to", "open-clip"): "convert",
        ("sweep", *pair, *sweep, "--keep", f"t={far}", "--point", f"x={pair[1]}"): "sweep",
    }
    for command, name in printed.items():
        ended = clipmerge(*command, "--format", "json")
        assert ended.code == 0, ended.err
        assert fits(name, ended.json), command[0]
    assert fits("plan", json.loads(plan.read_text()))
    assert fits("sweep", json.loads((tmp_path / "s" / "sweep.json").read_text()))


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_refuses_what_no_command_writes(name: str) -> None:
    schema = json.loads(schema_text(name))
    assert schema["additionalProperties"] is False
    assert schema["required"]
