"""The listeners, and what all sessions share: limits, who is known, what has been counted.

Rules: sessions run in our own loop. A listener that cannot be bound is an error with the owner of its port,
where that can be seen. New configuration holds for the next command of every session. Stopping refuses
nobody a reply: sessions within a message finish it, the others hear 421.
It must not know SMTP (session.py) or how the queue keeps a message.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from asyncio import sslproto
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from pi_relay.config import Config, Device, Listener
from pi_relay.model import IncomingMessage, Reply
from pi_relay.status import DeviceStatus
from pi_relay.submission import replies
from pi_relay.submission.auth import Guesses, Passwords
from pi_relay.submission.policy import Policy
from pi_relay.submission.ports import owner_of_port
from pi_relay.submission.session import Session

BACKLOG = 1024  # a burst waits in the kernel until it is its turn to be served, or refused
DEVICES_MAX = 256  # remembered for `status`, the longest silent forgotten first

# A TLS connection otherwise holds 256 KiB of buffer while it is idle.
sslproto.SSLProtocol.max_size = 32 * 1024


class ListenerError(Exception):
    """A listener cannot be opened; the text says which, why, and what to do."""


@dataclass(slots=True)
class Seen:
    """One device, or one address of an unknown client."""

    name: str
    address: str
    last_seen_at: float
    accepted: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Stats:
    listening: bool
    connections: int
    accepted: int
    refused: int
    devices: list[DeviceStatus]


class Server:
    def __init__(
        self,
        config: Config,
        *,
        begin: Callable[[int | None], IncomingMessage],
        tls_context: Callable[[], ssl.SSLContext | None],
    ) -> None:
        """``begin``: a place in the queue for a message of the declared size; raises QueueRefusal."""
        self.config = config
        self.begin = begin
        self.tls_context = tls_context
        self.policy = Policy(config)
        self.passwords = Passwords()
        self.guesses = Guesses()
        self._listeners: dict[Listener, asyncio.Server] = {}
        self._sessions: set[Session] = set()
        self._by_client: Counter[str] = Counter()
        self._counted: dict[Session, str] = {}
        self._seen: OrderedDict[tuple[str, str], Seen] = OrderedDict()
        self._accepted = 0
        self._refused = 0
        self._idle = asyncio.Event()

    # ── listeners ────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Open every listener. Raises ListenerError, and has then opened none."""
        try:
            for listener in self.config.listeners:
                await self._open(listener)
        except ListenerError:
            await self.stop_listening()
            raise

    async def stop_listening(self) -> None:
        for server in self._listeners.values():
            server.close()
        self._listeners.clear()

    async def reconfigure(self, config: Config) -> None:
        """Take the new file. Listeners that are in both stay open. Raises ListenerError for a new one that
        cannot be opened; the rest is in force all the same."""
        self.config = config
        self.policy.reconfigure(config)
        for gone in self._listeners.keys() - set(config.listeners):
            self._listeners.pop(gone).close()
        for listener in config.listeners:
            if listener not in self._listeners:
                await self._open(listener)

    async def _open(self, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        try:
            bound = _bound_socket(listener)
            server = await loop.create_server(
                lambda: Session(self, listener, loop), sock=bound, backlog=BACKLOG
            )
        except OSError as problem:
            raise ListenerError(_in_words(listener, problem)) from problem
        self._listeners[listener] = server

    async def close(self, grace_seconds: float) -> None:
        """End all sessions: those within a message when it is done, or when the grace is over."""
        for session in list(self._sessions):
            if not session.busy:
                session.send_away(replies.SHUTTING_DOWN)
        if self._sessions:
            self._idle.clear()
            try:
                async with asyncio.timeout(grace_seconds):
                    await self._idle.wait()
            except TimeoutError:
                for session in list(self._sessions):
                    session.send_away(replies.SHUTTING_DOWN)
        self.passwords.close()

    # ── what sessions tell ───────────────────────────────────────────────────────────────────────

    def opened(self, session: Session) -> None:
        self._sessions.add(session)

    def closed(self, session: Session) -> None:
        self._sessions.discard(session)
        address = self._counted.pop(session, None)
        if address is not None:
            self._by_client[address] -= 1
            if not self._by_client[address]:
                del self._by_client[address]
        if not self._sessions:
            self._idle.set()

    def too_many(self, session: Session, address: str) -> Reply | None:
        """Count a connection of ``address``; the reply where it is one too many."""
        limits = self.config.submission
        if len(self._counted) >= limits.connections_max:
            return replies.TOO_MANY_CONNECTIONS
        if self._by_client[address] >= limits.connections_per_client_max:
            return replies.TOO_MANY_OF_YOURS
        self._counted[session] = address
        self._by_client[address] += 1
        return None

    def accepted(self, address: str, device: Device | None) -> None:
        self._accepted += 1
        self._note(address, device).accepted += 1

    def refused(self, address: str, device: Device | None) -> None:
        self._refused += 1
        self._note(address, device).refused += 1

    def _note(self, address: str, device: Device | None) -> Seen:
        name = device.name if device else ""
        key = (name, "" if name else address)
        seen = self._seen.get(key)
        if seen is None:
            seen = self._seen[key] = Seen(name, address, 0.0)
            if len(self._seen) > DEVICES_MAX:
                self._seen.popitem(last=False)
        self._seen.move_to_end(key)
        seen.address, seen.last_seen_at = address, time.time()
        return seen

    def stats(self) -> Stats:
        """What `status` shows; devices in the order in which they were last seen, latest first."""
        return Stats(
            listening=bool(self._listeners),
            connections=len(self._counted),
            accepted=self._accepted,
            refused=self._refused,
            devices=[
                DeviceStatus(seen.name, seen.address, seen.last_seen_at, seen.accepted, seen.refused)
                for seen in reversed(self._seen.values())
            ],
        )


def _bound_socket(listener: Listener) -> socket.socket:
    """A listening socket; for every interface one that takes both families, where the machine has IPv6."""
    if listener.host:
        family = socket.AF_INET6 if ":" in listener.host else socket.AF_INET
        return _bind(family, listener.host, listener.port)
    if socket.has_dualstack_ipv6():
        return _bind(socket.AF_INET6, "::", listener.port)
    return _bind(socket.AF_INET, "0.0.0.0", listener.port)


def _bind(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Small replies go out at once (asyncio sets it only on sockets that it makes itself as a client).
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 if host != "::" else 0)
        listening.bind((host, port))
    except OSError:
        listening.close()
        raise
    return listening


def _in_words(listener: Listener, problem: OSError) -> str:
    where = f"cannot listen on {listener.host or 'every interface'}, port {listener.port}"
    match problem.errno:
        case errno.EADDRINUSE:
            owner = owner_of_port(listener.port) or "another program"
            return f"{where}: {owner} has it\nhint: stop that program, or choose another port"
        case errno.EACCES:
            hint = "ports below 1024 need root or CAP_NET_BIND_SERVICE; systemd's unit gives it"
            return f"{where}: not permitted\nhint: {hint}"
        case errno.EADDRNOTAVAIL:
            return f"{where}: this machine has no such address\nhint: see `ip address`"
    return f"{where}: {problem.strerror or problem}"
