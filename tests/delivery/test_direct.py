"""Straight to MX hosts: a real DNS server, next hops on loopback that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from pi_relay.config import Config, Direct, Queue, Route
from pi_relay.delivery import Delivery
from pi_relay.delivery.mta_sts import Policy
from pi_relay.delivery.timeouts import Timeouts
from pi_relay.lifecycle import wholly_relayed
from pi_relay.model import DeliveryReport, Envelope, HopCondition, Recipient, Scope, StoredMessage
from pi_relay.routes import ways_out
from tests.delivery.office import BODY, HEADER, SMALL, failure, fates, hop_names, smart_host
from tests.support.certificates import Authority
from tests.support.dns_server import NSD, DnsServer
from tests.support.misbehaving_hop import DROP, HANG, MisbehavingHop, Script
from tests.support.processes import free_port

pytestmark = pytest.mark.skipif(NSD is None, reason="needs NSD")

PATIENCE = Timeouts(
    resolve=5, connect=2, greeting=2, ehlo=2, tls=2, auth=2, command=2, block=2, end_of_data=1
)

ZONES = {
    "one.example": "@ MX 10 a.hosts.example.\n@ MX 20 b.hosts.example.",
    "two.example": "@ MX 10 a.hosts.example.",
    "equal.example": "@ MX 10 a.hosts.example.\n@ MX 10 b.hosts.example.",
    "plain.example": "@ A 127.0.1.1",
    "null.example": "@ MX 0 .",
    "ours.example": "@ MX 10 a.hosts.example.\n@ MX 20 relay.office.example.\n@ MX 30 b.hosts.example.",
    "onlyours.example": "@ MX 10 relay.office.example.",
    "dead.example": "@ MX 10 dead.hosts.example.",
    "deadfirst.example": "@ MX 10 dead.hosts.example.\n@ MX 20 b.hosts.example.",
    "lost.example": "@ MX 10 nowhere.hosts.example.\n@ MX 20 b.hosts.example.",
    "private.example": "@ MX 10 private.hosts.example.",
    "xn--bcher-kva.example": "@ MX 10 a.hosts.example.",
    "hosts.example": (
        "a A 127.0.1.1\nb A 127.0.1.2\nc A 127.0.1.3\ndead A 127.0.1.9\nprivate A 10.255.255.1\n"
        "both A 127.0.1.1\nboth AAAA ::1"
    ),
}


@pytest.fixture(scope="module")
def dns() -> Iterator[DnsServer]:
    with DnsServer(ZONES) as server:
        yield server


class World:
    """MX hosts a, b, c at one port of three addresses, and one relay that delivers to them."""

    def __init__(self, dns: DnsServer, **direct: object) -> None:
        self.port = free_port()
        self.stack = ExitStack()
        settings = {"dns_servers": (dns.endpoint,), "allow_private": True, "mta_sts": False, **direct}
        self.config = Config(
            "relay.office.example",
            Queue(Path("/nonexistent"), retry_delays_seconds=(60, 300)),
            routes=(Route(("direct",)),),
            direct=Direct(**settings),  # type: ignore[arg-type]
        )
        self.changes: list[str] = []

    def hop(self, letter: str, script: Script | None = None, **more: object) -> MisbehavingHop:
        host = f"127.0.1.{'abc'.index(letter) + 1}"
        hop = MisbehavingHop(script, host=host, port=self.port, name=f"{letter}.hosts.example", **more)  # type: ignore[arg-type]
        return self.stack.enter_context(hop)

    def run(self, use: Callable[[Delivery], Awaitable[None]]) -> None:
        async def with_delivery() -> None:
            delivery = Delivery(
                self.config, on_hop_changed=self.changes.append, timeouts=PATIENCE, direct_port=self.port
            )
            try:
                await use(delivery)
            finally:
                await delivery.close()

        with self.stack:
            asyncio.run(with_delivery())

    def deliver(self, *to: str, **more: object) -> list[DeliveryReport]:
        """One message, by each of its ways out."""
        reports: list[DeliveryReport] = []

        async def use(delivery: Delivery) -> None:
            reports.extend(await send(delivery, self.config, *to, **more))

        self.run(use)
        return reports


async def send(delivery: Delivery, config: Config, *to: str, **more: object) -> list[DeliveryReport]:
    message = more.pop("message", SMALL)
    envelope = mail(*to, **more)
    return [await delivery.deliver(envelope, way, message) for way in ways_out(config, envelope)]  # type: ignore[arg-type]


def mail(*to: str, **more: object) -> Envelope:
    recipients = tuple(map(Recipient, to))
    return Envelope(
        **{"queue_id": "Q1", "reverse_path": "a@office.example", "accepted_at": 0.0, **more},  # type: ignore[arg-type]
        recipients=recipients,
    )


@pytest.fixture
def world(dns: DnsServer) -> World:
    return World(dns)


# ── which host ───────────────────────────────────────────────────────────────────────────────────


def test_the_preferred_host_gets_it(world: World) -> None:
    a, b = world.hop("a"), world.hop("b")
    (report,) = world.deliver("x@one.example")
    assert fates(report) == ["relayed"] and hop_names(report) == ["a.hosts.example"]
    assert len(a.messages) == 1 and not b.connections
    assert a.connections[0].ended == "quit"


def test_equals_share_the_work(world: World) -> None:
    a, b = world.hop("a"), world.hop("b")

    async def use(delivery: Delivery) -> None:
        for _ in range(40):
            await send(delivery, world.config, "x@equal.example")

    world.run(use)
    assert len(a.messages) + len(b.messages) == 40
    assert a.messages and b.messages  # one in 10^12 that it is not so by chance


def test_a_domain_without_mx_is_its_own_host(world: World) -> None:
    a = world.hop("a")
    (report,) = world.deliver("x@plain.example")
    assert fates(report) == ["relayed"] and hop_names(report) == ["plain.example"]
    assert len(a.messages) == 1


def test_an_address_literal(world: World) -> None:
    a = world.hop("a")
    (report,) = world.deliver("x@[127.0.1.1]")
    assert fates(report) == ["relayed"] and len(a.messages) == 1


@pytest.mark.parametrize(
    "script",
    [
        {"CONNECT": "421 4.3.2 not now"},
        {"CONNECT": "554 5.7.1 go away"},
        {"CONNECT": DROP},
        {"EHLO": "421 no", "HELO": "421 no"},
        {"MAIL": "451 4.3.0 later"},
        {"MAIL": DROP},
        {"RCPT": "450 4.2.0 greylisted"},
        {"DATA": "451 4.3.0 later"},
        {"DOT": "451 4.3.0 later"},
    ],
    ids=str,
)
def test_the_next_host_is_tried_after_a_failure_that_may_pass(world: World, script: Script) -> None:
    world.hop("a", script)
    b = world.hop("b")
    (report,) = world.deliver("x@one.example")
    assert fates(report) == ["relayed"] and hop_names(report) == ["b.hosts.example"]
    assert len(b.messages) == 1


@pytest.mark.parametrize(
    ("script", "fate"),
    [
        ({"RCPT": "550 5.1.1 no such user"}, "recipient permanent 550"),
        ({"MAIL": "554 5.7.1 no"}, "message permanent 554"),
        ({"DOT": "554 5.6.0 no"}, "message permanent 554"),
        ({"MAIL": "530 5.7.0 sign in first"}, "recipient permanent 530"),
        ({"MAIL": "550 5.7.0 no"}, "recipient permanent 550"),
        ({"RCPT": "535 5.7.8 no"}, "recipient permanent 535"),
    ],
    ids=str,
)
def test_a_refusal_is_final(world: World, script: Script, fate: str) -> None:
    world.hop("a", script)
    b = world.hop("b")
    (report,) = world.deliver("x@one.example")
    assert fates(report) == [fate]
    assert not b.connections


def test_each_recipient_for_himself(world: World) -> None:
    says = {"<u@one.example>": "550 5.1.1 unknown", "<g@one.example>": "450 4.2.0 greylisted"}
    a = world.hop("a", {"RCPT": lambda to: next((r for path, r in says.items() if path in to), "250 ok")})
    b = world.hop("b")
    (report,) = world.deliver("ok@one.example", "u@one.example", "g@one.example")
    assert fates(report) == ["relayed", "recipient permanent 550", "relayed"]
    assert hop_names(report) == ["a.hosts.example", "a.hosts.example", "b.hosts.example"]
    assert a.messages[0].rcpts == ["TO:<ok@one.example>"] and b.messages[0].rcpts == ["TO:<g@one.example>"]


def test_an_unanswered_end_of_data_is_asked_about_at_the_same_host(world: World) -> None:
    a = world.hop("a", {"DOT": [HANG, "250 2.0.0 kept"]})
    b = world.hop("b")

    async def use(delivery: Delivery) -> None:
        (report,) = await send(delivery, world.config, "x@one.example")
        assert fates(report) == ["next_hop transient 421"]
        delivery.resume()
        (report,) = await send(delivery, world.config, "x@one.example")
        assert fates(report) == ["relayed"] and hop_names(report) == ["a.hosts.example"]

    world.run(use)
    assert not b.connections and len(a.connections) == 2


@pytest.mark.parametrize("domain", ["deadfirst.example", "lost.example"])
def test_a_host_that_is_dead_or_has_no_address_is_passed_by(world: World, domain: str) -> None:
    b = world.hop("b")
    (report,) = world.deliver(f"x@{domain}")
    assert fates(report) == ["relayed"] and len(b.messages) == 1


def test_a_dead_family_delays_nothing() -> None:
    zones = {"both.example": "@ MX 10 both.hosts.example.", "hosts.example": ZONES["hosts.example"]}
    with DnsServer(zones) as own:
        world = World(own, address_families=("ipv6", "ipv4"))
        a = world.hop("a")  # nobody listens at ::1
        (report,) = world.deliver("x@both.example")
    assert fates(report) == ["relayed"] and len(a.messages) == 1


# ── nowhere ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("domain", "status", "words"),
    [
        ("nowhere.one.example", "5.1.2", "does not exist"),
        ("null.example", "5.1.10", "null MX"),
        ("onlyours.example", "5.4.6", "come back to this relay"),
    ],
)
def test_who_cannot_be_reached_fails_at_once(world: World, domain: str, status: str, words: str) -> None:
    (report,) = world.deliver(f"x@{domain}")
    said = failure(report)
    assert said.permanent and said.scope is Scope.RECIPIENT
    assert said.reply.enhanced_status == status and words in said.reply.text


def test_private_hosts_are_not_for_mail_from_outside(dns: DnsServer) -> None:
    world = World(dns, allow_private=False)
    a = world.hop("a")
    for domain in ("private.example", "two.example"):
        (report,) = world.deliver(f"x@{domain}")
        assert failure(report).permanent and "private address" in failure(report).reply.text
    assert not a.connections


def test_hosts_behind_ourselves_are_not_tried(world: World) -> None:
    world.hop("a", {"CONNECT": "421 no"})
    b = world.hop("b")
    (report,) = world.deliver("x@ours.example")
    assert fates(report) == ["next_hop transient 421"]
    assert not b.connections


@pytest.mark.slow  # it is asked for twelve seconds
def test_a_dns_that_does_not_answer_makes_the_mail_wait(dns: DnsServer) -> None:
    world = World(dns, dns_servers=(f"127.0.0.1:{free_port()}",))
    (report,) = world.deliver("x@one.example")
    said = failure(report)
    assert not said.permanent and said.scope is Scope.NEXT_HOP and said.reply.enhanced_status == "4.4.3"


# ── domains are next hops of their own ───────────────────────────────────────────────────────────


def test_a_domain_in_trouble_is_paused_alone(world: World) -> None:
    a = world.hop("a")

    async def use(delivery: Delivery) -> None:
        (report,) = await send(delivery, world.config, "x@dead.example")
        assert fates(report) == ["next_hop transient 421"]
        assert delivery.hop_state("direct:dead.example").condition is HopCondition.PAUSED
        assert world.changes == ["direct:dead.example"]
        assert delivery.hop_state("direct:two.example").condition is HopCondition.OPEN
        (report,) = await send(delivery, world.config, "x@two.example")
        assert fates(report) == ["relayed"]
        states = {each.name: each.state for each in delivery.hops()}
        assert states == {"direct": "ok", "direct:dead.example": "paused"}
        delivery.resume(["direct:dead.example"])
        assert delivery.hop_state("direct:dead.example").condition is HopCondition.PROBING

    world.run(use)
    assert len(a.messages) == 1


def test_greylisting_pauses_nobody(world: World) -> None:
    for letter in "ab":
        world.hop(letter, {"RCPT": "450 4.2.0 greylisted"})

    async def use(delivery: Delivery) -> None:
        (report,) = await send(delivery, world.config, "x@one.example")
        assert fates(report) == ["recipient transient 450"]
        assert delivery.hop_state("direct:one.example").condition is HopCondition.OPEN

    world.run(use)


def test_domains_share_a_session_to_their_host(world: World) -> None:
    a = world.hop("a")

    async def use(delivery: Delivery) -> None:
        for domain in ("one", "two", "one", "two"):
            (report,) = await send(delivery, world.config, f"x@{domain}.example")
            assert fates(report) == ["relayed"]

    world.run(use)
    assert len(a.messages) == 4 and len(a.connections) == 1


def test_recipients_of_different_domains_never_share_a_transaction(world: World) -> None:
    a = world.hop("a")
    reports = world.deliver("x@one.example", "y@two.example", "z@ONE.example")
    assert [fates(report) for report in reports] == [["relayed", "relayed"], ["relayed"]]
    assert [message.rcpts for message in a.messages] == [
        ["TO:<x@one.example>", "TO:<z@ONE.example>"],
        ["TO:<y@two.example>"],
    ]


def test_no_more_connections_than_needed(world: World) -> None:
    a = world.hop("a")

    async def use(delivery: Delivery) -> None:
        await asyncio.gather(*(send(delivery, world.config, f"x{n}@two.example") for n in range(40)))

    world.run(use)
    assert len(a.messages) == 40 and a.open_at_most <= 4 and len(a.connections) <= 4


def test_the_way_after_direct_is_taken_where_no_host_answers(world: World) -> None:
    with MisbehavingHop() as isp:
        world.config = replace(
            world.config, smart_hosts=(smart_host(isp),), routes=(Route(("direct", "isp")),)
        )
        world.hop("a", {"RCPT": "450 4.2.0 greylisted"})
        reports = world.deliver("x@dead.example", "y@two.example", "z@null.example")
        assert [fates(report)[0] for report in reports] == [
            "relayed",
            "recipient transient 450",
            "recipient permanent 556",
        ]
        assert [message.rcpts for message in isp.messages] == [["TO:<x@dead.example>"]]


# ── what the other side lacks ────────────────────────────────────────────────────────────────────


def test_a_domain_beyond_ascii_goes_as_a_labels_to_who_lacks_smtputf8(world: World) -> None:
    a = world.hop("a", extensions=("PIPELINING", "8BITMIME"))
    (report,) = world.deliver("x@bücher.example")
    assert fates(report) == ["relayed"]
    assert a.messages[0].rcpts == ["TO:<x@xn--bcher-kva.example>"] and "SMTPUTF8" not in a.messages[0].mail


def test_a_local_part_beyond_ascii_needs_smtputf8(world: World) -> None:
    a = world.hop("a", extensions=("PIPELINING", "8BITMIME"))
    (report,) = world.deliver("grün@bücher.example", smtputf8=True)
    assert failure(report).reply.enhanced_status == "5.6.7"
    assert not a.messages


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────


def used(report: DeliveryReport) -> str:
    hop, _ = report.results[0]
    assert hop is not None
    return hop.tls_used


def test_tls_is_used_where_it_is_offered_whoever_it_is(world: World, authority: Authority) -> None:
    context = authority.leaf("DNS:somebody.else.example").server_context()
    a = world.hop("a", extensions=("STARTTLS", "PIPELINING"), tls=context)
    (report,) = world.deliver("x@two.example")
    assert fates(report) == ["relayed"] and used(report) == "TLSv1.3 unverified"
    assert a.connections[0].tls


def test_in_clear_where_none_is_offered(world: World) -> None:
    world.hop("a")
    (report,) = world.deliver("x@two.example")
    assert fates(report) == ["relayed"] and used(report) == "none"


@pytest.mark.parametrize("script", [{"STARTTLS": "454 4.7.0 not now"}, {"TLS": DROP}], ids=str)
def test_in_clear_where_tls_fails(world: World, authority: Authority, script: Script) -> None:
    context = authority.leaf("DNS:a.hosts.example").server_context()
    a = world.hop("a", script, extensions=("STARTTLS", "PIPELINING"), tls=context)
    (report,) = world.deliver("x@two.example")
    assert fates(report) == ["relayed"] and used(report) == "none"
    assert not a.messages[0].content.startswith(b"\x16")


class Announced:
    """The policies of all domains, as mta_sts.py would give them."""

    def __init__(self, mode: str, *patterns: str) -> None:
        self.found = Policy("one.example", "1", mode, patterns, 86400, 0.0)

    async def policy(self, domain: str) -> Policy:
        return self.found

    async def close(self) -> None:
        pass


def deliver_under(world: World, policy: Announced, **more: object) -> DeliveryReport:
    reports: list[DeliveryReport] = []

    async def use(delivery: Delivery) -> None:
        assert delivery._direct is not None
        delivery._direct._policies = policy  # type: ignore[assignment]
        reports.extend(await send(delivery, world.config, "x@one.example", **more))

    world.run(use)
    return reports[0]


def secure_hop(world: World, letter: str, authority: Authority, name: str = "", *more: str) -> MisbehavingHop:
    context = authority.leaf(f"DNS:{name or letter + '.hosts.example'}").server_context()
    return world.hop(letter, extensions=("STARTTLS", "PIPELINING", *more), tls=context)


def test_an_enforced_policy_that_is_kept(world: World, trusted: Authority) -> None:
    secure_hop(world, "a", trusted)
    report = deliver_under(world, Announced("enforce", "*.hosts.example"))
    assert fates(report) == ["relayed"] and used(report) == "TLSv1.3 verified"


def test_a_host_that_the_policy_does_not_name_is_passed_by(world: World, trusted: Authority) -> None:
    a, b = secure_hop(world, "a", trusted), secure_hop(world, "b", trusted)
    report = deliver_under(world, Announced("enforce", "b.hosts.example"))
    assert fates(report) == ["relayed"] and hop_names(report) == ["b.hosts.example"]
    assert not a.connections and len(b.messages) == 1


@pytest.mark.parametrize("trouble", ["name", "none", "unknown"])
def test_never_less_than_an_enforced_policy_asks(
    world: World, trusted: Authority, tmp_path: Path, trouble: str
) -> None:
    for letter in "ab":
        if trouble == "none":
            world.hop(letter)
        else:
            (tmp_path / letter).mkdir()
            authority = trusted if trouble == "name" else Authority(tmp_path / letter)
            secure_hop(world, letter, authority, "other.example" if trouble == "name" else "")
    report = deliver_under(world, Announced("enforce", "*.hosts.example"))
    said = failure(report)
    assert said.scope is Scope.NEXT_HOP and not said.permanent and said.reply.enhanced_status == "4.7.5"


def test_a_policy_that_is_tested_hinders_nothing(
    world: World, trusted: Authority, capfd: pytest.CaptureFixture[str]
) -> None:
    a = world.hop("a")
    report = deliver_under(world, Announced("testing", "mail.other.example"))
    assert fates(report) == ["relayed"] and len(a.messages) == 1
    log = capfd.readouterr().err
    assert "a.hosts.example is none of the mail servers" in log and "a.hosts.example got mail in clear" in log


@pytest.mark.parametrize("demands", [False, True])
def test_a_message_may_waive_the_policy_unless_it_demands_tls(world: World, demands: bool) -> None:
    """RFC 8689 5."""
    a, b = world.hop("a"), world.hop("b")
    message = StoredMessage(b"tls-required:\r\n NO\r\n" + HEADER, BODY)
    policy = Announced("enforce", "*.hosts.example")
    report = deliver_under(world, policy, message=message, requiretls=demands)
    assert ("relayed" in fates(report)) is not demands
    assert len(a.messages) + len(b.messages) == (not demands)


def test_requiretls_is_kept(world: World, trusted: Authority) -> None:
    a = secure_hop(world, "a", trusted, "", "REQUIRETLS")
    report = deliver_under(world, Announced("testing", "*.hosts.example"), requiretls=True)
    assert fates(report) == ["relayed"] and a.messages[0].mail.endswith(" REQUIRETLS")


@pytest.mark.parametrize("lacks", ["extension", "policy", "certificate"])
def test_requiretls_is_never_dropped(world: World, trusted: Authority, tmp_path: Path, lacks: str) -> None:
    authority = Authority(tmp_path) if lacks == "certificate" else trusted
    more = () if lacks == "extension" else ("REQUIRETLS",)
    hops = [secure_hop(world, letter, authority, "", *more) for letter in "ab"]
    mode = "none" if lacks == "policy" else "enforce"
    report = deliver_under(world, Announced(mode, "*.hosts.example"), requiretls=True)
    assert "relayed" not in fates(report)
    assert failure(report).reply.enhanced_status == ("4.7.5" if lacks == "certificate" else "5.7.30")
    assert not any(hop.messages for hop in hops)


def test_reports_are_whole(world: World) -> None:
    world.hop("a")
    (report,) = world.deliver("x@one.example")
    assert wholly_relayed(mail("x@one.example"), report.results, report.notify_handed_on)
