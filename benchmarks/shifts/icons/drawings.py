"""Icons of several sets with their captions, from packages that are fetched by name.

Nothing of the packages is kept in the repository; licences: Phosphor, Tabler and Bootstrap MIT,
Lucide ISC, Material Symbols Apache-2.0.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.shifts.emoji.glyphs import rendered
from benchmarks.shifts.packages import Package, fetch_packages

#: Captions of one icon in training; the first is the one that it is judged by.
CAPTIONS = 4
_TAGS = 2
_LONGEST_TAG = 16


@dataclass(frozen=True)
class Style:
    """Where the drawings of one style are: the package, with the version used for the results, and
    the pattern of its files, with the icon's ``name``."""

    package: str
    file: str


_PHOSPHOR, _TABLER = "@phosphor-icons/core@2.1.1", "@tabler/icons@3.52.0"
_LUCIDE, _BOOTSTRAP = "lucide-static@1.62.0", "bootstrap-icons@1.13.2"
_MATERIAL = "@material-symbols/svg-400@0.48.2"
STYLES = {
    "phosphor-fill": Style(_PHOSPHOR, r"assets/fill/(?P<name>.*)-fill\.svg"),
    "tabler": Style(_TABLER, r"icons/outline/(?P<name>.*)\.svg"),
    "tabler-filled": Style(_TABLER, r"icons/filled/(?P<name>.*)\.svg"),
    "material": Style(_MATERIAL, r"outlined/(?P<name>.*)(?<!-fill)\.svg"),
    "material-rounded": Style(_MATERIAL, r"rounded/(?P<name>.*)-fill\.svg"),
    "lucide": Style(_LUCIDE, r"icons/(?P<name>.*)\.svg"),
    "bootstrap": Style(_BOOTSTRAP, r"icons/(?P<name>.*)(?<!-fill)\.svg"),
    "bootstrap-fill": Style(_BOOTSTRAP, r"icons/(?P<name>.*)-fill\.svg"),
}
"""Every style, by the name of its source in the results."""


@dataclass(frozen=True)
class Icons:
    """The icons of one style.

    Attributes:
        names: Name of each, words with a space between.
        captions: `CAPTIONS` captions of each.
        cover: Opacity of the black drawing, 8 bits, (icons, 1, 64, 64).
    """

    names: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    cover: Tensor

    def chosen(self, positions: Sequence[int]) -> Icons:
        """Some of them."""
        return Icons(
            tuple(self.names[at] for at in positions),
            tuple(self.captions[at] for at in positions),
            self.cover[list(positions)],
        )

    def named(self, names: frozenset[str]) -> Icons:
        """Those with one of these names."""
        return self.chosen([at for at, name in enumerate(self.names) if name in names])


def load_icons(folder: Path) -> dict[str, Icons]:
    """Render every icon of every style, or read earlier renderings."""
    files = {title: folder / f"{title}.safetensors" for title in STYLES}
    if not all(file.is_file() for file in files.values()):
        _render(files, folder / "packages")
    return {title: _read(file) for title, file in files.items()}


def spelled(name: str) -> str:
    """Spell a name as words.

    Example:
        >>> spelled("arrow_left-alt")
        'arrow left alt'
    """
    return re.sub(r"[_-]+", " ", name).strip()


def captions_of(name: str, tags: Sequence[str]) -> tuple[str, ...]:
    """Write captions of one icon from its name and tags.

    Example:
        >>> captions_of("trash-simple", ["*new*", "garbage", "trash-simple", "delete"])[:2]
        ('trash simple, garbage, delete', 'trash simple')
        >>> captions_of("trash", [])[0]
        'trash'
    """
    title = spelled(name)
    words = [spelled(tag.lower()) for tag in tags if re.fullmatch(r"[\w .&-]+", tag, re.ASCII)]
    words = [word for word in dict.fromkeys(words) if word != title and len(word) <= _LONGEST_TAG]
    first = ", ".join([title, *words[:_TAGS]])
    last = ", ".join([title, *words[-_TAGS:][::-1]])
    return first, title, f"an icon of {title}", last if words else f"{title} symbol"


def common_words(captions: Sequence[str], count: int) -> list[str]:
    """The most common words of the captions."""
    words = Counter(word for caption in captions for word in caption.replace(",", "").split())
    return sorted(sorted(words, key=lambda word: (-words[word], word))[:count])


def _json(package: Package, name: str) -> Mapping[str, dict[str, list[str]]]:
    found: Mapping[str, dict[str, list[str]]] = json.loads(package.read([name])[name])
    return found


def _phosphor_tags(package: Package) -> dict[str, list[str]]:
    """Tags by name; the package has them as a program's source alone."""
    file = "dist/index.mjs"
    source = package.read([file])[file].decode("utf-8")
    entries = re.finditer(r'\bname: "(?P<name>[^"]+)".*?tags: \[(?P<tags>[^]]*)\]', source, re.S)
    return {entry["name"]: re.findall(r'"([^"]*)"', entry["tags"]) for entry in entries}


def _render(files: Mapping[str, Path], packages_folder: Path) -> None:
    packages = fetch_packages([style.package for style in STYLES.values()], packages_folder)
    tags = {
        _PHOSPHOR: _phosphor_tags(packages[_PHOSPHOR]),
        _TABLER: {
            name: [str(tag) for tag in about["tags"]]
            for name, about in _json(packages[_TABLER], "icons.json").items()
        },
        _LUCIDE: _json(packages[_LUCIDE], "tags.json"),
    }
    for title, style in STYLES.items():
        package = packages[style.package]
        names = {
            match["name"]: file
            for file in sorted(package.names)
            if (match := re.fullmatch(style.file, file))
        }
        content = package.read(names.values())
        cover = torch.stack([rendered(file, content[file])[3:] for file in names.values()])
        tags_of = tags.get(style.package, {})
        captions = {spelled(name): captions_of(name, list(tags_of.get(name, ()))) for name in names}
        scratch = files[title].with_suffix(".part")
        save_file({"cover": cover}, scratch, metadata={"captions": json.dumps(captions)})
        scratch.rename(files[title])


def _read(file: Path) -> Icons:
    with safe_open(file, "pt") as opened:
        captions = json.loads(opened.metadata()["captions"])
        return Icons(
            tuple(captions), tuple(map(tuple, captions.values())), opened.get_tensor("cover")
        )


def as_rgba(cover: Tensor) -> Tensor:
    """Black drawings as `photographed` takes them: RGBA in [0, 1], (icons, 4, 64, 64)."""
    alpha = cover.float() / 255
    return torch.cat([torch.zeros_like(alpha).expand(-1, 3, -1, -1), alpha], dim=1)
