"""One limit on the loss of accuracy: the decision keeps to it, and more is warned of."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

import clipmerge
from clipmerge.api.merge import merge_request
from clipmerge.config import RecipeOptions, complete_options
from clipmerge.errors import ClipmergeError, UsageError
from tests.support.tiny_clip import CLASSES, save_images, save_pair


@pytest.fixture(scope="module")
def forgetting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A pair, and images that only the fine-tuned model recognises, all of them."""
    folder = tmp_path_factory.mktemp("forgetting")
    zeroshot, finetuned = save_pair(folder, change=1.0, seed=3)
    files = sorted(save_images(folder / "raw", each=40, seed=6).rglob("*.png"))
    model, processor = (kind.from_pretrained(finetuned) for kind in (CLIPModel, CLIPProcessor))
    inputs = processor(
        text=[f"a photo of a {name}." for name in CLASSES],
        images=[Image.open(file) for file in files],
        return_tensors="pt",
        padding=True,
    )
    with torch.no_grad():
        labels = model(**inputs).logits_per_image.argmax(dim=1)
    for file, label in zip(files, labels.tolist(), strict=True):
        target = folder / "images" / CLASSES[label]
        target.mkdir(parents=True, exist_ok=True)
        file.rename(target / f"{file.parent.name}-{file.name}")
    return zeroshot, finetuned, folder / "images"


@pytest.mark.slow
def test_max_loss_changes_what_auto_decides(forgetting: tuple[Path, Path, Path]) -> None:
    zeroshot, finetuned, images = forgetting
    changes = {
        "measure.steps": 6,
        "measure.distill_weight": 5,
        "measure.distill": "predictions",
    }
    kept, lost = (
        clipmerge.plan(
            zeroshot, finetuned, "auto", data=images, images=120, max_loss=limit, set=changes
        )
        for limit in (1.0, 90.0)
    )
    for plan, limit in ((kept, 1.0), (lost, 90.0)):
        assert plan.recipe["measure"]["max_loss"] == limit
        assert plan.effect.max_loss == limit
    assert kept.measurements.choice.accuracy >= kept.measurements.choice.finetuned_accuracy
    assert lost.measurements.choice.accuracy < lost.measurements.choice.finetuned_accuracy - 0.3
    assert kept.settings_digest != lost.settings_digest


@pytest.mark.parametrize(
    ("recipe", "set", "value"),
    [
        ("straggler-outlier", {"method.mask": None}, None),
        ("auto", {"measure.augmentations": ("grey", "blur")}, ("grey", "blur")),
    ],
)
def test_values_of_a_mapping_are_taken_as_they_are(
    pair: tuple[Path, Path], recipe: str, set: dict[str, Any], value: Any
) -> None:
    chosen = requested(pair, recipe, set=set).recipe
    (key,) = set
    section, _, option = key.partition(".")
    assert getattr(chosen, section)[option] == value


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"template": [str.upper]}, "is not a text such as 'a photo of a"),
        ({"set": [("method.alpha", 0.5)]}, "expected a text such as method.alpha=0.4"),
    ],
)
def test_options_of_another_kind_are_refused(
    pair: tuple[Path, Path], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ClipmergeError, match=told):
        requested(pair, "wise-ft", **options)


def requested(pair: tuple[Path, Path], recipe: str, **options: Any) -> Any:
    given = complete_options(RecipeOptions, {"data": "digits", **options})
    return merge_request(str(pair[0]), [str(pair[1])], recipe, given)


@pytest.mark.parametrize(
    ("recipe", "options", "limit"),
    [
        ("auto", {}, 3.0),
        ("straggler-sparse", {}, 3.0),
        ("straggler-sparse", {"max_loss": 1.0}, 1.0),
        ("auto", {"set": ["measure.max_loss=2"]}, 2.0),
        ("wise-ft", {}, 3.0),
        ("wise-ft", {"max_loss": 1.0}, 1.0),
    ],
)
def test_the_limit_of_the_recipe_holds_unless_one_is_given(
    pair: tuple[Path, Path], recipe: str, options: dict[str, Any], limit: float
) -> None:
    request = requested(pair, recipe, **options)
    assert request.max_loss == request.recipe.max_loss == limit or recipe == "wise-ft"
    assert request.max_loss == limit


def test_two_limits_are_refused(pair: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match=r"`max_loss` and `set=measure.max_loss`: both set"):
        requested(pair, "auto", max_loss=1.0, set={"measure.max_loss": 2})


@pytest.mark.parametrize(("limit", "bound"), [(300.0, "at most 100"), (-1.0, "at least 0")])
def test_a_limit_that_no_loss_can_reach_is_refused(limit: float, bound: str) -> None:
    with pytest.raises(UsageError, match=f"`max_loss` {limit}: expected {bound}"):
        complete_options(RecipeOptions, {"max_loss": limit})
