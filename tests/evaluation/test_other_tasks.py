"""Recall against a slow reference that sorts every row."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from clipmerge.checkpoint import Inputs
from clipmerge.evaluation import recall, scorer
from clipmerge.evaluation.accuracy import load_model
from clipmerge.evaluation.other_tasks import score_from_outcome, score_tasks
from clipmerge.evaluation.recall import recall_at, retrieval_ranks
from clipmerge.evaluation.scorer import Scorer
from clipmerge.images.dataset import open_images
from clipmerge.images.image_set import CaptionedImages
from clipmerge.models import ImageTextModel
from clipmerge.models.transformers_clip import TransformersClip
from clipmerge.planning.other_tasks import Score
from clipmerge.progress import Progress
from clipmerge.request import Calibration
from tests.support.small_objective import save_ends
from tests.support.tasks import inputs_of


def by_sorting(images: Tensor, texts: Tensor, owners: Tensor, rank: int) -> tuple[float, float]:
    """Sort all scores of one row at a time, in Python floats; equal ones stay in their order."""
    scores = [[float(image @ text) for text in texts] for image in images]
    found_images = found_texts = 0
    for number, row in enumerate(scores):
        best = sorted(range(len(row)), key=lambda at: -row[at])[:rank]
        found_images += any(int(owners[at]) == number for at in best)
    for number in range(len(texts)):
        column = [row[number] for row in scores]
        best = sorted(range(len(column)), key=lambda at: -column[at])[:rank]
        found_texts += int(owners[number]) in best
    return found_images / len(images), found_texts / len(texts)


def features(count: int, generator: torch.Generator) -> Tensor:
    """Few values, so that scores are exact and many are equal."""
    return torch.randint(-2, 3, (count, 4), generator=generator).double()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("at_once", [1, 40, 1 << 24])
def test_recall_is_that_of_sorting(
    monkeypatch: pytest.MonkeyPatch, seed: int, at_once: int
) -> None:
    monkeypatch.setattr(recall, "_SCORES", at_once)
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 4, (17,), generator=generator)
    owners = torch.repeat_interleave(torch.arange(17), counts)
    owners = owners[torch.randperm(len(owners), generator=generator)]
    images, texts = features(17, generator), features(len(owners), generator)
    found = recall_at(*retrieval_ranks(images, texts, owners)[:2], ranks=(1, 2, 5, 10, 100))
    for rank in (1, 2, 5, 10, 100):
        both = (found.image_to_text[str(rank)], found.text_to_image[str(rank)])
        assert both == pytest.approx(by_sorting(images, texts, owners, rank), abs=1e-12)
    assert found.image_to_text["100"] == found.text_to_image["100"] == 1


COLOURS = {
    "aa": (220, 30, 30),
    "bb": (30, 200, 40),
    "cc": (40, 60, 220),
    "dd": (90, 90, 90),
    "ee": (250, 250, 10),
}
SETTINGS = Calibration(device="cpu", batch_size=2)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A pair with equal text towers."""
    paths = save_ends(
        tmp_path_factory.mktemp("ends"), change=0.3, moves=("vision_model", "visual_projection")
    )
    return inputs_of(paths)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> CaptionedImages:
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in COLOURS.items():
        Image.new("RGB", (32, 32), colour).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a photo of a {name}.\n{name}\n")
    return open_images(str(folder))


class Computed(BaseException):
    """Ends a process that is only there for its part."""


def recall_alone(model: ImageTextModel, pictures: CaptionedImages) -> Score:
    return score_from_outcome(Scorer(model, None, SETTINGS).score_one(pictures, Progress()))


@torch.inference_mode()
def test_captions_are_embedded_once_where_the_text_tower_stays(
    ends: Inputs, pictures: CaptionedImages, spied: Any
) -> None:
    embedded = spied(TransformersClip, "text_features")
    moves = [lambda model, alpha=alpha: model.interpolate(alpha) for alpha in (0.0, 0.5, 1.0)]
    found = score_tasks(ends, moves, {"pictures": pictures}, SETTINGS, Progress())["pictures"]
    assert sum(len(call.args[1]["input_ids"]) for call in embedded.call_args_list) == 2 * len(
        COLOURS
    )
    for place, checkpoint in ((0, ends.zeroshot), (2, ends.finetuned[0])):
        assert found[place] == recall_alone(load_model(checkpoint), pictures)
    assert found[0] != found[2]  # or the captions' place on the path would say nothing


@torch.inference_mode()
def test_processes_share_the_images(
    ends: Inputs, pictures: CaptionedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, gathered = load_model(ends.finetuned[0]), list[Any]()
    whole = recall_alone(model, pictures)

    def share(rank: int) -> None:
        context: Any = SimpleNamespace(rank=rank, world_size=2, device=torch.device("cpu"))
        monkeypatch.setattr(scorer, "distributed_context", lambda _: context)

    def gather(own: list[Any]) -> list[Any]:
        gathered.extend(own)
        if len(gathered) == len(own):  # the second process has computed its part
            raise Computed
        return gathered

    monkeypatch.setattr(scorer, "gather_object", gather)
    share(1)
    with pytest.raises(Computed):
        recall_alone(model, pictures)
    assert [start > 0 for _, _, start, _ in gathered] == [True]
    share(0)
    assert recall_alone(model, pictures) == whole
    assert [start for _, _, start, _ in gathered] == [2, 0, 4]


@torch.inference_mode()
def test_a_process_without_images_places_the_model_for_the_captions(
    ends: Inputs, pictures: CaptionedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sent = load_model(ends.finetuned[0]), list[Any]()
    whole = recall_alone(model, pictures)
    settings = replace(SETTINGS, batch_size=len(pictures))  # all images are the first process's

    def recall_of(rank: int, gather: Callable[[list[Any]], list[Any]]) -> Score:
        context: Any = SimpleNamespace(rank=rank, world_size=2, device=torch.device("cpu"))
        monkeypatch.setattr(scorer, "distributed_context", lambda _: context)
        monkeypatch.setattr(scorer, "gather_object", gather)
        return score_from_outcome(Scorer(model, None, settings).score_one(pictures, Progress()))

    assert recall_of(0, lambda own: sent.extend(own) or own) == whole
    assert recall_of(1, lambda own: [*sent, *own]) == whole
