"""MTA-STS: the two texts, and policies fetched over real HTTPS by what a real DNS server says."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import socket
import ssl
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pi_relay import maillog
from pi_relay.config import Direct
from pi_relay.delivery import mta_sts
from pi_relay.delivery.mta_sts import Policies, Policy, PolicyMalformed, announced_id, parse_policy
from pi_relay.delivery.mx import Lookups
from pi_relay.delivery.resolver import Resolver
from pi_relay.delivery.session import TlsContexts
from tests.support.certificates import Authority, Leaf
from tests.support.https_server import HttpsServer, Page
from tests.support.misbehaving_dns import Behaviour, MisbehavingDns, fails_with, says, silence
from tests.support.processes import free_port

DOMAIN = "office.example"
HOST = f"mta-sts.{DOMAIN}"
DAY = 86_400.0
NOW = 1_800_000_000.0


def text(mode: str = "enforce", *, max_age: int = 7 * 86_400, mx: str = "*.office.example") -> bytes:
    return f"version: STSv1\r\nmode: {mode}\r\nmx: {mx}\r\nmax_age: {max_age}\r\n".encode()


# ── the two texts ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (["v=STSv1; id=20260101T1;"], "20260101T1"),
        (["v=STSv1;id=a"], "a"),
        (["v=STSv1 ; x=1; id=b; id=c"], "b"),
        (["v=spf1 -all", "v=STSv1; id=a;"], "a"),
        ([], ""),
        (["v=STSv1; id=a;", "v=STSv1; id=b;"], ""),
        (["v=STSv1; id=a;", "v=STSv1; id=a;"], ""),
        (["V=STSv1; id=a;"], ""),
        (["v=STSv2; id=a;"], ""),
        (["v=STSv10; id=a;"], ""),
        (["v=STSv1"], ""),
        (["v=STSv1;"], ""),
        (["v=STSv1; id=;"], ""),
        (["v=STSv1; id=a-b;"], ""),
        ([f"v=STSv1; id={'a' * 33};"], ""),
        ([" v=STSv1; id=a;"], ""),
    ],
)
def test_the_record(records: list[str], expected: str) -> None:
    assert announced_id(records) == expected


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (text(), ("enforce", ("*.office.example",), 604_800)),
        (text("testing").replace(b"\r\n", b"\n"), ("testing", ("*.office.example",), 604_800)),
        (b"max_age: 1\nmode:none\nversion:   STSv1", ("none", (), 1)),
        (text("none", mx="A.Example") + b"mx: *.b\r\nx-more: 1\r\n", ("none", ("a.example", "*.b"), 604_800)),
        (text() + b"mode: none\r\nmax_age: 5\r\n", ("enforce", ("*.office.example",), 604_800)),
        (text(max_age=9_999_999_999), ("enforce", ("*.office.example",), 31_557_600)),
    ],
)  # fmt: skip
def test_the_policy(policy: bytes, expected: tuple[str, tuple[str, ...], int]) -> None:
    found = parse_policy(DOMAIN, "a", policy, NOW)
    assert (found.mode, found.mx_patterns, found.max_age_seconds) == expected


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (b"", "version"),
        (b"<html>\n", "version"),
        (b"\xff\xfe\x00", "version"),
        (text().replace(b"STSv1", b"STSv2"), "version"),
        (text("Enforce"), "mode"),
        (text().replace(b"max_age: ", b"max_age: -"), "max_age"),
        (text(max_age=10**10), "max_age"),
        (text(mx="mail office.example"), "no mx"),
        (text(mx="*"), "no mx"),
        (text(mx="mx.*.example"), "no mx"),
    ],
)
def test_a_malformed_policy(policy: bytes, words: str) -> None:
    with pytest.raises(PolicyMalformed, match=words):
        parse_policy(DOMAIN, "a", policy, NOW)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("mx.office.example", True),
        ("MX.Office.Example.", True),
        ("office.example", False),
        ("a.mx.office.example", False),
        (".office.example", False),
        ("mxoffice.example", False),
        ("exact.other.example", True),
        ("a.exact.other.example", False),
        ("", False),
    ],
)
def test_hosts_of_a_policy(host: str, allowed: bool) -> None:
    policy = Policy(DOMAIN, "a", "enforce", ("*.office.example", "exact.other.example"), 60, NOW)
    assert policy.allows(host) is allowed


# ── over the network ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def leaf(authority: Authority) -> Leaf:
    return authority.leaf(f"DNS:{HOST},DNS:mta-sts.xn--bcher-kva.example,DNS:mta-sts.other.example")


@pytest.fixture
def web(leaf: Leaf, trusted: Authority) -> Iterator[HttpsServer]:
    with HttpsServer(leaf.server_context()) as server:
        server.pages[HOST] = Page(text())
        yield server


class Office:
    """Policies with their DNS, their web server, and a clock that is set by hand."""

    def __init__(self, state: Path, port: int, dns: MisbehavingDns, *, allow_private: bool = True) -> None:
        self.dns = dns
        self.now = NOW
        self.clock_is_wrong = False
        self.dns_seconds = 20.0
        self._state = state
        self._port = port
        self._allow_private = allow_private
        self.restart()

    def restart(self, *, fetch_seconds: float = 20.0) -> None:
        """Nothing is left but the files."""
        resolver = Resolver((self.dns.endpoint,), question_seconds=self.dns_seconds, try_seconds=10)
        self.policies = Policies(
            self._state,
            Lookups(Direct(allow_private=self._allow_private), resolver=resolver),
            tls_context=lambda: TlsContexts().get(verify=True),
            clock_is_wrong=lambda: self.clock_is_wrong,
            now=lambda: self.now,
            port=self._port,
            fetch_seconds=fetch_seconds,
        )

    async def mode(self, domain: str = DOMAIN) -> str:
        """Of the policy in force, "" without one."""
        policy = await self.policies.policy(domain)
        return policy.mode if policy else ""

    def announce(self, record: str | Behaviour, domain: str = DOMAIN) -> None:
        """Seen at the next restart, or when what the DNS said is old."""
        behaviour = says(f'"{record}"', ttl_seconds=0) if isinstance(record, str) else record
        self.dns.script[(f"_mta-sts.{domain}", "TXT")] = behaviour


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def in_office(
    state: Path, port: int, use: Callable[[Office], Awaitable[None]], *, allow_private: bool = True
) -> None:
    async def run() -> None:
        hosts = (HOST, "mta-sts.xn--bcher-kva.example", "mta-sts.other.example")
        async with MisbehavingDns({(host, "A"): says("127.0.0.1") for host in hosts}) as dns:
            office = Office(state, port, dns, allow_private=allow_private)
            office.announce("v=STSv1; id=1;")
            try:
                await use(office)
            finally:
                await office.policies.close()

    asyncio.run(run())


@pytest.mark.parametrize("mode", ["enforce", "testing", "none"])
def test_a_policy_is_fetched_once_and_kept(tmp_path: Path, web: HttpsServer, mode: str) -> None:
    web.pages[HOST] = Page(text(mode), content_type="text/plain; charset=utf-8")

    async def use(office: Office) -> None:
        expected = Policy(DOMAIN, "1", mode, ("*.office.example",), 604_800, NOW)
        assert await office.policies.policy("OFFICE.example.") == expected
        assert await office.policies.policy(DOMAIN) == expected
        office.restart()
        assert await office.policies.policy(DOMAIN) == expected
        assert web.asked == [(HOST, "/.well-known/mta-sts.txt")]

    in_office(tmp_path, web.port, use)
    (file,) = (tmp_path / "mta-sts").iterdir()
    assert (file.name, file.stat().st_mode & 0o777) == (DOMAIN, 0o600)


def test_an_answer_without_length_ends_with_tls(tmp_path: Path, web: HttpsServer) -> None:
    web.pages[HOST] = Page(text(), headers={"Content-Length": None})

    async def use(office: Office) -> None:
        assert await office.mode() == "enforce"

    in_office(tmp_path, web.port, use)


def test_a_domain_beyond_ascii(tmp_path: Path, web: HttpsServer) -> None:
    web.pages["mta-sts.xn--bcher-kva.example"] = Page(text(mx="*.xn--bcher-kva.example"))

    async def use(office: Office) -> None:
        office.announce("v=STSv1; id=1;", "xn--bcher-kva.example")
        policy = await office.policies.policy("bücher.example")
        assert policy is not None and policy.domain == "xn--bcher-kva.example"
        assert policy.allows("mx.xn--bcher-kva.example")

    in_office(tmp_path, web.port, use)


@pytest.mark.parametrize("domain", ["[192.0.2.1]", "a..b", "unknown.example", "", "x" * 250])
def test_domains_without_policies(tmp_path: Path, web: HttpsServer, domain: str) -> None:
    async def use(office: Office) -> None:
        assert await office.mode(domain) == ""
        assert web.asked == []

    in_office(tmp_path, web.port, use)


@pytest.mark.parametrize(
    "record",
    ["v=STSv1;", says(), says('"v=STSv1; id=1;"', '"v=STSv1; id=2;"'), fails_with("SERVFAIL"), silence],
)
def test_without_a_record_nothing_is_fetched_and_what_is_kept_stays(
    tmp_path: Path, web: HttpsServer, record: str | Behaviour
) -> None:
    async def use(office: Office) -> None:
        valid = "v=STSv1; id=1;"
        office.announce(record)
        if record is silence:
            office.dns_seconds = 0.5
        office.restart()
        assert await office.mode() == ""
        assert web.asked == []
        office.announce(valid)
        office.restart()
        assert await office.mode() == "enforce"
        office.announce(record)
        office.restart()
        assert await office.mode() == "enforce"

    in_office(tmp_path, web.port, use)


def test_a_new_id_brings_the_new_policy(tmp_path: Path, web: HttpsServer) -> None:
    async def use(office: Office) -> None:
        assert await office.mode() == "enforce"
        web.pages[HOST] = Page(text("none"))
        assert await office.mode() == "enforce"
        office.announce("v=STSv1; id=2;")
        assert await office.mode() == "none"
        office.restart()
        assert await office.mode() == "none"
        assert len(web.asked) == 2

    in_office(tmp_path, web.port, use)


def test_many_messages_at_once_make_one_fetch(tmp_path: Path, web: HttpsServer) -> None:
    web.pages[HOST] = Page(text(), delay_seconds=0.2)

    async def use(office: Office) -> None:
        assert set(await asyncio.gather(*(office.mode() for _ in range(50)))) == {"enforce"}
        assert len(web.asked) == 1

    in_office(tmp_path, web.port, use)


def test_a_policy_ends_with_its_max_age(tmp_path: Path, web: HttpsServer) -> None:
    async def use(office: Office) -> None:
        assert await office.mode() == "enforce"
        web.pages.clear()
        office.now += 7 * DAY - 1
        assert await office.mode() == "enforce"
        office.now += 1
        office.restart()
        assert await office.mode() == ""

    in_office(tmp_path, web.port, use)


def test_a_policy_of_yesterday_is_fetched_again_meanwhile(tmp_path: Path, web: HttpsServer) -> None:
    async def use(office: Office) -> None:
        assert await office.mode() == "enforce"
        web.pages[HOST] = Page(text("testing"), delay_seconds=0.1)
        office.now += DAY
        assert await office.mode() == "enforce"
        await until(lambda: len(web.asked) == 2 and not office.policies._fetching)
        office.now += 7 * DAY - 1  # counted from the second fetch
        assert await office.mode() == "testing"

    in_office(tmp_path, web.port, use)


def test_a_wrong_clock_ends_no_policy(tmp_path: Path, web: HttpsServer) -> None:
    async def use(office: Office) -> None:
        assert await office.mode() == "enforce"
        web.pages.clear()
        office.announce(silence)
        office.clock_is_wrong = True
        for now in (0.0, NOW + 999 * DAY):
            office.now = now
            office.dns_seconds = 0.2
            office.restart()
            assert await office.mode() == "enforce"

    in_office(tmp_path, web.port, use)


def test_a_policy_fetched_in_the_future_counts_from_now(tmp_path: Path, web: HttpsServer) -> None:
    async def use(office: Office) -> None:
        office.now = NOW + 9999 * DAY
        assert await office.mode() == "enforce"
        web.pages.clear()
        office.now = NOW
        assert await office.mode() == "enforce"
        office.now = NOW + 7 * DAY
        assert await office.mode() == ""

    in_office(tmp_path, web.port, use)


# ── fetches that fail ────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(maillog, "error", lines.append)
    return lines


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (Page(b"", status=404), "answers with status 404"),
        (Page(text(), status=500), "answers with status 500"),
        (Page(text(), status=301, headers={"Location": f"https://{HOST}/"}), "answers with status 301"),
        (Page(text(), content_type="text/html"), "sends text/html, not text/plain"),
        (Page(text() + b"#" * 65_536), "sends more than 65536 bytes"),
        (Page(text(), headers={"Content-Length": "9999"}), "breaks off"),
        (Page(text(), headers={"Content-Length": "9999"}, says_goodbye=False), "breaks off"),
        (Page(text(), headers={"Content-Length": None}, says_goodbye=False), "breaks off"),
        (Page(b"mode: enforce\n"), "it does not say version: STSv1"),
    ],
    ids=["404", "500", "redirect", "type", "too-large", "short", "torn", "cut", "malformed"],
)  # fmt: skip
def test_what_the_web_server_may_not_do(
    tmp_path: Path, web: HttpsServer, log: list[str], page: Page, words: str
) -> None:
    async def use(office: Office) -> None:
        web.pages[HOST] = page
        assert await office.mode() == ""
        assert await office.mode() == ""  # not asked again just now
        assert len(web.asked) == 1
        web.pages[HOST] = Page(text())
        office.restart()
        assert await office.mode() == "enforce"
        web.pages[HOST] = page
        office.announce("v=STSv1; id=2;")
        assert await office.mode() == "enforce"  # as long as it lasts
        assert len(web.asked) == 3

    in_office(tmp_path, web.port, use)
    assert len(log) == 2
    assert log[0].startswith(f"MTA-STS: the policy of {DOMAIN} cannot be fetched: ")
    assert words in log[0]


def test_a_fetch_that_failed_is_tried_again_after_five_minutes(
    tmp_path: Path, web: HttpsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(office: Office) -> None:
        page = web.pages.pop(HOST)
        assert await office.mode() == ""
        web.pages[HOST] = page
        failed_at = time.monotonic()
        for passed_seconds, mode in ((295, ""), (301, "enforce")):
            monkeypatch.setattr(mta_sts, "monotonic", lambda moment=failed_at + passed_seconds: moment)
            assert await office.mode() == mode

    in_office(tmp_path, web.port, use)


@pytest.mark.parametrize("page", [Page(text(), delay_seconds=1.5), Page(text(), trickle_seconds=0.3)])
def test_a_slow_web_server_is_cut_off(tmp_path: Path, web: HttpsServer, log: list[str], page: Page) -> None:
    web.pages[HOST] = page

    async def use(office: Office) -> None:
        office.restart(fetch_seconds=0.5)
        started_at = time.monotonic()
        assert await office.mode() == ""
        assert time.monotonic() - started_at < 2.5
        await until(lambda: not web.open)

    in_office(tmp_path, web.port, use)
    assert log == [f"MTA-STS: the policy of {DOMAIN} cannot be fetched: {HOST} takes longer than 0.5 s"]


def test_closing_does_not_wait_for_a_slow_web_server(tmp_path: Path, web: HttpsServer) -> None:
    web.pages[HOST] = Page(text(), delay_seconds=1.5)

    async def use(office: Office) -> None:
        asking = asyncio.ensure_future(office.policies.policy(DOMAIN))
        await until(lambda: web.asked)
        started_at = time.monotonic()
        await office.policies.close()
        assert await asking is None
        assert time.monotonic() - started_at < 2

    in_office(tmp_path, web.port, use)


def test_many_slow_web_servers_keep_no_connection(tmp_path: Path, web: HttpsServer) -> None:
    """More than there are threads: those that never had their turn give their sockets back as well."""
    domains = [f"slow{number}.example" for number in range(12)]

    async def use(office: Office) -> None:
        office.restart(fetch_seconds=0.5)
        for domain in domains:
            office.announce("v=STSv1; id=1;", domain)
            office.dns.script[(f"mta-sts.{domain}", "A")] = says("127.0.0.2")
        assert set(await asyncio.gather(*map(office.mode, domains))) == {""}

    with socket.socket() as deaf, warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        deaf.bind(("127.0.0.2", web.port))
        deaf.listen(64)  # TLS never begins
        in_office(tmp_path, web.port, use)
        gc.collect()


def refused_certificate(tmp_path: Path, context: ssl.SSLContext, log: list[str], words: str) -> None:
    with HttpsServer(context) as web:
        web.pages[HOST] = Page(text())

        async def use(office: Office) -> None:
            assert await office.mode() == ""
            assert web.asked == []

        in_office(tmp_path, web.port, use)
    assert len(log) == 1
    assert f"the certificate of {HOST} is not good: " in log[0]
    assert words in log[0]


def test_a_certificate_for_another_name(tmp_path: Path, trusted: Authority, log: list[str]) -> None:
    context = trusted.leaf("DNS:office.example,DNS:*.mta-sts.office.example,IP:127.0.0.1").server_context()
    refused_certificate(tmp_path, context, log, "Hostname mismatch")


def test_a_certificate_that_is_over(tmp_path: Path, trusted: Authority, log: list[str]) -> None:
    context = trusted.leaf(f"DNS:{HOST}", at="5 days ago").server_context()
    refused_certificate(tmp_path, context, log, "expired")


def test_a_certificate_of_nobody(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, trusted: Authority, log: list[str]
) -> None:
    stranger = Authority(tmp_path_factory.mktemp("stranger"))
    refused_certificate(
        tmp_path, stranger.leaf(f"DNS:{HOST}").server_context(), log, "unable to get local issuer"
    )


def test_a_web_server_at_a_private_address_needs_allow_private(
    tmp_path: Path, web: HttpsServer, log: list[str]
) -> None:
    async def use(office: Office) -> None:
        assert await office.mode() == ""
        assert web.asked == []

    in_office(tmp_path, web.port, use, allow_private=False)
    assert "at a private address, 127.0.0.1" in log[0]


def test_a_web_server_that_nobody_finds(tmp_path: Path, trusted: Authority, log: list[str]) -> None:
    async def use(office: Office) -> None:
        assert await office.mode() == ""
        office.announce("v=STSv1; id=1;", "gone.example")
        assert await office.mode("gone.example") == ""

    in_office(tmp_path, free_port(), use)
    assert "cannot connect to 127.0.0.1 port" in log[0]
    assert "the server mta-sts.gone.example does not exist" in log[1]


# ── keeping ──────────────────────────────────────────────────────────────────────────────────────


def test_a_file_that_cannot_be_read_is_as_none(tmp_path: Path, web: HttpsServer) -> None:
    folder = tmp_path / "mta-sts"
    folder.mkdir()

    async def use(office: Office) -> None:
        for number, content in enumerate((b"", b"{", b"[]", b'{"domain": "office.example"}', b"\xff")):
            (folder / DOMAIN).write_bytes(content)
            office.restart()
            assert await office.mode() == "enforce"
            assert len(web.asked) == number + 1

    in_office(tmp_path, web.port, use)


def test_a_state_folder_that_cannot_be_written_to(tmp_path: Path, web: HttpsServer, log: list[str]) -> None:
    (tmp_path / "mta-sts").write_text("in the way")

    async def use(office: Office) -> None:
        assert await office.mode() == "enforce"
        assert await office.mode() == "enforce"
        assert len(web.asked) == 1

    in_office(tmp_path, web.port, use)
    assert log[0].startswith(f"MTA-STS: the policy of {DOMAIN} cannot be kept: ")


def test_files_and_memory_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mta_sts, "FILES_MAX", 3)
    monkeypatch.setattr(mta_sts, "KEPT_IN_MEMORY_MAX", 2)
    files = mta_sts._Files(tmp_path)
    policy = Policy("", "1", "enforce", ("mx.example",), 60, NOW)
    moments = itertools.count(1_000)
    for letter in "abcde":
        files.write(replace(policy, domain=f"{letter}.example"))
        os.utime(tmp_path / f"{letter}.example", (0, next(moments)))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["c.example", "d.example", "e.example"]
    assert files.read("a.example") is None
    assert files.read("e.example") == replace(policy, domain="e.example")
