"""Crowds of clients that mean no good, or do no good, against a relay on loopback: a process of their own.

``with Attack("drip", port) as attack: ...`` lasts as long as the context; ``attack.heard`` then tells what
they were answered, and ``attack.promised`` the Message-IDs of what the relay accepted from them. Each client
comes from an address of its own below 127.66, so that no limit of one client stands in the way.

Run as a program it is that process: it prints its findings as JSON when it is told to end.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import signal
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

ENVELOPE = b"EHLO crowd\r\nMAIL FROM:<crowd@office.example>\r\nRCPT TO:<someone@office.example>\r\nDATA\r\n"
DRIP_SECONDS = 2.0
UPLOAD_BYTES = 25_000_000
UPLOAD_SECONDS = 20.0
AGAIN_SECONDS = 0.2  # before a client that was sent away connects again


class Attack:
    """One of ATTACKS, ``clients`` strong (else as many as the table says)."""

    def __init__(self, name: str, port: int, *, clients: int = 0) -> None:
        self.heard: Counter[str] = Counter()  # replies, by code and enhanced status
        self.promised: set[str] = set()
        self._arguments = [name, str(port), str(clients or ATTACKS[name].clients)]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Attack:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.attacks", *self._arguments],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "under way\n"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        told = json.loads(self._process.communicate(timeout=60)[0])
        self.heard.update(told["heard"])
        self.promised.update(told["promised"])

    def refusals(self) -> set[str]:
        """The kinds of replies that were none of consent."""
        return {reply for reply in self.heard if reply[0] not in "23"}


# ── the clients ──────────────────────────────────────────────────────────────────────────────────


class _Client:
    """One connection after another, for ever; what is heard is counted."""

    def __init__(self, attack: _Crowd, number: int) -> None:
        self.attack = attack
        self.number = number
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def run(self, behave: Callable[[_Client], Awaitable[None]]) -> None:
        source = f"127.66.{self.number // 250}.{self.number % 250 + 1}"
        while True:
            try:
                self.reader, self.writer = await asyncio.open_connection(
                    "127.0.0.1", self.attack.port, local_addr=(source, 0)
                )
            except OSError:
                self.attack.heard["no connection"] += 1
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            try:
                await behave(self)
            except (OSError, EOFError, ssl.SSLError):
                pass
            finally:
                self.writer.close()
            await asyncio.sleep(AGAIN_SECONDS)

    async def reply(self) -> bytes:
        while True:
            line = await self.reader.readline()
            if not line:
                raise EOFError
            if line[3:4] != b"-":
                self.attack.note(line)
                return line

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self, command: bytes) -> bytes:
        await self.say(command + b"\r\n")
        return await self.reply()

    async def listen(self) -> None:
        """Until the relay ends it."""
        while True:
            await self.reply()

    async def envelope(self) -> bool:
        """Whether the relay now waits for data."""
        await self.say(ENVELOPE)
        replies = [await self.reply() for _ in ENVELOPE.splitlines()]
        return replies[-1].startswith(b"354")


async def _idle(client: _Client) -> None:
    await client.listen()


async def _drip(client: _Client) -> None:
    """Octet by octet: a command, a message or a handshake, by turns."""
    beginning = (b"", ENVELOPE, b"EHLO drip\r\nSTARTTLS\r\n")[client.number % 3]
    await client.say(beginning)
    hearing = asyncio.ensure_future(client.listen())
    try:
        for octet in itertools.cycle(b"NOOP" if client.number % 3 < 2 else b"\x16\x03\x01\x02\x00\x01"):
            await client.say(bytes([octet]))
            await asyncio.sleep(DRIP_SECONDS)
            if hearing.done():
                return
    finally:
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)


async def _upload(client: _Client) -> None:
    """25 MB, slowly but for one client in ten."""
    await client.reply()
    if not await client.envelope():
        return
    name = client.attack.new_message_id()
    await client.say(f"Message-ID: {name}\r\nSubject: large\r\n\r\n".encode())
    pieces = 100
    piece = (b"x" * 76 + b"\r\n") * (UPLOAD_BYTES // pieces // 78)
    for _ in range(pieces):
        await client.say(piece)
        await asyncio.sleep((UPLOAD_SECONDS if client.number % 10 else 0) / pieces)
    if (await client.ask(b".")).startswith(b"250"):
        client.attack.promised.append(name)


async def _submit(client: _Client) -> None:
    """Small messages without pause."""
    await client.reply()
    while await client.envelope():
        name = client.attack.new_message_id()
        await client.say(f"Message-ID: {name}\r\nSubject: small\r\n\r\n{'x' * 8000}\r\n.\r\n".encode())
        if (await client.reply()).startswith(b"250"):
            client.attack.promised.append(name)


async def _chatter(client: _Client) -> None:
    """Commands that lead nowhere, pipelined without waiting for an answer."""
    flood = (
        b"NOOP\r\n" * 1000,
        b"EHLO x\r\nRSET\r\n" * 1000,
        b"EHLO x\r\nMAIL FROM:<a@office.example>\r\n" + b"RCPT TO:<b@office.example>\r\n" * 2000,
        b"\r\n" * 5000,
    )[client.number % 4]
    await client.say(flood)
    await client.listen()


async def _long_line(client: _Client) -> None:
    """26 MB without a line end, as a command or in the header."""
    await client.reply()
    if client.number % 2:
        await client.envelope()
    for _ in range(400):
        await client.say(b"x" * 65536)
    await client.say(b"\r\n.\r\n")
    await client.listen()


async def _knotty(client: _Client) -> None:
    """Messages built to be slow for whoever parses them."""
    await client.reply()
    while await client.envelope():
        message = KNOTS[client.number % len(KNOTS)]
        await client.say(message)
        await client.reply()


async def _guess(client: _Client) -> None:
    """Passwords, over TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    await client.reply()
    await client.ask(b"EHLO guess")
    await client.ask(b"STARTTLS")
    await client.writer.start_tls(context)
    await client.ask(b"EHLO guess")
    for number in itertools.count():
        await client.ask(b"AUTH PLAIN " + base64.b64encode(b"\0scanner\0guess%d" % number))


def _nested(depth: int) -> bytes:
    lines = [b"Content-Type: multipart/mixed; boundary=b0\r\n"]
    lines += [
        b"--b%d\r\nContent-Type: multipart/mixed; boundary=b%d\r\n" % (level, level + 1)
        for level in range(depth)
    ]
    return b"\r\n".join(lines)


KNOTS = tuple(
    message + b"\r\n\r\n.\r\n"
    for message in (
        b"Subject: x\r\n" + b" y\r\n" * 60_000,
        b"From: " + b"(" * 50_000,
        b"From: " + b'"\\"' * 20_000 + b"<a@office.example>",
        b"To: " + b"a@office.example, " * 14_000,
        b"From: a" + b"<" * 50_000,
        b"From: " + b"=?utf-8?q?=" * 20_000,
        b"Received: from a by b; now\r\n" * 110,
        b"X:\r\n" * 60_000,
        _nested(2000),
    )
)


class _Kind(NamedTuple):
    behave: Callable[[_Client], Awaitable[None]]
    clients: int


ATTACKS = {
    "crowd": _Kind(_idle, 1000),
    "drip": _Kind(_drip, 60),
    "uploads": _Kind(_upload, 50),
    "submissions": _Kind(_submit, 20),
    "chatter": _Kind(_chatter, 40),
    "long-lines": _Kind(_long_line, 8),
    "knots": _Kind(_knotty, 18),
    "guesses": _Kind(_guess, 30),
}


# ── the process ──────────────────────────────────────────────────────────────────────────────────


class _Crowd:
    def __init__(self, port: int) -> None:
        self.port = port
        self.heard: Counter[str] = Counter()
        self.promised: list[str] = []
        self._numbers = itertools.count()

    def note(self, line: bytes) -> None:
        known = re.match(rb"\d{3}(?: \d\.\d+\.\d+)?", line)
        self.heard[known[0].decode() if known else repr(line)] += 1

    def new_message_id(self) -> str:
        return f"<crowd-{next(self._numbers)}@attack.example>"

    async def run(self, kind: _Kind, clients: int) -> None:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        tasks = [asyncio.create_task(_Client(self, number).run(kind.behave)) for number in range(clients)]
        await asyncio.sleep(1.0)
        print("under way", flush=True)
        await ended.wait()
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        print(json.dumps({"heard": self.heard, "promised": self.promised}), flush=True)
        for outcome in outcomes:
            if not isinstance(outcome, asyncio.CancelledError):
                raise RuntimeError("a client of the attack broke off") from outcome


if __name__ == "__main__":
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(_Crowd(int(sys.argv[2])).run(ATTACKS[sys.argv[1]], int(sys.argv[3])))
