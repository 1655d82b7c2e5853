"""`pi-relay sendmail`: sendmail(1) for the programs of this machine (cron, smartd, apcupsd ...).

The message on stdin goes to the running relay by SMTP over loopback, under the same rules as a device's: what
is taken is in the queue when this ends. Users of this machine ("root") have no mailbox here; their mail goes
to the postmaster of the file. Options that only steer the real sendmail are taken and do nothing.
Rules: bytes of the message stay as they are but for line ends, a missing From, and Bcc under -t.
It must not know the queue.
"""

from __future__ import annotations

import argparse
import getpass
import os
import pwd
import re
import smtplib
import ssl
import sys
import tomllib
from collections.abc import Iterable, Iterator
from email.headerregistry import Address
from email.utils import formataddr, getaddresses
from typing import Any

from pi_relay.cli.output import FAILED, NOT_RUNNING, OK, USAGE, CliError
from pi_relay.cli.texts import t

ANSWER_SECONDS = 600.0
_DEFAULT_LISTENERS = (("127.0.0.1", 25, "starttls"), ("127.0.0.1", 587, "starttls"))

# sysexits.h: what programs expect of /usr/sbin/sendmail. Ours are the same for every verb.
_SYSEXITS = {USAGE: 64, FAILED: 69, NOT_RUNNING: 75}

_is_field_or_continuation = re.compile(rb"[!-9;-~]+[ \t]*:|[ \t]").match
_FIELD = rb"(?im)^(%s)[ \t]*:[ \t]*([^\r]*(?:\r\n[ \t][^\r]*)*)\r\n"
_RECIPIENT_FIELDS = b"to|cc|bcc"
_RESENT_FIELDS = b"resent-to|resent-cc|resent-bcc"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = t(
        "Take a message on stdin and hand it to the running relay, as sendmail(1) does: for cron, smartd and"
        " other programs of this machine. The package installs it as /usr/sbin/sendmail too."
    )
    parser.epilog = (
        t("example:") + "\n  printf 'Subject: hello\\n\\nhello\\n' | pi-relay sendmail ann@office.example"
    )
    add = parser.add_argument
    add("recipients", metavar="ADDRESS", nargs="*", help=t("where it goes"))
    add("-t", action="store_true", dest="from_header", help=t("also to the addresses in To, Cc and Bcc"))
    add("-i", action="store_true", dest="dots_are_content", help=t("a line with a lone dot ends nothing"))
    add("-f", "-r", metavar="ADDRESS", dest="sender", help=t("the sender (reverse-path)"))
    add("-F", metavar="NAME", dest="full_name", default="", help=t("the name for a From that is missing"))
    add(
        "-N",
        metavar="WORDS",
        dest="notify",
        default="",
        help=t("report: never, or success,failure,delay"),
    )
    add("-R", metavar="full|hdrs", dest="ret", default="", help=t("what a report returns of the message"))
    add("-V", metavar="ID", dest="envid", default="", help=t("an id that reports repeat"))
    add(
        "-o",
        metavar="OPTION",
        action="append",
        default=[],
        dest="options",
        help=t("-oi is -i; no other matters"),
    )
    add("-b", metavar="MODE", default="m", dest="mode", help=t("m: send (the default); p: list the queue"))
    add("--sysexits", action="store_true", help=t("exit codes of sysexits.h, as programs expect of sendmail"))
    for flag in ("-B", "-d", "-q", "-O", "-X", "-A"):
        add(flag, nargs="?", dest="ignored", help=argparse.SUPPRESS)
    for flag in ("-v", "-m", "-n", "-U", "-G"):
        add(flag, action="store_true", dest="ignored", help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    try:
        return _run(options)
    except CliError as error:
        if options.sysexits:
            error.exit_code = _SYSEXITS.get(error.exit_code, error.exit_code)
        raise


def _run(options: argparse.Namespace) -> int:
    if options.mode[:1] == "p":
        from pi_relay.cli import main

        return main(["-c", options.config, "queue", "list"])
    if options.mode[:1] == "i":  # newaliases: there are none
        return OK
    if options.mode[:1] != "m":
        raise CliError(USAGE, t("-b{mode} is not available", mode=options.mode))
    dots_are_content = options.dots_are_content or "i" in options.options
    message = in_wire_lines(sys.stdin.buffer.read(), dots_are_content=dots_are_content)
    recipients = [_address(recipient) for recipient in _split(options.recipients)]
    if options.from_header:
        found, message = recipients_of(message)
        recipients += map(_address, found)
    if not recipients:
        raise CliError(
            USAGE, t("no recipient is given"), t("name addresses, or -t to take them from the header")
        )
    sender = _us() if options.sender is None else _qualified(options.sender.strip("<>"))
    message = with_from(message, sender or _us(), options.full_name)
    _submit(options, sender, list(dict.fromkeys(recipients)), message)
    return OK


# ── the message ──────────────────────────────────────────────────────────────────────────────────


def in_wire_lines(data: bytes, *, dots_are_content: bool) -> bytes:
    """Lines ended by CRLF, less an mbox's "From " line; up to a lone dot, where that is its end."""
    data = data.replace(b"\r\n", b"\n")
    if data.startswith(b"From "):
        data = data[data.find(b"\n") + 1 :]
    if not dots_are_content:
        data = re.split(rb"(?m)^\.\n", data, maxsplit=1)[0]
    if data and not data.endswith(b"\n"):
        data += b"\n"
    return data.replace(b"\r", b"\n").replace(b"\n", b"\r\n")


def recipients_of(message: bytes) -> tuple[list[str], bytes]:
    """The addresses in To, Cc and Bcc (of the Resent- ones, if there are any), and the message less Bcc."""
    header, body = _split_header(message)
    resent = _fields(header, _RESENT_FIELDS)
    fields = resent or _fields(header, _RECIPIENT_FIELDS)
    values = [b" ".join(value.split()).decode("utf-8", "replace") for _, value in fields]
    addresses = [address for _, address in getaddresses(values) if address]
    return addresses, re.sub(_FIELD % (b"resent-bcc" if resent else b"bcc"), b"", header) + body


def with_from(message: bytes, sender: str, full_name: str) -> bytes:
    """The message with a From, where it has none."""
    header, body = _split_header(message)
    if _fields(header, b"from"):
        return message
    return f"From: {formataddr((full_name or _full_name(), sender))}\r\n".encode() + header + body


def _split_header(message: bytes) -> tuple[bytes, bytes]:
    """The fields, and the rest with the empty line before it; a text without any header is all body."""
    position = 0
    while _is_field_or_continuation(message, position):
        position = message.index(b"\r\n", position) + 2
    rest = message[position:]
    return message[:position], rest if rest.startswith(b"\r\n") else b"\r\n" + rest


def _fields(header: bytes, names: bytes) -> list[tuple[bytes, bytes]]:
    return re.findall(_FIELD % names, header)


# ── addresses ────────────────────────────────────────────────────────────────────────────────────


def _split(arguments: Iterable[str]) -> Iterator[str]:
    for argument in arguments:
        yield from (part.strip() for part in argument.split(",") if part.strip())


def _address(text: str) -> str:
    """A user of this machine has no mailbox here: the postmaster of the file gets it."""
    address = text.strip().strip("<>")
    if address.startswith("-") or not address.isprintable() or " " in address:
        raise CliError(USAGE, t("{text!r} is no address", text=text))
    local_part, _, domain = address.rpartition("@")
    if not local_part or domain.lower() in ("localhost", _hostname().lower()):
        return "postmaster"
    return address


def _qualified(sender: str) -> str:
    """A user's name becomes an address of this machine; the null sender stays."""
    return sender if "@" in sender or not sender else str(Address(username=sender, domain=_hostname()))


def _us() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid{os.getuid()}"
    return str(Address(username=name, domain=_hostname()))


def _full_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_gecos.partition(",")[0]
    except KeyError:
        return ""


def _hostname() -> str:
    import socket

    return socket.getfqdn() or "localhost"


# ── the relay ────────────────────────────────────────────────────────────────────────────────────


def _submit(options: argparse.Namespace, sender: str, recipients: list[str], message: bytes) -> None:
    """Raises CliError where not every recipient was taken."""
    with _connected(options.config) as smtp:
        smtp.ehlo_or_helo_if_needed()
        parameters = [f"SIZE={len(message)}"] if smtp.has_extn("size") else []
        if not message.isascii():
            parameters.append("BODY=8BITMIME")
        if not all(text.isascii() for text in (sender, *recipients)):
            smtp.command_encoding = "utf-8"
            parameters.append("SMTPUTF8")
        dsn = smtp.has_extn("dsn")
        parameters += [f"RET={options.ret.upper()}"] if dsn and options.ret else []
        parameters += [f"ENVID={_xtext(options.envid)}"] if dsn and options.envid else []
        notify = [f"NOTIFY={options.notify.upper()}"] if dsn and options.notify else []
        _expect(smtp.mail(sender, parameters), sender or "<>")
        refused = [words for each in recipients if (words := _refusal(smtp.rcpt(each, notify), each))]
        if len(refused) < len(recipients):
            _expect(smtp.data(message), t("the message"))
        if refused:
            raise CliError(FAILED, "\n".join(refused))


def _connected(config: str) -> smtplib.SMTP:
    """A session with the first listener that answers on this machine."""
    trouble: object = ""
    for host, port, tls in _listeners(config):
        try:
            if tls == "implicit":
                context = ssl._create_unverified_context()  # it never leaves this machine
                return smtplib.SMTP_SSL(host, port, "localhost", timeout=ANSWER_SECONDS, context=context)
            return smtplib.SMTP(host, port, "localhost", timeout=ANSWER_SECONDS)
        except smtplib.SMTPConnectError as refused:
            words = refused.smtp_error
            trouble = words.decode("utf-8", "replace") if isinstance(words, bytes) else words
        except (OSError, smtplib.SMTPException) as problem:
            trouble = getattr(problem, "strerror", None) or problem
    raise CliError(
        NOT_RUNNING,
        t("the relay does not answer on this machine: {trouble}", trouble=trouble),
        t("systemctl start pi-relay"),
    )


def _listeners(config: str) -> list[tuple[str, int, str]]:
    """Host, port, and how TLS begins there; the defaults where the file cannot be read by this user."""
    try:
        with open(config, "rb") as file:  # noqa: PTH123
            listeners = tomllib.load(file).get("listeners") or []
    except (OSError, ValueError):
        listeners = []
    found = [_endpoint(each) for each in listeners if not each.get("proxy_protocol")]
    return [each for each in found if each[1]] or list(_DEFAULT_LISTENERS)


def _endpoint(listener: dict[str, Any]) -> tuple[str, int, str]:
    host, _, port = str(listener.get("address", "")).rpartition(":")
    host = host.strip("[]")
    host = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host
    return host, int(port) if port.isdecimal() else 0, str(listener.get("tls", "starttls"))


def _expect(answer: tuple[int, bytes], about: str) -> None:
    if words := _refusal(answer, about):
        raise CliError(FAILED, words)


def _refusal(answer: tuple[int, bytes], about: str) -> str:
    """What was refused, and the relay's words; "" where it was taken."""
    code, text = answer
    return "" if 200 <= code < 300 else f"{about}: {code} {text.decode('utf-8', 'replace')}"


def _xtext(text: str) -> str:
    """RFC 3461 4."""
    return "".join(c if "!" <= c <= "~" and c not in "+=" else f"+{ord(c):02X}" for c in text)
