"""Opening a session: connection, TLS, AUTH, and everything that may go wrong before mail begins."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import ssl
from collections.abc import Iterator

import pytest

from pi_relay.config import Listener
from pi_relay.delivery.session import TlsContexts
from tests.delivery.office import Office, config, deliver_once, failure, fates, smart_host, with_office
from tests.support.certificates import Authority
from tests.support.misbehaving_hop import DROP, HANG, RESET, Act, MisbehavingHop
from tests.support.processes import free_port

ACCOUNT = {"auth": "password", "username": "u1234", "password": "sesame"}
ACCOUNTS = {"u1234": "sesame"}


# ── the connection ───────────────────────────────────────────────────────────────────────────────


def test_nobody_listens() -> None:
    report = deliver_once(config(smart_host(free_port())))
    assert fates(report) == ["next_hop transient 421"]
    assert failure(report).reply.enhanced_status == "4.4.1"
    assert "refused" in failure(report).reply.text


def test_a_name_that_does_not_resolve_is_the_next_hops_trouble() -> None:
    report = deliver_once(config(smart_host(25, host="no-such-host.invalid")))
    assert fates(report) == ["next_hop transient 421"]
    assert "no-such-host.invalid does not resolve" in failure(report).reply.text


def _resolving_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    def getaddrinfo(host: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
        assert host == "dual.isp.example"
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address, port in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@contextlib.contextmanager
def _deaf(host: str) -> Iterator[int]:
    """A port that never answers a SYN: its backlog is full."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener, contextlib.ExitStack() as clients:
        listener.bind((host, 0))
        listener.listen(0)
        for _ in range(4):
            client = clients.enter_context(socket.socket(family))
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_a_dead_ipv6_address_does_not_hide_a_living_ipv4_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with MisbehavingHop() as hop:
        _resolving_to(monkeypatch, ("::1", free_port()), ("127.0.0.1", hop.port))
        assert fates(deliver_once(config(smart_host(hop, host="dual.isp.example")))) == ["relayed"]


def test_an_address_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with MisbehavingHop(host="::1") as hop, _deaf("127.0.0.1") as deaf_port:
        _resolving_to(monkeypatch, ("127.0.0.1", deaf_port), ("127.0.0.1", deaf_port), ("::1", hop.port))
        assert fates(deliver_once(config(smart_host(hop, host="dual.isp.example")))) == ["relayed"]


def test_no_address_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = free_port()
    _resolving_to(monkeypatch, ("::1", dead), ("127.0.0.1", dead))
    text = failure(deliver_once(config(smart_host(dead, host="dual.isp.example")))).reply.text
    assert "::1" in text and "127.0.0.1" in text


def test_ipv6_by_address() -> None:
    with MisbehavingHop(host="::1") as hop:
        assert fates(deliver_once(config(smart_host(hop)))) == ["relayed"]
        assert hop.commands[0] == "EHLO relay.office.example"


@pytest.mark.parametrize(
    ("host", "literal"), [("127.0.0.1", "[127.0.0.1]"), ("::1", "[IPv6:::1]")]
)  # fmt: skip
@pytest.mark.parametrize("hostname", ["raspberrypi", "relay.local", "relay.home.arpa"])
def test_a_name_that_means_nothing_outside_becomes_an_address(hostname: str, host: str, literal: str) -> None:
    with MisbehavingHop(host=host) as hop:
        deliver_once(config(smart_host(hop), hostname=hostname))
        assert hop.commands[0] == f"EHLO {literal}"


# ── greeting and EHLO ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "greeting",
    [
        "421 4.3.2 too busy",
        "554 5.7.1 your address is listed",
        "450 4.7.1 come back",
        DROP,
        RESET,
        HANG,
        Act(b"HTTP/1.1 400 Bad Request\r\n\r\n", "close"),
        Act(b"220-half", "hang"),
        Act(b"220 " + b"x" * 100_000, "hang"),
        Act(b"220-x\r\n" * 20_000, "hang"),
    ],
)
def test_no_good_greeting_is_the_next_hops_trouble_and_the_next_way_is_taken(greeting: object) -> None:
    with MisbehavingHop({"CONNECT": greeting}) as hop, MisbehavingHop() as other:
        report = deliver_once(config(smart_host(hop)))
        assert failure(report).scope == "next_hop" and not failure(report).permanent
        assert "port None" not in failure(report).reply.text
        assert fates(deliver_once(config(smart_host(hop), smart_host(other, "other")))) == ["relayed"]
    assert "MAIL" not in hop.verbs()


@pytest.mark.parametrize(
    "ehlo", ["550 5.7.1 go away", "421 4.3.2 busy", DROP, HANG, Act(b"\xff\xfe\r\n", "hang")]
)
def test_no_ehlo_is_the_next_hops_trouble(ehlo: object) -> None:
    with MisbehavingHop({"EHLO": ehlo}) as hop:
        report = deliver_once(config(smart_host(hop)))
    assert failure(report).scope == "next_hop" and not failure(report).permanent


def test_close_after_ehlo() -> None:
    with MisbehavingHop({"EHLO": Act(b"250 hop.example\r\n", "close")}) as hop:
        assert fates(deliver_once(config(smart_host(hop)))) == ["next_hop transient 421"]


@pytest.mark.parametrize("size", ["SIZE", "SIZE 0", "SIZE nonsense", "size 50000000"])
def test_odd_announcements_of_size(size: str) -> None:
    with MisbehavingHop(extensions=(size,)) as hop:
        assert fates(deliver_once(config(smart_host(hop)))) == ["relayed"]
    assert " SIZE=" in hop.messages[0].mail


# ── loops ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("listener", "ours"), [("", True), ("127.0.0.1", True), ("127.0.0.2", False)])
def test_our_own_address_and_port_is_refused_at_connect(listener: str, ours: bool) -> None:
    with MisbehavingHop() as hop:
        configuration = config(smart_host(hop), listeners=(Listener(listener, hop.port),))
        report = deliver_once(configuration)
    assert fates(report) == (["account transient 451"] if ours else ["relayed"])
    assert ours != bool(hop.commands)


@pytest.mark.parametrize("where", ["greeting", "ehlo"])
def test_a_host_that_calls_itself_by_our_name_is_ourselves(where: str) -> None:
    script = {"CONNECT": "220 mail.example"} if where == "ehlo" else {}
    with MisbehavingHop(script, name="Relay.Office.Example") as hop:
        report = deliver_once(config(smart_host(hop)))
    assert fates(report) == ["account transient 451"]
    assert failure(report).reply.enhanced_status == "4.4.6"
    assert "MAIL" not in hop.verbs()


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", ["starttls", "implicit"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_tls_with_a_verified_name(mode: str, host: str, tls: ssl.SSLContext) -> None:
    with MisbehavingHop(tls=tls, implicit_tls=mode == "implicit") as hop:
        report = deliver_once(
            config(smart_host(hop, host=host, tls=mode)), "a@elsewhere.example", "b@elsewhere.example"
        )
    assert fates(report) == ["relayed", "relayed"]
    assert hop.connections[0].tls


def test_a_ca_of_the_systems_folder_is_trusted(trusted_by_hash: Authority) -> None:
    with MisbehavingHop(tls=trusted_by_hash.leaf().server_context()) as hop:
        assert fates(deliver_once(config(smart_host(hop, tls="starttls")))) == ["relayed"]


def _refused_for_tls(hop: MisbehavingHop, **more: object) -> str:
    report = deliver_once(
        config(smart_host(hop, **{"tls": "starttls", "host": "localhost", **more, **ACCOUNT}))
    )
    assert fates(report) == ["next_hop transient 421"]
    assert not {"MAIL", "AUTH"} & set(hop.verbs())
    return failure(report).reply.text


@pytest.mark.parametrize("mode", ["starttls", "implicit"])
def test_a_certificate_for_another_name_is_refused(mode: str, trusted: Authority) -> None:
    leaf = trusted.leaf("DNS:elsewhere.example").server_context()
    with MisbehavingHop(tls=leaf, implicit_tls=mode == "implicit") as hop:
        text = _refused_for_tls(hop, tls=mode)
    assert "localhost" in text


def test_a_certificate_of_an_unknown_ca_is_refused(authority: Authority) -> None:
    with MisbehavingHop(tls=authority.leaf().server_context()) as hop:
        assert "certificate" in _refused_for_tls(hop)


def test_an_expired_certificate_is_called_a_clock_failure(trusted: Authority) -> None:
    with MisbehavingHop(tls=trusted.leaf(at="5 days ago").server_context()) as hop:
        assert "clock failure" in _refused_for_tls(hop)


def test_verification_can_be_switched_off(authority: Authority) -> None:
    leaf = authority.leaf("DNS:elsewhere.example").server_context()
    with MisbehavingHop(tls=leaf) as hop:
        report = deliver_once(config(smart_host(hop, tls="starttls", tls_verify=False)))
    assert fates(report) == ["relayed"]


@pytest.mark.parametrize("mode", ["starttls", "implicit"])
def test_a_pinned_certificate(mode: str, authority: Authority) -> None:
    leaf = authority.leaf("DNS:elsewhere.example")
    with MisbehavingHop(tls=leaf.server_context(), implicit_tls=mode == "implicit") as hop:
        pin = f"sha256:{leaf.fingerprint()}"
        assert fates(deliver_once(config(smart_host(hop, tls=mode, tls_verify=pin)))) == ["relayed"]


@pytest.mark.parametrize("mode", ["starttls", "implicit"])
def test_another_certificate_than_the_pinned_one(mode: str, trusted: Authority) -> None:
    leaf = trusted.leaf()
    with MisbehavingHop(tls=leaf.server_context(), implicit_tls=mode == "implicit") as hop:
        assert leaf.fingerprint() in _refused_for_tls(hop, tls=mode, tls_verify=f"sha256:{'0' * 64}")


@pytest.mark.parametrize("reply", ["454 4.7.0 not now", "502 5.5.1 what?", DROP, HANG])
def test_starttls_refused(reply: object, tls: ssl.SSLContext) -> None:
    with MisbehavingHop({"STARTTLS": reply}, tls=tls) as hop:
        report = deliver_once(config(smart_host(hop, tls="starttls", **ACCOUNT)))
    assert failure(report).scope == "next_hop" and not failure(report).permanent
    assert not {"MAIL", "AUTH"} & set(hop.verbs())


def test_starttls_not_offered() -> None:
    with MisbehavingHop(accounts=ACCOUNTS) as hop:
        assert "STARTTLS" in _refused_for_tls(hop)


@pytest.mark.parametrize("trouble", [DROP, RESET, HANG, Act(b"this is no TLS\r\n", "hang")])
@pytest.mark.parametrize("mode", ["starttls", "implicit"])
def test_a_handshake_that_fails(mode: str, trouble: Act, tls: ssl.SSLContext) -> None:
    with MisbehavingHop({"TLS": trouble}, tls=tls, implicit_tls=mode == "implicit") as hop:
        _refused_for_tls(hop, tls=mode)


def test_what_is_injected_behind_starttls_is_not_believed(tls: ssl.SSLContext) -> None:
    """CVE-2011-0411 from the other side: plaintext replies put behind the 220 by somebody in between."""
    injected = Act(b"220 2.0.0 go ahead\r\n250-evil.example\r\n250 AUTH PLAIN\r\n250 2.1.0 injected\r\n")
    with MisbehavingHop({"STARTTLS": injected}, tls=tls) as hop:
        report = deliver_once(config(smart_host(hop, tls="starttls")))
    outcome = report.results[0][1]
    assert "injected" not in str(outcome)
    if fates(report) == ["relayed"]:
        assert hop.verbs()[:4] == ["EHLO", "STARTTLS", "EHLO", "MAIL"]
        assert hop.messages


# ── AUTH ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (("PLAIN",), "PLAIN"),
        (("LOGIN",), "LOGIN"),
        (("CRAM-MD5",), "CRAM-MD5"),
        (("CRAM-MD5", "LOGIN", "PLAIN"), "PLAIN"),
        (("GSSAPI", "XOAUTH2", "login", "CRAM-MD5"), "LOGIN"),
    ],
)
def test_one_mechanism_is_chosen(offered: tuple[str, ...], chosen: str, tls: ssl.SSLContext) -> None:
    with MisbehavingHop(tls=tls, accounts=ACCOUNTS, mechanisms=offered) as hop:
        report = deliver_once(config(smart_host(hop, tls="starttls", **ACCOUNT)))
    assert fates(report) == ["relayed"]
    assert hop.connections[0].login == "u1234"
    (auth,) = [command for command in hop.commands if command.startswith("AUTH")]
    assert auth.split()[1] == chosen
    assert report.results[0][0] is not None and report.results[0][0].credentials_name == "isp"


@pytest.mark.parametrize("offered", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_a_wrong_password_is_tried_once_and_is_account_trouble(offered: str, tls: ssl.SSLContext) -> None:
    with MisbehavingHop(tls=tls, accounts={"u1234": "other"}, mechanisms=(offered, "LOGIN", "PLAIN")) as hop:
        report = deliver_once(config(smart_host(hop, tls="starttls", **ACCOUNT)))
    assert fates(report) == ["account transient 535"]
    assert hop.verbs().count("AUTH") == 1 and "MAIL" not in hop.verbs()


@pytest.mark.parametrize(
    ("reply", "fate"),
    [
        ("535 5.7.8 wrong", "account transient 535"),
        ("550 5.7.30 basic authentication is not supported", "account transient 550"),
        ("501 5.5.2 malformed", "account transient 501"),
        ("454 4.7.0 cannot look passwords up now", "next_hop transient 454"),
        ("421 4.7.0 too many", "next_hop transient 421"),
        ("334 not base64!", "next_hop transient"),
        (DROP, "next_hop transient 421"),
        (HANG, "next_hop transient 421"),
        (Act(b"nonsense\r\n", "hang"), "next_hop transient 421"),
    ],
)
@pytest.mark.parametrize("mechanism", ["PLAIN", "CRAM-MD5"])
def test_auth_refused(mechanism: str, reply: object, fate: str, tls: ssl.SSLContext) -> None:
    script = {"AUTH": reply}
    with MisbehavingHop(script, tls=tls, accounts=ACCOUNTS, mechanisms=(mechanism,)) as hop:
        report = deliver_once(config(smart_host(hop, tls="starttls", **ACCOUNT)))
    assert fates(report)[0].startswith(fate)
    assert "MAIL" not in hop.verbs()


def test_no_mechanism_in_common_is_account_trouble(tls: ssl.SSLContext) -> None:
    with MisbehavingHop(tls=tls, accounts=ACCOUNTS, mechanisms=("GSSAPI",)) as hop:
        report = deliver_once(config(smart_host(hop, tls="starttls", **ACCOUNT)))
    assert fates(report) == ["account transient 504"] and "gssapi" in failure(report).reply.text


def test_a_password_is_never_said_in_clear() -> None:
    with MisbehavingHop(accounts=ACCOUNTS) as hop:
        report = deliver_once(config(smart_host(hop, **ACCOUNT)))
    assert fates(report) == ["account transient 538"]
    assert base64.b64encode(b"sesame").decode() not in " ".join(hop.commands) and "AUTH" not in hop.verbs()


def test_the_tls_context_is_made_once(tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda *a, **k: made.append(1) or make(*a, **k))

    async def use(office: Office) -> None:
        for _ in range(3):
            assert fates(await office.deliver()) == ["relayed"]
            office.delivery._hops["isp"].pool.retire()
            office.delivery._hops["isp"].pool._closed = False

    with MisbehavingHop(tls=tls) as hop:
        with_office(config(smart_host(hop, tls="starttls")), use)
    assert len(hop.connections) == 3 and len(made) == 1


def test_many_sessions_at_once_share_one_tls_context(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda *a, **k: made.append(1) or make(*a, **k))

    async def use() -> None:
        contexts = TlsContexts()
        got = await asyncio.gather(*(contexts.get(verify=True) for _ in range(5)))
        assert len(set(map(id, got))) == len(made) == 1

    asyncio.run(use())


def test_who_verifies_nothing_does_without_the_cas() -> None:
    context = asyncio.run(TlsContexts().get(verify=False))
    assert context.verify_mode is ssl.CERT_NONE and not context.get_ca_certs()
