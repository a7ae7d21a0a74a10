"""Examples and completions. Imports nothing that takes time, because every ``--help`` needs it."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any, cast

from typer.core import TyperCommand

from clipmerge.config import PANELS
from clipmerge.files.paths import recipe_files

_WIDTH = 50
_FLAG = re.compile(r"(?<!\S)(-\S+) (?!-)")
#: Examples under the help of each command: words after ``clipmerge``, and what they do.
_EXAMPLES = {
    "": (
        (
            "merge zeroshot finetuned --recipe auto --data val --output merged",
            "the recommended recipe",
        ),
        (
            (
                "sweep zeroshot finetuned --id t=test --ood o=shifted --recipe auto --data val"
                " --output sweep"
            ),
            "compare",
        ),
        ("merge --help", "all flags, and the recipes"),
    ),
    "merge": (
        (
            "merge zeroshot finetuned --recipe auto --data val --output merged",
            "the recommended recipe",
        ),
        (
            "merge zeroshot finetuned --recipe wise-ft --alpha 0.4 --output merged-0.4",
            "one alpha, no images",
        ),
        (
            "merge org/base org/tuned@main --recipe auto --data val --output merged",
            "checkpoints on the Hub",
        ),
    ),
    "plan": (
        (
            "plan zeroshot finetuned --recipe auto --data val --output plan.json",
            "decide now, merge later",
        ),
    ),
    "apply": (("apply plan.json --output merged", "carry out a plan, edited or not"),),
    "inspect": (("inspect zeroshot finetuned", "do they fit, and how far did each layer move"),),
    "evaluate": (
        ("evaluate merged --data val=val --data other=shifted", "accuracy on two sources"),
    ),
    "sweep": (
        (
            (
                "sweep zeroshot finetuned --id test=test --ood other=shifted --recipe auto --data"
                " val --output sweep"
            ),
            "the alpha curve, and a recipe beside it",
        ),
        (
            (
                "sweep zeroshot finetuned --id t=test --ood o=shifted --point mine=merged --output"
                " sweep"
            ),
            "and a checkpoint",
        ),
    ),
    "push": (
        ("push merged org/robust --private --evaluation accuracy.json", "publish, with accuracies"),
    ),
    "demo": (("demo --output demo", "merge and compare two small CLIPs"),),
    "recipes": (
        ("recipes show auto", "the file, with a comment on every option"),
        ("recipes copy auto mine.yaml", "a copy to edit; run it with --recipe mine.yaml"),
    ),
}


class GroupedHelp(TyperCommand):
    """A command whose help lists the flags under headings, in each the required ones first."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections."""
        sections: dict[str, list[tuple[bool, tuple[str, str]]]] = {"Arguments": []} | {
            name: [] for name in PANELS
        }
        for parameter in self.get_params(ctx):
            # None only where one is hidden
            line = cast(tuple[str, str], parameter.get_help_record(ctx))
            heading = "Arguments" if parameter.param_type_name == "argument" else "Options"
            heading = getattr(parameter, "rich_help_panel", None) or heading
            sections.setdefault(heading, []).append((not parameter.required, line))
        for heading, lines in sections.items():
            if lines:
                with formatter.section(heading):
                    formatter.write_dl(
                        [line for _, line in sorted(lines, key=lambda entry: entry[0])]
                    )


def examples(command: str) -> str:
    """Examples as the last part of a command's help."""
    lines = ["\b", "Examples:"]
    for words, what in _EXAMPLES.get(command, ()):
        # a flag stays with its value
        with_values = _FLAG.sub("\\1\N{NO-BREAK SPACE}", f"clipmerge {words}")
        folded = " \\\n      ".join(_in_lines(with_values)).replace("\N{NO-BREAK SPACE}", " ")
        lines += [f"  # {what}", f"  {folded}"]
    if command in ("merge", "plan", "sweep"):
        lines += ["", "\b", "Recipes (`clipmerge recipes` says what each one does):"]
        lines += [f"  {line}" for line in _in_lines(", ".join(recipe_files()))]
    return "\n".join(lines)


def _in_lines(words: str) -> list[str]:
    """Words in lines short enough for a narrow terminal; none is broken."""
    return textwrap.wrap(words, _WIDTH, break_long_words=False, break_on_hyphens=False)


def complete_recipe(incomplete: str) -> list[str]:
    """Complete a recipe: a shipped one, or a YAML file here."""
    folder, slash, _ = incomplete.rpartition("/")
    found = Path(folder + slash or ".").glob("*.y*ml")
    files = sorted(f"{folder}{slash}{file.name}" for file in found)
    return [name for name in (*recipe_files(), *files) if name.startswith(incomplete)]
