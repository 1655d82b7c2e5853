"""The real relay in a network of its own: NSD at port 53, MX hosts at port 25, policies at port 443."""

from __future__ import annotations

import email
import re
import smtplib
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import namespaces
from tests.support.certificates import Authority
from tests.support.dns_server import NSD, DnsServer
from tests.support.https_server import HttpsServer, Page
from tests.support.misbehaving_hop import MisbehavingHop, Script
from tests.support.postfix import Postfix
from tests.support.processes import wait_until
from tests.support.relay import Relay

pytestmark = pytest.mark.skipif(
    NSD is None or not namespaces.possible(), reason="needs NSD, root and network namespaces"
)

MESSAGE = b"From: scans@office.example\r\nSubject: a scan\r\nMessage-ID: <1@copier>\r\n\r\n.one\r\n"
FILE = """\
hostname = "relay.office.example"
postmaster = "admin@office.example"
listeners = [{address = "127.0.0.1:2525"}]
submission = {sender_domains = ["office.example"]}
direct = {dns_servers = ["127.0.0.1"], allow_private = true}
routes = [{via = ["direct"]}]
[queue]
free_space_min = "16 MB"
retry_delays = ["1s", "1s", "2s"]
lifetime = "6s"
delay_warning_after = "0s"
"""
PATIENT = FILE.replace('["1s", "1s", "2s"]', '["1h"]').replace('"6s"', '"4d"')
STS = "version: STSv1\nmode: enforce\nmx: {host}\nmax_age: 86400\n"
ZONES = {
    "office.example": "@ MX 10 mx.office.example.\nmx A 127.0.1.1",
    "good.example": "@ MX 10 mx.good.example.\nmx A 127.0.1.2\n"
    '_mta-sts TXT "v=STSv1; id=1"\nmta-sts A 127.0.2.1',
    "bad.example": '@ MX 10 mx.good.example.\n_mta-sts TXT "v=STSv1; id=1"\nmta-sts A 127.0.2.1',
    "postfix.example": "@ MX 10 mx\nmx A 127.0.0.1",
    "dead.example": "@ MX 10 mx\nmx A 127.0.1.9",
    "null.example": "@ MX 0 .",
}


EXTENSIONS = ("STARTTLS", "PIPELINING", "SIZE", "REQUIRETLS")


class Town:
    """``office``: the MX of the office itself, which gets the reports. ``good``: one with TLS."""

    def __init__(self, directory: Path, authority: Authority, stack: ExitStack) -> None:
        self._stack = stack
        self.office = self.hop("127.0.1.1")
        context = authority.leaf("DNS:mx.good.example").server_context()
        self.good = self.hop("127.0.1.2", extensions=EXTENSIONS, tls=context)
        web = authority.leaf("DNS:mta-sts.good.example,DNS:mta-sts.bad.example").server_context()
        self.web = stack.enter_context(HttpsServer(web, address="127.0.2.1", port=443))
        self.web.pages["mta-sts.good.example"] = Page(STS.format(host="mx.good.example").encode())
        self.web.pages["mta-sts.bad.example"] = Page(STS.format(host="mx.bad.example").encode())
        stack.enter_context(DnsServer(ZONES, port=53))
        self.relay = stack.enter_context(Relay(directory, port=2525, configuration=FILE))

    def hop(self, host: str, script: Script | None = None, **more: object) -> MisbehavingHop:
        hop = MisbehavingHop(script, host=host, port=25, **more)  # type: ignore[arg-type]
        return self._stack.enter_context(hop)

    def submit(self, *to: str) -> str:
        """The queue id."""
        with smtplib.SMTP("127.0.0.1", 2525, timeout=20) as client:
            client.ehlo("copier")
            client.mail("scans@office.example")
            for each in to:
                assert client.rcpt(each)[0] == 250
            code, words = client.data(MESSAGE)
        assert code == 250, words
        return words.decode().split()[-1]

    def events(self, queue_id: str) -> list[dict[str, object]]:
        found: list[dict[str, object]] = self.relay.ask("trace", queue_id)
        return found

    def wait_for(self, queue_id: str, event: str) -> dict[str, object]:
        wait_until(
            lambda: any(each["event"] == event for each in self.events(queue_id)),
            30,
            f"{queue_id} to be {event}",
        )
        return next(each for each in self.events(queue_id) if each["event"] == event)

    def report(self) -> email.message.Message:
        """The one report that the office gets."""
        wait_until(lambda: len(self.office.messages) == 1, 30, "a report at the office")
        (message,) = self.office.messages
        assert message.mail.startswith("FROM:<>")
        return email.message_from_bytes(message.content)


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Town]:
    authority = Authority(tmp_path)
    monkeypatch.setenv(ssl.get_default_verify_paths().openssl_cafile_env, str(authority.certificate))
    with namespaces.own_network(), ExitStack() as stack:
        yield Town(tmp_path, authority, stack)


def test_mail_reaches_its_domain_and_the_log_tells_how(town: Town) -> None:
    queue_id = town.submit("ann@good.example")
    relayed = town.wait_for(queue_id, "relayed")
    assert (relayed["next_hop"], relayed["tls"]) == ("mx.good.example", "TLSv1.3 verified")
    (message,) = town.good.messages
    assert message.content.endswith(b"\r\n\r\n.one\r\n") or message.content.endswith(b"\r\n\r\n..one\r\n")
    assert town.good.connections[0].tls
    status = town.relay.ask("status")
    assert status["health"] == "ok" and [each["name"] for each in status["smart_hosts"]] == ["direct"]


def test_a_policy_outlives_its_web_server_and_a_restart(town: Town) -> None:
    town.wait_for(town.submit("ann@good.example"), "relayed")
    town.web.pages.clear()
    town.relay.stop()
    town.relay.start()
    relayed = town.wait_for(town.submit("bob@good.example"), "relayed")
    assert relayed["tls"] == "TLSv1.3 verified"


def test_what_a_policy_forbids_waits_and_then_fails_with_the_reason(town: Town) -> None:
    queue_id = town.submit("ann@bad.example")
    deferred = town.wait_for(queue_id, "deferred")
    assert "MTA-STS policy of bad.example" in str(deferred["reply"])
    report = town.report()
    assert not town.good.messages
    status = str(report.get_payload()[1])  # type: ignore[index]
    assert "Status: 4.4.7" in status and "ann@bad.example" in status
    assert "MTA-STS policy" in str(report.get_payload()[0])  # type: ignore[index]


@pytest.mark.parametrize(
    ("address", "status"),
    [("x@nowhere.office.example", "5.1.2"), ("x@null.example", "5.1.10"), ("x@dead.example", "4.4.7")],
)
def test_the_sender_is_told_why(town: Town, address: str, status: str) -> None:
    town.submit(address)
    report = town.report()
    said = str(report.get_payload()[1])  # type: ignore[index]
    assert f"Status: {status}" in said and f"Final-Recipient: rfc822;{address}" in said


def test_one_domain_in_trouble_delays_no_other(town: Town) -> None:
    town.relay.reload(PATIENT)
    waiting = town.submit("x@dead.example", "ann@good.example")
    relayed = town.wait_for(waiting, "relayed")
    assert relayed["to"] == "ann@good.example"
    town.wait_for(waiting, "deferred")
    status = town.relay.ask("status")
    assert status["health"] == "degraded" and "direct:dead.example" in status["reasons"][0]
    town.wait_for(town.submit("bob@good.example"), "relayed")
    shown = town.relay.ask("queue", "show", waiting)
    assert [each["status"] for each in shown["recipients"]] == ["pending", "relayed"]


def test_a_message_to_many_domains_is_settled_by_each(town: Town) -> None:
    fates = {
        "ann@good.example": "relayed",
        "bob@good.example": "relayed",
        "x@null.example": "failed",
        "x@nowhere.office.example": "failed",
        "x@dead.example": "deferred",
        "y@bad.example": "deferred",
        "admin@office.example": "relayed",
    }
    queue_id = town.submit(*fates)
    first: dict[str, dict[str, object]] = {}

    def told_of_all() -> bool:
        for event in town.events(queue_id):
            if event.get("queue_id") == queue_id and "next_hop" in event:  # not one of a report
                first.setdefault(str(event["to"]), event)
        return first.keys() == fates.keys()

    wait_until(told_of_all, 30, "every recipient to be told of")
    assert {to: event["event"] for to, event in first.items()} == fates
    assert first["x@null.example"]["next_hop"] == "direct:null.example"
    (message,) = town.good.messages
    assert message.rcpts == ["TO:<ann@good.example>", "TO:<bob@good.example>"]


def test_queue_retry_lifts_the_pause_of_a_domain(town: Town) -> None:
    town.relay.reload(PATIENT)
    queue_id = town.submit("x@dead.example")
    town.wait_for(queue_id, "deferred")
    late = town.hop("127.0.1.9")
    assert town.relay.ask("queue", "show", queue_id)["state"] == "deferred"
    town.relay.command("queue", "retry", queue_id)
    assert town.wait_for(queue_id, "relayed")["next_hop"] == "mx.dead.example"
    assert len(late.messages) == 1


def test_a_reload_lets_waiting_mail_take_another_way(town: Town) -> None:
    town.relay.reload(PATIENT)
    queue_id = town.submit("x@dead.example")
    town.wait_for(queue_id, "deferred")
    isp = town.hop("127.0.1.7")
    by_isp = PATIENT.replace('via = ["direct"]', 'via = ["direct", "isp"]')
    town.relay.reload(by_isp + '[smart_hosts.isp]\nhost = "127.0.1.7"\nport = 25\ntls = "off"\n')
    assert town.wait_for(queue_id, "relayed")["next_hop"] == "isp"
    assert len(isp.messages) == 1


@pytest.mark.parametrize("offered", [True, False])
def test_requiretls_from_device_to_mx(town: Town, offered: bool) -> None:
    """Taken over TLS, and handed on with it to a host whose name a policy vouches for; or not at all."""
    if not offered:
        town.good.extensions = tuple(each for each in town.good.extensions if each != "REQUIRETLS")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with smtplib.SMTP("127.0.0.1", 2525, timeout=20) as client:
        client.starttls(context=context)
        client.ehlo("copier")
        client.mail("scans@office.example", ["REQUIRETLS"])
        client.rcpt("ann@good.example")
        code, words = client.data(MESSAGE)
        assert code == 250, words
    queue_id = words.decode().split()[-1]
    if offered:
        assert town.wait_for(queue_id, "relayed")["tls"] == "TLSv1.3 verified"
        (message,) = town.good.messages
        assert message.mail.endswith(" REQUIRETLS")
    else:
        failed = town.wait_for(queue_id, "failed")
        assert "5.7.30" in str(failed["reply"]) and not town.good.messages


def test_a_real_postfix_as_mx(town: Town) -> None:
    with Postfix(port=25) as postfix:
        queue_id = town.submit("ann@postfix.example")
        relayed = town.wait_for(queue_id, "relayed")
        assert relayed["next_hop"] == "mx.postfix.example"
        assert re.match(r"250 2\.0\.0 Ok", str(relayed["reply"]))
        wait_until(lambda: len(list(postfix.inbox.iterdir())) == 1, 20, "Postfix to deliver")


def test_send_test_goes_direct(town: Town) -> None:
    said = town.relay.command("send-test", "ann@good.example", "--via", "direct").stdout
    assert "relayed: mx.good.example said" in said
