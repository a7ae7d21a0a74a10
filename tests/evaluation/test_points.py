"""Points of a sweep: plans of equal weights are one, a model is moved between them, and answers are
found again."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clipmerge.api.apply import write_merge
from clipmerge.api.plan import prepare
from clipmerge.distributed import distributed_context
from clipmerge.errors import CheckpointError
from clipmerge.evaluation.answer_cache import AnswerCache
from clipmerge.evaluation.moving_model import MovingModel
from clipmerge.evaluation.points import weights_key
from clipmerge.evaluation.scorer import Move, Scorer
from clipmerge.evaluation.settings import EvalSettings
from clipmerge.images.dataset import load_images
from clipmerge.models.building import build_model
from clipmerge.progress import Progress
from clipmerge.run import Run
from tests.support.raw_safetensors import edit
from tests.support.tasks import inputs_of, request_for
from tests.support.tiny_clip import Folders

LACKING = "text_model.final_layer_norm.bias"


@pytest.fixture(scope="module")
def uneven(pair: Folders, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A pair whose fine-tuned checkpoint lacks a bias."""
    folder = shutil.copytree(pair[1], tmp_path_factory.mktemp("uneven") / "finetuned")
    return pair[0], edit(folder, **{LACKING: None})


def key(run: Run) -> Any:
    assert run.plan is not None
    return weights_key(run.plan, run.inputs)


def test_a_recipe_that_drops_parameters_is_no_point_of_the_curve(
    uneven: Folders, tmp_path: Path
) -> None:
    kept, dropped = (
        prepare(request_for(uneven, "wise-ft", f"missing=keep-{end}"))
        for end in ("zeroshot", "finetuned")
    )
    assert key(kept) == 0.5
    assert key(dropped) != key(kept)
    for run, name in ((kept, "other_tasks"), (dropped, "dropped")):
        write_merge(run, tmp_path / name)
    written = [
        load_file(tmp_path / name / "model.safetensors").keys()
        for name in ("other_tasks", "dropped")
    ]
    assert written[0] - written[1] == {LACKING}


def test_a_weight_that_overflows_is_named_with_its_alpha(pair: Folders) -> None:
    inputs = inputs_of(pair)
    moving = MovingModel(build_model(inputs), inputs, torch.device("cpu"), dtype="float16")
    with pytest.raises(
        CheckpointError, match=r"^tensor \S+ overflows at alpha 1e\+09; give `alphas` in \[0, 1\]$"
    ):
        moving.interpolate(1e9)
    moving.interpolate(1.0)
    assert all(bool(parameter.isfinite().all()) for parameter in moving.model.parameters.values())


def test_answers_to_the_same_images_are_found_again(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, {"a": "images of a"})
    cache.add("a", 0, {"alpha 0.0": [3, 1]})
    cache.add("a", 0, {"alpha 1.0": [2, 2]})
    cache.add("a", 2, {"alpha 0.0": [7]})
    again = AnswerCache(tmp_path, {"a": "images of a"})
    known = again.read("a", 0, 2, ["alpha 0.0", "alpha 0.5", "alpha 1.0"])
    assert {key: best.tolist() for key, best in known.items()} == {
        "alpha 0.0": [3, 1],
        "alpha 1.0": [2, 2],
    }
    assert again.read("a", 2, 1, ["alpha 0.0"])["alpha 0.0"].tolist() == [7]
    assert again.read("a", 0, 3, ["alpha 0.0"]) == {}, "a batch of another size"
    assert AnswerCache(tmp_path, {"a": "other images"}).read("a", 0, 2, ["alpha 0.0"]) == {}
    AnswerCache(tmp_path, {}).add("b", 0, {"alpha 0.0": [1]})
    assert AnswerCache(tmp_path, {}).read("a", 0, 2, ["alpha 0.0"]) == {}
    for file in tmp_path.rglob("*.safetensors"):  # cut short, as good as none
        file.write_bytes(file.read_bytes()[:20])
    assert cache.read("a", 0, 2, ["alpha 0.0"]) == {}
    cache.add("a", 0, {"alpha 0.0": [3, 1]})
    assert cache.read("a", 0, 2, ["alpha 0.0"])["alpha 0.0"].tolist() == [3, 1]


def test_where_all_answers_of_a_point_are_known_the_model_stays(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    inputs, loaded = inputs_of(pair), {"a": load_images(str(images)).sample(6, 0)}
    cache, moved = AnswerCache(tmp_path, {"a": "images of a"}), list[float]()

    def move(alpha: float) -> Move:
        return lambda model: moved.append(alpha) or model.interpolate(alpha)

    def answers(**points: float) -> list[list[int]]:
        scorer = Scorer(
            build_model(inputs),
            inputs,
            EvalSettings(distributed_context("cpu"), batch_size=3),
            cache=cache,
        )
        found = scorer.answer(
            [move(alpha) for alpha in points.values()], loaded, Progress(), keys=list(points)
        )
        return found["a"].tolist()

    for start in (0, 3):
        cache.add("a", start, {"known": [2, 0, 1]})  # not what the model says, to be told from it
    known, new = answers(known=0.5, new=1.0)
    assert known == [2, 0, 1, 2, 0, 1]
    assert moved == [1.0]
    assert answers(other=1.0) == [new]
