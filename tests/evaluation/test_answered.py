"""Answers kept in files: what was kept is found, and nothing else."""

from __future__ import annotations

from pathlib import Path

from clipmerge.evaluation.answered import Answered


def test_answers_are_found_again(tmp_path: Path) -> None:
    answered = Answered(tmp_path, {"a": "images of a"})
    answered.keep("a", 0, {"alpha 0.0": [3, 1]})
    answered.keep("a", 0, {"alpha 1.0": [2, 2]})
    answered.keep("a", 2, {"alpha 0.0": [7]})
    again = Answered(tmp_path, {"a": "images of a"})
    known = again.known("a", 0, 2, ["alpha 0.0", "alpha 0.5", "alpha 1.0"])
    assert {key: best.tolist() for key, best in known.items()} == {"alpha 0.0": [3, 1], "alpha 1.0": [2, 2]}
    assert again.known("a", 2, 1, ["alpha 0.0"])["alpha 0.0"].tolist() == [7]


def test_other_images_have_no_answers(tmp_path: Path) -> None:
    Answered(tmp_path, {"a": "images of a"}).keep("a", 0, {"alpha 0.0": [3, 1]})
    assert Answered(tmp_path, {"a": "other images"}).known("a", 0, 2, ["alpha 0.0"]) == {}
    same = Answered(tmp_path, {"a": "images of a"})
    assert same.known("a", 0, 3, ["alpha 0.0"]) == {}, "a batch of another size"
    assert Answered(tmp_path, {}).known("a", 0, 2, ["alpha 0.0"]) == {}
    Answered(tmp_path, {}).keep("b", 0, {"alpha 0.0": [1]})


def test_a_file_cut_short_is_as_good_as_none(tmp_path: Path) -> None:
    answered = Answered(tmp_path, {"a": "images of a"})
    answered.keep("a", 0, {"alpha 0.0": [3, 1]})
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    assert answered.known("a", 0, 2, ["alpha 0.0"]) == {}
    answered.keep("a", 0, {"alpha 0.0": [3, 1]})
    assert answered.known("a", 0, 2, ["alpha 0.0"])["alpha 0.0"].tolist() == [3, 1]
