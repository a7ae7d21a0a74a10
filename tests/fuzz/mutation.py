"""Damage done to files: some bytes, some numbers, some pieces moved, and texts that readers are known to trip over."""

from __future__ import annotations

import random

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1)
_TEXTS = (
    *(b"null true [] {} -1 1e999 NaN Infinity 0.5".split()),
    *(b'""', b'"a"', b"9" * 30, b"9" * 5000, b"[" * 2000, b'{"a":' * 2000, b"!!int ''", b"!!timestamp x", b"&a [*a]"),
    *(b"\x00", b"\xff\xfe", b"\x1b[31m", b"../", b"\xed\xa0\x80", "²".encode(), "\u202e".encode(), b"\\ud800"),
    *(b"(a|a)*", b"*", b":", b"\n", b"\t", b",", b"{0..99}"),
)


def mutated(data: bytes, corpus: list[bytes], chance: random.Random) -> bytes:
    """Damage a file in one to six places."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        chance.choice(_WAYS)(changed, corpus, chance)
    return bytes(changed[: 1 << 20])


def _at(changed: bytearray, chance: random.Random) -> int:
    return chance.randrange(len(changed) + 1)


def _flip(changed: bytearray, _corpus: list[bytes], chance: random.Random) -> None:
    if changed:
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)


def _number(changed: bytearray, _corpus: list[bytes], chance: random.Random) -> None:
    width, at = chance.choice((1, 2, 4, 8)), _at(changed, chance)
    number = chance.choice(_NUMBERS) & ((1 << 8 * width) - 1)
    changed[at : at + width] = number.to_bytes(width, chance.choice(("little", "big")))


def _text(changed: bytearray, _corpus: list[bytes], chance: random.Random) -> None:
    at = _at(changed, chance)
    changed[at : at + chance.choice((0, 0, 1, 4, 12))] = chance.choice(_TEXTS)


def _cut(changed: bytearray, _corpus: list[bytes], chance: random.Random) -> None:
    at = _at(changed, chance)
    del changed[at : at + chance.choice((1, 2, 8, 64, len(changed)))]


def _double(changed: bytearray, _corpus: list[bytes], chance: random.Random) -> None:
    begin = _at(changed, chance)
    piece = changed[begin : begin + chance.choice((1, 4, 16, 64))]
    at = _at(changed, chance)
    changed[at:at] = piece * chance.choice((1, 2, 50))


def _splice(changed: bytearray, corpus: list[bytes], chance: random.Random) -> None:
    other = chance.choice(corpus)
    begin, at = chance.randrange(len(other) + 1), _at(changed, chance)
    changed[at : at + chance.choice((0, 8, 64))] = other[begin : begin + chance.choice((1, 8, 64, 512))]


def _digit(changed: bytearray, _corpus: list[bytes], chance: random.Random) -> None:
    digits = [at for at, byte in enumerate(changed[:5000]) if 48 <= byte <= 57]
    if digits:
        changed[chance.choice(digits)] = chance.randrange(48, 58)


_WAYS = (_flip, _number, _text, _cut, _double, _splice, _digit)
