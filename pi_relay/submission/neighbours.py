"""The neighbour table: which hardware address an address of the same link has (arp(7), RFC 4861).

Rules: what the kernel knows already; nobody is asked on the wire. An entry that the kernel does not believe
is left out, and so is an address that seems to be two machines. What was read is believed for a moment; for
an address that was not there then, the kernel is asked anew: its owner may just have come. It must not know
what a hardware address is worth.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from pi_relay import maillog
from pi_relay.submission import netlink
from pi_relay.submission.interfaces import Address

_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, interface, state, flags, type
_NDA_DST, _NDA_LLADDR = 1, 2
# Not yet answered, not answered at all, never asked (linux/neighbour.h).
_UNKNOWN_STATES = 0x01 | 0x20 | 0x40
_MAC_SIZE = 6

BELIEVED_SECONDS = 1.0


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


class NeighbourTable:
    """Asked at connections, so that the kernel is not asked at each."""

    def __init__(
        self,
        read: Callable[[], Iterable[Neighbour]] = read_neighbours,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._monotonic = monotonic
        self._read_at = float("-inf")
        self._macs: dict[Address, set[tuple[int, str]]] = {}
        self._kernel_answers = True

    def mac_of(self, address: Address, interface: int = 0) -> str:
        """The hardware address of ``address``, "" where it is not known. ``interface``: 0 is any.

        Never raises: where the kernel does not answer, nobody is known.
        """
        if address.is_loopback:
            return ""
        if address not in self._macs or self._monotonic() - self._read_at >= BELIEVED_SECONDS:
            self._renew()
        macs = {mac for index, mac in self._macs.get(address, ()) if interface in (0, index)}
        return macs.pop() if len(macs) == 1 else ""

    def _renew(self) -> None:
        self._read_at = self._monotonic()
        self._macs = {}
        try:
            for known in self._read():
                self._macs.setdefault(known.address, set()).add((known.interface, known.mac))
            self._kernel_answers = True
        except OSError as problem:
            if self._kernel_answers:
                maillog.error(f"no device is known by its mac: the neighbours cannot be read ({problem})")
            self._kernel_answers = False
