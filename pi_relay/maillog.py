"""The mail log: one function per mail event, and the only place that words it.

A line is ``event key=value key=value ...``, queue id first where there is one. It goes to stderr, or, where
that is systemd's journal, there as fields; and with an RFC 3339 UTC time in front to daily files, which
``trace`` reads.

Rules:
- A client can never write a line: a value with a space, quote, backslash or anything unprintable is quoted
  and escaped, and every value has a bounded length. ``parse_line`` gives back what was written.
- Lines are gathered and written once per turn of the loop; without a running loop, at once. Files are not
  synced. Nothing is written unless something happened: a new day begins with its first line.
- No failure in here may break mail: what cannot be written is dropped, and said once on stderr.
- Subjects are never logged. With ``addresses = "hashed"`` local parts are replaced by a keyed hash that
  stays the same on this box, domains stay.
It must not know the queue, the sockets or what an event leads to.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # `trace` reads logs with this module and must be quick: what only writers need is imported by them.
    from pi_relay.config import Log
    from pi_relay.journald import Journald
    from pi_relay.model import Reply

VALUE_SIZE_MAX = 2048  # characters of one value
ADDRESSES_SIZE_MAX = 12_000  # characters of a list of addresses: a line stays under journald's LineMax
PARTS = 4  # a day's log goes on in a new file at a quarter of size_max, so that there is always one to drop
SALT_FILE = "log-salt"

# What `trace --json` gives as numbers.
NUMERIC_KEYS = frozenset({"size", "seconds", "attempt", "delay"})


# ── the events ───────────────────────────────────────────────────────────────────────────────────


def accepted(
    *,
    queue_id: str,
    client: str,
    device: str,
    reverse_path: str,
    to: Iterable[str],
    size_bytes: int,
    tls: str,
    auth: str,
    seconds: float,
    message_id: str = "",
    rewritten: Iterable[str] = (),
    claimed: Iterable[str] = (),
    signatures: Iterable[str] = (),
) -> None:
    """A message is durable. ``tls``: the version, "" in clear; ``auth``: the user name, "" without;
    ``seconds``: from MAIL to the 250. What of its sender was ``rewritten``: see ``rewritten``."""
    _emit(
        f"accepted queue_id={queue_id} client={_value(client)} device={_value(device)}"
        f" from={_value(_address(reverse_path) or '<>')} to={_value(_addresses(to))} size={size_bytes}"
        f" tls={_value(tls)} auth={_value(_text(auth))} seconds={seconds:.3f}"
        f" message_id={_value(_text(message_id))}{_rewriting(rewritten, claimed, signatures)}"
    )


def rewritten(
    *,
    queue_id: str,
    next_hop: str,
    sender: str,
    rewritten: Iterable[str],
    claimed: Iterable[str],
    signatures: Iterable[str],
) -> None:
    """A message goes to a next hop in the name of ``sender``. ``rewritten``: what was changed, as "from";
    ``claimed``: the addresses that stood there; ``signatures``: what that means to them, as "dkim_broken"."""
    _emit(
        f"rewritten queue_id={queue_id} next_hop={_value(next_hop)} from={_value(_address(sender))}"
        f"{_rewriting(rewritten, claimed, signatures)}"
    )


def _rewriting(rewritten: Iterable[str], claimed: Iterable[str], signatures: Iterable[str]) -> str:
    if not rewritten:
        return ""
    line = f" rewritten={','.join(rewritten)} claimed={_addresses(claimed)}"
    return line + (f" signatures={','.join(signatures)}" if signatures else "")


def refused(*, client: str, device: str, reply: Reply | str, reason: str) -> None:
    """A client was sent away with ``reply``; ``reason`` says more than the client was told."""
    _emit(
        f"refused client={_value(client)} device={_value(device)}"
        f" reply={_value(_text(str(reply)))} reason={_value(_text(reason))}"
    )


def relayed(
    *,
    queue_id: str,
    to: str,
    next_hop: str,
    reply: Reply | str,
    attempt: int,
    delay_seconds: float,
    tls: str = "",
) -> None:
    """A next hop took the message for one recipient, ``delay_seconds`` after it was accepted.

    ``tls``: what protected it on its way to an MX host, in words; "" for a smart host, whose file says it.
    """
    _emit(
        f"relayed queue_id={queue_id} to={_value(_address(to))} next_hop={_value(next_hop)}"
        f" reply={_value(_text(str(reply)))} attempt={attempt} delay={delay_seconds:.1f}"
        + (f" tls={_value(tls)}" if tls else "")
    )


def deferred(
    *, queue_id: str, to: str, next_hop: str, reply: Reply | str, next_attempt_at: float | None
) -> None:
    """A recipient has to wait; ``next_attempt_at`` None: until its next hop is well again."""
    _emit(
        f"deferred queue_id={queue_id} to={_value(_address(to))} next_hop={_value(next_hop)}"
        f" reply={_value(_text(str(reply)))} next_attempt={_moment(next_attempt_at)}"
    )


def failed(*, queue_id: str, to: str, next_hop: str, reply: Reply | str, dsn: str) -> None:
    """A recipient is given up; ``dsn``: the queue id of the report, "" where none is owed."""
    _emit(
        f"failed queue_id={queue_id} to={_value(_address(to))} next_hop={_value(next_hop)}"
        f" reply={_value(_text(str(reply)))} dsn={dsn}"
    )


def paused(*, next_hop: str, reason: str, until: float | None) -> None:
    """A next hop rests as a whole. ``until``: wall-clock seconds, None where it is not known."""
    _emit(f"paused next_hop={_value(next_hop)} reason={_value(_text(reason))} until={_moment(until)}")


def resumed(*, next_hop: str) -> None:
    _emit(f"resumed next_hop={_value(next_hop)}")


def held(*, queue_id: str, reason: str) -> None:
    _emit(f"held queue_id={queue_id} reason={_value(_text(reason))}")


def released(*, queue_id: str) -> None:
    _emit(f"released queue_id={queue_id}")


def deleted(*, queue_id: str, reason: str) -> None:
    _emit(f"deleted queue_id={queue_id} reason={_value(_text(reason))}")


def corrupt(*, queue_id: str, reason: str) -> None:
    """A message could not be read and was moved aside; the id is what its file name says."""
    _emit(f"corrupt queue_id={_value(queue_id)} reason={_value(_text(reason))}")


def alert(*, reason: str, queue_id: str = "", device: str = "", next_hop: str = "") -> None:
    """Somebody should know. Counts and names only: the reason never holds what a message says."""
    about = (("queue_id", queue_id), ("device", device), ("next_hop", next_hop))
    extra = "".join(f" {key}={_value(value)}" for key, value in about if value)
    _emit(f"alert reason={_value(_text(reason))}{extra}")


def legacy(*, device: str, what: str) -> None:
    """A device used what only ``legacy = true`` allows; the caller says it once a day."""
    _emit(f"legacy device={_value(device)} what={_value(what)}")


def notice(text: str) -> None:
    """The daemon's own words, where nothing is wrong."""
    _emit(f"notice text={_value(_text(text))}")


def error(text: str, exception: BaseException | None = None) -> None:
    """The daemon's own words, where something is; with an exception its traceback follows, line by line."""
    _emit(f"error text={_value(_text(text))}")
    if exception is None:
        return
    import traceback

    for block in traceback.format_exception(exception):
        for line in block.rstrip("\n").split("\n"):
            _emit(f"traceback line={_value(_text(line))}")


# ── opening and closing ──────────────────────────────────────────────────────────────────────────


def open_log(
    directory: Path | None,
    log: Log,
    *,
    stderr: bool = True,
    clock_is_right: Callable[[], bool] = lambda: True,
) -> None:
    """Write from now on to daily files in ``directory`` (None: no files), and to stderr.

    May be called again when the configuration changes. Retention waits while ``clock_is_right`` says no.
    Never raises: what is wrong with the folder is said on stderr, and tried again at the next line.
    """
    global _mask
    close_log()
    _sink.begin(directory, log, stderr, clock_is_right)
    _mask = None
    if log.addresses == "hashed":
        _mask = AddressMask(_salt(directory.parent if directory else None))


def close_log() -> None:
    """Write what is gathered and close the file; further lines go to stderr alone."""
    _flush()
    _sink.stderr_only()


# ── values ───────────────────────────────────────────────────────────────────────────────────────

_is_plain = re.compile(r"[!#-\[\]-~]*").fullmatch
_is_words = re.compile(r"[ !#-\[\]-~]*").fullmatch  # plain with spaces: most replies
_BACKSLASHED = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _value(text: str, size_max: int = VALUE_SIZE_MAX) -> str:
    if len(text) > size_max:
        text = text[:size_max] + "…"
    if _is_plain(text):
        return text
    if _is_words(text):
        return f'"{text}"'
    written = escaped(text)
    return written if written == text and " " not in text else f'"{written}"'


def escaped(text: str) -> str:
    """The text as it stands in a line, between the quotes where it needs them."""
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character in _BACKSLASHED:
        return _BACKSLASHED[character]
    if character.isprintable():
        return character
    number = ord(character)
    if number <= 0xFF:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"


def _address(address: str) -> str:
    return _mask.address(address) if _mask else address


def _text(text: str) -> str:
    """Free text, which may name addresses."""
    return _mask.text(text) if _mask and "@" in text else text


def _addresses(addresses: Iterable[str]) -> str:
    return _value(",".join(map(_address, addresses)), ADDRESSES_SIZE_MAX)


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else rfc3339(seconds)


def rfc3339(seconds: float) -> str:
    """ "2026-03-01T09:30:00Z" of seconds since the epoch (RFC 3339, UTC, whole seconds)."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class AddressMask:
    """Puts a keyed hash in the place of local parts; the same address gives the same hash on one box."""

    _local_parts = re.compile(r"[^\s<>\"@,;:()\[\]]+@(?=[^\s@])")

    def __init__(self, salt: bytes) -> None:
        import hashlib

        def keyed_hash(local_part: str) -> str:
            data = local_part.lower().encode("utf-8", "backslashreplace")
            return hashlib.blake2b(data, digest_size=6, key=salt).hexdigest()

        self._hash = lru_cache(maxsize=512)(keyed_hash)

    def address(self, address: str) -> str:
        local_part, at, domain = address.rpartition("@")
        return f"{self._hash(local_part)}@{domain}" if at else address

    def text(self, text: str) -> str:
        return self._local_parts.sub(lambda found: f"{self._hash(found[0][:-1])}@", text)


_mask: AddressMask | None = None


def _salt(state_directory: Path | None) -> bytes:
    """The box's own key for hashed addresses, made at the first use."""
    import secrets

    if state_directory is None:
        return secrets.token_bytes(32)
    path = state_directory / SALT_FILE
    try:
        return read_salt(state_directory) or _new_salt(path)
    except OSError as problem:
        error(f"{path}: {problem.strerror}; addresses are hashed with a key that lasts until the next start")
        return secrets.token_bytes(32)


def read_salt(state_directory: Path) -> bytes:
    """The key that hashed addresses were made with, b"" where there is none yet."""
    try:
        return (state_directory / SALT_FILE).read_bytes()[:64]
    except FileNotFoundError:
        return b""


def _new_salt(path: Path) -> bytes:
    import secrets

    salt = secrets.token_bytes(32)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, salt)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return salt


# ── reading back ─────────────────────────────────────────────────────────────────────────────────

_LINE = re.compile(
    r"(?:(?P<time>\d{4}-\d\d-\d\dT\S+Z) )?(?P<event>[a-z]+)(?P<pairs>(?: [a-z_]+=.*)?)", re.DOTALL
)
_PAIR = re.compile(r" (?P<key>[a-z_]+)=(?:\"(?P<quoted>(?:[^\"\\]|\\.)*)\"|(?P<bare>[^\s\"]*))(?= |$)")
_unescape = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))").sub
_BACKSLASHES = {"n": "\n", "r": "\r", "t": "\t"}


def parse_line(line: str) -> dict[str, str] | None:
    """``{"time": ..., "event": ..., key: value, ...}`` of a line, None where it is not one (a torn line).

    ``time`` is missing where the line carries none.
    """
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    pairs = found["pairs"]
    event = {"time": found["time"]} if found["time"] else {}
    event["event"] = found["event"]
    position = 0
    while position < len(pairs):
        pair = _PAIR.match(pairs, position)
        if pair is None:
            return None
        quoted = pair["quoted"]
        event[pair["key"]] = pair["bare"] if quoted is None else _unescape(_unescaped, quoted)
        position = pair.end()
    return event


def _unescaped(found: re.Match[str]) -> str:
    number = found[1] or found[2] or found[3]
    return chr(int(number, 16)) if number else _BACKSLASHES.get(found[4], found[4])


def log_files(directory: Path) -> list[Path]:
    """The daily files, oldest first."""
    try:
        names = [(key, entry.name) for entry in os.scandir(directory) if (key := _file_key(entry.name))]
    except OSError:
        return []
    return [directory / name for _, name in sorted(names)]


_FILE_NAME = re.compile(r"mail-(\d{4}-\d\d-\d\d)(?:\.(\d+))?\.log")


def _file_key(name: str) -> tuple[str, int] | None:
    """Day and part of a file of ours: mail-2026-03-01.log, then mail-2026-03-01.2.log."""
    found = _FILE_NAME.fullmatch(name)
    return (found[1], int(found[2] or 1)) if found else None


def file_day(path: Path) -> str:
    """ "2026-03-01" of a daily file."""
    key = _file_key(path.name)
    return key[0] if key else ""


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


class _Sink:
    """Where lines go: stderr, and the file of the day. One for the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._descriptor = -1
        self._day = ""
        self._size_bytes = 0
        self._torn = False
        self._broken = False
        self._retention_seconds = 0.0
        self._size_max_bytes = 0
        self._clock_is_right: Callable[[], bool] = lambda: True
        self._journal: Journald | None = None
        self.stderr_only()

    def stderr_only(self) -> None:
        with self._lock:
            self._close()
            self._directory: Path | None = None
            self._stderr = True

    def begin(
        self, directory: Path | None, log: Log, stderr: bool, clock_is_right: Callable[[], bool]
    ) -> None:
        with self._lock:
            self._directory = directory
            self._retention_seconds = log.retention_seconds
            self._size_max_bytes = log.size_max_bytes
            self._stderr = stderr
            self._clock_is_right = clock_is_right
            if stderr and self._journal is None:
                self._journal = _journal_behind_stderr()

    def write(self, lines: list[str]) -> None:
        with self._lock:
            if self._stderr:
                self._to_stderr(lines)
            if self._directory is not None:
                self._to_file(self._directory, lines)

    def _to_stderr(self, lines: list[str]) -> None:
        if self._journal is not None:
            self._to_journal(self._journal, lines)
            return
        # Whoever reads our stderr may be gone or slow: that is not the mail's trouble.
        with suppress(OSError):
            os.write(2, ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))

    def _to_journal(self, journal: Journald, lines: list[str]) -> None:
        from pi_relay.journald import entry

        journal.send(entry(line, parse_line(line) or {"event": ""}) for line in lines)

    def _to_file(self, directory: Path, lines: list[str]) -> None:
        now = time.time()
        seconds = int(now)
        stamp = f"{rfc3339(seconds)[:-1]}.{int((now - seconds) * 1000):03d}Z "
        data = "".join([f"{stamp}{line}\n" for line in lines]).encode("utf-8", "backslashreplace")
        try:
            if (
                self._descriptor < 0
                or stamp[:10] != self._day
                or self._size_bytes >= self._part_size_max_bytes
            ):
                self._open(directory, stamp[:10], now)
            self._append(data)
        except OSError as problem:
            if not self._broken:
                self._to_stderr([f"error text={_value(f'the mail log cannot be written: {problem}')}"])
            self._broken = True
            self._close()
        else:
            self._broken = False

    def _append(self, data: bytes) -> None:
        # After a write that the disk cut short, the rest of that line is given up and a new one begun.
        written = os.write(self._descriptor, b"\n" + data if self._torn else data)
        self._torn = written < len(data)
        self._size_bytes += written

    @property
    def _part_size_max_bytes(self) -> int:
        return max(1, self._size_max_bytes // PARTS)

    def _open(self, directory: Path, day: str, now: float) -> None:
        self._close()
        directory.mkdir(parents=True, exist_ok=True)
        parts = [key[1] for path in log_files(directory) if (key := _file_key(path.name)) and key[0] == day]
        part = max(parts, default=1)
        path = directory / _file_name(day, part)
        if path.exists() and path.stat().st_size >= self._part_size_max_bytes:
            path = directory / _file_name(day, part + 1)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._day = day
        self._size_bytes = os.fstat(self._descriptor).st_size
        # A power cut may have left half a line at the end: ours begins a new one.
        self._torn = self._size_bytes > 0 and not _ends_a_line(path)
        for old in self._superfluous(directory, path, now):
            old.unlink(missing_ok=True)

    def _superfluous(self, directory: Path, current: Path, now: float) -> Iterator[Path]:
        """Files past the retention, and the oldest ones where all are too large together."""
        oldest_day = rfc3339(max(0.0, now - self._retention_seconds))[:10]
        room_bytes = self._size_max_bytes - self._part_size_max_bytes
        for path in reversed(log_files(directory)):
            if path == current:
                continue
            room_bytes -= path.stat().st_size
            if room_bytes < 0 or (file_day(path) < oldest_day and self._clock_is_right()):
                yield path

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def _journal_behind_stderr() -> Journald | None:
    from pi_relay.systemd import is_journal

    if not is_journal(2):
        return None
    from pi_relay.journald import Journald

    return Journald()


def _file_name(day: str, part: int) -> str:
    return f"mail-{day}.log" if part == 1 else f"mail-{day}.{part}.log"


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


_sink = _Sink()
_gathered: list[str] = []


def _emit(line: str) -> None:
    # asyncio is looked up, not imported: the command line reads logs without it.
    events = sys.modules.get("asyncio.events")
    loop = events._get_running_loop() if events else None
    if loop is None:
        _sink.write([line])
        return
    if not _gathered:
        loop.call_soon(_flush)
    _gathered.append(line)


def _flush() -> None:
    global _gathered
    lines, _gathered = _gathered, []
    if lines:
        _sink.write(lines)
