"""Emoji: a small ViT trained contrastively on two vendors' drawings, fine-tuned on a third's, and
tested on three others, of which it has seen two.

The drawings come from npm packages, by name; none of them is kept in the repository (twemoji CC-BY
4.0, openmoji CC BY-SA 4.0, Fluent MIT). A class is an emoji of one code point that every vendor
draws.
"""

from __future__ import annotations

import io
import math
import re
import subprocess
import tarfile
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from benchmarks.make_pairs.pair import Pair, Places, Roles, Spec, write_pair
from benchmarks.make_pairs.pictures import Picture, as_png
from benchmarks.make_pairs.pretraining import pretrain
from benchmarks.models import Regime

_CLASSES, _SIZE = 80, 32
_GLYPH = 2 * _SIZE  # so that a drawing can be rotated and shrunk without aliasing
_TEMPLATES = ("a photo of a {}.", "a drawing of a {}.", "a picture of the {}.", "{}.")
_TRAIN, _VAL, _TEST, _OOD = 10, 6, 4, 2  # pictures of each drawing
#: npm package, folder, suffix, and whether file names are in upper case.
_VENDORS = {
    "twemoji": ("@twemoji/svg@15.0.0", "", ".svg", False),
    "openmoji": ("openmoji@17.0.0", "color/svg/", ".svg", True),
    "openmoji-black": ("openmoji@17.0.0", "black/svg/", ".svg", True),
    "fluent-flat": ("@lobehub/fluent-emoji-flat@1.1.0", "assets/", ".svg", False),
    "fluent-3d": ("@lobehub/fluent-emoji-3d@1.1.0", "assets/", ".webp", False),
}


@dataclass(frozen=True)
class Styles:
    """Drawings that the zero-shot model has seen, that fine-tuning learns, and that test."""

    seen: tuple[str, ...]
    target: str
    others: tuple[str, ...]


_STYLES = {
    "emoji-3d": Styles(
        ("openmoji", "fluent-flat"), "fluent-3d", ("fluent-flat", "openmoji", "twemoji")
    ),
    "emoji-lines": Styles(
        ("twemoji", "fluent-3d"), "openmoji-black", ("fluent-3d", "fluent-flat", "twemoji")
    ),
}
_REGIMES = {
    "aggressive": Regime(3e-3, 12, text=True, mirror=False, move=1),
    "mild": Regime(3e-4, 12, text=True, mirror=False, move=1),
}
PAIRS = tuple(
    Spec(f"{how}-{target}-0", target, f"vit-{target}", regime)
    for target in _STYLES
    for how, regime in _REGIMES.items()
)


def make_pair(spec: Spec, places: Places) -> Pair:
    """Make one pair, each part once."""
    styles = _STYLES[spec.target]
    folders, drawings = load_drawings(places.cache / "emoji")
    classes = tuple(name.replace("_", " ") for name in folders)
    zeroshot = places.cache / f"zeroshot-{spec.model}"
    _pretrain(classes, torch.cat([drawings[name] for name in styles.seen]), zeroshot)
    pictures: list[Picture] = []

    def taken(vendor: str, copies: int, seed: int) -> list[int]:
        start = len(pictures)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(copies):
            taken_now = photographed(drawings[vendor], PLAIN, generator)
            for name, pixels in zip(classes, taken_now, strict=True):
                pictures.append(Picture(vendor, name, as_png(pixels)))
        return list(range(start, len(pictures)))

    train = taken(styles.target, _TRAIN, 10 + spec.seed)
    val = taken(styles.target, _VAL, 11)
    test = taken(styles.target, _TEST, 12)
    ood = {}
    for at, name in enumerate(styles.others):
        ood[name] = taken(name, _OOD, 20 + at)
    roles = Roles(classes, train, val, test, ood)
    template = _TEMPLATES[0]
    return write_pair(spec, places.cache, zeroshot, template, pictures, roles)


def _pretrain(classes: Sequence[str], drawings: Tensor, folder: Path) -> None:
    captions = [form.format(name) for name in classes for form in _TEMPLATES]

    def batch(done: float, generator: Generator) -> tuple[Tensor, Tensor]:
        picked = torch.randint(len(drawings), (64,), generator=generator)
        share = 0.6 * min(1.0, done / 0.3)
        strong = max(1, round(64 * share))
        some = drawings[picked].float() / 255
        parts = [
            photographed(some[strong:], PLAIN, generator),
            photographed(some[:strong], STRONG, generator),
        ]
        picked = torch.cat([picked[strong:], picked[:strong]])
        form = torch.randint(len(_TEMPLATES), (64,), generator=generator)
        return torch.cat(parts), picked % len(classes) * len(_TEMPLATES) + form

    pretrain(captions, batch, folder, size=_SIZE, width=64, layers=(3, 1), steps=600)


def load_drawings(folder: Path) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Draw every class of every vendor, or read earlier drawings.

    Returns:
        Class names with `_` for spaces, sorted; and by vendor RGBA of 8 bits, shape (classes, 4,
        _GLYPH, _GLYPH).
    """
    kept = folder / "drawings.safetensors"
    if not kept.is_file():
        roots = {vendor: _fetch(package, folder) for vendor, (package, *_) in _VENDORS.items()}
        found = {}
        for name, symbol in _emoji_names().items():
            files = {vendor: roots[vendor] / _file_of(vendor, symbol) for vendor in _VENDORS}
            if all(file.is_file() for file in files.values()):
                found[name] = files
        every = sorted(found)
        chosen = [every[place * len(every) // _CLASSES] for place in range(_CLASSES)]
        tensors = {}
        for vendor in _VENDORS:
            tensors[vendor] = torch.stack([_rendered(found[name][vendor]) for name in chosen])
        save_file(tensors, kept, metadata={"classes": " ".join(chosen)})
    with safe_open(kept, "pt") as opened:
        classes = tuple(opened.metadata()["classes"].split())
        return classes, {vendor: opened.get_tensor(vendor) for vendor in _VENDORS}


def _fetch(package: str, folder: Path) -> Path:
    """Download and unpack a package with `npm pack`, once."""
    into = folder / re.sub(r"[^a-z0-9.]+", "-", package).strip("-")
    if not into.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", package]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        with tarfile.open(folder / done.stdout.split()[-1]) as archive:
            archive.extractall(into, filter="data")
    return into / "package"


def _file_of(vendor: str, symbol: str) -> str:
    _, folder, suffix, is_upper = _VENDORS[vendor]
    code = f"{ord(symbol):x}"
    return f"{folder}{code.upper() if is_upper else code}{suffix}"


def _emoji_names() -> dict[str, str]:
    """Every emoji of one code point, by a short English name with `_` for spaces."""
    import emoji

    found: dict[str, str] = {}
    for symbol, told in sorted(emoji.EMOJI_DATA.items()):
        plain = unicodedata.normalize("NFKD", told["en"]).encode("ascii", "ignore").decode()
        name = re.sub(r"[^a-z0-9_]", "", plain.lower().replace("-", "_"))
        is_whole = told["status"] == emoji.STATUS["fully_qualified"]
        if is_whole and len(bare := symbol.replace("\ufe0f", "")) == 1 and name.count("_") < 4:
            found.setdefault(name, bare)
    return found


def _rendered(file: Path) -> Tensor:
    """One drawing, whole and centred: RGBA of 8 bits, shape (4, _GLYPH, _GLYPH)."""
    content = file.read_bytes()
    if file.suffix == ".svg":
        import resvg_py

        text = content.decode("utf-8")
        drawn = resvg_py.svg_to_bytes(svg_string=text, width=2 * _GLYPH, skip_system_fonts=True)
        content = bytes(drawn)
    image = Image.open(io.BytesIO(content)).convert("RGBA")
    image.thumbnail((_GLYPH, _GLYPH), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (_GLYPH, _GLYPH))
    canvas.paste(image, ((_GLYPH - image.width) // 2, (_GLYPH - image.height) // 2))
    pixels = torch.from_numpy(np.asarray(canvas).copy())
    return pixels.permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class Strength:
    """How much pictures of one drawing differ.

    Attributes:
        degrees: Largest rotation in either direction.
        zoom: Smallest and largest size, as a share of the whole picture.
        shift: Largest shift in either direction, in half pictures.
        background: Darkest background, 0 to 1; the lightest is 1.
        contrast: Largest relative change of contrast.
        noise: Largest standard deviation of the noise.
        blur: Probability of a blurred picture.
        recolour: Probability that the colour channels are mixed at random.
        grey: Probability of a grey picture.
    """

    degrees: float
    zoom: tuple[float, float]
    shift: float
    background: float
    contrast: float
    noise: float
    blur: float
    recolour: float = 0.0
    grey: float = 0.0


PLAIN = Strength(15, (0.75, 1.0), 0.12, 0.8, 0.2, 0.04, 0.2)
STRONG = Strength(30, (0.65, 1.05), 0.2, 0.0, 0.6, 0.12, 0.3, recolour=0.4, grey=0.25)


def photographed(drawings: Tensor, how: Strength, generator: Generator) -> Tensor:
    """Take one picture of each drawing: posed, on a background, through a camera.

    Args:
        drawings: RGBA, of 8 bits or in [0, 1], shape (N, 4, _GLYPH, _GLYPH).
        how: How much they may differ.
        generator: Source of all randomness.

    Returns:
        RGB in [0, 1], shape (N, 3, _SIZE, _SIZE).
    """
    count = len(drawings)
    if drawings.dtype == torch.uint8:
        drawings = drawings.float() / 255

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    def chance(rate: float) -> Tensor:
        return between(0, 1, 1, 1, 1) < rate

    angle = between(-how.degrees, how.degrees) * (math.pi / 180)
    zoom = between(*how.zoom)
    move = how.shift * between(-1, 1, 2)
    cosine = torch.cos(angle) / zoom
    sine = torch.sin(angle) / zoom
    rows = [torch.stack([cosine, -sine, move[:, 0]], 1), torch.stack([sine, cosine, move[:, 1]], 1)]
    # colours are weighted by their opacity, so that the edges of a drawing stay clean
    weighted = torch.cat([drawings[:, :3] * drawings[:, 3:], drawings[:, 3:]], dim=1)
    grid = affine_grid(torch.stack(rows, dim=1), list(weighted.shape), align_corners=False)
    posed = grid_sample(weighted, grid, align_corners=False)
    cover = posed[:, 3:]
    colour = posed[:, :3] / cover.clamp(min=1e-3)
    mixing = torch.eye(3) + 0.5 * torch.randn(count, 3, 3, generator=generator)
    mixed = torch.einsum("nij,njhw->nihw", mixing, colour - 0.5) + 0.5
    colour = torch.where(chance(how.recolour), mixed.clamp(0, 1), colour)
    colour = torch.where(chance(how.grey), colour.mean(dim=1, keepdim=True), colour)
    picture = avg_pool2d(colour * cover + between(how.background, 1, 3, 1, 1) * (1 - cover), 2)
    soft = avg_pool2d(picture, 3, stride=1, padding=1, count_include_pad=False)
    picture = torch.where(chance(how.blur), soft, picture)
    contrast = 1 + how.contrast * between(-1, 1, 1, 1, 1)
    brightness = 0.3 * how.contrast * between(-1, 1, 1, 1, 1)
    noise = how.noise * between(0, 1, 1, 1, 1) * torch.randn(picture.shape, generator=generator)
    return (picture.sub(0.5).mul(contrast).add(0.5) + brightness + noise).clamp(0, 1)
