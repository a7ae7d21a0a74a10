"""The section of a page that shows tasks that the model was not fine-tuned for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipmerge.planning.other_tasks import OtherTaskScores
from clipmerge.planning.other_tasks_view import EXPLANATION, HEADS, other_task_facts, other_task_rows


def other_tasks_section(kept: Sequence[OtherTaskScores]) -> dict[str, Any]:
    """Values of the template ``kept``; the section is empty if nothing was measured.

    Args:
        kept: The tasks of a merge.
    """
    return {
        "kept": other_task_rows(kept),
        "kept_heads": HEADS,
        "kept_facts": other_task_facts(kept),
        "kept_explanation": EXPLANATION,
    }
