"""Straight to MX hosts: loops, domains that come and go, doubt, and what is logged of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pi_relay.config import Listener, Route
from pi_relay.delivery import Delivery, direct
from pi_relay.model import HopCondition
from tests.delivery.office import failure, fates, hop_names, smart_host
from tests.delivery.test_direct import ZONES, Announced, World, deliver_under, secure_hop, send, used
from tests.support.certificates import Authority
from tests.support.dns_server import NSD, DnsServer
from tests.support.misbehaving_hop import HANG, MisbehavingHop

pytestmark = pytest.mark.skipif(NSD is None, reason="needs NSD")

MORE_ZONES = {
    "deadours.example": "@ MX 10 dead.hosts.example.\n@ MX 20 a.hosts.example.\n@ MX 30 b.hosts.example.",
    "three.example": "@ MX 10 c.hosts.example.",
}


@pytest.fixture(scope="module")
def dns() -> Iterator[DnsServer]:
    with DnsServer(ZONES | MORE_ZONES) as server:
        yield server


@pytest.fixture
def world(dns: DnsServer) -> World:
    return World(dns)


# ── ourselves among the hosts ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("domain", "fate"),
    [("one.example", "recipient permanent 554"), ("deadours.example", "next_hop transient 421")],
)
def test_a_host_that_turns_out_to_be_ourselves_ends_the_list(world: World, domain: str, fate: str) -> None:
    world.config = replace(world.config, listeners=(Listener("127.0.1.1", world.port),))
    world.hop("a")
    b = world.hop("b")
    (report,) = world.deliver(f"x@{domain}")
    assert fates(report) == [fate]
    assert not b.connections


def test_a_host_that_calls_itself_by_our_name_is_ourselves(world: World) -> None:
    world.hop("a", {"CONNECT": "220 relay.office.example ESMTP"})
    (report,) = world.deliver("x@two.example")
    assert failure(report).permanent and failure(report).reply.enhanced_status == "5.4.6"


def test_the_next_way_is_not_taken_for_mail_that_would_come_back(world: World) -> None:
    with MisbehavingHop() as isp:
        listeners = (Listener("127.0.1.1", world.port),)
        routes = (Route(("direct", "isp")),)
        world.config = replace(
            world.config, smart_hosts=(smart_host(isp),), routes=routes, listeners=listeners
        )
        world.hop("a")
        for report in world.deliver("x@two.example", "x@onlyours.example"):
            assert fates(report) == ["recipient permanent 554"]
        assert not isp.connections


# ── one host after another ────────────────────────────────────────────────────────────────────────


def test_a_host_in_doubt_that_is_away_meanwhile_is_waited_for(world: World) -> None:
    a = world.hop(
        "a", {"CONNECT": ["220 a", *["421 4.3.2 away"] * 2, "220 a"], "DOT": [HANG, "250 2.0.0 kept"]}
    )
    b = world.hop("b")

    async def use(delivery: Delivery) -> None:
        for fate in (*["next_hop transient 421"] * 3, "relayed"):
            (report,) = await send(delivery, world.config, "x@one.example")
            assert fates(report) == [fate] and hop_names(report) == ["a.hosts.example"]
            delivery.resume()

    world.run(use)
    assert not b.connections and len(a.connections) == 4


def test_where_no_host_was_asked_the_domain_is_named(world: World) -> None:
    for report, name in zip(
        world.deliver("x@null.example", "x@nowhere.one.example"),
        ("direct:null.example", "direct:nowhere.one.example"),
        strict=True,
    ):
        assert hop_names(report) == [name]


def test_hosts_are_not_tried_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "TRYING_SECONDS_MAX", 0.0)
    world.hop("a", {"RCPT": "450 4.2.0 greylisted"})
    b = world.hop("b")
    (report,) = world.deliver("x@one.example")
    assert fates(report) == ["recipient transient 450"] and not b.connections


# ── domains come and go ───────────────────────────────────────────────────────────────────────────


def test_a_tarpit_holds_up_its_own_domain_only(world: World) -> None:
    world.hop("a")
    world.hop("c", {"CONNECT": HANG})

    async def use(delivery: Delivery) -> None:
        slow = asyncio.create_task(send(delivery, world.config, "x@three.example"))
        await asyncio.sleep(0)
        (report,) = await send(delivery, world.config, "x@two.example")
        assert fates(report) == ["relayed"] and not slow.done()
        assert fates((await slow)[0]) == ["next_hop transient 421"]

    world.run(use)


def test_a_domain_that_nobody_writes_to_any_more_is_no_trouble(world: World) -> None:
    async def use(delivery: Delivery) -> None:
        await send(delivery, world.config, "x@dead.example")
        assert [each.name for each in delivery.hops()] == ["direct", "direct:dead.example"]
        delivery.resume()  # as at the end of its pause; no mail comes
        assert [each.name for each in delivery.hops()] == ["direct"]

    world.run(use)


def test_domains_are_forgotten_but_those_in_a_pause(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "DOMAINS_MAX", 2)

    async def use(delivery: Delivery) -> None:
        for domain in ("dead", "deadfirst", "null", "nowhere.one", "onlyours"):
            await send(delivery, world.config, f"x@{domain}.example")
        assert delivery._direct is not None
        assert "direct:dead.example" in delivery._direct.names() and len(delivery._direct.names()) <= 3

    world.run(use)


def test_a_domain_that_does_not_exist_is_no_success(world: World) -> None:
    async def use(delivery: Delivery) -> None:
        await send(delivery, world.config, "x@nowhere.one.example")
        (whole,) = delivery.hops()
        assert whole.state == "unknown" and whole.last_success_at is None

    world.run(use)


def test_a_reload_keeps_pauses_where_nothing_of_them_is_changed(world: World) -> None:
    async def use(delivery: Delivery) -> None:
        await send(delivery, world.config, "x@dead.example")
        await delivery.reconfigure(replace(world.config, postmaster="p@office.example"))
        assert delivery.hop_state("direct:dead.example").condition is HopCondition.PAUSED
        other = replace(world.config.direct, address_families=("ipv4", "ipv6"))
        await delivery.reconfigure(replace(world.config, direct=other))
        assert delivery.hop_state("direct:dead.example").condition is HopCondition.OPEN
        await delivery.reconfigure(replace(world.config, routes=()))
        assert delivery.hops() == []

    world.run(use)


# ── TLS ───────────────────────────────────────────────────────────────────────────────────────────


def test_tls_with_an_address_literal(world: World, authority: Authority) -> None:
    context = authority.leaf("IP:127.0.1.1").server_context()
    world.hop("a", extensions=("STARTTLS", "PIPELINING"), tls=context)
    (report,) = world.deliver("x@[127.0.1.1]")
    assert fates(report) == ["relayed"] and used(report) == "TLSv1.3 unverified"


def test_requiretls_does_not_trust_a_host_that_the_policy_does_not_name(
    world: World, trusted: Authority
) -> None:
    a = secure_hop(world, "a", trusted, "", "REQUIRETLS")
    b = secure_hop(world, "b", trusted, "", "REQUIRETLS")
    report = deliver_under(world, Announced("testing", "b.hosts.example"), requiretls=True)
    assert fates(report) == ["relayed"] and hop_names(report) == ["b.hosts.example"]
    assert not a.connections and len(b.messages) == 1
