"""The listeners: bound, swapped at a reload, closed; and the sweep that ends whoever keeps us waiting.

Rules: all listeners are bound or none; a listener that stays in the configuration keeps its socket through a
reload, and the sessions on it go on. The sweep's timer runs only while someone is connected.
It must not know the dialogue.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import ssl
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from pi_relay import maillog
from pi_relay.config import Config, Listener
from pi_relay.quotas import Quotas
from pi_relay.status import DeviceStatus
from pi_relay.submission.auth import Authenticator
from pi_relay.submission.clients import ClientReport, reports
from pi_relay.submission.limits import Limits
from pi_relay.submission.neighbours import read_neighbours
from pi_relay.submission.policy import Policy
from pi_relay.submission.ports import owner_of_port
from pi_relay.submission.session import Begin, Service, Session, Terms
from pi_relay.systemd import Sockets

# A crowd waits in the kernel (as far as net.core.somaxconn lets it), and is taken in by handfuls. One number
# for both, as asyncio has it, would lose connections, or hold up the loop and run out of files.
BACKLOG = 4096
ACCEPTED_AT_ONCE = 16
SWEEP_SECONDS_MAX = 5.0
LET_GO_SECONDS = 5.0  # for systemd to close a socket that it kept for us
LET_GO_TURN_SECONDS = 0.02
FILES_PER_CONNECTION = 2  # its socket, and a large message that comes over it
OTHER_FILES = 96  # handfuls just accepted, queue, log, sessions with next hops


class ListenerError(Exception):
    """A listener cannot be bound: which, why, who has it, and what to do."""

    def __init__(self, address: str, reason: str, hint: str = "") -> None:
        super().__init__(f"cannot listen on {address}: {reason}" + (f" (hint: {hint})" if hint else ""))
        self.address = address
        self.reason = reason
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Stats:
    """Since the start of the process."""

    listening: bool
    connections: int  # now
    accepted: int  # messages
    refused: int  # commands, messages and connections sent away
    devices: list[DeviceStatus]  # and unknown clients, the latest first


class _Bound:
    """A listener's sockets, and the terms that new connections on them get."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self.sockets = sockets
        self.servers: list[asyncio.Server] = []
        self.terms: Terms | None = None

    @property
    def listening(self) -> bool:
        return any(server.is_serving() for server in self.servers)

    @property
    def deaf(self) -> bool:
        """Whether one of its sockets is not listened on any more."""
        return not self.servers or not all(server.is_serving() for server in self.servers)

    def close(self) -> None:
        for server in self.servers:
            server.close()
        for bound in self.sockets:
            bound.close()


class Server:
    """Takes mail on every listener of the configuration.

    ``begin``: opens a place in the queue, or raises QueueRefusal. ``tls_context``: the context for the next
    handshake, given whether it is with a ``legacy`` device; None, or an exception: no TLS now.
    ``now``: seconds since the epoch; ``clock_is_wrong``: whether they mean nothing. ``quotas``: where clients
    are counted; None: in memory. ``sockets``: those that outlive this process; None: none.
    """

    def __init__(
        self,
        config: Config,
        *,
        begin: Begin,
        tls_context: Callable[[bool], ssl.SSLContext | None],
        now: Callable[[], float] = time.time,
        clock_is_wrong: Callable[[], bool] = lambda: False,
        authenticator: Authenticator | None = None,
        quotas: Quotas | None = None,
        sockets: Sockets | None = None,
    ) -> None:
        self._sockets = sockets or Sockets()
        self._service = Service(
            config=config,
            policy=Policy(config),
            begin=begin,
            tls_context=tls_context,
            authenticator=authenticator or Authenticator(),
            limits=Limits(quotas or Quotas()),
            now=now,
            clock_is_wrong=clock_is_wrong,
            connections_max=_connections_max(config),
        )
        self._bound: dict[tuple[str, int], _Bound] = {}
        self._sweep_timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Bind and serve every listener; ListenerError: none is left open."""
        await self._listen(self._service.config)

    async def reconfigure(self, config: Config) -> None:
        """Serve the new configuration; ListenerError: the old one is served on."""
        await self._listen(config)
        self._service.policy = Policy(config)
        self._service.config = config
        self._service.connections_max = _connections_max(config)

    async def stop_listening(self) -> None:
        for bound in self._bound.values():
            bound.close()
        self._bound.clear()

    async def close(self, grace_seconds: float) -> None:
        """End every session: the idle ones at once, those with a message under way within the grace."""
        await self.stop_listening()
        sessions = self._sessions()
        for session in sessions:
            session.shut_down()
        await _ended(sessions, grace_seconds)
        for session in sessions:
            session.cancel()
        await _ended(sessions, 1.0)
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        self._service.authenticator.close()

    def stats(self) -> Stats:
        census = self._service.census
        return Stats(
            listening=self.listening,
            connections=len(census.connected),
            accepted=census.accepted,
            refused=census.refused,
            devices=[
                DeviceStatus(seen.name, seen.address, seen.last_seen_at, seen.accepted, seen.refused)
                for seen in census.seen()
            ],
        )

    def troubles(self) -> list[str]:
        """What an admin should know of, in words."""
        return self._service.limits.troubles()

    def clients(self) -> list[ClientReport]:
        """Everybody who was seen, and the devices that were not."""
        service = self._service
        try:
            neighbours = read_neighbours()
        except OSError:
            neighbours = []
        return list(reports(service.config, service.policy, service.census.seen(), neighbours))

    @property
    def listening(self) -> bool:
        """Whether any listener is open."""
        return any(bound.listening for bound in self._bound.values())

    def stuck(self) -> str:
        """Which listener does not serve, in words; "" while all do."""
        deaf = [f"{host}:{port}" for (host, port), bound in self._bound.items() if bound.deaf]
        if deaf or not self._bound:
            return f"not served: {', '.join(deaf) or 'no listener at all'}"
        return ""

    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of every bound socket, in the order of the configuration."""
        return [sock.getsockname()[:2] for bound in self._bound.values() for sock in bound.sockets]

    # ── listening ────────────────────────────────────────────────────────────────────────────────

    async def _listen(self, config: Config, patience_seconds: float = 0.0) -> None:
        wanted = {(listener.host, listener.port): listener for listener in config.listeners}
        in_the_way = self._those_in_the_way(wanted)
        for key in in_the_way:
            self._close_for_good(self._bound.pop(key))
        if self._let_go(config) or in_the_way:
            patience_seconds = LET_GO_SECONDS
        new: dict[tuple[str, int], _Bound] = {}
        try:
            for key, listener in wanted.items():
                if key not in self._bound:
                    new[key] = _Bound(await _bind(listener, self._sockets, patience_seconds))
        except ListenerError:
            for bound in new.values():
                bound.close()
            if in_the_way:
                await self._listen(self._service.config, LET_GO_SECONDS)
            raise
        for key in self._bound.keys() - wanted.keys():
            self._close_for_good(self._bound.pop(key))
        self._bound = {key: self._bound.get(key) or new[key] for key in wanted}
        for key, listener in wanted.items():
            self._bound[key].terms = Terms(config, listener)
        for bound in new.values():
            await self._serve(bound)
            for sock in bound.sockets:
                self._sockets.keep(sock)

    def _those_in_the_way(self, wanted: Collection[tuple[str, int]]) -> list[tuple[str, int]]:
        """Listeners that go, where another comes on the same port: that of all addresses and that of a single
        one cannot both be open."""
        ports = {port for host, port in wanted if (host, port) not in self._bound}
        return [key for key in self._bound if key not in wanted and key[1] in ports]

    def _let_go(self, config: Config) -> bool:
        """Close sockets from before a restart that the file has no more: they, too, may be in the way.
        Whether the others may have to wait for theirs."""
        wanted = {(host, listener.port) for listener in config.listeners for host in _hosts(listener)}
        ours, held = self._sockets.let_go(wanted)
        for address in held:
            maillog.alert(
                reason=f"systemd holds {address} open by a socket unit, and the file has no such listener"
            )
        return ours

    def _close_for_good(self, bound: _Bound) -> None:
        for sock in bound.sockets:
            self._sockets.forget(sock)
        bound.close()

    async def _serve(self, bound: _Bound) -> None:
        loop = asyncio.get_running_loop()

        def session() -> Session:
            assert bound.terms is not None
            self._keep_sweeping(loop)
            return Session(self._service, bound.terms, loop)

        for sock in bound.sockets:
            bound.servers.append(await loop.create_server(session, sock=sock, backlog=ACCEPTED_AT_ONCE))
            sock.listen(BACKLOG)

    # ── the sweep ────────────────────────────────────────────────────────────────────────────────

    def _sessions(self) -> list[Session]:
        return [session for session in self._service.census.connected if isinstance(session, Session)]

    def _keep_sweeping(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._sweep_timer is None:
            idle_seconds = self._service.config.submission.idle_timeout_seconds
            self._sweep_timer = loop.call_later(min(SWEEP_SECONDS_MAX, idle_seconds / 4), self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweep_timer = None
        now = loop.time()
        sessions = self._sessions()
        for session in sessions:
            if session.deadline < now:
                session.expire()
        if sessions:
            self._keep_sweeping(loop)


def _connections_max(config: Config) -> int:
    """As many as the file says, if the system allows enough open files; else fewer, with an alert.

    A client that cannot be accepted hears nothing at all; one too many hears 421.
    """
    wanted = config.submission.connections_max
    files_max, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files_max == resource.RLIM_INFINITY:
        return wanted
    possible = max(1, (files_max - OTHER_FILES) // FILES_PER_CONNECTION)
    if possible < wanted:
        reason = (
            f"only {possible} connections at once instead of {wanted}: the system allows {files_max} files"
        )
        maillog.alert(reason=reason)
    return min(wanted, possible)


async def _ended(sessions: list[Session], seconds: float) -> None:
    """Wait until all dialogues have ended, ``seconds`` at most."""
    tasks = [session.task for session in sessions if session.task is not None]
    if tasks:
        await asyncio.wait(tasks, timeout=seconds)


# ── binding ──────────────────────────────────────────────────────────────────────────────────────


def _hosts(listener: Listener) -> list[str]:
    return [listener.host] if listener.host else ["::", "0.0.0.0"]


async def _bind(listener: Listener, handed_over: Sockets, patience_seconds: float) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    for host in _hosts(listener):
        try:
            sock = handed_over.take(host, listener.port)
            if sock is None:
                sock = await _bound_when_free(host, listener.port, patience_seconds)
            sockets.append(sock)
            if not listener.host and _takes_both_families(sock):
                break  # from a socket unit of the admin's
        except OSError as error:
            without_ipv6 = error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
            if not listener.host and host == "::" and without_ipv6:
                continue
            for sock in sockets:
                sock.close()
            raise _listener_error(host, listener.port, error) from None
    return sockets


async def _bound_when_free(host: str, port: int, patience_seconds: float) -> socket.socket:
    end = time.monotonic() + patience_seconds
    while True:
        try:
            return _bound_socket(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= end:
                raise
        await asyncio.sleep(LET_GO_TURN_SECONDS)


def _takes_both_families(sock: socket.socket) -> bool:
    return sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def _bound_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # getaddrinfo for the zone of a link-local address; a name would be looked up, and is no address.
        address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0][
            4
        ]
        sock.bind(address)
        # Now, not with the event loop's start: a port that is taken shows itself only here.
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _listener_error(host: str, port: int, error: OSError) -> ListenerError:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    match error.errno:
        case errno.EADDRINUSE:
            owner = owner_of_port(port)
            reason = f"the port is taken by {owner}" if owner else "the port is taken by another program"
            return ListenerError(
                address, reason, "stop that program, or choose another port under [[listeners]]"
            )
        case errno.EACCES | errno.EPERM:
            hint = "ports below 1024 need root or CAP_NET_BIND_SERVICE; or choose 2525 under [[listeners]]"
            return ListenerError(address, "permission denied", hint)
        case errno.EADDRNOTAVAIL:
            return ListenerError(
                address, "this machine does not have that address", 'use ":PORT" for all of them'
            )
        case _:
            return ListenerError(address, error.strerror or str(error))
