"""Reports: byte for byte as in golden_dsn/, and what any mail program makes of them.

After a change on purpose: UPDATE_GOLDEN=1 pytest tests/unit/test_dsn.py, and read the difference.
"""

from __future__ import annotations

import email
import email.policy
import os
import quopri
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from flufl.bounce import all_failures

from pi_relay import headers
from pi_relay.dsn import FULL_SIZE_MAX_BYTES, HEADER_SIZE_MAX_BYTES, Original, compose
from pi_relay.lifecycle import DELETED, Report, ReportKind
from pi_relay.model import Envelope, Kind, Recipient, Reply

GOLDEN = Path(__file__).parent / "golden_dsn"
NOW = 1_700_000_000.0
HEADER = (
    b"Received: from copier (192.168.1.23) by relay.office.example\r\n"
    b"From: Copier 2F <scans@office.example>\r\n"
    b"To: bob@far.example\r\n"
    b"Subject: Scan 0042\r\n"
    b"Date: Tue, 14 Nov 2023 22:00:00 +0000\r\n"
    b"Message-ID: <42@copier.office.example>\r\n\r\n"
)
BODY = b"First page\r\n..a line that begins with a dot\r\n"
UNKNOWN = Reply(550, "5.1.1", "<bob@far.example>: no such user here", "mx.far.example")
GREYLISTED = Reply(450, "4.7.1", "Greylisted, please try again later", "mx.far.example")


def original(
    *recipients: Recipient, header: bytes = HEADER, body: bytes | None = BODY, **changes: Any
) -> Original:
    made = recipients or (Recipient("bob@far.example", last_reply=UNKNOWN),)
    envelope = Envelope(
        "5YYBFQF905", "scans@office.example", made, NOW - 90, device="copier-2f", client="192.168.1.23"
    )
    return Original(replace(envelope, **changes), header, body)


def report(kind: ReportKind = ReportKind.FAILED, *positions: int, **changes: Any) -> Report:
    made = Report(f"5YYBFQF905-{kind[0]}1-0", kind, Kind.DSN, "scans@office.example", positions or (0,))
    return replace(made, **changes)


@dataclass(frozen=True)
class Case:
    report: Report
    original: Original
    language: str = "en"
    retry_until: float | None = None
    hostname: str = "relay.office.example"

    def composed(self) -> bytes:
        block, body = compose(
            self.report,
            self.original,
            hostname=self.hostname,
            language=self.language,
            now=NOW,
            retry_until=self.retry_until,
        )
        return block + body


TO_POSTMASTER: dict[str, Any] = {"message_kind": Kind.REPORT, "to": "admin@office.example"}
WAITING = Recipient("bob@far.example", last_reply=GREYLISTED)
JAPANESE_SUBJECT = HEADER.replace(b"Scan 0042", b"=?utf-8?B?44K544Kt44Oj44Oz?=")

CASES = {
    "failed_en": Case(
        report(ReportKind.FAILED, 0, 2),
        original(
            Recipient(
                "bob@far.example", original_recipient="rfc822;bob+2Bscan@far.example", last_reply=UNKNOWN
            ),
            Recipient("ann@far.example"),
            Recipient(
                "big@far.example", last_reply=Reply(552, "5.3.4", "Message too large", "mx.far.example")
            ),
            envid="QQ+3D314",
        ),
    ),
    "failed_ja": Case(report(), original(header=JAPANESE_SUBJECT), language="ja"),
    "expired_en": Case(report(expired=frozenset({0})), original(WAITING)),
    "expired_ja": Case(report(expired=frozenset({0})), original(WAITING), language="ja"),
    "never_tried_en": Case(report(expired=frozenset({0})), original(Recipient("bob@far.example"))),
    "delayed_en": Case(report(ReportKind.DELAYED), original(WAITING), retry_until=NOW + 4 * 86400),
    "delayed_ja": Case(
        report(ReportKind.DELAYED), original(WAITING), language="ja", retry_until=NOW + 4 * 86400
    ),
    "relayed_en": Case(
        report(ReportKind.RELAYED),
        original(Recipient("bob@far.example", last_reply=Reply(250, "2.0.0", "queued", "mx.far.example"))),
    ),
    "returned_whole_en": Case(report(), original(ret="FULL")),
    "to_the_postmaster_en": Case(report(**TO_POSTMASTER), original(original_reverse_path="copier")),
    "about_a_dsn_en": Case(
        report(**TO_POSTMASTER, queue_id="5YYBFQF905-f1-0-f1-0"),
        original(kind=Kind.DSN, queue_id="5YYBFQF905-f1-0", reverse_path=""),
    ),
    "deleted_en": Case(report(), original(Recipient("bob@far.example", last_reply=DELETED))),
    "smtputf8_en": Case(
        report(to="scans@office.example"),
        original(
            Recipient("ボブ@far.example", last_reply=replace(UNKNOWN, text="そのような利用者はいません")),
            header=HEADER.replace(b"Scan 0042", "スキャン".encode()),
            smtputf8=True,
        ),
    ),
    "raw_8bit_header_en": Case(
        report(), original(header=HEADER.replace(b"Scan", "Prüfung".encode("latin-1")))
    ),
    "requiretls_en": Case(report(), original(ret="FULL", requiretls=True, envid="QQ+3D314")),
    "short_hostname_en": Case(report(), original(), hostname="raspberrypi"),
}


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    headers._date.cache_clear()
    yield
    monkeypatch.undo()
    time.tzset()
    headers._date.cache_clear()


def parsed(wire: bytes) -> EmailMessage:
    unstuffed = (b"\r\n" + wire).replace(b"\r\n..", b"\r\n.")[2:]
    message = email.message_from_bytes(unstuffed, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


def parts_of(wire: bytes) -> list[EmailMessage]:
    return list(parsed(wire).iter_parts())  # type: ignore[arg-type]


def status_fields(wire: bytes) -> list[dict[str, str]]:
    """The groups of fields of the delivery-status part, by name in lower case."""
    boundary = b"--" + str(parsed(wire).get_boundary()).encode()
    head, _, content = wire.split(boundary)[2].partition(b"\r\n\r\n")
    if b"quoted-printable" in head:
        content = quopri.decodestring(content)
    groups = [
        email.message_from_string(group) for group in content.decode().split("\r\n\r\n") if group.strip()
    ]
    return [{name.lower(): str(value) for name, value in group.items()} for group in groups]


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    path = GOLDEN / f"{name}.eml"
    wire = CASES[name].composed()
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(wire)
    assert wire == path.read_bytes()


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.eml")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_form_of_every_report(name: str) -> None:
    case = CASES[name]
    wire = case.composed()
    assert wire.isascii(), "any next hop can carry it"
    assert b"\n" not in wire.replace(b"\r\n", b"") and b"\r" not in wire.replace(b"\r\n", b"")
    assert max(map(len, wire.split(b"\r\n"))) <= 998
    assert wire.endswith(b"\r\n")
    assert all(not line.startswith(b".") or line.startswith(b"..") for line in wire.split(b"\r\n"))
    message = parsed(wire)
    assert not message.defects
    assert message.get_content_type() == "multipart/report"
    assert message["Content-Type"].params["report-type"] == "delivery-status"
    assert message["Auto-Submitted"] == "auto-replied"
    assert message["To"].addresses[0].addr_spec == case.report.to
    assert message["From"].addresses[0].username == "MAILER-DAEMON"
    assert message["Message-ID"].startswith(f"<{case.report.queue_id}@")
    redacted = case.original.envelope.requiretls
    assert message["In-Reply-To"] == (None if redacted else "<42@copier.office.example>")
    assert message["Date"].datetime.timestamp() == NOW
    assert message["Subject"]
    parts = parts_of(wire)
    assert len(parts) == (2 if redacted else 3) and not any(part.defects for part in parts)
    assert parts[0].get_content_type() == "text/plain"
    fields = status_fields(wire)
    assert fields[0]["reporting-mta"] == f"dns; {case.hostname}"
    assert len(fields) == 1 + len(case.report.positions)
    for position, group in zip(case.report.positions, fields[1:], strict=True):
        assert group["final-recipient"].endswith(case.original.envelope.recipients[position].forward_path)
        assert group["action"] == case.report.kind.value
        assert group["status"][0] in {"failed": "54", "delayed": "4", "relayed": "2"}[group["action"]]


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_prose_says_who_what_why_and_what_to_do(language: str) -> None:
    text = parts_of(Case(report(), original(header=JAPANESE_SUBJECT), language=language).composed())[
        0
    ].get_content()
    assert "<bob@far.example>" in text
    assert "スキャン" in text
    assert "550 5.1.1 <bob@far.example>: no such user here" in " ".join(text.split())
    assert "mx.far.example" in text and "5YYBFQF905" in text
    assert {"en": "What to do:", "ja": "対処方法:"}[language] in text


def test_the_fields_of_a_failure() -> None:
    message_fields, first, last = status_fields(CASES["failed_en"].composed())
    assert message_fields["original-envelope-id"] == "QQ=314"
    assert message_fields["arrival-date"] == "Tue, 14 Nov 2023 22:11:50 +0000"
    assert first["original-recipient"] == "rfc822;bob+scan@far.example"
    assert first["remote-mta"] == "dns; mx.far.example"
    assert first["diagnostic-code"] == "smtp; 550 5.1.1 <bob@far.example>: no such user here"
    assert first["last-attempt-date"] == "Tue, 14 Nov 2023 22:13:20 +0000"
    assert last["status"] == "5.3.4" and "will-retry-until" not in last


def test_expired_keeps_the_last_words() -> None:
    _, fields = status_fields(CASES["expired_en"].composed())
    assert fields["status"] == "4.4.7"
    assert fields["diagnostic-code"] == "smtp; 450 4.7.1 Greylisted, please try again later"
    _, never_tried = status_fields(CASES["never_tried_en"].composed())
    assert never_tried["status"] == "4.4.7" and "diagnostic-code" not in never_tried


def test_delayed_says_until_when() -> None:
    _, fields = status_fields(CASES["delayed_en"].composed())
    assert fields["will-retry-until"] == "Sat, 18 Nov 2023 22:13:20 +0000"
    assert fields["status"] == "4.7.1"


@pytest.mark.parametrize(
    ("enhanced_status", "status"),
    [("", "5.0.0"), ("4.1.1", "5.0.0"), ("5.1.1", "5.1.1"), ("5.1111.1", "5.0.0"), ("5.2.252", "5.2.252")],
)
def test_a_status_that_is_missing_or_contradicts_is_made(enhanced_status: str, status: str) -> None:
    recipient = Recipient("b@far.example", last_reply=Reply(550, enhanced_status, "no", "mx.example"))
    assert status_fields(Case(report(), original(recipient)).composed())[1]["status"] == status


def test_the_header_block_comes_back_and_the_whole_message_only_where_asked_for() -> None:
    returned = parts_of(CASES["failed_en"].composed())[2]
    assert returned.get_content_type() == "text/rfc822-headers"
    assert "Subject: Scan 0042" in returned.as_string() and "First page" not in returned.as_string()
    whole = parts_of(CASES["returned_whole_en"].composed())[2]
    assert whole.get_content_type() == "message/rfc822"
    assert "First page\n.a line that begins with a dot" in whole.as_string().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"body": None}, ReportKind.FAILED),
        ({"body": b"x" * 70 + b"\r\n" + FULL_SIZE_MAX_BYTES * b"y\r\n"}, ReportKind.FAILED),
        ({"body": "ü\r\n".encode()}, ReportKind.FAILED),
        ({"body": b"x" * 1200 + b"\r\n"}, ReportKind.FAILED),
        ({}, ReportKind.DELAYED),
    ],
)
def test_what_cannot_come_back_whole_comes_as_its_header(changes: dict[str, Any], kind: ReportKind) -> None:
    wire = Case(report(kind), original(ret="FULL", **changes)).composed()
    assert parts_of(wire)[2].get_content_type() == "text/rfc822-headers"


def test_a_large_header_block_is_cut_at_a_line() -> None:
    large = (
        HEADER[:-2] + b"".join(b"X-%05d: %s\r\n" % (number, b"v" * 80) for number in range(3000)) + b"\r\n"
    )
    wire = Case(report(), original(header=large)).composed()
    assert len(wire) < HEADER_SIZE_MAX_BYTES + 8192
    assert "X-00010: vvv" in parts_of(wire)[2].as_string()


def test_nothing_is_shown_of_a_message_that_asked_for_tls_all_the_way() -> None:
    wire = CASES["requiretls_en"].composed()
    assert b"Scan 0042" not in wire and b"42@copier" not in wire and b"First page" not in wire
    assert status_fields(wire)[0]["original-envelope-id"] == "QQ=314"


@pytest.mark.parametrize("name", CASES)
def test_another_program_finds_out_who_did_not_get_it(name: str) -> None:
    """flufl.bounce is what Mailman judges bounces by. It does not read the parts of RFC 6533."""
    case = CASES[name]
    transient, permanent = all_failures(parsed(case.composed()))
    # Where ORCPT told what the sender had called the recipient, that is what helps him.
    told = {_as_the_sender_knows(case.original.envelope.recipients[each]) for each in case.report.positions}
    if case.original.envelope.smtputf8 or case.report.kind is ReportKind.RELAYED:
        told = set()
    found = {
        address.decode() for address in (transient if case.report.kind is ReportKind.DELAYED else permanent)
    }
    assert found == told


def _as_the_sender_knows(recipient: Recipient) -> str:
    original = recipient.original_recipient
    return original.partition(";")[2].replace("+2B", "+") if original else recipient.forward_path


def test_smtputf8_originals_get_the_global_parts() -> None:
    wire = CASES["smtputf8_en"].composed()
    types = [part.get_content_type() for part in parts_of(wire)]
    assert types == ["text/plain", "message/global-delivery-status", "message/global-headers"]
    fields = status_fields(wire)[1]
    assert fields["final-recipient"] == "utf-8;ボブ@far.example"
    assert "そのような利用者はいません" in fields["diagnostic-code"]


def test_an_ascii_original_never_gets_them() -> None:
    recipient = Recipient("bob@far.example", last_reply=replace(UNKNOWN, text="いません"))
    wire = Case(report(), original(recipient)).composed()
    assert parts_of(wire)[1].get_content_type() == "message/delivery-status"
    assert "いません" in parts_of(wire)[0].get_content(), "a person sees the words"


def test_hostile_words_write_no_fields_and_no_endless_lines() -> None:
    words = "no\r\nX-Injected: yes\r\n.\r\n" + "x" * 5000
    recipient = Recipient("bob@far.example", last_reply=Reply(550, "5.7.1", words, "mx.far.example"))
    header = HEADER.replace(b"Scan 0042", b"=?utf-8?Q?a=0D=0AX-Injected:_yes?=")
    for language in ("en", "ja"):
        wire = Case(report(), original(recipient, header=header), language=language).composed()
        assert b"\r\nX-Injected" not in wire and b"\r\n.\r\n" not in wire
        assert max(map(len, wire.split(b"\r\n"))) <= 998


@pytest.mark.parametrize(
    "subject", [b"=?nosuch?B?AAAA?=", b"=?utf-8?B?###?=", b"=?utf-8?Q?=FF?=", b"", b"=?=?="]
)
def test_a_broken_subject_is_no_trouble(subject: bytes) -> None:
    wire = Case(report(), original(header=HEADER.replace(b"Scan 0042", subject))).composed()
    assert "bob@far.example" in parts_of(wire)[0].get_content()


def test_the_same_input_makes_the_same_bytes() -> None:
    for case in CASES.values():
        assert case.composed() == case.composed()
