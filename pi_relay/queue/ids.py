"""Queue ids: ten characters that sort as they were given, legal in file names and in a Received header.

Purpose: number <-> text. Rules: base 32 without look-alikes (Crockford's alphabet, in ASCII order); the id of
a report is its original's with a tail. The clock has no part in it: the store counts on from what it finds.
"""

from __future__ import annotations

import os
import re

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
LENGTH = 10
ACCEPTED = re.compile(r"[0-9A-Z]+(-[a-z0-9-]+)?")
_LAST_TWO = tuple(high + low for high in ALPHABET for low in ALPHABET)
_DIGITS = {character: value for value, character in enumerate(ALPHABET)}


def id_of(number: int) -> str:
    suffix = _LAST_TWO[number & 1023]
    number >>= 10
    head = ""
    for _ in range(LENGTH - 2):
        head = ALPHABET[number & 31] + head
        number >>= 5
    return head + suffix


def number_of(name: str) -> int:
    """The number in a queue id, a report's id or the name of a file in corrupt/; 0 where there is none."""
    head = name[:LENGTH]
    if len(head) < LENGTH or name[LENGTH : LENGTH + 1] not in ("", "-", "."):
        return 0
    number = 0
    for character in head:
        digit = _DIGITS.get(character)
        if digit is None:
            return 0
        number = number << 5 | digit
    return number


def first_number() -> int:
    """Where a new queue starts to count: anywhere, so that a queue made anew repeats no id of the logs."""
    return 1 + int.from_bytes(os.urandom(6))
