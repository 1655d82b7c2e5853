"""Listeners: opened all or none, swapped at a reload, closed in peace."""

from __future__ import annotations

import asyncio
import os
import smtplib
import socket
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pi_relay.config import Listener
from pi_relay.submission.server import ListenerError
from tests.support.processes import free_port, greeting, wait_until
from tests.support.submission_room import SUBMISSION, Client, Room, configuration

OpenRoom = Callable[..., Room]


def refused(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        return probe.connect_ex((host, port)) != 0


def test_every_interface_means_both_families(open_room: OpenRoom, tmp_path: Path) -> None:
    room = open_room(configuration(tmp_path, Listener("", free_port())))
    addresses = ["127.0.0.1", "::1"] if socket.has_dualstack_ipv6() else ["127.0.0.1"]
    for address in addresses:
        with smtplib.SMTP(address, room.port, timeout=10) as client:
            client.sendmail("a@office.example", "b@other.example", "Subject: s\r\n\r\nx")
    assert [envelope.client for envelope, _ in room.queued] == addresses
    for (_, content), address in zip(room.queued, addresses, strict=True):
        literal = f"[IPv6:{address}]" if ":" in address else f"[{address}]"
        assert literal.encode() in content.splitlines()[0]


def test_a_port_that_is_taken_names_its_owner_and_leaves_no_listener(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        first = Listener("127.0.0.1", free_port())
        config = configuration(tmp_path, first, Listener("127.0.0.1", port))
        with pytest.raises(ListenerError) as failure, Room(config, log_directory=tmp_path / "log"):
            pass
        words = str(failure.value)
        assert f":{port}" in words
        assert "hint" in words
        assert f"process {os.getpid()}" in words
        assert refused(first.port)


@pytest.mark.parametrize("host", ["192.0.2.77", "2001:db8::77"])
def test_an_address_that_is_not_ours(host: str, tmp_path: Path) -> None:
    config = configuration(tmp_path, Listener(host, free_port()))
    with (
        pytest.raises(ListenerError, match=r"(?s)address.*hint"),
        Room(config, log_directory=tmp_path / "log"),
    ):
        pass


def test_a_reload_keeps_opens_and_closes(open_room: OpenRoom, tmp_path: Path) -> None:
    stays, goes, comes = (Listener("127.0.0.1", free_port()) for _ in range(3))
    room = open_room(configuration(tmp_path, stays, goes))
    with room.client() as client:
        client.greeted()
        room.run(room.server.reconfigure(configuration(tmp_path, stays, comes)))
        assert client.ask("MAIL FROM:<a@office.example>").startswith("250 ")  # the session goes on
    assert refused(goes.port)
    assert greeting(comes.port).startswith(b"220 ")
    assert greeting(stays.port).startswith(b"220 ")


def test_a_reload_changes_what_a_port_offers(open_room: OpenRoom, tmp_path: Path) -> None:
    listener = Listener("127.0.0.1", free_port())
    room = open_room(configuration(tmp_path, listener))
    submission = replace(SUBMISSION, recipients_max=1, message_size_max_bytes=5000)
    clear = replace(listener, tls="off")
    room.run(room.server.reconfigure(configuration(tmp_path, clear, submission=submission)))
    with room.client() as client:
        client.reply()
        answer = client.ask("EHLO device")
        assert "STARTTLS" not in answer
        assert "SIZE 5000" in answer
        client.ask("MAIL FROM:<a@office.example>", "RCPT TO:<b@other.example>")
        assert client.ask("RCPT TO:<c@other.example>").startswith("452 4.5.3 ")


def test_a_reload_that_cannot_bind_keeps_what_was(open_room: OpenRoom, tmp_path: Path) -> None:
    room = open_room()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bad = configuration(
            tmp_path, Listener("127.0.0.1", free_port()), Listener("127.0.0.1", taken.getsockname()[1])
        )
        with pytest.raises(ListenerError):
            room.run(room.server.reconfigure(bad))
    assert greeting(room.port).startswith(b"220 ")
    assert refused(bad.listeners[0].port)


def test_a_reload_from_all_addresses_to_a_single_one_and_back(open_room: OpenRoom, tmp_path: Path) -> None:
    every = Listener("", free_port())
    single = replace(every, host="127.0.0.1")
    room = open_room(configuration(tmp_path, every))
    with room.client() as client:
        client.greeted()
        for listener in (single, every):
            room.run(room.server.reconfigure(configuration(tmp_path, listener)))
            assert greeting(every.port).startswith(b"220 ")
            hosts = {host for host, _ in room.server.addresses()}
            assert hosts == {"127.0.0.1"} if listener is single else "0.0.0.0" in hosts
        assert client.ask("NOOP").startswith("250 ")  # the session goes on


def test_what_made_way_comes_back_where_the_others_cannot_bind(open_room: OpenRoom, tmp_path: Path) -> None:
    every = Listener("", free_port())
    room = open_room(configuration(tmp_path, every))
    before = room.server.addresses()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        others = replace(every, host="127.0.0.1"), Listener("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ListenerError):
            room.run(room.server.reconfigure(configuration(tmp_path, *others)))
    assert room.server.addresses() == before
    assert greeting(every.port).startswith(b"220 ")


def test_a_new_limit_holds_for_sessions_that_are_open(open_room: OpenRoom, tmp_path: Path) -> None:
    room = open_room()
    with room.client() as client:
        client.greeted()
        fewer = replace(room.config, submission=replace(SUBMISSION, recipients_max=1))
        room.run(room.server.reconfigure(fewer))
        client.ask("MAIL FROM:<a@office.example>", "RCPT TO:<b@other.example>")
        assert client.ask("RCPT TO:<c@other.example>").startswith("452 4.5.3 ")


# ── the end ──────────────────────────────────────────────────────────────────────────────────────


def stop(room: Room, grace_seconds: float) -> asyncio.Future[None]:
    async def close() -> None:
        await room.server.stop_listening()
        await room.server.close(grace_seconds)

    return asyncio.run_coroutine_threadsafe(close(), room._loop)  # type: ignore[return-value]


def test_closing_says_good_bye_and_lets_a_message_end(
    open_room: OpenRoom, client_context: ssl.SSLContext
) -> None:
    room = open_room()
    idle, secure, busy = room.client().greeted(), room.client().greeted(), room.client().greeted()
    secure.ask("STARTTLS")
    secure.start_tls(client_context)
    busy.ask("MAIL FROM:<a@office.example>", "RCPT TO:<b@other.example>", "DATA")
    busy.send(b"Subject: s\r\n\r\nhalf")
    closing = stop(room, 10)
    assert idle.reply().startswith("421 4.3.2 ")
    assert secure.reply().startswith("421 4.3.2 ")
    assert refused(room.port)
    busy.send(b" and whole\r\n.\r\n")
    assert busy.reply().startswith("250 2.0.0 queued as ")
    assert busy.reply().startswith("421 4.3.2 ")
    closing.result(10)
    assert len(room.queued) == 1
    for client in (idle, secure, busy):
        assert client.rest() == b""
        client.close()


@pytest.mark.parametrize("stuck", ["data", "commit", "deaf"])
def test_the_grace_ends(stuck: str, open_room: OpenRoom) -> None:
    room = open_room()
    client = room.client().greeted()
    if stuck == "commit":
        room.call(room.may_commit.clear)
    if stuck == "deaf":
        client.send(b"NOOP\r\n" * 50)
    else:
        client.ask("MAIL FROM:<a@office.example>", "RCPT TO:<b@other.example>", "DATA")
        client.send(b"Subject: s\r\n\r\n" + (b".\r\n" if stuck == "commit" else b""))
    if stuck == "commit":
        wait_until(lambda: room.committing == 1, 5, "the commit")
    stop(room, 0.3).result(5)
    assert room.server.stats().connections == 0
    assert room.tasks() <= 0
    assert b"queued as" not in client.rest()
    room.call(room.may_commit.set)
    client.close()


def test_status_sees_devices_and_counts(open_room: OpenRoom) -> None:
    room = open_room()
    with room.client() as client:
        client.greeted().ask("MAIL FROM:<a@office.example>", "RCPT TO:<b@other.example>", "DATA")
        client.send(b"Subject: s\r\n\r\n.\r\n")
        client.reply()
        client.ask("MAIL")
        stats = room.server.stats()
        assert (stats.accepted, stats.refused, stats.connections) == (1, 1, 1)
        (seen,) = stats.devices
        assert (seen.address, seen.accepted, seen.refused) == ("127.0.0.1", 1, 1)


def test_an_accept_that_fails_is_no_end(open_room: OpenRoom) -> None:
    """No descriptor is left for a while; then the relay serves on."""
    import resource

    room = open_room()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(list(Path("/proc/self/fd").iterdir()))
    clients: list[Client] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 6, hard))
    try:
        while True:
            clients.append(Client(room.port, timeout_seconds=1))
    except OSError:
        pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for client in clients:
        client.close()
    wait_until(lambda: greeting(room.port).startswith(b"220 "), 10, "the relay to serve again")
    room.problems = [problem for problem in room.problems if "socket" not in problem]
