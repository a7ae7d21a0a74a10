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
from benchmarks.make_pairs.pictures import Album
from benchmarks.make_pairs.pretraining import pretrain
from benchmarks.models import Regime

_CLASSES, _SIZE, _BATCH = 80, 32, 64
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
    names, drawings = load_drawings(places.cache / "emoji")
    classes = tuple(name.replace("_", " ") for name in names)
    zeroshot = places.cache / f"zeroshot-{spec.model}"
    seen = torch.cat([drawings[vendor] for vendor in styles.seen])
    _pretrain(classes, seen, zeroshot)
    album = Album()

    def taken(vendor: str, copies: int, seed: int) -> list[int]:
        """Positions of so many pictures of each of a vendor's drawings."""
        generator = torch.Generator().manual_seed(seed)
        found = []
        for _ in range(copies):
            pixels = photographed(drawings[vendor], PLAIN, generator)
            found += album.add(vendor, pixels, classes)
        return found

    positions = {
        "train": taken(styles.target, _TRAIN, 10 + spec.seed),
        "val": taken(styles.target, _VAL, 11),
        "test": taken(styles.target, _TEST, 12),
    }
    for at, vendor in enumerate(styles.others):
        positions[f"ood-{vendor}"] = taken(vendor, _OOD, 20 + at)
    roles = Roles(classes, positions)
    return write_pair(spec, places.cache, zeroshot, _TEMPLATES[0], album.pictures, roles)


def _pretrain(classes: Sequence[str], drawings: Tensor, folder: Path) -> None:
    forms = len(_TEMPLATES)
    captions = []
    for name in classes:
        captions += [form.format(name) for form in _TEMPLATES]

    def batch(done: float, generator: Generator) -> tuple[Tensor, Tensor]:
        """Plain pictures, and ever more strongly altered ones."""
        picked = torch.randint(len(drawings), (_BATCH,), generator=generator)
        share = 0.6 * min(1.0, done / 0.3)
        strong = max(1, round(_BATCH * share))
        some = drawings[picked]
        plain = photographed(some[strong:], PLAIN, generator)
        altered = photographed(some[:strong], STRONG, generator)
        picked = torch.cat([picked[strong:], picked[:strong]])
        drawn = picked % len(classes)
        form = torch.randint(forms, (_BATCH,), generator=generator)
        return torch.cat([plain, altered]), drawn * forms + form

    pretrain(captions, batch, folder, _SIZE)


def load_drawings(folder: Path) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Draw every class of every vendor, or read earlier drawings.

    Returns:
        Class names with `_` for spaces, sorted; and by vendor RGBA of 8 bits, shape (classes, 4,
        _GLYPH, _GLYPH).
    """
    kept = folder / "drawings.safetensors"
    if not kept.is_file():
        files = _files(folder)
        every = sorted(files)
        chosen = [every[place * len(every) // _CLASSES] for place in range(_CLASSES)]
        tensors = {}
        for vendor in _VENDORS:
            rendered = [_rendered(files[name][vendor]) for name in chosen]
            tensors[vendor] = torch.stack(rendered)
        save_file(tensors, kept, metadata={"classes": " ".join(chosen)})
    with safe_open(kept, "pt") as opened:
        classes = opened.metadata()["classes"].split()
        return tuple(classes), {vendor: opened.get_tensor(vendor) for vendor in _VENDORS}


def _files(folder: Path) -> dict[str, dict[str, Path]]:
    """Files by vendor of every emoji, by name, that all vendors draw."""
    roots = {}
    for vendor, (package, *_) in _VENDORS.items():
        roots[vendor] = _fetch(package, folder)
    found = {}
    for name, symbol in _emoji_names().items():
        files = {vendor: roots[vendor] / _file_of(vendor, symbol) for vendor in _VENDORS}
        if all(file.is_file() for file in files.values()):
            found[name] = files
    return found


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
    if is_upper:
        code = code.upper()
    return f"{folder}{code}{suffix}"


def _emoji_names() -> dict[str, str]:
    """Every emoji of one code point, by a short English name with `_` for spaces."""
    import emoji

    found: dict[str, str] = {}
    for symbol, told in sorted(emoji.EMOJI_DATA.items()):
        bare = symbol.replace("\ufe0f", "")
        is_whole = told["status"] == emoji.STATUS["fully_qualified"]
        plain = unicodedata.normalize("NFKD", told["en"]).encode("ascii", "ignore").decode()
        words = plain.lower().replace("-", "_")
        name = re.sub(r"[^a-z0-9_]", "", words)
        if is_whole and len(bare) == 1 and name.count("_") < 4:
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


@dataclass(frozen=True)
class Draws:
    """Random numbers for so many pictures, all from one generator."""

    count: int
    generator: Generator

    def between(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform numbers, shape (N, *shape)."""
        share = torch.rand(self.count, *shape, generator=self.generator)
        return low + (high - low) * share

    def chance(self, rate: float) -> Tensor:
        """Whether something happens to each picture, shape (N, 1, 1, 1)."""
        return self.between(0, 1, 1, 1, 1) < rate

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.count, *shape, generator=self.generator)


def photographed(drawings: Tensor, how: Strength, generator: Generator) -> Tensor:
    """Take one picture of each drawing: posed, on a background, through a camera.

    Args:
        drawings: RGBA, of 8 bits or in [0, 1], shape (N, 4, _GLYPH, _GLYPH).
        how: How much they may differ.
        generator: Source of all randomness.

    Returns:
        RGB in [0, 1], shape (N, 3, _SIZE, _SIZE).
    """
    draws = Draws(len(drawings), generator)
    if drawings.dtype == torch.uint8:
        drawings = drawings.float() / 255
    posed = _posed(drawings, how, draws)
    cover = posed[:, 3:]
    colour = posed[:, :3] / cover.clamp(min=1e-3)
    colour = _recoloured(colour, how, draws)
    background = draws.between(how.background, 1, 3, 1, 1)
    picture = colour * cover + background * (1 - cover)
    return _through_camera(avg_pool2d(picture, 2), how, draws)


def _posed(drawings: Tensor, how: Strength, draws: Draws) -> Tensor:
    """Rotated, scaled and moved; colours are weighted by their opacity."""
    angle = draws.between(-how.degrees, how.degrees) * (math.pi / 180)
    zoom = draws.between(*how.zoom)
    move = how.shift * draws.between(-1, 1, 2)
    cosine = torch.cos(angle) / zoom
    sine = torch.sin(angle) / zoom
    across = torch.stack([cosine, -sine, move[:, 0]], dim=1)
    down = torch.stack([sine, cosine, move[:, 1]], dim=1)
    turn = torch.stack([across, down], dim=1)
    # so that the edges of a drawing stay clean
    opacity = drawings[:, 3:]
    weighted = torch.cat([drawings[:, :3] * opacity, opacity], dim=1)
    grid = affine_grid(turn, list(weighted.shape), align_corners=False)
    return grid_sample(weighted, grid, align_corners=False)


def _recoloured(colour: Tensor, how: Strength, draws: Draws) -> Tensor:
    """Some with their channels mixed at random, and some in grey."""
    mixing = torch.eye(3) + 0.5 * draws.normal(3, 3)
    mixed = torch.einsum("nij,njhw->nihw", mixing, colour - 0.5) + 0.5
    colour = torch.where(draws.chance(how.recolour), mixed.clamp(0, 1), colour)
    grey = colour.mean(dim=1, keepdim=True)
    return torch.where(draws.chance(how.grey), grey, colour)


def _through_camera(picture: Tensor, how: Strength, draws: Draws) -> Tensor:
    """Some blurred, all with another contrast, brightness and noise."""
    soft = avg_pool2d(picture, 3, stride=1, padding=1, count_include_pad=False)
    picture = torch.where(draws.chance(how.blur), soft, picture)
    contrast = 1 + how.contrast * draws.between(-1, 1, 1, 1, 1)
    brightness = 0.3 * how.contrast * draws.between(-1, 1, 1, 1, 1)
    deviation = how.noise * draws.between(0, 1, 1, 1, 1)
    noise = deviation * draws.normal(*picture.shape[1:])
    contrasted = (picture - 0.5) * contrast + 0.5
    return (contrasted + brightness + noise).clamp(0, 1)
