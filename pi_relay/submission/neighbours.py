"""The neighbour table: which hardware address an address of the same link has (arp(7), RFC 4861).

Rules: what the kernel knows already; nobody is asked on the wire. An entry that the kernel does not believe
is left out. It must not know what a hardware address is worth.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from pi_relay.submission import netlink
from pi_relay.submission.interfaces import Address

_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, interface, state, flags, type
_NDA_DST, _NDA_LLADDR = 1, 2
# Not yet answered, not answered at all, never asked (linux/neighbour.h).
_UNKNOWN_STATES = 0x01 | 0x20 | 0x40
_MAC_SIZE = 6


@dataclass(frozen=True, slots=True)
class Neighbour:
    address: Address
    interface: int  # its index, the scope of a link-local address
    mac: str  # "00:1b:a9:12:34:56"


def read_neighbours() -> list[Neighbour]:
    """All of them now. OSError where the kernel does not answer, or not as we know it."""
    try:
        return list(_neighbours())
    except (ValueError, struct.error) as error:
        raise OSError(f"the kernel's answer is not understood: {error}") from error


def _neighbours() -> Iterator[Neighbour]:
    for data in netlink.dump(netlink.GET_NEIGHBOUR, _NEIGHBOUR.size):
        _, interface, state, _, _ = _NEIGHBOUR.unpack_from(data)
        attributes = netlink.attributes(data, _NEIGHBOUR.size)
        packed, mac = attributes.get(_NDA_DST, b""), attributes.get(_NDA_LLADDR, b"")
        if state & _UNKNOWN_STATES or len(packed) not in (4, 16) or len(mac) != _MAC_SIZE:
            continue
        yield Neighbour(ip_address(packed), interface, mac.hex(":"))
