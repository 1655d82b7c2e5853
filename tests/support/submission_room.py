"""The submission room by itself: the real Server on loopback, in a thread, with a queue that only notes.

Nothing of its insides is known here but ``begin``, ``tls_context`` and the configuration, so that clients of
every kind can be put before it. ``Room.close`` asserts what holds for every client: no exception went
unhandled, none stands in the mail log, and no task, no session and no reserved place outlives its connection.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from pi_relay import maillog, passwords
from pi_relay.config import Config, Device, Listener, Queue, Route, SmartHost, Submission
from pi_relay.config.data import Log
from pi_relay.model import Envelope, IncomingMessage, QueueRefusal, Reply
from pi_relay.submission.auth import Authenticator
from pi_relay.submission.server import Server
from pi_relay.submission.session import Begin
from tests.support.processes import free_port, wait_until

Result = TypeVar("Result")

STRANGER = "203.0.113.9"  # no network of ours
PASSWORD = "correct horse"  # noqa: S105
PASSWORD_HASH = passwords.hash_password(PASSWORD)
QUEUE_FULL = Reply(452, "4.3.1", "the queue is full")

# Every client counts as connecting from here unless a test says otherwise; limits are out of the way.
SUBMISSION = Submission(
    message_size_max_bytes=1_000_000,
    connections_max=400,
    connections_per_client_max=400,
    recipients_max=10,
    messages_per_hour_max=0,
)
DEVICES = (Device("scanner", username="scanner", password_hash=PASSWORD_HASH),)


def configuration(
    directory: Path,
    *listeners: Listener,
    submission: Submission = SUBMISSION,
    devices: tuple[Device, ...] = DEVICES,
    **more: Any,
) -> Config:
    given: dict[str, Any] = {
        "smart_hosts": (SmartHost("office", "127.0.0.1", 2525),),
        "routes": (Route(("office",)),),
        "postmaster": "admin@office.example",
    }
    return Config(
        hostname="relay.office.example",
        queue=Queue(directory),
        listeners=listeners or (Listener("127.0.0.1", free_port()),),
        submission=submission,
        devices=devices,
        **(given | more),
    )


class NotedMessage:
    """Implements model.IncomingMessage; ``room.refuse_at`` and ``room.may_commit`` decide how it goes."""

    def __init__(self, room: Room, queue_id: str) -> None:
        self.queue_id = queue_id
        self._room = room
        self._written = bytearray()
        self._over = False

    async def write(self, data: bytes) -> None:
        self._let_go_if_refused_at("write")
        self._written += data
        self._room.written_bytes += len(data)
        if not self._room.keep_content:
            self._written.clear()

    async def commit(self, envelope: Envelope) -> None:
        self._room.committing += 1
        await self._room.may_commit.wait()
        self._let_go_if_refused_at("commit")
        self._over = True
        self._room.open -= 1
        self._room.queued.append((envelope, bytes(self._written)))

    def abort(self) -> None:
        if not self._over:
            self._over = True
            self._room.open -= 1
            self._room.aborted += 1

    def _let_go_if_refused_at(self, stage: str) -> None:
        if self._room.refuse_at == stage:
            self.abort()
            raise QueueRefusal(QUEUE_FULL)


class Room:
    """``with Room(config) as room``: ``room.port`` is its first listener's."""

    def __init__(
        self,
        config: Config,
        *,
        log_directory: Path,
        context: ssl.SSLContext | None = None,
        legacy_context: ssl.SSLContext | None = None,
        authenticator: Authenticator | None = None,
        begin: Begin | None = None,
        start: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self.config = config
        self.port = config.listeners[0].port
        self.queued: list[tuple[Envelope, bytes]] = []
        self.open = self.aborted = self.committing = self.written_bytes = 0
        self.keep_content = True
        self.refuse_at = ""  # "begin", "write", "commit"; "defect": an exception of no kind that is expected
        self.problems: list[dict[str, Any]] = []  # what the loop could not give to anybody
        self._context = context
        self._legacy_context = legacy_context
        self._authenticator = authenticator
        self._begin = begin or self._note
        self._begins_first = start
        self._log_directory = log_directory
        self._next_id = 0

    def __enter__(self) -> Room:
        maillog.open_log(self._log_directory, Log(), stderr=False)
        started: threading.Event = threading.Event()
        failures: list[BaseException] = []

        def run() -> None:
            try:
                asyncio.run(self._run(started))
            except BaseException as failure:
                failures.append(failure)
            finally:
                started.set()

        self._thread = threading.Thread(target=run)
        self._thread.start()
        started.wait(20)
        if failures:
            raise failures[0]
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.assert_nothing_is_left()
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(20)
            maillog.close_log()
        if kind is None:
            assert not self.problems, self.problems
            assert not self.defects(), self.defects()
            assert not re.search(rb"[\0-\x09\x0b-\x1f\x7f]", self.raw_log()), self.raw_log()

    async def _run(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(lambda _, context: self.problems.append(context))
        self._stop = asyncio.Event()
        self.may_commit = asyncio.Event()
        self.may_commit.set()
        if self._begins_first:
            await self._begins_first()
        self.server = Server(
            self.config,
            begin=self._begin,
            tls_context=self._tls_context,
            authenticator=self._authenticator,
        )
        await self.server.start()
        self._own_tasks = len(asyncio.all_tasks())
        started.set()
        await self._stop.wait()
        await self.server.stop_listening()
        await self.server.close(5)

    def _tls_context(self, legacy: bool) -> ssl.SSLContext | None:
        return self._legacy_context if legacy else self._context

    def _note(self, declared_size_bytes: int | None, *, known_device: bool) -> IncomingMessage:
        if self.refuse_at == "begin":
            raise QueueRefusal(QUEUE_FULL)
        if self.refuse_at == "defect":
            raise RuntimeError("a defect of our own")
        self.open += 1
        self._next_id += 1
        return NotedMessage(self, f"{self._next_id:012d}")

    # ── what tests ask ───────────────────────────────────────────────────────────────────────────

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def call(self, function: Callable[[], object]) -> None:
        async def do() -> None:
            function()

        self.run(do())

    def tasks(self) -> int:
        """Tasks beyond the room's own."""

        async def count() -> int:
            return len(asyncio.all_tasks()) - 1

        return self.run(count()) - self._own_tasks

    def timers(self) -> int:
        """Timers that are armed."""

        async def count() -> int:
            return sum(not timer.cancelled() for timer in self._loop._scheduled)  # type: ignore[attr-defined]

        return self.run(count())

    def log(self) -> list[dict[str, str]]:
        """The events of the mail log so far."""
        time.sleep(0.02)  # a line is written at the end of the loop's turn
        lines = [
            line
            for path in maillog.log_files(self._log_directory)
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        events = [maillog.parse_line(line) for line in lines]
        assert None not in events, lines
        return [event for event in events if event]

    def raw_log(self) -> bytes:
        return b"".join(path.read_bytes() for path in maillog.log_files(self._log_directory))

    def defects(self) -> list[dict[str, str]]:
        """Our own errors in the log: none may come of anything that a client does."""
        return [event for event in self.log() if event["event"] in ("error", "traceback")]

    def assert_nothing_is_left(self) -> None:
        wait_until(lambda: self.server.stats().connections == 0, 10, "connections to end")
        wait_until(lambda: self.tasks() <= 0, 10, "tasks to end")
        wait_until(lambda: self.open == 0, 10, "places in the queue to be given back")

    def client(self, *, source: str = "") -> Client:
        """Connected, and behind a PROXY header where the listener wants one."""
        proxied = self.config.listeners[0].proxy_protocol
        return Client(self.port, source=source or ("127.0.0.1" if proxied else ""))


class Client:
    """A socket that speaks lines, as far as it is told."""

    def __init__(self, port: int, *, source: str = "", timeout_seconds: float = 15.0) -> None:
        """``source``: the address that a PROXY header claims, "" for no such header."""
        self.socket: socket.socket = socket.create_connection(("127.0.0.1", port), timeout_seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a packet for each piece
        self.received = b""
        if source:
            family, target = ("TCP6", "::1") if ":" in source else ("TCP4", "127.0.0.1")
            self.send(f"PROXY {family} {source} {target} 40000 {port}\r\n".encode())

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self) -> str:
        """The next whole reply, its lines joined by "\\n"; "" where the server has closed."""
        lines: list[str] = []
        while not lines or lines[-1][3:4] == "-":
            line = self._line()
            if not line:
                return ""
            lines.append(line)
        return "\n".join(lines)

    def _line(self) -> str:
        while b"\n" not in self.received:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                assert not self.received, self.received
                return ""
            self.received += data
        line, _, self.received = self.received.partition(b"\n")
        assert line.endswith(b"\r"), line
        return line[:-1].decode()

    def ask(self, *commands: bytes | str) -> str:
        """Send the commands in one write; the reply to the last of them."""
        lines = [command.encode() if isinstance(command, str) else command for command in commands]
        self.send(b"".join(line + b"\r\n" for line in lines))
        return [self.reply() for _ in lines][-1]

    def rest(self) -> bytes:
        """All that comes until the server closes."""
        data = self.received
        self.received = b""
        while True:
            try:
                piece = self.socket.recv(65536)
            except ConnectionResetError:
                return data
            if not piece:
                return data
            data += piece

    def start_tls(self, context: ssl.SSLContext) -> None:
        assert not self.received
        self.socket = context.wrap_socket(self.socket, server_hostname="localhost")

    def greeted(self) -> Client:
        assert self.reply().startswith("220 ")
        assert self.ask("EHLO device").startswith("250-")
        return self
