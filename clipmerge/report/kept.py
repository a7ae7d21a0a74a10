"""The section of a page that shows tasks that the model was not fine-tuned for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipmerge.planning.kept import Kept
from clipmerge.planning.kept_view import EXPLANATION, HEADS, kept_facts, kept_rows


def kept_section(kept: Sequence[Kept]) -> dict[str, Any]:
    """Values of the template ``kept``; the section is empty if nothing was measured.

    Args:
        kept: The tasks of a merge.
    """
    return {
        "kept": kept_rows(kept),
        "kept_heads": HEADS,
        "kept_facts": kept_facts(kept),
        "kept_explanation": EXPLANATION,
    }
