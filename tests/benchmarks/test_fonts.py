"""Characters as drawings: names, faces, roles."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import matplotlib
import pytest
from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont

from benchmarks.shifts.fonts import shift as fonts
from benchmarks.shifts.fonts.characters import CHARACTERS, class_folder
from benchmarks.shifts.fonts.faces import Face, load_drawings
from clipmerge.errors import DataError

DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two faces as the registry packs them: one with Latin and Greek in files of their own, one without Greek."""
    folder = tmp_path_factory.mktemp("fonts")
    for name, part, characters, file in (
        ("serif", "latin", "AEl.", "DejaVuSerif.ttf"),
        ("serif", "greek", "Ω", "DejaVuSerif.ttf"),
        ("sans", "latin", "AEl-", "DejaVuSans.ttf"),
    ):
        font = TTFont(DEJAVU / file)
        subsetter = Subsetter(Options(layout_features=[], notdef_outline=True))
        subsetter.populate(text=characters)
        subsetter.subset(font)
        font.flavor = "woff"
        files = folder / "packages" / f"fontsource-{name}-5-3-0" / "package" / "files"
        files.mkdir(parents=True, exist_ok=True)
        font.save(files / f"{name}-{part}-400-normal.woff")
    return folder


def test_names_and_typefaces_are_used_once() -> None:
    folders = [class_folder(character) for character in CHARACTERS]
    assert len(set(folders)) == len(CHARACTERS) == 199
    assert {"capital_a", "small_e_acute", "digit_seven", "greek_small_psi", "cyrillic_capital_zhe"} <= set(folders)
    roles = [fonts.PRETRAINED, fonts.FINETUNED, fonts.CALIBRATION, fonts.TEST, *fonts.OOD.values()]
    families = [{face.removesuffix("-700") for face in role} for role in roles]
    assert not [one & other for one, other in combinations(families, 2) if one & other]


def test_sources_share_what_all_of_their_faces_have(cache: Path) -> None:
    source = fonts._shared(list(load_drawings(cache, ["serif", "sans"], "-.AEΩ").values()))
    assert source.labels.tolist() == source.things.tolist() == [2, 3, 2, 3]
    assert len({drawing.numpy().tobytes() for drawing in source.pixels}) == 4

    with pytest.raises(DataError, match="no sans of weight 700; name another weight, or another face"):
        Face("sans-700", cache / "packages" / "fontsource-sans-5-3-0" / "package")
