"""A page is the same for any number of threads, but for the hash of weights that were learned."""

import os
import re
from pathlib import Path

import pytest

from tests.support.command import python
from tests.support.tiny_clip import save_images, save_pair

#: A number of a picture, as matplotlib writes it.
PLACE = re.compile(r"-?\b\d+\.\d{5,6}\b")
FEW = ("--set", "measure.steps=6", "--set", "measure.batch=8", "--set", "measure.copies=4")


def page(folder: Path, threads: int, *arguments: object) -> str:
    """Run a merge with a number of threads; its page without times and without the hash of the merged weights."""
    variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    variables |= {"MKL_DYNAMIC": "FALSE", "XDG_CACHE_HOME": str(folder / "cache")}
    variables |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    folder.mkdir()
    words = ("-m", "clipmerge", "merge", *arguments, "--output", "out")
    run = python(*words, cwd=folder, env={**os.environ, **variables})
    assert run.returncode == 0, run.stderr
    text = (folder / "out" / "report.html").read_text(encoding="utf-8")
    merged = r'(<th scope="row">merged</th>.*<td class="hash">)[0-9a-f]{64}'
    return re.sub(r"\b[\d.]+ s\b", "", re.sub(merged, r"\1", text))


@pytest.mark.slow
@pytest.mark.uncounted
def test_the_report_of_a_learned_merge_is_the_same_for_any_number_of_threads(tmp_path: Path) -> None:
    """The coefficients may differ in their last bits, so the hash of weights does, and the last digits of places."""
    pair, images = save_pair(tmp_path, change=0.2), save_images(tmp_path / "images", each=16)
    arguments = (*pair, "--recipe", "auto", "--data", images, *FEW)
    one, four = page(tmp_path / "one", 1, *arguments), page(tmp_path / "four", 4, *arguments)
    assert PLACE.sub("", one) == PLACE.sub("", four)
    ours, others = ([float(place) for place in PLACE.findall(text)] for text in (one, four))
    assert ours == pytest.approx(others, abs=1e-3)  # of a picture that is hundreds of points wide
