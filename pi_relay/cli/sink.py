"""`pi-relay sink`: the stand-in smart host. It takes mail, keeps it in a Maildir, and answers as scripted.

Rules: for tests, the demo and curious admins; it never passes anything on. What it keeps is the message's
bytes, unstuffed, with the CRLF they came with. It must know nothing of the relay.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from pi_relay.cli.output import OK, printable
from pi_relay.cli.queue import unstuffed
from pi_relay.cli.texts import t

if TYPE_CHECKING:
    import asyncio

END_OF_DATA = "DOT"  # how --reply names the answer to the message itself
VERBS = ("CONNECT", "HELO", "EHLO", "MAIL", "RCPT", "DATA", END_OF_DATA, "RSET", "NOOP", "QUIT")
EXTENSIONS = ("PIPELINING", "SIZE 0", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")
LINE_SIZE_MAX_BYTES = 1024 * 1024

_ORDINARY = {
    "CONNECT": "220 sink.invalid ESMTP pi-relay sink",
    "HELO": "250 sink.invalid",
    "EHLO": "250 sink.invalid",
    "MAIL": "250 2.1.0 sender ok",
    "RCPT": "250 2.1.5 recipient ok",
    "DATA": "354 go ahead",
    END_OF_DATA: "250 2.0.0 kept",
    "RSET": "250 2.0.0 ok",
    "NOOP": "250 2.0.0 ok",
    "QUIT": "221 2.0.0 bye",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = t(
        "The stand-in smart host: takes mail, keeps it in a Maildir, answers as scripted. No TLS, no AUTH."
    )
    parser.epilog = (
        t("example:")
        + "\n  pi-relay sink --maildir ./Maildir --reply RCPT=450 --reply RCPT=250\n"
        + t("  (the first recipient is put off, all others are taken)")
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        type=_address,
        default=("127.0.0.1", 2526),
        help=t("where it listens (default: 127.0.0.1:2526; port 0: any free one)"),
    )
    parser.add_argument(
        "--maildir", metavar="DIR", help=t("where it keeps mail (default: a new temporary folder)")
    )
    parser.add_argument(
        "--delay", metavar="SECONDS", type=float, default=0.0, help=t("wait before each reply")
    )
    parser.add_argument(
        "--drop-after",
        metavar="BYTES",
        type=int,
        default=None,
        help=t("break the connection after so many bytes of a message"),
    )
    parser.add_argument(
        "--reply",
        metavar="VERB=CODE",
        type=_scripted,
        action="append",
        default=[],
        help=t(
            "answer VERB with CODE, or with 'CODE words'; several for one verb are used in turn, the last one"
            " stays; VERB: {verbs} (DOT: the end of the message)",
            verbs=", ".join(VERBS),
        ),
    )


def run(options: argparse.Namespace) -> int:
    import asyncio

    directory = options.maildir or tempfile.mkdtemp(prefix="pi-relay-sink-")
    script = Script(options.delay, options.drop_after)
    for verb, reply in options.reply:
        script.add(verb, reply)
    return asyncio.run(_serve(options.address, Maildir(Path(directory)), script))


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    try:
        if not host or not 0 <= int(port) <= 65535:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(t("{text!r} is no HOST:PORT", text=text)) from None
    return host.strip("[]"), int(port)


def _scripted(text: str) -> tuple[str, str]:
    verb, _, reply = text.partition("=")
    code, _, words = reply.partition(" ")
    if verb.upper() not in VERBS or not (code.isascii() and code.isdecimal() and 200 <= int(code) <= 599):
        raise argparse.ArgumentTypeError(t("{text!r} is no VERB=CODE like RCPT=550", text=text))
    return verb.upper(), f"{code} {words or f'{code[0]}.0.0 as scripted'}"


@dataclass(slots=True)
class Script:
    """How the sink behaves: its replies by verb, its delay, and where it breaks off."""

    delay_seconds: float = 0.0
    drop_after_bytes: int | None = None
    _replies: dict[str, list[str]] = field(default_factory=dict)

    def add(self, verb: str, reply: str) -> None:
        self._replies.setdefault(verb, []).append(reply)

    def reply(self, verb: str) -> str:
        """The next scripted reply, or the ordinary one."""
        scripted = self._replies.get(verb)
        if not scripted:
            return _ORDINARY[verb]
        return scripted.pop(0) if len(scripted) > 1 else scripted[0]


class Maildir:
    """A Maildir, made where it is missing; messages appear in new/ once they are whole."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("tmp", "new", "cur"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        self._numbers = count(1)

    def keep(self, message: bytes) -> Path:
        name = f"{int(time.time())}.P{os.getpid()}Q{next(self._numbers)}.sink"
        temporary, final = self.directory / "tmp" / name, self.directory / "new" / name
        temporary.write_bytes(message)
        return temporary.rename(final)


async def _serve(address: tuple[str, int], maildir: Maildir, script: Script) -> int:
    """Listen until SIGTERM or SIGINT."""
    import asyncio

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await Conversation(reader, writer, maildir, script).run()
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass  # the client has left, or talks nonsense without end
        finally:
            writer.close()

    server = await asyncio.start_server(converse, *address, limit=LINE_SIZE_MAX_BYTES)
    host, port = server.sockets[0].getsockname()[:2]
    _say(
        t("listening on {address}, mail goes to {folder}", address=f"{host}:{port}", folder=maildir.directory)
    )
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await stopping.wait()
    server.close()
    return OK


class Conversation:
    """One client: its commands in order, as RFC 5321 has them, as little strict as a sink may be."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, maildir: Maildir, script: Script
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._maildir = maildir
        self._script = script
        self._reverse_path = ""
        self._forward_paths: list[str] = []

    async def run(self) -> None:
        await self._reply(self._script.reply("CONNECT"))
        while not self._writer.is_closing():
            line = (await self._reader.readuntil(b"\n")).decode("utf-8", "backslashreplace").strip()
            verb, _, argument = line.partition(" ")
            await self._command(verb.upper(), argument)

    async def _command(self, verb: str, argument: str) -> None:
        if verb == "DATA":
            await self._data()
        elif verb in _ORDINARY and verb not in ("CONNECT", END_OF_DATA):
            reply = self._script.reply(verb)
            if reply[0] == "2":
                self._remember(verb, argument)
            await self._reply(reply, EXTENSIONS if verb == "EHLO" and reply[0] == "2" else ())
        else:
            await self._reply("502 5.5.2 not known here")

    def _remember(self, verb: str, argument: str) -> None:
        path = argument.partition(":")[2].strip().partition(">")[0].removeprefix("<")
        if verb == "RCPT":
            self._forward_paths.append(path)
        elif verb != "NOOP":
            self._reverse_path = path
            self._forward_paths = []

    async def _data(self) -> None:
        if not self._forward_paths:
            await self._reply("503 5.5.1 no recipient was taken")
            return
        reply = self._script.reply("DATA")
        await self._reply(reply)
        if reply[0] != "3":
            return
        message = await self._message()
        if message is None:
            _say(t("broke off amid a message"))
            self._writer.transport.abort()
            return
        reply = self._script.reply(END_OF_DATA)
        if reply[0] == "2":
            self._keep(message)
        await self._reply(reply)
        self._forward_paths = []

    async def _message(self) -> bytes | None:
        """The message's wire form without its terminator; None where the script breaks off."""
        data = bytearray(b"\r\n")  # so that an empty message is terminated too
        while True:
            # Line by line, but with what the reader already has: the terminator is a line of its own.
            line = await self._reader.readuntil(b"\n")
            if line == b".\r\n" and data.endswith(b"\r\n"):
                return bytes(data[2:])
            data += line
            limit = self._script.drop_after_bytes
            if limit is not None and len(data) - 2 >= limit:
                return None

    def _keep(self, wire_form: bytes) -> None:
        message = b"".join(unstuffed([wire_form]))
        path = self._maildir.keep(message)
        to = ", ".join(f"<{forward_path}>" for forward_path in self._forward_paths)
        _say(
            t(
                "took {size} bytes from <{sender}> to {to}: {file}",
                size=len(message),
                sender=self._reverse_path,
                to=to,
                file=path,
            )
        )

    async def _reply(self, reply: str, more_lines: Iterable[str] = ()) -> None:
        import asyncio

        if self._script.delay_seconds:
            await asyncio.sleep(self._script.delay_seconds)
        code, words = reply[:3], [reply[4:], *more_lines]
        lines = [f"{code}-{line}\r\n" for line in words[:-1]] + [f"{code} {words[-1]}\r\n"]
        self._writer.write("".join(lines).encode())
        await self._writer.drain()
        if code in ("221", "421"):
            self._writer.close()


def _say(text: str) -> None:
    print(printable(text))
    sys.stdout.flush()
