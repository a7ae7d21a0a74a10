"""Whether the JSON of a command is what its published schema says, judged by the library
`jsonschema`."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

from jsonschema import Draft202012Validator

PUBLISHED = Path(__file__).parents[2] / "docs" / "schema"


def schema_of(words: Sequence[str]) -> str:
    """Name of the schema of what a command line prints with ``--json``, as in
    docs/reference/json.md."""
    command = words[0]
    if command in ("merge", "plan", "apply"):
        return "record"
    if command == "recipes":
        return "recipe" if "show" in words else "recipe-list"
    return command


@functools.cache
def _validator(name: str) -> Draft202012Validator:
    schema = json.loads((PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def check_schema(name: str, text: str) -> None:
    """Check a text, and that it is JSON without NaN and infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{name}: {constant} is not JSON")

    errors = list(_validator(name).iter_errors(json.loads(text, parse_constant=refuse)))
    assert not errors, f"{name}: {errors[0].json_path}: {errors[0].message[:300]}"
