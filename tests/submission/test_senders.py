"""Who sends as whom, as a device sees it: by address, by user name; in the envelope, the header, the log."""

from __future__ import annotations

import re
import smtplib
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pi_relay.config import Config, Device, Route
from pi_relay.headers import Header
from pi_relay.model import Envelope
from tests.support.submission_room import (
    DEVICES,
    PASSWORD,
    PASSWORD_HASH,
    SUBMISSION,
    Client,
    Room,
    configuration,
)

OpenRoom = Callable[..., Room]

POLICY = replace(SUBMISSION, sender_domains=("office.example",), default_sender="relay@office.example")
COPIER = Device("copier", address="127.0.0.1", sender="Copier 2F <scans@office.example>")
CAMERA = Device(
    "camera", username="camera", password_hash=PASSWORD_HASH, sender="camera@office.example", senders=("*@x",)
)
BRANCH = Device("branch", address="127.0.0.1", senders=("*@branch.example",))


def policy(tmp_path: Path, *devices: Device, **more: object) -> Config:
    return configuration(tmp_path, submission=POLICY, devices=(*devices, *DEVICES), **more)


def send(room: Room, reverse_path: str, *fields: str) -> tuple[Envelope, bytes]:
    """What of it is queued: the envelope, and the header less what stands in front of it."""
    before = len(room.queued)
    with room.client() as client:
        client.greeted().ask(f"MAIL FROM:<{reverse_path}>", "RCPT TO:<b@other.example>", "DATA")
        client.send("\r\n".join([*fields, "Date: x", "Message-ID: <1@x>", "", ".", ""]).encode())
        assert client.reply().startswith("250 ")
    envelope, content = room.queued[before]
    return envelope, content[content.index(b";") :].partition(b"\r\n\t")[2].partition(b"\r\n")[2]


def accepted(room: Room) -> dict[str, str]:
    return [event for event in room.log() if event["event"] == "accepted"][-1]


def test_a_device_known_by_address_sends_as_it_is_told(tmp_path: Path, open_room: OpenRoom) -> None:
    room = open_room(policy(tmp_path, COPIER))
    envelope, header = send(
        room, "ann@office.example", "From: Ann <ann@office.example>", "Sender: <x@y.example>"
    )
    assert (envelope.reverse_path, envelope.device) == ("scans@office.example", "copier")
    assert envelope.original_reverse_path == "ann@office.example"
    assert header.startswith(
        b"From: Copier 2F <scans@office.example>\r\nReply-To: Ann <ann@office.example>\r\nDate: x\r\n"
    )
    event = accepted(room)
    assert (event["from"], event["device"]) == ("scans@office.example", "copier")
    assert event["rewritten"] == "reverse_path,from,reply_to,sender"
    assert event["claimed"] == "ann@office.example,x@y.example"
    assert "signatures" not in event


def test_what_breaks_a_signature_is_said(tmp_path: Path, open_room: OpenRoom) -> None:
    room = open_room(policy(tmp_path, COPIER))
    send(room, "scans@office.example", "DKIM-Signature: v=1", "From: Ann <ann@office.example>")
    assert accepted(room)["signatures"] == "dkim_broken"
    envelope, _ = send(
        room, "ann@office.example", "DKIM-Signature: v=1", "From: Copier 2F <scans@office.example>"
    )
    assert envelope.reverse_path == "scans@office.example"
    assert accepted(room)["rewritten"] == "reverse_path" and "signatures" not in accepted(room)


def test_a_device_that_signs_in_sends_as_it_is_told(
    tmp_path: Path, open_room: OpenRoom, client_context: ssl.SSLContext
) -> None:
    room = open_room(policy(tmp_path, COPIER, CAMERA))
    with smtplib.SMTP("127.0.0.1", room.port, timeout=20) as client:
        client.starttls(context=client_context)
        client.login("camera", PASSWORD)
        client.sendmail("a@x", "b@other.example", "Subject: movement\r\n\r\n")
    envelope, content = room.queued[-1]
    assert (envelope.reverse_path, envelope.device) == ("camera@office.example", "camera")
    assert b"\r\nFrom: camera@office.example\r\n" in content


def test_the_null_reverse_path_stays_null(tmp_path: Path, open_room: OpenRoom) -> None:
    room = open_room(policy(tmp_path, COPIER))
    envelope, header = send(room, "", "From: x@evil.example")
    assert (envelope.reverse_path, envelope.original_reverse_path) == ("", None)
    assert header.startswith(b"From: Copier 2F <scans@office.example>\r\n")


def test_senders_of_a_device_are_allowed_beyond_the_domains(tmp_path: Path, open_room: OpenRoom) -> None:
    room = open_room(policy(tmp_path, BRANCH))
    envelope, header = send(room, "ann@branch.example", "From: ann@branch.example")
    assert (envelope.reverse_path, envelope.original_reverse_path) == ("ann@branch.example", None)
    assert header.startswith(b"From: ann@branch.example\r\nDate")
    assert "rewritten" not in accepted(room)
    assert send(room, "ann@office.example", "From: x@evil.example")[0].reverse_path == "ann@office.example"


def test_what_is_no_address_is_not_kept_as_one(tmp_path: Path, open_room: OpenRoom) -> None:
    room = open_room(policy(tmp_path))
    envelope, _ = send(room, "KONICA, MINOLTA@office.example", "From: ann@office.example")
    assert (envelope.reverse_path, envelope.original_reverse_path) == ("relay@office.example", "")
    assert accepted(room)["claimed"] == "KONICA, MINOLTA@office.example"


def test_a_sender_in_utf8_may_be_put_in(tmp_path: Path, open_room: OpenRoom) -> None:
    room = open_room(policy(tmp_path, Device("scanner-2", address="127.0.0.1", sender="büro@office.example")))
    envelope, header = send(room, "ann@office.example", "From: ann@office.example")
    assert (envelope.reverse_path, envelope.smtputf8) == ("büro@office.example", True)
    assert header.startswith("From: büro@office.example\r\n".encode())


def test_routes_see_the_sender_that_was_put_in(tmp_path: Path, open_room: OpenRoom) -> None:
    routes = (Route(("office",), senders=("relay@office.example",)),)
    room = open_room(policy(tmp_path, routes=routes))
    with room.client() as client:
        client.greeted()
        assert client.ask("MAIL FROM:<x@evil.example>", "RCPT TO:<b@other.example>").startswith("250 ")
        assert client.ask("RSET", "MAIL FROM:<ann@office.example>", "RCPT TO:<b@other.example>").startswith(
            "550 "
        )


def test_a_message_id_is_given_in_the_new_name(tmp_path: Path, open_room: OpenRoom) -> None:
    room = open_room(replace(policy(tmp_path), hostname="pi-relay.local"))
    with room.client() as client:
        client.greeted().ask("MAIL FROM:<x@evil.example>", "RCPT TO:<b@other.example>", "DATA")
        client.send(b"From: x@evil.example\r\n\r\n.\r\n")
        assert client.reply().startswith("250 ")
    assert re.search(rb"\r\nMessage-ID: <[^@>]+@office\.example>\r\n", room.queued[-1][1])


def test_swaks_is_told_why(tmp_path: Path, open_room: OpenRoom) -> None:
    room = open_room(configuration(tmp_path, submission=replace(POLICY, default_sender="")))
    command = f"swaks --server 127.0.0.1:{room.port} --from x@evil.example --to b@other.example"
    done = subprocess.run(command.split(), capture_output=True, text=True, timeout=30)
    assert "550 5.7.1 you may not send in the name of this sender" in done.stdout
    (event,) = [event for event in room.log() if event["event"] == "refused"]
    assert "x@evil.example" in event["reason"] and "default_sender" in event["reason"]


# ── octet by octet ───────────────────────────────────────────────────────────────────────────────

TEXT = st.binary(max_size=30).map(lambda text: re.sub(rb"[\r\n\0]", b"?", text))
VALUE = st.lists(TEXT, min_size=1, max_size=3).map(lambda lines: b"\r\n ".join(lines))
FIELD = st.tuples(st.sampled_from([b"Subject", b"To", b"X", b"Received", b"Cc", b"Content-Type"]), VALUE)
FROM = st.sampled_from(
    [b"", b"From: Ann <ann@office.example>\r\n", b"From: x@evil.example\r\n", b"FROM:\r\n KONICA MINOLTA\r\n"]
)
SENDER = st.sampled_from([b"", b"Sender: ann@office.example\r\n", b"Sender: x@evil.example\r\n"])


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    directory = tmp_path_factory.mktemp("senders")
    with Room(policy(directory), log_directory=directory / "log") as opened:
        yield opened


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(FIELD, max_size=3), FROM, SENDER, st.lists(FIELD, max_size=3), TEXT)
def test_what_is_accepted_is_what_is_queued(
    room: Room,
    above: list[tuple[bytes, bytes]],
    author: bytes,
    sender: bytes,
    below: list[tuple[bytes, bytes]],
    body: bytes,
) -> None:
    """But for From, Sender and Reply-To, octet by octet, whatever was done to those."""

    def fields(several: list[tuple[bytes, bytes]]) -> bytes:
        return b"".join(name + b": " + value + b"\r\n" for name, value in several)

    said = b"Date: x\r\nMessage-ID: <1@x>\r\n" + fields(above) + author + fields(below) + sender + b"\r\n"
    before = len(room.queued)
    with Client(room.port) as client:
        client.greeted().ask("MAIL FROM:<ann@office.example>", "RCPT TO:<b@other.example>", "DATA")
        client.send(said + b"x" + body + b"\r\n.\r\n")
        assert client.reply().startswith("250 ")
    envelope, content = room.queued[before]
    header = Header(content[: envelope.header_size_bytes])
    assert _without_senders(header.block).endswith(_without_senders(said))
    assert content[envelope.header_size_bytes :] == b"x" + body + b"\r\n"
    assert header.names.count(b"from") == 1 and b"evil" not in header.value(b"from") + header.value(b"sender")
    if author.startswith(b"From: Ann") and not sender:
        assert content.endswith(said + b"x" + body + b"\r\n")


def _without_senders(block: bytes) -> bytes:
    header = Header(block)
    for name in (b"from", b"sender", b"reply-to"):
        header = header.without(name)
    return header.block
