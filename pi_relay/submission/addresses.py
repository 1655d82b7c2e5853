"""The machine's own addresses: for the certificate that devices see, and for what "local" means.

Rules: asked of the kernel (rtnetlink(7)), so that every address of an interface is seen and not only its
first. An address that comes and goes by itself (temporary IPv6) does not count. It must not know TLS.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface

_RTM_NEWADDR, _RTM_GETADDR, _NLMSG_ERROR, _NLMSG_DONE = 20, 22, 2, 3
_NLM_F_REQUEST_DUMP = 0x0001 | 0x0300
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
# Temporary, failed duplicate detection, deprecated, still tentative (linux/if_addr.h).
_PASSING_FLAGS = 0x01 | 0x08 | 0x20 | 0x40
_MESSAGE = struct.Struct("=LHHLL")  # length, type, flags, sequence, port
_ADDRESS = struct.Struct("=BBBBL")  # family, prefix length, flags, scope, interface
_ATTRIBUTE = struct.Struct("=HH")  # length, type


def private_addresses() -> tuple[str, ...]:
    """All private ones (RFC 1918, RFC 4193), sorted; empty where the kernel does not answer."""
    try:
        found = set(_addresses())
    except (OSError, struct.error, ValueError):
        return ()
    return tuple(str(address) for address in sorted(found, key=lambda a: (a.version, int(a))))


def interface_addresses() -> list[tuple[str, IPv4Interface | IPv6Interface]]:
    """Every address of the machine: the interface's name, and the address with its prefix."""
    found: list[tuple[str, IPv4Interface | IPv6Interface]] = []
    with suppress(OSError, struct.error, ValueError):
        for data in _dump():
            _family, prefix_length, _, _scope, interface = _ADDRESS.unpack_from(data)
            attributes = dict(_attributes(data[_ADDRESS.size :]))
            packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
            if packed is not None:
                address = ip_interface((packed, prefix_length))
                found.append((socket.if_indextoname(interface), address))
    return found


def _addresses() -> Iterator[IPv4Address | IPv6Address]:
    for data in _dump():
        _family, _, flags, _scope, _interface = _ADDRESS.unpack_from(data)
        attributes = dict(_attributes(data[_ADDRESS.size :]))
        packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
        if packed is None or flags & _PASSING_FLAGS & ~(0x01 if len(packed) == 4 else 0):
            continue  # with IPv4 the flag 0x01 means "secondary", which is no defect
        address = ip_address(packed)
        if address.is_private and not (address.is_loopback or address.is_link_local):
            yield address


def _dump() -> Iterator[bytes]:
    """The payloads of the kernel's answer to "which addresses are there?"."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(1.0)
        size = _MESSAGE.size + _ADDRESS.size
        netlink.send(
            _MESSAGE.pack(size, _RTM_GETADDR, _NLM_F_REQUEST_DUMP, 1, 0) + _ADDRESS.pack(0, 0, 0, 0, 0)
        )
        while True:
            data = netlink.recv(65536)
            while data:
                length, kind, *_ = _MESSAGE.unpack_from(data)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < _MESSAGE.size:
                    return
                if kind == _RTM_NEWADDR:
                    yield data[_MESSAGE.size : length]
                data = data[_aligned(length) :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3
