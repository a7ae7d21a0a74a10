"""Suites: each shipped one is well formed, and a file that is not is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipmerge.errors import ClipmergeError, RecipeError, UsageError
from clipmerge.evaluation.suites.suite import Release, load_suite, suite_names
from clipmerge.images.known import find_known
from clipmerge.planning.recipe import load_recipe

SIZES = ("", "-b16", "-l14")
ISSUED = [f"corrupted-{task}{size}" for task in ("cars", "eurosat", "resisc45", "gtsrb") for size in SIZES]


@pytest.mark.uncounted
def test_every_suite_is_well_formed() -> None:
    assert {*ISSUED, "imagenet-b32", "imagenet-l14", "forgetting-ta8"} <= set(suite_names())
    for name in suite_names():
        suite = load_suite(name)
        assert suite.name == name
        assert list(suite.alphas) == sorted(set(suite.alphas))
        for recipe in suite.recipes:
            needs = load_recipe(recipe).needs_data
            assert all(pair.data for pair in suite.pairs) or not needs, name
        for pair in suite.pairs:
            assert pair.expected(), f"{name}: nothing to check the set-up against"
            for source in [*pair.sources.values(), *([pair.data] if pair.data else [])]:
                assert find_known(source) is not None, source
            for published in pair.published:
                assert published.accuracy.keys() <= pair.sources.keys()
                assert published.alpha is None or published.alpha in suite.alphas


def test_pairs_of_one_file_differ_where_they_must() -> None:
    pairs = [load_suite(f"corrupted-gtsrb{size}").pairs[0] for size in SIZES]
    assert len({(pair.zeroshot, pair.finetuned) for pair in pairs}) == 3
    assert all(len(pair.ood) == 7 for pair in pairs)
    assert pairs[2].finetuned == "tanganke/clip-vit-large-patch14_gtsrb"
    for suite in map(load_suite, ("corrupted-cars", "corrupted-resisc45")):  # a broken file is left out
        assert "pixelate" not in suite.pairs[0].ood
        assert len(suite.pairs[0].ood) == 6
        assert any("pixelate" in note for note in suite.notes)
        assert any("train" in note and "seen" in note for note in suite.notes)
    (pair,) = load_suite("imagenet-l14").pairs
    assert isinstance(pair.zeroshot, Release)
    assert pair.zeroshot.name == "zero-shot-vit-l14.pt"


GOOD = """
title: t
model: m
gflops: 1
zeroshot: a/b
finetuned: a/c
id: {test: imagenet}
ood: {far: imagenet-r}
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("title: t", "titel: t"), r"mine\.yaml: title: Field required"),
        (GOOD.replace("zeroshot: a/b", "zeroshot: {url: 'ftp://x/y'}"), r"mine\.yaml: pairs\.0\.zeroshot"),
        (GOOD + "sizes: {-b16: {}}\n", r"mine\.yaml: its sizes are '-b16'"),
        (GOOD + "published: [{point: a, source: b, accuracy: {test: 101}}]\n", r"pairs\.0\.published\.0\.accuracy"),
        (GOOD + "pairs: 3\n", r"mine\.yaml: pairs: expected a list of pairs"),
        ("[", r"mine\.yaml: cannot be read as a suite"),
        ("a: &x [1]\nb: *x\n", r"mine\.yaml: cannot be read as a suite \(an alias"),
        ("- 1", r"mine\.yaml: is not a suite"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        load_suite(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(caught.value)


def test_a_file_of_one_s_own_and_unknown_names(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD)
    suite = load_suite(str(tmp_path / "mine.yaml"))
    assert (suite.name, suite.pairs[0].sources) == ("mine", {"test": "imagenet", "far": "imagenet-r"})
    with pytest.raises(UsageError, match=r"no suite 'imagnet-b32' .*Did you mean 'imagenet-b32'"):
        load_suite("imagnet-b32")
    with pytest.raises(ClipmergeError, match=r"nowhere\.yaml: cannot be read as a suite"):
        load_suite("nowhere.yaml")
