"""A real relay on a machine whose addresses come and go: "local" follows them, and the world stays out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import CommandLine
from tests.support.namespaces import Namespace, possible
from tests.support.processes import wait_until

pytestmark = pytest.mark.skipif(not possible(), reason="needs root and namespaces")
MAIL = ("HELO x", "MAIL FROM:<scans@office.example>")


class Box:
    """The relay's machine, with a relay on every address, and the others at its cables."""

    def __init__(self, machine: Namespace, others: Namespace, pi_relay: CommandLine) -> None:
        self.machine, self.others, self._pi_relay = machine, others, pi_relay
        self._process: subprocess.Popen[bytes] | None = None

    def configure(self, more: str = "") -> None:
        self._pi_relay.file.write_text(
            'hostname = "relay.office.example"\npostmaster = "admin@office.example"\n'
            f'[[listeners]]\naddress = ":25"\n{more}'
            '[smart_hosts.isp]\nhost = "127.0.0.1"\ntls = "off"\nsender = "scans@office.example"\n'
            '[queue]\nfree_space_min = "16 MB"\n'
        )

    def serve(self, log: Path) -> None:
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                self.machine.command(sys.executable, "-m", "pi_relay", "serve"),
                env=self._pi_relay.environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        wait_until(lambda: self.machine.smtp("127.0.0.1", "127.0.0.1", 25)[:3] == "220", 60, "a greeting")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)

    def ask(self, *arguments: str) -> Any:
        command = self.machine.command(sys.executable, "-m", "pi_relay", *arguments, "--json")
        done = subprocess.run(command, env=self._pi_relay.environment(), capture_output=True, timeout=60)
        return json.loads(done.stdout)

    def answer(self, source: str, host: str) -> str:
        """To a message from there."""
        return self.others.smtp(source, host, 25, *MAIL)[:3]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with Namespace() as machine, Namespace() as others:
        found = Box(machine, others, CommandLine(tmp_path))
        for cable in ("office", "wan", "shared"):
            machine.cable(cable, others)
        yield found
        found.stop()


def test_what_is_local_follows_the_addresses(box: Box, tmp_path: Path) -> None:
    box.configure()
    box.serve(tmp_path / "log")
    assert box.ask("status")["health"] == "ok"

    for words in (
        "address add 192.168.7.2/24 dev office",  # DHCP comes late
        "address add 8.8.4.2/24 dev wan",  # and a public address with it
        "address add 100.64.0.2/10 dev shared",
        "route add default via 192.168.7.1",
        "link add docker0 type bridge", "link set docker0 up", "address add 172.17.0.1/16 dev docker0",
    ):  # fmt: skip
        box.machine.ip(words)
    for words in (
        "address add 192.168.7.9/24 dev office", "address add 192.168.7.1/24 dev office",
        "address add 8.8.4.9/24 dev wan", "address add 100.64.0.9/10 dev shared",
    ):  # fmt: skip
        box.others.ip(words)
    wait_until(lambda: box.answer("192.168.7.9", "192.168.7.2") == "250", 20, "the office to be local")
    assert box.answer("192.168.7.1", "192.168.7.2") == "554"  # the router: what it forwards comes so
    assert box.answer("8.8.4.9", "8.8.4.2") == "554"
    assert box.answer("100.64.0.9", "100.64.0.2") == "554"
    assert box.machine.smtp("172.17.0.1", "172.17.0.1", 25, *MAIL)[:3] == "554"

    status = box.ask("status")
    assert status["health"] == "degraded"
    assert status["reasons"] == ["the world can reach the listener :25 at 8.8.4.2; it turns strangers away"]
    (warning,) = [one for one in box.ask("check") if one["key"].startswith("listeners")]
    assert "8.8.4.2" in warning["message"] and warning["severity"] == "warning" and warning["line"] == 4
    devices = box.ask("devices")
    mends = {one["address"]: one["mend"] for one in devices}
    assert "forward" in mends["192.168.7.1"] and "Internet" in mends["8.8.4.9"]
    macs = {one["address"]: one["mac"] for one in devices}
    assert macs["192.168.7.9"] == box.others.mac("office") and macs["172.17.0.1"] is None
    assert all("networks" not in mends[address] for address in ("192.168.7.1", "8.8.4.9"))

    # The office moves to another network: the old one is no longer local.
    for words in ("address del 192.168.7.2/24 dev office", "address add 192.168.8.2/24 dev office",
                  "route add 192.168.7.0/24 dev office"):  # fmt: skip
        box.machine.ip(words)
    box.others.ip("address add 192.168.8.9/24 dev office")
    wait_until(lambda: box.answer("192.168.8.9", "192.168.8.2") == "250", 20, "the new office to be local")
    assert box.answer("192.168.7.9", "192.168.8.2") == "554"


def test_a_listener_that_lets_the_world_in_is_said(box: Box, tmp_path: Path) -> None:
    box.machine.ip("address add 8.8.4.2/24 dev wan")
    box.others.ip("address add 8.8.4.9/24 dev wan")
    box.configure('networks = ["local", "0.0.0.0/0"]\n')
    box.serve(tmp_path / "log")
    assert box.answer("8.8.4.9", "8.8.4.2") == "530"  # it may sign in, and nothing else
    status = box.ask("status")
    assert status["reasons"] == ["the world can reach the listener :25 at 8.8.4.2, and it lets in 0.0.0.0/0"]
