"""Who may connect, who may send, and which device it is: by address, by listener, and by who signed in.

Rules:
- An address is judged at each connection, IPv4-mapped ones unmapped first; what the interfaces say is
  believed for LOCAL_BELIEVED_SECONDS. The default gateway is never local (a masquerading port forward arrives
  from it), unless a device is given that very address. Nobody is trusted for what he says of himself.
- A device is known by its address and mac (both, where it is given both) as soon as a local client connects:
  the longest prefix wins, and of two equal ones that with a mac. Beyond the local networks an address is no
  identity. Whoever signs in is the device of that username from then on; one that has an address or a mac
  beside it signs in from there alone.
- The neighbour table is asked only where some device has a mac.
It must not know SMTP's dialogue or sockets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network

from pi_relay import maillog, senders
from pi_relay.config import Config, Device, Listener
from pi_relay.model import Reply
from pi_relay.patterns import matches
from pi_relay.submission.interfaces import RFC_1918, Address, LocalNetworks, Network, read_local_networks
from pi_relay.submission.neighbours import Neighbour, NeighbourTable, read_neighbours
from pi_relay.submission.replies import AUTH_REQUIRED, NOT_ALLOWED

LOCAL_BELIEVED_SECONDS = 5.0
_KNOWN_CLIENTS_MAX = 1024
LOCAL = "local"
_PRIVATE: tuple[Network, ...] = (*RFC_1918, IPv6Network("fc00::/7"))  # RFC 4193


@dataclass(frozen=True, slots=True)
class Client:
    """What an address alone makes of whoever connects from it."""

    address: str  # unmapped, without a zone; "" where a proxy would not say
    local: bool  # of the office: its lapses are forgiven, and its address says which device it is
    may_send: bool  # without AUTH
    device: Device | None = None  # known by its address or mac
    mac: str = ""  # "" where it is not known, or nobody asks


NOBODY = Client("", local=False, may_send=False)


class Policy:
    """The rules of one configuration."""

    def __init__(
        self,
        config: Config,
        *,
        read_local: Callable[[], LocalNetworks] = read_local_networks,
        read_neighbours: Callable[[], Iterable[Neighbour]] = read_neighbours,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_local = read_local
        self._monotonic = monotonic
        self._local = LocalNetworks()
        self._local_read_at = float("-inf")
        self._kernel_answers = True
        self._clients: dict[tuple[str, int], Client] = {}
        self._admitted: dict[tuple[str, int, tuple[str, ...]], bool] = {}
        self._sending_networks = config.submission.networks
        self._rules = {device.name: senders.rule_for(config, device) for device in config.devices}
        self._rule_of_unknown = senders.rule_for(config, None)
        self._neighbours = NeighbourTable(read_neighbours, monotonic)
        self._asks_for_macs = any(device.mac for device in config.devices)
        self._known_before_signing_in = _by_precedence(config.devices)
        self._devices_by_username = {device.username: device for device in config.devices if device.username}

    def client(self, host: str, interface: int = 0) -> Client:
        """Who connects from ``host``, an address in text; ``interface``: its IPv6 scope."""
        self._renew()
        key = host, interface
        client = self._clients.get(key)
        if client is None:
            if len(self._clients) >= _KNOWN_CLIENTS_MAX:
                self._clients.clear()
            client = self._clients[key] = self._judge(host, interface)
        if self._asks_for_macs and client.local:
            address = ip_address(client.address)
            mac = self._neighbours.mac_of(address, interface)
            return replace(client, mac=mac, device=self._device_at(address, mac))
        return client

    def admits(self, listener: Listener, host: str, interface: int = 0) -> bool:
        """Whether ``host`` may connect to ``listener`` at all."""
        self._renew()
        key = host, interface, listener.networks
        admitted = self._admitted.get(key)
        if admitted is None:
            if len(self._admitted) >= _KNOWN_CLIENTS_MAX:
                self._admitted.clear()
            address = unmapped(host)
            admitted = self._admitted[key] = self._lies_in(listener.networks, address, interface)
        return admitted

    def is_gateway(self, host: str) -> bool:
        """Whether it is the router by which this machine reaches the world."""
        self._renew()
        return unmapped(host) in self._local.gateways

    def device_named(self, username: str) -> Device | None:
        """The device that signs in by ``username``."""
        return self._devices_by_username.get(username)

    def sender_rule(self, device: Device | None) -> senders.Rule:
        """What it may send as."""
        return self._rules.get(device.name, self._rule_of_unknown) if device else self._rule_of_unknown

    def may_sign_in(self, device: Device, client: Client) -> bool:
        """A device with an address or a mac and a username has to come from there."""
        if device.mac and device.mac != client.mac:
            return False
        return not device.address or (client.address != "" and ip_address(client.address) in _network(device))

    def may_send_to(self, device: Device | None, recipient: str) -> bool:
        return device is None or not device.recipients or matches(device.recipients, recipient)

    def refusal(self, listener: Listener, client: Client, *, authenticated: bool) -> Reply | None:
        """What MAIL is answered where this client may not send, None where it may."""
        if authenticated:
            return None
        must_sign_in = listener.auth == "required" or (
            client.device is not None and client.device.username != ""
        )
        if client.may_send and not must_sign_in:
            return None
        return NOT_ALLOWED if listener.auth == "off" else AUTH_REQUIRED

    def _judge(self, host: str, interface: int) -> Client:
        address = unmapped(host)
        may_send = self._lies_in(self._sending_networks, address, interface)
        local = self._is_local(address, interface) or (may_send and self._is_of_the_office(address))
        device = self._device_at(address, "") if local else None
        return Client(str(address).partition("%")[0], local=local, may_send=may_send, device=device)

    def _device_at(self, address: Address, mac: str) -> Device | None:
        for network, device in self._known_before_signing_in:
            if (network is None or address in network) and device.mac in ("", mac):
                return device
        return None

    def _lies_in(self, networks: Iterable[str], address: Address, interface: int) -> bool:
        return any(
            self._is_local(address, interface) if text == LOCAL else address in ip_network(text, strict=False)
            for text in networks
        )

    def _is_local(self, address: Address, interface: int) -> bool:
        if address in self._local.gateways:
            return any(
                network is not None and network.num_addresses == 1 and address in network
                for network, _ in self._known_before_signing_in
            )
        return self._local.contains(address, interface)

    def _is_of_the_office(self, address: Address) -> bool:
        """For one that the file lets send: a private network behind a router is as local as our own links."""
        is_private = any(address in network for network in _PRIVATE if network.version == address.version)
        return is_private and address not in self._local.gateways

    def _renew(self) -> None:
        """Look at the interfaces again, and forget what was judged by the old ones."""
        now = self._monotonic()
        if now - self._local_read_at < LOCAL_BELIEVED_SECONDS:
            return
        self._local_read_at = now
        self._clients.clear()
        self._admitted.clear()
        try:
            self._local = self._read_local()
            self._kernel_answers = True
        except OSError as problem:
            self._local = LocalNetworks()
            if self._kernel_answers:
                maillog.error(f"only loopback counts as local: the interfaces cannot be read ({problem})")
            self._kernel_answers = False


def unmapped(host: str) -> Address:
    """The address that ``host`` says, without its zone; ::ffff:192.0.2.1 is 192.0.2.1. ValueError: none."""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    return address


def _by_precedence(devices: Iterable[Device]) -> list[tuple[Network | None, Device]]:
    """Devices that are known before they sign in: the longest prefix first, a mac counting as one address."""
    known = [
        (_network(device) if device.address else None, device)
        for device in devices
        if device.address or device.mac
    ]

    def precedence(pair: tuple[Network | None, Device]) -> tuple[int, bool]:
        network, device = pair
        return network.max_prefixlen - network.prefixlen if network else 0, not device.mac

    return sorted(known, key=precedence)


def _network(device: Device) -> Network:
    return ip_network(device.address, strict=False)
