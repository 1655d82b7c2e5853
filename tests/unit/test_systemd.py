"""What is said to systemd and to the journal, read by sockets of our own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pi_relay import journald, maillog
from pi_relay.config import Log
from pi_relay.systemd import ServiceManager, Sockets, is_journal, watchdog_seconds


def datagram_socket(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(path))
    sock.settimeout(5)
    return sock


@pytest.fixture
def notifications(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with datagram_socket(tmp_path / "notify") as sock:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def test_what_is_said(notifications: socket.socket) -> None:
    manager = ServiceManager()
    assert manager.is_there
    manager.ready()
    manager.status("All is\nwell 元気.")
    manager.status("All is\nwell 元気.")
    manager.reloading()
    assert notifications.recv(999) == b"READY=1"
    assert notifications.recv(999).decode() == "STATUS=All is well 元気."
    assert notifications.recv(999).startswith(b"RELOADING=1\nMONOTONIC_USEC="), (
        "an unchanged status is not said"
    )


def test_outside_systemd_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    manager = ServiceManager()
    manager.ready()
    assert not manager.is_there


def test_a_systemd_that_does_not_listen_keeps_nobody_waiting(notifications: socket.socket) -> None:
    manager = ServiceManager()
    for _ in range(2000):
        manager.is_alive()


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [(None, None, 0), ("20000000", None, 20), ("20000000", "1", 0), ("x", None, 0), ("-1", None, 0)],
)
def test_the_watchdog_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None, seconds: float
) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert watchdog_seconds() == seconds


# In a process of its own: passed sockets begin at descriptor 3, whoever may have that here.
_TAKE = """
import os, socket, sys
os.environ["LISTEN_PID"] = str(os.getpid())
from pi_relay.systemd import Sockets
sockets = Sockets()
address = ("127.0.0.1", int(sys.argv[1]))
let_go = sockets.let_go({address})
taken = sockets.take(*address)
print(taken is not None and taken.getsockname()[1], sockets.take(*address), let_go,
      "LISTEN_FDS" in os.environ, os.get_inheritable(3) if taken else "")
"""


def test_sockets_that_are_handed_over(notifications: socket.socket) -> None:
    ours, stale, foreign = (socket.create_server(("127.0.0.1", 0)) for _ in range(3))
    with ours, stale, foreign:
        port, foreign_port = ours.getsockname()[1], foreign.getsockname()[1]
        passed = [os.dup(sock.fileno()) for sock in (ours, stale, foreign)]

        def place() -> None:
            high = [os.dup2(fd, 100 + at) for at, fd in enumerate(passed)]
            for at, fd in enumerate(high):
                os.dup2(fd, 3 + at)

        answer = subprocess.run(
            [sys.executable, "-c", _TAKE, str(port)],
            env=os.environ | {"LISTEN_FDS": "3", "LISTEN_FDNAMES": "listener-a:listener-b:my.socket"},
            preexec_fn=place,
            pass_fds=(3, 4, 5),
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
        for fd in passed:
            os.close(fd)
    assert answer == f"{port} None (True, ['127.0.0.1:{foreign_port}']) False False\n"
    assert notifications.recv(999) == b"FDSTOREREMOVE=1\nFDNAME=listener-b"


def test_sockets_that_systemd_shall_keep(notifications: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        sockets = Sockets(ServiceManager())
        sockets.keep(sock)
        words, descriptors, _, _ = socket.recv_fds(notifications, 999, 4)
        assert words.decode() == f"FDSTORE=1\nFDNAME=listener-127.0.0.1-{port}"
        with socket.socket(fileno=descriptors[0]) as kept:
            assert kept.getsockname()[1] == port
        sockets.forget(sock)
        assert notifications.recv(999).startswith(b"FDSTOREREMOVE=1\nFDNAME=listener-127.0.0.1-")


# ── the journal ──────────────────────────────────────────────────────────────────────────────────


def test_every_event_has_a_message_id_of_its_own() -> None:
    events = {name for name, value in vars(maillog).items() if callable(value) and name in journald.KINDS}
    assert events | {"traceback"} == set(journald.KINDS)
    assert len({message_id for message_id, _ in journald.KINDS.values()}) == len(journald.KINDS)
    assert all(len(message_id) == 32 for message_id, _ in journald.KINDS.values())


def test_an_event_goes_to_the_journal_as_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with datagram_socket(tmp_path / "journal") as journal:
        monkeypatch.setattr(
            maillog, "_journal_behind_stderr", lambda: journald.Journald(str(tmp_path / "journal"))
        )
        monkeypatch.setattr(maillog, "_sink", maillog._Sink())
        maillog.open_log(None, Log())
        maillog.refused(client="192.0.2.1", device="", reply="550 5.7.1 no", reason='evil\n"PRIORITY=0')
        fields = journal.recv(9999)
    line = 'refused client=192.0.2.1 device= reply="550 5.7.1 no" reason="evil\\n\\"PRIORITY=0"'
    assert f"MESSAGE={line}\n".encode() in fields
    assert f"MESSAGE_ID={journald.KINDS['refused'][0]}\nPRIORITY=5\n".encode() in fields
    assert b"PI_RELAY_EVENT=refused\nPI_RELAY_CLIENT=192.0.2.1\nPI_RELAY_REPLY=550 5.7.1 no\n" in fields
    length = len(b'evil\n"PRIORITY=0').to_bytes(8, "little")
    assert fields.endswith(b"PI_RELAY_REASON\n" + length + b'evil\n"PRIORITY=0\n'), (
        "no field of a client's own"
    )


def test_what_is_too_long_goes_as_a_file(tmp_path: Path) -> None:
    data = b"MESSAGE=" + b"x" * 2_000_000 + b"\n"
    with datagram_socket(tmp_path / "journal") as journal:
        assert journald.Journald(str(tmp_path / "journal")).send([data])
        _, descriptors, _, _ = socket.recv_fds(journal, 10, 1)
        with os.fdopen(descriptors[0], "rb") as file:
            file.seek(0)
            assert file.read() == data


def test_a_journal_that_is_gone_or_full_keeps_nobody_waiting(tmp_path: Path) -> None:
    assert not journald.Journald(str(tmp_path / "none")).send([b"MESSAGE=x\n"])
    with datagram_socket(tmp_path / "journal"):
        sender = journald.Journald(str(tmp_path / "journal"))
        assert not sender.send([b"MESSAGE=x\n"] * 2000), "nobody reads"
        assert not sender.send([b"MESSAGE=x\n"]), "and it is left alone for a while"


def test_whether_stderr_is_the_journal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        status = os.fstat(file.fileno())
        for value, answer in (
            (f"{status.st_dev}:{status.st_ino}", True),
            ("1:2", False),
            ("", False),
            ("x", False),
        ):
            monkeypatch.setenv("JOURNAL_STREAM", value)
            assert is_journal(file.fileno()) is answer
