"""TLS, signing in, and the load balancer's word, over sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pi_relay import passwords
from pi_relay.config import Device, Listener
from pi_relay.submission import auth
from tests.support.processes import free_port, wait_until
from tests.support.submission_room import (
    DEVICES,
    PASSWORD,
    PASSWORD_HASH,
    STRANGER,
    SUBMISSION,
    Client,
    Room,
    configuration,
)

OpenRoom = Callable[..., Room]


def implicit(directory: Path, **more: object) -> object:
    return configuration(directory, Listener("127.0.0.1", free_port(), tls="implicit", **more))  # type: ignore[arg-type]


def plain(user: str, password: str) -> str:
    return "AUTH PLAIN " + b64encode(f"\0{user}\0{password}".encode()).decode()


def secured(room: Room, context: ssl.SSLContext, **more: str) -> Client:
    client = room.client(**more)
    client.start_tls(context)
    return client.greeted()


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_old_tls_is_refused(version: ssl.TLSVersion, tls: str, open_room: OpenRoom, tmp_path: Path) -> None:
    room = open_room(configuration(tmp_path, Listener("127.0.0.1", free_port(), tls=tls)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = version
    with room.client() as client:
        if tls == "starttls":
            assert client.greeted().ask("STARTTLS").startswith("220 ")
        with pytest.raises(ssl.SSLError):
            client.start_tls(context)
    room.assert_nothing_is_left()
    wait_until(lambda: [event["event"] for event in room.log()] == ["refused"], 5, "the refusal in the log")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_current_tls(version: ssl.TLSVersion, open_room: OpenRoom, tmp_path: Path, authority: object) -> None:
    room = open_room(implicit(tmp_path))
    context = ssl.create_default_context(cafile=str(authority.certificate))  # type: ignore[attr-defined]
    context.minimum_version = context.maximum_version = version
    with secured(room, context) as client:
        client.ask("MAIL FROM:<a@office.example>", "RCPT TO:<b@other.example>", "DATA")
        client.send(b"Subject: s\r\n\r\n.\r\n")
        assert client.reply().startswith("250 ")
        assert client.ask("QUIT").startswith("221 ")
        assert client.rest() == b""
    assert room.log()[0]["tls"] == version.name.replace("_", ".")
    assert b"with ESMTPS id" in room.queued[0][1]


@pytest.mark.parametrize(
    "garbage", [b"", b"\x16", b"EHLO device\r\n", b"\x16\x03\x01\x02\x00" + b"\xff" * 600]
)
@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_a_handshake_that_fails_leaves_nothing(
    garbage: bytes, tls: str, open_room: OpenRoom, tmp_path: Path
) -> None:
    room = open_room(configuration(tmp_path, Listener("127.0.0.1", free_port(), tls=tls)))
    for _ in range(3):
        with room.client() as client:
            if tls == "starttls":
                assert client.greeted().ask("STARTTLS").startswith("220 ")
            client.send(garbage)
            time.sleep(0.02)
    room.assert_nothing_is_left()


def test_a_handshake_that_never_comes_is_not_waited_for(
    open_room: OpenRoom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pi_relay.submission.connection.TLS_HANDSHAKE_SECONDS", 0.3)
    room = open_room(implicit(tmp_path))
    with room.client() as client:
        assert client.rest() == b""
    room.assert_nothing_is_left()


def test_tls_in_the_middle_of_a_clear_dialogue(open_room: OpenRoom) -> None:
    """A printer set to implicit TLS on port 587: it is told at once, and does not wait for minutes."""
    room = open_room()
    with room.client() as client:
        client.send(b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + b"\x01" * 20)
        assert client.reply().startswith("220 ")
        assert client.reply()[:3] in ("421", "500")


def test_without_a_certificate_no_tls_is_offered(open_room: OpenRoom, tmp_path: Path) -> None:
    room = open_room()
    room._context = None
    with room.client() as client:
        client.reply()
        assert "STARTTLS" not in client.ask("EHLO device")
        assert client.ask("STARTTLS").startswith("454 4.7.0 ")


def test_ehlo_is_answered_in_one_packet(open_room: OpenRoom) -> None:
    """Some devices read one packet, and take it for the whole answer."""
    room = open_room()
    with room.client() as client:
        client.reply()
        client.send(b"EHLO device\r\n")
        packet = client.socket.recv(65536)
        assert packet.endswith(b"\r\n") and packet.splitlines()[-1].startswith(b"250 ")


def without_delay(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Wrong passwords are answered at once; the list gets how long each would have waited."""
    slept: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float, *_: object) -> None:
        slept.append(seconds)
        await sleep(0)

    monkeypatch.setattr(auth.asyncio, "sleep", noted)
    return slept


# ── signing in ───────────────────────────────────────────────────────────────────────────────────


def test_who_signed_in_stands_in_log_envelope_and_trace(
    open_room: OpenRoom, tmp_path: Path, client_context: ssl.SSLContext
) -> None:
    room = open_room(implicit(tmp_path))
    with secured(room, client_context) as client:
        assert client.ask(plain("scanner", PASSWORD)).startswith("235 ")
        client.ask("MAIL FROM:<a@office.example>", "RCPT TO:<b@other.example>", "DATA")
        client.send(b"Subject: s\r\n\r\n.\r\n")
        assert client.reply().startswith("250 ")
    envelope, content = room.queued[0]
    assert envelope.device == "scanner"
    assert b"with ESMTPSA id" in content
    assert b"scanner" not in content.replace(b"from device", b"")
    event = room.log()[0]
    assert (event["auth"], event["device"]) == ("scanner", "scanner")


def test_passwords_never_stand_in_the_log(
    open_room: OpenRoom, tmp_path: Path, client_context: ssl.SSLContext
) -> None:
    room = open_room(implicit(tmp_path))
    secret = "Tr0ub4dor"  # noqa: S105
    encoded = b64encode(secret.encode()).decode()
    with secured(room, client_context) as client:
        client.ask(plain("scanner", secret))
        client.ask("AUTH LOGIN", b64encode(b"scanner"), encoded)
        client.ask("AUTH LOGIN", "***", encoded)  # the password comes where a command is expected
        client.ask(f"AUTH PLAIN {encoded}")
        client.ask(encoded)
        client.ask(f"AUTH SECRET {encoded}")
    assert len(room.log()) >= 5
    for form in (secret, encoded, plain("scanner", secret)[11:], PASSWORD_HASH):
        assert form.encode() not in room.raw_log()


def test_an_unknown_user_is_checked_like_a_known_one(
    open_room: OpenRoom, tmp_path: Path, client_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []
    verify = passwords.verify

    def noted(password: str, password_hash: str) -> bool:
        checked.append(password_hash)
        return verify(password, password_hash)

    monkeypatch.setattr(passwords, "verify", noted)
    without_delay(monkeypatch)
    room = open_room(implicit(tmp_path))
    with secured(room, client_context) as client:
        known = client.ask(plain("scanner", "wrong"))
        unknown = client.ask(plain("nobody", "wrong"))
        unknown_empty = client.ask(plain("nobody", ""))
    assert known == unknown == unknown_empty
    assert known.startswith("535 5.7.8 ")
    assert checked == [PASSWORD_HASH, passwords.DUMMY_HASH, passwords.DUMMY_HASH]
    assert passwords.parse_hash(PASSWORD_HASH)[:3] == passwords.parse_hash(passwords.DUMMY_HASH)[:3]


def test_a_success_is_remembered_but_not_for_a_wrong_password(
    open_room: OpenRoom, tmp_path: Path, client_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []
    verify = passwords.verify
    monkeypatch.setattr(
        passwords, "verify", lambda word, known: (checked.append(word), verify(word, known))[1]
    )
    room = open_room(implicit(tmp_path))
    for password, code in ((PASSWORD, "235"), (PASSWORD, "235"), ("wrong", "535"), (PASSWORD, "235")):
        with secured(room, client_context) as client:
            assert client.ask(plain("scanner", password))[:3] == code
    assert checked == [PASSWORD, "wrong"]


def test_thirty_guesses_are_slowed_and_cut(
    open_room: OpenRoom, tmp_path: Path, client_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "verify", lambda *_: False)  # only our own brakes are looked at
    slept = without_delay(monkeypatch)
    room = open_room(implicit(tmp_path))
    guesses = connections = 0
    while guesses < 30:
        connections += 1
        with secured(room, client_context) as client:
            while (answer := client.ask(plain("scanner", f"guess {guesses}"))).startswith("535"):
                guesses += 1
                assert guesses < 40
            guesses += 1
            assert answer.startswith("421 4.7.0 ")
            assert client.rest() == b""
    assert connections >= 5
    delays = [seconds for seconds in slept if seconds]
    assert sum(slept) > 60  # a new connection is no new start
    assert max(delays) <= 30
    assert room.log()[-1]["event"] == "refused"


def test_guessing_does_not_hold_up_others(
    open_room: OpenRoom, tmp_path: Path, client_context: ssl.SSLContext
) -> None:
    room = open_room(implicit(tmp_path))
    with secured(room, client_context) as guesser, secured(room, client_context) as other:
        for number in range(2):
            guesser.send(f"{plain('scanner', f'guess {number}')}\r\n".encode())
        assert other.ask("NOOP").startswith("250 ")


def test_a_device_with_address_and_user_name_needs_both(
    open_room: OpenRoom, tmp_path: Path, client_context: ssl.SSLContext
) -> None:
    listener = Listener("127.0.0.1", free_port(), tls="implicit", proxy_protocol=True)
    here = Device("here", address="127.0.0.9", username="here", password_hash=PASSWORD_HASH)
    room = open_room(configuration(tmp_path, listener, devices=(*DEVICES, here)))
    with secured(room, client_context, source="127.0.0.8") as client:
        assert client.ask(plain("here", PASSWORD)).startswith("535 ")
        assert client.ask("MAIL FROM:<a@office.example>").startswith("250 ")
    with secured(room, client_context, source="127.0.0.9") as client:
        assert client.ask("MAIL FROM:<a@office.example>").startswith("530 5.7.0 ")
        assert client.ask(plain("here", PASSWORD)).startswith("235 ")
        assert client.ask("MAIL FROM:<a@office.example>").startswith("250 ")


def test_a_device_is_known_by_address(open_room: OpenRoom, tmp_path: Path) -> None:
    listener = Listener("127.0.0.1", free_port(), proxy_protocol=True)
    devices = (Device("wide", address="127.0.0.0/24"), Device("narrow", address="127.0.0.9"))
    room = open_room(configuration(tmp_path, listener, devices=devices))
    for source in ("127.0.0.9", "127.0.0.8", "127.0.1.1"):
        with room.client(source=source) as client:
            client.greeted().ask("MAIL FROM:<a@office.example>", "RCPT TO:<b@other.example>", "DATA")
            client.send(b"Subject: s\r\n\r\n.\r\n")
            assert client.reply().startswith("250 ")
    assert [envelope.device for envelope, _ in room.queued] == ["narrow", "wide", ""]
    assert [envelope.client for envelope, _ in room.queued] == ["127.0.0.9", "127.0.0.8", "127.0.1.1"]


# ── who may come at all ──────────────────────────────────────────────────────────────────────────


def test_other_networks_are_sent_away(open_room: OpenRoom, tmp_path: Path) -> None:
    room = open_room(configuration(tmp_path, Listener("127.0.0.1", free_port(), networks=("192.0.2.0/24",))))
    with room.client() as client:
        assert client.reply().startswith("554 5.7.1 ")
        assert client.rest() == b""
    assert [event["event"] for event in room.log()] == ["refused"]


def test_only_the_load_balancer_is_believed(open_room: OpenRoom, tmp_path: Path) -> None:
    """Whoever is outside the listener's networks cannot claim to be somebody else."""
    listener = Listener("127.0.0.1", free_port(), networks=("192.0.2.0/24",), proxy_protocol=True)
    room = open_room(configuration(tmp_path, listener))
    with room.client(source="192.0.2.1") as client:
        assert client.reply().startswith("554 5.7.1 ")


def test_a_mapped_address_is_the_ipv4_address(open_room: OpenRoom, tmp_path: Path) -> None:
    listener = Listener("127.0.0.1", free_port(), proxy_protocol=True)
    devices = (Device("printer", address="127.0.0.9"),)
    room = open_room(configuration(tmp_path, listener, devices=devices))
    with Client(room.port) as client:
        client.send(f"PROXY TCP6 ::ffff:127.0.0.9 ::1 4000 {room.port}\r\n".encode())
        client.greeted().ask("MAIL FROM:<a@office.example>", "RCPT TO:<b@other.example>", "DATA")
        client.send(b"Subject: s\r\n\r\n.\r\n")
        assert client.reply().startswith("250 ")
    assert room.queued[0][0].client == "127.0.0.9"
    assert room.queued[0][0].device == "printer"


SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def version_2(source: str) -> bytes:
    addresses = socket.inet_aton(source) + socket.inet_aton("127.0.0.1") + struct.pack("!HH", 4000, 25)
    return SIGNATURE + b"\x21\x11" + struct.pack("!H", len(addresses)) + addresses


def test_proxy_version_2(open_room: OpenRoom, tmp_path: Path) -> None:
    room = open_room(configuration(tmp_path, Listener("127.0.0.1", free_port(), proxy_protocol=True)))
    with Client(room.port) as client:
        client.send(version_2(STRANGER) + b"EHLO device\r\n")
        assert client.reply().startswith("220 ")
        assert client.reply().startswith("250")
        assert client.ask("MAIL FROM:<a@office.example>").startswith("530 5.7.0 ")
    with Client(room.port) as client:
        client.send(version_2("127.0.0.5"))
        assert client.greeted().ask("MAIL FROM:<a@office.example>").startswith("250 ")


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY UNKNOWN\r\n",
        SIGNATURE + b"\x21\x31" + struct.pack("!H", 216) + b"/run/x".ljust(216, b"\0"),  # a Unix socket
        SIGNATURE + b"\x21\x00\x00\x00",
    ],
    ids=["unknown", "unix", "unspecified"],
)
def test_a_client_that_the_load_balancer_does_not_name_may_not_send(
    header: bytes, open_room: OpenRoom, tmp_path: Path
) -> None:
    room = open_room(configuration(tmp_path, Listener("127.0.0.1", free_port(), proxy_protocol=True)))
    with Client(room.port) as client:
        client.send(header)
        said = client.reply()
        if said:  # it may as well be sent away
            assert said.startswith("220 ")
            client.ask("EHLO device")
            assert client.ask("MAIL FROM:<a@office.example>").startswith("530 5.7.0 ")


@pytest.mark.parametrize(
    "header",
    [
        b"EHLO device\r\n",
        b"PROXY\r\n",
        b"PROXY TCP4 localhost 127.0.0.1 1 2\r\n",
        b"PROXY TCP4 127.0.0.1\r\n",
        b"PROXY TCP4 127.0.0.1 127.0.0.1 99999 1\r\n",
        b"PROXY " + b"x" * 5000 + b"\r\n",
        SIGNATURE + b"\x11\x11\x00\x0c" + b"\0" * 12,
        SIGNATURE + b"\x21\x11\x00\x01\0",
        b"\xff" * 40,
        b"PR",
        b"",
    ],
)
def test_without_a_proper_proxy_header_nothing_is_said(
    header: bytes, open_room: OpenRoom, tmp_path: Path
) -> None:
    room = open_room(configuration(tmp_path, Listener("127.0.0.1", free_port(), proxy_protocol=True)))
    with Client(room.port) as client:
        client.send(header)
        client.socket.shutdown(socket.SHUT_WR)
        assert not client.rest().startswith(b"220")
    room.assert_nothing_is_left()


@pytest.mark.parametrize("size_bytes", [1, 6000, 40_000, 100_000])
def test_a_proxy_header_with_no_handshake_behind_it(
    size_bytes: int, open_room: OpenRoom, tmp_path: Path
) -> None:
    listener = Listener("127.0.0.1", free_port(), tls="implicit", proxy_protocol=True)
    room = open_room(configuration(tmp_path, listener))
    for garbage in (b"x" * size_bytes, b"\x16\x03\x01\x3f\xff" + b"x" * size_bytes):
        with Client(room.port) as client:
            client.send(version_2("127.0.0.1") + garbage)
            client.socket.shutdown(socket.SHUT_WR)
            client.rest()
    room.assert_nothing_is_left()


def test_networks_may_widen_by_the_file(open_room: OpenRoom, tmp_path: Path) -> None:
    listener = Listener("127.0.0.1", free_port(), proxy_protocol=True)
    submission = replace(SUBMISSION, networks=("203.0.113.0/24",))
    room = open_room(configuration(tmp_path, listener, submission=submission))
    with room.client(source=STRANGER) as client:
        assert client.greeted().ask("MAIL FROM:<a@office.example>").startswith("250 ")
    with room.client(source="127.0.0.1") as client:
        assert client.greeted().ask("MAIL FROM:<a@office.example>").startswith("530 5.7.0 ")
