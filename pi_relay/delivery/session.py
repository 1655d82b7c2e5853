"""Opens a session with a smart host: connection, TLS, AUTH. aiosmtplib speaks, up to where mail begins.

Rules: where TLS is configured it is required, its certificate and name are verified (or pinned) before
anything secret is said, and one AUTH mechanism is tried once: several would count as wrong passwords.
We never talk to ourselves: neither to our own listener, nor to a host that calls itself by our name.
aiosmtplib is imported at the first delivery: it costs an idle relay over a megabyte.
It must not know messages, nor other sessions.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

from pi_relay.config import Config, SmartHost
from pi_relay.delivery.timeouts import Timeouts
from pi_relay.delivery.transaction import Extensions
from pi_relay.delivery.wire import Wire, tidy_reply
from pi_relay.headers import is_public_hostname
from pi_relay.lifecycle import LOOP, Stage, connection_failure, what_it_means
from pi_relay.model import Failure, Reply, Scope

if TYPE_CHECKING:
    import aiosmtplib

FALL_BACK_SECONDS = 0.25  # RFC 8305 5: before the next address is tried beside the one under way
MECHANISMS = ("plain", "login", "cram-md5")  # the first that is offered is taken: all come under TLS

_CERTIFICATE_CLOCK_ERRORS = {9: "is not yet valid", 10: "has expired"}  # X509_V_ERR_*


class SessionFailed(Exception):
    """There is no session to be had now, and why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure.reply))
        self.failure = failure


@dataclass(slots=True, eq=False)
class Session:
    """An open session, ready for MAIL."""

    wire: Wire
    extensions: Extensions
    tls: str = ""  # the version, "" in clear
    verified: bool = False  # the certificate was checked, or is the pinned one
    reused: bool = False
    left_open: bool = False  # a transaction was begun and not ended
    messages: int = 0
    idle_since: float = 0.0  # of the loop's clock


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class TlsContexts:
    """One context that verifies and one that does not, made when first needed, for all sessions."""

    _making: dict[bool, asyncio.Future[ssl.SSLContext]] = field(default_factory=dict)

    async def get(self, verify: bool) -> ssl.SSLContext:
        making = self._making.get(verify)
        if making is None:
            # Off the loop: a bundle of all CAs takes a Pi a tenth of a second. Once for all who need it now.
            making = asyncio.get_running_loop().run_in_executor(None, _make_context, verify)
            self._making[verify] = making
        try:
            return await asyncio.shield(making)
        except OSError:  # the folder of CAs: it may be readable again
            self._making.pop(verify, None)
            raise


def _make_context(verify: bool) -> ssl.SSLContext:
    if not verify:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without the CAs: their bundle costs 2.4 MB
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    # By the folder, OpenSSL looks up the one CA that it needs.
    folder = _hashed_ca_folder()
    return ssl.create_default_context(capath=folder) if folder else ssl.create_default_context()


def _hashed_ca_folder() -> str:
    """The system's folder of CAs by hash; "" where there is none, or the environment names a bundle."""
    paths = ssl.get_default_verify_paths()
    if not paths.capath or os.environ.get(paths.openssl_cafile_env):
        return ""
    is_hashed = re.compile(r"[0-9a-f]{8}\.\d").fullmatch
    with os.scandir(paths.capath) as entries:
        return paths.capath if any(is_hashed(entry.name) for entry in entries) else ""


def _check_pin(transport: asyncio.BaseTransport, pin: str) -> None:
    leaf = transport.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
    seen = hashlib.sha256(leaf).hexdigest()
    if seen != pin.removeprefix("sha256:").replace(":", "").lower():
        raise _lost(Stage.TLS, f"TLS: the certificate is not the pinned one, but sha256:{seen}")


def _tls_trouble(problem: ssl.SSLError) -> str:
    what = _CERTIFICATE_CLOCK_ERRORS.get(getattr(problem, "verify_code", 0))
    if what:
        return f"TLS: a clock failure: the certificate {what} by this machine's clock"
    message = getattr(problem, "verify_message", "") or problem.reason or str(problem)
    return f"TLS: {message}"


# ── the connection ───────────────────────────────────────────────────────────────────────────────


Address = tuple[socket.AddressFamily, Any]  # and what connect() takes
Resolve = Callable[[str, int], Awaitable[list[Address]]]  # host and port


async def _resolve(host: str, port: int) -> list[Address]:
    """Raises OSError (socket.gaierror) where the name has no address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [(family, sockaddr) for family, _, _, _, sockaddr in found]
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return [(family, (host, port))]


def _interleaved(addresses: Iterable[Address]) -> Iterator[Address]:
    """The families in turn (RFC 8305 4), beginning with the one that the resolver prefers."""
    by_family: dict[socket.AddressFamily, list[Address]] = {}
    for address in addresses:
        by_family.setdefault(address[0], []).append(address)
    return (each for each in chain.from_iterable(zip_longest(*by_family.values())) if each is not None)


async def _connect_one(address: Address) -> socket.socket:
    family, sockaddr = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, sockaddr)
    except OSError as problem:
        sock.close()
        raise OSError(f"{sockaddr[0]}: {os.strerror(problem.errno) if problem.errno else problem}") from None
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect(addresses: Iterable[Address]) -> socket.socket:
    """The first address to answer wins; each is given a little time before the next is tried beside it.

    Raises OSError that tells what each of them said.
    """
    waiting = iter(addresses)
    under_way: set[asyncio.Task[socket.socket]] = set()
    troubles: list[str] = []
    try:
        while True:
            address = next(waiting, None)
            if address is not None:
                under_way.add(asyncio.create_task(_connect_one(address)))
            elif not under_way:
                raise OSError("; ".join(troubles) or "no address")
            timeout = None if address is None else FALL_BACK_SECONDS
            done, under_way = await asyncio.wait(
                under_way, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            winner, losers = None, []
            for task in done:
                if task.exception() is not None:
                    troubles.append(str(task.exception()))
                elif winner is None:
                    winner = task.result()
                else:
                    losers.append(task.result())
            for sock in losers:
                sock.close()
            if winner is not None:
                return winner
    finally:
        for task in under_way:
            task.add_done_callback(_close_late)
            task.cancel()


def _close_late(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def _is_ourselves(sock: socket.socket, config: Config) -> bool:
    """Whether the peer is a listener of ours: an address of this machine, and a port we listen on."""
    try:
        peer, port = sock.getpeername()[:2]
    except OSError:  # it has hung up already
        sock.close()
        raise
    if peer != sock.getsockname()[0] and not ipaddress.ip_address(peer.partition("%")[0]).is_loopback:
        return False
    return any(port == each.port and each.host in ("", peer, "0.0.0.0", "::") for each in config.listeners)


def _ehlo_name(hostname: str, sock: socket.socket) -> str:
    """Our name, or an address literal (RFC 5321 4.1.3) where it means nothing to the outside."""
    if is_public_hostname(hostname):
        return hostname
    address = sock.getsockname()[0].partition("%")[0]
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


# ── opening ──────────────────────────────────────────────────────────────────────────────────────


async def open_session(
    host: SmartHost,
    config: Config,
    contexts: TlsContexts,
    timeouts: Timeouts,
    resolve: Resolve | None = None,
) -> Session:
    """Raises SessionFailed. ``resolve``: how the host's name becomes addresses; None: as the system does.

    ``host.tls`` "may" is for a recipient's MX: TLS where it is offered and comes about, and in clear else.
    """
    try:
        return await _open_session(host, config, contexts, timeouts, resolve or _resolve)
    except _NoTls:
        in_clear = replace(host, tls="off")
        return await _open_session(in_clear, config, contexts, timeouts, resolve or _resolve)


async def _open_session(
    host: SmartHost,
    config: Config,
    contexts: TlsContexts,
    timeouts: Timeouts,
    resolve: Resolve,
) -> Session:
    try:
        async with asyncio.timeout(timeouts.resolve):
            addresses = await resolve(host.host, host.port)
    except (OSError, UnicodeError) as problem:
        raise _lost(Stage.CONNECT, f"{host.host} does not resolve: {_words(problem)}") from None
    try:
        async with asyncio.timeout(timeouts.connect):
            sock = await _connect(_interleaved(addresses))
        ourselves = _is_ourselves(sock, config)
    except OSError as problem:
        raise _lost(Stage.CONNECT, f"cannot connect to port {host.port}: {_words(problem)}") from None
    if ourselves:
        sock.close()
        raise SessionFailed(_loop(f"{host.host}:{host.port} is this relay itself"))
    return await _Opening(host, config, contexts, timeouts).run(sock)


class _NoTls(Exception):
    """A handshake that nobody insists on came to nothing."""


class _Opening:
    """From the connected socket to the session; ``_stage`` is what is under way, should it fail."""

    def __init__(self, host: SmartHost, config: Config, contexts: TlsContexts, timeouts: Timeouts) -> None:
        self._host = host
        self._config = config
        self._contexts = contexts
        self._timeouts = timeouts
        self._stage = Stage.GREETING

    async def run(self, sock: socket.socket) -> Session:
        import aiosmtplib

        host = self._host
        verify = host.tls_verify is True and host.tls != "may"
        context = None if host.tls == "off" else await self._contexts.get(verify=verify)
        smtp = aiosmtplib.SMTP(
            hostname=host.host,
            sock=sock,
            local_hostname=_ehlo_name(self._config.hostname, sock),
            use_tls=host.tls == "implicit",
            start_tls=False,
            tls_context=context,
            timeout=self._timeouts.ehlo,
        )
        try:
            return await self._open(smtp)
        except aiosmtplib.SMTPResponseException as refused:
            self._do_without_tls()
            raise SessionFailed(self._refused(refused.code, refused.message)) from None
        except ssl.SSLError as problem:
            self._do_without_tls()
            raise _lost(Stage.TLS, _tls_trouble(problem)) from None
        except (aiosmtplib.SMTPException, OSError) as problem:
            self._do_without_tls()
            raise _lost(self._stage, _broken_off(self._stage, problem)) from None
        finally:
            # Where the session is open, its transport has been taken over and this closes nothing.
            smtp.close()

    def _do_without_tls(self) -> None:
        """Raises _NoTls where it was TLS that failed, and TLS is not insisted on."""
        if self._stage is Stage.TLS and self._host.tls == "may":
            raise _NoTls

    async def _open(self, smtp: aiosmtplib.SMTP) -> Session:
        host, timeouts = self._host, self._timeouts
        if host.tls == "implicit":
            self._stage = Stage.TLS
        greeting = await smtp.connect(timeout=timeouts.greeting)
        self._check_name(greeting.message)
        await self._say_hello(smtp)
        offered = smtp.supports_extension("starttls")
        upgrades = host.tls == "starttls" or (host.tls == "may" and offered)
        if upgrades:
            self._stage = Stage.TLS
            if not offered:
                raise _lost(Stage.TLS, "STARTTLS is required, and the other side does not offer it")
            await smtp.starttls(timeout=timeouts.tls)
        transport: Any = smtp.transport
        if isinstance(host.tls_verify, str) and host.tls != "off":
            _check_pin(transport, host.tls_verify)
        if upgrades:
            await self._say_hello(smtp)
        if host.auth == "password":
            await self._authenticate(smtp)
        if smtp.transport is None or transport.is_closing():
            raise _lost(self._stage, "connection closed by the other side")
        extensions = _extensions(smtp.esmtp_extensions)
        smtp.transport = None
        encrypted = transport.get_extra_info("ssl_object")
        return Session(
            Wire(transport, host.host),
            extensions,
            tls=(encrypted.version() or "TLS") if encrypted else "",
            verified=encrypted is not None and host.tls != "may" and host.tls_verify is not False,
        )

    async def _say_hello(self, smtp: aiosmtplib.SMTP) -> None:
        self._stage = Stage.EHLO
        response = await smtp.ehlo(timeout=self._timeouts.ehlo)
        self._check_name(response.message)

    def _check_name(self, words: str) -> None:
        name = words.split(maxsplit=1)[0] if words.strip() else ""
        if name.lower().rstrip(".") == self._config.hostname.lower():
            raise SessionFailed(_loop(f"{self._host.host} calls itself {name}, which is our own name"))

    async def _authenticate(self, smtp: aiosmtplib.SMTP) -> None:
        self._stage = Stage.AUTH
        host, timeout = self._host, self._timeouts.auth
        if smtp.get_transport_info("sslcontext") is None:
            raise SessionFailed(self._refused(538, "5.7.11 a password is not said without TLS"))
        offered = next((each for each in MECHANISMS if each in smtp.server_auth_methods), "")
        match offered:
            case "plain":
                await smtp.auth_plain(host.username, host.password, timeout=timeout)
            case "login":
                await smtp.auth_login(host.username, host.password, timeout=timeout)
            case "cram-md5":
                await smtp.auth_crammd5(host.username, host.password, timeout=timeout)
            case _:
                told = ", ".join(smtp.server_auth_methods) or "none"
                raise SessionFailed(
                    self._refused(504, f"5.7.4 no AUTH mechanism in common: the other side offers {told}")
                )

    def _refused(self, code: int, message: str) -> Failure:
        reply = tidy_reply(code, message.encode("utf-8", "replace").split(b"\n"), self._host.host)
        failure = what_it_means(self._stage, reply) if code > 0 else None
        return failure or connection_failure(self._stage, reply.text, reply.remote_mta)


def _extensions(told: Mapping[str, str]) -> Extensions:
    size = told.get("size")
    return Extensions(
        pipelining="pipelining" in told,
        size_max_bytes=None if size is None else int(size) if size.strip().isdecimal() else 0,
        eight_bit_mime="8bitmime" in told,
        smtputf8="smtputf8" in told,
        dsn="dsn" in told,
        requiretls="requiretls" in told,
    )


def _loop(text: str) -> Failure:
    """Mail would come back to us: for the admin to mend, and no fault of the message (RFC 3463 X.4.6)."""
    return Failure(Scope.ACCOUNT, Reply(451, LOOP, f"routing loop: {text}"), permanent=False)


def _lost(stage: Stage, text: str) -> SessionFailed:
    return SessionFailed(connection_failure(stage, text))


_WAITED_FOR = {
    Stage.GREETING: "the greeting",
    Stage.EHLO: "the answer to EHLO",
    Stage.TLS: "TLS",
    Stage.AUTH: "the answer to AUTH",
}


def _broken_off(stage: Stage, problem: BaseException) -> str:
    """What ended an opening, and where: aiosmtplib speaks of end of file and of port None."""
    if isinstance(problem.__cause__, ssl.SSLError):
        return _tls_trouble(problem.__cause__)
    if isinstance(problem, TimeoutError):
        return f"no answer in time, waiting for {_WAITED_FOR[stage]}"
    if isinstance(problem, ConnectionError):
        return f"connection closed by the other side, waiting for {_WAITED_FOR[stage]}"
    return _words(problem)


def _words(problem: BaseException) -> str:
    if isinstance(problem, socket.gaierror) and problem.strerror:
        return problem.strerror
    return str(problem) or "no answer in time"
