"""Emoji of several vendors as pictures with one name each, from packages that are fetched by name.

A *glyph* is one vendor's drawing of one emoji. A class is an emoji that every vendor draws: one
code point (and perhaps the variation selector), no flag, no skin tone, no joined sequence. Nothing
of the packages is kept in the repository; licences: twemoji CC-BY 4.0, openmoji CC BY-SA 4.0,
Fluent MIT.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.shifts.packages import Package, fetch_packages
from clipmerge.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

#: Side of a stored glyph in pixels: twice the model's, so that it can be rotated and shrunk without
#: aliasing.
GLYPH_SIZE = 64
_SELECTOR = "\ufe0f"
# Every class prompt is encoded in every step of fine-tuning, so a few long names would cost as much
# as all others.
_MOST_WORDS = 4


@dataclass(frozen=True)
class Vendor:
    """Where one vendor's drawings are.

    Attributes:
        package: Name on npm, with the version used for the results.
        folder: Folder in the package.
        suffix: Suffix of the files.
        stem_of: Returns the stem of the file's name, given an emoji and its English name.
    """

    package: str
    folder: str
    suffix: str
    stem_of: Callable[[str, str], str]

    def file_of(self, symbol: str, name: str) -> str:
        """The drawing of an emoji, as a path in the package."""
        return f"{self.folder}/{self.stem_of(symbol, name)}{self.suffix}".removeprefix("/")


def _code(emoji: str, _name: str) -> str:
    return "-".join(f"{ord(character):x}" for character in emoji.replace(_SELECTOR, ""))


def _upper_code(emoji: str, name: str) -> str:
    return _code(emoji, name).upper()


def _slug(_emoji: str, name: str) -> str:
    """Spell a name like fluentui-emoji.

    Example:
        >>> _slug("", "A_button_(blood_type)")
        'a-button-blood-type'
    """
    return re.sub(r"[^a-z0-9-]", "", plain(name).lower().replace("_", "-"))


_OPENMOJI, _FLUENT = "openmoji@17.0.0", "fluentui-emoji@1.3.0"
VENDORS: dict[str, Vendor] = {
    "twemoji": Vendor("@twemoji/svg@15.0.0", "", ".svg", _code),
    "openmoji": Vendor(_OPENMOJI, "color/svg", ".svg", _upper_code),
    "openmoji-black": Vendor(_OPENMOJI, "black/svg", ".svg", _upper_code),
    "fluent-flat": Vendor("@lobehub/fluent-emoji-flat@1.1.0", "assets", ".svg", _code),
    "fluent-3d": Vendor("@lobehub/fluent-emoji-3d@1.1.0", "assets", ".webp", _code),
    "fluent-contrast": Vendor(_FLUENT, "icons/high-contrast", ".svg", _slug),
}
"""Every style of drawing, by the name of its source in the results."""


def plain(name: str) -> str:
    """Spell a name in ASCII.

    Example:
        >>> plain("piñata")
        'pinata'
    """
    return unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()


def emoji_names() -> dict[str, str]:
    """List every emoji of one code point with its English name."""
    try:
        import emoji
    except ImportError as error:
        raise DataError(
            "the names come from the package `emoji`; `pip install 'clipmerge[benchmarks]'`"
        ) from error
    qualified = emoji.STATUS["fully_qualified"]
    found: dict[str, str] = {}
    for symbol, told in sorted(emoji.EMOJI_DATA.items()):
        name = told["en"].strip(":")
        if told["status"] == qualified and len(symbol.replace(_SELECTOR, "")) == 1:
            found.setdefault(plain(name), symbol)
    return {symbol: name for name, symbol in found.items()}


def class_files(packages: Mapping[str, Package]) -> dict[str, dict[str, str]]:
    """Find the emoji that every vendor draws: by class and vendor, the file in the vendor's
    package."""
    found = {}
    for symbol, name in emoji_names().items():
        files = {key: vendor.file_of(symbol, name) for key, vendor in VENDORS.items()}
        is_drawn = all(file in packages[VENDORS[key].package].names for key, file in files.items())
        if len(class_folder(name).split("_")) <= _MOST_WORDS and is_drawn:
            found[class_folder(name)] = files
    return dict(sorted(found.items()))


def class_folder(name: str) -> str:
    """Turn an emoji's name into its class folder, which reads as a caption once `_` is a space.

    Example:
        >>> class_folder("A_button_(blood_type)")
        'a_button_blood_type'
    """
    return re.sub(r"[^a-z0-9_]", "", name.lower().replace("-", "_"))


def rendered(file: str, content: bytes) -> Tensor:
    """Render one drawing, whole and centred.

    Returns:
        RGBA of 8 bits, shape (4, GLYPH_SIZE, GLYPH_SIZE).
    """
    import numpy as np
    import torch
    from PIL import Image

    data = _svg_pixels(file, content) if file.endswith(".svg") else content
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    image.thumbnail((GLYPH_SIZE, GLYPH_SIZE), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (GLYPH_SIZE, GLYPH_SIZE))
    canvas.paste(image, ((GLYPH_SIZE - image.width) // 2, (GLYPH_SIZE - image.height) // 2))
    return torch.from_numpy(np.asarray(canvas).copy()).permute(2, 0, 1).contiguous()


def _svg_pixels(file: str, content: bytes) -> bytes:
    try:
        import resvg_py
    except ImportError as error:
        raise DataError(
            "emoji are rendered by `resvg-py`; `pip install 'clipmerge[benchmarks]'`"
        ) from error
    try:
        # these packages have no text that would need the system's fonts
        text = content.decode("utf-8")
        return bytes(
            resvg_py.svg_to_bytes(svg_string=text, width=2 * GLYPH_SIZE, skip_system_fonts=True)
        )
    except ValueError as error:
        raise DataError(f"{file}: resvg cannot render it ({error})") from error


def load_glyphs(
    folder: Path, classes: int | None = None
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Render every class of every vendor, or read earlier renderings.

    Returns:
        Class folders, sorted; and by vendor RGBA of 8 bits, shape (classes, 4, GLYPH_SIZE,
        GLYPH_SIZE).
    """
    return _load(
        folder, f"glyphs-{classes or 'all'}", lambda names: spread(names, classes or len(names))
    )


def load_other_glyphs(
    folder: Path, taken: int, classes: int
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Render classes that `load_glyphs` leaves out, and some of its classes if there are not enough
    others."""
    return _load(
        folder, f"glyphs-{classes}-beside-{taken}", lambda names: beside(names, taken, classes)
    )


def spread(names: Sequence[str], count: int) -> list[str]:
    """Choose this many names, evenly spaced.

    Example:
        >>> spread("abcdefg", 3)
        ['a', 'c', 'e']
    """
    return [names[place * len(names) // count] for place in range(count)]


def beside(names: Sequence[str], taken: int, count: int) -> list[str]:
    """Choose names that `spread` does not choose, then some that it does, evenly spaced, until
    there are enough.

    Example:
        >>> beside("abcdefg", 3, 5)
        ['a', 'b', 'd', 'f', 'g']
    """
    had = spread(names, taken)
    others = [name for name in names if name not in set(had)]
    others = spread(others, min(count, len(others)))
    return sorted([*others, *spread(had, count - len(others))])


def _load(
    folder: Path, name: str, choose: Callable[[Sequence[str]], list[str]]
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    kept = folder / f"{name}.safetensors"
    if not kept.is_file():
        packages = fetch_packages(
            [vendor.package for vendor in VENDORS.values()], folder / "packages"
        )
        files = class_files(packages)
        names = choose(sorted(files))
        tensors = {}
        for key, vendor in VENDORS.items():
            chosen = [files[name][key] for name in names]
            drawings = packages[vendor.package].read(chosen)
            tensors[key] = torch.stack([rendered(file, drawings[file]) for file in chosen])
        scratch = kept.with_suffix(".part")
        save_file(tensors, scratch, metadata={"classes": " ".join(names)})
        scratch.rename(kept)
    with safe_open(kept, "pt") as opened:
        names = opened.metadata()["classes"].split()
        return tuple(names), {vendor: opened.get_tensor(vendor) for vendor in VENDORS}
