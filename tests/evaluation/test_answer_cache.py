"""Answers kept in files: what was kept is found, and nothing else."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator

from clipmerge.checkpoint import align_checkpoints, open_checkpoint
from clipmerge.evaluation.answer_cache import AnswerCache
from clipmerge.evaluation.scorer import Move, Scorer
from clipmerge.evaluation.settings import EvalSettings
from clipmerge.images.dataset import load_images
from clipmerge.models.building import build_model
from clipmerge.progress import Silent


def test_answers_to_the_same_images_are_found_again(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, {"a": "images of a"})
    cache.add("a", 0, {"alpha 0.0": [3, 1]})
    cache.add("a", 0, {"alpha 1.0": [2, 2]})
    cache.add("a", 2, {"alpha 0.0": [7]})
    again = AnswerCache(tmp_path, {"a": "images of a"})
    known = again.read("a", 0, 2, ["alpha 0.0", "alpha 0.5", "alpha 1.0"])
    assert {key: best.tolist() for key, best in known.items()} == {"alpha 0.0": [3, 1], "alpha 1.0": [2, 2]}
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
    pair: tuple[Path, Path], images: Path, tmp_path: Path
) -> None:
    zeroshot, finetuned = map(open_checkpoint, map(str, pair))
    inputs, loaded = align_checkpoints(zeroshot, [finetuned]), {"a": load_images(str(images)).sample(6, 0)}
    cache, moved = AnswerCache(tmp_path, {"a": "images of a"}), list[float]()

    def move(alpha: float) -> Move:
        return lambda model: moved.append(alpha) or model.interpolate(alpha)

    def answers(**points: float) -> list[list[int]]:
        scorer = Scorer(build_model(inputs), inputs, EvalSettings(Accelerator(cpu=True), batch_size=3), cache=cache)
        found = scorer.answer([move(alpha) for alpha in points.values()], loaded, Silent(), keys=list(points))
        return found["a"].tolist()

    for start in (0, 3):
        cache.add("a", start, {"known": [2, 0, 1]})  # not what the model says, to be told from it
    known, new = answers(known=0.5, new=1.0)
    assert known == [2, 0, 1, 2, 0, 1]
    assert moved == [1.0]
    assert answers(other=1.0) == [new]
