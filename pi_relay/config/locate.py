"""Where in a TOML text a key stands.

The standard parser gives values without lines, so a second walk over the same text finds them. Rules: the
text has already been accepted by ``tomllib``, thus nothing is judged here; made only when there is
something to report. It must not know what any key means.
"""

from __future__ import annotations

import re
from contextlib import suppress

_SKIPPED = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]*")
_STRINGS = (
    # A closing triple quote may have one or two more of its kind before it: they belong to the text.
    re.compile(r'"""(?:[^\\]|\\.)*?"{3,5}', re.DOTALL),
    re.compile(r"'''.*?'{3,5}", re.DOTALL),
    re.compile(r'"(?:[^"\\\n]|\\.)*"'),
    re.compile(r"'[^'\n]*'"),
)
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))")
_ESCAPED = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r"}

_Path = tuple[str | int, ...]


class Locator:
    """Lines by path, e.g. ``("devices", 1, "address")``; of an unknown path, the nearest table around it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._lines: dict[_Path, int] = {(): 1}
        # Every [section] in order: its path, its line, and the line where what stands before it ends.
        self.headers: list[tuple[_Path, int, int]] = []
        self._content_end = 0
        self._counts: dict[_Path, int] = {}  # of [[arrays of tables]], by their path
        self._counted_line = 1
        self._counted_position = 0
        # What was found before a failure serves; the rest is placed at the table around it.
        with suppress(RecursionError, IndexError):
            self._walk()

    def line(self, path: _Path) -> int:
        while path not in self._lines:
            path = path[:-1]
        return self._lines[path]

    def _note(self, path: _Path) -> None:
        """The first mention counts; positions only grow, so each line end is counted once."""
        self._counted_line += self._text.count("\n", self._counted_position, self._position)
        self._counted_position = self._position
        for length in range(1, len(path) + 1):
            self._lines.setdefault(path[:length], self._counted_line)

    def _walk(self) -> None:
        table: _Path = ()
        while self._skip():
            if self._text[self._position] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _skip(self) -> bool:
        """Past blanks, line ends and comments; whether anything follows."""
        match = _SKIPPED.match(self._text, self._position)
        self._position = match.end() if match else self._position
        return self._position < len(self._text)

    def _header(self) -> _Path:
        is_array = self._text.startswith("[[", self._position)
        start = self._position
        self._position += 2 if is_array else 1
        keys = self._key()
        self._position += 2 if is_array else 1
        end = self._position
        path: _Path = ()
        for number, key in enumerate(keys):
            path = (*path, key)
            if is_array and number == len(keys) - 1:
                self._counts[path] = self._counts.get(path, 0) + 1
            if path in self._counts:
                path = (*path, self._counts[path] - 1)
        self._position = start
        self._note(path)
        self.headers.append((path, self._counted_line, self._text.count("\n", 0, self._content_end) + 1))
        self._position = self._content_end = end
        return path

    def _pair(self, table: _Path) -> None:
        start = self._position
        path = (*table, *self._key())
        self._position, after_key = start, self._position
        self._note(path)
        self._position = after_key + 1  # the "="
        self._value(path)
        self._content_end = self._position

    def _key(self) -> list[str]:
        """A dotted key; leaves the position at what ends it."""
        keys = []
        while True:
            self._skip()
            keys.append(self._simple_key())
            self._skip()
            if self._text[self._position] != ".":
                return keys
            self._position += 1

    def _simple_key(self) -> str:
        quote = self._text[self._position]
        pattern = {'"': _STRINGS[2], "'": _STRINGS[3]}.get(quote, _BARE_KEY)
        match = pattern.match(self._text, self._position)
        if match is None:
            raise IndexError
        self._position = match.end()
        if quote == '"':
            return _ESCAPE.sub(_unescaped, match[0][1:-1])
        return match[0][1:-1] if quote == "'" else match[0]

    def _value(self, path: _Path) -> None:
        self._skip()
        match self._text[self._position]:
            case "[":
                self._elements(path)
            case "{":
                self._inline_table(path)
            case '"' | "'":
                for pattern in _STRINGS:
                    if match := pattern.match(self._text, self._position):
                        self._position = match.end()
                        return
                raise IndexError
            case _:
                scalar = _SCALAR.match(self._text, self._position)
                self._position = scalar.end() if scalar else self._position

    def _elements(self, path: _Path) -> None:
        self._position += 1
        number = 0
        while self._skip() and self._text[self._position] != "]":
            self._note((*path, number))
            self._value((*path, number))
            number += 1
            self._skip()
            if self._text[self._position] == ",":
                self._position += 1
        self._position += 1

    def _inline_table(self, path: _Path) -> None:
        self._position += 1
        while self._skip() and self._text[self._position] != "}":
            self._pair(path)
            self._skip()
            if self._text[self._position] == ",":
                self._position += 1
        self._position += 1


def _unescaped(match: re.Match[str]) -> str:
    short, long, plain = match.groups()
    if plain is not None:
        return _ESCAPED.get(plain, plain)
    return chr(int(short or long, 16))
