"""The mailboxes that a From or Sender field names (RFC 5322 3.4), and how one is put in their place.

Rules: pure; bytes as they stand in the field, folding included; positions, so that what is not replaced stays
as it came. Work is linear and never recurses: quoted strings and comments are masked first, then one pattern
decides. Devices write what they like: a name with stray commas before the only address is taken, anything
that could be read in two ways is not.
It must not know which mailboxes are welcome.
"""

from __future__ import annotations

import re
from base64 import b64encode
from typing import NamedTuple

FIELD_SIZE_MAX_BYTES = 8192  # a longer From names nobody
_NAME_SIZE_MAX_BYTES = 256
_ENCODED_TEXT_MAX_BYTES = 45  # of one encoded-word: 75 characters as base64 (RFC 2047 2)


class Mailbox(NamedTuple):
    """``text``: the whole of it, ``name``: the display name, both as they stand in the field.
    ``start`` and ``end``: where its address stands there, between the angle brackets if it has them.
    """

    text: bytes
    name: bytes
    address: str
    start: int
    end: int

    @property
    def domain(self) -> str:
        return self.address.rpartition("@")[2]


def read(value: bytes) -> list[Mailbox]:
    """The mailboxes of a field's value; none where it names none, or is not well formed."""
    if len(value) > FIELD_SIZE_MAX_BYTES:
        return []
    masked = _masked(value)
    if masked is None:
        return []
    only = _only(masked.shape) or _bare(masked.shape)
    if only:
        mailbox = _mailbox(value, masked, only)
        return [mailbox] if mailbox else []
    return _list(value, masked)


# ── masking ──────────────────────────────────────────────────────────────────────────────────────


class _Masked(NamedTuple):
    """The value twice, of the same length, with blanks for comments and line ends."""

    shape: bytes  # quoted strings and address literals are "x": what is left of ,:;<>@ has a meaning
    text: bytes


_find_special = re.compile(rb'["(\[\\]').search
_quoted_string = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL).match
_literal = re.compile(rb"\[[A-Za-z0-9.:]*+\]").match
_of_comment = re.compile(rb"\\.|[()]", re.DOTALL).finditer
_BLANKS = bytes.maketrans(b"\r\n\t", b"   ")


def _masked(value: bytes) -> _Masked | None:
    """None where something opened is not closed, or a backslash stands alone."""
    shape, text = bytearray(value.translate(_BLANKS)), bytearray(value.translate(_BLANKS))
    position = 0
    while special := _find_special(value, position):
        start = special.start()
        if special[0] == b"(":
            position = _end_of_comment(value, start)
            shape[start:position] = text[start:position] = b" " * (position - start)
        else:
            found = (_quoted_string if special[0] == b'"' else _literal)(value, start)
            position = found.end() if found else -1
            shape[start:position] = b"x" * (position - start)
        if position < 0:
            return None
    return _Masked(bytes(shape), bytes(text))


def _end_of_comment(value: bytes, start: int) -> int:
    depth = 0
    for found in _of_comment(value, start):
        depth += {b"(": 1, b")": -1}.get(found[0], 0)
        if depth == 0:
            return found.end()
    return -1


# ── reading ──────────────────────────────────────────────────────────────────────────────────────

_only = re.compile(rb"(?P<name>[^<>@]*+)<(?P<angle>[^<>]*+)> *+").fullmatch
_bare = re.compile(rb" *+(?P<bare>[^ <>,:;@]++ *+@[^<>,:;@]++)").fullmatch
# An element of a list: the start of a group, a mailbox, and what parts them.
_element = re.compile(
    rb" *+(?:(?P<group>[^<>,:;@]++):|(?P<mark>[,;])|(?P<name>[^<>,:;]*+)<(?P<angle>[^<>]*+)> *+(?![^,;])"
    rb"|(?P<bare>[^<>,:;]++)(?![^,;]))"
).match
# Within brackets a source route may come first (RFC 5322 4.4); blanks only around the at sign.
_address = re.compile(rb" *(?:@[^:]*+: *)?([^ @,:;]++) *@ *([^ @,:;]++) *").fullmatch
_DOMAIN = re.compile(r"[\w-]+(?:\.[\w-]+)*|\[[A-Za-z0-9.:]+\]").fullmatch


def _list(value: bytes, masked: _Masked) -> list[Mailbox]:
    mailboxes = []
    position, in_group = 0, False
    end = len(masked.shape.rstrip(b" "))
    while position < end:
        found = _element(masked.shape, position, end)
        if found is None or (in_group and found["group"]) or (found["mark"] == b";" and not in_group):
            return []
        in_group = found["mark"] != b";" and (in_group or found["group"] is not None)
        if not (found["group"] or found["mark"]):
            mailbox = _mailbox(value, masked, found)
            if mailbox is None:
                return []
            mailboxes.append(mailbox)
        position = found.end()
    return [] if in_group else mailboxes


def _mailbox(value: bytes, masked: _Masked, found: re.Match[bytes]) -> Mailbox | None:
    is_bare = "angle" not in found.re.groupindex or found["angle"] is None
    start, end = found.span("bare" if is_bare else "angle")
    parts = _address(masked.shape, start, end)
    if parts is None:
        return None
    local_part, domain = (
        masked.text[slice(*parts.span(group))].decode("utf-8", "replace") for group in (1, 2)
    )
    if not _DOMAIN(domain):
        return None
    if is_bare:
        start, end = parts.start(1), parts.end(2)
    name = b"" if is_bare else value[slice(*found.span("name"))].strip()
    return Mailbox(value[slice(*found.span())].strip(), name, f"{local_part}@{domain}", start, end)


# ── writing ──────────────────────────────────────────────────────────────────────────────────────

_ATOM = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\xff-]"
_is_phrase = re.compile(rb"%s+(?: +%s+)*" % (_ATOM, _ATOM)).fullmatch
_CONTROLS = bytes([*range(32), 127])


def replaced(value: bytes, mailboxes: list[Mailbox], address: str, name: bytes = b"") -> bytes:
    """The field's value with one mailbox: the display name kept, or ``name`` (a phrase) in its place.

    Where ``value`` has a single mailbox and its name is kept, every other byte is, too.
    """
    written = address.encode()
    if len(mailboxes) == 1 and not name:
        only = mailboxes[0]
        return value[: only.start] + written + value[only.end :]
    if not name:
        name = next((each.name for each in mailboxes if each.name), b"") if mailboxes else _salvaged(value)
    return b" " + (name + b" <" + written + b">" if name else written)


def phrase(text: str) -> bytes:
    """A display name as a field takes it: bare, quoted, or in encoded-words (RFC 2047) beyond ASCII."""
    if text.isascii():
        return _phrase(text.encode())
    words, word = [], b""
    for character in text:
        octets = character.encode()
        if len(word) + len(octets) > _ENCODED_TEXT_MAX_BYTES:
            words.append(word)
            word = b""
        word += octets
    return b"\r\n ".join(b"=?utf-8?B?" + b64encode(each) + b"?=" for each in [*words, word])


def _phrase(text: bytes) -> bytes:
    if not text or _is_phrase(text):
        return text
    return b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def _salvaged(value: bytes) -> bytes:
    """The display name in a value that is no mailbox: "KONICA MINOLTA" is one, a broken address is none."""
    text = value[:FIELD_SIZE_MAX_BYTES].partition(b"<")[0].translate(_BLANKS, b'"\\')
    text = b" ".join(text.translate(None, _CONTROLS).split())
    return b"" if b"@" in text or len(text) > _NAME_SIZE_MAX_BYTES else _phrase(text)
