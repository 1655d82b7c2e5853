"""The arguments of MAIL and RCPT: a path and its parameters (RFC 5321 4.1.2, RFC 6531 3.3).

Rules: pure; one compiled pattern decides. Quoted local parts and address literals are taken, a source route
is dropped, local parts like ``a..b`` and ``a.`` pass (some carriers still have them); UTF-8 only with
SMTPUTF8; values of parameters come back as they were sent.
It must not know which parameters or addresses are welcome.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from pi_relay.submission.replies import (
    NEEDS_SMTPUTF8,
    PARAMETER_INVALID,
    PATH_INVALID,
    SENDER_INVALID,
    Refused,
)

LOCAL_PART_SIZE_MAX_BYTES = 64  # RFC 5321 4.5.3.1.1
PATH_SIZE_MAX_BYTES = 254  # 4.5.3.1.3, less the brackets; a domain is always shorter

# Everything beyond ASCII but the C1 controls, line separators and what turns or ends text invisibly.
_BEYOND_ASCII = (
    "\u00a1-\u1fff\u2010-\u2027\u2030-\u205f\u2070-\ud7ff\ue000-\ufefe\uff00-\ufff8\U00010000-\U000effff"
)


class _Grammar:
    """The patterns of one alphabet: those of ASCII are much the faster ones."""

    def __init__(self, beyond: str) -> None:
        atom = rf"A-Za-z0-9!#$%&'*+/=?^_`{{|}}~\-{beyond}"
        local_part = rf'(?:[{atom}][{atom}.]*|"(?:[ !#-\[\]-~{beyond}]|\\[ -~])*")'
        label = rf"(?!-)[A-Za-z0-9_\-{beyond}]{{1,63}}(?<!-)"
        domain = rf"{label}(?:\.{label})*"
        mailbox = rf"{local_part}@(?:{domain}|\[[A-Za-z0-9.:]+\])"
        source_route = rf"@{domain}(?:,@{domain})*:"
        parameters = r"(?P<parameters>(?:[ \t]+[^ \t]+)*)[ \t]*"
        self.match_path = re.compile(
            rf"[ \t]*<(?:(?:{source_route})?(?P<path>{mailbox})|(?P<alone>(?i:postmaster)|))>{parameters}"
        ).fullmatch
        self.match_bare_path = re.compile(rf"[ \t]*(?P<path>{mailbox})(?P<alone>){parameters}").fullmatch
        self.match_parameter = re.compile(
            rf"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~{beyond}][!-~{beyond}]*))?"
        ).fullmatch


_ASCII, _UTF8 = _Grammar(""), _Grammar(_BEYOND_ASCII)


class Parsed(NamedTuple):
    path: str  # the mailbox without brackets; "" is the null path; "postmaster" stands alone for any case
    parameters: Mapping[str, str]  # names in upper case; "" where there is no value
    is_valid: bool = True  # False: the path is what was said instead of one


def parse_mail(
    argument: bytes, *, brackets_needed: bool, utf8_allowed: bool = True, any_words: bool = False
) -> Parsed:
    """The argument of MAIL: ``FROM:<a@b> SIZE=1``. Refused where it is none.

    SMTPUTF8 among the parameters is what lets the path go beyond ASCII. ``any_words``: plain words may stand
    in the place of a path, as some devices have them: ``FROM:<KONICA MINOLTA>``, ``FROM:<scanner@>``.
    """
    parsed = _parse(argument, b"FROM:", brackets_needed)
    if parsed is None or parsed.path == "postmaster":
        words = _parse_words(argument) if any_words else None
        if words is None:
            raise Refused(SENDER_INVALID)
        return words
    if not parsed.path.isascii() and not (utf8_allowed and "SMTPUTF8" in parsed.parameters):
        raise Refused(NEEDS_SMTPUTF8)
    return parsed


def parse_rcpt(argument: bytes, *, brackets_needed: bool, utf8_allowed: bool) -> Parsed:
    """The argument of RCPT: ``TO:<a@b> NOTIFY=NEVER``. Refused where it is none."""
    parsed = _parse(argument, b"TO:", brackets_needed)
    if parsed is None or not parsed.path:
        raise Refused(PATH_INVALID)
    if not parsed.path.isascii() and not utf8_allowed:
        raise Refused(NEEDS_SMTPUTF8)
    return parsed


_NO_PARAMETERS: Mapping[str, str] = {}


def _parse(argument: bytes, keyword: bytes, brackets_needed: bool) -> Parsed | None:
    size = len(keyword)
    if argument[:size].upper() != keyword:
        return None
    try:
        text = argument[size:].decode()
    except UnicodeDecodeError:
        return None
    grammar = _ASCII if text.isascii() else _UTF8
    found = grammar.match_path(text)
    if found is None and not brackets_needed:
        found = grammar.match_bare_path(text)
    if found is None:
        return None
    path, parameters = found["path"] or found["alone"].lower(), found["parameters"]
    if not _within_limits(path):
        return None
    if path.endswith("]") and not _is_address_literal(path[path.rindex("[") + 1 : -1]):
        return None
    return Parsed(path, _parse_parameters(grammar, parameters) if parameters else _NO_PARAMETERS)


def _parse_words(argument: bytes) -> Parsed | None:
    found = _match_words(argument)
    if found is None:
        return None
    words, parameters = (found[1] or found[2]).decode(), found[3].decode()
    return Parsed(words, _parse_parameters(_ASCII, parameters), is_valid=False)


# What a person may have typed into a device's menu: a name, or half an address. The rest is noise.
_match_words = re.compile(
    rb"(?i)FROM:[ \t]*(?:<([a-z0-9][\w .+#&'/:,()-]*(?:@[\w .-]*)?)>|([a-z0-9][\w.+-]*@?))"
    rb"((?:[ \t]+[!-~]+)*)[ \t]*"
).fullmatch


def _parse_parameters(grammar: _Grammar, text: str) -> Mapping[str, str]:
    parameters: dict[str, str] = {}
    for word in text.split():
        found = grammar.match_parameter(word)
        if found is None or found[1].upper() in parameters:
            raise Refused(PARAMETER_INVALID)
        parameters[found[1].upper()] = found[2] or ""
    return parameters


def _within_limits(path: str) -> bool:
    if len(path) <= LOCAL_PART_SIZE_MAX_BYTES and path.isascii():
        return True
    local_part = path.rpartition("@")[0]
    return len(local_part.encode()) <= LOCAL_PART_SIZE_MAX_BYTES and len(path.encode()) <= PATH_SIZE_MAX_BYTES


def _is_address_literal(text: str) -> bool:
    """IPv4, or IPv6 with its tag (RFC 5321 4.1.3)."""
    try:
        if text[:5].lower() == "ipv6:":
            IPv6Address(text[5:])
        else:
            IPv4Address(text)
    except ValueError:
        return False
    return True
