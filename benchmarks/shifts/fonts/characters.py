"""The characters that are classes, and their names.

Every drawing is scaled to the same size, so of characters that then look alike in many typefaces
only one is used: small c but not capital C, the digit zero but no letter o, no Cyrillic or Greek
letter that looks like a Latin one.
"""

from __future__ import annotations

import unicodedata

_LATIN = "ABDEFGHJKLMNQRTYabcdefghijklmnpqrstuvwxyz"
_DIGITS = "0123456789"
_SIGNS = "!#$%&()*+-./:;<=>?@[\\]^{}~¡¢£¤¥§©¬®±¶¼½¾¿÷«»†…€™“”"
_LETTERS = "ßæœøþðłđ"
_ACCENTED = "àáâãäåçèéêëìíîïñòóôõöùúûüýÿăąćčęěğńňőřśšşůűźżž"
_CYRILLIC = "БГДЖИЙЛПФЦЧШЩЪЫЬЭЮЯЂЄЉЊ№"
_GREEK = "ΔΞΣΨΩαγδεζηθλμξπςσψω"
#: Every class, in the order of the scripts.
CHARACTERS = _LATIN + _DIGITS + _SIGNS + _LETTERS + _ACCENTED + _CYRILLIC + _GREEK
_FILLERS = ("LATIN", "LETTER", "WITH", "SIGN", "MARK", "AND", "POINTING", "VULGAR")


def class_folder(character: str) -> str:
    """Shorten a character's Unicode name to a class folder, which reads as a caption once `_` is a
    space.

    Example:
        >>> class_folder("é"), class_folder("Ж"), class_folder("½")
        ('small_e_acute', 'cyrillic_capital_zhe', 'fraction_one_half')
    """
    words = unicodedata.name(character).replace("-", " ").split()
    return "_".join(word.lower() for word in words if word not in _FILLERS)
