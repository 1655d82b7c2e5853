"""Asking the kernel of its links, addresses, routes and neighbours: rtnetlink(7), as far as we need it.

Rules: one dump an answer, nothing is ever changed. It must not know what the answers are used for.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

GET_LINK, GET_ADDRESS, GET_ROUTE, GET_NEIGHBOUR = 18, 22, 26, 30  # RTM_GET*

_ERROR, _DONE = 2, 3  # NLMSG_*
_REQUEST_DUMP = 0x0001 | 0x0300  # NLM_F_*
_MESSAGE = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_ATTRIBUTE_TYPE = 0x3FFF  # the two bits above say "nested" and "network byte order"
_ANSWER_SIZE_MAX_BYTES = 1 << 18


def dump(kind: int, body_size: int) -> Iterator[bytes]:
    """The payload of each answer to "which ones are there?": a fixed body, then attributes.

    ``body_size``: of the fixed part that a request of this kind has. OSError where the kernel does not tell.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(1.0)
        netlink.send(_MESSAGE.pack(_MESSAGE.size + body_size, kind, _REQUEST_DUMP, 1, 0) + bytes(body_size))
        while True:
            data = netlink.recv(_ANSWER_SIZE_MAX_BYTES)
            offset = 0
            while offset < len(data):
                length, answer, *_ = _MESSAGE.unpack_from(data, offset)
                if answer == _ERROR or length < _MESSAGE.size:
                    raise OSError("the kernel does not tell")
                if answer == _DONE:
                    return
                yield data[offset + _MESSAGE.size : offset + length]
                offset += aligned(length)


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes of ``data`` from ``offset`` on, by type."""
    found: dict[int, bytes] = {}
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _ATTRIBUTE_TYPE] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += aligned(length)
    return found


def aligned(length: int) -> int:
    return (length + 3) & ~3
