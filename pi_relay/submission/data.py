"""The bytes behind DATA: where they end, and what of them may become part of a message.

Rules:
- Only CRLF.CRLF ends the data (RFC 5321 4.1.1.4), wherever the network has split it; a bare LF never does.
- What comes out is the wire form: still dot-stuffed, every line ended by CRLF, no bare CR or LF, no NUL, and
  no line that is a lone dot. So it can be sent on as it is, and cannot end a later transmission early.
- A bare LF is made CRLF for local clients and refused from others; a bare CR or a NUL is refused from all.
  A dot behind a bare LF was in the middle of a line for the client: it is content, and gets stuffed.
- Work is done on chunks by a few scans in C, never by line; what cannot be judged yet (a part of a
  terminator, a line end) stays in the caller's buffer, at most four bytes.
It must not know sockets, headers or the queue.
"""

from __future__ import annotations

import re
from io import IncrementalNewlineDecoder

from pi_relay.submission.replies import BARE_CR_OR_LF, MESSAGE_TOO_LARGE, NUL, Refused

TERMINATOR = b"\r\n.\r\n"
# What may turn out to be a terminator, a CRLF, or a bare LF with a dot around it, longest first.
_UNDECIDED = (b"\r\n.\r", b"\r\n.\n", b"\r\n.", b"\r\n", b"\r", b"\n")

_find_strict_offence = re.compile(rb"\0|\r(?!\n)|(?<!\r)\n").search
_find_offence = re.compile(rb"\0|\r(?!\n)").search
# A line end with the dot behind it where that dot has to be stuffed: a dot behind a bare LF, and the lone
# dot between CRLF and a bare LF, which would otherwise become a terminator.
_normalise = re.compile(rb"\r\n(?:(\.)(?=\n))?|\n(\.)?").sub


class DataStream:
    """Takes the message out of what a client sends behind DATA.

    ``size_bytes`` counts octets as they came, without the terminator. ``finished``: the terminator was
    met, and the buffer begins with what follows it.
    """

    __slots__ = ("_bare_lf_allowed", "_lead", "_size_max_bytes", "eight_bit", "finished", "size_bytes")

    def __init__(self, *, bare_lf_allowed: bool, size_max_bytes: int) -> None:
        self._bare_lf_allowed = bare_lf_allowed
        self._size_max_bytes = size_max_bytes
        # The line end of the DATA command counts as the CRLF before a dot: it is put before the first
        # bytes, and taken off what comes out.
        self._lead = -1
        self.finished = False
        self.eight_bit = False
        self.size_bytes = 0

    def feed(self, buffer: bytearray) -> bytes:
        """Move what is decided from ``buffer`` into the result, in wire form.

        Refused: the message cannot be taken; ``skip`` then finds its end.
        """
        self._begin(buffer)
        end = _end_of_data(buffer)
        cut = end + 2 if end >= 0 else len(buffer) - _undecided(buffer)
        with memoryview(buffer) as view:  # a slice of the bytearray would be one copy more
            piece = bytes(view[:cut])
        if piece:
            piece = self._judged(piece)
        self._consume(buffer, cut, end)
        return piece

    def skip(self, buffer: bytearray) -> int:
        """Drop from ``buffer`` what belongs to a message that was refused; how many bytes that was."""
        self._begin(buffer)
        end = _end_of_data(buffer)
        cut = end + 2 if end >= 0 else len(buffer) - _undecided(buffer)
        self._consume(buffer, cut, end)
        return cut

    def _begin(self, buffer: bytearray) -> None:
        if self._lead < 0:
            self._lead = 2
            buffer[:0] = b"\r\n"

    def _consume(self, buffer: bytearray, cut: int, end: int) -> None:
        if end >= 0:
            self.finished = True
            cut = end + len(TERMINATOR)
        del buffer[:cut]

    def _judged(self, piece: bytes) -> bytes:
        kinds = _line_ends(piece)
        bare_cr, bare_lf = "\r" in kinds, "\n" in kinds
        offence = None
        if bare_cr or (bare_lf and not self._bare_lf_allowed) or b"\0" in piece:
            offence = (_find_offence if self._bare_lf_allowed else _find_strict_offence)(piece)
        # Refused is what comes first in the stream: an octet that may not be there, or one too many.
        room = self._size_max_bytes - self.size_bytes + self._lead
        if offence and offence.start() < room:
            raise Refused(NUL if offence[0] == b"\0" else BARE_CR_OR_LF)
        if len(piece) > room:
            raise Refused(MESSAGE_TOO_LARGE)
        self.size_bytes += len(piece) - self._lead
        self.eight_bit = self.eight_bit or not piece.isascii()
        if bare_lf:
            piece = _normalise(_with_crlf, piece)
        if self._lead:
            piece, self._lead = piece[self._lead :], 0
        return piece


def _end_of_data(buffer: bytearray) -> int:
    """Where the first terminator is; -1, the usual case, is told from behind twice as quick."""
    return buffer.find(TERMINATOR) if buffer.rfind(TERMINATOR) >= 0 else -1


def _line_ends(piece: bytes) -> tuple[str, ...]:
    """Which of CRLF, bare CR and bare LF are there: what io learns of text in one scan, three times as quick
    as looking for each."""
    decoder = IncrementalNewlineDecoder(None, translate=False)
    decoder.decode(piece.decode("latin-1"), final=True)
    kinds = decoder.newlines
    return kinds if isinstance(kinds, tuple) else (kinds or "",)


def _undecided(buffer: bytearray) -> int:
    for tail in _UNDECIDED:
        if buffer.endswith(tail):
            return len(tail)
    return 0


def _with_crlf(found: re.Match[bytes]) -> bytes:
    return b"\r\n.." if found[1] or found[2] else b"\r\n"
