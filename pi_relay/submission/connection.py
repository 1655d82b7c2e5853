"""One client's connection: bytes, lines and TLS, over a subclass of aiosmtpd's SMTP.

Rules:
- All that we lean on of aiosmtpd, and of the asyncio streams it works with, is in this file: the protocol and
  its set-up (``connection_made``, one task a connection, the reader's buffer), and the PROXY header's parser.
  tests/submission/test_aiosmtpd_contract.py holds them to it.
- A line ends at CRLF, and nothing runs from behind a bare LF. Replies are gathered and go out in one write
  before the next wait, so that a pipelined group is answered at once.
- Whoever goes away ends the wait for him, never the commit of a message that he has sent wholly.
- Every wait has a deadline, which the server's sweep enforces; no line and no buffer is without bound.
It must not know SMTP's commands.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from asyncio import sslproto
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from aiosmtpd.proxy_protocol import PROTO, V2_CMD, get_proxy
from aiosmtpd.smtp import SMTP

from pi_relay import maillog
from pi_relay.model import Reply
from pi_relay.submission import replies
from pi_relay.submission.replies import Refused

# asyncio's own sizes are for few, fast connections: 256 KiB a read, and as much held by every TLS session.
READ_SIZE_BYTES = 64 * 1024
READ_AHEAD_BYTES = 32 * 1024  # reading pauses beyond twice this
sslproto.SSLProtocol.max_size = 32 * 1024

LINE_SIZE_MAX_BYTES = 12_288  # the longest of all, an AUTH response (RFC 4954 4)

TLS_HANDSHAKE_SECONDS = 30.0
PROXY_HEADER_SECONDS = 10.0
FLUSH_SECONDS = 10.0  # for a last word to someone who does not read

# How OpenSSL says that a client speaks nothing that we do.
_TOO_OLD_REASONS = frozenset({"UNSUPPORTED_PROTOCOL", "NO_SHARED_CIPHER", "NO_SUITABLE_SIGNATURE_ALGORITHM"})
TOO_OLD = (
    'it speaks only old TLS; "legacy = true" in its [[devices]] section lets a device of the office do so'
)

_NEVER = float("inf")
_TLS_RECORD = b"\x16"

# aiosmtpd words what clients do into its own log; ours is the mail log.
for _name in ("mail.log", "mail.debug"):
    logging.getLogger(_name).addHandler(logging.NullHandler())
    logging.getLogger(_name).propagate = False


class GoodBye(Exception):
    """All is said: the connection ends."""


class _PeerFacts:
    """What SMTP.connection_made notes of a connection."""

    __slots__ = ("peer",)
    peer: Any


class Connection(SMTP):
    """What a session stands on: it fills in ``admission``, ``converse``, ``note_refusal`` and ``leave``.

    ``deadline``: in the loop's time, when the sweep shall call ``expire``; infinite while we are at work.
    ``tls``: the version, "" in clear.
    """

    _reader: Any  # asyncio's StreamReader, whose buffer we work on
    _writer: Any
    _paused: bool  # of asyncio's FlowControlMixin: the client does not read
    _drain_helper: Callable[[], Awaitable[None]]

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not SMTP.__init__: it looks up every method of the class anew for each connection.
        asyncio.StreamReaderProtocol.__init__(
            self,
            asyncio.StreamReader(limit=READ_AHEAD_BYTES, loop=loop),
            client_connected_cb=self._cb_client_connected,
            loop=loop,
        )
        self.loop = loop
        self.transport: asyncio.Transport | None = None
        self._original_transport = None
        self._handler_coroutine: asyncio.Task[None] | None = None
        self.deadline = _NEVER
        self.tls = ""
        self._ending = False  # of the server's own will
        self._expired = False
        self._out: list[bytes] = []

    # ── what a session fills in ──────────────────────────────────────────────────────────────────

    def admission(self, peer: tuple[Any, ...] | None) -> Reply | None:
        """Why ``peer`` (its socket address) may not come in; None: it may."""
        raise NotImplementedError

    async def converse(self) -> None:
        """The dialogue. It ends by GoodBye, or by EOFError or ConnectionError where the client has gone."""
        raise NotImplementedError

    def note_refusal(self, refused: Refused) -> None:
        """Count and log it."""
        raise NotImplementedError

    def leave(self) -> None:
        """The dialogue is over, however it ended: let go of everything."""
        raise NotImplementedError

    # ── the course of a connection ───────────────────────────────────────────────────────────────

    def _create_session(self) -> Any:
        return _PeerFacts()

    def _create_envelope(self) -> Any:
        """The session keeps its own."""

    def _reset_timeout(self, duration: float | None = None) -> None:
        """No timer a connection: the server's sweep looks at ``deadline``."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.max_size = READ_SIZE_BYTES  # type: ignore[attr-defined]
        refusal = self.admission(transport.get_extra_info("peername"))
        if refusal is None:
            super().connection_made(transport)
            return
        self.note_refusal(Refused(refusal))
        if not self.speaks_tls_first:
            transport.write(line_of(refusal))
        transport.close()

    speaks_tls_first = False  # a client here would take our words in clear for a broken handshake

    def connection_lost(self, error: Exception | None) -> None:
        # However it was lost, it is the end of what the client says; the dialogue finds it at its next wait.
        asyncio.StreamReaderProtocol.connection_lost(self, None)
        self.transport = None

    def eof_received(self) -> bool:
        # A half-closed client still hears what becomes of what it has sent.
        return bool(asyncio.StreamReaderProtocol.eof_received(self))

    async def _handle_client(self) -> None:
        try:
            await self.converse()
        except (GoodBye, EOFError, ConnectionError):
            pass
        except asyncio.CancelledError:
            self.say(replies.SHUTTING_DOWN)
        except Exception as error:
            maillog.error("a session broke off", error)
            self.say(replies.OUR_FAULT)
        finally:
            self.leave()
            self.write()
            self.deadline = self.loop.time() + FLUSH_SECONDS
            if self.transport is not None:
                self.transport.close()

    def expire(self) -> None:
        """The deadline has passed: a last word, and the end."""
        if self.transport is None:
            return
        if self._expired:
            self.transport.abort()
            return
        self._expired = True
        self.note_refusal(Refused(replies.TOO_SLOW))
        self.deadline = self.loop.time() + FLUSH_SECONDS
        self.transport.write(line_of(replies.TOO_SLOW))
        self.transport.close()

    def shut_down(self) -> None:
        """End as soon as no message is under way."""
        self._ending = True
        self._reader._wakeup_waiter()

    def cancel(self) -> None:
        if self._handler_coroutine is not None:
            self._handler_coroutine.cancel()

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The dialogue, None where the client was sent away at once."""
        return self._handler_coroutine

    # ── reading and writing ──────────────────────────────────────────────────────────────────────

    @property
    def buffer(self) -> bytearray:
        """What has come and is not yet used; whoever uses it takes it out."""
        buffer: bytearray = self._reader._buffer
        return buffer

    async def next_line(self, patience_seconds: float) -> bytes:
        """The next line without its CRLF. Refused: it is too long, or holds control characters.

        It has to be whole within ``patience_seconds``: the deadline is not put off by its parts.
        """
        buffer: bytearray = self._reader._buffer
        too_long = False
        deadline = 0.0
        while (end := buffer.find(b"\r\n")) < 0:
            if len(buffer) > LINE_SIZE_MAX_BYTES:
                too_long = True
                del buffer[:-1]  # the last may be the CR of the line's end
            if self._ending:
                raise Refused(replies.SHUTTING_DOWN)
            if buffer[:1] == _TLS_RECORD:
                raise Refused(replies.NOT_SMTP, "a TLS handshake where none was agreed on")
            deadline = deadline or self.loop.time() + patience_seconds
            await self.more(deadline)
        line = bytes(buffer[:end])
        del buffer[: end + 2]
        if too_long:
            raise Refused(replies.LINE_TOO_LONG)
        if b"\n" in line or b"\r" in line or b"\0" in line:
            raise Refused(replies.BAD_CHARACTERS)
        return line

    async def more(self, deadline: float) -> None:
        """Send what is to be said, and wait until something may have come. EOFError: nothing will."""
        self.write()
        self.deadline = deadline
        reader = self._reader
        if self._paused:
            await self._drain_helper()
        elif self.transport is None or reader._eof:
            raise EOFError
        else:
            await reader._wait_for_data("more")
        self.deadline = _NEVER

    def say(self, reply: Reply) -> None:
        self._out.append(line_of(reply))

    def answer(self, lines: bytes) -> None:
        """Whole reply lines, with their CRLF."""
        self._out.append(lines)

    def write(self) -> None:
        if self._out and self.transport is not None and not self.transport.is_closing():
            self.transport.write(b"".join(self._out))
        self._out.clear()

    # ── TLS and PROXY ────────────────────────────────────────────────────────────────────────────

    async def start_tls(self, context: ssl.SSLContext, *, leading: bytes = b"") -> None:
        """Go on inside TLS. GoodBye where the handshake fails or takes too long.

        ``leading``: bytes of the handshake that have come already. Everything else that came in clear is
        dropped: it must never be answered inside TLS (RFC 3207 6).
        """
        self.write()
        self.buffer.clear()
        self.deadline = self.loop.time() + TLS_HANDSHAKE_SECONDS + FLUSH_SECONDS
        self._over_ssl = True  # from now on an end of what the client says is the end of both ways
        try:
            transport = await self._shake_hands(context, leading)
        except OSError as error:
            words = getattr(error, "reason", None) or str(error) or "the client went away"
            advice = f"; {TOO_OLD}" if words in _TOO_OLD_REASONS else ""
            self.note_refusal(Refused(replies.NO_HANDSHAKE, f"TLS handshake: {words}{advice}"))
            raise GoodBye from None
        self.deadline = _NEVER
        self.transport = self._transport = self._reader._transport = self._writer._transport = transport
        self.tls = transport.get_extra_info("ssl_object").version() or "TLS"

    async def _shake_hands(self, context: ssl.SSLContext, leading: bytes) -> asyncio.Transport:
        """The transport inside TLS. OSError where it comes to nothing."""
        clear = self.transport
        if clear is None:
            raise ConnectionAbortedError("the client went away")
        if leading:
            # In the turn after the one in which TLS takes the transport over, and before it reads from it.
            self.loop.call_soon(self.loop.call_soon, _hand_on, clear, leading)
        transport = await self.loop.start_tls(
            clear, self, context, server_side=True, ssl_handshake_timeout=TLS_HANDSHAKE_SECONDS
        )
        if transport is None:
            raise ConnectionAbortedError("the client went away")
        return transport

    async def proxied_address(self) -> str | None:
        """The client's address as the PROXY header before all else tells it (v1 or v2).

        "" where the header does not tell; None: it is the load balancer's own, seeing whether we live.
        """
        try:
            proxied = await asyncio.wait_for(get_proxy(self._reader), PROXY_HEADER_SECONDS)
        except (TimeoutError, asyncio.IncompleteReadError):
            proxied = None
        if not proxied:
            self.note_refusal(Refused(replies.NO_PROXY_HEADER))
            raise GoodBye
        if proxied.command == V2_CMD.LOCAL:
            return None
        source = proxied.src_addr if proxied.protocol == PROTO.STREAM else None
        return str(source) if isinstance(source, IPv4Address | IPv6Address) else ""


def _hand_on(transport: asyncio.Transport, data: bytes) -> None:
    """Let the transport's protocol have ``data`` as if it had just come."""
    protocol: Any = transport.get_protocol()
    while data and not transport.is_closing():
        room = protocol.get_buffer(len(data))
        size = min(len(room), len(data))
        room[:size] = data[:size]
        protocol.buffer_updated(size)
        data = data[size:]


def line_of(reply: Reply) -> bytes:
    return f"{reply}\r\n".encode()
