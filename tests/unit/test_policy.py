"""Who may connect, who may send, and who is whom."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from pi_relay.config import Config, Device, Listener, Queue, Submission
from pi_relay.submission.interfaces import LOOPBACK, LocalNetworks
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
    clock: Clock | None = None,
) -> Policy:
    config = Config(
        hostname="relay.example",
        queue=Queue(Path("queue")),
        submission=Submission(networks=networks),
        devices=devices,
    )
    return Policy(config, read_local=lambda: local, monotonic=clock or Clock())


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
    names = [
        (judged.client(host).device or Device("")).name
        for host in ("192.168.1.23", "192.168.1.24", "192.168.1.200")
    ]
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
