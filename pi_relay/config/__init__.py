"""The admin's TOML file as frozen data.

Rules: every error of the file is reported at once, with line, key and hint; a key whose feature is not in
this version is refused, never ignored. It must not know sockets, the queue or the clock.

Inside: data (the dataclasses) · schema (every key, in one table) · kinds (what a value may be) · reading
(document to data) · rules (what keys mean together) · secret_files, machine (what is looked up) · findings,
locate (what is said, and where) · reference (docs/configuration.md).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import secret_files
from .data import (
    DEFAULT_LISTENERS,
    DEFAULT_PATH,
    MB,
    Config,
    Device,
    Direct,
    Dkim,
    Listener,
    Log,
    Queue,
    Route,
    SmartHost,
    Submission,
    Tls,
)
from .findings import ConfigInvalid, Finding, Report, Severity, in_words
from .kinds import Wrong, a_labels, looks_like_address
from .reading import read
from .rules import RULES
from .schema import NOT_YET

__all__ = [
    "DEFAULT_LISTENERS",
    "DEFAULT_PATH",
    "MB",
    "NOT_YET",
    "Config",
    "ConfigInvalid",
    "Device",
    "Direct",
    "Dkim",
    "Finding",
    "Listener",
    "Log",
    "Queue",
    "Route",
    "Severity",
    "SmartHost",
    "Submission",
    "Tls",
    "Wrong",
    "a_labels",
    "check",
    "despite_errors",
    "in_words",
    "load",
    "looks_like_address",
    "secret_files",
]

_FILE_SIZE_MAX_BYTES = 1024 * 1024
_TOML_PLACE = re.compile(r"\s*\(at (?:line (\d+), column \d+|(end of document))\)")


def load(path: Path) -> Config:
    """The configuration in ``path``. Raises ConfigInvalid with everything that is wrong with it."""
    config, findings = check(path)
    if config is None:
        raise ConfigInvalid(path, findings)
    return config


def check(
    path: Path, *, content: Path | None = None, not_yet: Collection[str] = NOT_YET
) -> tuple[Config | None, list[Finding]]:
    """The configuration, None where there is any error, and all findings in the order of the file.

    ``content``: a copy to be read in the place of ``path``, from whose folder relative paths count all the
    same. ``not_yet``: the keys to refuse as not available, in the form of schema.NOT_YET.
    """
    try:
        config, report = _read(path, not_yet, content)
    except _Unreadable as unreadable:
        return None, [unreadable.finding]
    judged = config if content is None else replace(config, path=content)
    for rule in RULES:
        rule(judged, report)
    findings = report.findings()
    is_good = all(finding.severity is Severity.WARNING for finding in findings)
    return (config if is_good else None), findings


def despite_errors(path: Path) -> Config | None:
    """The file as far as it goes, bad values at their defaults: for what helps to write it. None: no TOML."""
    try:
        return _read(path, ())[0]
    except _Unreadable:
        return None


def _read(path: Path, not_yet: Collection[str], content: Path | None = None) -> tuple[Config, Report]:
    text = _text(content or path)
    document = _document(text)
    report = Report(text, document)
    return read(document, path.absolute(), report, not_yet), report


class _Unreadable(Exception):
    def __init__(self, line: int, message: str, hint: str) -> None:
        super().__init__(message)
        self.finding = Finding(line, "", Severity.ERROR, message, hint)


def _text(path: Path) -> str:
    try:
        data = secret_files.read_regular(path, _FILE_SIZE_MAX_BYTES)
    except Wrong as wrong:
        raise _Unreadable(0, wrong.message, wrong.hint) from None
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _Unreadable(line, "is not UTF-8 text", "save the file as UTF-8 in your editor") from None


def _document(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise _Unreadable(1, "is nested too deeply", "take brackets away") from None
    except ValueError as error:
        message = str(error)
        place = _TOML_PLACE.search(message)
        line = text.count("\n") + 1
        if place is None:
            line = 1
        elif place[1]:
            line = int(place[1])
        hint = _syntax_hint(text, line)
        if "overwrite" in message:
            hint = "each key stands once in a section: take one of the lines out"
        raise _Unreadable(line, f"is not TOML: {_without_place(message)}", hint) from None


def _without_place(message: str) -> str:
    words = _TOML_PLACE.sub("", message)
    return "".join(c if c.isprintable() else "?" for c in words[:200])


def _syntax_hint(text: str, number: int) -> str:
    """What most likely happened in that line."""
    lines = text.split("\n")
    line = lines[number - 1].strip() if number <= len(lines) else ""
    if number >= len(lines):
        return "a bracket or a quote that was opened is not closed, or the last line is not complete"
    name, equals, value = (part.strip() for part in line.partition("="))
    if line.startswith("["):
        return "a section begins with [name] or [[name]] alone on its line, each name once"
    if not equals and ":" in name:
        return f"write key = value, with an equals sign: {name.partition(':')[0]} = ..."
    if not equals:
        return "write key = value; a line that is only for people begins with #"
    if value and value[0] in "“”„‘’«»":
        return 'use straight quotes: "..."'
    if value[:1] in ('"', "'") and value.count(value[0]) % 2:
        return f"a text must end with the quote that began it: {value[0]}"
    if value.startswith("{") and "}" not in value:
        return "{ ... } stands on one line; a section of its own is often easier to read"
    if "\\" in value:
        return "within \"...\" a backslash is written twice, or use '...'"
    if value[:1].isalpha() and value.partition("#")[0].strip() not in ("true", "false"):
        return f'put text in quotes: {name} = "{value}"'
    return "text stands in quotes, lists in [ ], numbers and true/false alone; each key once in a section"
