"""What is wrong with the file: one finding each, in words for an office admin.

Rules: a finding says what is wrong, where, and what to do. Lines are looked up only once there is
something to report, so that a good file costs nothing. It must not know what any key means.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

KeyPath = tuple[str | int, ...]  # ("devices", 1, "address"): the names and positions that lead to a value


class Severity(StrEnum):
    ERROR = "error"  # the relay does not start with it
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    line: int  # from 1; 0 where no line can be named
    key: str  # "devices.address", "" for the file as a whole
    severity: Severity
    message: str
    hint: str = ""


class ConfigInvalid(Exception):
    """The file cannot be used. ``findings`` holds all of them, warnings included."""

    def __init__(self, path: Path, findings: list[Finding]) -> None:
        super().__init__("\n".join(in_words(path, finding) for finding in findings))
        self.path = path
        self.findings = findings


def in_words(path: Path, finding: Finding) -> str:
    """``FILE:LINE: key: what is wrong``, and a second line ``hint: ...`` where there is one."""
    where = f"{path}:{finding.line}" if finding.line else f"{path}"
    mark = "warning" if finding.severity is Severity.WARNING else ""
    words = ": ".join(part for part in (where, finding.key, mark, finding.message) if part)
    return f"{words}\nhint: {finding.hint}" if finding.hint else words


class Report:
    """Gathers findings by the path of their key, and turns them into lines at the end."""

    def __init__(self, text: str, document: dict[str, Any]) -> None:
        self._text = text
        self._document = document
        self._found: list[tuple[KeyPath, Severity, str, str]] = []

    def error(self, path: KeyPath, message: str, hint: str = "") -> None:
        self._found.append((path, Severity.ERROR, message, hint))

    def warning(self, path: KeyPath, message: str, hint: str = "") -> None:
        self._found.append((path, Severity.WARNING, message, hint))

    def has(self, *path: str | int) -> bool:
        """Whether the file itself gives this key, rather than leaving it to its default."""
        value: Any = self._document
        for step in path:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return False
        return True

    def findings(self) -> list[Finding]:
        """All of them, in the order of the file."""
        if not self._found:
            return []
        from .locate import Locator  # only wanted where something is wrong

        locator = Locator(self._text)
        findings = [
            Finding(locator.line(path), dotted(path), severity, message, hint)
            for path, severity, message, hint in self._found
        ]
        return sorted(findings, key=lambda finding: finding.line)


def dotted(path: KeyPath) -> str:
    """The key as people say it: the line already tells which of several devices is meant."""
    key = ".".join(step for step in path if isinstance(step, str))
    return "".join(c if c.isprintable() else "?" for c in key[:120])
