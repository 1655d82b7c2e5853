"""Sequences that some server somewhere takes for the end of the data: here they are none.

What may come of each: one 250 and one message without a bare CR or LF in it, or a refusal; never a second
message, nor an answer to what was hidden in the first.
"""

from __future__ import annotations

import re
import ssl
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pytest

from pi_relay.config import Listener
from tests.support.processes import free_port
from tests.support.submission_room import PASSWORD, STRANGER, Client, Room, configuration

SEQUENCES = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\r.\n",
    b"\n.\r",
    b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\0\r\n.\n",
    b"\r\n.\n\r\n",
    b"\n\n.\n\n",
    b"\r\n. \r\n",
    b"\r\n .\r\n",
    b"\r\n..\r\n",
    b"\xe2\x80\xa8.\xe2\x80\xa8",
    b"\r\n.\x0b\r\n",
    b"\r\n.\x85\r\n",
    b"\n\r.\n\r",
]
HIDDEN = (
    b"MAIL FROM:<evil@office.example>\r\nRCPT TO:<victim@other.example>\r\nDATA\r\nSubject: evil\r\n\r\nevil"
)

Connect = Callable[[Room, ssl.SSLContext], Client]


def device(room: Room, _: ssl.SSLContext) -> Client:
    return room.client().greeted()


def stranger(room: Room, context: ssl.SSLContext) -> Client:
    """He has to sign in, and for that needs TLS."""
    client = room.client(source=STRANGER).greeted()
    assert client.ask("STARTTLS")[:3] == "220"
    client.start_tls(context)
    assert client.ask("EHLO stranger.example")[:3] == "250"
    response = b64encode(b"\0scanner\0" + PASSWORD.encode()).decode()
    assert client.ask(f"AUTH PLAIN {response}")[:3] == "235"
    return client


def room_for(open_room: Callable[..., Room], directory: Path) -> Room:
    listener = Listener("127.0.0.1", free_port(), networks=("local", f"{STRANGER}/32"), proxy_protocol=True)
    return open_room(configuration(directory, listener))


@pytest.mark.parametrize("connect", [device, stranger])
@pytest.mark.parametrize("split", [False, True], ids=["at once", "octet by octet"])
def test_nothing_is_smuggled(
    connect: Connect,
    split: bool,
    open_room: Callable[..., Room],
    tmp_path: Path,
    client_context: ssl.SSLContext,
) -> None:
    room = room_for(open_room, tmp_path)
    for sequence in SEQUENCES:
        before = len(room.queued)
        client = connect(room, client_context)
        assert client.ask("MAIL FROM:<a@office.example>", "RCPT TO:<b@other.example>", "DATA")[:3] == "354"
        client.send(b"Subject: good\r\n\r\nfirst")
        for part in [bytes([octet]) for octet in sequence] if split else [sequence]:
            client.send(part)
        client.send(HIDDEN + b"\r\n.\r\n")
        answer = client.reply()
        taken = room.queued[before:]
        # One NOOP, one answer: nothing of what was hidden has been answered in between.
        assert client.ask("NOOP").startswith("250 2.0.0"), sequence
        client.close()
        assert len(taken) == (1 if answer[:3] == "250" else 0), sequence
        assert answer[:3] in ("250", "550"), sequence
        for envelope, content in taken:
            assert envelope.reverse_path == "a@office.example"
            assert [recipient.forward_path for recipient in envelope.recipients] == ["b@other.example"]
            assert b"evil" in content
            assert not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", content), (sequence, content)
            assert not re.search(rb"(?:\A|\r\n)\.\r\n", content), (sequence, content)
        if connect is stranger and re.search(rb"\r(?!\n)|(?<!\r)\n|\0", sequence):
            assert answer[:3] == "550", sequence


def test_there_are_enough() -> None:
    assert len(set(SEQUENCES)) >= 16


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"a\rb", "5.6.11"), (b"\r", "5.6.11"), (b"a\0b", "5.6.0"), (b"a\r\r\nb", "5.6.11")],
)
def test_what_is_refused_from_everybody(
    content: bytes, status: str, open_room: Callable[..., Room], tmp_path: Path
) -> None:
    room = room_for(open_room, tmp_path)
    with room.client().greeted() as client:
        client.ask("MAIL FROM:<a@office.example>", "RCPT TO:<b@other.example>", "DATA")
        client.send(b"Subject: s\r\n\r\n" + content + b"\r\n.\r\n")
        assert client.reply().startswith(f"550 {status} ")
    assert room.queued == []
