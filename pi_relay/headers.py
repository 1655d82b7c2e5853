"""The header block of a message: what stands in it, and what a relay puts in front.

Rules: pure; bytes in wire form (CRLF, dot-stuffed) in and out, scanned in C, no email parser; what is not
ours stays byte for byte as it came. A block always includes the empty line that ends it.
It must not know sockets, the queue or the configuration.
"""

from __future__ import annotations

import re
import time
from functools import lru_cache

CRLF = b"\r\n"
BLOCK_SIZE_MAX_BYTES = 256 * 1024
RECEIVED_MAX = 50  # RFC 5321 6.3: a message that has come so far is going in circles

# A field's name at the start of a line (RFC 5322 2.2; the space before the colon is 4.5.8's).
_find_names = re.compile(rb"\r\n([!-9;-~]+)[ \t]*:").findall
_is_field_or_continuation = re.compile(rb"[!-9;-~]+[ \t]*:|[ \t]").match


class Header:
    """A header block, and the names that stand in it: in order, in lower case."""

    __slots__ = ("block", "names")

    def __init__(self, block: bytes) -> None:
        """``block``: fields, their continuations and the empty line, nothing else (see ``split``)."""
        self.block = block
        self.names: list[bytes] = [name.lower() for name in _find_names(CRLF + block)]

    def value(self, name: bytes) -> bytes:
        """Text of the first field called ``name`` (in lower case), unfolded; b"" where there is none."""
        if name not in self.names:
            return b""
        found = _field(name).search(CRLF + self.block)
        return b" ".join(found[1].split()) if found else b""

    def span(self, name: bytes) -> tuple[int, int] | None:
        """Where in the block the text of the first field called ``name`` (in lower case) stands, folded."""
        found = _field(name).search(CRLF + self.block) if name in self.names else None
        return (found.start(1) - 2, found.end(1) - 2) if found else None

    def without(self, name: bytes) -> Header:
        """The same header less every field called ``name`` (in lower case)."""
        if name not in self.names:
            return self
        return Header(_field(name).sub(b"", CRLF + self.block)[2:])


@lru_cache(maxsize=16)
def _field(name: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"(?i)\r\n%s[ \t]*:([^\r]*(?:\r\n[ \t][^\r]*)*)" % re.escape(name))


# ── where it ends ────────────────────────────────────────────────────────────────────────────────


def end_of_block(data: bytes | bytearray, seen: int = 0) -> int:
    """Where the body begins: behind the first empty line; -1 while none has come.

    ``seen``: how much of ``data`` an earlier call has looked at.
    """
    if data.startswith(CRLF):
        return 2
    end = data.find(b"\r\n\r\n", max(0, seen - 3))
    return end + 4 if end >= 0 else -1


def split(data: bytes, end: int) -> tuple[Header, bytes]:
    """The header of ``data`` and what follows it; ``end`` as ``end_of_block`` gave it (-1: no empty line).

    The first line that is neither a field nor a continuation begins the body (some devices send a bare
    text), and an empty line is put before it. ``data`` must end with CRLF where ``end`` is -1.
    """
    block = data[:end] if end >= 0 else data + CRLF
    header = Header(block)
    lines = CRLF + block[:-2]
    continuations = lines.count(b"\r\n ") + lines.count(b"\r\n\t")
    if len(header.names) + continuations == lines.count(CRLF) - 1 and data[:1] not in (b" ", b"\t"):
        return header, data[end:] if end >= 0 else b""
    body_starts_at = _first_foreign_line(data)
    return Header(data[:body_starts_at] + CRLF), data[body_starts_at:]


def _first_foreign_line(data: bytes) -> int:
    position = 0
    if data[:1] in (b" ", b"\t"):  # it continues nothing
        return position
    while _is_field_or_continuation(data, position):
        position = data.index(CRLF, position) + 2
    return position


# ── what we put in front ─────────────────────────────────────────────────────────────────────────

_odd_in_helo = re.compile(r"[^A-Za-z0-9.:_\[\]-]")
_private_ends = (".local", ".lan", ".internal", ".home.arpa")
_domain_of = re.compile(rb"@([A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)[ \t]*(?:>|$|\(|,)").search


def received(
    *, helo: str, client: str, by: str, protocol: str, queue_id: str, recipient: str, at: float
) -> bytes:
    """Our trace field (RFC 5321 4.4): of the client nothing but its name and address.

    ``protocol``: as ``protocol_name`` gives it; ``recipient``: only where the message has a single one,
    else ""; ``at``: seconds since the epoch.
    """
    name = _odd_in_helo.sub("?", helo[:255]) or "unknown"
    literal = f"[IPv6:{client}]" if ":" in client else f"[{client}]"
    recipient = f"\r\n\tfor <{recipient}>" if recipient else ""
    text = f"Received: from {name} ({literal})\r\n\tby {by} with {protocol} id {queue_id}{recipient};\r\n\t"
    return text.encode() + date(at) + CRLF


def protocol_name(*, extended: bool, utf8: bool, tls: bool, authenticated: bool) -> str:
    """The word behind ``with`` (RFC 3848, RFC 6531 4.3): "SMTP", "ESMTPSA", "UTF8SMTPS" ..."""
    name = "UTF8SMTP" if utf8 else "ESMTP" if extended else "SMTP"
    return f"{name}{'S' if tls else ''}{'A' if authenticated else ''}" if name != "SMTP" else name


def repairs(
    header: Header, *, queue_id: str, by: str, reverse_path: str, at: float, dated: bool = True
) -> bytes:
    """The Date and Message-ID that a message lacks (RFC 6409 8.1 and 8.3), b"" where it lacks none.

    ``dated``: whether the clock can be believed; else the Date is left to ``with_date``. A message that is
    signed (DKIM) stays as it is: what is added could be covered by the signature.
    """
    names = header.names
    if b"dkim-signature" in names:
        return b""
    added = b""
    if b"date" not in names and dated:
        added += b"Date: " + date(at) + CRLF
    if b"message-id" not in names:
        domain = by if is_public_hostname(by) else _domain(header, reverse_path) or by
        added += f"Message-ID: <{int(at):x}.{queue_id}@{domain}>\r\n".encode("ascii", "replace")
    return added


def with_date(block: bytes, at: float) -> bytes:
    """The block of a stored message, with a Date if it came without one while the clock was wrong."""
    if b"\r\nDate:" in block:
        return block
    names = Header(block).names
    if b"date" in names or b"dkim-signature" in names:
        return block
    return block[:-2] + b"Date: " + date(at) + CRLF + CRLF


def waives_tls(block: bytes) -> bool:
    """Whether the sender would rather have it in clear than late: ``TLS-Required: No`` (RFC 8689 5)."""
    return Header(block).value(b"tls-required").lower() == b"no"


def is_public_hostname(hostname: str) -> bool:
    """Whether the name can stand in a Message-ID or EHLO outside the office."""
    name = hostname.lower().rstrip(".")
    return "." in name and not name.endswith(_private_ends)


def _domain(header: Header, reverse_path: str) -> str:
    found = _domain_of(header.value(b"from")) or _domain_of(reverse_path.encode("utf-8", "replace"))
    return found[1].decode() if found else ""


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def date(at: float) -> bytes:
    """``at`` (seconds since the epoch) as RFC 5322 3.3 writes it, in local time."""
    return _date(int(at))


@lru_cache(maxsize=4)
def _date(second: int) -> bytes:
    now = time.localtime(second)
    sign, offset = ("-", -now.tm_gmtoff) if now.tm_gmtoff < 0 else ("+", now.tm_gmtoff)
    return (
        f"{_DAYS[now.tm_wday]}, {now.tm_mday:02d} {_MONTHS[now.tm_mon - 1]} {now.tm_year} "
        f"{now.tm_hour:02d}:{now.tm_min:02d}:{now.tm_sec:02d} "
        f"{sign}{offset // 3600:02d}{offset % 3600 // 60:02d}"
    ).encode()
