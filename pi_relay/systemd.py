"""What we and systemd say to each other: readiness, words for its status, its watchdog, our sockets.

Rules: everything in here does nothing where systemd did not start us, and nothing in here may break mail: a
message that systemd does not take is dropped. It must not know what the words mean.

Sources: sd_notify(3), sd_listen_fds(3), "File Descriptor Store" in the manual of systemd, systemd.exec(5).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Iterable

START_MORE_SECONDS = 30  # what is asked for at a time while a start takes long
SOCKET_NAME_PREFIX = "listener-"
_FIRST_PASSED_FD = 3  # SD_LISTEN_FDS_START


class ServiceManager:
    """The notification socket. ``is_there`` is False outside systemd: then nothing is said."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._status = ""
        if runs_as_service():
            from sdnotify import SystemdNotifier

            self._socket = SystemdNotifier().socket
        if self._socket is not None:
            self._socket.setblocking(False)  # systemd may be slow: we are not

    @property
    def is_there(self) -> bool:
        return self._socket is not None

    def ready(self) -> None:
        self._say("READY=1")

    def reloading(self) -> None:
        """``ready`` follows when it is done."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._say(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")

    def stopping(self) -> None:
        self._say("STOPPING=1")

    def wants_more_time(self) -> None:
        """The start goes on for another START_MORE_SECONDS at most, then we ask again."""
        self._say(f"EXTEND_TIMEOUT_USEC={START_MORE_SECONDS * 1_000_000}")

    def is_alive(self) -> None:
        self._say("WATCHDOG=1")

    def status(self, words: str) -> None:
        """The line that `systemctl status` shows; said only where it has changed."""
        if words != self._status:
            self._status = words
            self._say("STATUS=" + " ".join(words.split()))

    def keep_socket(self, name: str, sock: socket.socket) -> None:
        """Have systemd hold a listening socket open while we are restarted, and hand it back then."""
        self._say(f"FDSTORE=1\nFDNAME={name}", [sock.fileno()])

    def forget_socket(self, name: str) -> None:
        self._say(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def _say(self, message: str, descriptors: Iterable[int] = ()) -> None:
        if self._socket is None:
            return
        try:
            socket.send_fds(self._socket, [message.encode("utf-8", "replace")], list(descriptors))
        except OSError:
            return


def runs_as_service() -> bool:
    return "NOTIFY_SOCKET" in os.environ


def watchdog_seconds() -> float:
    """How long systemd waits for a sign of life; 0: it does not."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    try:
        return max(0, int(os.environ.get("WATCHDOG_USEC", "0"))) / 1_000_000
    except ValueError:
        return 0.0


def is_journal(descriptor: int) -> bool:
    """Whether what is written there goes to the journal ($JOURNAL_STREAM is its device and inode)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(descriptor)
        return (int(device), int(inode)) == (status.st_dev, status.st_ino)
    except (OSError, ValueError):
        return False


class Sockets:
    """Listening sockets that outlive us: those that systemd handed over, and those that it shall keep.

    So a client that comes during a restart waits a moment instead of being refused.
    """

    def __init__(self, manager: ServiceManager | None = None) -> None:
        self._manager = manager or ServiceManager()
        self._handed: dict[tuple[str, int], tuple[str, socket.socket]] = {}
        for name, sock in _passed_sockets():
            self._handed[sock.getsockname()[:2]] = (name, sock)

    def take(self, host: str, port: int) -> socket.socket | None:
        """The one that was handed over for this address."""
        _, sock = self._handed.pop((host, port), ("", None))
        return sock

    def keep(self, sock: socket.socket) -> None:
        self._manager.keep_socket(_name_of(sock), sock)

    def forget(self, sock: socket.socket) -> None:
        """It is about to be closed for good."""
        self._manager.forget_socket(_name_of(sock))

    def let_go(self, wanted: Collection[tuple[str, int]]) -> tuple[bool, list[str]]:
        """Close those that nobody will take. Whether any of them was one that we had systemd keep: it closes
        that in its own time; and the addresses that a unit of the admin's still holds open."""
        ours, held = False, []
        for host, port in self._handed.keys() - set(wanted):
            name, sock = self._handed.pop((host, port))
            sock.close()
            if name.startswith(SOCKET_NAME_PREFIX):
                ours = True
                self._manager.forget_socket(name)
            else:
                held.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        return ours, sorted(held)


def _name_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"{SOCKET_NAME_PREFIX}{host.replace(':', '_')}-{port}"


def _passed_sockets() -> list[tuple[str, socket.socket]]:
    """(name, socket) of each stream socket of ours that systemd passed; others are closed."""
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return []
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    passed = []
    for place in range(count):
        sock = socket.socket(fileno=_FIRST_PASSED_FD + place)
        sock.set_inheritable(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM:
            passed.append((names[place] if place < len(names) else "", sock))
        else:
            sock.close()
    return passed
