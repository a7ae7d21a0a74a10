"""A page is the same for any number of threads, but for the hash of weights that were learned."""

import re
from base64 import b64decode
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.support.command import done
from tests.support.tiny_clip import save_images, save_pair

#: A number of a picture, as matplotlib writes it.
PLACE = re.compile(r"-?\b\d+\.\d{5,6}\b")
# Few steps: where a gradient is about 0, Adam makes a whole step of its last bit.
FEW = ("--set", "measure.steps=3", "--set", "measure.batch=8", "--set", "measure.strong_aug=4")


def page(folder: Path) -> str:
    """The page of a merge without times and without the hash of the merged weights."""
    text = (folder / "out" / "report.html").read_text(encoding="utf-8")
    text = re.sub(r"(?<=base64,)[\w+/=]+", lambda found: b64decode(found[0]).decode(), text)
    merged = r'(<th scope="row">merged</th>.*<td class="hash">)[0-9a-f]{64}'
    return re.sub(r"\b[\d.]+ s\b", "", re.sub(merged, r"\1", text))


@pytest.mark.slow
@pytest.mark.uncounted
def test_the_report_of_a_learned_merge_is_the_same_for_any_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """The coefficients may differ in their last bits, so the hash of weights does, and the last
    digits of places."""
    pair, images = save_pair(tmp_path, change=0.2), save_images(tmp_path / "images", each=16)
    command = ("merge", *pair, "--recipe", "auto", "--data", images, *FEW, "--output", "out")
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    for name, threads in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name / "cache"))
        torch.set_num_threads(threads)  # on however many cores
        done(*command)
    one, two = page(tmp_path / "one"), page(tmp_path / "two")
    assert PLACE.sub("", one) == PLACE.sub("", two)
    ours, others = ([float(place) for place in PLACE.findall(text)] for text in (one, two))
    assert ours == pytest.approx(others, abs=1e-3)  # of a picture that is hundreds of points wide
