"""The two directions of an SMTP session once it is open: commands and content out, replies in.

Rules: replies are matched to commands by their order alone (RFC 2920), so whatever breaks that order breaks
the session: a line that is no reply, a reply nobody asked for, one without end, silence beyond the deadline.
What the other side sends is bounded before it is kept. Once ``broken`` says why, nothing more is sent.
It must not know what a reply means, nor what a message is.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterable

from pi_relay.model import Reply

REPLY_SIZE_MAX_BYTES = 32 * 1024  # RFC 5321 4.5.3.1.5 says 512 octets a line; some are generous
REPLY_TEXT_MAX_CHARACTERS = 1000
WRITE_BUFFER_HIGH_BYTES = 64 * 1024
READ_SIZE_MAX_BYTES = 16 * 1024  # asyncio allocates its read buffer anew each time: 256 KiB unless told
QUIT_TIMEOUT_SECONDS = 5.0

_ENHANCED_STATUS = re.compile(r"([245])\.\d{1,3}\.\d{1,3}(?=\s|$)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")

RawReply = tuple[int, list[bytes]]  # code, and the text of each line


def _nobody() -> None:
    pass


class Wire(asyncio.Protocol):
    """Takes over a connected transport by ``attach``; has one user at a time.

    ``on_idle_end`` is called when the session ends while nobody is using it.
    """

    def __init__(self, transport: asyncio.Transport, remote_mta: str) -> None:
        self._loop = asyncio.get_running_loop()
        self.transport = transport
        self.remote_mta = remote_mta
        self.broken = ""  # why nothing more can be said here, "" while all is well
        self.replies: list[RawReply] = []  # to what was asked last
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.on_idle_end: Callable[[], None] = _nobody
        self._in_use = False
        self._wanted = 0
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None  # pending while the transport's buffer is full
        self._partial = b""
        self._lines: list[bytes] = []
        self._lines_size_bytes = 0
        self._deadline = 0.0
        self._last_moment = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._quitting = False
        transport.set_protocol(self)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_HIGH_BYTES)
        if hasattr(transport, "max_size"):
            transport.max_size = READ_SIZE_MAX_BYTES

    # ── saying ───────────────────────────────────────────────────────────────────────────────────

    def begin(self, seconds: float, seconds_in_all: float) -> None:
        """A user takes the wire: for so long in all, the first step within ``seconds``. Then it breaks."""
        now = self._loop.time()
        self._in_use = True
        self._last_moment = now + seconds_in_all
        self._deadline = min(now + seconds, self._last_moment)
        self._timer = self._loop.call_at(self._deadline, self._on_timer)

    def allow(self, seconds: float) -> None:
        """The next step may take so long. A timer that then fires too early only sets itself again."""
        self._deadline = min(self._loop.time() + seconds, self._last_moment)
        if self._timer is not None and self._deadline < self._timer.when():
            self._timer.cancel()
            self._timer = self._loop.call_at(self._deadline, self._on_timer)

    def end(self) -> None:
        self._in_use = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def ask(self, data: bytes, count: int) -> None:
        """Send ``data``, to which ``count`` replies will come; they gather in ``replies``."""
        self.replies = []
        self._wanted = count
        if not self.broken:
            self.transport.write(data)

    def write(self, data: bytes | bytearray) -> None:
        if not self.broken:
            self.transport.write(data)

    async def answers(self) -> list[RawReply]:
        """The replies to what was asked; fewer where the session broke, as it does after a 421."""
        if len(self.replies) < self._wanted and not self.broken:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._wanted = 0
        return self.replies

    async def room(self) -> None:
        """Wait until the other side has taken enough for more to be written, or has answered already."""
        if self._room is not None:
            await self._room

    # ── being told (asyncio.Protocol) ────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        if self._quitting:
            self.transport.close()
            return
        lines = (self._partial + data).split(b"\n")
        self._partial = lines.pop()
        for line in lines:
            if self.broken:
                return
            self._take_line(line)
        if len(self._partial) + self._lines_size_bytes > REPLY_SIZE_MAX_BYTES:
            self.abort("a reply without end")
        if len(self.replies) >= self._wanted:
            self._wake()

    def _take_line(self, line: bytes) -> None:
        code, separator = line[:3], line[3:4]
        if not (len(code) == 3 and code.isdigit() and b"2" <= code < b"6" and separator in _SEPARATORS):
            self.abort(f"not an SMTP reply: {_readable(line[:80])}")
            return
        self._lines.append(line[4:])
        if separator == b"-":
            self._lines_size_bytes += len(line) + 1
            return
        reply = (int(code), self._lines)
        self._lines = []
        self._lines_size_bytes = 0
        if len(self.replies) >= self._wanted:
            self.abort(f"said without being asked: {self.reply(reply)}")
            return
        self.replies.append(reply)
        if reply[0] == 421:  # RFC 5321 3.8: it is closing, whatever else we asked
            self.abort(f"closed by the other side: {self.reply(reply)}")

    def pause_writing(self) -> None:
        self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._room = None

    def connection_lost(self, exception: Exception | None) -> None:
        if exception is not None and self._wanted and not self.broken:
            self._read_last_words()
        self.abort(f"connection lost: {exception}" if exception else "connection closed by the other side")
        if self._quitting:
            self.end()
        if not self.closed.done():
            self.closed.set_result(None)

    def _read_last_words(self) -> None:
        """A reply may lie unread behind an error of writing: "552 too big", say, then a reset."""
        if self.transport.get_extra_info("ssl_object") is not None:
            return
        try:
            data = os.read(self.transport.get_extra_info("socket").fileno(), READ_SIZE_MAX_BYTES)
        except OSError:
            return
        self.data_received(data)

    # ── ending ───────────────────────────────────────────────────────────────────────────────────

    def _on_timer(self) -> None:
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._on_timer)
            return
        self._timer = None
        self.abort("no answer in time")

    def abort(self, why: str) -> None:
        """Break off at once: in the middle of the content, the other side must not take it for the whole."""
        if self.broken:
            return
        self.broken = why
        self.transport.abort()
        self._wake()
        if not self._in_use and not self._quitting:
            self.on_idle_end()

    def _wake(self) -> None:
        for waiter in (self._waiter, self._room):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def quit(self) -> None:
        """Take leave (RFC 5321 4.1.1.10) without making anybody wait; ``closed`` is done when it is over."""
        if self.broken or self._quitting:
            return
        self._quitting = True
        self.transport.write(b"QUIT\r\n")
        self._timer = self._loop.call_later(QUIT_TIMEOUT_SECONDS, self.transport.abort)

    def reply(self, raw: RawReply) -> Reply:
        code, lines = raw
        return tidy_reply(code, lines, self.remote_mta)


_SEPARATORS = frozenset((b" ", b"-", b"\r", b""))


def tidy_reply(code: int, lines: Iterable[bytes], remote_mta: str) -> Reply:
    """The reply as data: one line of text, bounded, free of control characters, its status split off."""
    status, texts = "", []
    for line in lines:
        text = _readable(line)
        found = _ENHANCED_STATUS.match(text)
        if found and found[1] == str(code)[0]:  # RFC 2034 4: the class repeats the code's first digit
            status = status or found[0]
            text = text[found.end() :].lstrip()
        if text:
            texts.append(text)
    return Reply(code, status, " ".join(texts)[:REPLY_TEXT_MAX_CHARACTERS], remote_mta)


def _readable(line: bytes) -> str:
    return _CONTROL.sub(" ", line.decode("utf-8", "replace")).strip()
