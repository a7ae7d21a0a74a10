"""Characters as drawings: names, faces, roles."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import matplotlib
import pytest
import torch
from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont

from benchmarks.shifts.fonts import shift as fonts
from benchmarks.shifts.fonts.characters import CHARACTERS, class_folder
from benchmarks.shifts.fonts.faces import SIZE, Face, load_drawings
from clipmerge.errors import DataError

DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
BLACK = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)


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


def test_a_character_is_drawn_black_centred_and_as_large_as_any(cache: Path) -> None:
    face = Face("sans", cache / "packages" / "fontsource-sans-5-3-0" / "package")
    assert set(face.file_of) == set("AEl-")
    for character, sides in (("l", (8, 54)), ("-", (54, 20)), ("E", (39, 54))):
        drawing = face.drawn(character)
        assert torch.equal(drawing[:3], BLACK)
        rows, columns = (drawing[3].amax(dim=axis).nonzero().flatten() for axis in (1, 0))
        assert (len(columns), len(rows)) == (pytest.approx(sides[0], abs=4), pytest.approx(sides[1], abs=4))
        for places in (rows, columns):
            assert abs(int(places[0]) - (SIZE - 1 - int(places[-1]))) <= 1
    upper, lower = drawing[3, 5:9].sum(), drawing[3, 20:24].sum()
    assert upper > 1.3 * lower  # the E is neither upside down nor mirrored
    assert drawing[3, :, 12:20].sum() > 1.3 * drawing[3, :, 44:52].sum()


def test_a_face_has_the_characters_of_all_of_its_files(cache: Path) -> None:
    drawings = load_drawings(cache, ["serif", "sans"], "-.AEΩ")
    assert {face: places.tolist() for face, (_, places) in drawings.items()} == {
        "serif": [1, 2, 3, 4],
        "sans": [0, 2, 3],
    }
    assert drawings["serif"][0].shape == (4, 4, SIZE, SIZE)
    assert not torch.equal(drawings["serif"][0][1], drawings["sans"][0][1])
    again = load_drawings(cache / "nowhere", [], "-.AEΩ"), load_drawings(cache, ["sans"], "AE")
    assert again[0] == {}
    assert torch.equal(again[1]["sans"][0], drawings["sans"][0][1:])


def test_sources_share_what_all_of_their_faces_have(cache: Path) -> None:
    source = fonts._shared(list(load_drawings(cache, ["serif", "sans"], "-.AEΩ").values()))
    assert source.labels.tolist() == source.things.tolist() == [2, 3, 2, 3]
    assert len({drawing.numpy().tobytes() for drawing in source.pixels}) == 4

    with pytest.raises(DataError, match="no sans of weight 700; name another weight, or another face"):
        Face("sans-700", cache / "packages" / "fontsource-sans-5-3-0" / "package")
