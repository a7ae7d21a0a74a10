"""The public form of a record, made from values known to be public, before anything is written.

A local path is reduced to its last part, tokens are removed, and a note that may still name a place
on the author's machine is left out. Published cards, records and reports are made from the result,
so they need no replacements later.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Callable
from pathlib import PurePath

from clipmerge.errors import printable
from clipmerge.files.side_files import MACHINE_PATH, PATH_STARTS
from clipmerge.hub.ids import dataset_repo, parse_hub_id
from clipmerge.output.record import DataSource, Record, map_text
from clipmerge.planning.measurements import CalibrationRecord, UnlabelledRecord
from clipmerge.planning.merge_effect import MergeEffect
from clipmerge.planning.other_tasks import OtherTaskScores
from clipmerge.planning.plan import last_part

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{4,}")
# A path may hold blanks and quotes, so its end is unknown: everything up to the last slash is
# removed.
_MACHINE_PATH = re.compile(
    rf"{PATH_STARTS}(?:{MACHINE_PATH}|/(?=[^/\s])|file:/)(?:.*[\\/])?", re.DOTALL
)
# Sign of a remaining path after all known paths are removed: a slash or a backslash before a name.
_SOME_PATH = re.compile(r"[/\\][\w.\-]")


def public_record(record: Record) -> Record:
    """Return a copy of a record without paths on the author's machine, tokens and pictures of
    images that are not public.
    """
    clean = _make_cleaner(record)
    data = map_text(record.as_json(), lambda text: _MACHINE_PATH.sub("", clean(text).rstrip("/")))
    data["command"] = _public_command(record)
    warnings = [_public_warning(warning, clean, record) for warning in record.warnings]
    data["warnings"] = list(dict.fromkeys(warnings))
    data["output"] = last_part(record.output) if record.output else None
    if record.verdict:
        # pictures of the author's own images are not published
        is_public = dataset_repo(record.verdict.source) is not None
        data["verdict"]["thumbnails"] = list(record.verdict.thumbnails) if is_public else []
        data["verdict"]["examples"] = data["verdict"]["examples"] if is_public else []
    return Record.model_validate(data)


def data_sources(
    record: Record,
) -> list[CalibrationRecord | UnlabelledRecord | MergeEffect | OtherTaskScores | DataSource]:
    """List the sources of images: of the decision and the verdict, then of published accuracies."""
    unlabelled = record.calibration and record.calibration.unlabelled
    measured_on = [entry for entry in (record.calibration, unlabelled, record.verdict) if entry]
    return [*measured_on, *record.other_tasks, *(record.sources or {}).values()]


def _make_cleaner(record: Record) -> Callable[[str], str]:
    """Reduce the paths that the record's own fields hold to their last part, wherever they stand,
    and remove tokens.
    """
    sources = [
        entry.source
        for _, entry in record.checkpoints
        if not (entry.revision and parse_hub_id(entry.source))
    ]
    sources += [
        entry.source
        for entry in data_sources(record)
        if entry.source and dataset_repo(entry.source) is None
    ]
    local = {path for path in (*sources, record.output or "") if path and path != last_part(path)}
    shortened = []
    for path in sorted(local, key=len, reverse=True):
        # regardless of quotes and other text around it
        if PurePath(path).is_absolute() or path.startswith("~"):
            pattern = re.compile(re.escape(path.rstrip("/")))
        else:  # it may be a word of a text
            pattern = re.compile(rf"(?<![\w./-]){re.escape(path)}(?![\w./-])")
        shortened.append((pattern, last_part(path).replace("\\", r"\\")))

    def clean(text: str) -> str:
        for pattern, name in shortened:
            text = pattern.sub(name, text)
        return _TOKEN.sub("hf_...", text)

    return clean


def _public_names(record: Record) -> set[str]:
    """Words with a slash that are not paths: ids of models and data sets on the Hub."""
    images = data_sources(record)
    checkpoints = {
        entry.source
        for _, entry in record.checkpoints
        if entry.revision and parse_hub_id(entry.source)
    }
    data = {entry.source for entry in images if entry.source and dataset_repo(entry.source)}
    return checkpoints | data


def _public_command(record: Record) -> str:
    """Rewrite the command word by word: flags, numbers and Hub ids stay, everything else becomes
    its last part.
    """
    try:
        words = shlex.split(record.command)
    except ValueError:  # invalid shell quoting
        return ""
    public = _public_names(record)
    public |= {word for flag, word in itertools.pairwise(words) if flag == "--push"}
    return shlex.join(_public_word(word, public) for word in words)


def _public_word(word: str, public: set[str]) -> str:
    flag, equals, value = word.partition("=")
    if equals and (flag.startswith("--") or "/" not in flag):
        return f"{flag}={_public_word(value, public)}"
    word = _TOKEN.sub("hf_...", word)
    is_public = word in public or word.startswith("hf://")
    return word if is_public or not ("/" in word or "\\" in word) else last_part(word)


def _public_warning(warning: str, clean: Callable[[str], str], record: Record) -> str:
    """A warning without names of files that nobody else should see; replaced if a path remains."""
    text = printable(clean(warning))
    if _names_a_path(text, record):
        return "a note was removed because it names files on the author's machine"
    return text


def _names_a_path(text: str, record: Record) -> bool:
    for name in sorted(_public_names(record), key=len, reverse=True):
        text = text.replace(name, "")
    text = re.sub(r"https?://\S+|hf://\S+", "", text)
    return bool(_SOME_PATH.search(text) or _MACHINE_PATH.search(text))
