"""From when to when a certificate is valid: read from its DER, for neither ssl nor anything small tells it.

Rules: pure; the encoding is that of X.509 (RFC 5280 4.1, X.690 8.1). Nothing is judged but the form of the
few fields on the way. It must not know files, nor what a certificate is for.
"""

from __future__ import annotations

import calendar
import re
import time
from base64 import b64decode

_BLOCK = re.compile("-----BEGIN CERTIFICATE-----([^-]*)-----END CERTIFICATE-----")
_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18


def certificate_blocks(text: str) -> str:
    """The certificates of a PEM text, without keys and whatever else stands there."""
    return "".join(f"{match[0]}\n" for match in _BLOCK.finditer(text))


def validity(pem: str) -> tuple[float, float]:
    """Begin and end of the first certificate, in seconds since the epoch. ValueError: there is none."""
    block = _BLOCK.search(pem)
    if block is None:
        raise ValueError("there is no certificate in it")
    try:
        return _validity(b64decode("".join(block[1].split()), validate=True))
    except (IndexError, OverflowError) as error:
        raise ValueError("the certificate is not well formed") from error


def _validity(data: bytes) -> tuple[float, float]:
    at, _ = _inside(data, 0, _SEQUENCE)  # the certificate
    at, _ = _inside(data, at, _SEQUENCE)  # what is signed
    if data[at] == _VERSION:
        at = _behind(data, at)
    for _serial_algorithm_issuer in range(3):
        at = _behind(data, at)
    at, _ = _inside(data, at, _SEQUENCE)
    return _moment(data, at), _moment(data, _behind(data, at))


def _inside(data: bytes, at: int, tag: int) -> tuple[int, int]:
    """Where the content of the element at ``at`` begins and ends."""
    if data[at] != tag:
        raise ValueError("the certificate is not well formed")
    size, at = data[at + 1], at + 2
    if size & 0x80:
        octets = size & 0x7F
        size, at = int.from_bytes(data[at : at + octets], "big"), at + octets
    if at + size > len(data):
        raise ValueError("the certificate is cut off")
    return at, at + size


def _behind(data: bytes, at: int) -> int:
    return _inside(data, at, data[at])[1]


def _moment(data: bytes, at: int) -> float:
    """A time in UTC, seconds included (RFC 5280 4.1.2.5)."""
    tag = data[at]
    if tag not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ValueError("the certificate is not well formed")
    begin, end = _inside(data, at, tag)
    text = data[begin:end].decode("ascii")
    if tag == _UTC_TIME:
        text = ("20" if text < "50" else "19") + text
    return calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ"))
