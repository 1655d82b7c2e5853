"""Where mail goes by the DNS: a real authoritative server, and one that lies, is late or says nothing."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import pytest

from pi_relay.config import Direct
from pi_relay.delivery import mx as mx_module
from pi_relay.delivery import resolver as resolver_module
from pi_relay.delivery.mx import Exchanger, LookupFailed, Lookups
from pi_relay.delivery.resolver import Resolver
from pi_relay.model import Scope
from tests.support.dns_server import NSD, DnsServer
from tests.support.misbehaving_dns import (
    Behaviour,
    MisbehavingDns,
    Question,
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

T = TypeVar("T")

DUAL = ("ipv4", "ipv6")
# How long a question may take, and a try of it: for what comes, on a busy machine too, and for what does not.
PATIENT = (20.0, 10.0)
HASTY = (0.5, 0.15)
MX = says("10 mx.office.example.")

ZONE = r"""
office          MX 20 second.mail
office          MX 10 first.mail
office          MX 20 another.mail
office          MX 20 FIRST.mail
first.mail      A 192.0.2.1
first.mail      A 192.0.2.2
second.mail     A 192.0.2.3
second.mail     AAAA 2001:db8::3
another.mail    AAAA 2001:db8::4
implicit        A 192.0.2.5
nothing         TXT "neither MX nor address"
null            MX 0 .
null            A 192.0.2.6
half-null       MX 0 .
half-null       MX 10 first.mail
alias           CNAME office
alias-of-none   CNAME gone
mx-is-alias     MX 10 alias-of-host
alias-of-host   CNAME second.mail
dead-mx         MX 10 gone
dead-mx         MX 20 first.mail
private         A 10.1.2.3
mixed           A 192.168.1.1
mixed           A 192.0.2.7
mapped          AAAA ::ffff:127.0.0.1
xn--bcher-kva   MX 10 first.mail
text            TXT "v=DKIM1; " "k=rsa" "; p=abc"
"""


@pytest.fixture(scope="module")
def server() -> Iterator[DnsServer]:
    if NSD is None:
        pytest.skip("nsd is not installed")
    with DnsServer({"example": ZONE, "elsewhere.test": "far MX 10 mx.far\nmx.far A 192.0.2.8"}) as running:
        yield running


def asked(direct: Direct, use: Callable[[Lookups], Awaitable[T]]) -> T:
    async def run() -> T:
        lookups = Lookups(direct)
        try:
            return await use(lookups)
        finally:
            await lookups.close()

    return asyncio.run(run())


def exchangers(server: DnsServer, domain: str, **direct: object) -> list[tuple[int, str]]:
    found = asked(
        Direct(dns_servers=(server.endpoint,), **direct),  # type: ignore[arg-type]
        lambda lookups: lookups.exchangers(domain),
    )
    return [(each.preference, each.host) for each in found]


def addresses(server: DnsServer, host: str, **direct: object) -> tuple[str, ...]:
    return asked(
        Direct(dns_servers=(server.endpoint,), **direct),  # type: ignore[arg-type]
        lambda lookups: lookups.addresses(host),
    )


def refusal(look_up: Callable[[], object]) -> tuple[str, bool, str]:
    """Scope, for good or not, and the reply."""
    with pytest.raises(LookupFailed) as failed:
        look_up()
    failure = failed.value.failure
    return failure.scope, failure.permanent, str(failure.reply)


# ── what a zone says ─────────────────────────────────────────────────────────────────────────────


def test_exchangers_come_by_preference_each_once(server: DnsServer) -> None:
    found = exchangers(server, "office.example")
    assert found[0] == (10, "first.mail.example")
    assert sorted(found[1:]) == [(20, "another.mail.example"), (20, "second.mail.example")]


def test_equal_preferences_come_in_random_order(server: DnsServer) -> None:
    async def use(lookups: Lookups) -> set[str]:
        return {(await lookups.exchangers("office.example"))[1].host for _ in range(64)}

    found = asked(Direct(dns_servers=(server.endpoint,)), use)
    assert found == {"another.mail.example", "second.mail.example"}


def test_the_order_among_equals_can_be_given(server: DnsServer) -> None:
    async def run() -> list[str]:
        lookups = Lookups(
            Direct(dns_servers=(server.endpoint,)), shuffle=lambda each: each.sort(key=lambda e: e.host)
        )
        return [each.host for each in await lookups.exchangers("office.example")]

    assert asyncio.run(run()) == ["first.mail.example", "another.mail.example", "second.mail.example"]


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("implicit.example", [(0, "implicit.example")]),
        ("IMPLICIT.Example.", [(0, "implicit.example")]),
        ("half-null.example", [(10, "first.mail.example")]),
        ("mx-is-alias.example", [(10, "alias-of-host.example")]),
        ("bücher.example", [(10, "first.mail.example")]),
        ("BÜCHER。example", [(10, "first.mail.example")]),
        ("xn--bcher-kva.example", [(10, "first.mail.example")]),
        ("far.elsewhere.test", [(10, "mx.far.elsewhere.test")]),
        ("[192.0.2.1]", [(0, "[192.0.2.1]")]),
    ],
)
def test_exchangers(server: DnsServer, domain: str, expected: list[tuple[int, str]]) -> None:
    assert exchangers(server, domain) == expected


def test_a_domain_may_be_an_alias(server: DnsServer) -> None:
    assert exchangers(server, "alias.example")[0] == (10, "first.mail.example")


@pytest.mark.parametrize(
    ("domain", "reply"),
    [
        ("gone.example", "550 5.1.2 the domain gone.example does not exist"),
        ("alias-of-none.example", "550 5.1.2 the domain alias-of-none.example does not exist"),
        ("nothing.example", "550 5.1.2 the domain nothing.example has no mail server and no address"),
        ("null.example", "556 5.1.10 the domain null.example takes no mail (it has a null MX)"),
        ("private.example", "550 5.4.4 the server private.example is at a private address, 10.1.2.3"),
        ("[10.1.2.3]", "550 5.4.4 the server [10.1.2.3] is at a private address, 10.1.2.3"),
        ("[IPv6:2001:db8::1]", "550 5.4.4 [IPv6:2001:db8::1] is reached by IPv6 only"),
        ("[IPv6:nonsense]", "550 5.1.2 [IPv6:nonsense] is not an address"),
        ("[192.0.2.256]", "550 5.1.2 [192.0.2.256] is not an address"),
        ("a..example", "550 5.1.2 a..example cannot be the name of a domain"),
        (f"{'a' * 64}.example", f"550 5.1.2 {'a' * 64}.example cannot be the name of a domain"),
        (f"{'ü' * 60}.example", f"550 5.1.2 {'ü' * 60}.example cannot be the name of a domain"),
        ("of fice.example", "550 5.1.2 of fice.example cannot be the name of a domain"),
        (r"a\.b.example", r"550 5.1.2 a\.b.example cannot be the name of a domain"),
        ("", "550 5.1.2  cannot be the name of a domain"),
    ],
)
def test_a_recipients_domain_that_fails_for_good(server: DnsServer, domain: str, reply: str) -> None:
    assert refusal(lambda: exchangers(server, domain)) == (Scope.RECIPIENT, True, reply)


@pytest.mark.parametrize(
    ("host", "families", "expected"),
    [
        ("first.mail.example", ("ipv4",), {"192.0.2.1", "192.0.2.2"}),
        ("second.mail.example", ("ipv4",), {"192.0.2.3"}),
        ("second.mail.example", ("ipv6",), {"2001:db8::3"}),
        ("alias-of-host.example", ("ipv4",), {"192.0.2.3"}),
        ("another.mail.example", DUAL, {"2001:db8::4"}),
        ("mixed.example", ("ipv4",), {"192.0.2.7"}),
        ("[192.0.2.1]", ("ipv4",), {"192.0.2.1"}),
        ("[IPv6:2001:db8::1]", DUAL, {"2001:db8::1"}),
    ],
)
def test_addresses(server: DnsServer, host: str, families: tuple[str, ...], expected: set[str]) -> None:
    assert set(addresses(server, host, address_families=families)) == expected


def test_addresses_come_by_the_order_of_the_families(server: DnsServer) -> None:
    for families in (DUAL, DUAL[::-1]):
        found = addresses(server, "second.mail.example", address_families=families)
        assert found == tuple({"ipv4": "192.0.2.3", "ipv6": "2001:db8::3"}[each] for each in families)


@pytest.mark.parametrize(
    ("host", "families", "text"),
    [
        ("gone.example", DUAL, "the server gone.example does not exist"),
        ("another.mail.example", ("ipv4",), "the server another.mail.example has no IPv4 address"),
        ("nothing.example", DUAL, "the server nothing.example has no IPv4 or IPv6 address"),
        ("mapped.example", DUAL, "the server mapped.example is at a private address"),
    ],
)
def test_a_host_out_of_reach_fails_for_good(
    server: DnsServer, host: str, families: tuple[str, ...], text: str
) -> None:
    scope, permanent, reply = refusal(lambda: addresses(server, host, address_families=families))
    assert (scope, permanent) == (Scope.RECIPIENT, True)
    assert reply.startswith(f"550 5.4.4 {text}")


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "10.0.0.1", "100.64.0.1", "127.1.2.3", "169.254.1.1", "172.31.0.1", "192.168.0.1"),
        *("224.0.0.1", "255.255.255.255", "IPv6:::", "IPv6:::1", "IPv6:fd00::1", "IPv6:fe80::1"),
        *("IPv6:ff02::1", "IPv6:::ffff:a00:1"),
    ],
)
def test_private_targets_need_allow_private(address: str) -> None:
    literal = f"[{address}]"
    told = refusal(lambda: asked(Direct(address_families=DUAL), lambda each: each.addresses(literal)))
    assert "private address" in told[2]
    allowed = Direct(address_families=DUAL, allow_private=True)
    (found,) = asked(allowed, lambda each: each.addresses(literal))
    assert ipaddress.ip_address(found) == ipaddress.ip_address(address.removeprefix("IPv6:"))


def test_txt(server: DnsServer) -> None:
    async def use(lookups: Lookups) -> list[tuple[str, ...]]:
        return [await lookups.txt(f"{each}.example") for each in ("text", "implicit", "gone")]

    assert asked(Direct(dns_servers=(server.endpoint,)), use) == [("v=DKIM1; k=rsa; p=abc",), (), ()]


def test_a_mended_domain_is_found_once_the_answer_is_old() -> None:
    if NSD is None:
        pytest.skip("nsd is not installed")

    async def use(lookups: Lookups) -> None:
        with pytest.raises(LookupFailed):
            await lookups.exchangers("late.example")
        server.change({"example": "late MX 10 mail.late"})
        with pytest.raises(LookupFailed):
            await lookups.exchangers("late.example")  # by the answer that is kept
        assert lookups.queries == 1
        await asyncio.sleep(1.05)
        assert await lookups.exchangers("late.example") == (Exchanger("mail.late.example", 10),)

    with DnsServer({"example": ""}, ttl_seconds=1) as server:
        asked(Direct(dns_servers=(server.endpoint,)), use)


# ── servers that misbehave ───────────────────────────────────────────────────────────────────────


def with_script(
    script: Mapping[Question, Behaviour],
    use: Callable[[Lookups, MisbehavingDns], Awaitable[T]],
    *,
    families: tuple[str, ...] = ("ipv4",),
    seconds: tuple[float, float] = PATIENT,
) -> T:
    async def run() -> T:
        async with MisbehavingDns(script) as server:
            resolver = Resolver((server.endpoint,), question_seconds=seconds[0], try_seconds=seconds[1])
            lookups = Lookups(Direct(address_families=families), resolver=resolver)
            try:
                return await use(lookups, server)
            finally:
                await lookups.close()

    return asyncio.run(run())


def found_by_script(behaviour: Behaviour, **options: object) -> tuple[tuple[Exchanger, ...], list[str]]:
    """The exchangers of office.example, and how each query came."""

    async def use(lookups: Lookups, server: MisbehavingDns) -> tuple[tuple[Exchanger, ...], list[str]]:
        found = await lookups.exchangers("office.example")
        assert lookups.queries == len(server.asked)
        return found, [transport for _, _, transport in server.asked]

    return with_script({("office.example", "MX"): behaviour}, use, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("behaviour", "words", "seconds"),
    [
        (fails_with("SERVFAIL"), "said SERVFAIL", PATIENT),
        (fails_with("REFUSED"), "said REFUSED", PATIENT),
        (fails_with("NOTIMP"), "said NOTIMP", PATIENT),
        (silence, "did not answer", HASTY),
        (garbage, "did not answer", HASTY),
        (late(5, MX), "did not answer", HASTY),
        (too_large_for_udp(MX, even_over_tcp=True), "unintelligible", PATIENT),
        (forged_first(MX, silence), "did not answer", HASTY),
        (leads_to("office.example."), "unintelligible", PATIENT),
        (leads_to("a.example.", "b.example.", "a.example."), "unintelligible", PATIENT),
    ],
    ids=[
        "servfail",
        "refused",
        "notimp",
        "silence",
        "garbage",
        "late",
        "truncated",
        "forged",
        "self",
        "loop",
    ],
)
def test_trouble_of_the_dns_is_never_for_good(
    behaviour: Behaviour, words: str, seconds: tuple[float, float]
) -> None:
    started_at = time.monotonic()
    scope, permanent, reply = refusal(lambda: found_by_script(behaviour, seconds=seconds))
    assert (scope, permanent) == (Scope.NEXT_HOP, False)
    assert reply.startswith("451 4.4.3 the DNS does not answer for office.example: 127.0.0.1 port ")
    assert words in reply
    assert time.monotonic() - started_at < 5


@pytest.mark.parametrize(
    ("behaviour", "queries"),
    [
        (MX, ["udp"]),
        (too_large_for_udp(MX), ["udp", "tcp"]),
        (forged_first(says("10 evil.example."), MX), ["udp"]),
        (without_edns(MX), ["udp", "udp"]),
        (in_turn(silence, MX), ["udp", "udp"]),
    ],
    ids=["well", "truncated", "forged", "no-edns", "lost"],
)
def test_what_can_be_overcome_is(behaviour: Behaviour, queries: list[str]) -> None:
    found = found_by_script(behaviour, seconds=(20.0, 0.5))
    assert found == ((Exchanger("mx.office.example", 10),), queries)


def test_a_truncated_answer_of_many_hosts_comes_whole_over_tcp() -> None:
    many = says(*(f"{number} mx{number}.office.example." for number in range(200, 0, -1)))
    found, _ = found_by_script(too_large_for_udp(many))
    assert [each.preference for each in found] == list(range(1, 33))


def test_cnames_that_the_server_leaves_to_us_are_followed() -> None:
    async def use(lookups: Lookups, server: MisbehavingDns) -> tuple[Exchanger, ...]:
        return await lookups.exchangers("www.office.example")

    script = {
        ("www.office.example", "MX"): leads_to("here.example.", "there.example."),
        ("there.example", "MX"): leads_to("office.example."),
        ("office.example", "MX"): MX,
    }
    assert with_script(script, use) == (Exchanger("mx.office.example", 10),)


def test_a_row_of_cnames_between_questions_comes_to_an_end() -> None:
    async def use(lookups: Lookups, server: MisbehavingDns) -> tuple[str, int]:
        with pytest.raises(LookupFailed) as failed:
            await lookups.exchangers("a.example")
        return str(failed.value), len(server.asked)

    script = {("a.example", "MX"): leads_to("b.example."), ("b.example", "MX"): leads_to("a.example.")}
    words, queries = with_script(script, use)
    assert words.endswith("a.example: the name is an endless row of CNAMEs")
    assert queries == 8


def test_fifty_equal_questions_are_one_query() -> None:
    async def use(lookups: Lookups, server: MisbehavingDns) -> None:
        names = ("office.example", "OFFICE.example", "office.example.")
        found = await asyncio.gather(*(lookups.exchangers(names[number % 3]) for number in range(50)))
        assert set(found) == {(Exchanger("mx.office.example", 10),)}
        assert server.asked == [("office.example", "MX", "udp")]
        assert (lookups.questions, lookups.queries) == (1, 1)

    with_script({("office.example", "MX"): late(0.05, MX)}, use)


def test_who_stops_waiting_leaves_the_query_to_the_others() -> None:
    async def use(lookups: Lookups, server: MisbehavingDns) -> None:
        first, second = (asyncio.ensure_future(lookups.exchangers("office.example")) for _ in range(2))
        await asyncio.sleep(0.05)
        first.cancel()
        assert await second == (Exchanger("mx.office.example", 10),)
        assert len(server.asked) == 1

    with_script({("office.example", "MX"): late(0.2, MX)}, use)


def test_a_question_under_way_when_all_ends_is_not_answered() -> None:
    async def use(lookups: Lookups, server: MisbehavingDns) -> None:
        asking = asyncio.ensure_future(lookups.exchangers("office.example"))
        await asyncio.sleep(0.05)
        await lookups.close()
        with pytest.raises(LookupFailed, match=r"4\.4\.3"):
            await asking

    with_script({("office.example", "MX"): silence}, use)


def test_answers_are_kept_as_long_as_they_say() -> None:
    async def use(lookups: Lookups, server: MisbehavingDns) -> list[str]:
        for domain in ("brief.example", "gone.example", "fleeting.example") * 2:
            with pytest.raises(LookupFailed) if domain == "gone.example" else contextlib.nullcontext():
                await lookups.exchangers(domain)
        await asyncio.sleep(1.05)
        await lookups.exchangers("brief.example")
        return [name.partition(".")[0] for name, _, _ in server.asked]

    script = {
        ("brief.example", "MX"): says("10 mx.office.example.", ttl_seconds=1),
        ("fleeting.example", "MX"): says("10 mx.office.example.", ttl_seconds=0),
    }
    assert with_script(script, use) == ["brief", "gone", "fleeting", "fleeting", "brief"]


def test_no_answer_is_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(lookups: Lookups, server: MisbehavingDns) -> int:
        await lookups.exchangers("office.example")
        now = time.monotonic()
        monkeypatch.setattr(resolver_module, "monotonic", lambda: now + 3601)
        await lookups.exchangers("office.example")
        return len(server.asked)

    script = {("office.example", "MX"): says("10 mx.office.example.", ttl_seconds=86_400)}
    assert with_script(script, use) == 2


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_module, "CACHED_MAX", 3)

    async def use(lookups: Lookups, server: MisbehavingDns) -> list[str]:
        for letter in "abcaded":
            await lookups.txt(f"{letter}.example")
        return [name[0] for name, _, _ in server.asked]

    # "a" was used again before "d" came, so that "b" had to go, then "c".
    assert with_script({}, use) == list("abcde")


def test_a_large_answer_is_not_kept() -> None:
    async def use(lookups: Lookups, server: MisbehavingDns) -> int:
        for _ in range(2):
            (text,) = await lookups.txt("large.example")
            assert len(text) == 40 * 250
        return len(server.asked)

    text = " ".join(['"' + 250 * "x" + '"'] * 40)
    assert with_script({("large.example", "TXT"): says(text)}, use) == 2


def test_a_silent_server_for_one_domain_does_not_keep_another_waiting() -> None:
    async def use(lookups: Lookups, server: MisbehavingDns) -> None:
        silent = [asyncio.ensure_future(lookups.exchangers(f"silent{each}.example")) for each in range(50)]
        await asyncio.sleep(0.1)
        assert await lookups.exchangers("office.example")
        assert not any(each.done() for each in silent)
        await asyncio.gather(*silent, return_exceptions=True)

    script = {(f"silent{each}.example", "MX"): silence for each in range(50)} | {("office.example", "MX"): MX}
    with_script(script, use, seconds=(1.0, 1.0))


@pytest.mark.parametrize("six", [silence, fails_with("SERVFAIL"), fails_with("NXDOMAIN"), says(), garbage])
def test_a_family_that_fails_does_not_spoil_the_other(
    six: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx_module, "LATE_FAMILY_SECONDS", 0.2)

    async def use(lookups: Lookups, server: MisbehavingDns) -> tuple[str, ...]:
        return await lookups.addresses("mx.office.example")

    script = {("mx.office.example", "A"): says("192.0.2.1"), ("mx.office.example", "AAAA"): six}
    for families in (DUAL, DUAL[::-1]):
        started_at = time.monotonic()
        assert with_script(script, use, families=families) == ("192.0.2.1",)
        assert time.monotonic() - started_at < 8


@pytest.mark.parametrize(
    ("four", "six", "fate"),
    [
        (silence, says(), (Scope.NEXT_HOP, False)),
        (says(), fails_with("SERVFAIL"), (Scope.NEXT_HOP, False)),
        (says(), says(), (Scope.RECIPIENT, True)),
        (fails_with("NXDOMAIN"), fails_with("NXDOMAIN"), (Scope.RECIPIENT, True)),
    ],
)
def test_a_host_fails_for_good_only_where_nothing_is_in_doubt(
    four: Behaviour, six: Behaviour, fate: tuple[Scope, bool]
) -> None:
    async def use(lookups: Lookups, server: MisbehavingDns) -> object:
        return await lookups.addresses("mx.office.example")

    script = {("mx.office.example", "A"): four, ("mx.office.example", "AAAA"): six}
    seconds = HASTY if four is silence else PATIENT
    assert refusal(lambda: with_script(script, use, families=DUAL, seconds=seconds))[:2] == fate


def test_an_mx_that_is_no_name_is_not_taken_for_an_address() -> None:
    """RFC 5321 5.1: it would be one only by mistake, and certificates could not fit it."""

    async def use(lookups: Lookups, server: MisbehavingDns) -> object:
        (only,) = await lookups.exchangers("office.example")
        return await lookups.addresses(only.host)

    script = {("office.example", "MX"): says("10 192.0.2.9.")}
    reply = "550 5.4.4 the server 192.0.2.9 does not exist"
    assert refusal(lambda: with_script(script, use)) == (Scope.RECIPIENT, True, reply)


def test_an_implicit_mx_whose_address_is_in_doubt_waits() -> None:
    async def use(lookups: Lookups, server: MisbehavingDns) -> object:
        return await lookups.exchangers("office.example")

    script = {("office.example", "MX"): says(), ("office.example", "A"): fails_with("SERVFAIL")}
    assert refusal(lambda: with_script(script, use))[:2] == (Scope.NEXT_HOP, False)


# ── which servers ────────────────────────────────────────────────────────────────────────────────


def test_the_next_server_is_asked_and_the_dead_one_comes_last() -> None:
    async def run() -> None:
        script = {(f"{letter}.example", "TXT"): says(f'"{letter}"') for letter in "abc"}
        async with (
            MisbehavingDns(dict.fromkeys(script, silence)) as dead,
            MisbehavingDns(script) as well,
        ):
            resolver = Resolver((dead.endpoint, well.endpoint), question_seconds=5, try_seconds=0.2)
            lookups = Lookups(Direct(), resolver=resolver)
            for letter in "abc":
                assert await lookups.txt(f"{letter}.example") == (letter,)
            assert (len(dead.asked), len(well.asked)) == (1, 3)

    asyncio.run(run())


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED"])
def test_a_server_that_refuses_leaves_it_to_the_next(rcode: str) -> None:
    async def run() -> None:
        question = ("office.example", "MX")
        async with (
            MisbehavingDns({question: fails_with(rcode)}) as bad,
            MisbehavingDns({question: MX}) as well,
        ):
            lookups = Lookups(Direct(dns_servers=(bad.endpoint, well.endpoint)))
            assert await lookups.exchangers("office.example") == (Exchanger("mx.office.example", 10),)

    asyncio.run(run())


def test_resolv_conf_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """In a network of our own, where port 53 is free."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace needs root")
    subprocess.run(
        ["unshare", "-n", sys.executable, "-c", _CHANGING_RESOLV_CONF, str(tmp_path / "resolv.conf")],
        check=True,
        timeout=60,
    )


_CHANGING_RESOLV_CONF = """
import asyncio, os, subprocess, sys
from pathlib import Path
from pi_relay.config import Direct
from pi_relay.delivery.mx import LookupFailed, Lookups
from pi_relay.delivery.resolver import Resolver
from tests.support.misbehaving_dns import MisbehavingDns, says

async def main(path):
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    resolver = Resolver(resolv_conf=path, question_seconds=2, try_seconds=0.5)
    lookups = Lookups(Direct(), resolver=resolver)

    async def finds_no_server():
        try:
            await lookups.txt("none.example")
        except LookupFailed as failed:
            assert failed.failure.reply.text.endswith("no DNS server is known"), failed
            assert not failed.failure.permanent
            return True

    assert await finds_no_server()  # there is no file
    servers = {}
    for address in ("127.0.0.2", "127.0.0.3"):
        script = {(f"{name}.example", "TXT"): says(address) for name in "abc"}
        servers[address] = MisbehavingDns(script, address=address)
        servers[address].port = 53
        await servers[address].__aenter__()
    for name, address in (("a", "127.0.0.2"), ("b", "127.0.0.3"), ("c", "127.0.0.2")):
        fresh = path.with_name("fresh")
        fresh.write_text(f"# by DHCP\\nsearch office.example\\noptions ndots:9\\nnameserver {address}\\n")
        fresh.replace(path)
        assert await lookups.txt(f"{name}.example") == (address,)
    assert [question for each in servers.values() for question, *_ in each.asked] == [
        "a.example", "c.example", "b.example"]  # and nothing below office.example
    await asyncio.sleep(1.1)
    path.write_text("search office.example\\n")
    assert await finds_no_server()
    for each in servers.values():
        await each.__aexit__()

asyncio.run(main(Path(sys.argv[1])))
"""


def test_dns_code_is_loaded_with_the_first_question_only() -> None:
    code = (
        "import sys, pi_relay.daemon, pi_relay.delivery.mx as mx, pi_relay.config as config\n"
        "mx.Lookups(config.Direct())\n"
        "sys.exit([each for each in sys.modules if each == 'dns' or each.startswith('dns.')] != [])"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_endpoints() -> None:
    expected = {
        "9.9.9.9": ("9.9.9.9", 53),
        "127.0.0.1:5353": ("127.0.0.1", 5353),
        "2620:fe::fe": ("2620:fe::fe", 53),
        "[2620:fe::fe]:5353": ("2620:fe::fe", 5353),
    }
    for text, endpoint in expected.items():
        assert resolver_module._endpoint(text) == endpoint
