"""Small repositories and release files laid out exactly as the public ones that `clipmerge bench`
names.

Labels are chosen so that the zero-shot model has a given accuracy, computed here by the libraries
themselves.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import open_clip
import torch
from open_clip.transform import image_transform_v2
from PIL import Image
from safetensors.torch import save
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPProcessor, CLIPVisionModel

from clipmerge.images.registry import known_sets
from tests.support.benchmark_sets import webdataset
from tests.support.hub_double import FakeHub, upload
from tests.support.image_files import png, save_hub_parquet
from tests.support.tiny_clip import tiny_config, tiny_processor

CORRUPTIONS = (
    "contrast",
    "gaussian_noise",
    "impulse_noise",
    "jpeg_compression",
    "motion_blur",
    "pixelate",
    "spatter",
)
BASE, FINETUNED = "openai/clip-vit-base-patch32", "tanganke/clip-vit-base-patch32_eurosat"
ORGS = ("openai", "tanganke", "clip-benchmark", "acme")
SHIFTS = ("imagenetv2", "imagenet_sketch", "imagenet-r", "objectnet", "imagenet-a")
RELEASE = "mlfoundations/model-soups/releases/download/v0.0.2"


def with_accuracy(best: list[int], share: float, classes: int) -> list[int]:
    """Labels of which a share are the given answers, and the others are not."""
    right = round(share * len(best))
    return [
        answer if place < right else (answer + 1) % classes for place, answer in enumerate(best)
    ]


# --- FusionBench: a base with a .bin only, a vision tower without a preprocessor, Parquet with nine
# splits ---


def upload_fusionbench(
    hub: FakeHub, folder: Path, *, images: int = 64, accuracy: float = 0.46
) -> None:
    """Fill the Hub with EuroSAT's pair and data set."""
    hub.orgs = ORGS
    torch.manual_seed(0)
    model, processor = CLIPModel(tiny_config(2, text_length=77)).eval(), tiny_processor(77)
    known = known_sets()["fusionbench-eurosat"]
    upload(hub, BASE, _base_files(model, processor, folder / "base"))
    splits = ("train", "test", *CORRUPTIONS)
    classes = _classes(model, processor, known)
    pictures = [[png(1000 * at + k) for k in range(images)] for at in range(len(splits))]
    best = [_answers(model, processor, classes, each) for each in pictures]
    with torch.no_grad():
        for parameter in model.vision_model.parameters():
            parameter.add_(0.2 * (parameter.abs().mean() + 0.01) * torch.randn(parameter.shape))
    upload(hub, FINETUNED, _tower_files(model, folder / "tower"))
    parts = {}
    for at, split in enumerate(splits):
        labels = (
            list(range(10)) * (images // 10 + 1)
            if split == "train"
            else with_accuracy(best[at], accuracy, 10)
        )
        parts[f"data/{split}-00000-of-00001.parquet"] = save_hub_parquet(
            folder / "x.parquet",
            labels[:images],
            first=1000 * at,
            names=[f"class {k}" for k in range(10)],
        ).read_bytes()
    upload(hub, "tanganke/eurosat", parts | {"README.md": _card(splits, images)}, kind="dataset")


def _base_files(model: CLIPModel, processor: CLIPProcessor, folder: Path) -> dict[str, bytes]:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def _tower_files(model: CLIPModel, folder: Path) -> dict[str, bytes]:
    tower = CLIPVisionModel(model.config.vision_config)
    tower.save_pretrained(folder)
    tensors = {
        f"vision_model.{name}": value for name, value in model.vision_model.state_dict().items()
    }
    stored = {
        name: value.contiguous()
        for name, value in tensors.items()
        if not name.endswith("position_ids")
    }
    return {"config.json": (folder / "config.json").read_bytes(), "model.safetensors": save(stored)}


def _card(splits: tuple[str, ...], images: int) -> bytes:
    listed = "".join(f"  - name: {split}\n    num_examples: {images}\n" for split in splits)
    return f"---\ndataset_info:\n  splits:\n{listed}---\n".encode()


@torch.no_grad()
def _classes(model: CLIPModel, processor: CLIPProcessor, known: Any) -> torch.Tensor:
    """Features of the classes, one per row: the mean of its prompts' features."""
    prompts = [
        template.replace("{}", name) for name in known.class_names for template in known.prompts
    ]
    tokens = processor.tokenizer(
        prompts, padding=True, truncation=True, max_length=77, return_tensors="pt"
    )
    rows = normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
    return normalize(rows.view(len(known.class_names), -1, rows.shape[-1]).mean(dim=1), dim=-1)


@torch.no_grad()
def _answers(
    model: CLIPModel, processor: CLIPProcessor, classes: torch.Tensor, images: list[bytes]
) -> list[int]:
    pictures = [Image.open(io.BytesIO(content)).convert("RGB") for content in images]
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    features = model.get_image_features(pixel_values=pixels).pooler_output
    return (features @ classes.T).argmax(dim=-1).tolist()


# --- model soups: release files without a text tower, with a head of 1000 classes; ImageNet and its
# shifts as tars ---


class Soup(torch.nn.Module):
    """OpenAI's CLIP as model soups wrap it: no text transformer, a head on features of unit
    length."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.classification_head = torch.nn.Linear(model.visual.output_dim, 1000)
        del self.model.transformer

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.model.encode_image(pixels)
        return self.classification_head(features / features.norm(dim=-1, keepdim=True))


def save_soups(folder: Path) -> Soup:
    """Write ``model_0.pt`` and ``model_43.pt`` as a server offers them; returns the first."""
    place = folder / RELEASE
    place.mkdir(parents=True)
    torch.manual_seed(0)
    vision = {"layers": 2, "width": 64, "head_width": 64, "patch_size": 8, "image_size": 32}
    text = {"context_length": 12, "vocab_size": 40, "width": 64, "heads": 1, "layers": 1}
    first = Soup(
        open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    ).eval()
    with torch.no_grad():
        # scores that differ between images, so that answers do
        first.classification_head.weight.normal_(std=5.0)
    torch.save(first.state_dict(), place / "model_0.pt")
    moved = {
        name: value + 0.1 * torch.randn(value.shape) for name, value in first.state_dict().items()
    }
    torch.save(moved, place / "model_43.pt")
    return first


def upload_imagenets(
    hub: FakeHub, folder: Path, model: Soup, *, images: int = 64, accuracy: float = 0.7557
) -> None:
    """Fill the Hub with ImageNet and five shifts, with labels that give the model an accuracy."""
    hub.orgs = ORGS
    shifts = {"imagenet1k": "imagenet"} | {shift: shift.replace("_", "-") for shift in SHIFTS}
    for at, (repo, name) in enumerate(shifts.items()):
        rows = known_sets()[name].imagenet_rows
        names = known_sets()[name].class_names
        first = 1000 * at
        best = _head_answers(model, rows, [png(first + k) for k in range(images)])
        labels = with_accuracy(best, accuracy, len(rows))
        shards = [labels[: images // 2], labels[images // 2 :]]
        files = webdataset(
            folder / repo, shards, names, first=first, templates=("a photo of a {c}.",)
        )
        upload(hub, f"clip-benchmark/wds_{repo}", files, kind="dataset")


@torch.no_grad()
def _head_answers(model: Soup, rows: tuple[tuple[int, ...], ...], images: list[bytes]) -> list[int]:
    preprocess = image_transform_v2(open_clip.transform.PreprocessCfg(size=32), is_train=False)
    pixels = torch.stack(
        [preprocess(Image.open(io.BytesIO(content)).convert("RGB")) for content in images]
    )
    logits = model(pixels)
    return torch.stack([logits[:, list(row)].amax(dim=-1) for row in rows]).argmax(dim=0).tolist()


# --- a server of release files ---


@dataclass
class Releases:
    """A server of files: its address, what was asked for, and after how many bytes it hangs up."""

    url: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    cut_after: int | None = None


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, releases: Releases, *arguments: Any, **options: Any) -> None:
        self.releases = releases
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        file, wanted = Path(self.translate_path(self.path)), self.headers.get("Range")
        self.releases.asked.append((self.path, wanted))
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        begin = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        if begin > len(content):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        cut, self.releases.cut_after = self.releases.cut_after, None
        self.wfile.write(content[begin:] if cut is None else content[begin : begin + cut])
        self.close_connection = True

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def serving_files(folder: Path) -> Iterator[Releases]:
    """Serve a folder's files, with ranges."""
    releases = Releases()
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(_Handler, releases, directory=str(folder))
    )
    releases.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield releases
    finally:
        server.shutdown()
        server.server_close()
