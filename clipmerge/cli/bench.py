"""`clipmerge bench`: its flags, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack

import typer

from clipmerge.cli._options import command, command_line, output_flag
from clipmerge.cli._terminal import Terminal
from clipmerge.config import BenchOptions
from clipmerge.progress import format_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType


@command(BenchOptions)
def bench_command(
    terminal: Terminal,
    suite: Annotated[
        str,
        typer.Argument(
            metavar="SUITE", help="Name of a suite, a YAML file, or 'list' for all names."
        ),
    ],
    output: Annotated[Path | None, output_flag("Folder to write; bench-SUITE by default.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the downloads and the time they take; run nothing.",
            rich_help_panel="Output",
        ),
    ] = False,
    **options: Unpack[BenchOptions],
) -> None:
    """Reproduce published results by name.

    Pairs and data sets are given by name; the published figures are shown next to ours.
    """
    if suite == "list":
        _list_suites(terminal)
        return
    from clipmerge.api.bench import bench, bench_cost

    if dry_run:
        cost = bench_cost(suite, options)
        terminal.result("bench-cost", cost, lambda: _cost(cost))
        return
    target = output or Path(f"bench-{Path(suite).stem}")
    record = bench(
        suite, output=target, progress=terminal, command=command_line(), **options
    ).record
    terminal.result("bench", record, lambda: _results(record))
    terminal.show(f"Wrote {target} (page: {target / record['suite']}.md)")


def _list_suites(terminal: Terminal) -> None:
    from clipmerge.evaluation.suites.suite import load_suite, suite_names

    suites = [load_suite(name) for name in suite_names()]
    width = max(len(suite.name) for suite in suites) + 2
    record = {
        "suites": {suite.name: {"title": suite.title, "model": suite.model} for suite in suites}
    }
    lines = [f"{suite.name:{width}}{suite.title}, {suite.model}" for suite in suites]
    terminal.result("bench-list", record, lambda: "\n".join(lines))


def _results(record: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from clipmerge.cli.sweep import SweepTable

    parts: list[RenderableType] = []
    for pair in record["pairs"]:
        if pair["name"]:
            parts.append(Text(pair["name"], style="bold"))
        parts.append(SweepTable(pair["sweep"], page=f"{record['suite']}.md"))
        for row in pair["published"]:
            figures = ", ".join(f"{name} {value:g}" for name, value in row["accuracy"].items())
            parts.append(Text(f"published, {row['point']}: {figures} ({row['source']})"))
        parts.append(Text())
    return Group(*parts)


def _cost(cost: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.filesize import decimal
    from rich.text import Text

    from clipmerge.cli._console import table_of

    table = table_of("download", "size")
    for download in cost["downloads"]:
        size = "?" if download["bytes"] is None else decimal(download["bytes"])
        table.add_row(Text(download["what"]), "is here" if download["cached"] else size)
    total = "not known" if cost["bytes"] is None else f"at most {decimal(cost['bytes'])}"
    time = "The time is unknown: a source does not state its number of images (--limit N sets one)."
    if cost["seconds"] is not None:
        time = (
            f"{cost['forward_passes']:,} forward passes: about {format_seconds(cost['seconds'])} on"
            f" this machine, at {cost['flops_per_second'] / 1e12:.2g} TFLOP/s (0.4 of the speed of"
            " a matrix product). Recipes that learn take extra time, stated when they begin."
        )
    problems = list(
        dict.fromkeys(download["problem"] for download in cost["downloads"] if download["problem"])
    )
    return Group(table, *map(Text, [f"In all {total}.", time, *problems, *cost["notes"]]))
