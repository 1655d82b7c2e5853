"""A load balancer's PROXY header and the client's first words of TLS, in one packet or in many."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from pi_relay.config import Listener
from tests.support.processes import free_port
from tests.support.submission_room import STRANGER, Room, configuration

OpenRoom = Callable[..., Room]


@pytest.mark.parametrize("piece_size", [100_000, 1, 60])
def test_tls_behind_a_proxy_header(
    piece_size: int, tmp_path: Path, open_room: OpenRoom, client_context: ssl.SSLContext
) -> None:
    listener = Listener("127.0.0.1", free_port(), tls="implicit", proxy_protocol=True)
    room = open_room(configuration(tmp_path, listener))
    header = f"PROXY TCP4 {STRANGER} 127.0.0.1 40000 465\r\n".encode()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", room.port), 15) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def exchange(step: Callable[[], bytes | None], before: bytes = b"") -> bytes | None:
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    said, before = before + outgoing.read(), b""
                    for start in range(0, len(said), piece_size):
                        client.sendall(said[start : start + piece_size])
                    incoming.write(client.recv(65536))

        exchange(tls.do_handshake, header)
        greeting = exchange(lambda: tls.read(1000))
        tls.write(b"EHLO device\r\nMAIL FROM:<a@office.example>\r\nQUIT\r\n")
        answers = greeting or b""
        while b"221 " not in answers:
            answers += exchange(lambda: tls.read(1000)) or b""
    assert answers.startswith(b"220 ")
    assert b"\r\n530 5.7.0 " in answers  # as who the balancer says it is
    assert [event["client"] for event in room.log()] == [STRANGER]


def test_words_in_clear_behind_a_proxy_header_are_no_handshake(tmp_path: Path, open_room: OpenRoom) -> None:
    listener = Listener("127.0.0.1", free_port(), tls="implicit", proxy_protocol=True)
    room = open_room(configuration(tmp_path, listener))
    with socket.create_connection(("127.0.0.1", room.port), 15) as client:
        client.sendall(f"PROXY TCP4 {STRANGER} 127.0.0.1 40000 465\r\nEHLO device\r\n".encode())
        said = client.recv(1000)
    assert b"220" not in said
    [event] = room.log()
    assert event["reason"].startswith("TLS handshake: ")
