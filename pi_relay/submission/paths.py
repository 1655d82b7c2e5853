"""Mailbox paths and parameters of MAIL and RCPT (RFC 5321 4.1.2, 4.1.1.11).

Rules: one compiled pattern; a source route is dropped; ``a..b`` and ``a.`` are taken, since some carriers
still have such addresses; octets beyond ASCII only where the message is SMTPUTF8 (RFC 6531). Values of
parameters keep their case. It must not know sessions, nor which parameters there are.
"""

from __future__ import annotations

import re

from pi_relay.submission.replies import NEEDS_SMTPUTF8, PARAMETER_INVALID, Refused

PATH_SIZE_MAX = 254  # RFC 5321 4.5.3.1.3, less the brackets
LOCAL_PART_SIZE_MAX = 64
DOMAIN_SIZE_MAX = 255

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\u0080-\U0010ffff-]+"
_QUOTED = r'"(?:[ !#-\[\]-~\u0080-\U0010ffff]|\\[ -~])*"'
_LABEL = r"[A-Za-z0-9_\u0080-\U0010ffff](?:[A-Za-z0-9_\u0080-\U0010ffff-]*[A-Za-z0-9_\u0080-\U0010ffff])?"
_DOMAIN = rf"{_LABEL}(?:\.{_LABEL})*\.?"
_LITERAL = r"\[(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|IPv6:[0-9A-Fa-f:.]+)\]"
_ROUTE = rf"(?:@{_DOMAIN}(?:,@{_DOMAIN})*:)?"
_MAILBOX = rf"(?P<local>{_ATOM}|{_QUOTED})@(?P<domain>{_DOMAIN}|{_LITERAL})"

_bracketed = re.compile(
    rf"<{_ROUTE}(?P<mailbox>{_MAILBOX}|(?i:postmaster)|)>(?: +(?P<parameters>.*))?"
).fullmatch
_bare = re.compile(rf"(?P<mailbox>{_MAILBOX}|(?i:postmaster))(?: +(?P<parameters>.*))?").fullmatch
_parameter = re.compile(
    r"(?P<keyword>[A-Za-z0-9][A-Za-z0-9-]*)(?:=(?P<value>[!-<>-~\u0080-\U0010ffff]+))?"
).fullmatch


def parse(text: str, *, brackets_needed: bool) -> tuple[str, str] | None:
    """The path (without brackets; "" for ``<>``) and the text of its parameters; None: not well formed."""
    text = text.strip(" ")
    found = _bracketed(text) or (None if brackets_needed else _bare(text))
    if found is None:
        return None
    path: str = found["mailbox"]
    if len(path) > PATH_SIZE_MAX or len(found["local"] or "") > LOCAL_PART_SIZE_MAX:
        return None
    if len(found["domain"] or "") > DOMAIN_SIZE_MAX:
        return None
    return path.removesuffix("."), found["parameters"] or ""


def parameters(text: str) -> dict[str, str | None]:
    """{keyword in upper case: value, or None without one}. Refused where the text is no list of them."""
    result: dict[str, str | None] = {}
    for word in text.split():
        found = _parameter(word)
        if found is None or found["keyword"].upper() in result:
            raise Refused(PARAMETER_INVALID)
        result[found["keyword"].upper()] = found["value"]
    return result


def require_ascii(path: str, *, smtputf8: bool) -> None:
    """Refused where the path needs SMTPUTF8 and the message is not declared so."""
    if not smtputf8 and not path.isascii():
        raise Refused(NEEDS_SMTPUTF8)
