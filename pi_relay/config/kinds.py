"""The kinds of value that a key may have: how each is said in words, and how a TOML value becomes ours.

Rules: a kind looks at one value alone; what concerns several keys is in rules.py. A value that does not fit
raises Wrong with words for an office admin, or an ExceptionGroup of Wrong for a list with several. It must
not know the keys, the disk or the network.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from ..passwords import HashInvalid, parse_hash


class Wrong(Exception):
    """One value that does not fit. ``inside`` is its place within a list."""

    def __init__(self, message: str, hint: str = "", inside: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.inside = inside


@dataclass(frozen=True, slots=True)
class Kind:
    words: str  # follows "must be", and stands in the reference
    read: Callable[[Any], Any]
    unit: str = ""  # ends the name of the field that holds it: "bytes", "seconds"


_TYPE_WORDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "true or false"),
    (int, "a number"),
    (float, "a number with a point"),
    (str, "text"),
    (list, "a list"),
    (dict, "a table"),
    ((datetime, date, time), "a date or time"),
)


def type_words(value: object) -> str:
    return next((words for kind, words in _TYPE_WORDS if isinstance(value, kind)), "something else")


def shown(value: object) -> str:
    """A value within a message: short, on one line."""
    text = repr(value) if not isinstance(value, str) else f'"{value}"'
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def _text(value: object, words: str, hint: str) -> str:
    if not isinstance(value, str):
        raise Wrong(f"must be {words}, not {type_words(value)}", hint or "put it in quotes")
    return value


# ── plain values ─────────────────────────────────────────────────────────────────────────────────


def flag() -> Kind:
    def read(value: object) -> bool:
        if isinstance(value, bool):
            return value
        raise Wrong(f"must be true or false, not {type_words(value)}", "write true or false, without quotes")

    return Kind("true or false", read)


def whole(least: int, most: int) -> Kind:
    words = f"a whole number from {least} to {most}"

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            hint = "take the quotes away" if isinstance(value, str) and value.strip().isdigit() else ""
            raise Wrong(f"must be {words}, not {type_words(value)}", hint)
        if not least <= value <= most:
            raise Wrong(f"must be {words}, not {shown(value)}")
        return value

    return Kind(words, read)


def choice(*options: str) -> Kind:
    words = " or ".join(f'"{option}"' for option in options)

    def read(value: object) -> str:
        if value in options and isinstance(value, str):
            return value
        close = isinstance(value, str) and value.strip().lower() in options
        hint = f'write "{str(value).strip().lower()}"' if close else f"choose one of {', '.join(options)}"
        if isinstance(value, str):
            raise Wrong(f"must be {words}, not {shown(value)}", hint)
        raise Wrong(f"must be {words}, not {type_words(value)}", hint)

    return Kind(words, read)


def line(words: str, most: int = 255, hint: str = "") -> Kind:
    """A line of text: not empty, without control characters."""

    def read(value: object) -> str:
        text = _text(value, words, hint)
        if not text.strip():
            raise Wrong("must not be empty", hint)
        if not text.isprintable():
            raise Wrong("must not hold line ends or other control characters", hint)
        if len(text) > most:
            raise Wrong(f"must not be longer than {most} characters", hint)
        return text

    return Kind(words, read)


def file_path(words: str = "a file name") -> Kind:
    read_line = line(words, most=4096).read
    return Kind(words, lambda value: Path(read_line(value)))


def many(kind: Kind, words: str, least: int = 0, most: int = 1000, example: str = "") -> Kind:
    """A list, each value of which is of this kind; duplicates are refused."""

    def read(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            hint = f"put it in brackets: [{shown(value)}]" if isinstance(value, str) else example
            raise Wrong(f"must be a list of {words}, not {type_words(value)}", hint)
        if not least <= len(value) <= most:
            wanted = f"at least {least}" if len(value) < least else f"at most {most}"
            raise Wrong(f"must hold {wanted} of {words}", example)
        good, bad = [], []
        for number, element in enumerate(value):
            try:
                good.append(kind.read(element))
            except Wrong as wrong:
                bad.append(Wrong(wrong.message, wrong.hint, number))
        if bad:
            raise ExceptionGroup("", bad)
        return tuple(good)

    return Kind(f"a list of {words}", read, kind.unit)


# ── sizes and durations ──────────────────────────────────────────────────────────────────────────

_UNITS_BYTES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_UNITS_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AMOUNT = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([A-Za-z]+)\s*", re.ASCII)


def _amount(value: object, units: dict[str, int], words: str, hint: str) -> float:
    match = _AMOUNT.fullmatch(_text(value, words, hint))
    if match is None or match[2].lower() not in units:
        raise Wrong(f"must be {words}, not {shown(value)}", hint)
    return float(match[1]) * units[match[2].lower()]


def size(least: str, most: str) -> Kind:
    words = f'a size, from "{least}" to "{most}"'
    hint = 'write a number and a unit in quotes: "35 MB" (35,000,000 bytes) or "35 MiB"'
    low, high = (_amount(bound, _UNITS_BYTES, words, hint) for bound in (least, most))

    def read(value: object) -> int:
        amount = _amount(value, _UNITS_BYTES, words, hint)
        if not low <= amount <= high:
            raise Wrong(f"must be {words}, not {shown(value)}")
        return round(amount)

    return Kind(words, read, unit="bytes")


def duration(least: str, most: str, *, zero: str = "") -> Kind:
    """``zero``: what "0s" means, where it means anything."""
    words = f'a duration, from "{least}" to "{most}"' + (f', or "0s" for {zero}' if zero else "")
    hint = 'write a number and a unit in quotes: "90s", "5m", "4h" or "3d"'
    low, high = (_amount(bound, _UNITS_SECONDS, words, hint) for bound in (least, most))

    def read(value: object) -> float:
        amount = _amount(value, _UNITS_SECONDS, words, hint)
        if not low <= amount <= high and not (zero and amount == 0):
            raise Wrong(f"must be {words}, not {shown(value)}")
        return amount

    return Kind(words, read, unit="seconds")


# ── names and addresses of mail ──────────────────────────────────────────────────────────────────

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_LOCAL_PART = re.compile(r'(?:[^\s"(),:;<>@\[\\\]\x00-\x20\x7f]+|"(?:[^"\\\x00-\x1f\x7f]|\\[\x20-\x7e])*")')
_MAILBOX = re.compile(r"\s*(?P<name>[^<>]*?)\s*<(?P<address>[^<>]+)>\s*")


def a_labels(domain: str) -> str:
    """The domain in lower case with A-labels (RFC 5890). Raises Wrong. ``*`` is left alone."""
    if domain.isascii():
        return domain.lower()
    try:
        return ".".join(
            label.encode("idna").decode("ascii") if not label.isascii() else label
            for label in domain.replace("。", ".").lower().split(".")
        )
    except UnicodeError:
        raise Wrong(f"{shown(domain)} is no domain name that can be used in mail") from None


def _is_name(text: str) -> bool:
    return len(text) <= 253 and _NAME.fullmatch(text) is not None


def _address(text: str, example: str) -> str:
    local, at, domain = text.rpartition("@")
    ascii_domain = a_labels(domain)
    if not at or not _LOCAL_PART.fullmatch(local) or len(text) > 254 or not _is_name(ascii_domain):
        raise Wrong(f"{shown(text)} is no mail address", f'write it like "{example}"')
    return f"{local}@{ascii_domain}"


def mail_address(example: str) -> Kind:
    words = "a mail address"

    def read(value: object) -> str:
        return _address(_text(value, words, f'write it like "{example}", in quotes'), example)

    return Kind(words, read)


def mailbox(example: str) -> Kind:
    """An address, with or without a display name."""
    words = "a mail address, with a display name or without"

    def read(value: object) -> str:
        text = line(words, 320).read(value)
        match = _MAILBOX.fullmatch(text)
        if match is None:
            return _address(text.strip(), example)
        name, address = match["name"], _address(match["address"].strip(), example)
        return f"{name} <{address}>" if name else address

    return Kind(words, read)


def looks_like_address(text: str) -> bool:
    try:
        _address(text, "")
    except Wrong:
        return False
    return True


def address_pattern() -> Kind:
    words = "an address pattern"
    hint = 'write "*@office.example", a whole address, or "*" for any; only * is special'

    def read(value: object) -> str:
        text = _text(value, words, hint).strip()
        if text == "*":
            return text
        local, at, domain = text.rpartition("@")
        domain = a_labels(domain)
        fits = _LOCAL_PART.fullmatch(local) and _is_name(domain.replace("*", "x"))
        if not at or not fits:
            raise Wrong(f"{shown(value)} is no address pattern", hint)
        return f"{local.lower()}@{domain}"

    return Kind(words, read)


def domain_pattern() -> Kind:
    words = "a domain"
    hint = 'write "office.example", "*.office.example" for all below it, or "*" for any'

    def read(value: object) -> str:
        text = _text(value, words, hint).strip()
        if "@" in text:
            raise Wrong(
                f"must be a domain, not an address: {shown(value)}", f'write "{text.rpartition("@")[2]}"'
            )
        domain = a_labels(text)
        if domain != "*" and not _is_name(domain.removeprefix("*.")):
            raise Wrong(f"{shown(value)} is no domain", hint)
        return domain

    return Kind(words, read)


# ── names and addresses of machines ──────────────────────────────────────────────────────────────


def host_name() -> Kind:
    words = "a host name"
    hint = 'write the name by which other servers know this machine, like "relay.office.example"'

    def read(value: object) -> str:
        text = a_labels(_text(value, words, hint).strip().removesuffix("."))
        if not _is_name(text) or "_" in text or _as_ip(text) is not None:
            raise Wrong(f"{shown(value)} is no host name", hint)
        return text

    return Kind(words, read)


def signing_name(what: str, example: str) -> Kind:
    """A domain that signs, or a selector (RFC 6376 3.1): names in DNS that a signature carries."""
    words = f"a {what}"
    hint = f'write it like "{example}"'

    def read(value: object) -> str:
        text = a_labels(_text(value, words, hint).strip().removesuffix("."))
        if not _is_name(text) or "_" in text:
            raise Wrong(f"{shown(value)} is no {what}", hint)
        return text

    return Kind(words, read)


def host() -> Kind:
    """A host name or an IP address, without brackets."""
    words = "a host name or an IP address"

    def read(value: object) -> str:
        text = _text(value, words, 'write it like "smtp.isp.example", in quotes').strip()
        if (address := _as_ip(text.removeprefix("[").removesuffix("]"))) is not None:
            return str(address)
        bare = re.sub(r"^[a-z]+://|/.*$", "", text)
        name, colon, port = bare.partition(":")
        if bare != text or (colon and port.isdigit()):
            also = f", and port = {port}" if port.isdigit() else ""
            raise Wrong(f"must be {words} alone, not {shown(value)}", f'write host = "{name}"{also}')
        text = a_labels(text.removesuffix("."))
        if not _is_name(text) or text.replace(".", "").isdigit():
            raise Wrong(f"{shown(value)} is neither a host name nor an IP address")
        return text

    return Kind(words, read)


def _as_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def endpoint(example: str = ":25") -> Kind:
    """Where to listen: ``(host, port)``, the host "" for every interface."""
    words = 'an address and a port, like ":25", "192.168.1.10:25" or "[fd00::1]:25"'

    def read(value: object) -> tuple[str, int]:
        if isinstance(value, int) and not isinstance(value, bool):
            raise Wrong(f"must be {words}, not a number", f'write ":{value}", in quotes, with the colon')
        text = _text(value, words, "").strip()
        name, colon, port = text.rpartition(":")
        if not colon and text.isdigit():
            raise Wrong(f"must be {words}, not {shown(value)}", f'write ":{text}", with the colon')
        if not colon or not port.isascii() or not port.isdigit() or not 1 <= int(port[:9]) <= 65535:
            raise Wrong(f"must be {words}, not {shown(value)}", "ports go from 1 to 65535")
        bracketed = name.startswith("[") and name.endswith("]")
        address = _as_ip(name.strip("[]"))
        if name and (address is None or bracketed != (address.version == 6)):
            six = address is not None and address.version == 6
            hint = f'write "[{address}]:{port}"' if six else f'":{port}" listens on every interface'
            raise Wrong(f"must be {words}, not {shown(value)}", hint)
        return (str(address) if address else "", int(port))

    return Kind(words, read)


def network(*, local: bool = True) -> Kind:
    """An IP address or a CIDR, in its normal form; with ``local`` the word "local" as well."""
    words = 'a network, like "192.168.1.0/24"' + (', or "local"' if local else ", or an IP address")

    def read(value: object) -> str:
        text = _text(value, words, "put it in quotes").strip()
        if local and text.lower() == "local":
            return "local"
        try:
            found = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise Wrong(f"must be {words}, not {shown(value)}") from None
        address, _, prefix = text.partition("/")
        if isinstance(found, ipaddress.IPv6Network) and found.network_address.ipv4_mapped is not None:
            raise Wrong(
                f"must be {words}, not {shown(value)}", "write IPv4 addresses as IPv4: 192.168.1.0/24"
            )
        if prefix and ipaddress.ip_address(address) != found.network_address:
            hint = f'write "{found}" for the whole network, or "{address}" for that one address'
            raise Wrong(f"{shown(value)} is an address within a network, not a network", hint)
        return str(found) if prefix else address.lower() if found.version == 4 else str(found.network_address)

    return Kind(words, read)


_MAC = re.compile(r"[0-9a-f]{12}")


def mac() -> Kind:
    words = 'a mac address, like "00:1b:a9:12:34:56"'

    def read(value: object) -> str:
        digits = re.sub(r"[:. -]", "", _text(value, words, "put it in quotes").lower())
        if not _MAC.fullmatch(digits):
            raise Wrong(f"must be {words}, not {shown(value)}")
        return ":".join(digits[i : i + 2] for i in range(0, 12, 2))

    return Kind(words, read)


def endpoint_or_ip() -> Kind:
    """A DNS server: an IP address, with a port or without."""
    words = 'an IP address, like "9.9.9.9" or "127.0.0.1:5353"'

    def read(value: object) -> str:
        text = _text(value, words, "put it in quotes").strip()
        if _as_ip(text) is not None:
            return text
        try:
            address, _ = endpoint().read(text)
        except Wrong:
            address = ""
        if not address:
            raise Wrong(f"must be {words}, not {shown(value)}")
        return text

    return Kind(words, read)


# ── secrets and certificates ─────────────────────────────────────────────────────────────────────

_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")


def verification() -> Kind:
    words = 'true, false or a fingerprint, "sha256:" and 64 hexadecimal digits'

    def read(value: object) -> bool | str:
        if isinstance(value, bool):
            return value
        text = _text(value, words, "write true, without quotes").strip().lower()
        name, _, digits = text.partition(":")
        text = f"{name}:{digits.replace(':', '').replace(' ', '')}"
        if not _FINGERPRINT.fullmatch(text):
            hint = "openssl x509 -noout -fingerprint -sha256 -in FILE prints it"
            raise Wrong(f"must be {words}, not {shown(value)}", hint)
        return text

    return Kind(words, read)


def password_hash() -> Kind:
    words = "a hash that `pi-relay password` made"
    hint = "run `pi-relay password` and put the whole line that it prints between the quotes"

    def read(value: object) -> str:
        text = _text(value, words, hint)
        try:
            parse_hash(text)
        except HashInvalid as invalid:
            raise Wrong(f"is not {words}: {invalid}", hint) from None
        return text

    return Kind(words, read)
