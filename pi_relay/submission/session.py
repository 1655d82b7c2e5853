"""One SMTP session with a device (RFC 5321, RFC 6409): the dialogue from the greeting to QUIT.

A subclass of aiosmtpd's SMTP for the protocol and TLS plumbing that it has; all that we lean on of it and of
asyncio's stream reader is in this file, and tests/submission/test_contract.py holds them to it. The commands
are our own: work on the reader's buffer, replies gathered and written once before we wait again (which is
what PIPELINING, RFC 2920, wants), a body that streams.

Rules:
- A command line ends at CRLF only, and has no control character in it. Nothing after STARTTLS in clear is
  ever answered. EHLO's answer is one write.
- Nobody can make us wait for ever, or hold more than a bounded buffer: the idle time is renewed by whole
  commands and by progress within DATA, not by single bytes.
- A client that leaves does not undo a commit under way.
It must not know how the queue keeps a message, nor decide who may send (policy.py).
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from asyncio import sslproto
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from aiosmtpd.proxy_protocol import get_proxy
from aiosmtpd.smtp import SMTP

from pi_relay import headers, maillog, routes
from pi_relay.config import Device, Listener
from pi_relay.model import Envelope, IncomingMessage, QueueRefusal, Recipient, Reply
from pi_relay.submission import paths, replies
from pi_relay.submission.auth import TooBusy
from pi_relay.submission.data import DataStream
from pi_relay.submission.networks import client_address
from pi_relay.submission.policy import Client
from pi_relay.submission.replies import Refused

if TYPE_CHECKING:
    from pi_relay.submission.server import Server

BUFFER_SIZE_BYTES = 64 * 1024  # reading pauses at twice as much
READ_SIZE_BYTES = 64 * 1024  # asyncio's own 256 KiB cost a large allocation for each read
LINE_SIZE_MAX_BYTES = {"MAIL": 2048, "RCPT": 2048, "AUTH": 12_288}  # RFC 4954 4: room for tokens
COMMAND_SIZE_MAX_BYTES = 512
AUTH_LINE_SIZE_MAX_BYTES = 12_288
GARBAGE_SIZE_MAX_BYTES = 1024 * 1024  # of one line, dropped before the client is sent away
REFUSED_SIZE_MAX_BYTES = 256 * 1024 * 1024  # of a refused message, read so that the client sees why
PROGRESS_SIZE_BYTES = 1024  # in DATA, so much renews the idle time
ERRORS_MAX = 20
GUESSES_MAX = 5  # failed authentications in one session
HANDSHAKE_TIMEOUT_SECONDS = 30
PROXY_TIMEOUT_SECONDS = 5.0
SIZE_DECLARED_MAX = 10**15

_find_control = re.compile(rb"[\0-\x08\x0a-\x1f\x7f]").search
_is_proper_helo = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.IPv]+\]").fullmatch
_HTTP_VERBS = frozenset({"GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "DELETE", "PATCH", "TRACE"})


class Gone(Exception):
    """The client has left, or was sent away: the session is over."""


class _Peer:
    """What aiosmtpd expects to find as its session."""

    __slots__ = ("peer", "ssl")

    def __init__(self) -> None:
        self.peer: Any = None
        self.ssl: Any = None


class Session(SMTP):
    _reader: Any  # asyncio's stream reader, whose buffer we work on
    _writer: asyncio.StreamWriter

    def __init__(self, server: Server, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        # Not SMTP.__init__: it inspects itself and its handler anew for every connection.
        asyncio.StreamReaderProtocol.__init__(
            self,
            asyncio.StreamReader(limit=BUFFER_SIZE_BYTES, loop=loop),
            client_connected_cb=self._cb_client_connected,
            loop=loop,
        )
        self.loop = loop
        self.transport: Any = None
        self.session: Any = None
        self._handle_hooks: dict[str, Any] = {}
        self._handler_coroutine: asyncio.Task[None] | None = None
        self._original_transport: Any = None
        self._tls_protocol: Any = None
        self._tls_handshake_okay = True

        self._server = server
        self._listener = listener
        self._client: Client | None = None
        self._out: list[bytes] = []
        self._errors = 0
        self._guesses = 0
        self._active_at = loop.time()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._received_bytes = 0  # since the idle time was last renewed
        self.busy = False  # a message is being received or committed

        self._user = ""
        self._device: Device | None = None
        self._tls_version = ""
        self._greet("", extended=False)

    # ── what aiosmtpd calls ──────────────────────────────────────────────────────────────────────

    def _create_session(self) -> Any:
        return _Peer()

    def _set_rset_state(self) -> None:
        """Nothing: the state of ours is reset where a command says so."""

    def _reset_timeout(self, duration: float | None = None) -> None:
        self._active_at = self.loop.time()

    async def _handle_client(self) -> None:
        self._server.opened(self)
        self._watch_idle()
        try:
            await self._serve()
        except (Gone, OSError, EOFError, ssl.SSLError):
            pass
        except Exception as defect:
            maillog.error("a session ended by an internal error", defect)
            self._say(Reply(421, "4.3.0", replies.OUR_FAULT.text))
        finally:
            self._forget_message()
            if self._idle_timer is not None:
                self._idle_timer.cancel()
            self._server.closed(self)
            self._flush()
            if self.transport is not None:
                self.transport.close()

    def connection_made(self, transport: Any) -> None:
        if self._original_transport is None:
            transport.max_size = READ_SIZE_BYTES
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._original_transport is not None:
            self._original_transport.close()
        asyncio.StreamReaderProtocol.connection_lost(self, error)
        self.transport = None

    def eof_received(self) -> bool:
        """A client may have said its last word and still listen; the dialogue ends by itself."""
        self._reader.feed_eof()
        return self._tls_protocol is None

    # ── time ─────────────────────────────────────────────────────────────────────────────────────

    def _watch_idle(self) -> None:
        timeout = self._server.config.submission.idle_timeout_seconds
        left = self._active_at + timeout - self.loop.time()
        if left > 0:
            self._idle_timer = self.loop.call_later(left, self._watch_idle)
            return
        self.send_away(replies.TOO_SLOW)

    def send_away(self, reply: Reply) -> None:
        """End the session from outside the dialogue."""
        if self.transport is not None and not self.transport.is_closing():
            self._say(reply)
            self._flush()
            self.transport.close()
            self.loop.call_later(HANDSHAKE_TIMEOUT_SECONDS, self._abort)

    def _abort(self) -> None:
        if self.transport is not None:
            (self._original_transport or self.transport).abort()

    # ── reading and writing ──────────────────────────────────────────────────────────────────────

    def _say(self, reply: Reply) -> None:
        self._out.append(f"{reply.code} {reply.enhanced_status} {reply.text}\r\n".encode())

    def _flush(self) -> None:
        if self._out and self.transport is not None:
            self.transport.write(b"".join(self._out))
        self._out.clear()

    async def _more(self) -> None:
        """Wait for bytes, after all replies are out. Raises Gone at the end of the stream."""
        self._flush()
        if self._reader.at_eof() or self._reader._eof or self.transport is None:
            raise Gone
        if self.transport.get_write_buffer_size() > BUFFER_SIZE_BYTES:
            await self._writer.drain()
        await self._reader._wait_for_data("more")

    async def _line(self, size_max_bytes: int = AUTH_LINE_SIZE_MAX_BYTES) -> bytes:
        """The next line, without its CRLF. Raises Refused for one that is too long, after its end."""
        buffer: bytearray = self._reader._buffer
        dropped = seen = 0
        while (end := buffer.find(b"\r\n", max(seen - 1, 0))) < 0:
            if len(buffer) > size_max_bytes:
                dropped += len(buffer) - 1
                del buffer[:-1]  # a CR may have its LF yet to come
                self._reader._maybe_resume_transport()
                if dropped > GARBAGE_SIZE_MAX_BYTES:
                    raise self._last_words(replies.LINE_TOO_LONG)
            seen = len(buffer)
            await self._more()
        line = bytes(buffer[:end])
        del buffer[: end + 2]
        self._reader._maybe_resume_transport()
        self._active_at = self.loop.time()
        if dropped or len(line) > size_max_bytes:
            raise Refused(replies.LINE_TOO_LONG)
        return line

    def _last_words(self, reply: Reply, reason: str = "") -> Gone:
        """Say why, close, and give the exception that ends the session."""
        code = reply if reply.code in (421, 554, 221) else Reply(421, "4.7.0", reply.text)
        self._note_refusal(code, reason or reply.text)
        self.send_away(code)
        return Gone()

    # ── the dialogue ─────────────────────────────────────────────────────────────────────────────

    async def _serve(self) -> None:
        await self._admit()
        if self._listener.tls == "implicit":
            await self._secure()
        self._out.append(f"220 {self._server.config.hostname} ESMTP pi-relay\r\n".encode())
        while True:
            try:
                await self._command(await self._line())
            except Refused as refused:
                self._refuse(refused)

    async def _admit(self) -> None:
        """Find out who the client is, and whether it may be here at all."""
        peer = self.session.peer
        if self._listener.proxy_protocol:
            async with asyncio.timeout(PROXY_TIMEOUT_SECONDS):
                proxied = await get_proxy(self._reader)
            if not proxied.valid:
                self._abort()
                raise Gone
            if proxied.src_addr is not None:
                peer = (str(proxied.src_addr),)
        server = self._server
        self._client = client = server.policy.client(client_address(str(peer[0])), self._listener)
        self._device = client.device
        if not client.may_connect:
            raise self._last_words(replies.NOT_FROM_HERE)
        busy = server.too_many(self, client.address)
        if busy is not None:
            raise self._last_words(busy)

    async def _command(self, line: bytes) -> None:
        verb, _, argument = line.partition(b" ")
        name = verb.decode("ascii", "replace").upper()
        if _find_control(line):
            raise Refused(replies.BAD_CHARACTERS)
        method = _COMMANDS.get(name)
        if method is None:
            if name in _HTTP_VERBS or name.startswith("HOST:"):
                raise self._last_words(replies.NOT_SMTP)
            raise Refused(replies.UNKNOWN_COMMAND)
        if len(line) > LINE_SIZE_MAX_BYTES.get(name, COMMAND_SIZE_MAX_BYTES):
            raise Refused(replies.LINE_TOO_LONG)
        await method(self, argument.decode("utf-8", "surrogateescape").strip(" "))

    def _refuse(self, refused: Refused) -> None:
        reply = refused.reply
        self._note_refusal(reply, refused.reason)
        self._errors += 1
        if self._errors >= ERRORS_MAX:
            raise self._last_words(replies.TOO_MANY_ERRORS)
        self._say(reply)

    def _note_refusal(self, reply: Reply, reason: str) -> None:
        client = self._client.address if self._client else ""
        self._server.refused(client, self._device)
        maillog.refused(client=client, device=self._device_name(), reply=reply, reason=reason)

    def _device_name(self) -> str:
        return self._device.name if self._device else ""

    def _is_local(self) -> bool:
        return self._client is not None and self._client.local

    # ── greeting, and the small commands ─────────────────────────────────────────────────────────

    def _greet(self, helo: str, *, extended: bool) -> None:
        self._helo = helo
        self._extended = extended
        self._greeted = False
        self._incoming: IncomingMessage | None = None
        self._reverse_path = ""
        self._recipients: list[Recipient] = []
        self._smtputf8 = False
        self._declared_size_bytes: int | None = None
        self._mail_at = 0.0

    def _forget_message(self) -> None:
        """RFC 5321 4.1.1.5: sender, recipients and what there is of a message."""
        if self._incoming is not None:
            self._incoming.abort()
        self._incoming = None
        self._recipients = []

    async def _helo_command(self, argument: str) -> None:
        if not argument and not self._is_local():
            raise Refused(replies.ARGUMENT_NEEDED)
        self._begin_dialogue(argument, extended=False)
        self._out.append(f"250 {self._server.config.hostname}\r\n".encode())

    async def _ehlo_command(self, argument: str) -> None:
        if not argument:
            raise Refused(replies.ARGUMENT_NEEDED)
        self._begin_dialogue(argument, extended=True)
        size = routes.largest_message_size_bytes(self._server.config)
        lines = [self._server.config.hostname, "PIPELINING", f"SIZE {size}", "8BITMIME", "SMTPUTF8"]
        lines.append("ENHANCEDSTATUSCODES")
        if self._listener.tls == "starttls" and not self._tls_version:
            lines.append("STARTTLS")
        if self._listener.auth != "off" and self._tls_version:
            lines.append("AUTH PLAIN LOGIN")
        answer = "".join(f"250-{line}\r\n" for line in lines[:-1]) + f"250 {lines[-1]}\r\n"
        self._out.append(answer.encode())

    def _begin_dialogue(self, helo: str, *, extended: bool) -> None:
        if not self._is_local() and not _is_proper_helo(helo):
            raise Refused(replies.ARGUMENT_NEEDED)
        self._forget_message()
        self._greet(helo, extended=extended)
        self._greeted = True

    async def _noop(self, _: str) -> None:
        self._say(Reply(250, "2.0.0", "ok"))

    async def _rset(self, argument: str) -> None:
        _no_argument(argument)
        self._forget_message()
        self._say(Reply(250, "2.0.0", "forgotten"))

    async def _quit(self, argument: str) -> None:
        _no_argument(argument)
        self._say(Reply(221, "2.0.0", "bye"))
        raise Gone

    async def _vrfy(self, argument: str) -> None:
        if not argument:
            raise Refused(replies.ARGUMENT_NEEDED)
        self._say(Reply(252, "2.5.2", "send some mail, then we shall see"))

    async def _help(self, _: str) -> None:
        self._say(Reply(214, "2.0.0", "EHLO HELO STARTTLS AUTH MAIL RCPT DATA RSET NOOP VRFY QUIT"))

    # ── TLS ──────────────────────────────────────────────────────────────────────────────────────

    async def _starttls(self, argument: str) -> None:
        _no_argument(argument)
        if self._tls_version:
            raise Refused(replies.TLS_ALREADY)
        if self._listener.tls != "starttls":
            raise Refused(replies.TLS_NOT_HERE)
        if self._server.tls_context() is None:
            raise Refused(replies.TLS_UNAVAILABLE)
        self._say(Reply(220, "2.0.0", "ready for TLS"))
        self._flush()
        await self._secure()

    async def _secure(self) -> None:
        """Put TLS under the session; what was said in clear is forgotten (RFC 3207 4.2)."""
        context = self._server.tls_context()
        if context is None or self.transport is None:
            raise Gone
        handshake: asyncio.Future[None] = self.loop.create_future()
        self._original_transport = self.transport
        self._tls_protocol = sslproto.SSLProtocol(
            self.loop,
            self,
            context,
            handshake,
            server_side=True,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_SECONDS,
        )
        self._original_transport.set_protocol(self._tls_protocol)
        self.transport = self._tls_protocol._app_transport
        self._tls_protocol.connection_made(self._original_transport)
        try:
            await handshake
        except (OSError, ConnectionError) as problem:
            self._note_refusal(Reply(421, "4.7.0", "TLS handshake failed"), f"TLS: {problem}")
            self._abort()
            raise Gone from problem
        self._tls_version = self._tls_protocol._app_transport.get_extra_info("ssl_object").version() or "TLS"
        self._forget_message()
        self._greet("", extended=False)
        self._active_at = self.loop.time()

    # ── AUTH (RFC 4954) ──────────────────────────────────────────────────────────────────────────

    async def _auth(self, argument: str) -> None:
        mechanism, _, initial = argument.partition(" ")
        self._check_auth_allowed(mechanism)
        match mechanism.upper():
            case "PLAIN":
                user, password = _plain(await self._response(initial, ""))
            case "LOGIN":
                user = _text(await self._response(initial, "Username:"))
                password = _text(await self._response("", "Password:"))
            case _:
                raise Refused(replies.AUTH_UNKNOWN)
        await self._sign_in(user, password)

    def _check_auth_allowed(self, mechanism: str) -> None:
        if self._listener.auth == "off":
            raise Refused(replies.AUTH_NOT_HERE)
        if not self._greeted:
            raise Refused(replies.EHLO_FIRST)
        if self._user:
            raise Refused(replies.AUTH_ALREADY)
        if self._incoming is not None:
            raise Refused(replies.AUTH_IN_MAIL)
        if not mechanism:
            raise Refused(replies.ARGUMENT_NEEDED)
        if not self._tls_version:
            raise Refused(replies.AUTH_NEEDS_TLS)

    async def _response(self, initial: str, challenge: str) -> bytes:
        """The client's answer, given at once or asked for; ``=`` is an empty one given at once."""
        if initial == "=":
            return b""
        if not initial:
            self._out.append(f"334 {b64encode(challenge.encode()).decode()}\r\n".encode())
            initial = (await self._line()).decode("ascii", "replace").strip()
        if initial == "*":
            raise Refused(replies.AUTH_CANCELLED)
        try:
            return b64decode(initial, validate=True)
        except (Base64Error, ValueError) as problem:
            raise Refused(replies.AUTH_BAD_BASE64) from problem

    async def _sign_in(self, user: str, password: str) -> None:
        assert self._client is not None
        server, address = self._server, self._client.address
        device = server.policy.device_named(user, address)
        try:
            known = await server.passwords.verify(password, device.password_hash if device else None)
        except TooBusy as busy:
            reply = Reply(454, "4.7.0", "too many authentications at once, try again soon")
            raise Refused(reply) from busy
        if known and device is not None:
            self._user, self._device = user, device
            server.guesses.succeeded(address)
            self._say(Reply(235, "2.7.0", "authenticated"))
            return
        self._guesses += 1
        await asyncio.sleep(server.guesses.failed(address))
        if self._guesses >= GUESSES_MAX:
            raise self._last_words(replies.TOO_MANY_GUESSES, f"AUTH as {user!r}")
        raise Refused(replies.AUTH_FAILED, f"AUTH as {user!r}: {replies.AUTH_FAILED.text}")

    # ── MAIL and RCPT ────────────────────────────────────────────────────────────────────────────

    async def _mail(self, argument: str) -> None:
        self._check_may_send()
        path, given = paths.parse_mail(
            argument.encode("utf-8", "surrogateescape"), brackets_needed=not self._is_local()
        )
        if given and not self._extended:
            raise Refused(replies.PARAMETER_UNKNOWN)
        smtputf8 = _mail_parameters(given)
        size = _declared_size(given)
        limit = routes.largest_message_size_bytes(self._server.config)
        if size is not None and limit and size > limit:
            raise Refused(replies.MESSAGE_TOO_LARGE)
        try:
            self._incoming = self._server.begin(size)
        except QueueRefusal as refusal:
            raise Refused(refusal.reply, "the queue takes nothing now") from refusal
        self._reverse_path, self._smtputf8, self._declared_size_bytes = path, smtputf8, size
        self._recipients = []
        self._mail_at = time.time()
        self._say(Reply(250, "2.1.0", "sender ok"))

    def _check_may_send(self) -> None:
        if not self._greeted:
            raise Refused(replies.EHLO_FIRST)
        if self._incoming is not None:
            raise Refused(replies.NESTED_MAIL)
        client, authentication = self._client, self._listener.auth
        assert client is not None
        if not self._user:
            free = client.may_submit and authentication != "required" and not client.must_authenticate
            if not free:
                raise Refused(replies.AUTH_REQUIRED if authentication != "off" else replies.NOT_ALLOWED)
        if not self._server.config.smart_hosts:
            raise Refused(replies.NO_WAY_OUT)

    async def _rcpt(self, argument: str) -> None:
        if self._incoming is None:
            raise Refused(replies.MAIL_FIRST)
        path, given = paths.parse_rcpt(
            argument.encode("utf-8", "surrogateescape"),
            brackets_needed=not self._is_local(),
            utf8_allowed=self._smtputf8,
        )
        if given:
            raise Refused(replies.PARAMETER_UNKNOWN)
        config = self._server.config
        if path == "postmaster":
            if not config.postmaster:
                raise Refused(replies.NO_POSTMASTER)
            path = config.postmaster
        if len(self._recipients) >= config.submission.recipients_max:
            raise Refused(replies.TOO_MANY_RECIPIENTS)
        via = routes.via_for(config, self._reverse_path, path, self._device_name())
        if not via:
            raise Refused(replies.NO_ROUTE)
        if self._declared_size_bytes and routes.too_large_for(config, via, self._declared_size_bytes):
            raise Refused(replies.MESSAGE_TOO_LARGE)
        if all(recipient.forward_path != path for recipient in self._recipients):
            self._recipients.append(Recipient(path))
        self._say(Reply(250, "2.1.5", "recipient ok"))

    # ── DATA ─────────────────────────────────────────────────────────────────────────────────────

    async def _data(self, argument: str) -> None:
        _no_argument(argument)
        if self._incoming is None:
            raise Refused(replies.MAIL_FIRST)
        if not self._recipients:
            raise Refused(replies.RCPT_FIRST)
        self._out.append(b"354 end data with <CRLF>.<CRLF>\r\n")
        stream = DataStream(
            bare_lf_allowed=self._is_local(),
            size_max_bytes=routes.largest_message_size_bytes(self._server.config) or SIZE_DECLARED_MAX,
        )
        self.busy = True
        try:
            await self._receive(stream, self._incoming)
        except Refused:
            await self._skip_rest(stream)
            raise
        except QueueRefusal as refusal:
            await self._skip_rest(stream)
            raise Refused(refusal.reply, "the queue takes nothing now") from refusal
        finally:
            self.busy = False
            self._forget_message()

    async def _receive(self, stream: DataStream, incoming: IncomingMessage) -> None:
        head, rest = await self._header_block(stream)
        header = _admissible(head)
        front = self._front(header, incoming.queue_id)
        await incoming.write(front + header.block + rest)
        size = len(front) + len(header.block) + len(rest)
        while not stream.finished:
            piece = await self._piece(stream)
            if piece:
                size += len(piece)
                await incoming.write(piece)
        envelope = Envelope(
            queue_id=incoming.queue_id,
            reverse_path=self._reverse_path,
            recipients=tuple(self._recipients),
            accepted_at=time.time(),
            body_type="8BITMIME" if stream.eight_bit else "7BIT",
            smtputf8=self._smtputf8,
            client=self._client.address if self._client else "",
            device=self._device_name(),
            header_size_bytes=len(front) + len(header.block),
            message_size_bytes=size,
        )
        await incoming.commit(envelope)
        self._say(Reply(250, "2.0.0", f"queued as {incoming.queue_id}"))
        self._flush()
        self._accepted(envelope, header)

    async def _header_block(self, stream: DataStream) -> tuple[headers.Header, bytes]:
        """The header as it came, and what of the body has come with it."""
        head = bytearray()
        seen = 0
        while (end := headers.end_of_block(head, seen)) < 0 and not stream.finished:
            if len(head) > headers.BLOCK_SIZE_MAX_BYTES:
                raise Refused(replies.HEADER_TOO_LARGE)
            seen = len(head)
            head += await self._piece(stream)
        if end > headers.BLOCK_SIZE_MAX_BYTES:
            raise Refused(replies.HEADER_TOO_LARGE)
        return headers.split(bytes(head), end)

    async def _piece(self, stream: DataStream) -> bytes:
        """What the buffer has of the message; waits where that is nothing."""
        buffer: bytearray = self._reader._buffer
        while not (piece := stream.feed(buffer)) and not stream.finished:
            await self._more()
        self._reader._maybe_resume_transport()
        self._progress(len(piece))
        return piece

    def _progress(self, size_bytes: int) -> None:
        self._received_bytes += size_bytes
        if self._received_bytes >= PROGRESS_SIZE_BYTES:
            self._received_bytes = 0
            self._active_at = self.loop.time()

    async def _skip_rest(self, stream: DataStream) -> None:
        """Read a refused message to its end, so that the client hears why."""
        buffer: bytearray = self._reader._buffer
        skipped = 0
        while not stream.finished:
            dropped = stream.skip(buffer)
            skipped += dropped
            self._progress(dropped)
            self._reader._maybe_resume_transport()
            if skipped > REFUSED_SIZE_MAX_BYTES:
                raise self._last_words(replies.MESSAGE_TOO_LARGE)
            if not stream.finished:
                await self._more()

    def _front(self, header: headers.Header, queue_id: str) -> bytes:
        """What goes before the message: our trace, and what it lacks."""
        assert self._client is not None
        hostname, now = self._server.config.hostname, time.time()
        only = self._recipients[0].forward_path if len(self._recipients) == 1 else ""
        trace = headers.received(
            helo=self._helo,
            client=self._client.address,
            by=hostname,
            protocol=headers.protocol_name(
                extended=self._extended,
                utf8=self._smtputf8,
                tls=bool(self._tls_version),
                authenticated=bool(self._user),
            ),
            queue_id=queue_id,
            recipient=only,
            at=now,
        )
        return trace + headers.repairs(
            header, queue_id=queue_id, by=hostname, reverse_path=self._reverse_path, at=now
        )

    def _accepted(self, envelope: Envelope, header: headers.Header) -> None:
        self._server.accepted(envelope.client, self._device)
        maillog.accepted(
            queue_id=envelope.queue_id,
            client=envelope.client,
            device=envelope.device,
            reverse_path=envelope.reverse_path,
            to=[recipient.forward_path for recipient in envelope.recipients],
            size_bytes=envelope.message_size_bytes,
            tls=self._tls_version,
            auth=self._user,
            seconds=max(envelope.accepted_at - self._mail_at, 0.0),
            message_id=header.value(b"message-id").decode("utf-8", "replace"),
        )


def _admissible(header: headers.Header) -> headers.Header:
    """The header as it may go on. Refused for one that goes in circles, or claims several authors."""
    if header.names.count(b"received") > headers.RECEIVED_MAX:
        raise Refused(replies.LOOP)
    if header.names.count(b"from") > 1:
        raise Refused(replies.SEVERAL_FROM)
    return header.without(b"return-path")


def _no_argument(argument: str) -> None:
    if argument:
        raise Refused(replies.NO_ARGUMENT)


def _mail_parameters(given: Mapping[str, str]) -> bool:
    """Whether MAIL asks for SMTPUTF8; Refused for what we do not know or cannot read."""
    for keyword, value in given.items():
        match keyword:
            case "BODY" if value.upper() in ("7BIT", "8BITMIME"):
                pass
            case "SMTPUTF8" if not value:
                pass
            case "SIZE" if value.isascii() and value.isdigit() and len(value) <= 20:
                pass
            case "AUTH" if value:  # RFC 4954 5: taken, and not passed on
                pass
            case "BODY" | "SMTPUTF8" | "SIZE" | "AUTH":
                raise Refused(replies.PARAMETER_INVALID)
            case _:
                raise Refused(replies.PARAMETER_UNKNOWN)
    return "SMTPUTF8" in given


def _declared_size(given: Mapping[str, str]) -> int | None:
    """RFC 1870; 0 says nothing."""
    return min(int(given.get("SIZE", "0")), SIZE_DECLARED_MAX) or None


def _plain(response: bytes) -> tuple[str, str]:
    """User name and password of RFC 4616: [authorization id] NUL user NUL password."""
    parts = response.split(b"\0")
    if len(parts) != 3:
        raise Refused(replies.AUTH_BAD_RESPONSE)
    return _text(parts[1]), _text(parts[2])


def _text(response: bytes) -> str:
    return response.decode("utf-8", "surrogateescape").rstrip("\0")


_COMMANDS: dict[str, Callable[[Session, str], Awaitable[None]]] = {
    "AUTH": Session._auth,
    "DATA": Session._data,
    "EHLO": Session._ehlo_command,
    "HELO": Session._helo_command,
    "HELP": Session._help,
    "MAIL": Session._mail,
    "NOOP": Session._noop,
    "QUIT": Session._quit,
    "RCPT": Session._rcpt,
    "RSET": Session._rset,
    "STARTTLS": Session._starttls,
    "VRFY": Session._vrfy,
}
