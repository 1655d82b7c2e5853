"""What every verb says things with: exit codes, errors, tables, sizes, times, colours, JSON.

Rules: JSON is one document on stdout, in English, UTC. Prose is in the user's language and local time.
Whatever a stranger may have written is made printable before it reaches a terminal.
"""

from __future__ import annotations

import calendar
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from pi_relay.cli.texts import t

# Exit codes; the man page lists them.
OK = 0
FAILED = 1  # the thing asked for
USAGE = 2
BAD_CONFIGURATION = 3
NOT_RUNNING = 4
NOT_FOUND = 5


class CliError(Exception):
    """Ends the command: what is wrong, what to do, and the exit code."""

    def __init__(self, exit_code: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.message = message
        self.hint = hint


def prepare_streams() -> None:
    """A terminal that lacks a character shows an escape, and is no reason to stop."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def complain(message: str, hint: str = "", *, program: str = "pi-relay") -> None:
    """An error, and how to mend it, on stderr."""
    lines = "\n".join(map(printable, message.split("\n")))
    print(f"{program}: {lines}", file=sys.stderr)
    if hint:
        print(t("hint: {hint}", hint=hint), file=sys.stderr)


def print_json(document: object) -> None:
    print(json.dumps(document, ensure_ascii=False, indent=2))


def print_json_list(documents: Iterable[object]) -> None:
    """A list whose elements are written as they come: ten thousand need no memory."""
    opened = False
    for document in documents:
        sys.stdout.write(",\n" if opened else "[\n")
        sys.stdout.write(json.dumps(document, ensure_ascii=False))
        opened = True
    print("\n]" if opened else "[]")


# ── for people ───────────────────────────────────────────────────────────────────────────────────

_COLOURS = {"green": "32", "yellow": "33", "red": "31", "bold": "1", "faint": "2"}


def coloured(text: str, colour: str) -> str:
    """The text in a colour, where stdout is a terminal and NO_COLOR is not set."""
    if os.environ.get("NO_COLOR") or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def printable(text: str) -> str:
    """Control characters, and what else could move the cursor, shown as escapes."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, indent: str = "") -> None:
    """Columns as wide as they need; the last one is not padded."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(headings, *rows, strict=True)]
    print(coloured(_table_line(headings, widths, indent), "bold"))
    for row in rows:
        print(_table_line(row, widths, indent))


def print_facts(facts: Sequence[tuple[str, str]], *, indent: str = "") -> None:
    """A label and what it is, a line each."""
    width = max(_width(label) for label, _ in facts)
    for label, fact in facts:
        print(f"{indent}{label}{' ' * (width - _width(label))}  {printable(fact)}")


def _table_line(cells: Sequence[str], widths: Sequence[int], indent: str) -> str:
    padded = [cell + " " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=True)]
    return (indent + "  ".join(padded)).rstrip()


def _width(text: str) -> int:
    """Columns of a terminal: East Asian wide characters take two."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def size_text(size_bytes: int) -> str:
    """ "512 B", "2.3 KB", "5.1 MB" (powers of 1000, as in the configuration file)."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    size = float(size_bytes)
    for unit in ("KB", "MB", "GB"):
        size /= 1000
        if size < 999.95 or unit == "GB":
            return f"{size:.1f} {unit}"
    raise AssertionError


def duration_text(seconds: float) -> str:
    """The two largest units: "42s", "3m 20s", "2h 05m", "3d 4h"."""
    whole = max(0, int(seconds))
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour}h"
    if hours:
        return f"{hours}h {minute:02}m"
    return f"{minutes}m {second:02}s" if minutes else f"{second}s"


def seconds_of(timestamp: str) -> float:
    """Seconds since the epoch of an RFC 3339 UTC time of ours."""
    day, _, clock = timestamp.rstrip("Z").partition("T")
    clock, _, fraction = clock.partition(".")
    fields = [*map(int, day.split("-")), *map(int, clock.split(":"))]
    return calendar.timegm((*fields, 0, 0, 0)) + float(f"0.{fraction or 0}")


def local_time(timestamp: str | None) -> str:
    """ "2026-03-01 10:30:00" on the clock of this machine; "-" for none."""
    if not timestamp:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds_of(timestamp)))


def ago(timestamp: str | None) -> str:
    if not timestamp:
        return t("never")
    return t("{duration} ago", duration=duration_text(time.time() - seconds_of(timestamp)))


def ahead(timestamp: str | None) -> str:
    if not timestamp:
        return "-"
    seconds = seconds_of(timestamp) - time.time()
    return t("in {duration}", duration=duration_text(seconds)) if seconds > 0 else t("now")


def reply_text(reply: dict[str, Any] | None) -> str:
    """ "550 5.1.1 no such user (mx.example)" of a reply document."""
    if reply is None:
        return ""
    words = " ".join(str(part) for part in (reply["code"], reply["enhanced_status"], reply["text"]) if part)
    return f"{words} ({reply['remote_mta']})" if reply["remote_mta"] else words
