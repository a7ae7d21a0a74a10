"""Pages of made-up records, drawn once for all tests that read them."""

import functools
import json
from collections.abc import Callable
from typing import Any

import pytest

from clipmerge.output.record import MergeRecord
from clipmerge.report.page import html_page


@pytest.fixture(scope="session")
def html_of() -> Callable[[dict[str, Any]], str]:
    """The page of a record."""

    @functools.cache
    def drawn(text: str) -> str:
        return html_page(MergeRecord.model_validate(json.loads(text)))

    return lambda record: drawn(json.dumps(record))
