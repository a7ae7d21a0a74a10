"""The HTML report and the model card of a merge, made from its record alone.

A report loads nothing from the network. Equal records give equal reports.
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
from clipmerge.planning.record import Record, Verdict
from clipmerge.report.wording import Table, decision_sentence, unjudged_sentence, verdict_table

if TYPE_CHECKING:
    from markupsafe import Markup

#: File names of the card and of the report.
CARD = "README.md"
REPORT = "report.html"
_CODE = re.compile(r"`([^`]+)`")


def html_page(record: Record, shifts: Table | None = None) -> str:
    """Return the HTML report of a merge, with the table ``shifts`` of accuracies if it is given."""
    values = {
        "record": record,
        "decision": decision_sentence(record.plan, record.measured),
        "accuracies": record.verdict and verdict_table(record.verdict),
        "picture": merge_picture(record),
        "not_judged": unjudged_sentence(record.plan),
        "shifts": shifts,
    }
    return render("report.html.j2", values)


def merge_picture(record: Record) -> bytes | None:
    """Return the picture of a merge as PNG; ``None`` if it would show nothing, because all layers
    have one alpha and no `ood` images judged the merge.
    """
    alphas = {layer.alpha for layer in record.plan.layers.values()}
    if len(alphas) == 1 and not (record.verdict and record.verdict.ood):
        return None
    from clipmerge.report.figures import merge_figure, png  # slower than a small merge

    return png(merge_figure(record))


def model_card(record: Record, *, repo_id: str | None = None, license: str | None = None) -> str:
    """Return the text of the model card, README.md, of a merge."""
    library = "timm" if record.family == "timm" else "transformers"
    if OPEN_CLIP_WEIGHTS[0] in record.files:
        library = "open_clip"
    values = {
        "record": record,
        "where": repo_id or ".",
        "license": license,
        "bases": _hub_repositories(record),
        "library": library,
        # a merge of two files has no configuration
        "configured": not record.files or record.files.keys() & {"config.json", OPEN_CLIP_CONFIG},
        "family": next((each for each in FAMILIES if each.name == record.family), None),
        "settings": decision_sentence(record.plan),
        "judged": record.verdict and _card_fields(record.verdict),
    }
    return render("card.md.j2", values)


def _hub_repositories(record: Record) -> list[str]:
    """List the models on the Hub that were merged."""
    repositories = []
    for source in record.plan.checkpoints:
        if source.revision:  # only a model on the Hub has one
            repositories.append(re.split("[@#]", source.source.removeprefix("hf://"))[0])
    return list(dict.fromkeys(repositories))


def _card_fields(verdict: Verdict) -> dict[str, Any]:
    """Collect the parts of a model card that come from the verdict, such as example prompts."""
    from clipmerge.hub import dataset_repo

    datasets = {source.name: dataset_repo(source.source) for source in verdict.sources}
    return {
        "sentence": with_flags(verdict.sentence),
        "accuracies": verdict_table(verdict),
        "prompts": [f"a photo of a {name}" for name in verdict.target.class_names],
        "datasets": {name: found for name, found in datasets.items() if found},
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
    environment.filters |= {
        "base64": b64encode,
        "cell": _cell_text,
        "code": mark_code,
        "flags": lambda text: mark_code(with_flags(text)),
    }
    return environment.get_template(template).render(values)


def mark_code(text: str) -> Markup:
    """Turn text between backticks into HTML code.

    Example:
        >>> mark_code("`clipmerge merge` & more")
        Markup('<code>clipmerge merge</code> &amp; more')
    """
    from markupsafe import Markup, escape

    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))


def _cell_text(value: object) -> str:
    """Escape a value for one cell or line of Markdown."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;")
    text = text.replace("<", "&lt;")
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", text)
