"""The parameters of MAIL and RCPT: which are known, and what their values mean.

SIZE (RFC 1870), BODY (RFC 6152), SMTPUTF8 (RFC 6531), AUTH (RFC 4954), RET, ENVID, NOTIFY and ORCPT
(RFC 3461, RFC 6533), REQUIRETLS (RFC 8689).

Rules: pure; one compiled pattern a value. ENVID and ORCPT are kept as they came, for so the next hop gets
them; the words of RET and NOTIFY are known in any case, and kept in upper case. It must not know the session.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pi_relay.submission.replies import NEEDS_TLS, PARAMETER_INVALID, PARAMETER_UNKNOWN, Refused

ENVID_LENGTH_MAX = 100  # RFC 3461 4.4
ORCPT_LENGTH_MAX = 500  # 4.2

# Printable octets but "+" and "=", which stand as "+2B" and "+3D"; what is encoded is printable too.
_XTEXT = r"(?:[!-*,-<>-~]|\+(?:[2-6][0-9A-F]|7[0-9A-E]))"
# Letters as they are (with SMTPUTF8), or as "\x{E9}", which is xtext anyway (RFC 6533 3).
_UTF8_ADDRESS = rf"(?:{_XTEXT}|[^\x00-\xa0])"


class MailParameters(NamedTuple):
    size_bytes: int | None = None  # declared; None: not at all
    smtputf8: bool = False
    requiretls: bool = False
    ret: str | None = None  # "FULL" | "HDRS"
    envid: str | None = None  # xtext


class RcptParameters(NamedTuple):
    notify: tuple[str, ...] | None = None  # ("NEVER",), or some of SUCCESS, FAILURE, DELAY
    original_recipient: str | None = None  # "rfc822;" and xtext


_NO_MAIL_PARAMETERS, _NO_RCPT_PARAMETERS = MailParameters(), RcptParameters()


def of_mail(given: Mapping[str, str], *, extended: bool, tls: bool) -> MailParameters:
    """Those of MAIL, by name in upper case. ``extended``: after EHLO.

    Refused: one is unknown, not well formed, or not for here.
    """
    if not given:
        return _NO_MAIL_PARAMETERS
    _check(given, _MAIL, extended)
    if "REQUIRETLS" in given and not tls:
        raise Refused(NEEDS_TLS)
    return MailParameters(
        size_bytes=int(given["SIZE"]) if "SIZE" in given else None,
        smtputf8="SMTPUTF8" in given,
        requiretls="REQUIRETLS" in given,
        ret=given["RET"].upper() if "RET" in given else None,
        envid=given.get("ENVID"),
    )


def of_rcpt(given: Mapping[str, str], *, extended: bool, utf8: bool) -> RcptParameters:
    """Those of RCPT. ``utf8``: MAIL had SMTPUTF8. Refused: one is unknown, or not well formed."""
    if not given:
        return _NO_RCPT_PARAMETERS
    _check(given, _RCPT, extended)
    notify, original = given.get("NOTIFY"), given.get("ORCPT")
    if original is not None and not (original.isascii() or utf8):
        raise Refused(PARAMETER_INVALID)
    return RcptParameters(
        notify=None if notify is None else tuple(dict.fromkeys(notify.upper().split(","))),
        original_recipient=original,
    )


_IsWellFormed = Callable[[str], object]

_MAIL: dict[str, _IsWellFormed] = {
    "SIZE": re.compile(r"[0-9]{1,20}").fullmatch,
    "BODY": re.compile(r"(?i)7BIT|8BITMIME").fullmatch,
    "SMTPUTF8": re.compile("").fullmatch,
    "AUTH": re.compile(".+").fullmatch,  # whom it is for; nobody here asks
    "RET": re.compile(r"(?i)FULL|HDRS").fullmatch,
    "ENVID": re.compile(rf"(?=.{{1,{ENVID_LENGTH_MAX}}}\Z){_XTEXT}+").fullmatch,
    "REQUIRETLS": re.compile("").fullmatch,
}
_NOTIFY_WORD = "(?:SUCCESS|FAILURE|DELAY)"
_RCPT: dict[str, _IsWellFormed] = {
    "NOTIFY": re.compile(rf"(?i)NEVER|{_NOTIFY_WORD}(?:,{_NOTIFY_WORD})*").fullmatch,
    "ORCPT": re.compile(
        rf"(?=.{{1,{ORCPT_LENGTH_MAX}}}\Z)(?:(?i:utf-8);{_UTF8_ADDRESS}+|[A-Za-z0-9][A-Za-z0-9-]*;{_XTEXT}+)"
    ).fullmatch,
}


def _check(given: Mapping[str, str], known: Mapping[str, _IsWellFormed], extended: bool) -> None:
    if not extended:
        raise Refused(PARAMETER_UNKNOWN)
    for name, value in given.items():
        is_well_formed = known.get(name)
        if is_well_formed is None:
            raise Refused(PARAMETER_UNKNOWN)
        if not is_well_formed(value):
            raise Refused(PARAMETER_INVALID)
