"""Listeners that the world can reach: for `check`, and for `status` of a box whose addresses have changed.

Rules: pure. What a listener lets in from far and wide, by its networks; and which public address of this
machine leads to it. A listener for the world that wants a password from everybody is meant so, and not named.
Public IPv6 addresses are everywhere, behind routers that close them: they count only where strangers are let
in.
It must not know how the machine's addresses are found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from .data import Config, Listener

# A public network smaller than these is somebody's office, and not the world.
_WIDE_IPV4_PREFIX_MAX, _WIDE_IPV6_PREFIX_MAX = 15, 31

_Address = IPv4Address | IPv6Address
_Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Exposure:
    listener: int  # its number in the file
    address: str  # the public address of this machine that leads to it, "" where it has none
    lets_in: str  # the network of the world that may connect, "" where strangers are turned away
    without_password: bool

    def in_words(self, config: Config) -> str:
        listener = config.listeners[self.listener]
        host = f"[{listener.host}]" if ":" in listener.host else listener.host
        name = f"the listener {host}:{listener.port}"
        if not self.lets_in:
            return f"the world can reach {name} at {self.address}; it turns strangers away"
        right = ", to send without a password" if self.without_password else ""
        if not self.address:
            return f"{name} lets in {self.lets_in}{right}"
        return f"the world can reach {name} at {self.address}, and it lets in {self.lets_in}{right}"


def exposures(config: Config, public: Sequence[str]) -> list[Exposure]:
    """``public``: the machine's public addresses."""
    addresses = [ip_address(address) for address in public]
    found = [_exposure(config, number, addresses) for number in range(len(config.listeners))]
    return [exposure for exposure in found if exposure is not None]


def _exposure(config: Config, number: int, public: Iterable[_Address]) -> Exposure | None:
    listener = config.listeners[number]
    reached = [address for address in public if _leads_to(address, listener)]
    for network in _wide(listener.networks):
        without_password = listener.auth != "required" and any(
            network.version == other.version and network.overlaps(other)
            for other in _wide(config.submission.networks)
        )
        address = next((address for address in reached if address.version == network.version), None)
        if without_password or (address is not None and listener.auth != "required"):
            return Exposure(number, str(address or ""), str(network), without_password)
    address = next((address for address in reached if address.version == 4), None)
    if address is None or any(True for _ in _wide(listener.networks)):
        return None
    return Exposure(number, str(address), "", without_password=False)


def _leads_to(address: _Address, listener: Listener) -> bool:
    if listener.host in ("", "0.0.0.0", "::"):
        return listener.host == "" or (":" in listener.host) == (address.version == 6)
    return ip_address(listener.host.partition("%")[0]) == address


def _wide(networks: Iterable[str]) -> Iterator[_Network]:
    for text in networks:
        if text == "local":
            continue
        network = ip_network(text)
        widest = _WIDE_IPV4_PREFIX_MAX if network.version == 4 else _WIDE_IPV6_PREFIX_MAX
        if network.is_global and network.prefixlen <= widest:
            yield network
