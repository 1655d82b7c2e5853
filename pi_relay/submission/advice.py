"""What would mend a refusal, in lines of TOML: for `pi-relay devices`.

Rules: pure; a table from the reply to a few lines. They name the section; what is not certain stands as a
comment, and so does what no line of the file can mend. Nothing is advised that opens the relay to the world.
A comment is one of few fixed sentences, for the command line says them in other languages too.
It must not know sockets, or who asks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from pi_relay.config import Config, Device, Listener
from pi_relay.model import Reply
from pi_relay.submission import replies
from pi_relay.submission.interfaces import LINK_LOCAL, LOOPBACK, RFC_1918


@dataclass(frozen=True, slots=True)
class Case:
    """Who was refused what."""

    reply: Reply
    reason: str  # as the mail log has it
    about: str  # the sender, recipient or user name that was refused, "" where it is about none
    address: str  # of the client
    mac: str  # "" where it is not known
    device: Device | None  # None: unknown
    shut: Listener | None  # the first listener that does not let it in
    may_send: bool  # without a password
    is_gateway: bool
    config: Config


def mending(case: Case) -> str:
    """Lines of TOML, "" where nothing would help."""
    advise = _BY_REPLY.get(case.reply) or _BY_STATUS.get((case.reply.code, case.reply.enhanced_status))
    return "\n".join(advise(case)) if advise else ""


# ── pieces ───────────────────────────────────────────────────────────────────────────────────────


def _note(sentence: str) -> str:
    return f"# {sentence}"


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _list(*values: str) -> str:
    return f"[{', '.join(map(_text, values))}]"


def _in_device(case: Case, *lines: str) -> list[str]:
    """The section of the device; for an unknown client a new one."""
    if case.device is not None:
        return ["[[devices]]", f"name = {_text(case.device.name)}", *lines]
    known = {line.partition(" = ")[0] for line in lines}
    return [
        "[[devices]]",
        f"name = {_text('NAME')}",
        *([f"address = {_text(case.address)}"] if case.address and "address" not in known else []),
        *lines,
    ]


_OFFICES = (*LOOPBACK, *RFC_1918, LINK_LOCAL, ip_network("fc00::/7"))
_SHARED = ip_network("100.64.0.0/10")  # of providers, and of some virtual networks


def _is_stranger(address: str) -> bool:
    """Not of any private network."""
    return not address or not any(_lies_in(address, str(network)) for network in (*_OFFICES, _SHARED))


def _networks_with(networks: tuple[str, ...], address: str) -> str:
    """The list with the network of this address too; of a shared one, with the address alone."""
    host = ip_address(address)
    prefix = 64 if host.version == 6 else 32 if host in _SHARED else 24
    return _list(*networks, str(ip_network((address, prefix), strict=False)))


# ── by what was refused ──────────────────────────────────────────────────────────────────────────


def _other_network(case: Case) -> list[str]:
    if case.is_gateway:
        return [
            _note("this is the router: a port that it forwards to this machine arrives so"),
            _note("take the forward away; or, if it is a device of yours behind it:"),
            *_in_device(case),
        ]
    if _is_stranger(case.address):
        return [_note("from the Internet, and rightly turned away")]
    if case.shut is None:
        return []
    host = f"[{case.shut.host}]" if ":" in case.shut.host else case.shut.host
    return [
        _note("in each section of a listener that it shall reach:"),
        "[[listeners]]",
        f"address = {_text(f'{host}:{case.shut.port}')}",
        f"networks = {_networks_with(case.shut.networks, case.address)}",
        *([] if case.may_send else _may_send(case)),
    ]


def _may_send(case: Case) -> list[str]:
    return [
        _note("to let it send without a password:"),
        "[submission]",
        f"networks = {_networks_with(case.config.submission.networks, case.address)}",
    ]


def _no_right_to_send(case: Case) -> list[str]:
    if case.device is not None and case.device.username:
        return [
            _note("it has to sign in: give it this user name and its password"),
            *_in_device(case, f"username = {_text(case.device.username)}"),
        ]
    if case.may_send:
        return [
            _note("this port wants a password; pi-relay devices add NAME --login makes one"),
            "[[listeners]]",
            'auth = "optional"',
        ]
    if _is_stranger(case.address) or case.is_gateway:
        return [_note("only with a password: pi-relay devices add NAME --login makes one")]
    return [
        _note("only with a password: pi-relay devices add NAME --login makes one"),
        *_may_send(case),
    ]


def _wrong_password(case: Case) -> list[str]:
    devices = case.config.devices
    device = next((one for one in devices if one.username and one.username == case.about), None)
    if device is None:
        name = _text(case.about or "NAME")
        return [
            _note("there is no such user; pi-relay devices add NAME --login makes one"),
            *_in_device(case, f"username = {name}", 'password_hash = "scrypt$..."'),
        ]
    lines = ["[[devices]]", f"name = {_text(device.name)}"]
    if device.address and case.address and not _lies_in(case.address, device.address):
        note = _note("its user name counts only from its own address")
        return [note, *lines, f"address = {_text(case.address)}"]
    if device.mac and case.mac != device.mac:
        note = _note("its user name counts only with its own mac")
        return [note, *lines, *([f"mac = {_text(case.mac)}"] if case.mac else [])]
    return [
        _note("type the password into the device again, or make a new one: pi-relay password --generate"),
        *lines,
        'password_hash = "scrypt$..."',
    ]


def _lies_in(address: str, network: str) -> bool:
    return ip_address(address) in ip_network(network, strict=False)


def _handshake(case: Case) -> list[str]:
    reason = case.reason.upper().replace(" ", "_")
    for words, advice in _HANDSHAKES.items():
        if any(word in reason for word in words):
            return advice(case)
    return []


def _legacy(case: Case) -> list[str]:
    if _is_stranger(case.address):
        return []  # scanners of the Internet ask for anything
    return [_note("its TLS is too old; for this device alone:"), *_as_legacy(case)]


def _as_legacy(case: Case) -> list[str]:
    """It takes an address or a mac, for the old ciphers are chosen before anybody signs in."""
    lines = _in_device(case, "legacy = true")
    is_placed = case.device is None or case.device.address or case.device.mac
    return lines if is_placed else [*lines, f"address = {_text(case.address)}"]


def _in_clear(case: Case) -> list[str]:
    return [
        _note("switch TLS or STARTTLS on in its menu; where it has none:"),
        *_as_legacy(case),
    ]


def _bare_line_end(case: Case) -> list[str]:
    if case.may_send or case.is_gateway or _is_stranger(case.address):
        return []
    return [_note("forgiven only to clients of the local networks"), *_may_send(case)]


def _sender(case: Case) -> list[str]:
    default = case.config.submission.default_sender
    lines = [*_in_device(case, f"sender = {_text(default or 'scans@office.example')}")]
    domain = case.about.rpartition("@")[2].lower()
    if domain:
        known = tuple(one for one in case.config.submission.sender_domains if one != "*")
        lines += [
            _note("or, if that domain is yours:"),
            "[submission]",
            f"sender_domains = {_list(*known, domain)}",
        ]
    return lines


def _recipient(case: Case) -> list[str]:
    patterns = case.device.recipients if case.device else ()
    return _in_device(case, f"recipients = {_list(*patterns, case.about or '*@office.example')}")


def _too_many_messages(case: Case) -> list[str]:
    limit = case.device.messages_per_hour_max if case.device else case.config.submission.messages_per_hour_max
    lines = _in_device(case, f"messages_per_hour_max = {max(limit, 50) * 2}")
    if case.device is not None and case.device.recipients_per_hour_max:
        lines.append(f"recipients_per_hour_max = {case.device.recipients_per_hour_max * 2}")
    return lines


def _route(case: Case) -> list[str]:
    domain = case.about.rpartition("@")[2]
    name = next((host.name for host in case.config.smart_hosts), "isp")
    pattern = f"*@{domain}" if domain else "*"
    return ["[[routes]]", f"recipients = {_list(pattern)}", f"via = {_list(name)}"]


def _larger(case: Case) -> list[str]:
    own = case.config.submission.message_size_max_bytes
    limits = [host.message_size_max_bytes for host in case.config.smart_hosts]
    if limits and all(limits) and max(limits) < own:
        return [_note("larger than any smart host takes: lower the resolution, or split the scan")]
    return ["[submission]", f'message_size_max = "{own * 2 // 1_000_000} MB"']


def _line(section: str, line: Callable[[Config], str]) -> Callable[[Case], list[str]]:
    return lambda case: [section, line(case.config)]


def _fixed(*lines: str) -> Callable[[Case], list[str]]:
    return lambda _: list(lines)


# By words of OpenSSL, or our own; the first that fits.
_HANDSHAKES: dict[tuple[str, ...], Callable[[Case], list[str]]] = {
    ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"): _fixed(
        _note("it does not speak TLS from the first byte on: give it port 587 or 25")
    ),
    ("PROTOCOL", "VERSION", "CIPHER", "DH_KEY", "OLD_TLS"): _legacy,
    ("UNKNOWN_CA", "CERTIFICATE"): _fixed(
        _note("it does not trust the certificate: pi-relay tls export-ca FILE, and install that")
    ),
}
_BY_REPLY: dict[Reply, Callable[[Case], list[str]]] = {
    replies.NOT_FROM_HERE: _other_network,
    replies.AUTH_REQUIRED: _no_right_to_send,
    replies.NOT_ALLOWED: _no_right_to_send,
    replies.AUTH_FAILED: _wrong_password,
    replies.TOO_MANY_GUESSES: _wrong_password,
    replies.AUTH_NEEDS_TLS: _in_clear,
    replies.NO_HANDSHAKE: _handshake,
    replies.BARE_CR_OR_LF: _bare_line_end,
    replies.SENDER_NOT_ALLOWED: _sender,
    replies.RECIPIENT_NOT_ALLOWED: _recipient,
    replies.MESSAGE_TOO_LARGE: _larger,
    replies.NO_ROUTE: _route,
    replies.NO_WAY_OUT: _fixed("[smart_hosts.isp]", 'host = "smtp.isp.example"', 'username = "u1234"',
                               'password_file = "isp.password"'),
    replies.NO_POSTMASTER: _fixed('postmaster = "admin@office.example"'),
    replies.TOO_MANY_RECIPIENTS: _line(
        "[submission]", lambda config: f"recipients_max = {config.submission.recipients_max * 2}"
    ),
    replies.TOO_MANY_CONNECTIONS: _line(
        "[submission]", lambda config: f"connections_max = {config.submission.connections_max * 2}"
    ),
    replies.TOO_MANY_OF_YOURS: _line(
        "[submission]",
        lambda config: f"connections_per_client_max = {config.submission.connections_per_client_max * 2}",
    ),
    replies.TOO_SLOW: _line(
        "[submission]",
        lambda config: f'idle_timeout = "{config.submission.idle_timeout_seconds * 2 / 60:.0f}m"',
    ),
    replies.TLS_NOT_HERE: _fixed("[[listeners]]", 'tls = "starttls"'),
    replies.AUTH_NOT_HERE: _fixed("[[listeners]]", 'auth = "optional"'),
    replies.NO_PROXY_HEADER: _fixed("[[listeners]]", "proxy_protocol = false"),
    replies.NOT_SMTP: _fixed(_note("it speaks something else: is the port in its menu right?")),
}  # fmt: skip

# Replies that are made elsewhere.
_BY_STATUS: dict[tuple[int, str], Callable[[Case], list[str]]] = {
    (450, "4.7.1"): _too_many_messages,
    (452, "4.3.1"): _fixed(_note("the queue or its disk is full: pi-relay status says more")),
    (454, "4.7.0"): _handshake,
}
