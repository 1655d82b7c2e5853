"""What we lean on of aiosmtpd and of asyncio's streams: a release that changes it fails here first."""

from __future__ import annotations

import asyncio
import inspect
import socket
import struct
from asyncio import sslproto

import pytest
from aiosmtpd import smtp
from aiosmtpd.proxy_protocol import PROTO, V2_CMD, get_proxy

from pi_relay.submission import connection
from pi_relay.submission.connection import Connection


def test_connection_made_sets_up_reader_writer_and_one_task() -> None:
    """What it calls of ours, and in which order."""

    class Probe(smtp.SMTP):
        made: list[str]

        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            self.made = []
            asyncio.StreamReaderProtocol.__init__(
                self,
                asyncio.StreamReader(limit=1000, loop=loop),
                client_connected_cb=self._cb_client_connected,
                loop=loop,
            )
            self.loop = loop
            self.transport = None
            self._original_transport = None

        def _create_session(self) -> smtp.Session:
            self.made.append("session")
            return smtp.Session(self.loop)

        def _create_envelope(self) -> smtp.Envelope:
            self.made.append("envelope")
            return smtp.Envelope()

        def _reset_timeout(self, duration: float | None = None) -> None:
            self.made.append("timeout")

        async def _handle_client(self) -> None:
            self.made.append("dialogue")

        def connection_lost(self, error: Exception | None) -> None:
            asyncio.StreamReaderProtocol.connection_lost(self, error)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        probe = Probe(loop)
        transport, _ = await loop.connect_accepted_socket(lambda: probe, ours)
        await asyncio.sleep(0)
        assert probe.made == ["envelope", "session", "timeout", "dialogue"]
        assert probe.transport is transport is probe._writer.transport
        assert isinstance(probe._handler_coroutine, asyncio.Task)
        theirs.sendall(b"hello")
        await probe._reader._wait_for_data("test")  # type: ignore[attr-defined]
        assert probe._reader._buffer == bytearray(b"hello")  # type: ignore[attr-defined]
        theirs.close()
        await probe._reader._wait_for_data("test")  # type: ignore[attr-defined]
        assert probe._reader._eof  # type: ignore[attr-defined]
        assert probe._reader._waiter is None  # type: ignore[attr-defined]
        transport.close()

    asyncio.run(run())


def test_the_reader_pauses_beyond_twice_its_limit_and_resumes_when_waited_on() -> None:
    class Transport(asyncio.Transport):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[str] = []

        def pause_reading(self) -> None:
            self.asked.append("pause")

        def resume_reading(self) -> None:
            self.asked.append("resume")

    async def run() -> None:
        reader = asyncio.StreamReader(limit=10)
        transport = Transport()
        reader.set_transport(transport)
        reader.feed_data(b"x" * 20)
        assert transport.asked == []
        reader.feed_data(b"x")
        assert transport.asked == ["pause"]
        reader._buffer.clear()  # type: ignore[attr-defined]
        waiting = asyncio.ensure_future(reader._wait_for_data("test"))  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        assert transport.asked == ["pause", "resume"]
        reader._wakeup_waiter()  # type: ignore[attr-defined]
        await waiting

    asyncio.run(run())


def test_sizes_that_we_set_are_still_there_to_set() -> None:
    assert sslproto.SSLProtocol.max_size == 32 * 1024
    assert "self.max_size" in inspect.getsource(sslproto.SSLProtocol.__init__)
    from asyncio import selector_events

    assert selector_events._SelectorSocketTransport.max_size == 256 * 1024  # type: ignore[attr-defined]
    assert "self.max_size" in inspect.getsource(selector_events._SelectorSocketTransport)  # type: ignore[attr-defined]


def test_flow_control_is_where_it_was() -> None:
    async def run() -> None:
        session = Connection(asyncio.get_running_loop())
        assert session._paused is False
        session.pause_writing()
        assert session._paused is True
        waiting = asyncio.ensure_future(session._drain_helper())
        await asyncio.sleep(0)
        assert not waiting.done()
        session.resume_writing()
        await waiting

    asyncio.run(run())


def test_what_we_replace_is_what_connection_made_calls() -> None:
    for name in ("_create_session", "_create_envelope", "_reset_timeout", "_handle_client", "eof_received"):
        assert name in vars(smtp.SMTP)
        assert name in vars(Connection)
    # Stock commands would answer without an enhanced status: none of ours may reach them by name.
    assert not [name for name in vars(Connection) if name.startswith("smtp_")]


V2 = b"\r\n\r\n\0\r\nQUIT\n"


@pytest.mark.parametrize(
    ("header", "source"),
    [
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 40000 25\r\n", "203.0.113.9"),
        (b"PROXY TCP6 2001:db8::9 2001:db8::1 40000 25\r\n", "2001:db8::9"),
        (
            V2 + struct.pack("!BBH4s4sHH", 0x21, 0x11, 12, bytes([203, 0, 113, 9]), bytes(4), 40000, 25),
            "203.0.113.9",
        ),
    ],
)
def test_the_proxy_header_names_the_client(header: bytes, source: str) -> None:
    async def run() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(header + b"EHLO")
        proxied = await get_proxy(reader)
        assert proxied
        assert proxied.protocol == PROTO.STREAM
        assert str(proxied.src_addr) == source
        assert await reader.read(10) == b"EHLO"

    asyncio.run(run())


def test_the_proxy_header_of_a_health_check_and_of_nobody() -> None:
    async def run() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(V2 + struct.pack("!BBH", 0x20, 0, 0) + b"PROXY UNKNOWN\r\n")
        local = await get_proxy(reader)
        assert local
        assert local.command == V2_CMD.LOCAL
        unknown = await get_proxy(reader)
        assert unknown
        assert unknown.src_addr is None

    asyncio.run(run())


@pytest.mark.parametrize(
    "header",
    [b"EHLO me\r\n", b"PROXY TCP4 x y 1 2\r\n", b"PROXY " + b"x" * 200 + b"\r\n", V2 + b"\xff\xff\0\0"],
)
def test_a_bad_proxy_header_is_false_and_raises_nothing(header: bytes) -> None:
    async def run() -> None:
        reader = asyncio.StreamReader(limit=connection.READ_AHEAD_BYTES)
        reader.feed_data(header)
        reader.feed_eof()
        assert not await get_proxy(reader)

    asyncio.run(run())
