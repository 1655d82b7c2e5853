"""Events to systemd's journal, as fields: each kind has a message id and a priority of its own.

So `journalctl MESSAGE_ID=...` finds a kind, and `journalctl PI_RELAY_DEVICE=copier-2f` a device. MESSAGE is
the line as it stands in the mail log.

Rules: one datagram an event, by the native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL); what is too long
for one goes as a sealed memory file. A journal that does not take it at once costs WAIT_SECONDS, then it
hears nothing for PAUSE_SECONDS: the daily files have it all. It must not know what an event means.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterable, Mapping

SOCKET = "/run/systemd/journal/socket"
WAIT_SECONDS = 0.1
PAUSE_SECONDS = 5.0

# Event: its MESSAGE_ID, which never changes, and its PRIORITY (syslog(3)).
KINDS: Mapping[str, tuple[str, int]] = {
    "accepted": ("b8b870e92bae4eb9a28a7c0407d93fb2", 6),
    "rewritten": ("daaf243526ee46b193131b5687c7f387", 6),
    "refused": ("6ef19f64e8aa4060a5acd6dc3e5821c1", 5),
    "relayed": ("b3d591dcce674a7c9de28df40380e631", 6),
    "deferred": ("f68cacfaea7e46d89f7073e10d767354", 5),
    "failed": ("4dd0b2de4d1c46af974c779b093bbbb2", 4),
    "paused": ("a22eb646667548868c41924b9f343a22", 4),
    "resumed": ("9facfbdb496a4fa69b407a8a9005a35d", 5),
    "held": ("6d023d6f64d94920b0e2e91ab8e9af85", 5),
    "released": ("579eaf34792a4166ad6a169047e60341", 6),
    "deleted": ("1bc21af949af46c38ae500f1faeec603", 5),
    "corrupt": ("45b08b38de1e4295800af77d82b936a3", 3),
    "alert": ("db81ea13b0aa452090078bdf93235fa9", 1),
    "legacy": ("19a78560f4234f4885544cace4e60bb5", 5),
    "notice": ("591885832e424ffdba59096d2570732e", 6),
    "error": ("f39a3d4347ab4ac197b6dcbfaf2ef889", 3),
    "traceback": ("5ff82dae3f1a4b7c9ee5a53f3f9c3f60", 3),
}


def entry(line: str, event: Mapping[str, str]) -> bytes:
    """The datagram of an event: ``event`` is its word, and its keys with their values; empty ones are left
    out."""
    message_id, priority = KINDS.get(event["event"], ("", 6))
    fields = [
        ("MESSAGE", line),
        ("MESSAGE_ID", message_id),
        ("PRIORITY", str(priority)),
        ("SYSLOG_IDENTIFIER", "pi-relay"),
        *((f"PI_RELAY_{key.upper()}", value) for key, value in event.items() if key != "time"),
    ]
    return b"".join(_field(name, value) for name, value in fields if value)


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"


class Journald:
    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._deaf_until = 0.0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(WAIT_SECONDS)

    def send(self, entries: Iterable[bytes]) -> bool:
        """Whether all of them were taken. Never raises."""
        if time.monotonic() < self._deaf_until:
            return False
        try:
            for data in entries:
                self._send(data)
        except OSError:
            self._deaf_until = time.monotonic() + PAUSE_SECONDS
            return False
        return True

    def close(self) -> None:
        self._socket.close()

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendto(data, self._path)
        except OSError as problem:
            if problem.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_as_file(data)

    def _send_as_file(self, data: bytes) -> None:
        descriptor = os.memfd_create("pi-relay-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(data)
            seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
            self._socket.sendmsg([b""], [rights], 0, self._path)
        finally:
            os.close(descriptor)
