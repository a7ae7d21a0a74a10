"""Characters as drawings: names, faces, roles."""

from itertools import combinations

from benchmarks.shifts.fonts import shift as fonts
from benchmarks.shifts.fonts.characters import CHARACTERS, class_folder


def test_names_and_typefaces_are_used_once() -> None:
    folders = [class_folder(character) for character in CHARACTERS]
    assert len(set(folders)) == len(CHARACTERS) == 199
    assert {"capital_a", "small_e_acute", "digit_seven", "greek_small_psi", "cyrillic_capital_zhe"} <= set(folders)
    roles = [fonts.PRETRAINED, fonts.FINETUNED, fonts.CALIBRATION, fonts.TEST, *fonts.OOD.values()]
    families = [{face.removesuffix("-700") for face in role} for role in roles]
    assert not [one & other for one, other in combinations(families, 2) if one & other]
