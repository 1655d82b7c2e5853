"""Adds a section to the admin's file as he would do it: by inserting its lines, all else staying as it is.

Rules: pure; bytes in, bytes out. Comments, order, line ends and a BOM are kept; nothing is ever written anew
from the parsed document. The result is parsed again, and has to be the old document and the new section.
It must not know what keys mean.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

import tomli_w

from .locate import Locator


class CannotInsert(Exception):
    """The file has a form in which there is no place for the section: what is in the way, and what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def with_section(data: bytes, array: str, values: Mapping[str, Any]) -> tuple[bytes, int]:
    """The file with one more ``[[array]]``, and the line of its header. ValueError: it is not TOML.

    It comes behind the last one of its kind, else to the end.
    """
    text = data.decode("utf-8-sig").replace("\r\n", "\n")
    document = tomllib.loads(text)
    lines = _lines(data)
    place = _place(text.split("\n"), Locator(text).headers, array, in_document=array in document)
    at = len(lines) if place is None else place
    newline = b"\r\n" if lines and lines[0].endswith(b"\r\n") else b"\n"
    section = f"[[{array}]]\n{tomli_w.dumps(values)}".encode().replace(b"\n", newline)
    before, after = b"".join(lines[:at]), b"".join(lines[at:])
    if before.strip(b"\xef\xbb\xbf") and not before.endswith(b"\n"):
        before += newline
    if lines[:at] and lines[at - 1].strip(b"\xef\xbb\xbf \t\r\n"):
        before += newline
    if after and lines[at].strip():
        section += newline
    changed = before + section + after
    expected = {**document, array: [*document.get(array, []), dict(values)]}
    if tomllib.loads(changed.decode("utf-8-sig").replace("\r\n", "\n")) != expected:
        raise CannotInsert(f"there is no safe place for a [[{array}]] section", "add it with an editor")
    return changed, before.count(b"\n") + 1


def _lines(data: bytes) -> list[bytes]:
    """With their ends, "\\n" alone being one; what follows the last one too."""
    *whole, rest = data.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


def _place(
    lines: list[str], headers: list[tuple[tuple[str | int, ...], int, int]], array: str, *, in_document: bool
) -> int | None:
    """Before which line, counted from 0; None: behind the last."""
    ours = [number for number, (path, _, _) in enumerate(headers) if path[0] == array]
    if in_document and not ours:
        raise CannotInsert(
            f"{array} is written as {array} = [ ... ] there",
            f"turn each of them into a section that begins with [[{array}]]",
        )
    if not ours or ours[-1] + 1 == len(headers):
        return None
    _, next_header, content_end = headers[ours[-1] + 1]
    # A comment that follows at once belongs to the section, unless it runs on to the next header.
    end = content_end
    while lines[end].lstrip().startswith("#"):
        end += 1
    return content_end if end == next_header - 1 else end
