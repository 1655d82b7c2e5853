"""The patterns of the file: ``*@office.example``, ``*.office.example``, ``copier-*``.

Rules: one wildcard, ``*`` (any run of characters, also none); case does not count; domains are compared as
A-labels (RFC 5890). It must not know what is matched, or why.
"""

from __future__ import annotations

import re
from functools import lru_cache


def matches(patterns: tuple[str, ...], value: str) -> bool:
    """Whether an address, a domain or a name fits one of the patterns."""
    return _compiled(patterns).fullmatch(_comparable(value)) is not None


@lru_cache(maxsize=512)
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    wholes = (".*".join(map(re.escape, _comparable(pattern).split("*"))) for pattern in patterns)
    return re.compile("|".join(f"(?:{whole})" for whole in wholes), re.DOTALL)


def _comparable(value: str) -> str:
    """In lower case, the domain as A-labels; a label that IDNA cannot take stays as it is."""
    if value.isascii():
        return value.lower()
    local, at, domain = value.lower().rpartition("@")
    return local + at + ".".join(map(_a_label, domain.split(".")))


def _a_label(label: str) -> str:
    try:
        return label.encode("idna").decode("ascii")
    except UnicodeError:
        return label
