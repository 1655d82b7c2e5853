"""Scripted sessions: each file of dialogues/ is one, and says in its first lines what it shows.

A file is read line by line:

    # ...        a remark
    @ KEY = VALUE  before the dialogue: client = ADDRESS (it comes through a load balancer), listener.KEY,
                 submission.KEY, config.KEY (Python each), refuse = begin | write | commit
    C: TEXT      the client sends the line; C lines that follow each other go out in one write
    C+ TEXT      the same without CRLF behind it
    TLS          the client begins TLS
    EOF          the client ends its half of the connection
    S: PATTERN   the server's next reply: "..." stands for any text, \\n for a line end in it; "250*" for a
                 whole reply of that code
    S.           the server closes
    Q: FROM > TO[, TO]   the next message in the queue, "<>" for the null reverse-path
    E: KEY=VALUE ...   what its envelope says
    R: KEY=VALUE ...   what it says of the next recipient
    F: NAMES     the fields put in front of it
    M: TEXT      its lines as stored behind those fields: all of them
    IN QUEUE N   so many messages are in the queue by now

TEXT may hold \\r \\n \\0 \\t \\\\ \\xFF. Messages without a Q are an error.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pi_relay.config import Config, Device, Listener, Route, SmartHost
from pi_relay.model import Envelope
from tests.support.processes import free_port, wait_until
from tests.support.submission_room import PASSWORD_HASH, SUBMISSION, Client, Room, configuration

DIALOGUES = sorted((Path(__file__).parent / "dialogues").glob("*.dialogue"))

_FIELD = rb"[^\r]+(?:\r\n[ \t][^\r]*)*\r\n"


@pytest.mark.parametrize("script", DIALOGUES, ids=lambda path: path.stem)
def test_dialogue(
    script: Path, tmp_path: Path, open_room: Callable[..., Room], client_context: ssl.SSLContext
) -> None:
    steps = list(_steps(script))
    settings = dict(argument.split(" = ", 1) for kind, argument, _ in steps if kind == "@")
    room = open_room(_configuration(tmp_path, settings))
    room.refuse_at = settings.get("refuse", "")
    with room.client(source=settings.get("client", "")) as client:
        Dialogue(script, room, client, client_context).run([step for step in steps if step[0] != "@"])


def test_there_are_dialogues() -> None:
    assert len(DIALOGUES) > 20


_NAMES = {"Device": Device, "Route": Route, "SmartHost": SmartHost, "HASH": PASSWORD_HASH}


def _configuration(directory: Path, settings: dict[str, str]) -> Config:
    def of(section: str) -> dict[str, object]:
        return {
            key.partition(".")[2]: eval(value, _NAMES)
            for key, value in settings.items()
            if key.startswith(f"{section}.")
        }

    listener = Listener("127.0.0.1", free_port(), networks=("local", "203.0.113.0/24"))
    listener = replace(listener, proxy_protocol="client" in settings, **of("listener"))  # type: ignore[arg-type]
    submission = replace(SUBMISSION, **of("submission"))  # type: ignore[arg-type]
    return replace(configuration(directory, listener, submission=submission), **of("config"))  # type: ignore[arg-type]


_TOGETHER = {("C:", "C:"), ("C:", "C+"), ("C+", "C:"), ("C+", "C+"), ("M:", "M:")}

Step = tuple[str, str, int]  # kind, argument, line number


def _steps(script: Path) -> Iterator[Step]:
    for number, line in enumerate(script.read_text(encoding="utf-8").splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        found = re.fullmatch(r"(C:|C\+|S:|S\.|TLS|EOF|Q:|E:|R:|F:|M:|IN QUEUE|@)(?: (.*))?", line)
        assert found, f"{script.name}:{number}: not understood: {line}"
        yield found[1], found[2] or "", number


class Dialogue:
    def __init__(self, script: Path, room: Room, client: Client, tls: ssl.SSLContext) -> None:
        self._script = script
        self._room = room
        self._client = client
        self._tls = tls
        self._read = 0  # messages of the queue that the script has looked at
        self._recipients_read = 0  # of the last of them
        self._fields_in_front = 0  # of the message that it looks at

    def run(self, steps: list[Step]) -> None:
        position = 0
        while position < len(steps):
            kind, argument, number = steps[position]
            end = position + 1
            while end < len(steps) and (kind, steps[end][0]) in _TOGETHER:
                end += 1
            try:
                self._step(kind, argument, steps[position:end])
            except (AssertionError, OSError) as failure:
                raise AssertionError(
                    f"{self._script.name}:{number}: {kind} {argument}\n{failure}"
                ) from failure
            position = end
        self._client.close()
        assert len(self._room.queued) == self._read, f"not looked at: {self._room.queued[self._read :]}"

    def _step(self, kind: str, argument: str, group: list[Step]) -> None:
        match kind:
            case "C:" | "C+":
                ends = {"C:": b"\r\n", "C+": b""}
                self._client.send(b"".join(_octets(text) + ends[kind] for kind, text, _ in group))
            case "S:":
                _expect(argument, self._client.reply())
            case "S.":
                rest = self._client.rest()
                assert rest == b"", f"still said: {rest!r}"
            case "TLS":
                self._client.start_tls(self._tls)
            case "EOF":
                self._client.socket.shutdown(socket.SHUT_WR)
            case "Q:":
                self._read += 1
                wait_until(lambda: len(self._room.queued) >= self._read, 10, "a message in the queue")
                envelope, _ = self._message()
                recipients = ", ".join(recipient.forward_path for recipient in envelope.recipients)
                assert f"{envelope.reverse_path or '<>'} > {recipients}" == argument
                self._recipients_read = 0
            case "E:":
                _expect_fields(argument, self._message()[0])
            case "R:":
                _expect_fields(argument, self._message()[0].recipients[self._recipients_read])
                self._recipients_read += 1
            case "F:":
                names = argument.encode().split()
                self._fields_in_front = len(names)
                assert re.findall(rb"(?m)^([\w-]+):", self._parts()[0]) == names
            case "M:":
                expected = b"".join(_octets(text) + b"\r\n" for _, text, _ in group)
                assert self._parts()[1] == expected, f"{self._parts()[1]!r} is stored"
            case "IN QUEUE":
                assert len(self._room.queued) == int(argument)

    def _message(self) -> tuple[Envelope, bytes]:
        return self._room.queued[self._read - 1]

    def _parts(self) -> tuple[bytes, bytes]:
        """Our fields, and what is the client's."""
        envelope, content = self._message()
        assert envelope.message_size_bytes == len(content)
        assert content[: envelope.header_size_bytes].endswith(b"\r\n\r\n")
        front = re.match(rb"(?:%s){%d}" % (_FIELD, self._fields_in_front), content)
        assert front, content[:500]
        return content[: front.end()], content[front.end() :]


def _expect_fields(wanted: str, data: object) -> None:
    for field in wanted.split():
        key, _, value = field.partition("=")
        found = getattr(data, key)
        said = ",".join(found) if isinstance(found, tuple) else str(found)
        assert said == value, f"{key} is {said}"


def _octets(text: str) -> bytes:
    """The line's text as octets, with escapes undone."""
    data = text.encode()
    return re.sub(
        rb"\\(?:x([0-9A-F]{2})|(.))",
        lambda found: bytes.fromhex(found[1].decode()) if found[1] else _ESCAPES[found[2]],
        data,
    )


_ESCAPES = {b"r": b"\r", b"n": b"\n", b"0": b"\0", b"t": b"\t", b"\\": b"\\"}


def _expect(pattern: str, reply: str) -> None:
    if pattern.endswith("*"):
        assert reply[:3] == pattern[:-1], f"the server says {reply!r}"
        return
    wanted = ".*".join(map(re.escape, pattern.replace("\\n", "\n").split("...")))
    assert re.fullmatch(wanted, reply, re.DOTALL), f"the server says {reply!r}"
