"""What one client may do, and for how long; and that the others are served meanwhile."""

from __future__ import annotations

import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pi_relay.config import Device, Listener
from pi_relay.submission import connection, server, session
from tests.support.processes import free_port, wait_until
from tests.support.submission_room import DEVICES, PASSWORD, SUBMISSION, Client, Room, configuration

OpenRoom = Callable[..., Room]
NESTED = [
    line
    for depth in range(2000)
    for line in (b"--b%d" % depth, b"Content-Type: multipart/mixed; boundary=b%d" % (depth + 1), b"")
]
ENVELOPE = ("MAIL FROM:<a@office.example>", "RCPT TO:<b@other.example>", "DATA")


# ── too many, too long ───────────────────────────────────────────────────────────────────────────


def test_connections_beyond_the_limit_are_told_so(open_room: OpenRoom, tmp_path: Path) -> None:
    room = open_room(configuration(tmp_path, submission=replace(SUBMISSION, connections_max=2)))
    with room.client().greeted(), room.client().greeted() as second:
        with room.client() as third:
            assert third.reply().startswith("421 4.3.2 ")
            assert third.rest() == b""
        second.close()
        wait_until(lambda: room.server.stats().connections == 1, 5, "the place to be free")
        with room.client() as fourth:
            fourth.greeted()


def test_one_address_cannot_take_all_connections(open_room: OpenRoom, tmp_path: Path) -> None:
    listener = Listener("127.0.0.1", free_port(), proxy_protocol=True)
    submission = replace(SUBMISSION, connections_per_client_max=2)
    room = open_room(configuration(tmp_path, listener, submission=submission))
    crowd = [room.client(source="192.168.1.7").greeted() for _ in range(2)]
    with room.client(source="192.168.1.7") as third:
        assert third.reply().startswith("421 4.7.0 ")
        assert third.rest() == b""
    with room.client(source="192.168.1.8") as other:
        other.greeted()
    for client in crowd:
        client.close()


def test_known_devices_get_in_where_a_crowd_is(
    open_room: OpenRoom, tmp_path: Path, client_context: ssl.SSLContext
) -> None:
    listener = Listener("127.0.0.1", free_port(), proxy_protocol=True)
    submission = replace(SUBMISSION, connections_max=8)
    devices = (*DEVICES, Device("copier", address="127.0.0.9"))
    room = open_room(configuration(tmp_path, listener, submission=submission, devices=devices))
    with room.client(source="127.0.0.7").greeted() as scanner:
        assert scanner.ask("STARTTLS").startswith("220 ")
        scanner.start_tls(client_context)
        scanner.ask("EHLO scanner")
        assert (
            scanner.ask(f"AUTH PLAIN {b64encode(f'{chr(0)}scanner{chr(0)}{PASSWORD}'.encode()).decode()}")[:3]
            == "235"
        )
    wait_until(lambda: room.server.stats().connections == 0, 5, "the place to be free")
    crowd = [room.client(source=f"127.0.1.{number}").greeted() for number in range(8)]
    with room.client(source="127.0.1.9") as stranger:
        assert stranger.reply().startswith("421 4.3.2 ")
    with (
        room.client(source="127.0.0.9").greeted(),  # by its address
        room.client(source="127.0.0.7").greeted(),  # one that has signed in from there
        room.client(source="127.0.0.9") as third,
    ):
        assert third.reply().startswith("421 4.3.2 ")  # the places beyond have an end, too
    for client in crowd:
        client.close()


def test_three_hundred_connections_at_once(open_room: OpenRoom, tmp_path: Path) -> None:
    submission = replace(SUBMISSION, connections_max=100, connections_per_client_max=100)
    room = open_room(configuration(tmp_path, submission=submission))
    clients = [room.client() for _ in range(300)]
    codes = [client.reply()[:3] for client in clients]
    assert codes.count("220") == 100
    assert codes.count("421") == 200
    for client in clients:
        client.close()
    wait_until(lambda: room.server.stats().connections == 0, 10, "all of them to be gone")
    with room.client() as client:
        assert client.greeted().ask("NOOP").startswith("250")


def test_too_many_errors(open_room: OpenRoom) -> None:
    room = open_room()
    with room.client() as client:
        client.greeted()
        client.send(b"XYZZY\r\n" * 500)
        said = client.rest().decode().splitlines()
        assert said[-1].startswith("421 4.7.0 ")
        assert {line[:3] for line in said[:-1]} == {"500"}
        assert 5 <= len(said) <= 50


def test_commands_that_lead_nowhere_have_an_end(open_room: OpenRoom) -> None:
    room = open_room()
    with room.client() as client:
        client.greeted()
        client.send(b"EHLO device\r\n" * 5000)
        said = client.rest()
        assert said.splitlines()[-1].startswith(b"421 4.7.0 ")
        assert len(said) < 100_000


@pytest.mark.parametrize("path", [b"/", b"/" + b"x" * 600, b"/" + b"x" * 200_000])
def test_a_browser_that_is_made_to_post_mail_gets_nowhere(path: bytes, open_room: OpenRoom) -> None:
    room = open_room()
    fields = b"Host: relay:25\r\nUser-Agent: x\r\nContent-Type: text/plain\r\n\r\n"
    mail = b"EHLO x\r\nMAIL FROM:<a@office.example>\r\nRCPT TO:<b@other.example>\r\nDATA\r\n\r\n.\r\n"
    with room.client() as client:
        client.send(b"POST " + path + b" HTTP/1.1\r\n" + fields + mail)
        said = client.rest()
        assert b"354" not in said
        assert said.splitlines()[-1].startswith(b"421 ")
    assert room.queued == []


def test_our_own_defect_is_told_as_such_and_ends_one_session_only(open_room: OpenRoom) -> None:
    room = open_room()
    room.refuse_at = "defect"
    with room.client().greeted() as client, room.client().greeted() as other:
        client.send(b"MAIL FROM:<a@office.example>\r\n")
        assert client.reply()[:3] in ("421", "451")
        assert client.rest() == b""
        assert other.ask("NOOP").startswith("250 ")
    wait_until(lambda: room.defects(), 5, "the traceback in the log")
    assert any("RuntimeError" in event.get("line", "") for event in room.defects())
    room.refuse_at, room.defects = "", lambda: []  # type: ignore[method-assign]


def test_a_queue_that_is_full_for_long_drives_nobody_away(open_room: OpenRoom) -> None:
    """A device that tries again on the same connection is no attacker."""
    room = open_room()
    room.refuse_at = "begin"
    with room.client() as client:
        client.greeted()
        for _ in range(100):
            assert client.ask("MAIL FROM:<a@office.example>").startswith("452 4.3.1 ")
        room.refuse_at = ""
        assert client.ask(*ENVELOPE).startswith("354")


@pytest.mark.parametrize("line", [b"NOOP " + b"x" * 600, b"MAIL FROM:<" + b"a" * 3000 + b"@x.example>"])
def test_a_line_that_is_too_long(line: bytes, open_room: OpenRoom) -> None:
    room = open_room()
    with room.client() as client:
        client.greeted()
        assert client.ask(line).startswith("500 5.5.2 ")
        assert client.ask("NOOP").startswith("250 ")


def test_megabytes_without_a_line_end_do_not_grow_us(open_room: OpenRoom) -> None:
    room = open_room()
    with room.client() as client:
        client.greeted()
        process = psutil.Process()
        before_bytes = peak_bytes = process.memory_info().rss
        block = b"x" * 1_000_000
        try:
            for _ in range(26):
                client.send(block)
                peak_bytes = max(peak_bytes, process.memory_info().rss)
            client.send(b"\r\n")
            code = client.reply()[:3]
        except (BrokenPipeError, ConnectionResetError):
            code = "421"
        assert code in ("500", "421", "")
        assert peak_bytes - before_bytes < 8_000_000
    with room.client() as other:
        other.greeted()


def test_a_body_without_a_line_end_streams(open_room: OpenRoom, tmp_path: Path) -> None:
    submission = replace(SUBMISSION, message_size_max_bytes=50_000_000)
    room = open_room(configuration(tmp_path, submission=submission))
    room.keep_content = False
    with room.client() as client:
        assert client.greeted().ask(*ENVELOPE).startswith("354")
        process = psutil.Process()
        client.send(b"Subject: long\r\n\r\n")
        before_bytes = peak_bytes = process.memory_info().rss
        block = b"x" * 1_000_000
        for _ in range(26):
            client.send(block)
            peak_bytes = max(peak_bytes, process.memory_info().rss)
        client.send(b"\r\n.\r\n")
        assert client.reply().startswith("250 ")
        assert room.written_bytes > 26_000_000
        assert peak_bytes - before_bytes < 8_000_000


def in_data(client: Client, *lines: bytes) -> str:
    assert client.ask(*ENVELOPE).startswith("354")
    client.send(b"".join(line + b"\r\n" for line in lines) + b".\r\n")
    return client.reply()


def test_header_over_256_kib(open_room: OpenRoom) -> None:
    room = open_room()
    with room.client() as client:
        client.greeted()
        field = b"X-Long: " + b"x" * 990
        assert in_data(client, *[field] * 250, b"", b"body").startswith("250 ")
        assert in_data(client, *[field] * 270, b"", b"body").startswith("552 5.3.4 ")
        assert in_data(client, *[field] * 600, b"", b"body").startswith("552 5.3.4 ")
        assert in_data(client, b"x" * 300_000).startswith("552 5.3.4 ")
        assert in_data(client, b"Subject: s", b"", b"body").startswith("250 ")
        assert client.ask("NOOP").startswith("250 ")


def test_fifty_one_received(open_room: OpenRoom) -> None:
    room = open_room()
    with room.client() as client:
        client.greeted()
        assert in_data(client, *[b"Received: from a by b; now"] * 50, b"", b"x").startswith("250 ")
        assert in_data(client, *[b"received: from a by b; now"] * 51, b"", b"x").startswith("554 5.4.6 ")
        assert client.ask("NOOP").startswith("250 ")


@pytest.mark.parametrize(
    "header",
    [
        [b"Subject: x", *[b" y"] * 60_000],
        [b"From: " + b"(" * 50_000],
        [b"From: " + b'"\\"' * 20_000 + b"<a@office.example>"],
        [b"Content-Type: multipart/mixed; boundary=x", *[b"X:"] * 40_000],
        [b"Content-Type: multipart/mixed; boundary=b0", b"", *NESTED],
        [b"Received: from a by b; now"] * 110,
    ],
    ids=["continuations", "parentheses", "quotes", "fields", "nested", "received"],
)
def test_messages_built_to_be_slow_delay_nobody(header: list[bytes], open_room: OpenRoom) -> None:
    room = open_room()
    with room.client() as slow, room.client() as other:
        slow.greeted()
        other.greeted()
        assert slow.ask(*ENVELOPE).startswith("354")
        slow.send(b"".join(line + b"\r\n" for line in header) + b"\r\n.\r\n")
        asked_at = time.monotonic()
        assert other.ask("NOOP").startswith("250 ")
        assert time.monotonic() - asked_at < 1.0
        assert slow.reply()[:3] in ("250", "552", "554")


# ── time ─────────────────────────────────────────────────────────────────────────────────────────


def impatient(directory: Path) -> object:
    return configuration(directory, submission=replace(SUBMISSION, idle_timeout_seconds=0.8))


def test_whoever_says_nothing_is_sent_away(open_room: OpenRoom, tmp_path: Path) -> None:
    room = open_room(impatient(tmp_path))
    with room.client() as client:
        client.greeted()
        time.sleep(0.4)
        assert client.ask("NOOP").startswith("250 ")  # whole commands put the end off
        assert client.reply().startswith("421 4.4.2 ")
        assert client.rest() == b""


def test_octet_by_octet_is_not_enough(open_room: OpenRoom, tmp_path: Path) -> None:
    room = open_room(impatient(tmp_path))
    with room.client() as client:
        client.greeted()
        began_at = time.monotonic()
        said = ""
        client.socket.settimeout(0.1)
        while not said and time.monotonic() - began_at < 10:
            try:
                client.send(b"N")
                said = client.reply()
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                break
        assert said[:3] in ("421", "")
        assert time.monotonic() - began_at < 10


def test_silence_in_data(open_room: OpenRoom, tmp_path: Path) -> None:
    room = open_room(impatient(tmp_path))
    with room.client() as client:
        assert client.greeted().ask(*ENVELOPE).startswith("354")
        client.send(b"Subject: half\r\n")
        assert client.reply().startswith("421 4.4.2 ")
    wait_until(lambda: room.aborted == 1, 5, "the message to be let go")


def test_a_slow_scan_is_waited_for(open_room: OpenRoom, tmp_path: Path) -> None:
    """Longer than the idle time in all, but never still for so long."""
    room = open_room(impatient(tmp_path))
    with room.client() as client:
        assert client.greeted().ask(*ENVELOPE).startswith("354")
        client.send(b"Subject: slow\r\n\r\n")
        for _ in range(5):
            client.send(b"x" * 2000 + b"\r\n")
            time.sleep(0.25)
        client.send(b".\r\n")
        assert client.reply().startswith("250 ")


def test_a_drip_in_data_has_an_end(
    open_room: OpenRoom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PACE_GRACE_SECONDS", 1.0)
    room = open_room(impatient(tmp_path))
    with room.client() as client:
        assert client.greeted().ask(*ENVELOPE).startswith("354")
        client.socket.settimeout(0.1)
        began_at = time.monotonic()
        said = ""
        while not said and time.monotonic() - began_at < 15:
            try:
                client.send(b"x")
                said = client.reply()
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                break
        assert time.monotonic() - began_at < 15
    wait_until(lambda: room.aborted == 1, 5, "the message to be let go")


def test_our_own_slowness_is_not_the_clients(open_room: OpenRoom, tmp_path: Path) -> None:
    room = open_room(impatient(tmp_path))
    room.call(room.may_commit.clear)
    with room.client() as client:
        client.greeted()
        client.ask(*ENVELOPE)
        client.send(b"Subject: s\r\n\r\n.\r\n")
        time.sleep(1.3)
        room.call(room.may_commit.set)
        assert client.reply().startswith("250 2.0.0 ")
        assert client.ask("NOOP").startswith("250 ")


# ── going, and what stays ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["close", "half", "reset"])
def test_leaving_during_the_commit_does_not_undo_it(how: str, open_room: OpenRoom) -> None:
    room = open_room()
    room.call(room.may_commit.clear)
    client = room.client().greeted()
    client.ask(*ENVELOPE)
    client.send(b"Subject: s\r\n\r\n.\r\n")
    wait_until(lambda: room.committing == 1, 5, "the commit to begin")
    if how == "half":
        client.socket.shutdown(socket.SHUT_WR)
    elif how == "reset":
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
    else:
        client.close()
    time.sleep(0.2)
    room.call(room.may_commit.set)
    wait_until(lambda: len(room.queued) == 1, 5, "the message to be kept")
    assert room.aborted == 0
    if how == "half":
        assert client.reply().startswith("250 2.0.0 ")
        client.close()
    assert [event["event"] for event in room.log()] == ["accepted"]


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"EH",
        b"EHLO device\r\n",
        b"EHLO device\r\nMAIL FROM:<a@office.example>\r\n",
        b"EHLO device\r\nMAIL FROM:<a@office.example>\r\nRCPT TO:<b@other.example>\r\nDATA\r\nSubject",
        b"EHLO device\r\nMAIL FROM:<a@office.example>\r\nRCPT TO:<b@other.example>\r\nDATA\r\nA: \0\r\n\r\nx",
        b"EHLO device\r\nSTARTTLS\r\n",
        b"EHLO device\r\nSTARTTLS\r\n\x16\x03\x01",
    ],
)
@pytest.mark.parametrize("reset", [False, True])
def test_whoever_leaves_leaves_nothing(said: bytes, reset: bool, open_room: OpenRoom) -> None:
    room = open_room()
    for _ in range(5):
        client = room.client()
        client.reply()
        client.send(said)
        time.sleep(0.01)
        if reset:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
    room.assert_nothing_is_left()
    assert room.queued == []


def test_no_timer_outlives_the_last_session(open_room: OpenRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SWEEP_SECONDS_MAX", 0.3)
    room = open_room()
    before = room.timers()
    for _ in range(20):
        with room.client() as client:
            client.greeted().ask("QUIT")
    wait_until(lambda: room.timers() == before, 15, "the sweep to end")


def test_a_client_that_does_not_read_is_no_burden(
    open_room: OpenRoom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "FLUSH_SECONDS", 0.5)
    room = open_room(impatient(tmp_path))
    client = Client(room.port)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    client.socket.setblocking(False)
    try:
        for _ in range(2000):
            client.socket.send(b"EHLO device\r\nNOOP\r\nRSET\r\n" * 100)
    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
        pass
    wait_until(lambda: room.server.stats().connections == 0, 15, "the session to be ended")
    client.close()


# ── an idle connection ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("tls", "limit_bytes"), [(False, 24_000), (True, 96_000)])
def test_what_an_idle_connection_costs(
    tls: bool, limit_bytes: int, open_room: OpenRoom, client_context: ssl.SSLContext
) -> None:
    """Both ends are in this process; the limit is that of both."""
    room = open_room()
    clients: list[Client] = []

    def connect(count: int) -> None:
        for _ in range(count):
            client = room.client().greeted()
            if tls:
                client.ask("STARTTLS")
                client.start_tls(client_context)
                client.ask("EHLO device")
            clients.append(client)

    connect(20)
    before_bytes = psutil.Process().memory_info().rss
    connect(50)
    cost_bytes = (psutil.Process().memory_info().rss - before_bytes) / 50
    for client in clients:
        client.close()
    assert cost_bytes < limit_bytes
