"""Who may connect, who may send, and which device a client is.

Rules: judged by the configuration in force and the machine's networks of this moment. A device given by
address and user name must match in both; a user name alone beats an address alone, and the longest prefix
wins. An address is an identity only within the local networks. It must not know sessions or the queue.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from pi_relay.config import Config, Device, Listener
from pi_relay.submission.networks import Address, Networks, client_address


@dataclass(frozen=True, slots=True)
class Client:
    """What is known of a client before it says anything."""

    address: str
    local: bool  # its oddities are taken
    may_connect: bool
    may_submit: bool  # without AUTH, where the listener leaves it free
    device: Device | None  # by its address
    must_authenticate: bool  # it has the address of a device that has a user name as well


class Policy:
    def __init__(self, config: Config) -> None:
        self._networks = Networks()
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        self._submission_networks = config.submission.networks
        self._by_username = {device.username: device for device in config.devices if device.username}
        by_address = [(_network(device), device) for device in config.devices if device.address]
        self._by_address: list[tuple[IPv4Network | IPv6Network, Device]] = sorted(
            by_address, key=lambda pair: -pair[0].prefixlen
        )

    def client(self, address: Address, listener: Listener) -> Client:
        """Judge a client at its connection."""
        device = self._device_at(address)
        local = self._networks.is_local(address) or device is not None
        return Client(
            address=str(address),
            local=local,
            may_connect=device is not None or self._networks.contain(address, listener.networks),
            may_submit=device is not None or self._networks.contain(address, self._submission_networks),
            device=None if device is not None and device.username else device,
            must_authenticate=device is not None and bool(device.username),
        )

    def device_named(self, username: str, address: str) -> Device | None:
        """The device that signs in by this user name, unless it has an address and is elsewhere."""
        device = self._by_username.get(username)
        if device is None or not device.address:
            return device
        return device if client_address(address) in _network(device) else None

    def _device_at(self, address: Address) -> Device | None:
        """By the longest prefix; beyond the local networks only the gateway, where a device names it."""
        for network, device in self._by_address:
            if address in network:
                named = network.num_addresses == 1 and self._networks.is_gateway(address)
                return device if named or self._networks.is_local(address) else None
        return None


def _network(device: Device) -> IPv4Network | IPv6Network:
    return ip_network(device.address, strict=False)
