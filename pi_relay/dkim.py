"""A DKIM signature (RFC 6376): what is signed of a message, and the field that says so.

Both canonicalisations are "relaxed"; the field goes on top of the header block. ``From`` is named once more
than it stands there, so that nobody can put another one in front; there is no ``l=``, which would let text be
added below, and no ``x=``, for a late message is as genuine as a quick one.

Rules: pure; bytes in wire form (CRLF, dot-stuffed), scanned in C, never line by line; what is signed is the
message as it arrives, dots unstuffed. It must not know keys, files, clocks or the configuration.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence

CRLF = b"\r\n"
LINE_SIZE_MAX = 78
FROM_SIZE_MAX_BYTES = 4096

# What is signed of the header block, where it is there (RFC 6376 5.4.1, and what MIME readers go by).
SIGNED = (
    *("From", "Sender", "Reply-To", "Subject", "Date", "To", "Cc", "Message-ID", "In-Reply-To", "References"),
    *("MIME-Version", "Content-Type", "Content-Transfer-Encoding", "Content-ID", "Content-Description"),
    *("Resent-Date", "Resent-From", "Resent-Sender", "Resent-To", "Resent-Cc", "Resent-Message-ID"),
    *("List-Id", "List-Help", "List-Unsubscribe", "List-Unsubscribe-Post", "List-Subscribe", "List-Post"),
    *("List-Owner", "List-Archive"),
)

_fields = re.compile(rb"([!-9;-~]+)[ \t]*:([^\r]*(?:\r\n[ \t][^\r]*)*)\r\n").findall
_reduce_blanks = re.compile(rb"[ \t\r\n]+").sub


# ── the header block ─────────────────────────────────────────────────────────────────────────────


def signature(
    block: bytes,
    *,
    domain: str,
    selector: str,
    algorithm: str,
    sign: Callable[[bytes], bytes],
    body_hash: bytes,
    at: float | None,
) -> bytes:
    """The DKIM-Signature field of a message, to be put in front of its header ``block``.

    ``sign`` gives the signature of the bytes it is handed, by ``algorithm``; ``body_hash`` is the SHA-256 of
    what a RelaxedBody wrote; ``at``: seconds since the epoch, None where nobody knows.
    """
    names, fields = _signed_fields(block)
    tags = ["v=1;", f"a={algorithm};", "c=relaxed/relaxed;", f"d={domain};", f"s={selector};"]
    if at is not None:
        tags.append(f"t={at:.0f};")
    text = _folded(tags, names, f"bh={_base64(body_hash)};").encode("ascii")
    value = text.partition(b":")[2]
    signed = sign(b"".join([*fields, b"dkim-signature:", _relaxed_value(value)]))
    return text + _in_lines(_base64(signed)).encode("ascii") + CRLF


def _signed_fields(block: bytes) -> tuple[list[str], list[bytes]]:
    """What ``h=`` names, and the relaxed fields in that order: of several alike, the lowest first (5.4.2)."""
    standing: dict[bytes, list[bytes]] = {}
    for name, value in _fields(block):
        standing.setdefault(name.lower(), []).append(value)
    names, fields = [], []
    for name in SIGNED:
        key = name.lower().encode("ascii")
        values = standing.get(key, [])
        names += [name] * (len(values) + (name == "From"))
        fields += [key + b":" + _relaxed_value(value) + CRLF for value in reversed(values)]
    return names, fields


def _relaxed_value(value: bytes) -> bytes:
    """RFC 6376 3.4.2. Octets beyond ASCII stay as they are."""
    return _reduce_blanks(b" ", value).strip(b" ")


def _folded(tags: list[str], names: list[str], body_hash: str) -> str:
    """The field up to its empty ``b=``, on lines of LINE_SIZE_MAX as far as its words allow."""
    pieces = [f" {tag}" for tag in tags]
    pieces += [f"{' h=' if not number else ''}{name}:" for number, name in enumerate(names)]
    pieces[-1] = pieces[-1].removesuffix(":") + ";"
    lines = ["DKIM-Signature:"]
    for piece in (*pieces, f" {body_hash}"):
        if len(lines[-1]) + len(piece) > LINE_SIZE_MAX:
            lines.append(f"\t{piece.lstrip()}")
        else:
            lines[-1] += piece
    return "\r\n".join([*lines, "\tb="])


def _in_lines(text: str) -> str:
    width = LINE_SIZE_MAX - len("\tb=")
    return "\r\n\t".join(text[start : start + width] for start in range(0, len(text), width))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


# ── whose it is ──────────────────────────────────────────────────────────────────────────────────

_texts_and_comments = re.compile(rb'"(?:[^"\\]|\\.)*"|\((?:[^()\\]|\\.)*\)').sub
_angle = re.compile(rb"<([^<>]*)>").search
_domain = re.compile(rb"@[ \t\r\n]*([^\s@,;:<>()\[\]\"]+)[ \t\r\n]*(?:$|[,;>])").search
_COMMENTS_MAX = 8  # one in another


def from_domain(block: bytes) -> str:
    """The domain of the (first) address in From, in lower case, not encoded; "" where there is none."""
    value = next((value for name, value in _fields(block) if name.lower() == b"from"), b"")
    value = value[:FROM_SIZE_MAX_BYTES]
    for _ in range(_COMMENTS_MAX):
        bare = _texts_and_comments(lambda found: b"x" if found[0][:1] == b'"' else b" ", value)
        if bare == value:
            break
        value = bare
    angle = _angle(value)
    found = _domain(angle[1].rpartition(b":")[2] if angle else value)  # RFC 5322 4.4: there may be a route
    return found[1].decode("utf-8", "replace").lower().removesuffix(".") if found else ""


# ── the body ─────────────────────────────────────────────────────────────────────────────────────

_EMPTY_LINES = CRLF * 16384


class RelaxedBody:
    """Canonicalises a body as it comes (RFC 6376 3.4.4), in chunks of any size; the result goes to ``write``.

    Blanks at line ends go, others are reduced to one space, empty lines at the end go. What the next chunk
    may change is held back: a few octets, and the number of line ends, however many.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        # We begin behind a line end that is not ours to write: a dot may be stuffed there.
        self._held = CRLF
        self._line_ends = -1
        self._is_empty = True

    def update(self, chunk: bytes | bytearray) -> None:
        data = self._held + chunk
        dot = b"\r\n." if data.endswith(b"\r\n.") else b""  # stuffed; not to be seen twice
        data = _reduced(data[: len(data) - len(dot)])
        text = data.rstrip(b" \r\n")
        if text:
            self._write_text(text)
        self._hold(data[len(text) :], dot)

    def _write_text(self, text: bytes) -> None:
        if self._line_ends < 0:
            text = text[2:]
            self._line_ends = 0
        while self._line_ends:
            some = min(self._line_ends, len(_EMPTY_LINES) // 2)
            self._write(_EMPTY_LINES[: 2 * some])
            self._line_ends -= some
        self._write(text)
        self._is_empty = False

    def _hold(self, tail: bytes, dot: bytes) -> None:
        """``tail``: line ends, then perhaps a space, then perhaps half a line end."""
        line_ends = tail.count(CRLF)
        rest = tail[2 * line_ends :]
        if line_ends and not rest and not dot:  # the last one again, for a dot may follow
            line_ends, rest = line_ends - 1, CRLF
        self._line_ends += line_ends
        self._held = rest + dot

    def close(self) -> None:
        """The body is over. One that is not empty ends with a line end, whether it had one or not."""
        if not self._is_empty:
            self._write(CRLF)


def _reduced(data: bytes) -> bytes:
    """Dots unstuffed, runs of blanks one space, none before a line end.

    A single octet is found much quicker than two, and base64 has neither dots nor blanks.
    """
    if b"." in data:
        data = data.replace(b"\r\n.", CRLF)
    data = data.replace(b"\t", b" ")
    if b" " in data:
        while b"  " in data:
            data = data.replace(b"  ", b" ")
        data = data.replace(b" \r\n", CRLF)
    return data


# ── the record in DNS ────────────────────────────────────────────────────────────────────────────


def record_name(domain: str, selector: str) -> str:
    return f"{selector}._domainkey.{domain}"


def record_strings(record: str) -> tuple[str, ...]:
    """A TXT record in the strings of at most 255 octets that DNS keeps it in (RFC 1035 3.3.14)."""
    return tuple(record[start : start + 255] for start in range(0, len(record), 255))


def record_trouble(found: Sequence[str], wanted: str) -> str:
    """Why the TXT records found do not serve for what ``wanted`` would: "absent", "several", "different",
    "revoked"; "" where they do. Blanks and the order of tags do not matter (RFC 6376 3.2)."""
    if not found:
        return "absent"
    if len(found) > 1:
        return "several"
    is_, should = _tags(found[0]), _tags(wanted)
    if is_.get("p") == "":
        return "revoked"
    hashes = is_.get("h", "sha256").split(":")
    services = is_.get("s", "*").split(":")
    serves = "sha256" in hashes and bool({"*", "email"} & set(services)) and is_.get("v", "DKIM1") == "DKIM1"
    same = is_.get("p") == should["p"] and is_.get("k", "rsa") == should["k"]
    return "" if serves and same else "different"


def _tags(text: str) -> dict[str, str]:
    pairs = (tag.partition("=") for tag in text.split(";"))
    return {name.strip(): "".join(value.split()) for name, equals, value in pairs if equals}
