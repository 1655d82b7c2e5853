"""Exim and OpenSMTPD as next hops of the real relay, each as a smart host and as the MX host of a domain.

They differ from Postfix where it counts: what they offer, how they refuse, and what their TLS is worth.
"""

from __future__ import annotations

import re
import smtplib
import ssl
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from email.message import EmailMessage
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support import namespaces, other_mtas, postfix
from tests.support.certificates import Authority
from tests.support.dns_server import NSD, DnsServer
from tests.support.misbehaving_hop import MisbehavingHop
from tests.support.other_mtas import BEYOND_ASCII, GONE, KNOWN, Mta, exim, opensmtpd
from tests.support.postfix import Postfix
from tests.support.processes import wait_until
from tests.support.relay import Relay
from tests.support.reports import fields_of, report_in

pytestmark = [
    pytest.mark.skipif(bool(other_mtas.why_not()), reason=other_mtas.why_not()),
    pytest.mark.skipif(
        NSD is None or not namespaces.possible(), reason="needs NSD, root and network namespaces"
    ),
]

SENDER = "scans@office.example"
ADDRESS = "127.0.1.2"  # of the MTA: as smart host for hop.example, as MX host of mx.example
WAYS = ("hop.example", "mx.example")
MESSAGE = (
    b"From: scans@office.example\r\nTo: ann@far.example\r\nSubject: a scan\r\n"
    b"Date: Tue, 24 Nov 2026 06:00:00 +0000\r\nMessage-ID: <1@copier>\r\n\r\n"
    b"..two dots, and one:\r\n.\r\nFrom the copier\r\n \t \r\n"
    + "naïve 頁\r\n".encode()
    + b"x" * 900
    + b"\r\n\r\n"
)
CONFIGURATION = """\
hostname = "relay.office.example"
postmaster = "admin@office.example"
listeners = [{{address = "127.0.0.1:2525"}}]
submission = {{sender_domains = ["office.example"]}}
direct = {{dns_servers = ["127.0.0.1"], allow_private = true, address_families = ["ipv6", "ipv4"]}}
routes = [
  {{recipients = ["*@office.example"], via = ["office"]}},
  {{recipients = ["*@hop.example"], via = ["hop"]}},
  {{via = ["direct"]}},
]
[smart_hosts]
office = {{host = "127.0.1.1", port = 25, tls = "off"}}
hop = {{host = "127.0.1.2", port = 25, {hop}}}
[queue]
free_space_min = "16 MB"
retry_delays = ["1s"]
delay_warning_after = "0s"
"""
ZONES = {
    "mx.example": f"@ MX 10 mail\nmail A {ADDRESS}",
    # One of its families leads nowhere.
    "dual.example": "@ MX 10 mail\nmail AAAA ::1\nmail A 127.0.1.9",
    "three.example": f"@ MX 10 postfix\n@ MX 20 exim\n@ MX 30 opensmtpd\n"
    f"postfix A 127.0.0.1\nexim A {ADDRESS}\nopensmtpd A 127.0.1.3",
}


Server = TypeVar("Server", Mta, Postfix)


class Town:
    """A relay, the office that gets its reports, and the servers that the test puts there."""

    def __init__(self, directory: Path, authority: Authority, stack: ExitStack) -> None:
        self._stack = stack
        self.office = stack.enter_context(MisbehavingHop(host="127.0.1.1", port=25))
        stack.enter_context(DnsServer(ZONES, port=53))
        self.relay = Relay(directory, port=2525, configuration=CONFIGURATION.format(hop='tls = "off"'))
        bundle = ssl.get_default_verify_paths().openssl_cafile_env
        self.relay.environment[bundle] = str(authority.certificate)
        stack.enter_context(self.relay)
        self.secret = directory / "office.password"
        self.secret.touch(mode=0o600)

    def hold(self, server: Server) -> Server:
        return self._stack.enter_context(server)

    def submit(
        self, *recipients: str, options: str = "", mail: Sequence[str] = (), content: bytes = MESSAGE
    ) -> str:
        """The queue id. ``options``: the parameters of each RCPT."""
        with smtplib.SMTP("127.0.0.1", 2525, timeout=20) as client:
            client.ehlo("copier")
            assert client.mail(SENDER, ["BODY=8BITMIME", *mail])[0] == 250
            for each in recipients:
                assert client.rcpt(each, options.split())[0] == 250
            code, words = client.data(content)
        assert code == 250, words
        return words.decode().split()[-1]

    def told(self, queue_id: str, event: str, to: str) -> dict[str, object]:
        """What the log says of it, once it does."""

        def found() -> list[dict[str, object]]:
            events: list[dict[str, object]] = self.relay.ask("trace", queue_id)
            return [each for each in events if (each["event"], each.get("to")) == (event, to)]

        wait_until(found, 20, f"{to} to be {event}")
        return found()[0]

    def reports(self, count: int) -> list[EmailMessage]:
        """Those that the office got, in the order of their recipients."""
        wait_until(lambda: len(self.office.messages) >= count, 20, f"{count} reports at the office")
        assert len(self.office.messages) == count
        assert all(message.mail.startswith("FROM:<>") for message in self.office.messages)
        found = [report_in(message.content) for message in self.office.messages]
        return sorted(found, key=lambda report: fields_of(report)[1]["final-recipient"])


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def town(tmp_path: Path, authority: Authority) -> Iterator[Town]:
    with namespaces.own_network(), ExitStack() as stack:
        yield Town(tmp_path, authority, stack)


def delivered(mta: Mta, count: int) -> list[bytes]:
    wait_until(lambda: len(mta.inbox()) >= count, 20, f"{count} messages in the Maildir")
    assert len(mta.inbox()) == count
    return mta.inbox()


@pytest.mark.parametrize("make", [exim, opensmtpd])
def test_mail_arrives_as_it_was_submitted(town: Town, make: Callable[..., Mta]) -> None:
    mta = town.hold(make(address=ADDRESS))
    large = MESSAGE + b".page\r\n" * 50_000
    for content in (MESSAGE, large):
        town.submit(*(f"ann@{way}" for way in WAYS), content=content)
    arrived = delivered(mta, 4)
    for content in (MESSAGE, large):
        assert sum(each.endswith(b"\n" + content.replace(b"\r\n", b"\n")) for each in arrived) == 2


@pytest.mark.parametrize(
    ("make", "reason"), [(exim, "550 no such user here"), (opensmtpd, "[0-9]{3} 5.[0-9].[0-9] ")]
)
@pytest.mark.parametrize("way", WAYS)
def test_an_unknown_recipient_fails_alone(
    town: Town, make: Callable[..., Mta], reason: str, way: str
) -> None:
    mta = town.hold(make(address=ADDRESS))
    queue_id = town.submit(f"ann@{way}", f"nobody.here@{way}")
    town.told(queue_id, "relayed", f"ann@{way}")
    town.told(queue_id, "failed", f"nobody.here@{way}")
    delivered(mta, 1)
    (report,) = town.reports(1)
    _, *failed = fields_of(report)
    assert [each["final-recipient"] for each in failed] == [f"rfc822;nobody.here@{way}"]
    assert failed[0]["action"] == "failed" and failed[0]["status"].startswith("5.")
    assert re.search(reason, failed[0]["diagnostic-code"])


@pytest.mark.parametrize("make", [exim, opensmtpd])
def test_what_is_too_large_for_it_fails_with_the_reason(town: Town, make: Callable[..., Mta]) -> None:
    mta = town.hold(make(address=ADDRESS, size_max_bytes=20_000))
    town.submit(*(f"ann@{way}" for way in WAYS), content=MESSAGE + b".page\r\n" * 5_000)
    town.submit(*(f"ann@{way}" for way in WAYS))
    delivered(mta, 2)  # the small one
    for report, way in zip(town.reports(2), WAYS, strict=True):
        (ann,) = fields_of(report)[1:]
        assert (ann["final-recipient"], ann["status"]) == (f"rfc822;ann@{way}", "5.3.4")


@pytest.mark.parametrize("make", [exim, opensmtpd])
def test_who_is_too_many_for_it_follows_at_once(town: Town, make: Callable[..., Mta]) -> None:
    """Exim says 452, OpenSMTPD 451 4.5.3; neither is a reason to wait."""
    mta = town.hold(make(address=ADDRESS, recipients_max=2))
    for way in WAYS:
        names = [f"{name}@{way}" for name in KNOWN]
        queue_id = town.submit(*names)
        for each in names:
            assert town.told(queue_id, "relayed", each)["attempt"] == 1
    delivered(mta, len(KNOWN) * len(WAYS))


def test_exim_reports_what_was_asked_for(town: Town) -> None:
    """All handed on as it came: Exim tells in our place, by the sender's own names, and only who asked."""
    mta = town.hold(exim(address=ADDRESS, dsn=True))
    asked = "NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;{}+2Bscan@Far.example"
    for way in WAYS:
        for name, options in (
            ("ann", asked),
            (GONE, asked),
            ("bob", "NOTIFY=FAILURE"),
            (GONE, "NOTIFY=NEVER"),
        ):
            options = options.format(name)
            town.submit(f"{name}@{way}", options=options, mail=["ENVID=QQ+3D314", "RET=FULL"])
    reports = [report_in(each) for each in delivered(mta, 8) if b"multipart/report" in each]
    told = Counter[tuple[str, str]]()
    for report in reports:
        of_message, recipient = fields_of(report)
        # (Some of its versions do not take the xtext apart.)
        assert of_message["original-envelope-id"].replace("+3D", "=") == "QQ=314"
        original = recipient["original-recipient"].replace("+2B", "+")
        told[original, recipient["action"]] += 1
        is_whole = "two dots, and one" in report.as_string()
        assert is_whole == (recipient["action"] == "failed"), "RET is about failures (RFC 3461 4.3)"
    assert told == {
        ("rfc822;ann+scan@Far.example", "delivered"): len(WAYS),
        (f"rfc822;{GONE}+scan@Far.example", "failed"): len(WAYS),
    }
    assert not town.office.messages


def test_opensmtpd_reports_what_was_asked_for(town: Town) -> None:
    mta = town.hold(opensmtpd(address=ADDRESS))
    for way in WAYS:
        town.submit(f"ann@{way}", options="NOTIFY=SUCCESS", mail=["ENVID=QQ+3D314"])
        town.submit(f"bob@{way}", options="NOTIFY=FAILURE ORCPT=rfc822;bob@far.example", mail=["RET=HDRS"])
    arrived = delivered(mta, 6)
    assert sum(b"Action: delivered" in each and b"ann@" in each for each in arrived) == 2
    assert not town.office.messages


@pytest.mark.parametrize("make", [exim, opensmtpd])
def test_we_report_for_one_without_dsn(town: Town, make: Callable[..., Mta]) -> None:
    mta = town.hold(make(address=ADDRESS, dsn=False))
    options = "NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;Ann+2Bscan@Far.example"
    for way in WAYS:
        town.submit(f"ann@{way}", options=options, mail=["ENVID=QQ+3D314", "RET=FULL"])
        town.submit(f"bob@{way}", options="NOTIFY=FAILURE")
    delivered(mta, 4)
    for report, way in zip(town.reports(2), WAYS, strict=True):
        of_message, ann = fields_of(report)
        assert of_message["original-envelope-id"] == "QQ=314"
        assert (ann["final-recipient"], ann["action"]) == (f"rfc822;ann@{way}", "relayed")
        assert ann["original-recipient"] == "rfc822;Ann+scan@Far.example"


def test_greylisting_delays_and_nothing_more(town: Town) -> None:
    mta = town.hold(exim(address=ADDRESS, greylisting_seconds=1))
    for way in WAYS:
        queue_id = town.submit(f"ann@{way}", f"bob@{way}")
        deferred = town.told(queue_id, "deferred", f"bob@{way}")
        assert re.match("451 .*greylisted", str(deferred["reply"]))
        town.told(queue_id, "relayed", f"ann@{way}")
        town.told(queue_id, "relayed", f"bob@{way}")
    delivered(mta, 4)
    assert not town.office.messages


@pytest.mark.parametrize("way", WAYS)
def test_a_limit_of_connections_is_kept_to(town: Town, way: str) -> None:
    """A 421 to one too many slows us down; it holds nothing up."""
    mta = town.hold(exim(address=ADDRESS, connections_max=1))
    for _ in range(30):
        town.submit(f"ann@{way}")
    wait_until(lambda: not town.relay.ask("queue", "list"), 20, "an empty queue")
    told = Counter(line.partition(" ")[0] for line in town.relay.log.read_text().splitlines())
    assert (told["relayed"], told["deferred"], told["paused"]) == (30, 0, 0)
    assert 0 < mta.log().count("too many connections") <= 6


@pytest.mark.parametrize("make", [exim, opensmtpd])
def test_smtputf8_goes_where_it_is_understood(town: Town, make: Callable[..., Mta]) -> None:
    mta = town.hold(make(address=ADDRESS))
    for way in WAYS:
        queue_id = town.submit(f"{BEYOND_ASCII}@{way}", mail=["SMTPUTF8"])
        if make is exim:
            town.told(queue_id, "relayed", f"{BEYOND_ASCII}@{way}")
        else:
            assert "5.6.7" in str(town.told(queue_id, "failed", f"{BEYOND_ASCII}@{way}")["reply"])
    delivered(mta, len(WAYS) if make is exim else 0)


@pytest.mark.parametrize("make", [exim, opensmtpd])
def test_a_family_that_is_dead_does_not_hide_the_other(town: Town, make: Callable[..., Mta]) -> None:
    mta = town.hold(make(address="::1"))
    assert town.told(town.submit("ann@dual.example"), "relayed", "ann@dual.example")["attempt"] == 1
    delivered(mta, 1)


def hop_state(town: Town) -> str:
    (state,) = {each["state"] for each in town.relay.ask("status")["smart_hosts"] if each["name"] == "hop"}
    return str(state)


@pytest.mark.parametrize("password", ["right", "wrong"])
def test_exim_wants_a_password(town: Town, authority: Authority, password: str) -> None:
    leaf = authority.leaf(f"IP:{ADDRESS}")
    mta = town.hold(exim(address=ADDRESS, tls=leaf, login=("office", "right")))
    town.secret.write_text(password)
    town.relay.reload(
        CONFIGURATION.format(hop='tls = "starttls", username = "office", password_file = "office.password"')
    )
    queue_id = town.submit("ann@hop.example")
    if password == "right":  # noqa: S105
        town.told(queue_id, "relayed", "ann@hop.example")
        delivered(mta, 1)
    else:
        wait_until(lambda: hop_state(town) == "paused", 20, "the pause")
        (waiting,) = town.relay.ask("queue", "list")
        assert waiting["recipients"][0]["status"] == "pending"
        assert mta.log().count("535 Incorrect authentication data") == 1
    assert not town.office.messages


def shakes_hands(mta: Mta, authority: Authority) -> bool:
    """Whether its TLS is worth anything: that of Debian 12's OpenSMTPD is offered, and breaks off."""
    context = ssl.create_default_context(cafile=str(authority.certificate))
    try:
        with smtplib.SMTP(mta.address, mta.port, timeout=10) as client:
            client.starttls(context=context)
    except ssl.SSLError:
        return False
    return True


@pytest.mark.parametrize("make", [exim, opensmtpd])
def test_tls_is_used_and_told(town: Town, authority: Authority, make: Callable[..., Mta]) -> None:
    leaf = authority.leaf(f"DNS:mail.mx.example,IP:{ADDRESS}")
    mta = town.hold(make(address=ADDRESS, tls=leaf))
    town.relay.reload(CONFIGURATION.format(hop='tls = "starttls"'))
    works = shakes_hands(mta, authority)
    ids = [town.submit(f"ann@{way}") for way in WAYS]
    to_mx = town.told(ids[1], "relayed", "ann@mx.example")
    if works:
        town.told(ids[0], "relayed", "ann@hop.example")
        assert to_mx["tls"] == "TLSv1.3 unverified"
        assert all(re.search(rb"(?i) with esmtps ", each) for each in delivered(mta, 2))
    else:
        deferred = town.told(ids[0], "deferred", "ann@hop.example")
        assert "TLS" in str(deferred["reply"]) and to_mx["tls"] == "none"
        delivered(mta, 1)


@pytest.mark.skipif(bool(postfix.why_not()), reason=postfix.why_not())
def test_the_next_mx_host_takes_what_the_first_puts_off(town: Town) -> None:
    """Bob is taken by the Postfix, which puts Ann off; she goes to the Exim; the OpenSMTPD is not needed."""
    table = "inline:{ann@three.example={451 4.3.0 full just now}}"
    first = town.hold(
        Postfix(
            port=25, parameters={"smtpd_recipient_restrictions": f"check_recipient_access {table}, permit"}
        )
    )
    second, third = town.hold(exim(address=ADDRESS)), town.hold(opensmtpd(address="127.0.1.3"))
    queue_id = town.submit("ann@three.example", "bob@three.example")
    taken_by = {
        to: town.told(queue_id, "relayed", f"{to}@three.example")["next_hop"] for to in ("ann", "bob")
    }
    assert taken_by == {"ann": "exim.three.example", "bob": "postfix.three.example"}
    delivered(second, 1)
    wait_until(lambda: len(list(first.inbox.iterdir())) == 1, 20, "Postfix to deliver")
    town.relay.stop()
    assert not third.inbox()
