"""Every verb from outside against the real relay, with a stand-in smart host behind it."""

from __future__ import annotations

import json
import os
import signal
import smtplib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import CommandLine
from tests.support.processes import free_port, greeting, wait_until

MESSAGE = b"From: scans@office.example\r\nSubject: x\r\nMessage-ID: <1@copier>\r\n\r\n.one\r\n"


class Office:
    """A relay and its smart host; each can be started and stopped."""

    def __init__(self, pi_relay: CommandLine, directory: Path) -> None:
        self.pi_relay = pi_relay
        self.maildir = directory / "Maildir"
        self.port, self.smart_host_port = free_port(), free_port()
        self.log = directory / "stderr.log"
        self._processes: list[subprocess.Popen[bytes]] = []
        self.configure()

    def configure(self, more: str = "") -> None:
        self.pi_relay.file.write_text(
            'hostname = "relay.office.example"\n'
            'postmaster = "admin@office.example"\n'
            f'{more}\n[[listeners]]\naddress = "127.0.0.1:{self.port}"\ntls = "off"\n'
            f'[smart_hosts.isp]\nhost = "127.0.0.1"\nport = {self.smart_host_port}\ntls = "off"\n'
            f'[smart_hosts.other]\nhost = "127.0.0.1"\nport = {free_port()}\ntls = "off"\n'
            '[[routes]]\ndevices = ["spare"]\nvia = ["other"]\n'
            '[[routes]]\nvia = ["isp"]\n'
            '[queue]\nfree_space_min = "16 MB"\n'
            '[[devices]]\nname = "copier"\naddress = "127.0.0.1"\n'
            '[[devices]]\nname = "spare"\naddress = "192.0.2.9"\n'
        )

    def start_relay(self) -> subprocess.Popen[bytes]:
        process = self._start("serve")
        wait_until(lambda: process.poll() or greeting(self.port).startswith(b"220"), 60, "the relay to greet")
        assert process.poll() is None, self.log.read_text()
        return process

    def start_smart_host(self, *arguments: str) -> subprocess.Popen[bytes]:
        address = f"127.0.0.1:{self.smart_host_port}"
        process = self._start("sink", "--address", address, "--maildir", str(self.maildir), *arguments)
        wait_until(lambda: greeting(self.smart_host_port).startswith(b"220"), 20, "the smart host to greet")
        return process

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pi_relay", *arguments],
                env=self.pi_relay.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)
        return process

    def stop(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
                process.wait(30)

    def submit(self, to: str = "ann@office.example") -> str:
        """The queue id."""
        with smtplib.SMTP("127.0.0.1", self.port, timeout=20) as client:
            client.ehlo("copier")
            client.mail("scans@office.example")
            client.rcpt(to)
            code, words = client.data(MESSAGE)
        assert code == 250, words
        return words.decode().split()[-1]

    def ask(self, *arguments: str) -> Any:
        result = self.pi_relay(*arguments, "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    def wait_for_event(self, queue_id: str, event: str) -> None:
        def has_happened() -> bool:
            result = self.pi_relay("trace", queue_id, "--json")
            return any(line["event"] == event for line in json.loads(result.stdout))

        wait_until(has_happened, 20, f"{queue_id} to be {event}")

    def arrived(self) -> list[bytes]:
        return [path.read_bytes() for path in (self.maildir / "new").glob("*")]


@pytest.fixture
def office(pi_relay: CommandLine, tmp_path: Path) -> Iterator[Office]:
    office = Office(pi_relay, tmp_path)
    yield office
    office.stop()


def test_a_message_leaves_its_trail(office: Office) -> None:
    office.start_smart_host()
    relay = office.start_relay()
    queue_id = office.submit()
    office.wait_for_event(queue_id, "relayed")
    events = office.ask("trace", "1@copier")
    assert [event["event"] for event in events] == ["accepted", "relayed"]
    assert events[0]["size"] > len(MESSAGE) and events[0]["client"] == "127.0.0.1"
    assert office.ask("queue", "list") == []
    (arrived,) = office.arrived()
    assert arrived.endswith(b"\r\n\r\n.one\r\n")
    status = office.ask("status")
    assert status["totals"]["accepted"] == status["totals"]["relayed"] == 1
    assert set(status) == {
        "health",
        "reasons",
        "version",
        "uptime_seconds",
        "pid",
        "queue",
        "totals",
        "smart_hosts",
        "devices",
        "disk",
        "memory",
        "last_restart",
    }
    assert status["pid"] == relay.pid
    assert office.pi_relay("status").returncode == 0


def test_what_waits_is_listed_shown_and_exported_running_or_not(office: Office) -> None:
    relay = office.start_relay()
    queue_id = office.submit()
    office.wait_for_event(queue_id, "deferred")
    running = office.ask("queue", "show", queue_id)
    assert running["state"] == "deferred" and running["device"] == "copier"
    assert {event["event"] for event in running["history"]} >= {"accepted", "deferred"}
    exported = office.pi_relay.binary("queue", "export", queue_id).stdout
    assert exported.endswith(b"\r\n\r\n.one\r\n") and b"Received: " in exported
    for arguments, found in (
        (["--state", "deferred"], 1),
        (["--state", "held"], 0),
        (["--device", "copier"], 1),
        (["--recipient", "*@office.example"], 1),
        (["--recipient", "bob@*"], 0),
    ):
        assert len(office.ask("queue", "list", *arguments)) == found
    relay.terminate()
    assert relay.wait(30) == 0
    stopped = office.ask("queue", "show", queue_id)
    assert stopped.keys() == running.keys()
    assert stopped["recipients"] == running["recipients"]
    assert office.pi_relay.binary("queue", "export", queue_id).stdout == exported


def test_hold_release_retry_delete(office: Office) -> None:
    office.start_relay()
    first, second = office.submit(), office.submit("bob@office.example")
    for queue_id in (first, second):
        office.wait_for_event(queue_id, "deferred")
    assert office.pi_relay("queue", "hold", first, "000000000000").returncode == 5
    assert [message["queue_id"] for message in office.ask("queue", "list", "--state", "held")] == [first]
    office.start_smart_host()
    assert office.pi_relay("queue", "retry", "--all").returncode == 0
    office.wait_for_event(second, "relayed")
    assert [message["queue_id"] for message in office.ask("queue", "list")] == [first]
    assert office.pi_relay("queue", "release", "--device", "copier").returncode == 0
    office.wait_for_event(first, "relayed")
    events = [event["event"] for event in office.ask("trace", first)]
    assert events.index("held") < events.index("released") < events.index("relayed")
    third = office.submit()
    office.wait_for_event(third, "relayed")
    assert office.pi_relay("queue", "delete", third).returncode == 5


@pytest.mark.parametrize("bounce", [False, True])
def test_delete(office: Office, bounce: bool) -> None:
    office.start_relay()
    queue_id = office.submit()
    office.wait_for_event(queue_id, "deferred")
    assert office.pi_relay("queue", "delete", queue_id, *(["--bounce"] if bounce else [])).returncode == 0
    left = office.ask("queue", "list")
    assert queue_id not in {message["queue_id"] for message in left}
    assert bool(left) == bounce  # the report to the sender
    assert all(message["reverse_path"] == "" for message in left)


def test_send_test(office: Office) -> None:
    office.start_smart_host("--reply", "RCPT=250", "--reply", "RCPT=550 5.1.1 nobody here")
    office.start_relay()
    relayed = office.pi_relay("send-test", "ann@office.example")
    assert relayed.returncode == 0, relayed.stdout + relayed.stderr
    assert "queued as " in relayed.stdout and "relayed: isp said: 250" in relayed.stdout
    failed = office.pi_relay("send-test", "ann@office.example")
    assert failed.returncode == 1
    assert "nobody here" in failed.stdout
    waiting = office.pi_relay("send-test", "ann@office.example", "--via", "other", "--wait", "1")
    assert waiting.returncode == 1
    assert "still waits" in waiting.stdout
    assert office.pi_relay("send-test", "ann@office.example", "--via", "nobody").returncode == 5


def test_reload_takes_a_good_file_and_refuses_a_bad_one(office: Office) -> None:
    office.start_relay()
    office.configure('language = "ja"')
    assert office.pi_relay("reload").returncode == 0
    office.configure('language = "xx"')
    result = office.pi_relay("reload")
    assert result.returncode == 3
    assert "language" in result.stderr
    office.submit()  # it goes on


def test_reload_of_what_cannot_be_served_changes_nothing_and_says_so(office: Office) -> None:
    office.start_relay()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        office.configure(f'[[listeners]]\naddress = "127.0.0.1:{taken.getsockname()[1]}"\n')
        result = office.pi_relay("reload")
    assert result.returncode == 1
    assert "the port is taken" in result.stderr and "Error" not in result.stderr
    assert "last good one is" in office.pi_relay("status").stdout
    office.submit()  # it goes on
    assert office.pi_relay("reload").returncode == 0
    assert "last good one is" not in office.pi_relay("status").stdout


def test_serve_with_a_bad_file_is_3(office: Office) -> None:
    office.configure('hostnam = "x"')
    result = office.pi_relay("serve")
    assert result.returncode == 3
    assert "hostnam" in result.stderr


def test_serve_twice_is_1_and_disturbs_nobody(office: Office) -> None:
    office.start_relay()
    result = office.pi_relay("serve")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr and result.stderr
    assert office.pi_relay("status").returncode == 0
    office.submit()


# ── demo ─────────────────────────────────────────────────────────────────────────────────────────


def left_behind(folder: Path) -> list[str]:
    """Files in the folder for temporary ones, and processes that were told of it."""
    processes = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/environ")
        if int(path.parent.name) != os.getpid() and os.fsencode(folder) in _read(path)
    ]
    return [*map(str, folder.iterdir()), *processes]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_demo_shows_a_scan_and_leaves_nothing(pi_relay: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    result = pi_relay("demo", TMPDIR=str(tmp_path / "tmp"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Byte for byte the same" in result.stdout
    assert "accepted 5." in result.stdout and "sink took it" in result.stdout
    assert left_behind(tmp_path / "tmp") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(
    pi_relay: CommandLine, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "pi_relay", "demo"],
        env=pi_relay.environment(TMPDIR=str(tmp_path / "tmp")),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()  # the smart host runs, the relay is being started
    time.sleep(0.2)
    process.send_signal(number)
    assert process.wait(40) != 0
    assert left_behind(tmp_path / "tmp") == []
