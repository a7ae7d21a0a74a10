"""`clipmerge merge`, `plan` and `apply`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipmerge.cli._terminal import Terminal
from clipmerge.cli.app import FineTuned, Output, RecipeName, ZeroShot, command
from clipmerge.errors import VerdictError
from clipmerge.options import ApplyOptions, MergeOptions, PlanOptions

if TYPE_CHECKING:
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

    try:
        result = merge(zeroshot, finetuned, recipe, output=output, progress=terminal, **options)
    except VerdictError as error:
        _print_record(terminal, error.result.record)
        raise
    last = f"Wrote {output} (report: {output / 'report.html'})."
    more = {}
    if result.published is not None:
        more["published"] = result.published.model_dump()
        last += f" Published {result.published.url}."
    _print_record(terminal, result.record, last, **more)


def _print_record(terminal: Terminal, record: Record | None, last: str = "", **more: Any) -> None:
    """Print the record of a merge. Only the main process has one."""
    if record is not None:
        from clipmerge.report.terminal import summary

        data = {**record.as_json(), **more}
        terminal.print_result(data, lambda: summary(record, verbose=terminal.verbose), last)


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
    """Apply a plan, and write the same bytes as merge."""
    from clipmerge.api.apply import apply

    record = apply(plan_file, output=output, progress=terminal, **options).record
    _print_record(terminal, record, f"Wrote {output} (report: {output / 'report.html'}).")
