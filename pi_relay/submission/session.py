"""The dialogue of RFC 5321 with one client, from the greeting to the end.

Rules: a command is one short method that answers, or raises Refused: what a client is refused with is
answered, counted and logged in one place. Patience with errors and idling has an end. Nothing is accepted
for a message that the policy, the routes or the queue would not take.
It must not know sockets, nor what the queue does with a message.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from pi_relay import headers, maillog, routes, senders
from pi_relay.config import Config, Device, Listener
from pi_relay.model import IncomingMessage, QueueRefusal, Recipient, Reply
from pi_relay.quotas import Quotas
from pi_relay.submission import auth, connection, legacy, parameters, paths, replies
from pi_relay.submission.auth import GUESSES_MAX, Authenticator
from pi_relay.submission.census import Census
from pi_relay.submission.connection import Connection, GoodBye
from pi_relay.submission.data import DataStream
from pi_relay.submission.limits import Account, Limits
from pi_relay.submission.policy import NOBODY, Client, Policy
from pi_relay.submission.replies import Refused
from pi_relay.submission.transaction import Origin, Transaction, refused_sender

LINE_SIZE_MAX_BYTES = 512  # RFC 5321 4.5.3.1.4, with the CRLF
PATH_LINE_SIZE_MAX_BYTES = 2048  # with the parameters of MAIL and RCPT

# The slowest printer that we wait for: it may be still for idle_timeout at a time, and needs for its whole
# message no more than this grace and a second for each PACE_MIN_BYTES.
PACE_GRACE_SECONDS = 600.0
PACE_MIN_BYTES = 1024
# How much of a refused message is read, so that its sender comes to see the reply.
SKIP_MAX_BYTES = 256 * 1024 * 1024

# Places beyond connections_max that only known devices get, as a share of it: a crowd cannot shut them out.
KNOWN_DEVICES_EXTRA = 0.25

# What is forgiven until a message is accepted: an error, a command that leads nowhere, a "try later".
PATIENCE = 2000
ERROR_COSTS, IDLING_COSTS, DEFERRAL_COSTS = 100, 20, 1


class Begin(Protocol):
    """Opens a place in the queue for a message of the declared size (None: not declared).

    ``known_device``: others have to leave it some room. Raises QueueRefusal.
    """

    def __call__(self, declared_size_bytes: int | None, /, *, known_device: bool) -> IncomingMessage: ...


@dataclass(slots=True)
class Service:
    """What all sessions share. The server puts new parts in when the configuration changes."""

    config: Config
    policy: Policy
    begin: Begin
    tls_context: Callable[[bool], ssl.SSLContext | None]
    authenticator: Authenticator = field(default_factory=Authenticator)
    census: Census = field(default_factory=Census)
    limits: Limits = field(default_factory=lambda: Limits(Quotas()))
    legacy_uses: legacy.Uses = field(default_factory=legacy.Uses)
    now: Callable[[], float] = time.time
    clock_is_wrong: Callable[[], bool] = lambda: False
    connections_max: int = 0  # as the file has it, or as few as the system allows


class Terms:
    """What a listener offers, worked out once for all of its sessions."""

    def __init__(self, config: Config, listener: Listener) -> None:
        self.listener = listener
        self.hostname = config.hostname
        self.size_max_bytes = announced_size_bytes(config)
        self.greeting = f"220 {config.hostname} ESMTP\r\n".encode()
        self.helo = f"250 {config.hostname}\r\n".encode()
        self._ehlos: dict[tuple[bool, bool, bool], bytes] = {}

    def ehlo(self, *, tls: bool, starttls: bool, auth: bool) -> bytes:
        """``tls``: the session is inside TLS; ``starttls``, ``auth``: these are on offer."""
        key = tls, starttls, auth
        if key not in self._ehlos:
            self._ehlos[key] = self._worded(*key)
        return self._ehlos[key]

    def _worded(self, tls: bool, starttls: bool, auth: bool) -> bytes:
        on_condition = (("REQUIRETLS", tls), ("STARTTLS", starttls), ("AUTH PLAIN LOGIN", auth))
        words = [self.hostname, "PIPELINING", f"SIZE {self.size_max_bytes}", "8BITMIME", "SMTPUTF8", "DSN"]
        words += [word for word, holds in on_condition if holds]
        lines = [f"250-{word}\r\n" for word in words]
        return "".join([*lines, "250 ENHANCEDSTATUSCODES\r\n"]).encode()


def announced_size_bytes(config: Config) -> int:
    """The SIZE of EHLO: what this relay and at least one smart host take."""
    return routes.largest_message_size_bytes(config) or config.submission.message_size_max_bytes


class Session(Connection):
    """One client, from the connection to the end of it."""

    def __init__(self, service: Service, terms: Terms, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.speaks_tls_first = terms.listener.tls == "implicit"
        self._service = service
        self._terms = terms
        self._patience = PATIENCE
        self._guesses = 0
        self._client: Client = NOBODY
        self._username = ""
        self._device: Device | None = None
        self._forget_greeting()

    def _forget_greeting(self) -> None:
        """Back to where the client has said nothing yet (RFC 3207 4.2)."""
        self._greeted = False
        self._extended = False
        self._helo_name = ""
        self._transaction: Transaction | None = None

    # ── coming and going ─────────────────────────────────────────────────────────────────────────

    def admission(self, peer: tuple[Any, ...] | None) -> Reply | None:
        if not peer:  # gone already
            return replies.NOT_FROM_HERE
        host, interface = peer[0], peer[3] if len(peer) > 3 else 0
        policy, listener = self._service.policy, self._terms.listener
        self._client = policy.client(host, interface)
        self._device = self._client.device
        if not policy.admits(listener, host, interface):
            return replies.NOT_FROM_HERE
        crowding = self._crowding(proxied=listener.proxy_protocol)
        if crowding is None:
            self._service.census.enter(self, self._client.address)
        return crowding

    def _crowding(self, *, proxied: bool) -> Reply | None:
        """``proxied``: who it is shows later, and is judged again then."""
        census, limits = self._service.census, self._service.config.submission
        places = self._service.connections_max
        if proxied or self._device is not None or census.knows(self._client.address):
            places += max(1, int(places * KNOWN_DEVICES_EXTRA))
        if len(census.connected) >= places:
            return replies.TOO_MANY_CONNECTIONS
        if not proxied and census.connections_of(self._client.address) >= limits.connections_per_client_max:
            return replies.TOO_MANY_OF_YOURS
        return None

    async def converse(self) -> None:
        listener = self._terms.listener
        if listener.proxy_protocol:
            await self._meet_proxied()
        if listener.tls == "implicit":
            context = self._tls_context()
            if context is None:
                raise GoodBye
            # Behind a PROXY header the client's own first words may have come in the same packet.
            await self._begin_tls(context, leading=bytes(self.buffer))
        self.answer(self._terms.greeting)
        idle_timeout_seconds = self._service.config.submission.idle_timeout_seconds
        while True:
            try:
                line = await self.next_line(idle_timeout_seconds)
                await self._obey(line)
            except Refused as refused:
                self._refuse(refused)
            except QueueRefusal as refusal:
                self._refuse(Refused(refusal.reply))

    async def _meet_proxied(self) -> None:
        """The load balancer says who it is that connects."""
        address = await self.proxied_address()
        if address is None:
            return
        census = self._service.census
        census.leave(self, self._client.address)
        self._client = self._service.policy.client(address) if address else NOBODY
        self._device = self._client.device
        crowding = self._crowding(proxied=False)
        census.enter(self, self._client.address)
        if crowding is not None:
            self._refuse(Refused(crowding))

    def leave(self) -> None:
        self._forget_transaction()
        self._service.census.leave(self, self._client.address)

    async def _obey(self, line: bytes) -> None:
        verb, _, argument = line.partition(b" ")
        command = _COMMANDS.get(verb.upper())
        if command is None:
            raise Refused(replies.NOT_SMTP if _is_of_other_protocol(verb) else replies.UNKNOWN_COMMAND)
        obey, size_max_bytes = command
        if len(line) + 2 > size_max_bytes:
            raise Refused(replies.LINE_TOO_LONG)
        await obey(self, argument)

    def _refuse(self, refused: Refused) -> None:
        self.note_refusal(refused)
        reply = refused.reply
        self.say(reply)
        if reply.code == 421:
            raise GoodBye
        self._spend(ERROR_COSTS if reply.code >= 500 else DEFERRAL_COSTS)

    def _spend(self, patience: int) -> None:
        self._patience -= patience
        if self._patience <= 0:
            self.note_refusal(Refused(replies.TOO_MANY_ERRORS))
            self.say(replies.TOO_MANY_ERRORS)
            raise GoodBye

    def note_refusal(self, refused: Refused) -> None:
        service, device = self._service, self._device.name if self._device else ""
        service.census.count_refused(device, self._client.address, service.now(), refused)
        maillog.refused(
            client=self._client.address, device=device, reply=refused.reply, reason=refused.reason
        )

    # ── commands: the greeting ───────────────────────────────────────────────────────────────────

    async def _ehlo(self, argument: bytes) -> None:
        self._greet(argument, extended=True)
        listener, tls = self._terms.listener, self.tls != ""
        starttls = not tls and listener.tls == "starttls" and self._tls_context() is not None
        auth = listener.auth != "off" and (tls or self._is_legacy)
        self.answer(self._terms.ehlo(tls=tls, starttls=starttls, auth=auth))

    async def _helo(self, argument: bytes) -> None:
        self._greet(argument, extended=False)
        self.answer(self._terms.helo)

    def _greet(self, argument: bytes, *, extended: bool) -> None:
        name = argument.strip()
        if not name and (extended or not self._client.local):
            raise Refused(replies.ARGUMENT_NEEDED)
        if not (self._client.local or _is_name_or_literal(name)):
            raise Refused(replies.NAME_INVALID)
        if self._greeted:
            self._spend(IDLING_COSTS)
        self._forget_transaction()
        self._greeted, self._extended = True, extended
        self._helo_name = name.decode("ascii", "replace")

    # ── commands: a message ──────────────────────────────────────────────────────────────────────

    async def _mail(self, argument: bytes) -> None:
        service, client = self._service, self._client
        if not self._greeted:
            raise Refused(replies.EHLO_FIRST)
        if self._transaction is not None:
            raise Refused(replies.NESTED_MAIL)
        refusal = service.policy.refusal(self._terms.listener, client, authenticated=self._username != "")
        if refusal is not None:
            raise Refused(refusal)
        account = self._account()
        if account is not None and (far_over := account.refusal()):
            raise Refused(far_over)
        rule = service.policy.sender_rule(self._device)
        given = paths.parse_mail(
            argument,
            brackets_needed=not client.local,
            any_words=client.local and rule.stand_in is not None,
        )
        asked = parameters.of_mail(given.parameters, extended=self._extended, tls=self.tls != "")
        if (asked.size_bytes or 0) > self._terms.size_max_bytes:
            raise Refused(replies.MESSAGE_TOO_LARGE)
        if not service.config.routes:
            raise Refused(replies.NO_WAY_OUT)
        reverse_path = _reverse_path(rule, given)
        # Where no device is known, nobody has to leave room for one.
        known_device = self._device is not None or not service.config.devices
        incoming = service.begin(asked.size_bytes, known_device=known_device)
        self._transaction = Transaction(incoming, rule, given, reverse_path, asked, began_at=self.loop.time())
        self.answer(b"250 2.1.0 ok\r\n")

    async def _rcpt(self, argument: bytes) -> None:
        transaction, config = self._transaction, self._service.config
        if transaction is None:
            raise Refused(replies.MAIL_FIRST)
        utf8 = transaction.asked.smtputf8
        path, given, _ = paths.parse_rcpt(argument, brackets_needed=not self._client.local, utf8_allowed=utf8)
        asked = parameters.of_rcpt(given, extended=self._extended, utf8=utf8)
        if len(transaction.recipients) >= config.submission.recipients_max:
            raise Refused(replies.TOO_MANY_RECIPIENTS)
        if path == "postmaster":
            path = config.postmaster
            if not path:
                raise Refused(replies.NO_POSTMASTER)
        if not self._service.policy.may_send_to(self._device, path):
            raise Refused(replies.RECIPIENT_NOT_ALLOWED, about=path)
        device = self._device.name if self._device else ""
        via = routes.via_for(config, transaction.reverse_path, path, device)
        if not via:
            raise Refused(replies.NO_ROUTE, about=path)
        declared_size_bytes = transaction.asked.size_bytes
        if declared_size_bytes and routes.too_large_for(config, via, declared_size_bytes):
            raise Refused(replies.MESSAGE_TOO_LARGE)
        account = self._account()
        if account is not None and (far_over := account.refusal(len(transaction.recipients) + 1)):
            raise Refused(far_over)
        transaction.recipients.append(Recipient(path, asked.original_recipient, asked.notify))
        transaction.via.append(via)
        self.answer(b"250 2.1.5 ok\r\n")

    async def _data(self, argument: bytes) -> None:
        transaction, service = self._transaction, self._service
        if argument.strip():
            raise Refused(replies.NO_ARGUMENT)
        if transaction is None:
            raise Refused(replies.MAIL_FIRST)
        if not transaction.recipients:
            raise Refused(replies.RCPT_FIRST)
        self.answer(b"354 end the message with CR LF . CR LF\r\n")
        origin = Origin(
            helo=self._helo_name,
            client=self._client.address,
            device=self._device.name if self._device else "",
            hostname=self._terms.hostname,
            protocol=headers.protocol_name(
                extended=self._extended,
                utf8=transaction.asked.smtputf8,
                tls=self.tls != "",
                authenticated=self._username != "",
            ),
            at=service.now(),
            dated=not service.clock_is_wrong(),
        )
        try:
            await self._receive(transaction, origin)
            self._accepted(transaction, origin)
        finally:
            self._forget_transaction()

    async def _receive(self, transaction: Transaction, origin: Origin) -> None:
        """Take the message until it is durable; where it is refused, its end has been read all the same."""
        buffer = self.buffer
        stream = DataStream(bare_lf_allowed=self._client.local, size_max_bytes=self._terms.size_max_bytes)
        pace = _Pace(self.loop, self._service.config.submission.idle_timeout_seconds)
        try:
            while True:
                piece = stream.feed(buffer)
                undecided_bytes = len(buffer)
                await transaction.take(piece, origin, last=stream.finished)
                if stream.finished:
                    break
                if len(buffer) == undecided_bytes:  # else more has come while the queue wrote
                    await self.more(pace.deadline(stream.size_bytes))
                    pace.resumed()
            self._check_size(transaction, stream.size_bytes)
            await self._commit(transaction, origin, eight_bit=stream.eight_bit)
        except (Refused, QueueRefusal):
            await self._skip(stream, pace)
            raise

    async def _commit(self, transaction: Transaction, origin: Origin, *, eight_bit: bool) -> None:
        account, recipients = self._account(), len(transaction.recipients)
        transaction.held = account.admit(recipients) if account is not None else ""
        try:
            await transaction.commit(origin, eight_bit=eight_bit)
        except Exception:
            if account is not None:
                account.take_back(recipients)
            raise

    def _account(self) -> Account | None:
        """What this client has sent and may, None where it has no limit."""
        service = self._service
        return service.limits.account(service.config, self._device, self._client.address)

    async def _skip(self, stream: DataStream, pace: _Pace) -> None:
        buffer = self.buffer
        skipped_bytes = stream.skip(buffer) if not stream.finished else 0
        while not stream.finished:
            if skipped_bytes > SKIP_MAX_BYTES:
                raise Refused(replies.TOO_MANY_ERRORS)
            await self.more(pace.deadline(stream.size_bytes + skipped_bytes))
            pace.resumed()
            skipped_bytes += stream.skip(buffer)

    def _check_size(self, transaction: Transaction, size_bytes: int) -> None:
        config = self._service.config
        if all(routes.too_large_for(config, via, size_bytes) for via in transaction.via):
            raise Refused(replies.MESSAGE_TOO_LARGE)

    def _accepted(self, transaction: Transaction, origin: Origin) -> None:
        queue_id = transaction.incoming.queue_id
        self.answer(f"250 2.0.0 queued as {queue_id}\r\n".encode())
        self._patience = PATIENCE
        self._service.census.count_accepted(origin.device, origin.client, origin.at)
        maillog.accepted(
            queue_id=queue_id,
            client=origin.client,
            device=origin.device,
            reverse_path=transaction.reverse_path,
            to=[recipient.forward_path for recipient in transaction.recipients],
            size_bytes=transaction.size_bytes,
            tls=self.tls,
            auth=self._username,
            seconds=self.loop.time() - transaction.began_at,
            message_id=transaction.message_id,
            rewritten=transaction.rewritten,
            claimed=transaction.claimed,
            signatures=transaction.signatures,
        )
        if transaction.held:
            maillog.held(queue_id=queue_id, reason=transaction.held)

    async def _rset(self, argument: bytes) -> None:
        if argument.strip():
            raise Refused(replies.NO_ARGUMENT)
        self._forget_transaction()
        self._idled(b"250 2.0.0 ok\r\n")

    def _forget_transaction(self) -> None:
        if self._transaction is not None:
            self._transaction.abort()
            self._transaction = None

    # ── commands: the rest ───────────────────────────────────────────────────────────────────────

    async def _noop(self, argument: bytes) -> None:
        self._idled(b"250 2.0.0 ok\r\n")

    async def _help(self, argument: bytes) -> None:
        self._idled(b"214 2.0.0 RFC 5321 tells it all\r\n")

    async def _vrfy(self, argument: bytes) -> None:
        if not argument.strip():
            raise Refused(replies.ARGUMENT_NEEDED)
        self._idled(b"252 2.5.0 send it, and see\r\n")

    async def _expn(self, argument: bytes) -> None:
        raise Refused(replies.NO_LISTS)

    async def _quit(self, argument: bytes) -> None:
        if argument.strip():
            raise Refused(replies.NO_ARGUMENT)
        self.answer(b"221 2.0.0 bye\r\n")
        raise GoodBye

    def _idled(self, answer: bytes) -> None:
        self._spend(IDLING_COSTS)
        self.answer(answer)

    # ── commands: TLS and AUTH ───────────────────────────────────────────────────────────────────

    async def _starttls(self, argument: bytes) -> None:
        if argument.strip():
            raise Refused(replies.NO_ARGUMENT)
        if self.tls:
            raise Refused(replies.TLS_ALREADY)
        if self._terms.listener.tls != "starttls":
            raise Refused(replies.TLS_NOT_HERE)
        context = self._tls_context()
        if context is None:
            raise Refused(replies.TLS_UNAVAILABLE)
        self._forget_transaction()
        self.answer(b"220 2.0.0 start TLS\r\n")
        await self._begin_tls(context)
        self._forget_greeting()

    async def _begin_tls(self, context: ssl.SSLContext, *, leading: bytes = b"") -> None:
        await self.start_tls(context, leading=leading)
        if self._is_legacy and self.transport is not None:
            old = legacy.old_in(self.transport.get_extra_info("ssl_object"), self._service.tls_context(False))
            if old:
                self._note_legacy(old)

    def _tls_context(self) -> ssl.SSLContext | None:
        try:
            return self._service.tls_context(self._is_legacy)
        except Exception as error:
            maillog.error(f"TLS is not available: {error}")
            return None

    @property
    def _is_legacy(self) -> bool:
        """Known before it said a word, and let use what is old."""
        device = self._client.device
        return device is not None and device.legacy

    def _note_legacy(self, what: str) -> None:
        assert self._client.device is not None
        self._service.legacy_uses.note(self._client.device.name, what, self._service.now())

    async def _auth(self, argument: bytes) -> None:
        if self._terms.listener.auth == "off":
            raise Refused(replies.AUTH_NOT_HERE)
        if not self._extended:
            raise Refused(replies.EHLO_FIRST)
        mechanism, *initial = argument.split()[:3] or [b""]
        exchange = _MECHANISMS.get(mechanism.upper())
        if not mechanism or len(initial) > 1:
            raise Refused(replies.ARGUMENT_NEEDED)
        if exchange is None:
            raise Refused(replies.AUTH_UNKNOWN)
        if not (self.tls or self._is_legacy):
            raise Refused(
                replies.AUTH_NEEDS_TLS, 'AUTH in clear, which only a device with "legacy = true" may'
            )
        if self._username:
            raise Refused(replies.AUTH_ALREADY)
        if self._transaction is not None:
            raise Refused(replies.AUTH_IN_MAIL)
        username, password = await exchange(self, auth.decode(initial[0]) if initial else None)
        await self._sign_in(username, password)

    async def _plain(self, initial: bytes | None) -> tuple[str, str]:
        return auth.plain(initial if initial is not None else await self._challenge(b""))

    async def _login(self, initial: bytes | None) -> tuple[str, str]:
        username = initial if initial is not None else await self._challenge(b"VXNlcm5hbWU6")  # Username:
        password = await self._challenge(b"UGFzc3dvcmQ6")  # Password:
        return auth.text(username), auth.text(password)

    async def _challenge(self, prompt: bytes) -> bytes:
        self.answer(b"334 " + prompt + b"\r\n")
        response = (await self.next_line(self._service.config.submission.idle_timeout_seconds)).strip()
        if response == b"*":
            raise Refused(replies.AUTH_CANCELLED)
        return auth.decode(response)

    async def _sign_in(self, username: str, password: str) -> None:
        device = self._service.policy.device_named(username)
        objection = self._objection(device, username)
        password_hash = device.password_hash if device is not None and not objection else None
        check = self._service.authenticator.check
        if await check(username, password, password_hash, self._client.address):
            self._username, self._device = username, device
            self._service.census.know(self._client.address)
            if not self.tls:
                self._note_legacy(legacy.AUTH_IN_CLEAR)
            self.answer(b"235 2.7.0 welcome\r\n")
            return
        self._guesses += 1
        refused = Refused(
            replies.AUTH_FAILED, objection or f"wrong password for {username!r}", about=username
        )
        if self._guesses < GUESSES_MAX:
            raise refused
        self.note_refusal(refused)
        raise Refused(replies.TOO_MANY_GUESSES)

    def _objection(self, device: Device | None, username: str) -> str:
        """Why no password would do, for the log; "" where one may."""
        if device is None:
            return f"no device has the user name {username!r}"
        if not self._service.policy.may_sign_in(device, self._client):
            return f"{username!r} may sign in only from its own {'mac' if device.mac else 'address'}"
        if not (self.tls or device.legacy):  # what a legacy device may, it may as itself
            return f"{username!r} may not sign in without TLS"
        return ""


class _Pace:
    """How long a message may take, less the time that was ours."""

    def __init__(self, loop: asyncio.AbstractEventLoop, idle_timeout_seconds: float) -> None:
        self._loop = loop
        self._idle_timeout_seconds = idle_timeout_seconds
        self._waited_seconds = 0.0
        self._waiting_since = 0.0

    def deadline(self, received_bytes: int) -> float:
        """Until when to wait for more, from now on."""
        self._waiting_since = now = self._loop.time()
        left_seconds = PACE_GRACE_SECONDS + received_bytes / PACE_MIN_BYTES - self._waited_seconds
        return now + min(self._idle_timeout_seconds, left_seconds)

    def resumed(self) -> None:
        self._waited_seconds += self._loop.time() - self._waiting_since


_Command = Callable[[Session, bytes], Awaitable[None]]
_COMMANDS: dict[bytes, tuple[_Command, int]] = {
    b"EHLO": (Session._ehlo, LINE_SIZE_MAX_BYTES),
    b"HELO": (Session._helo, LINE_SIZE_MAX_BYTES),
    b"MAIL": (Session._mail, PATH_LINE_SIZE_MAX_BYTES),
    b"RCPT": (Session._rcpt, PATH_LINE_SIZE_MAX_BYTES),
    b"DATA": (Session._data, LINE_SIZE_MAX_BYTES),
    b"RSET": (Session._rset, LINE_SIZE_MAX_BYTES),
    b"NOOP": (Session._noop, LINE_SIZE_MAX_BYTES),
    b"QUIT": (Session._quit, LINE_SIZE_MAX_BYTES),
    b"STARTTLS": (Session._starttls, LINE_SIZE_MAX_BYTES),
    b"AUTH": (Session._auth, connection.LINE_SIZE_MAX_BYTES),
    b"VRFY": (Session._vrfy, LINE_SIZE_MAX_BYTES),
    b"EXPN": (Session._expn, LINE_SIZE_MAX_BYTES),
    b"HELP": (Session._help, LINE_SIZE_MAX_BYTES),
}
_MECHANISMS: dict[bytes, Callable[[Session, bytes | None], Awaitable[tuple[str, str]]]] = {
    b"PLAIN": Session._plain,
    b"LOGIN": Session._login,
}
# What a stranger may call itself (RFC 5321 4.1.1.1), with the "_" of many a Windows machine.
_is_name_or_literal = re.compile(
    rb"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,253}[A-Za-z0-9_])?|\[[A-Za-z0-9.:]+\]"
).fullmatch
# What other programs open with, when they were given our port or made to talk to it.
_OTHER_PROTOCOLS = frozenset({b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"CONNECT", b"PRI", b"USER"})


def _reverse_path(rule: senders.Rule, given: paths.Parsed) -> str:
    try:
        return rule.reverse_path(given.path if given.is_valid else None)
    except senders.NotAllowed as refusal:
        raise refused_sender("reverse-path", refusal) from None


def _is_of_other_protocol(verb: bytes) -> bool:
    # A field of HTTP counts too: a request line that is too long for us hides its verb.
    return verb.upper() in _OTHER_PROTOCOLS or verb.endswith(b":")
