"""The real relay in a network of its own, with a DNS server that misbehaves.

The DNS's trouble is nobody's fault: mail waits, is delivered when the DNS is well again, and fails only when
the schedule is used up, with the reason. What the DNS does say is believed at once.
"""

from __future__ import annotations

import asyncio
import email
import smtplib
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support import namespaces
from tests.support.misbehaving_dns import (
    Behaviour,
    MisbehavingDns,
    fails_with,
    forged_first,
    garbage,
    in_turn,
    late,
    leads_to,
    says,
    silence,
    too_large_for_udp,
    without_edns,
)
from tests.support.misbehaving_hop import MisbehavingHop
from tests.support.processes import wait_until
from tests.support.relay import Relay

pytestmark = [
    pytest.mark.slow,  # a question that nobody answers takes its twelve seconds
    pytest.mark.skipif(not namespaces.possible(), reason="needs root and network namespaces"),
]

MX = says("10 mx.good.example.")
SERVFAIL = fails_with("SERVFAIL")
# What is asked about one domain, as the server answers it; all else it answers by the book.
HARMLESS: dict[str, dict[str, Behaviour]] = {
    "late": {"MX": late(2, MX)},
    "lost-once": {"MX": in_turn(silence, MX)},
    "nonsense-once": {"MX": in_turn(garbage, MX)},
    "forged": {"MX": forged_first(says("10 mx.liar.example."), MX)},
    "truncated": {"MX": too_large_for_udp(MX)},
    "without-edns": {"MX": without_edns(MX)},
    "no-word-of-policies": {"MX": MX, "TXT": SERVFAIL},
    "cname": {"MX": leads_to("late.example.")},
}
PASSING: dict[str, dict[str, Behaviour]] = {
    "servfail": {"MX": in_turn(*[SERVFAIL] * 2, MX)},
    "refused": {"MX": in_turn(*[fails_with("REFUSED")] * 2, MX)},
    "silent": {"MX": in_turn(*[silence] * 4, MX)},
    "host-servfail": {"MX": says("10 mx.ill.example.")},
}
LASTING = {"always-servfail": "127.0.0.1 port {port} said SERVFAIL", "always-truncated": "unintelligible"}
ANSWERED = {"nowhere": "5.1.2", "null": "5.1.10", "hostless": "5.4.4"}

SCRIPT: dict[tuple[str, str], Behaviour] = {
    **{
        (f"_mta-sts.{name}.example" if kind == "TXT" else f"{name}.example", kind): behaviour
        for name, answers in (HARMLESS | PASSING).items()
        for kind, behaviour in answers.items()
    },
    ("mx.good.example", "A"): says("127.0.1.2"),
    ("mx.good.example", "AAAA"): says(),
    ("mx.liar.example", "A"): says("127.0.1.3"),
    ("mx.ill.example", "A"): in_turn(*[SERVFAIL] * 2, says("127.0.1.2")),
    ("mx.ill.example", "AAAA"): in_turn(*[SERVFAIL] * 2, says()),
    ("always-servfail.example", "MX"): SERVFAIL,
    ("always-truncated.example", "MX"): too_large_for_udp(MX, even_over_tcp=True),
    ("null.example", "MX"): says("0 ."),
    ("hostless.example", "MX"): says("10 mx.nowhere.example."),
    ("office.example", "MX"): says("10 mx.office.example."),
    ("mx.office.example", "A"): says("127.0.1.1"),
    ("mx.office.example", "AAAA"): says(),
}

FILE = """\
hostname = "relay.office.example"
postmaster = "admin@office.example"
listeners = [{{address = "127.0.0.1:2525"}}]
submission = {{sender_domains = ["office.example"], messages_per_hour_max = 0}}
direct = {{dns_servers = ["{server}"], allow_private = true}}
routes = [{{via = ["direct"]}}]
[queue]
free_space_min = "16 MB"
retry_delays = ["2s"]
lifetime = "50s"
delay_warning_after = "0s"
"""


@contextmanager
def _running(script: dict[tuple[str, str], Behaviour]) -> Iterator[MisbehavingDns]:
    """A server on a loop of its own, in a thread of this network."""
    loop, server = asyncio.new_event_loop(), MisbehavingDns(script)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Town:
    """One message to each domain, until each has met its fate."""

    def __init__(self, directory: Path) -> None:
        with namespaces.own_network(), ExitStack() as stack:
            server = stack.enter_context(_running(SCRIPT))
            self.office, self.good, self.liar = (
                stack.enter_context(MisbehavingHop(host=f"127.0.1.{last}", port=25)) for last in (1, 2, 3)
            )
            configuration = FILE.format(server=server.endpoint)
            self.relay = stack.enter_context(Relay(directory, port=2525, configuration=configuration))
            names = [*HARMLESS, *PASSING, *LASTING, *ANSWERED]
            self.queue_ids = {name: _submit(f"ann@{name}.example") for name in names}
            wait_until(lambda: not self.relay.ask("queue", "list"), 150, "every message to be settled")
            self.events = {name: self.relay.ask("trace", each) for name, each in self.queue_ids.items()}
            self.arrived = [recipient for message in self.good.messages for recipient in message.rcpts]
            self.reports = [email.message_from_bytes(each.content) for each in self.office.messages]
            self.port, self.asked = server.port, list(server.asked)

    def fates(self, name: str) -> list[str]:
        """In their order; of the message itself, not of a report about it."""
        told = [each for each in self.events[name] if each.get("queue_id") == self.queue_ids[name]]
        return [each["event"] for each in told if each["event"] in ("relayed", "deferred", "failed")]

    def report(self, name: str) -> email.message.Message:
        (report,) = (each for each in self.reports if f"rfc822;ann@{name}.example" in str(each))
        return report


def _submit(to: str) -> str:
    with smtplib.SMTP("127.0.0.1", 2525, timeout=20) as client:
        client.ehlo("copier")
        client.mail("scans@office.example")
        assert client.rcpt(to)[0] == 250
        code, words = client.data(b"From: scans@office.example\r\nSubject: a scan\r\n\r\none\r\n")
    assert code == 250, words
    return words.decode().split()[-1]


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Town:
    return Town(tmp_path_factory.mktemp("town"))


@pytest.mark.parametrize("name", HARMLESS)
def test_what_a_resolver_copes_with_delays_no_mail(town: Town, name: str) -> None:
    assert town.fates(name) == ["relayed"]
    assert town.arrived.count(f"TO:<ann@{name}.example>") == 1


def test_a_forged_answer_leads_nobody_astray(town: Town) -> None:
    assert not town.liar.connections


@pytest.mark.parametrize("name", PASSING)
def test_trouble_of_the_dns_makes_mail_wait_until_it_is_well_again(town: Town, name: str) -> None:
    *before, last = town.fates(name)
    assert last == "relayed" and before and set(before) == {"deferred"}
    assert town.arrived.count(f"TO:<ann@{name}.example>") == 1
    assert not any(f"ann@{name}.example" in str(each) for each in town.reports)


@pytest.mark.parametrize("name", LASTING)
def test_lasting_trouble_of_the_dns_is_reported_at_the_end_of_the_schedule(town: Town, name: str) -> None:
    *before, last = town.fates(name)
    assert last == "failed" and len(before) > 2 and set(before) == {"deferred"}
    report = town.report(name)
    assert "Status: 4.4.7" in str(report.get_payload(1))
    assert LASTING[name].format(port=town.port) in " ".join(str(report.get_payload(0)).split())


@pytest.mark.parametrize("name", ANSWERED)
def test_what_the_dns_does_say_is_believed_at_once(town: Town, name: str) -> None:
    assert town.fates(name) == ["failed"]
    assert f"Status: {ANSWERED[name]}" in str(town.report(name).get_payload(1))


def test_nobody_is_told_of_anything_else(town: Town) -> None:
    assert len(town.reports) == len(LASTING) + len(ANSWERED)


def test_equal_questions_are_asked_once(town: Town) -> None:
    assert town.asked.count(("mx.good.example", "A", "udp")) == 1
