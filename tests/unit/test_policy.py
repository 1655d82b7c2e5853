"""Who may connect, who may send, and who is whom."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path

import pytest

from pi_relay.config import Config, Device, Listener, Queue, Submission
from pi_relay.submission.interfaces import LOOPBACK, LocalNetworks
from pi_relay.submission.neighbours import BELIEVED_SECONDS, Neighbour
from pi_relay.submission.policy import LOCAL_BELIEVED_SECONDS, NOBODY, Policy

OFFICE = LocalNetworks(
    (*LOOPBACK, IPv4Network("192.168.1.0/24")), frozenset(), frozenset({IPv4Address("192.168.1.1")})
)
OPTIONAL, REQUIRED, OFF = (Listener("", 25, auth=auth) for auth in ("optional", "required", "off"))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def policy(
    *devices: Device,
    networks: tuple[str, ...] = ("local",),
    local: LocalNetworks = OFFICE,
    neighbours: Iterable[Neighbour] = (),
    clock: Clock | None = None,
) -> Policy:
    config = Config(
        hostname="relay.example",
        queue=Queue(Path("queue")),
        submission=Submission(networks=networks),
        devices=devices,
    )
    return Policy(
        config, read_local=lambda: local, read_neighbours=lambda: neighbours, monotonic=clock or Clock()
    )


def name_at(judged: Policy, host: str, interface: int = 0) -> str:
    device = judged.client(host, interface).device
    return device.name if device else ""


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("192.168.1.23", True),
        ("::ffff:192.168.1.23", True),
        ("192.168.1.1", False),  # the default gateway
        ("::ffff:192.168.1.1", False),
        ("192.168.2.23", False),
        ("203.0.113.9", False),
        ("100.64.0.5", False),
        ("2001:db8::1", False),
    ],
)
def test_who_is_local(host: str, local: bool) -> None:
    client = policy().client(host)
    assert (client.local, client.may_send) == (local, local)
    assert policy().admits(OPTIONAL, host) is local


def test_an_address_is_named_unmapped() -> None:
    assert policy().client("::ffff:192.168.1.23").address == "192.168.1.23"
    assert policy().client("fe80::1%eth0", 2).address == "fe80::1"


def test_a_gateway_that_is_a_device_is_local() -> None:
    assert policy(Device("router", address="192.168.1.1")).client("192.168.1.1").may_send
    assert not policy(Device("all", address="192.168.1.0/24")).client("192.168.1.1").may_send


def test_networks_of_the_file_add_to_local() -> None:
    judged = policy(networks=("local", "203.0.113.0/24", "2001:db8::/32"))
    assert judged.client("203.0.113.9").may_send
    assert judged.client("2001:db8::9").may_send
    assert not judged.admits(OPTIONAL, "203.0.113.9")
    assert judged.admits(Listener("", 25, networks=("0.0.0.0/0",)), "203.0.113.9")
    closed = policy(networks=())
    assert closed.client("127.0.0.1").local
    assert not closed.client("127.0.0.1").may_send


@pytest.mark.parametrize(
    ("listener", "host", "authenticated", "code"),
    [
        (OPTIONAL, "192.168.1.23", False, None),
        (OPTIONAL, "203.0.113.9", False, 530),
        (OPTIONAL, "203.0.113.9", True, None),
        (REQUIRED, "192.168.1.23", False, 530),
        (REQUIRED, "127.0.0.1", False, 530),
        (REQUIRED, "192.168.1.23", True, None),
        (OFF, "192.168.1.23", False, None),
        (OFF, "203.0.113.9", False, 550),
    ],
)
def test_who_may_send(listener: Listener, host: str, authenticated: bool, code: int | None) -> None:
    judged = policy()
    refusal = judged.refusal(listener, judged.client(host), authenticated=authenticated)
    assert (refusal and refusal.code) == code


def test_nobody_may_send_without_auth() -> None:
    refusal = policy().refusal(OPTIONAL, NOBODY, authenticated=False)
    assert refusal is not None
    assert refusal.code == 530


def test_the_longest_prefix_names_the_device() -> None:
    judged = policy(
        Device("floor", address="192.168.1.0/25"),
        Device("copier", address="192.168.1.23"),
        Device("office", address="192.168.1.0/24"),
    )
    names = [name_at(judged, host) for host in ("192.168.1.23", "192.168.1.24", "192.168.1.200")]
    assert names == ["copier", "floor", "office"]


def test_a_device_with_address_and_username_needs_both() -> None:
    copier = Device("copier", address="192.168.1.23", username="copier")
    judged = policy(copier)
    here, elsewhere = judged.client("192.168.1.23"), judged.client("192.168.1.24")
    assert judged.device_named("copier") is copier
    assert judged.may_sign_in(copier, here)
    assert not judged.may_sign_in(copier, elsewhere)
    assert not judged.may_sign_in(copier, NOBODY)
    refusal = judged.refusal(OPTIONAL, here, authenticated=False)
    assert refusal is not None
    assert refusal.code == 530
    assert judged.refusal(OPTIONAL, elsewhere, authenticated=False) is None


def test_beyond_the_local_networks_an_address_is_no_identity() -> None:
    branch = Device("branch", address="203.0.113.9", username="branch")
    judged = policy(branch, Device("all", address="0.0.0.0/0"), networks=("local", "203.0.113.0/24"))
    outside = judged.client("203.0.113.9")
    assert outside.may_send and not outside.local and outside.device is None
    assert judged.may_sign_in(branch, outside) and not judged.may_sign_in(
        branch, judged.client("203.0.113.8")
    )
    assert name_at(judged, "192.168.1.9") == "all"


def test_a_network_of_the_office_behind_a_router_is_local() -> None:
    judged = policy(Device("depot", address="10.9.0.0/16"), networks=("local", "10.9.0.0/16", "fd00:9::/64"))
    assert judged.client("10.9.1.1").local and name_at(judged, "10.9.1.1") == "depot"
    assert judged.client("fd00:9::1").local
    assert not policy().client("10.9.1.1").local
    assert not policy(networks=("192.168.0.0/16",)).client("192.168.1.1").local, "the gateway"


# ── by mac ───────────────────────────────────────────────────────────────────────────────────────

MAC, OTHER_MAC = "00:1b:a9:12:34:56", "00:1b:a9:12:34:57"


def at(address: str, mac: str, interface: int = 2) -> Neighbour:
    packed = IPv6Address(address) if ":" in address else IPv4Address(address)
    return Neighbour(packed, interface, mac)


def test_a_mac_names_the_device_wherever_dhcp_puts_it() -> None:
    judged = policy(
        Device("camera", mac=MAC), neighbours=[at("192.168.1.40", MAC), at("192.168.1.41", OTHER_MAC)]
    )
    assert name_at(judged, "192.168.1.40") == "camera"
    assert name_at(judged, "::ffff:192.168.1.40") == "camera"
    assert name_at(judged, "192.168.1.41") == ""
    assert name_at(judged, "192.168.1.42") == ""
    assert judged.client("192.168.1.40").mac == MAC


def test_a_device_with_address_and_mac_needs_both() -> None:
    judged = policy(
        Device("camera", address="192.168.1.40", mac=MAC),
        Device("floor", address="192.168.1.0/24"),
        neighbours=[at("192.168.1.40", OTHER_MAC), at("192.168.1.41", MAC)],
    )
    assert [name_at(judged, host) for host in ("192.168.1.40", "192.168.1.41")] == ["floor", "floor"]
    judged = policy(Device("camera", address="192.168.1.40", mac=MAC), neighbours=[at("192.168.1.40", MAC)])
    assert name_at(judged, "192.168.1.40") == "camera"


def test_a_mac_beats_the_same_address_alone() -> None:
    devices = Device("desk", address="192.168.1.40"), Device("camera", mac=MAC)
    for order in (devices, devices[::-1]):
        assert name_at(policy(*order, neighbours=[at("192.168.1.40", MAC)]), "192.168.1.40") == "camera"
        assert name_at(policy(*order), "192.168.1.40") == "desk"


def test_a_device_with_mac_and_username_needs_both() -> None:
    camera = Device("camera", mac=MAC, username="camera")
    judged = policy(camera, neighbours=[at("192.168.1.40", MAC), at("192.168.1.41", OTHER_MAC)])
    here, elsewhere = judged.client("192.168.1.40"), judged.client("192.168.1.41")
    assert judged.may_sign_in(camera, here) and not judged.may_sign_in(camera, elsewhere)
    assert not judged.may_sign_in(camera, judged.client("192.168.1.42")), "unknown is no match"
    refusal = judged.refusal(OPTIONAL, here, authenticated=False)
    assert refusal is not None and refusal.code == 530
    assert judged.refusal(OPTIONAL, elsewhere, authenticated=False) is None


def test_an_address_on_two_links_is_nobody_unless_the_link_is_told() -> None:
    link_local = LocalNetworks(LOOPBACK, frozenset({2, 3}))
    neighbours = [at("fe80::40", MAC, 2), at("fe80::40", OTHER_MAC, 3)]
    judged = policy(Device("camera", mac=MAC), local=link_local, neighbours=neighbours)
    assert [name_at(judged, "fe80::40", interface) for interface in (2, 3)] == ["camera", ""]
    twice = [at("192.168.1.40", MAC, 2), at("192.168.1.40", OTHER_MAC, 3)]
    assert name_at(policy(Device("camera", mac=MAC), neighbours=twice), "192.168.1.40") == ""


def test_the_neighbour_table_is_asked_where_a_device_has_a_mac_and_then_seldom() -> None:
    clock, asked = Clock(), 0

    def read() -> list[Neighbour]:
        nonlocal asked
        asked += 1
        return [at("192.168.1.40", MAC)] if asked > 1 else []

    def judged_by(*devices: Device) -> Policy:
        config = Config(hostname="relay.example", queue=Queue(Path("queue")), devices=devices)
        return Policy(config, read_local=lambda: OFFICE, read_neighbours=read, monotonic=clock)

    judged_by(Device("copier", address="192.168.1.40")).client("192.168.1.40")
    assert asked == 0
    judged = judged_by(Device("camera", mac=MAC))
    judged.client("203.0.113.9")
    judged.client("127.0.0.1")
    assert asked == 0, "neither a stranger nor we ourselves are neighbours"
    assert name_at(judged, "192.168.1.40") == "" and asked == 1
    assert [name_at(judged, "192.168.1.40") for _ in range(3)] == ["camera"] * 3, "he has just come"
    assert asked == 2
    clock.now += BELIEVED_SECONDS - 0.1
    assert name_at(judged, "192.168.1.40") == "camera" and asked == 2
    clock.now += 0.1
    assert name_at(judged, "192.168.1.40") == "camera" and asked == 3


def test_a_kernel_that_does_not_tell_makes_nobody_known() -> None:
    def silent() -> list[Neighbour]:
        raise OSError("no netlink here")

    config = Config(hostname="r.example", queue=Queue(Path("queue")), devices=(Device("camera", mac=MAC),))
    judged = Policy(config, read_local=lambda: OFFICE, read_neighbours=silent, monotonic=Clock())
    assert name_at(judged, "192.168.1.40") == ""
    assert judged.client("192.168.1.40").may_send


def test_interfaces_are_looked_at_again_after_a_while() -> None:
    clock = Clock()
    found = [LocalNetworks(), OFFICE]
    config = Config(hostname="relay.example", queue=Queue(Path("queue")))
    judged = Policy(config, read_local=lambda: found.pop(0), monotonic=clock)
    assert not judged.client("192.168.1.23").local
    clock.now += LOCAL_BELIEVED_SECONDS - 1
    assert not judged.client("192.168.1.23").local
    clock.now += 1
    assert judged.client("192.168.1.23").local
    assert judged.admits(OPTIONAL, "192.168.1.23")


def test_without_the_kernel_only_loopback_is_local() -> None:
    def deaf() -> LocalNetworks:
        raise OSError("no netlink here")

    config = Config(hostname="relay.example", queue=Queue(Path("queue")))
    judged = Policy(config, read_local=deaf, monotonic=Clock())
    assert judged.client("127.0.0.1").local
    assert not judged.client("192.168.1.23").local
