"""The page and the model card of a merge, from its record alone.

A page loads nothing from the network, and the same record gives the same page.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS
from clipmerge.families import FAMILIES
from clipmerge.options import with_flags
from clipmerge.planning.record import Record
from clipmerge.report.wording import decision_sentence, verdict_table

if TYPE_CHECKING:
    from markupsafe import Markup

#: The card, and the report beside it.
CARD = "README.md"
REPORT = "report.html"
_CODE = re.compile(r"`([^`]+)`")
# Beginnings of names that want "an": "an eight", but "a one" and "a unicorn".
_VOWEL = re.compile(r"(?!one|uni|use|eu)[aeiou]", re.IGNORECASE)


def html_page(record: Record) -> str:
    """The report of a merge."""
    values: dict[str, Any] = {
        "record": record,
        "decision": decision_sentence(record.plan, record.measured),
        "accuracies": None,
        "picture": None,
    }
    if record.verdict:
        values["accuracies"] = verdict_table(record.verdict)
    alphas = {layer.alpha for layer in record.plan.layers.values()}
    if record.verdict or len(alphas) > 1:  # matplotlib takes longer than a small merge
        from clipmerge.report.figures import merge_figure, png

        values["picture"] = png(merge_figure(record))
    return render("report.html.j2", values)


def model_card(record: Record, *, repo_id: str | None = None, license: str | None = None) -> str:
    """The README.md of a merged model."""
    library = "timm" if record.family == "timm" else "transformers"
    if OPEN_CLIP_WEIGHTS[0] in record.files:
        library = "open_clip"
    values: dict[str, Any] = {
        "record": record,
        "where": repo_id or ".",
        "license": license,
        "bases": [],
        "library": library,
        # single files had no configuration beside them
        "configured": not record.files or record.files.keys() & {"config.json", OPEN_CLIP_CONFIG},
        "family": next((each for each in FAMILIES if each.name == record.family), None),
        "settings": decision_sentence(record.plan),
        "judged": None,
    }
    if any(source.revision for source in record.plan.checkpoints):
        values["bases"] = _hub_repositories(record)
    if record.verdict:
        values["judged"] = _card_fields(record)
    return render("card.md.j2", values)


def _hub_repositories(record: Record) -> list[str]:
    """The models on the Hub that were merged."""
    from clipmerge.hub import parse_hub_id

    repositories: list[str] = []
    for source in record.plan.checkpoints:
        found = parse_hub_id(source.source)
        if source.revision and found and found.repo_id not in repositories:
            repositories.append(found.repo_id)
    return repositories


def _card_fields(record: Record) -> dict[str, Any]:
    """What the card tells of the verdict, and prompts of classes that were judged."""
    assert record.verdict is not None
    datasets = {}
    for source in record.verdict.sources:
        if not source.source.startswith("hf://"):
            continue
        from clipmerge.hub import dataset_repo

        if repository := dataset_repo(source.source):
            datasets[source.name] = repository
    prompts = []
    for name in record.verdict.target.class_names:
        article = "an" if _VOWEL.match(name) else "a"
        prompts.append(f"a photo of {article} {name}")
    return {
        "sentence": with_flags(record.verdict.sentence),
        "accuracies": verdict_table(record.verdict),
        "prompts": prompts,
        "datasets": datasets,
    }


def render(template: str, values: Mapping[str, Any]) -> str:
    """Render a template of this folder."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=".html" in template,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,  # folding constants takes a quarter of the time to compile
    )
    environment.filters |= {"base64": b64encode, "cell": _cell_text, "flags": mark_code}
    return environment.get_template(template).render(values)


def mark_code(text: str) -> Markup:
    """Write parameters as flags, and mark what stands between backticks as code.

    Example:
        >>> mark_code("`clipmerge merge` & `max_loss`")
        Markup('<code>clipmerge merge</code> &amp; --max-loss')
    """
    from markupsafe import Markup, escape

    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(with_flags(text)))))


def _cell_text(value: object) -> str:
    """Escape a value for one cell or line of Markdown, so that it is neither markup nor HTML."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;")
    text = text.replace("<", "&lt;")
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", text)
