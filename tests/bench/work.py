"""The pieces of work, each done once by one contestant on a fresh instance: work -> {measurement: value}."""

from __future__ import annotations

import os
import re
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench.systems import (
    PI_RELAY_ATTACKED,
    PI_RELAY_CROWDED,
    PI_RELAY_JUDGING,
    PI_RELAY_SIGNING,
    Contestant,
    System,
)
from tests.support.attacks import ATTACKS, Attack
from tests.support.dns_server import DnsServer
from tests.support.namespaces import own_network
from tests.support.processes import cpu_seconds, free_port, memory_bytes
from tests.support.sdcard import Costs, SdCard
from tests.support.sinks import SmtpSink, smtp_source, smtp_sources

MB = 1_000_000
SMALL_BYTES = 2048
LARGE_BYTES = 25 * MB
IDLE_CONNECTIONS = 1000
DOMAINS = 200
WARMING = 100  # messages before a measurement
CARD_BYTES = 1 << 30
COMMIT_INTERVAL_SECONDS = 5  # ext4's: what a message left behind in memory has reached the disk after it

Measurements = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of each work; the rounds are of every contestant, in turn."""

    rounds: int = 5
    outage_rounds: int = 3
    relayed: int = 4000
    accepted: int = 200
    large: int = 20
    queued: int = 10_000
    settle_seconds: float = 15
    idle_seconds: float = 60
    card_relayed: int = 2000
    card_accepted: int = 60
    attacked: int = 30
    direct_each: int = 10


QUICK = Scale(1, 1, 300, 20, 4, 300, 3, 3, 200, 10, 5, 1)


def relay(contestant: Contestant, scale: Scale) -> Measurements:
    """2 KB over 20 sessions, a connection for each message, from the first connection to the last arrival."""
    return _relay_small(contestant, scale, keep_connections=False)


def relay_kept(contestant: Contestant, scale: Scale) -> Measurements:
    return _relay_small(contestant, scale, keep_connections=True)


def policy(contestant: Contestant, scale: Scale) -> Measurements:
    """As ``relay_kept``: any sender accepted, and then with the rules of an office."""
    off, on = relay_kept(contestant, scale), relay_kept(PI_RELAY_JUDGING, scale)
    return {"cpu_ms": on["cpu_ms"], "times_more": on["cpu_ms"] / off["cpu_ms"]}


def accept(contestant: Contestant, scale: Scale) -> Measurements:
    with _folder() as folder, SmtpSink(folder) as sink, _running(contestant, folder, sink.port) as system:
        return {"accept_ms": _accept_one_at_a_time(system, sink, scale.accepted)}


def large(contestant: Contestant, scale: Scale) -> Measurements:
    """25 MB over 4 sessions."""
    with _folder() as folder, SmtpSink(folder) as sink, _running(contestant, folder, sink.port) as system:
        cpu = cpu_seconds(system.pid)
        took = _load(system, sink, messages=scale.large, sessions=4, size_bytes=LARGE_BYTES)
        return {
            "mb_per_second": scale.large * LARGE_BYTES / MB / took,
            "cpu_ms": (cpu_seconds(system.pid) - cpu) / scale.large * 1000,
        }


def signed(contestant: Contestant, scale: Scale) -> Measurements:
    """As ``large``, unsigned and then with DKIM."""
    unsigned, signed = large(contestant, scale), large(PI_RELAY_SIGNING, scale)
    return {
        "mb_per_second": signed["mb_per_second"],
        "times_slower": unsigned["mb_per_second"] / signed["mb_per_second"],
        "cpu_ms": signed["cpu_ms"],
    }


def memory(contestant: Contestant, _: Scale) -> Measurements:
    """Idle, and at most while 20 messages of 25 MB come in at once and go on."""
    with _folder() as folder, SmtpSink(folder) as sink, _running(contestant, folder, sink.port) as system:
        time.sleep(2)
        idle = memory_bytes(system.pid, "Pss")
        with _peak_rss(system.pid) as peak:
            _load(system, sink, messages=20, sessions=20, size_bytes=LARGE_BYTES)
        return {"idle_pss_mb": idle / MB, "peak_rss_mb": peak[0] / MB}


def crowd(_: Contestant, __: Scale) -> Measurements:
    """1,000 connections that are let in and say nothing."""
    with _folder() as folder, _running(PI_RELAY_CROWDED, folder, free_port()) as system:
        with Attack("crowd", system.port, clients=IDLE_CONNECTIONS) as attack:
            time.sleep(4)
            pss = memory_bytes(system.pid, "Pss")
        if attack.heard != {"220": IDLE_CONNECTIONS}:
            raise RuntimeError(f"{IDLE_CONNECTIONS} connections heard {dict(attack.heard)}")
        return {"pss_mb": pss / MB}


def attacks(_: Contestant, scale: Scale) -> Measurements:
    """Of every attack: the slowest of a device's messages meanwhile, from connecting to the 250, in ms."""
    return {f"{name}_ms": _attacked(name, scale) for name in ATTACKS}


def _attacked(name: str, scale: Scale) -> float:
    content = b"Subject: a page\r\n\r\nx\r\n.\r\n"
    seconds = []
    with (
        _folder() as folder,
        _running(PI_RELAY_ATTACKED, folder, free_port()) as system,
        Attack(name, system.port),
    ):
        for _ in range(scale.attacked):
            seconds.append(_submit(system.port, content))
            time.sleep(0.2)
    return max(seconds) * 1000


def outage(contestant: Contestant, scale: Scale) -> Measurements:
    """The smart host is down while the mail comes in, and comes back after a restart of the relay."""
    smart_host_port = free_port()
    with _folder() as folder, _running(contestant, folder, smart_host_port) as system:
        enqueue_seconds = smtp_source(system.port, messages=scale.queued, sessions=20, size_bytes=SMALL_BYTES)
        time.sleep(scale.settle_seconds)
        cpu = cpu_seconds(system.pid)
        time.sleep(scale.idle_seconds)
        idle_share = (cpu_seconds(system.pid) - cpu) / scale.idle_seconds
        pss = memory_bytes(system.pid, "Pss")

        system.stop()
        started_at = time.monotonic()
        system.start()
        restart_seconds = time.monotonic() - started_at
        time.sleep(min(5, scale.settle_seconds))
        pss = max(pss, memory_bytes(system.pid, "Pss"))

        with SmtpSink(folder, port=smart_host_port) as sink:
            system.retry_all()
            first_at = sink.wait_for(1, 120)
            last_at = sink.wait_for(scale.queued, 600)
        return {
            "enqueue_rate": scale.queued / enqueue_seconds,
            "idle_cpu_percent": idle_share * 100,
            "restart_seconds": restart_seconds,
            "pss_mb": pss / MB,
            "drain_rate": (scale.queued - 1) / (last_at - first_at),
        }


def direct(contestant: Contestant, scale: Scale) -> Measurements:
    """2 KB to each of 200 domains, straight to their MX hosts in a network of their own.

    Every MX host is the one sink, at another address. Whatever UDP is sent there is a query or its answer.
    """
    names = [f"d{number}" for number in range(DOMAINS)]
    zone = "\n".join(f"{name} MX 10 mx.{name}\nmx.{name} A 127.0.1.{i + 1}" for i, name in enumerate(names))
    recipients = [f"someone@{name}.example" for name in names]
    messages = 2 * scale.direct_each * DOMAINS
    with (
        own_network(),
        _folder() as folder,
        DnsServer({"example": zone}, port=53, ttl_seconds=3600),
        SmtpSink(folder, host="", port=25) as sink,
    ):
        datagrams = _datagrams_sent()
        with _running(replace(contestant, direct=True), folder, sink.port) as system:
            cpu = cpu_seconds(system.pid)
            started_at = time.monotonic()
            for already in (0, messages // 2):
                smtp_sources(system.port, recipients, messages=scale.direct_each, sessions=20)
                last_at = sink.wait_for(already + messages // 2, 600)
            used = cpu_seconds(system.pid) - cpu
            pss = memory_bytes(system.pid, "Pss")  # with the sessions that are kept
        return {
            "rate": messages / (last_at - started_at),
            "cpu_ms": used / messages * 1000,
            "pss_mb": pss / MB,
            "queries": (_datagrams_sent() - datagrams) / 2 / DOMAINS,
            "connections": sink.connections() / messages * 1000,
        }


def _datagrams_sent() -> int:
    """In this network, so far: RFC 4113, udpOutDatagrams."""
    lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    heading, numbers = (line.split() for line in lines if line.startswith("Udp:"))
    return int(numbers[heading.index("OutDatagrams")])


def sdcard(contestant: Contestant, scale: Scale) -> Measurements:
    """As ``relay`` and ``accept``, with everything durable on an emulated SD card."""
    with (
        _folder() as folder,
        SmtpSink(folder) as sink,
        SdCard(folder, size_bytes=CARD_BYTES, costs=Costs()) as card,
        _running(contestant, folder, sink.port, card.path) as system,
    ):
        _warm_up(system, sink)
        time.sleep(COMMIT_INTERVAL_SECONDS + 1)
        before = card.counters()
        took = _load(system, sink, messages=scale.card_relayed, sessions=20, size_bytes=SMALL_BYTES)
        time.sleep(COMMIT_INTERVAL_SECONDS + 1)
        used = card.counters() - before
        return {
            "rate": scale.card_relayed / took,
            "device_kb": used.bytes_written / scale.card_relayed / 1000,
            "device_flushes": used.flushes / scale.card_relayed,
            "accept_ms": _accept_one_at_a_time(system, sink, scale.card_accepted),
        }


def _relay_small(contestant: Contestant, scale: Scale, *, keep_connections: bool) -> Measurements:
    with _folder() as folder, SmtpSink(folder) as sink:
        with _running(contestant, folder, sink.port) as system:
            _warm_up(system, sink)
            cpu = cpu_seconds(system.pid)
            took = _load(
                system,
                sink,
                messages=scale.relayed,
                sessions=20,
                size_bytes=SMALL_BYTES,
                keep_connections=keep_connections,
            )
            time.sleep(0.5)  # what it still does for them after they have arrived
            used = cpu_seconds(system.pid) - cpu
        return {
            "rate": scale.relayed / took,
            "cpu_ms": used / scale.relayed * 1000,
            "connections": sink.connections() / (scale.relayed + WARMING) * 1000,  # all have ended by now
        }


def _load(
    system: System,
    sink: SmtpSink,
    *,
    messages: int,
    sessions: int,
    size_bytes: int,
    keep_connections: bool = False,
) -> float:
    """Seconds from the first connection until the sink has the last message."""
    already = sink.count()
    started_at = time.monotonic()
    smtp_source(
        system.port,
        messages=messages,
        sessions=sessions,
        size_bytes=size_bytes,
        keep_connections=keep_connections,
    )
    return sink.wait_for(already + messages, 600) - started_at


def _warm_up(system: System, sink: SmtpSink) -> None:
    _load(system, sink, messages=WARMING, sessions=20, size_bytes=SMALL_BYTES)


def _accept_one_at_a_time(system: System, sink: SmtpSink, messages: int) -> float:
    """The median, in ms, from connecting to the 250 for the message; each arrives before the next starts."""
    _warm_up(system, sink)
    content = (b"Subject: a page\r\n\r\n" + (b"x" * 70 + b"\r\n") * (SMALL_BYTES // 72)) + b".\r\n"
    seconds = []
    for _ in range(messages):
        already = sink.count()
        seconds.append(_submit(system.port, content))
        sink.wait_for(already + 1, 60)
    return statistics.median(seconds) * 1000


def _submit(port: int, content: bytes) -> float:
    started_at = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        replies = connection.makefile("rb")
        _expect(replies.readline, b"220")
        for command, code in (
            (b"EHLO printer.office.example\r\n", b"250"),
            (b"MAIL FROM:<printer@office.example>\r\n", b"250"),
            (b"RCPT TO:<someone@office.example>\r\n", b"250"),
            (b"DATA\r\n", b"354"),
            (content, b"250"),
        ):
            connection.sendall(command)
            _expect(replies.readline, code)
        took = time.monotonic() - started_at
        connection.sendall(b"QUIT\r\n")
        replies.readline()
    return took


def _expect(readline: object, code: bytes) -> None:
    assert callable(readline)
    line = readline()
    while line[3:4] == b"-":
        line = readline()
    if not line.startswith(code):
        raise RuntimeError(f"expected {code.decode()}, got {line!r}")


@contextmanager
def _peak_rss(pid: int) -> Iterator[list[float]]:
    """The family's largest RSS meanwhile, in a list of one: of samples and the root's own high-water mark."""
    peak = [0.0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], memory_bytes(pid, "Rss"))

    Path(f"/proc/{pid}/clear_refs").write_text("5")  # begins a new high-water mark: proc(5)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        status = Path(f"/proc/{pid}/status").read_text()
        high_water = re.search(r"VmHWM:\s*(\d+)", status)
        assert high_water is not None
        peak[0] = max(peak[0], int(high_water[1]) * 1024)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        yield Path(name)


@contextmanager
def _running(
    contestant: Contestant, folder: Path, smart_host_port: int, storage: Path | None = None
) -> Iterator[System]:
    system = contestant.system(folder / "system", smart_host_port, storage)
    os.sync()  # nobody pays for what the one before left behind
    system.start()
    try:
        yield system
    finally:
        system.stop()
