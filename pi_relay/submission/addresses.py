"""The machine's own private addresses, for the certificate that devices see.

Rules: asked of the kernel, so that every address of an interface is seen and not only its first. An address
that comes and goes by itself (temporary IPv6) does not count. It must not know TLS.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

from pi_relay.submission import netlink

_IFA_ADDRESS, _IFA_LOCAL = 1, 2
# Temporary, failed duplicate detection, deprecated, still tentative (linux/if_addr.h).
_PASSING_FLAGS = 0x01 | 0x08 | 0x20 | 0x40
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface


def private_addresses() -> tuple[str, ...]:
    """All private ones (RFC 1918, RFC 4193), sorted; empty where the kernel does not answer."""
    try:
        found = set(_addresses())
    except (OSError, struct.error, ValueError):
        return ()
    return tuple(str(address) for address in sorted(found, key=lambda a: (a.version, int(a))))


def _addresses() -> Iterator[IPv4Address | IPv6Address]:
    for data in netlink.dump(netlink.GET_ADDRESS, _ADDRESS.size):
        _family, _, flags, _scope, _interface = _ADDRESS.unpack_from(data)
        attributes = netlink.attributes(data, _ADDRESS.size)
        packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
        if packed is None or flags & _PASSING_FLAGS & ~(0x01 if len(packed) == 4 else 0):
            continue  # with IPv4 the flag 0x01 means "secondary", which is no defect
        address = ip_address(packed)
        if address.is_private and not (address.is_loopback or address.is_link_local):
            yield address
