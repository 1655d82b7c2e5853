"""Which clients are local: the word "local" of the file, as the machine's interfaces are now.

Rules: loopback always; of each interface that is up and neither a tunnel nor a container's bridge its IPv4
prefix where that is private (RFC 1918), and then its IPv6 prefixes and fe80::/10 too. Never 100.64.0.0/10,
never the default gateway's own address: behind a masquerading port forward the whole Internet has it.
Addresses come late (DHCP) and change: they are looked up again after a few seconds.
It must not know sessions or devices.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_network,
)
from pathlib import Path

from pi_relay.submission.addresses import interface_addresses

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LOCAL = "local"
LOOK_AGAIN_SECONDS = 2.0

_LOOPBACK: tuple[Network, ...] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
_PRIVATE = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
_LINK_LOCAL = IPv6Network("fe80::/10")
_UP = 0x1  # IFF_UP
# linux/if_arp.h: what is no link of one's own: PPP, tunnels over IP, and those without a link layer.
_TUNNEL_TYPES = frozenset({512, 768, 769, 776, 778, 823, 65534})
_is_container_bridge = re.compile(
    r"docker|br-[0-9a-f]{12}|podman|cni|virbr|lxcbr|lxdbr|veth|vnet|cali|flannel"
).match


@lru_cache(maxsize=4096)
def client_address(text: str) -> Address:
    """The client's address; an IPv4-mapped one (RFC 4291 2.5.5.2) as the IPv4 address that it is."""
    address = ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


class Networks:
    """Judges addresses by the networks of the file, "local" among them."""

    def __init__(self) -> None:
        self._looked_at = float("-inf")
        self._local: tuple[Network, ...] = ()
        self._gateways: frozenset[Address] = frozenset()

    def is_local(self, address: Address) -> bool:
        self._look()
        return address not in self._gateways and _within(address, self._local)

    def is_gateway(self, address: Address) -> bool:
        self._look()
        return address in self._gateways

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_at >= LOOK_AGAIN_SECONDS:
            self._looked_at = now
            self._local, self._gateways = local_networks(interface_addresses()), default_gateways()

    def contain(self, address: Address, words: Iterable[str]) -> bool:
        """Whether one of ``words``, CIDRs or "local", takes the address."""
        return any(
            self.is_local(address) if word == LOCAL else _within(address, (_network(word),)) for word in words
        )


def local_networks(addresses: Iterable[tuple[str, IPv4Interface | IPv6Interface]]) -> tuple[Network, ...]:
    """The networks of "local", from the machine's (interface name, address with its prefix)."""
    found: list[Network] = list(_LOOPBACK)
    by_interface: dict[str, list[IPv4Interface | IPv6Interface]] = {}
    for name, address in addresses:
        by_interface.setdefault(name, []).append(address)
    for name, its in by_interface.items():
        if not _counts(name):
            continue
        private = [
            each.network
            for each in its
            if isinstance(each, IPv4Interface) and any(each.network.subnet_of(net) for net in _PRIVATE)
        ]
        if private:
            found += private
            found += [each.network for each in its if isinstance(each, IPv6Interface)]
            found.append(_LINK_LOCAL)
    return tuple(dict.fromkeys(found))


def default_gateways() -> frozenset[Address]:
    """Where packets for elsewhere go (proc(5): net/route, net/ipv6_route)."""
    return frozenset((*_ipv4_gateways(), *_ipv6_gateways()))


def _ipv4_gateways() -> Iterable[Address]:
    for fields in _table("/proc/net/route"):
        if len(fields) > 2 and fields[1] == "00000000" and fields[2] != "00000000":
            yield IPv4Address(bytes.fromhex(fields[2])[::-1])


def _ipv6_gateways() -> Iterable[Address]:
    for fields in _table("/proc/net/ipv6_route"):
        if len(fields) > 4 and fields[1] == "00" and fields[4].strip("0"):
            yield IPv6Address(bytes.fromhex(fields[4]))


def _table(path: str) -> list[list[str]]:
    try:
        return [line.split() for line in Path(path).read_text(encoding="ascii").splitlines()]
    except OSError:  # a machine without that family
        return []


def _counts(name: str) -> bool:
    folder = Path("/sys/class/net") / name
    try:
        flags = int((folder / "flags").read_text(encoding="ascii"), 16)
        kind = int((folder / "type").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return False
    tunnel = kind in _TUNNEL_TYPES or (folder / "tun_flags").exists()
    return bool(flags & _UP) and not tunnel and not _is_container_bridge(name)


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


@lru_cache(maxsize=256)
def _network(text: str) -> Network:
    return ip_network(text, strict=False)
