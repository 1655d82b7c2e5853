"""Which networks are "local", as the machine's interfaces are now.

Rules: loopback always; of each interface that is up and no tunnel or container's bridge its IPv4 prefix where
that is private (RFC 1918), and then its on-link IPv6 prefixes and fe80::/10 too. A public address adds
nothing, 100.64.0.0/10 never counts. Where the kernel does not answer, only loopback is local: never more.
It must not know what being local entitles to.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from pi_relay.submission import netlink

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LOOPBACK: tuple[Network, ...] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
LINK_LOCAL = IPv6Network("fe80::/10")
RFC_1918 = tuple(IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
ON_LINK_PREFIX_MIN = 48  # a wider IPv6 route without a gateway is no office's link


@dataclass(frozen=True, slots=True)
class LocalNetworks:
    networks: tuple[Network, ...] = LOOPBACK
    link_local_interfaces: frozenset[int] = frozenset()  # whose fe80::/10 counts
    gateways: frozenset[Address] = frozenset()  # of default routes

    def contains(self, address: Address, interface: int) -> bool:
        """``interface``: the scope of a link-local address, else 0. A gateway is not excluded here."""
        if address.version == 6 and address in LINK_LOCAL:
            return interface in self.link_local_interfaces
        return any(address in network for network in self.networks if network.version == address.version)


@dataclass(frozen=True, slots=True)
class Link:
    """An interface as the kernel describes it."""

    index: int
    up: bool
    hardware: int  # ARPHRD_*
    kind: str  # "" for real hardware, else "bridge", "veth", "wireguard" ...
    bridge: int  # the interface it is a port of, 0: none


@dataclass(frozen=True, slots=True)
class Route:
    interface: int
    destination: Network
    gateways: tuple[Address, ...]


def read_local_networks() -> LocalNetworks:
    """What is local now. OSError where the kernel does not answer, or not as we know it."""
    try:
        links = [_link(data) for data in netlink.dump(netlink.GET_LINK, _LINK.size)]
        addresses = [_interface_address(data) for data in netlink.dump(netlink.GET_ADDRESS, _ADDRESS.size)]
        routes = [route for data in netlink.dump(netlink.GET_ROUTE, _ROUTE.size) for route in _route(data)]
    except (LookupError, ValueError, struct.error) as error:
        raise OSError(f"the kernel's answer is not understood: {error}") from error
    return judge(links, addresses, routes)


def judge(links: list[Link], addresses: list[tuple[int, Network]], routes: list[Route]) -> LocalNetworks:
    """The rules, without the kernel: ``addresses`` are (interface, its prefix)."""
    own = {
        link.index for link in links if link.up and not _is_tunnel(link) and not _is_inner_bridge(link, links)
    }
    private = [
        (index, network)
        for index, network in addresses
        if index in own and network.version == 4 and any(network.subnet_of(block) for block in RFC_1918)
    ]
    office = {index for index, _ in private}
    on_link = [
        route.destination
        for route in routes
        if route.interface in office
        and not route.gateways
        and route.destination.version == 6
        and ON_LINK_PREFIX_MIN <= route.destination.prefixlen < 128
        and not route.destination.subnet_of(LINK_LOCAL)
        and not route.destination.is_multicast
    ]
    gateways = {address for route in routes if route.destination.prefixlen == 0 for address in route.gateways}
    networks = dict.fromkeys([*LOOPBACK, *(network for _, network in private), *on_link])
    return LocalNetworks(tuple(networks), frozenset(office), frozenset(gateways))


# ARPHRD_ETHER: whatever looks like Ethernet and is none of the kinds below is a link of the office.
_ETHERNET = 1
_TUNNELS = frozenset(
    {"tun", "wireguard", "gretap", "ip6gretap", "erspan", "ip6erspan", "vxlan", "geneve", "bareudp", "gtp"}
    | {"l2tp", "ppp", "ovpn"}
)


def _is_tunnel(link: Link) -> bool:
    return link.hardware != _ETHERNET or link.kind in _TUNNELS


def _is_inner_bridge(link: Link, links: list[Link]) -> bool:
    """A bridge that no cable or radio is a port of joins containers or virtual machines."""
    ports = [port for port in links if port.bridge == link.index]
    return link.kind == "bridge" and all(port.kind in ("veth", "tun") for port in ports)


# ── the kernel's answers ─────────────────────────────────────────────────────────────────────────

_LINK = struct.Struct("=BxHiII")  # family, hardware, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, destination and source length, tos, table, ..., type, flags
_NEXT_HOP = struct.Struct("=HBBi")  # length, flags, hops, index
_IFF_UP = 1
_IFLA_MASTER, _IFLA_LINKINFO, _IFLA_INFO_KIND = 10, 18, 1
_IFA_ADDRESS = 1
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH = 1, 4, 5, 9
_RTN_UNICAST = 1


def _number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)


def _link(data: bytes) -> Link:
    _, hardware, index, flags, _ = _LINK.unpack_from(data)
    attributes = netlink.attributes(data, _LINK.size)
    kind = netlink.attributes(attributes.get(_IFLA_LINKINFO, b"")).get(_IFLA_INFO_KIND, b"")
    return Link(
        index=index,
        up=bool(flags & _IFF_UP),
        hardware=hardware,
        kind=kind.rstrip(b"\0").decode("ascii", "replace"),
        bridge=_number(attributes.get(_IFLA_MASTER, b"")),
    )


def _interface_address(data: bytes) -> tuple[int, Network]:
    _, prefix_length, _, _, index = _ADDRESS.unpack_from(data)
    address = netlink.attributes(data, _ADDRESS.size)[_IFA_ADDRESS]
    return index, ip_network((address, prefix_length), strict=False)


def _route(data: bytes) -> Iterator[Route]:
    family, length, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(data)
    if family not in (socket.AF_INET, socket.AF_INET6) or kind != _RTN_UNICAST:
        return
    attributes = netlink.attributes(data, _ROUTE.size)
    nothing = bytes(4 if family == socket.AF_INET else 16)
    destination = ip_network((attributes.get(_RTA_DST, nothing), length), strict=False)
    gateways = [attributes[_RTA_GATEWAY]] if _RTA_GATEWAY in attributes else []
    gateways += _gateways_of_several(attributes.get(_RTA_MULTIPATH, b""))
    yield Route(
        interface=_number(attributes.get(_RTA_OIF, b"")),
        destination=destination,
        gateways=tuple(ip_address(gateway) for gateway in gateways),
    )


def _gateways_of_several(data: bytes) -> Iterator[bytes]:
    offset = 0
    while offset + _NEXT_HOP.size <= len(data):
        length, *_ = _NEXT_HOP.unpack_from(data, offset)
        if length < _NEXT_HOP.size:
            return
        gateway = netlink.attributes(data[offset : offset + length], _NEXT_HOP.size).get(_RTA_GATEWAY)
        if gateway:
            yield gateway
        offset += netlink.aligned(length)
