"""The JSON that commands print and write, by name of its schema; `scripts/schemas` writes the JSON
Schemas.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any, cast

from pydantic import BaseModel

#: Module and class of each schema's model. Only the module that is needed is imported: defining all
#: takes 40 ms.
MODELS = {
    "cache": "output.listings:Cache",
    "convert": "output.listings:ConversionRecord",
    "data-list": "output.listings:DataList",
    "data-set": "output.listings:DataSet",
    "demo": "output.results:DemoRecord",
    "env": "output.listings:Environment",
    "evaluate": "output.results:EvaluationRecord",
    "inspect": "output.inspection:Inspection",
    "plan": "planning.plan:Plan",
    "push": "output.record:Published",
    "recipe": "planning.recipe:Recipe",
    "recipe-list": "output.listings:RecipeList",
    "record": "output.results:PrintedRecord",
    "sweep": "output.results:SweepRecord",
    "templates": "output.listings:TemplateSet",
}


def model_of(kind: str) -> type[BaseModel]:
    """The model of a schema."""
    return cast(type[BaseModel], resolve_name(f"clipmerge.{MODELS[kind]}"))


def json_text(kind: str, record: Mapping[str, Any]) -> str:
    """Write a record as JSON through the model of its schema, which refuses what the schema does
    not name.
    """
    data = (
        model_of(kind)
        .model_validate(record)
        .model_dump(mode="json", by_alias=True, exclude_unset=True)
    )
    return json.dumps(data, indent=2, allow_nan=False) + "\n"
