"""`clipmerge merge`, `plan` and `apply`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipmerge.cli._terminal import Terminal
from clipmerge.cli.app import FineTuned, Output, RecipeName, ZeroShot, command
from clipmerge.options import ApplyOptions, MergeOptions, PlanOptions

if TYPE_CHECKING:
    from rich.console import RenderableType

    from clipmerge.planning.record import Record


@command
def merge_command(
    terminal: Terminal,
    zeroshot: ZeroShot,
    finetuned: FineTuned,
    output: Output,
    recipe: RecipeName = None,
    **options: Annotated[Any, MergeOptions],
) -> None:
    """Measure, decide, merge, judge and write."""
    from clipmerge.api.merge import merge

    result = merge(zeroshot, finetuned, recipe, output=output, progress=terminal, **options)
    record = result.record
    if record is None:  # of another process
        return
    data, last = record.as_json(), f"Wrote {output} (report: {output / 'report.html'})."
    if result.published is not None:
        data["published"] = result.published.model_dump()
        last += f" Published {result.published.url}."
    terminal.print_result(data, lambda: _render_summary(record, terminal), last)


def _render_summary(record: Record, terminal: Terminal) -> RenderableType:
    from clipmerge.report.terminal import summary

    return summary(record, verbose=terminal.verbose)


@command
def plan_command(
    terminal: Terminal,
    zeroshot: ZeroShot,
    finetuned: FineTuned,
    output: Output,
    recipe: RecipeName = None,
    **options: Annotated[Any, PlanOptions],
) -> None:
    """Measure and decide like merge, and write the plan."""
    from clipmerge.api.merge import plan
    from clipmerge.report.wording import decision_sentence

    made = plan(zeroshot, finetuned, recipe, output=output, progress=terminal, **options)
    apply = shlex.join(["clipmerge", "apply", str(output), "--output", "DIR"])
    terminal.print_result(
        made.model_dump(mode="json"),
        lambda: decision_sentence(made),
        f"Wrote {output}; apply it with: {apply} .",
    )


@command
def apply_command(
    terminal: Terminal,
    plan_file: Annotated[
        Path, typer.Argument(metavar="PLAN", help="JSON file written by plan; may be edited.")
    ],
    output: Output,
    **options: Annotated[Any, ApplyOptions],
) -> None:
    """Apply a plan: writes the same bytes as merge."""
    from clipmerge.api.apply import apply

    record = apply(plan_file, output=output, progress=terminal, **options).record
    if record is not None:
        last = f"Wrote {output} (report: {output / 'report.html'})."
        terminal.print_result(record.as_json(), lambda: _render_summary(record, terminal), last)
