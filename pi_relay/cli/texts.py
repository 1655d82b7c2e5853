"""The language of the command line: English in the code, other languages in a catalogue each.

Rules: the English sentence is the key. What is not in the catalogue stays English. A catalogue is imported
only where it is wanted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache


def t(text: str, /, **values: object) -> str:
    """``text`` in the user's language, with its {placeholders} filled."""
    text = _catalogue().get(text, text)
    return text.format(**values) if values else text


@cache
def language() -> str:
    """ "ja" or "en", from LC_ALL, LC_MESSAGES or LANG: the first that is set."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if value := os.environ.get(name):
            return "ja" if value.startswith("ja") else "en"
    return "en"


@cache
def _catalogue() -> Mapping[str, str]:
    if language() == "ja":
        from pi_relay.cli.japanese import TEXTS

        return TEXTS
    return {}
