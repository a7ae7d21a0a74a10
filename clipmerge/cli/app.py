"""The command line: flags, printing, exit codes. Torch and transformers are imported inside commands."""

from __future__ import annotations

import functools
import inspect as introspection
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from clipmerge.cli._options import (
    DEVICES,
    DTYPE_NAMES,
    Assignments,
    BatchSize,
    Classes,
    Data,
    DeviceName,
    DtypeName,
    FineTuned,
    ImageColumn,
    Images,
    ImagesAtOnce,
    LabelColumn,
    MaxShardSize,
    Output,
    Overwrite,
    RecipeName,
    Seed,
    Templates,
    Verbose,
    ZeroShot,
    byte_count,
    choice,
    command_line,
)
from clipmerge.cli._terminal import (
    Format,
    Terminal,
    Unprintable,
    fail,
    leave_it_to_the_main_process,
    noting,
    prepare_streams,
    printing,
    reporting_errors,
)
from clipmerge.cli.convert import convert_command
from clipmerge.cli.output import check_push, publish, push_command, report_command, show_merge
from clipmerge.cli.recipes import recipes_app
from clipmerge.cli.sweep import sweep_command
from clipmerge.errors import UsageError

if TYPE_CHECKING:
    from clipmerge.api.merge import MergeRequest

app = typer.Typer(
    name="clipmerge",
    help="Make a fine-tuned CLIP robust again by merging it with its zero-shot self, layer by layer.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
# the base of every complaint about flags, whether typer brings its own click or not
_UsageException: Any = typer.BadParameter.__base__


def main() -> None:
    """Run the command line; what is wrong with the flags is one line too."""
    prepare_streams()
    try:
        code = _run()
    except SystemExit as end:  # how `fail` ends
        code = int(end.code or 0)
    _leave_group(code)
    raise SystemExit(code)


def _run() -> int:
    try:
        with printing():
            return app(prog_name="clipmerge", standalone_mode=False) or 0
    except typer.Abort:
        fail("interrupted; nothing was left behind", 130)
    except Unprintable as error:
        fail(str(error), 1)
    except _UsageException as error:
        leave_it_to_the_main_process()
        where = error.ctx.command_path if error.ctx else "clipmerge"
        fail(f"{error.format_message().rstrip('.')}; see `{where} --help`", UsageError.exit_code)


def _leave_group(code: int) -> None:
    """Where there is a process group, end here: its threads may abort a process whose interpreter takes itself down.

    One aborted worker has the launcher end a run that had succeeded. Taking the group down first did not always help.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _version(value: bool) -> None:
    if value:
        from clipmerge import __version__

        typer.echo(f"clipmerge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(UsageError.exit_code)


def request_from_flags(
    *,
    zeroshot: ZeroShot,
    finetuned: FineTuned,
    recipe: RecipeName,
    data: Data = None,
    classes: Classes = None,
    template: Templates = None,
    assignments: Assignments = None,
    images: Images = 1024,
    batch_size: BatchSize = None,
    images_at_once: ImagesAtOnce = None,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = "keep",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
) -> MergeRequest:
    """Put the flags of a merge together; everything wrong with them is said here, before torch is imported."""
    from clipmerge.api.merge import Calibration, MergeRequest, check_request
    from clipmerge.images import Columns
    from clipmerge.images.prompts import check_templates
    from clipmerge.planning.recipe import load_recipe

    sources = [str(Path(source).resolve()) if Path(source).exists() else source for source in (zeroshot, *finetuned)]
    for which, source in enumerate(sources):
        if source in sources[:which]:
            raise UsageError(
                f"{finetuned[which - 1]}: is given twice; name the zero-shot and the fine-tuned checkpoint"
            )
    request = MergeRequest(
        zeroshot=zeroshot,
        finetuned=tuple(finetuned),
        recipe=load_recipe(recipe, assignments),
        calibration=Calibration(
            source=data,
            classes=classes,
            templates=check_templates(template or []),
            images=images,
            batch_size=batch_size,
            images_at_once=images_at_once,
            device=choice("--device", device, DEVICES),
            columns=Columns(image_column, label_column),
        ),
        seed=seed,
        dtype=choice("--dtype", dtype, DTYPE_NAMES),
        command=command_line(),
    )
    check_request(request)
    return request


def takes_request(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of `request_from_flags`; it gets in their place the request, and what they have it read.

    The latter are files and folders beside the checkpoints.
    """
    shared, own = _parameters(request_from_flags), _parameters(command)

    @functools.wraps(command)
    def wrapper(**flags: Any) -> None:
        from clipmerge.images.places import local_inputs

        given = {name: flags.pop(name) for name in shared}
        request = request_from_flags(**given)
        recipe = given["recipe"] if Path(given["recipe"]).is_file() else None  # not a folder of a recipe's name
        command(request, local_inputs(recipe, given["data"], given["classes"]), **flags)

    parameters = [*shared.values(), *own.values()]
    wrapper.__signature__ = introspection.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _parameters(function: Callable[..., Any]) -> dict[str, introspection.Parameter]:
    """The flags of a function, types resolved, as typer reads them; what `takes_request` puts in place is none."""
    hints = get_type_hints(function, localns={"MergeRequest": object}, include_extras=True)
    found = introspection.signature(function).parameters.values()
    flags = [p for p in found if p.name not in ("request", "read")]
    return {p.name: p.replace(annotation=hints[p.name], kind=p.KEYWORD_ONLY) for p in flags}


@app.command()
@reporting_errors
@takes_request
def merge(
    request: MergeRequest,
    read: list[Path],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure and decide, write nothing.")] = False,
    max_shard_size: MaxShardSize = None,
    no_hash: Annotated[
        bool, typer.Option("--no-hash", help="Record no sha256 of weights: quicker where they are large.")
    ] = False,
    overwrite: Overwrite = False,
    push: Annotated[str | None, typer.Option("--push", help="ORG/NAME on the Hub to publish the output to.")] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: create the repository private.")] = False,
    license: Annotated[
        str | None, typer.Option("--license", help="With --push: the licence, where the sources' differ.")
    ] = None,
    fmt: Output = Format.human,
    verbose: Verbose = False,
) -> None:
    """Measure, decide, merge and write."""
    from clipmerge.images.places import local_inputs
    from clipmerge.output.checks import check_output

    terminal = Terminal(fmt, verbose=verbose)
    limit = byte_count("--max-shard-size", max_shard_size)
    if output is None and not dry_run:
        raise UsageError("--output is missing: the folder to write (or --dry-run to write nothing)")
    if output is not None and not dry_run:
        check_output(output, overwrite=overwrite, inputs=local_inputs(request.zeroshot, *request.finetuned), read=read)
    if push is not None:
        check_push(push, output, private=private)
    from clipmerge.api.merge import make_plan, write_merge

    run = make_plan(replace(request, hashed=not no_hash), terminal)
    if not run.is_main:
        return
    if dry_run or output is None:
        from clipmerge.output.record import merge_record

        run.hash_inputs()
        record = merge_record(run, run.hashed_plan(), None, {})
        show_merge(terminal, record, "Dry run: nothing was written.")
        return
    record = write_merge(run, output, overwrite=overwrite, max_shard_size=limit)
    last_line = f"Wrote {output} (report: {output / 'report.html'})"
    if push is None:
        show_merge(terminal, record, last_line)
        return
    record["published"], said = publish(output, push, terminal, private=private, license=license)
    with noting(said):
        show_merge(terminal, record, f"{last_line}\n{said}")


@app.command()
@reporting_errors
@takes_request
def plan(
    request: MergeRequest,
    read: list[Path],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")],
    overwrite: Overwrite = False,
    fmt: Output = Format.human,
    verbose: Verbose = False,
) -> None:
    """Measure and decide like merge, and write the plan."""
    from clipmerge.output.checks import check_output_file
    from clipmerge.planning.plan import tensors_path

    terminal = Terminal(fmt, verbose=verbose)
    check_output_file(output, tensors_path(output), overwrite=overwrite)
    from clipmerge.api.merge import make_plan, write_plan
    from clipmerge.output.record import merge_record

    run = make_plan(request, terminal)
    if not run.is_main:
        return
    write_plan(run, output)
    record = merge_record(run, run.hashed_plan(), output, {})
    show_merge(terminal, record, f"Wrote {output}; carry it out with: clipmerge apply {output} --output DIR")


@app.command()
@reporting_errors
def apply(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="JSON file that plan wrote; may be edited.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    max_shard_size: MaxShardSize = None,
    overwrite: Overwrite = False,
    fmt: Output = Format.human,
    verbose: Verbose = False,
) -> None:
    """Carry out a plan: the same bytes as merge."""
    limit = byte_count("--max-shard-size", max_shard_size)
    terminal = Terminal(fmt, verbose=verbose)
    from clipmerge.api.merge import load_plan, write_merge
    from clipmerge.images.places import local_inputs
    from clipmerge.output.checks import check_output
    from clipmerge.planning.plan import tensors_path

    check_output(output, overwrite=overwrite, read=local_inputs(plan_file, tensors_path(plan_file)))
    run = load_plan(plan_file, terminal)
    if not run.is_main:
        return
    run.command = command_line()
    record = write_merge(run, output, overwrite=overwrite, max_shard_size=limit)
    show_merge(terminal, record, f"Wrote {output} (report: {output / 'report.html'})")


@app.command()
@reporting_errors
def inspect(
    zeroshot: ZeroShot,
    finetuned: Annotated[str | None, typer.Argument(help="The same, fine-tuned from ZEROSHOT.")] = None,
    no_weights: Annotated[
        bool, typer.Option("--no-weights", help="Compare names, shapes and dtypes only; a Hub model is not downloaded.")
    ] = False,
    fmt: Output = Format.human,
    verbose: Verbose = False,
) -> None:
    """List layers, how far each moved, and mismatches."""
    terminal = Terminal(fmt, verbose=verbose)
    from clipmerge.api.inspect import inspect_checkpoints, inspection_table

    record = inspect_checkpoints(zeroshot, finetuned, terminal, weights=not no_weights)
    terminal.result(record, lambda: inspection_table(record))


@app.command()
@reporting_errors
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="Folder, .safetensors file or org/name[@revision].")],
    data: Annotated[list[str], typer.Option(help="NAME=SOURCE; may be repeated.")],
    classes: Classes = None,
    template: Templates = None,
    batch_size: BatchSize = None,
    device: DeviceName = "auto",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    fmt: Output = Format.human,
    verbose: Verbose = False,
) -> None:
    """Measure zero-shot accuracy, one row a source."""
    terminal = Terminal(fmt, verbose=verbose)
    from clipmerge.images.prompts import check_templates

    templates = check_templates(template or [])
    chosen = choice("--device", device, DEVICES)
    from clipmerge.evaluation.accuracy import accuracy_table, evaluate_sources
    from clipmerge.images import Columns

    record = evaluate_sources(
        checkpoint,
        data,
        classes=classes,
        templates=templates,
        batch_size=batch_size,
        device=chosen,
        columns=Columns(image_column, label_column),
        progress=terminal,
    )
    terminal.result(record, lambda: accuracy_table(record))


@app.command()
@reporting_errors
def demo(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where models and images go; the user's cache by default."),
    ] = None,
    fmt: Output = Format.human,
    verbose: Verbose = False,
) -> None:
    """Train a small CLIP, break it, merge, and compare."""
    terminal = Terminal(fmt, verbose=verbose)
    from clipmerge.api.demo import demo_table, run_demo

    record = run_demo(output, terminal)
    terminal.result(record, lambda: demo_table(record))
    terminal.show("The last merge by hand:", f"  {record['command']}")


app.command("sweep")(sweep_command)
app.command("convert")(convert_command)
app.command("push")(push_command)
app.command("report")(report_command)
app.add_typer(recipes_app, name="recipes")
