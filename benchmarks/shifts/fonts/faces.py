"""Typefaces and their characters as drawings, from packages that are fetched by name.

A *face* is one weight of one typeface, spelled ``lora`` or, if it is not the regular one,
``lora-700``. Nothing of the packages is kept in the repository; each carries its own licence (OFL,
Apache or the Ubuntu font licence).
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.shifts.packages import Package, fetch_packages
from clipmerge.errors import DataError

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont
    from torch import Tensor

#: Side of a drawing in pixels: twice the model's, so that it can be rotated and shrunk without
#: aliasing.
SIZE = 64
#: Longer side of a character in a drawing.
_INK = 54
_DRAWN_AT = 120
_VERSION = "5.3.0"
_REGULAR = "400"


def package_of(face: str) -> str:
    """Name the package of a face, with the version used for the results.

    Example:
        >>> package_of("pt-serif"), package_of("pt-serif-700")
        ('@fontsource/pt-serif@5.3.0', '@fontsource/pt-serif@5.3.0')
    """
    return f"@fontsource/{_name_and_weight(face)[0]}@{_VERSION}"


def _name_and_weight(face: str) -> tuple[str, str]:
    found = re.fullmatch(r"(.+)-([1-9]00)", face)
    return (found[1], found[2]) if found else (face, _REGULAR)


class Face:
    """One face."""

    def __init__(self, face: str, package: Package) -> None:
        """Read the files."""
        name, weight = _name_and_weight(face)
        # a package has one file for each part of Unicode
        pattern = f"files/{name}-*-{weight}-normal.woff"
        self.files = package.read(sorted(file for file in package.names if fnmatch(file, pattern)))
        if not self.files:
            raise DataError(
                f"{package.archive}: no {name} of weight {weight}; name another weight, or another"
                " face"
            )

    @cached_property
    def file_of(self) -> dict[str, str]:
        """The file of each character that the face has."""
        from fontTools.ttLib import TTFont

        found: dict[str, str] = {}
        for file in sorted(self.files):
            with TTFont(io.BytesIO(self.files[file]), lazy=True) as font:
                for code in font.getBestCmap() or {}:
                    found.setdefault(chr(code), file)
        return found

    def drawn(self, character: str) -> Tensor:
        """Draw one character in black, centred, its longer side always of the same length.

        Returns:
            RGBA of 8 bits, shape (4, SIZE, SIZE).
        """
        import numpy as np
        import torch
        from PIL import Image, ImageDraw

        font = self._font(self.file_of[character])
        left, top, right, bottom = font.getbbox(character)
        cover = Image.new("L", (max(1, int(right - left)), max(1, int(bottom - top))))
        ImageDraw.Draw(cover).text((-left, -top), character, fill=255, font=font)
        box = cover.getbbox()
        if box is None:
            raise DataError(f"{self.file_of[character]}: nothing is seen of {character!r}")
        cover = cover.crop(box)
        scale = _INK / max(cover.size)
        cover = cover.resize(
            [max(1, round(side * scale)) for side in cover.size], Image.Resampling.LANCZOS
        )
        canvas = Image.new("L", (SIZE, SIZE))
        canvas.paste(cover, ((SIZE - cover.width) // 2, (SIZE - cover.height) // 2))
        alpha = torch.from_numpy(np.asarray(canvas).copy())
        return torch.cat([torch.zeros(3, SIZE, SIZE, dtype=torch.uint8), alpha[None]])

    def _font(self, file: str) -> FreeTypeFont:
        from PIL import ImageFont

        return ImageFont.truetype(
            io.BytesIO(self.files[file]), _DRAWN_AT, layout_engine=ImageFont.Layout.BASIC
        )


def open_faces(faces: Iterable[str], folder: Path) -> dict[str, Face]:
    """Fetch the packages of some faces."""
    wanted = list(dict.fromkeys(faces))
    packages = fetch_packages([package_of(face) for face in wanted], folder)
    return {face: Face(face, packages[package_of(face)]) for face in wanted}


def load_drawings(
    folder: Path, faces: Sequence[str], characters: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """Draw every character of every face, or read earlier drawings.

    Returns:
        For each face the drawings, RGBA of 8 bits, shape (N, 4, SIZE, SIZE), and their indices in
        ``characters``, shape (N,), ascending.
    """
    import torch
    from safetensors.torch import load_file, save_file

    found = {}
    place = folder / f"drawings-{hashlib.sha256(characters.encode()).hexdigest()[:8]}"
    files = {face: place / f"{face}.safetensors" for face in faces}
    opened = open_faces(
        [face for face, kept in files.items() if not kept.is_file()], folder / "packages"
    )
    for face, kept in files.items():
        if face in opened:
            places = [
                at for at, character in enumerate(characters) if character in opened[face].file_of
            ]
            pixels = torch.stack([opened[face].drawn(characters[at]) for at in places])
            place.mkdir(parents=True, exist_ok=True)
            scratch = kept.with_suffix(".part")
            save_file({"pixels": pixels, "places": torch.tensor(places)}, scratch)
            scratch.rename(kept)
        tensors = load_file(kept)
        found[face] = tensors["pixels"], tensors["places"]
    return found
