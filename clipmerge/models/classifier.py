"""Turn image features into logits, by class prompts, by captions or by a head.

Other modules use a `Classifier`, whichever of the three it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from clipmerge.errors import DataError
from clipmerge.images.classes import class_prompts, positions_among
from clipmerge.images.image_set import LabelledImages
from clipmerge.models import ImageTextModel
from clipmerge.models.passes import embed_with_graph
from clipmerge.types import Names, Tensors

# Most prompts, and most tokens, whose activations are in memory at once. The second limit is for
# CPUs, which are as fast with few prompts, and for GPUs whose memory ran out. 80 images of a
# ViT-B/32 have as many tokens.
_PROMPTS_AT_ONCE, _TOKENS_AT_ONCE = 512, 4096

#: The prompts that images are compared with, by class and template (classes, templates), numbered
#: class by class, or ``None`` for all; and the column of each image's class among these classes.
Comparison = tuple[Tensor | None, Tensor]


class Classifier(ABC):
    """Scores a model's images against classes, at the model's current weights.

    Attributes:
        model: The model.
        classes: Number of classes.
        templates: Number of prompts of each class.
        compares_images: Whether an image's loss depends on the other images of its batch.
    """

    compares_images: ClassVar[bool] = False

    def __init__(self, model: ImageTextModel, classes: int, templates: int = 1) -> None:
        self.model = model
        self.classes = classes
        self.templates = templates

    @abstractmethod
    def class_features(self, prompts: Tensor | None = None) -> Tensor:
        """Embed classes, (classes, width), by all of their prompts or those of a `Comparison`."""

    def draw(self, labels: Tensor, seed: int, most: int) -> Comparison:
        """Choose prompts for images with these labels: all prompts, or a sample if more than
        ``most`` would be embedded.
        """
        return None, labels

    def logits(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Score images against classes: (images, classes)."""
        return self.model.logits(image_features, class_features)

    def spare_memory(self) -> None:  # noqa: B027 - a head has nothing to spare
        """Keep fewer activations in memory at once, because memory ran out."""

    def image_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of each image, (images,), in nats."""
        return cross_entropy(logits, labels, reduction="none")


class Prompts(Classifier):
    """Scores by class prompts, whose features are averaged over templates.

    Attributes:
        moves: Whether the weights of the text tower move. If not, prompts are embedded once.
        tokens: Tokens of all prompts, class by class, on the device; see `ImageTextModel.tokens`.
        at_once: Largest number of prompts whose activations are in memory at once.
    """

    def __init__(
        self,
        model: ImageTextModel,
        texts: Sequence[str],
        templates: int,
        device: torch.device,
        *,
        moves: bool = True,
    ) -> None:
        """Tokenise the prompts; that of class c and template t is at ``c * templates + t``."""
        super().__init__(model, len(texts) // templates, templates)
        self.moves = moves
        tokens = model.tokens(list(texts))
        by_class = tokens["input_ids"].view(self.classes, -1)
        if self.classes > 1 and bool((by_class == by_class[0]).all()):
            raise DataError(
                "the prompts of all classes, or all captions, are the same to the model, which cuts"
                " off the end of a long text and may not know capitals; give a shorter `template`,"
                " other names with `classes`, or shorter captions"
            )
        self.tokens = {key: value.to(device) for key, value in tokens.items()}
        self.at_once = _PROMPTS_AT_ONCE
        if device.type == "cpu":
            self.spare_memory()
        self._fixed: Tensor | None = None

    def class_features(self, prompts: Tensor | None = None) -> Tensor:
        """Embed classes, (classes, width), of unit length; the features of a class's prompts are
        averaged.
        """
        chosen = slice(None) if prompts is None else prompts.flatten()
        if self.moves:
            features = self._embed({key: value[chosen] for key, value in self.tokens.items()})
        else:
            features = self._fixed_features()[chosen]
        classes = self.classes if prompts is None else len(prompts)
        by_class = features.view(classes, -1, features.shape[-1])
        return normalize(by_class.mean(dim=1), dim=-1)

    def draw(self, labels: Tensor, seed: int, most: int) -> Comparison:
        """Draw templates, and if necessary classes, so that at most ``most`` prompts are embedded.

        If the text tower does not move, all are used, because they are embedded only once.
        """
        if not self.moves or self.classes * self.templates <= most:
            return super().draw(labels, seed, most)
        generator = torch.Generator().manual_seed(seed)
        written = torch.randperm(self.templates, generator=generator)
        written = written[: max(1, most // self.classes)]
        chosen = torch.arange(self.classes)
        columns = labels
        if self.classes * len(written) > most:
            present = torch.unique(labels.cpu())
            others = torch.randperm(self.classes, generator=generator)
            others = others[~torch.isin(others, present)]
            others = others[: max(0, most - len(present))]
            chosen = torch.cat([present, others]).sort().values
            columns = torch.searchsorted(chosen.to(labels.device), labels)
        prompts = chosen[:, None] * self.templates + written
        return prompts.to(labels.device), columns

    def spare_memory(self) -> None:
        """Hold activations of at most `_TOKENS_AT_ONCE` tokens in memory at once."""
        length = self.tokens["input_ids"].shape[1]
        self.at_once = max(1, min(_PROMPTS_AT_ONCE, _TOKENS_AT_ONCE // length))

    def pieces(self, tokens: Tensors | None = None) -> list[Tensors]:
        """Split the tokens of prompts, by default of all, into pieces that fit into memory."""
        tokens = tokens or self.tokens
        starts = range(0, len(tokens["input_ids"]), self.at_once)
        return [
            {key: value[start : start + self.at_once] for key, value in tokens.items()}
            for start in starts
        ]

    def _embed(self, tokens: Tensors) -> Tensor:
        """Embed prompts: (prompts, width), float32."""
        return embed_with_graph(self.model.text_features, self.pieces(tokens)).float()

    def _fixed_features(self) -> Tensor:
        """Features of all prompts, in float32, by a text tower that does not move."""
        if self._fixed is None:
            device = self.tokens["input_ids"].device.type
            with torch.no_grad(), torch.autocast(device, enabled=False):
                self._fixed = self._embed(self.tokens)
        return self._fixed


class Captions(Prompts):
    """Scores images against captions: each caption is a class with a single prompt. A batch of
    images is compared with its own captions.

    The loss is CLIP's softmax in both directions, or, for models with a bias of their logits,
    SigLIP's sigmoid of every pair.
    """

    compares_images: ClassVar[bool] = True

    def draw(self, labels: Tensor, seed: int, most: int) -> Comparison:
        """Return a batch's captions, and the column of each image's own caption."""
        captions, columns = torch.unique(labels, return_inverse=True)
        return captions[:, None], columns

    def image_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of each image, (images,), in nats; for SigLIP summed over captions."""
        is_sigmoid = getattr(self.model.module, "logit_bias", None) is not None
        return (sigmoid_losses if is_sigmoid else softmax_losses)(logits, labels)


class Head(Classifier):
    """Scores by a classification head. A class may have several of its rows; their largest logit
    counts.
    """

    def __init__(
        self,
        model: ImageTextModel,
        head: torch.nn.Linear,
        source: str,
        names: Names,
        rows: Sequence[Sequence[int]] = (),
    ) -> None:
        """Match the head's rows with the classes of a source.

        If ``rows`` has the numbers of each class's rows, it decides. Otherwise they are matched by
        name, if rows and classes have the same names, or by their order.
        """
        super().__init__(model, len(names))
        by_name = positions_among(names, model.row_names) or range(head.out_features)
        chosen = rows or [(row,) for row in by_name]
        if len(chosen) != len(names) or max(map(max, chosen)) >= head.out_features:
            raise DataError(
                f"{source}: has {len(names)} classes, and the model's head {head.out_features};"
                " their correspondence is known for ImageNet and its shifts, given by their short"
                " names"
            )
        most = max(map(len, chosen))  # a class with fewer rows repeats its first
        padded = [[*each, *[each[0]] * (most - len(each))] for each in chosen]
        self._head = head
        self._rows = torch.tensor(padded)

    def class_features(self, prompts: Tensor | None = None) -> Tensor:
        """Return the weights and the bias of each row, (rows, width + 1)."""
        weight, bias = self._head.weight, self._head.bias
        if bias is None:
            bias = torch.zeros_like(weight[:, 0])
        return torch.cat([weight, bias[:, None]], dim=1)

    def logits(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Score images against classes: (images, classes)."""
        logits = image_features @ class_features[:, :-1].T + class_features[:, -1]
        self._rows = self._rows.to(logits.device)  # copied once
        return logits[:, self._rows].amax(dim=2)


def classifier_for(
    model: ImageTextModel,
    images: LabelledImages,
    templates: Names,
    device: torch.device,
    *,
    moves: bool = True,
    kind: type[Prompts] = Prompts,
) -> Classifier:
    """Make the classifier of labelled images: the model's head, or else prompts of their classes.

    ``moves`` says whether fine-tuning changed the text tower. ``kind`` is `Captions` if each class
    is a caption.
    """
    names = images.class_names
    if model.head is not None:
        return Head(model, model.head, images.source, names, images.imagenet_rows)
    texts = class_prompts(names, templates)
    return kind(model, texts, len(templates), device, moves=moves)


def softmax_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute CLIP's loss of each image: the mean of two losses, for finding its caption among
    captions, and for finding the image among images by its caption.

    Args:
        logits: Scores, (images, captions).
        labels: The column of each image's caption, (images,).

    Returns:
        Shape (images,), in nats. A caption finds its image among images with other captions.

    Source:
        Radford et al. 2021, arXiv:2103.00020.
    """
    by_caption = logits[:, labels]  # column j: scores of all images with the caption of image j
    same = labels[:, None] == labels
    same.fill_diagonal_(False)
    find_image = by_caption.masked_fill(same, -torch.inf).logsumexp(0) - by_caption.diagonal()
    return (cross_entropy(logits, labels, reduction="none") + find_image) / 2


def sigmoid_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute SigLIP's loss of each image: its caption should match it, and no other caption
    should.

    Args:
        logits: Scores with their bias, (images, captions).
        labels: The column of each image's caption, (images,).

    Returns:
        Shape (images,), in nats, summed over captions.

    Source:
        Zhai et al. 2023, arXiv:2303.15343.
    """
    signs = torch.full_like(logits, -1.0)
    signs.scatter_(1, labels[:, None], 1.0)
    return -logsigmoid(signs * logits).sum(1)
