"""A DNS server in this process that answers as a script says: late, never, with lies, or by the book.

    script = {("office.example", "MX"): says("10 mail.office.example."), ("dead.example", "MX"): silence}

A question that the script does not know is answered with NXDOMAIN. All are noted in ``asked``, as
("office.example", "MX", "udp").
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.support.processes import free_port

Query = dns.message.QueryMessage
Question = tuple[str, str]
# What is sent in turn for a query; "udp" or "tcp" tells how it came.
Behaviour = Callable[[Query, str], AsyncIterator[bytes]]


def says(*records: str, ttl_seconds: int = 60) -> Behaviour:
    """The records, or none at all (NODATA)."""

    async def behave(query: Query, transport: str) -> AsyncIterator[bytes]:
        yield _response(query, *records, ttl_seconds=ttl_seconds).to_wire(max_size=65_535)

    return behave


def fails_with(rcode: str) -> Behaviour:
    async def behave(query: Query, transport: str) -> AsyncIterator[bytes]:
        response = _response(query)
        response.set_rcode(dns.rcode.from_text(rcode))
        yield response.to_wire()

    return behave


async def silence(query: Query, transport: str) -> AsyncIterator[bytes]:
    return
    yield b""


async def garbage(query: Query, transport: str) -> AsyncIterator[bytes]:
    yield os.urandom(40)


def late(seconds: float, then: Behaviour) -> Behaviour:
    async def behave(query: Query, transport: str) -> AsyncIterator[bytes]:
        await asyncio.sleep(seconds)
        async for each in then(query, transport):
            yield each

    return behave


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """One for each query; the last one stays."""
    remaining = list(behaviours)

    async def behave(query: Query, transport: str) -> AsyncIterator[bytes]:
        now = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        async for each in now(query, transport):
            yield each

    return behave


def forged_first(lie: Behaviour, truth: Behaviour) -> Behaviour:
    """An answer with a wrong id comes before the right one, as an attacker's guess would."""

    async def behave(query: Query, transport: str) -> AsyncIterator[bytes]:
        async for each in lie(query, transport):
            yield struct.pack("!H", query.id ^ 1) + each[2:]
        await asyncio.sleep(0.05)
        async for each in truth(query, transport):
            yield each

    return behave


def too_large_for_udp(then: Behaviour, *, even_over_tcp: bool = False) -> Behaviour:
    """TC is set, and nothing is said (RFC 2181 9)."""

    async def behave(query: Query, transport: str) -> AsyncIterator[bytes]:
        if transport == "udp" or even_over_tcp:
            response = _response(query)
            response.flags |= dns.flags.TC
            yield response.to_wire()
        else:
            async for each in then(query, transport):
                yield each

    return behave


def without_edns(then: Behaviour) -> Behaviour:
    """An old router: FORMERR, with nothing but a header, for whatever has an OPT record."""

    async def behave(query: Query, transport: str) -> AsyncIterator[bytes]:
        if query.edns >= 0:
            yield struct.pack("!HHHHHH", query.id, 0x8181, 0, 0, 0, 0)
        else:
            async for each in then(query, transport):
                yield each

    return behave


def leads_to(*names: str) -> Behaviour:
    """A row of CNAMEs, and nothing at its end."""

    async def behave(query: Query, transport: str) -> AsyncIterator[bytes]:
        response = _response(query)
        owner = query.question[0].name.to_text()
        for name in names:
            response.answer.append(dns.rrset.from_text(owner, 60, "IN", "CNAME", name))
            owner = name
        yield response.to_wire()

    return behave


class MisbehavingDns:
    def __init__(self, script: Mapping[Question, Behaviour], *, address: str = "127.0.0.1") -> None:
        self.script = dict(script)
        self.address = address
        self.port = 0
        self.asked: list[tuple[str, str, str]] = []
        self._answering: set[asyncio.Task[None]] = set()

    @property
    def endpoint(self) -> str:
        return f"{self.address}:{self.port}"

    async def __aenter__(self) -> MisbehavingDns:
        loop = asyncio.get_running_loop()
        sock = self._bound()
        self._server = await asyncio.start_server(self._serve, self.address, self.port)
        self._transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), sock=sock)
        return self

    def _bound(self) -> socket.socket:
        """The datagram socket; at its first start, on a port that is free for TCP, and was for datagrams."""
        fixed = self.port
        while True:
            self.port = fixed or free_port()
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                sock.bind((self.address, self.port))
            except OSError:
                sock.close()
                if fixed:
                    raise
            else:
                return sock

    async def __aexit__(self, *_: object) -> None:
        for each in self._answering:
            each.cancel()
        self._transport.close()
        self._server.close()
        await self._server.wait_closed()

    def received(self, data: bytes, source: tuple[str, int], transport: asyncio.DatagramTransport) -> None:
        async def answer() -> None:
            async for each in self._behave(data, "udp"):
                transport.sendto(each, source)

        task = asyncio.get_running_loop().create_task(answer())
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            async for each in self._behave(await reader.readexactly(length), "tcp"):
                writer.write(struct.pack("!H", len(each)) + each)
        finally:
            writer.close()

    def _behave(self, data: bytes, transport: str) -> AsyncIterator[bytes]:
        query = dns.message.from_wire(data)
        assert isinstance(query, Query)
        asked = query.question[0]
        question = (asked.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(asked.rdtype))
        self.asked.append((*question, transport))
        return self.script.get(question, fails_with("NXDOMAIN"))(query, transport)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: MisbehavingDns) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._server.received(data, addr, self._transport)


def _response(query: Query, *records: str, ttl_seconds: int = 60) -> Query:
    response = dns.message.make_response(query, recursion_available=True)
    assert isinstance(response, Query)
    if records:
        asked = query.question[0]
        response.answer.append(dns.rrset.from_text(asked.name, ttl_seconds, "IN", asked.rdtype, *records))
    return response
