"""Next hops that misbehave in every way we know of, as smart hosts and as MX hosts of domains, all at once.

Two towns: in one the trouble passes, in the other it lasts. Each fault has a smart host and a domain of its
own, which get twenty messages each through one real relay; then it is counted what became of every message.
Whatever happens: it arrived once, or its sender was told of it once, or it is in the queue; it is both told
and arrived, or arrived twice, only where the other side never confirmed the end of data.
"""

from __future__ import annotations

import contextlib
import email
import re
import smtplib
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support import namespaces
from tests.support.certificates import Authority
from tests.support.dns_server import NSD, DnsServer
from tests.support.misbehaving_hop import DROP, EXTENSIONS, RESET, Act, Action, MisbehavingHop, Script
from tests.support.processes import wait_until
from tests.support.relay import Relay

pytestmark = [
    pytest.mark.slow,  # the schedule of the lasting trouble, twice
    pytest.mark.skipif(
        NSD is None or not namespaces.possible(), reason="needs NSD, root and network namespaces"
    ),
]

MESSAGES = 20  # to each next hop
TIMES = 5  # that a passing fault shows

ARRIVES = "arrives"
FAILS = "fails"  # at once: the sender is told what the other side said
EXPIRES = "expires"  # the sender is told when the schedule is used up
WAITS = "waits"  # our own trouble: nobody is told, the mail stays
NOT_THERE = ""  # nothing that an MX host does


@dataclass(frozen=True)
class Fault:
    """``hop``, ``mx``: what becomes of a message if the trouble lasts. ``reason``: words of its report."""

    name: str
    script: Script
    hop: str
    mx: str
    reason: str = ""
    tls: bool = False
    login: bool = False
    body_bytes: int = 100
    content_bytes: int = 0
    extensions: tuple[str, ...] = EXTENSIONS
    unconfirmed: bool = False  # the end of data goes unanswered: it may arrive more often


def _passing(name: str, key: str, action: Action, reason: str = "", **more: object) -> Fault:
    """Trouble of the next hop, of whatever kind it is: mail waits for its end."""
    return Fault(name, {key: action}, EXPIRES, EXPIRES, reason, **more)  # type: ignore[arg-type]


def _refusal(name: str, key: str, reply: str, **more: object) -> Fault:
    return Fault(name, {key: reply}, FAILS, FAILS, reply, **more)  # type: ignore[arg-type]


def _harmless(name: str, script: Script, **more: object) -> Fault:
    return Fault(name, script, ARRIVES, ARRIVES, **more)  # type: ignore[arg-type]


def _account(name: str, key: str, reply: str, mx: str = FAILS) -> Fault:
    """Our own trouble with a smart host; an MX host, where we have no account, has refused the mail."""
    return Fault(name, {key: reply}, WAITS, mx, reply)


def _of_tls(name: str, key: str, action: Action, reason: str = "TLS|4.7.5") -> Fault:
    """A smart host must have it; to an MX host mail goes in clear then."""
    return Fault(name, {key: action}, EXPIRES, ARRIVES, reason, tls=True)


def _tarpit(*keys: str) -> Script:
    replies = {"DATA": b"354 go ahead\r\n", "CONNECT": b"220 tar\r\n"}
    return {key: Act(replies.get(key, b"250 2.0.0 well\r\n"), after_seconds=0.3) for key in keys}


TAKEN = b"250 2.0.0 taken\r\n"
LONG_LINE = b"250-" + b"x" * 100_000 + b"\r\n250 ok\r\n"
WITHOUT_END = b"250-on and on\r\n" * 10_000

FAULTS = (
    # before there is a session
    _passing("banner-missing", "CONNECT", Act(after_seconds=0.5, then="close"), "the greeting"),
    _passing("banner-reset", "CONNECT", RESET),
    _passing("banner-421", "CONNECT", "421 4.3.2 too busy", "too busy"),
    _passing("banner-554", "CONNECT", "554 5.7.1 go away", "go away"),
    _passing("banner-of-ssh", "CONNECT", Act(b"SSH-2.0-OpenSSH_9.2\r\n")),
    _passing("banner-of-http", "CONNECT", Act(b"HTTP/1.1 400 Bad Request\r\n\r\n", then="close")),
    _passing("banner-oversize", "CONNECT", Act(b"220-" + b"x" * 100_000 + b"\r\n220 hop\r\n")),
    _passing("banner-half-close", "CONNECT", Act(b"220 hop.example\r\n", then="half-close")),
    _passing("ehlo-421", "EHLO", "421 4.3.2 closing now", "closing now"),
    _passing("ehlo-550", "EHLO", "550 5.7.1 not you", "not you"),
    _passing("ehlo-lost", "EHLO", DROP),
    _passing("ehlo-nonsense", "EHLO", Act(b"\xff\xfe\x00nonsense\r\n")),
    _passing("ehlo-without-end", "EHLO", Act(WITHOUT_END)),
    _of_tls("starttls-454", "STARTTLS", "454 4.7.0 no TLS just now", "no TLS just now"),
    _of_tls("starttls-lost", "STARTTLS", DROP, ""),
    _of_tls("handshake-lost", "TLS", DROP, ""),
    _of_tls("handshake-nonsense", "TLS", Act(b"this is no TLS\r\n", then="close")),
    Fault("auth-454", {"AUTH": "454 4.7.0 later"}, EXPIRES, NOT_THERE, "4.7.0 later", tls=True, login=True),
    Fault("auth-lost", {"AUTH": DROP}, EXPIRES, NOT_THERE, tls=True, login=True),
    Fault("auth-535", {"AUTH": "535 5.7.8 wrong"}, WAITS, NOT_THERE, tls=True, login=True),
    Fault("auth-504", {"AUTH": "504 5.5.4 unknown"}, WAITS, NOT_THERE, tls=True, login=True),
    # the envelope
    _account("mail-530", "MAIL", "530 5.7.0 sign in first"),
    _account("mail-basic-auth-off", "MAIL", "550 5.7.30 basic authentication"),
    _account("mail-limit", "MAIL", "554 5.7.0 limit exceeded"),
    _passing("mail-421", "MAIL", "421 4.7.0 slow down", "slow down"),
    _passing("mail-432", "MAIL", "432 4.3.2 threads", "threads"),
    _passing("mail-450", "MAIL", "450 4.7.1 too fast", "too fast"),
    _passing("mail-451", "MAIL", "451 4.3.0 just now not", "just now not"),
    _passing("mail-452", "MAIL", "452 4.3.1 disk full", "disk full"),
    _passing("mail-lost", "MAIL", DROP),
    _passing("mail-reset", "MAIL", RESET),
    _passing("mail-half-close", "MAIL", Act(then="half-close")),
    _passing("mail-nonsense", "MAIL", Act(b"how are you?\r\n")),
    _passing("mail-three-digits-of-no-kind", "MAIL", Act(b"999 what\r\n")),
    _passing("mail-oversize", "MAIL", Act(LONG_LINE)),
    _passing("mail-without-end", "MAIL", Act(WITHOUT_END)),
    _passing("mail-answered-twice", "MAIL", Act(b"250 ok\r\n421 4.3.2 rather not\r\n", then="close")),
    _refusal("mail-550", "MAIL", "550 5.7.1 sender unwanted"),
    _refusal("mail-552", "MAIL", "552 5.3.4 too large"),
    _passing("rcpt-421", "RCPT", "421 4.3.2 closing", "4.3.2 closing"),
    _passing("rcpt-450", "RCPT", "450 4.2.0 greylisted", "greylisted"),
    _passing("rcpt-452", "RCPT", "452 4.5.3 too many", "too many"),
    _passing("rcpt-552", "RCPT", "552 too many in one", "too many in one"),
    _passing("rcpt-lost", "RCPT", DROP),
    _passing("rcpt-of-two-codes", "RCPT", Act(b"250-2.1.5 yes\r\n450 4.2.0 or no\r\n"), "or no"),
    _refusal("rcpt-550", "RCPT", "550 5.1.1 unknown here"),
    _refusal("rcpt-553", "RCPT", "553 5.1.3 what an address"),
    # the content
    _passing("data-421", "DATA", "421 4.3.2 closing", "4.3.2 closing"),
    _passing("data-451", "DATA", "451 4.3.0 no room", "no room"),
    _refusal("data-554", "DATA", "554 5.7.1 no mail today"),
    _passing("content-reset", "CONTENT", RESET),
    _passing("content-reset-midway", "CONTENT", RESET, body_bytes=200_000, content_bytes=50_000),
    _passing("content-lost-midway", "CONTENT", DROP, body_bytes=200_000, content_bytes=50_000),
    _refusal("dot-554", "DOT", "554 5.7.1 smells of spam"),
    _passing("dot-421", "DOT", "421 4.3.2 closing", "4.3.2 closing"),
    _passing("dot-451", "DOT", "451 4.3.0 scanner down", "scanner down"),
    _account("dot-send-as-denied", "DOT", "554 5.2.252 SendAsDenied"),
    _passing("dot-354", "DOT", "354 go on"),
    _passing("dot-lost", "DOT", DROP),
    _passing("dot-half-close", "DOT", Act(then="half-close")),
    _passing("reply-lost", "DOT", Act(then="close", takes=True), unconfirmed=True),
    _passing("reply-reset", "DOT", Act(then="reset", takes=True), unconfirmed=True),
    _passing("reply-cut", "DOT", Act(b"250 2.0", then="close", takes=True), unconfirmed=True),
    _passing("reply-nonsense", "DOT", Act(b"\0\0\0\r\n", takes=True), unconfirmed=True),
    _refusal("too-small", "HELO", "552 5.3.4", extensions=("SIZE 100",)),
    # what does no harm
    _harmless("tarpit", _tarpit("CONNECT", "MAIL", "RCPT", "DATA")),
    _harmless("slow-reading", {"CONTENT": Act(after_seconds=0.05)}, body_bytes=200_000),
    _harmless("reply-late", {"DOT": Act(TAKEN, after_seconds=1, takes=True)}),
    _harmless("reply-of-many-lines", {"DOT": Act(b"250-2.0.0 one\r\n250-\r\n250\r\n", takes=True)}),
    _harmless("reply-with-bare-lf", {"MAIL": Act(b"250 fine\n")}),
    _harmless("reply-twice", {"DOT": Act(TAKEN + TAKEN, takes=True)}),
    _harmless("lost-between-messages", {"DOT": Act(TAKEN, then="close", takes=True)}),
    _harmless("reset-between-messages", {"DOT": Act(TAKEN, then="reset", takes=True)}),
    _harmless("421-between-messages", {"DOT": Act(TAKEN + b"421 bye\r\n", then="close", takes=True)}),
    _harmless("quit-unanswered", {"QUIT": DROP}),
    _harmless("without-extensions", {}, extensions=()),
)  # fmt: skip

HOP, MX = "hop", "mx"
ROUTES = (HOP, MX)

FILE = """\
hostname = "relay.office.example"
postmaster = "admin@office.example"
listeners = [{{address = "127.0.0.1:2525"}}]
direct = {{dns_servers = ["127.0.0.1"], allow_private = true}}
[submission]
sender_domains = ["office.example"]
messages_per_hour_max = 0
message_size_max = "1 MB"
[queue]
free_space_min = "16 MB"
retry_delays = ["1s", "1s", "2s"]
lifetime = "{lifetime}"
delay_warning_after = "0s"
"""
SMART_HOST = """\
[smart_hosts.{name}]
host = "{address}"
port = 25
tls = "{tls}"
[[routes]]
recipients = ["*@{name}.hop.example"]
via = ["{name}"]
"""
MESSAGE = "From: scans@office.example\r\nSubject: a scan\r\nMessage-ID: <{key}@copier>\r\n\r\n{body}\r\n"
OUR_MESSAGE_ID = re.compile(rb"^Message-ID: <([\w.-]+)@copier>", re.MULTILINE | re.IGNORECASE)


def _expected(fault: Fault, route: str, lasting: bool) -> str:
    fate = fault.hop if route == HOP else fault.mx
    return fate if lasting or fate in (FAILS, NOT_THERE) else ARRIVES


@dataclass
class Town:
    """What has become of all the messages, when all had time to come to their ends."""

    lasting: bool
    arrived: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    told: dict[str, list[email.message.Message]] = field(default_factory=dict)  # by message
    queued: set[str] = field(default_factory=set)
    cut_short: list[str] = field(default_factory=list)
    log: str = ""


class _Builder:
    def __init__(self, directory: Path, lasting: bool, stack: ExitStack) -> None:
        self.town = Town(lasting)
        self._stack = stack
        self._authority = Authority(directory)
        self._directory = directory
        self._hops: dict[tuple[str, str], MisbehavingHop] = {}

    def build(self) -> Town:
        office = self._stack.enter_context(MisbehavingHop(host="127.0.1.1", port=25))
        zone = ["mx A 127.0.1.1"]
        file = FILE.format(lifetime="6s" if self.town.lasting else "10m")
        for number, fault in enumerate(FAULTS, 1):
            zone.append(f"{fault.name} MX 10 host.{fault.name}\nhost.{fault.name} A 127.0.3.{number}")
            file += self._smart_host(fault, f"127.0.2.{number}")
            self._hops[fault.name, HOP] = self._start(fault, HOP, f"127.0.2.{number}")
            self._hops[fault.name, MX] = self._start(fault, MX, f"127.0.3.{number}")
        file += '[[routes]]\nvia = ["direct"]\n'
        zones = {"mx.example": "\n".join(zone), "office.example": "@ MX 10 mx\nmx A 127.0.1.1"}
        self._stack.enter_context(DnsServer(zones, port=53))
        relay = self._stack.enter_context(Relay(self._directory, port=2525, configuration=file))
        self._submit()
        self._wait(relay, office)
        self._count(relay, office)
        return self.town

    def _smart_host(self, fault: Fault, address: str) -> str:
        tls = "starttls" if fault.tls else "off"
        text = SMART_HOST.format(name=fault.name, address=address, tls=tls)
        if fault.login:
            (self._directory / "password").write_text("secret\n")
            (self._directory / "password").chmod(0o600)
            text = text.replace("port", 'username = "office"\npassword_file = "password"\nport')
        return text

    def _start(self, fault: Fault, route: str, address: str) -> MisbehavingHop:
        passes = not self.town.lasting and _expected(fault, route, lasting=True) in (EXPIRES, WAITS)
        tls = self._authority.leaf(f"IP:{address}").server_context() if fault.tls else None
        hop = MisbehavingHop(
            _that_passes(fault.script) if passes else fault.script,
            host=address,
            port=25,
            extensions=fault.extensions,
            tls=tls,
            accounts={"office": "secret"} if fault.login else None,
            content_bytes=fault.content_bytes,
        )
        return self._stack.enter_context(hop)

    def _submit(self) -> None:
        with smtplib.SMTP("127.0.0.1", 2525, timeout=60) as client:
            for number in range(MESSAGES):
                for fault, route in CASES:
                    key = f"{fault.name}.{route}.{number}"
                    lines = ".a line that begins with a dot\r\n" * (fault.body_bytes // 32)
                    content = MESSAGE.format(key=key, body=f"{lines}end of {key}").encode()
                    to = f"box{number}@{fault.name}.{route}.example"
                    client.sendmail("scans@office.example", [to], content)

    def _wait(self, relay: Relay, office: MisbehavingHop) -> None:
        """Until nothing is left but what is to wait; not for ever: the tests then say what is amiss."""
        waiting = MESSAGES * sum(_expected(*case, self.town.lasting) == WAITS for case in CASES)

        def settled() -> bool:
            time.sleep(0.5)
            return len(relay.ask("queue", "list")) <= waiting

        with contextlib.suppress(TimeoutError):
            wait_until(settled, 120, "every message to come to its end")

    def _count(self, relay: Relay, office: MisbehavingHop) -> None:
        town = self.town
        for case, hop in self._hops.items():
            keys = town.arrived[case] = Counter()
            for message in list(hop.messages):
                found = OUR_MESSAGE_ID.findall(message.content)
                if not found and not message.content:
                    continue  # what ends a DATA that nobody was taken for (RFC 2920 3.1)
                (key,) = found
                keys[key.decode()] += 1
                if not message.content.endswith(b"end of " + key + b"\r\n"):
                    town.cut_short.append(key.decode())
        for message in list(office.messages):
            (key,) = OUR_MESSAGE_ID.findall(message.content)
            town.told.setdefault(key.decode(), []).append(email.message_from_bytes(message.content))
        for each in relay.ask("queue", "list"):
            (to,) = (one["forward_path"] for one in each["recipients"])
            local_part, _, domain = to.partition("@")
            town.queued.add(f"{domain.removesuffix('.example')}.{local_part.removeprefix('box')}")
        town.log = relay.log.read_text()


def _that_passes(script: Script) -> Script:
    return {
        key: [action] * TIMES + [None] if isinstance(action, (str, Act)) else action
        for key, action in script.items()
    }


CASES = [(fault, route) for fault in FAULTS for route in ROUTES if route == HOP or fault.mx != NOT_THERE]


@pytest.fixture(scope="module", params=["passing", "lasting"])
def town(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    directory = tmp_path_factory.mktemp("town")
    with pytest.MonkeyPatch.context() as patch, namespaces.own_network(), ExitStack() as stack:
        builder = _Builder(directory, request.param == "lasting", stack)
        patch.setenv(ssl.get_default_verify_paths().openssl_cafile_env, str(directory / "ca.pem"))
        yield builder.build()


@pytest.mark.parametrize(("fault", "route"), CASES, ids=lambda each: getattr(each, "name", each))
def test_every_message_has_the_fate_that_is_due_to_it(town: Town, fault: Fault, route: str) -> None:
    arrived = town.arrived[fault.name, route]
    expected = _expected(fault, route, town.lasting)
    for number in range(MESSAGES):
        key = f"{fault.name}.{route}.{number}"
        reports = town.told.get(key, [])
        fates = {
            ARRIVES: arrived[key] > 0,
            "told": len(reports) > 0,
            WAITS: key in town.queued,
        }
        seen = {fate for fate, is_so in fates.items() if is_so}
        if fault.unconfirmed and not any(map(_was_never_tried, reports)):
            assert seen == ({ARRIVES, "told"} if town.lasting else {ARRIVES}), key
        else:
            assert seen == {{FAILS: "told", EXPIRES: "told"}.get(expected, expected)}, key
            assert arrived[key] <= 1, "it arrived twice"
        assert len(reports) <= 1, "its sender was told twice"
        for report in reports:
            _names_recipient_and_reason(report, f"box{number}@{fault.name}.{route}.example", fault, expected)
    assert not set(arrived) - {f"{fault.name}.{route}.{number}" for number in range(MESSAGES)}


def _was_never_tried(report: email.message.Message) -> bool:
    """Its next hop was paused from the moment it came until its schedule was used up."""
    return "451 4.4.1 the next hop is in trouble: " in _words(report)


def _names_recipient_and_reason(
    report: email.message.Message, recipient: str, fault: Fault, expected: str
) -> None:
    _, status, _ = (str(part) for part in report.get_payload())  # type: ignore[union-attr]
    words = _words(report)
    assert recipient in words and f"Final-Recipient: rfc822;{recipient}" in status
    assert "Action: failed" in status
    assert ("Status: 4.4.7" in status) == (expected == EXPIRES)
    assert any(each in words for each in fault.reason.split("|")), words


def _words(report: email.message.Message) -> str:
    """What a person reads of it, unwrapped."""
    return " ".join(str(report.get_payload(0)).split())


def test_nothing_was_cut_short(town: Town) -> None:
    assert not town.cut_short


def test_no_next_hop_makes_us_stumble(town: Town) -> None:
    assert "Traceback" not in town.log and "internal error" not in town.log
