"""What the relay tells a sender (or the postmaster) about a message: a delivery status notification.

The shape is multipart/report (RFC 6522): prose for a person, message/delivery-status for programs (RFC 3464),
and the header block of the original, or all of it where RET=FULL asked for that and it is small. The parts of
an SMTPUTF8 original are the message/global ones of RFC 6533.

Rules: pure; from the same input come the same bytes, so that a replay overwrites only itself. Everything is
7-bit, with lines of at most 998 octets, so that any next hop can carry it; only an address that needs
SMTPUTF8 brings raw UTF-8, in To. Prose tells who, what, why (in the other side's words) and what to do. Of a
message that asked for REQUIRETLS nothing is shown: so its report may go any way that there is (RFC 8689 5).
It must not know the queue, or where a report goes from here.
"""

from __future__ import annotations

import re
import textwrap
from base64 import b64encode
from binascii import b2a_base64, b2a_qp
from collections.abc import Iterable
from dataclasses import dataclass, replace

from pi_relay import headers
from pi_relay.lifecycle import DELETED, NEVER_TRIED, Report, ReportKind, expiry
from pi_relay.model import Envelope, Kind, Recipient, Reply

HEADER_SIZE_MAX_BYTES = 32 * 1024  # of the original's header block in a report
FULL_SIZE_MAX_BYTES = 64 * 1024  # of an original that is returned whole
WORDS_LENGTH_MAX = 400  # characters of the other side's words
TEXT_WIDTH = 72


@dataclass(frozen=True, slots=True)
class Original:
    """The message that is reported on. ``envelope`` is the settled one, with every recipient's last reply."""

    envelope: Envelope
    header: bytes  # wire form
    body: bytes | None  # wire form; None where it is not at hand, or large


def compose(
    report: Report,
    original: Original,
    *,
    hostname: str,
    language: str,
    now: float,
    retry_until: float | None = None,
) -> tuple[bytes, bytes]:
    """A report as (header block, body) in wire form. Times are wall-clock seconds.

    ``language``: "en" or "ja"; ``retry_until``: when a delayed message is given up.
    """
    texts = TEXTS.get(language, TEXTS["en"])
    if original.envelope.requiretls:
        original = replace(original, header=b"", body=None)
    utf8 = original.envelope.smtputf8
    boundary = f"=_{report.queue_id}"
    prose = _prose(texts, report, original, hostname, retry_until)
    status = _delivery_status(report, original.envelope, hostname, now, retry_until, utf8)
    parts = [_text_part(prose, language), _status_part(status, utf8)]
    if original.header:
        parts.append(_original_part(report, original, utf8))
    body = b"".join(b"--%s\r\n%s\r\n" % (boundary.encode(), part) for part in parts)
    body = b"This is a report in MIME format.\r\n\r\n" + body + b"--%s--\r\n" % boundary.encode()
    fields = _header_fields(texts, report, original, hostname, language, now, boundary)
    block = "".join(f"{name}: {value}\r\n" for name, value in fields).encode() + b"\r\n"
    return block, _stuffed(body)


# ── the header block ─────────────────────────────────────────────────────────────────────────────


def _header_fields(
    texts: Texts,
    report: Report,
    original: Original,
    hostname: str,
    language: str,
    now: float,
    boundary: str,
) -> Iterable[tuple[str, str]]:
    domain = hostname if headers.is_public_hostname(hostname) else f"{hostname.partition('.')[0]}.invalid"
    yield "From", f"Mail relay <MAILER-DAEMON@{hostname}>"
    yield "To", f"<{report.to}>"
    yield "Subject", _encoded_words(texts.subjects[_theme(report, original.envelope)])
    yield "Date", headers.date(now).decode()
    yield "Message-ID", f"<{report.queue_id}@{domain}>"
    message_id = headers.Header(original.header).value(b"message-id")
    if re.fullmatch(rb"<[!-~]{1,900}>", message_id):
        yield "In-Reply-To", message_id.decode()
        yield "References", message_id.decode()
    yield "Auto-Submitted", "auto-replied"
    yield "Content-Language", language
    yield "MIME-Version", "1.0"
    yield (
        "Content-Type",
        f'multipart/report; report-type=delivery-status;\r\n\tboundary="{boundary}"',
    )


def _encoded_words(text: str) -> str:
    """A header's text as RFC 2047 wants it, folded; ASCII stays as it is."""
    if text.isascii():
        return text
    pieces = [
        text[start : start + 12] for start in range(0, len(text), 12)
    ]  # 12 characters: 75 octets at most
    return "\r\n ".join(f"=?utf-8?B?{b64encode(piece.encode()).decode()}?=" for piece in pieces)


# ── for people ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Texts:
    """The prose of one language. ``subjects`` and ``openings`` by theme, ``advice`` by enhanced status."""

    greeting: str
    subjects: dict[str, str]
    openings: dict[str, str]
    closings: dict[str, str]
    message: str
    subject: str
    accepted: str
    sender: str
    device: str
    queue_id: str
    answered: str
    itself: str
    retry_until: str
    advice_heading: str
    advice: tuple[tuple[str, str], ...]


def _theme(report: Report, envelope: Envelope) -> str:
    """What a report is about, as the keys of Texts name it."""
    return "report" if envelope.kind is not Kind.MAIL else report.kind.value


def _prose(texts: Texts, report: Report, original: Original, hostname: str, retry_until: float | None) -> str:
    theme = _theme(report, original.envelope)
    paragraphs = [
        _wrapped(texts.greeting.format(hostname=hostname)),
        "\n".join(_about(texts, report, original)),
        _wrapped(texts.openings[theme]),
        *(_about_recipient(texts, report, original.envelope, position) for position in report.positions),
    ]
    if report.kind is ReportKind.DELAYED and retry_until is not None:
        paragraphs.append(texts.retry_until.format(date=headers.date(retry_until).decode()))
    paragraphs.append(_wrapped(texts.closings[theme]))
    return "\n\n".join(paragraphs) + "\n"


def _about(texts: Texts, report: Report, original: Original) -> Iterable[str]:
    """The lines by which a person recognises the message."""
    envelope = original.envelope
    yield texts.message
    if subject := _subject(original.header):
        yield f"    {texts.subject}: {subject}"
    yield f"    {texts.accepted}: {headers.date(envelope.accepted_at).decode()}"
    if report.message_kind is Kind.REPORT and envelope.kind is Kind.MAIL:
        sender = envelope.original_reverse_path or envelope.reverse_path
        yield f"    {texts.sender}: {_one_line(sender)}"
        yield f"    {texts.device}: {_one_line(' '.join(filter(None, (envelope.device, envelope.client))))}"
    yield f"    {texts.queue_id}: {envelope.queue_id}"


def _about_recipient(texts: Texts, report: Report, envelope: Envelope, position: int) -> str:
    recipient = envelope.recipients[position]
    reply = recipient.last_reply or NEVER_TRIED
    lines = [f"  <{recipient.forward_path}>"]
    if report.kind is not ReportKind.RELAYED:
        who = texts.answered.format(host=reply.remote_mta) if reply.remote_mta else texts.itself
        lines += [f"    {who}", _wrapped(_one_line(str(reply)), "        ")]
    if report.kind is ReportKind.FAILED:
        status = _status(report, position, recipient)
        lines += [f"    {texts.advice_heading}", _wrapped(_advice(texts, status, reply), "        ")]
    return "\n".join(lines)


def _advice(texts: Texts, status: str, reply: Reply) -> str:
    status = "deleted" if reply == DELETED else status
    return next(advice for prefix, advice in texts.advice if status.startswith(prefix))


def _wrapped(text: str, indent: str = "") -> str:
    """Lines of a readable width; a language without spaces is left to the reader's program."""
    if not text.isascii() and " " not in text.strip():
        return indent + text
    return textwrap.fill(
        text,
        TEXT_WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _subject(header: bytes) -> str:
    """The original's subject for a person, decoded where that is possible; "" where there is none."""
    raw = headers.Header(header).value(b"subject").decode("utf-8", "replace")
    if "=?" in raw:
        from email.header import decode_header, make_header  # rare, and it is in memory for aiosmtpd anyway

        try:
            raw = str(make_header(decode_header(raw)))
        except (ValueError, LookupError):
            return _one_line(raw)
    return _one_line(raw)


def _one_line(text: str) -> str:
    """Nothing but printable characters, and not too many of them."""
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= WORDS_LENGTH_MAX else text[:WORDS_LENGTH_MAX] + "..."


# ── for programs ─────────────────────────────────────────────────────────────────────────────────


def _delivery_status(
    report: Report, envelope: Envelope, hostname: str, now: float, retry_until: float | None, utf8: bool
) -> str:
    """The fields of RFC 3464 2.2 and 2.3; a group of them a recipient."""
    message_fields = [
        ("Reporting-MTA", f"dns; {hostname}"),
        ("Original-Envelope-Id", envelope.envid and _decoded_xtext(envelope.envid)),
        ("Arrival-Date", headers.date(envelope.accepted_at).decode()),
        ("X-Queue-ID", envelope.queue_id),
    ]
    groups = [message_fields]
    for position in report.positions:
        recipient = envelope.recipients[position]
        groups.append(_recipient_fields(report, position, recipient, now, retry_until, utf8))
    return "\r\n".join(
        "".join(_folded(f"{name}: {_one_line(value)}") for name, value in group if value) for group in groups
    )


def _recipient_fields(
    report: Report, position: int, recipient: Recipient, now: float, retry_until: float | None, utf8: bool
) -> list[tuple[str, str | None]]:
    reply = recipient.last_reply
    address_type = "utf-8" if utf8 and not recipient.forward_path.isascii() else "rfc822"
    original = recipient.original_recipient
    kind, _, address = (original or "").partition(";")
    delayed = report.kind is ReportKind.DELAYED
    return [
        ("Original-Recipient", original and f"{kind};{_decoded_xtext(address)}"),
        ("Final-Recipient", f"{address_type};{recipient.forward_path}"),
        ("Action", report.kind.value),
        ("Status", _status(report, position, recipient)),
        ("Remote-MTA", f"dns; {reply.remote_mta}" if reply and reply.remote_mta else None),
        ("Diagnostic-Code", f"smtp; {reply}" if reply and reply.remote_mta else None),
        ("Last-Attempt-Date", headers.date(now).decode()),
        ("Will-Retry-Until", headers.date(retry_until).decode() if delayed and retry_until else None),
    ]


def _status(report: Report, position: int, recipient: Recipient) -> str:
    """The enhanced status (RFC 3463); a general one where there is none, or one that contradicts."""
    if position in report.expired:
        return expiry(recipient.last_reply).enhanced_status
    reply = recipient.last_reply or NEVER_TRIED
    kind = {ReportKind.FAILED: "5", ReportKind.DELAYED: "4", ReportKind.RELAYED: "2"}[report.kind]
    if re.fullmatch(kind + r"\.\d{1,3}\.\d{1,3}", reply.enhanced_status):
        return reply.enhanced_status
    return f"{kind}.0.0"


def _decoded_xtext(text: str) -> str:
    """RFC 3461 4: "+3D" is "="."""
    return re.sub(r"\+([0-9A-F]{2})", lambda found: chr(int(found[1], 16)), text)


def _folded(line: str) -> str:
    return "\r\n ".join(textwrap.wrap(line, 76, break_long_words=False, break_on_hyphens=False)) + "\r\n"


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def _text_part(text: str, language: str) -> bytes:
    content = text.replace("\n", "\r\n").encode()
    encoding = "7bit" if text.isascii() else "base64" if language == "ja" else "quoted-printable"
    charset = "us-ascii" if encoding == "7bit" else "utf-8"
    return _part(f"text/plain; charset={charset}", content, encoding)


def _status_part(status: str, utf8: bool) -> bytes:
    if utf8:
        return _part("message/global-delivery-status", status.encode(), "quoted-printable")
    return _part("message/delivery-status", status.encode("ascii", "replace"), "7bit")


def _original_part(report: Report, original: Original, utf8: bool) -> bytes:
    """The whole message where that was asked for and is possible in 7 bits, else its header block."""
    whole = _whole(report, original)
    if whole is not None:
        content = _unstuffed(whole)
        if utf8:
            return _part("message/global", content, "quoted-printable")
        if _is_7bit(content):
            return _part("message/rfc822", content, "7bit")
    block = _unstuffed(_bounded(original.header))
    if utf8:
        return _part("message/global-headers", block, "quoted-printable")
    if _is_7bit(block):
        return _part("text/rfc822-headers", block, "7bit")
    return _part("text/rfc822-headers; charset=utf-8", block, "quoted-printable")


def _whole(report: Report, original: Original) -> bytes | None:
    wanted = original.envelope.ret == "FULL" or original.envelope.kind is not Kind.MAIL
    if not wanted or report.kind is not ReportKind.FAILED or original.body is None:
        return None
    if len(original.header) + len(original.body) > FULL_SIZE_MAX_BYTES:
        return None
    return original.header + original.body


def _is_7bit(content: bytes) -> bool:
    """RFC 2045 2.7."""
    return content.isascii() and max(map(len, content.split(b"\r\n"))) <= 998


def _bounded(block: bytes) -> bytes:
    """As many whole lines as fit."""
    if len(block) <= HEADER_SIZE_MAX_BYTES:
        return block
    return block[: block.rfind(b"\r\n", 0, HEADER_SIZE_MAX_BYTES) + 2] + b"\r\n"


def _part(content_type: str, content: bytes, encoding: str) -> bytes:
    if encoding == "base64":
        octets = [b2a_base64(content[at : at + 57], newline=False) for at in range(0, len(content), 57)]
        content = b"\r\n".join(octets) + b"\r\n"
    elif encoding == "quoted-printable":
        content = b2a_qp(content, istext=True)
    if not content.endswith(b"\r\n"):
        content += b"\r\n"
    fields = f"Content-Type: {content_type}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    return fields.encode() + content


def _stuffed(content: bytes) -> bytes:
    """RFC 5321 4.5.2."""
    return (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:]


def _unstuffed(content: bytes) -> bytes:
    return (b"\r\n" + content).replace(b"\r\n..", b"\r\n.")[2:]


# ── words ────────────────────────────────────────────────────────────────────────────────────────

SENDER_REFUSED = "The sender address was refused. Ask the administrator which one to use."
SENDER_REFUSED_JA = "差出人アドレスが拒否されました。機器に設定する差出人を管理者に確認してください。"
TOO_LARGE = "The message is too large. Send less at once: fewer pages, or a lower resolution."
TOO_LARGE_JA = "メールが大きすぎます。ページ数を減らすか、解像度を下げて送信してください。"

ENGLISH = Texts(
    greeting="This is the mail relay {hostname}, reporting on its own: please do not reply.",
    subjects={
        "failed": "A message could not be delivered",
        "delayed": "A message is delayed",
        "relayed": "A message was passed on",
        "report": "A report about a message could not be delivered",
    },
    openings={
        "failed": "could not be delivered to:",
        "delayed": "has not been delivered yet to:",
        "relayed": "was passed on to a mail server that does not confirm delivery, for:",
        "report": "is a report that this relay wrote to a sender. It could not be delivered to:",
    },
    closings={
        "failed": "The relay will not try again. If the message is still needed, please send it again once "
        "the cause is mended.",
        "delayed": "You need do nothing: the relay keeps trying, and will tell you if it has to give up.",
        "relayed": "There will be no further confirmation for these addresses.",
        "report": "The sender of that message may not know what became of it. The report is attached: please "
        "pass it on.",
    },
    message="The message",
    subject="Subject",
    accepted="Accepted",
    sender="Sender",
    device="Device",
    queue_id="Queue ID",
    answered="{host} answered:",
    itself="The relay itself notes:",
    retry_until="The relay will keep trying until {date}.",
    advice_heading="What to do:",
    advice=(
        ("deleted", "Ask the administrator of the relay, who removed the message from the queue."),
        ("5.1.10", "The domain of this address takes no mail. Check the address for typing errors."),
        ("5.1.2", "The domain of this address does not exist. Check the address for typing errors."),
        (
            "5.1.7",
            SENDER_REFUSED,
        ),
        (
            "5.1.8",
            SENDER_REFUSED,
        ),
        ("5.1", "Check the address for typing errors; the mailbox may have moved or been closed."),
        ("5.2.2", "The mailbox is full. Tell the recipient in another way, and send again later."),
        ("5.2.3", TOO_LARGE),
        ("5.2", "The recipient's mailbox takes no mail at present. Ask the recipient in another way."),
        ("5.3.4", TOO_LARGE),
        ("5.6", "The other side cannot take a message of this form. Ask the administrator."),
        ("5.7", "The other side does not allow this message. Show its answer above to the administrator."),
        (
            "4.4.7",
            "The other side could not take the message in all that time. Check the address, or ask the "
            "administrator; then send again.",
        ),
        ("", "Show the answer above to the administrator."),
    ),
)

JAPANESE = Texts(
    greeting="メール中継サーバー {hostname} からの自動通知です。このメールには返信しないでください。",
    subjects={
        "failed": "メールを配信できませんでした",
        "delayed": "メールの配信が遅れています",
        "relayed": "メールを次のサーバーへ引き渡しました",
        "report": "配信結果の通知をお届けできませんでした",
    },
    openings={
        "failed": "上記のメールは、次の宛先に配信できませんでした。",
        "delayed": "上記のメールは、次の宛先にまだ配信できていません。",
        "relayed": "上記のメールは、配信確認に対応していないサーバーへ引き渡しました。宛先は次のとおりです。",
        "report": "上記は、この中継サーバーが差出人に宛てた通知です。次の宛先に配信できませんでした。",
    },
    closings={
        "failed": "中継サーバーはこれ以上再送しません。"
        "必要であれば、原因を解消してからもう一度送信してください。",
        "delayed": "何もしていただく必要はありません。"
        "中継サーバーが再送を続け、断念した場合はお知らせします。",
        "relayed": "これらの宛先について、これ以上の通知はありません。",
        "report": "元のメールの差出人には結果が伝わっていない可能性があります。"
        "添付の通知を差出人にお伝えください。",
    },
    message="対象のメール",
    subject="件名",
    accepted="受付日時",
    sender="差出人",
    device="機器",
    queue_id="キューID",
    answered="{host} からの応答:",
    itself="中継サーバーの記録:",
    retry_until="再送の期限: {date}",
    advice_heading="対処方法:",
    advice=(
        ("deleted", "中継サーバーの管理者がこのメールを削除しました。管理者にお問い合わせください。"),
        ("5.1.10", "この宛先のドメインはメールを受け付けていません。宛先に誤りがないか確認してください。"),
        ("5.1.2", "この宛先のドメインは存在しません。宛先に誤りがないか確認してください。"),
        ("5.1.7", SENDER_REFUSED_JA),
        ("5.1.8", SENDER_REFUSED_JA),
        ("5.1", "宛先に誤りがないか確認してください。アドレスが変更または廃止された可能性もあります。"),
        ("5.2.2", "宛先のメールボックスが一杯です。別の方法で相手に連絡し、後でもう一度送信してください。"),
        ("5.2.3", TOO_LARGE_JA),
        ("5.2", "宛先のメールボックスは現在受信できません。別の方法で相手に確認してください。"),
        ("5.3.4", TOO_LARGE_JA),
        ("5.6", "相手のサーバーはこの形式のメールを受け付けません。管理者にお問い合わせください。"),
        ("5.7", "相手のサーバーがこのメールを許可していません。上記の応答を管理者にお伝えください。"),
        (
            "4.4.7",
            "期限までに相手のサーバーがメールを受け取りませんでした。"
            "宛先を確認するか管理者に相談してから、もう一度送信してください。",
        ),
        ("", "上記の応答を管理者にお伝えください。"),
    ),
)

TEXTS = {"en": ENGLISH, "ja": JAPANESE}
