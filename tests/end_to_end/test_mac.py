"""Devices on DHCP, known by their mac: a real relay, a real link, and the kernel's own neighbour table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pi_relay import maillog, passwords
from tests.support.command_line import CommandLine
from tests.support.namespaces import Namespace, possible
from tests.support.processes import wait_until

pytestmark = pytest.mark.skipif(not possible(), reason="needs root and namespaces")

RELAY, CAMERA, RELAY_6, CAMERA_6 = "192.168.7.2", "192.168.7.40", "fd00:7::2", "fd00:7::40"
MAC, OTHER_MAC = "02:1b:a9:12:34:56", "02:1b:a9:12:34:57"
PASSWORD = "correct horse"  # noqa: S105
CONFIGURATION = """\
hostname = "relay.office.example"
postmaster = "admin@office.example"
[[listeners]]
address = ":25"
[[devices]]
name = "camera"
mac = "{mac}"
recipients = ["*@office.example"]
[[devices]]
name = "fax"
mac = "{other_mac}"
username = "fax"
password_hash = "{password_hash}"
legacy = true
[smart_hosts.isp]
host = "127.0.0.1"
tls = "off"
[queue]
free_space_min = "16 MB"
"""


class Office:
    def __init__(self, relay: Namespace, device: Namespace, directory: Path) -> None:
        self.relay, self.device = relay, device
        self.log = directory / "log"
        self._command_line = CommandLine(directory)
        self._command_line.file.write_text(
            CONFIGURATION.format(
                mac=MAC, other_mac=OTHER_MAC, password_hash=passwords.hash_password(PASSWORD)
            )
        )

    def serve(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.relay.command(sys.executable, "-m", "pi_relay", "serve"),
                env=self._command_line.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(lambda: self.relay.smtp("127.0.0.1", "127.0.0.1", 25)[:3] == "220", 60, "a greeting")
        return process

    def becomes(self, mac: str) -> None:
        """Another machine comes to the end of the cable, at the same addresses."""
        self.device.ip("link set cable down")
        self.device.ip(f"link set cable address {mac}")
        self.device.ip("link set cable up")
        self.device.ip(f"address replace {CAMERA_6}/64 dev cable nodad")
        self.relay.ip("neighbour flush dev cable")

    def say(self, *lines: str, source: str = CAMERA, host: str = RELAY) -> str:
        return self.device.smtp(source, host, 25, *lines)

    def signs_in(self, username: str) -> int:
        """The code that AUTH in clear is answered with."""
        command = self.device.command(sys.executable, "-c", _SIGN_IN, RELAY, username, PASSWORD)
        return int(subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout)

    def wait_for(self, event: str, **keys: str) -> None:
        """Until the log has such a line."""

        def is_there() -> bool:
            lines = self.log.read_text(encoding="utf-8").splitlines()
            found = [maillog.parse_line(line) or {} for line in lines if line.startswith(f"{event} ")]
            return any(keys.items() <= each.items() for each in found)

        wait_until(is_there, 10, f"{event} {keys} in the log")

    def devices(self) -> dict[str, str]:
        """What `pi-relay devices` knows: mac by name."""
        command = self.relay.command(sys.executable, "-m", "pi_relay", "devices", "--json")
        done = subprocess.run(command, env=self._command_line.environment(), capture_output=True, timeout=60)
        return {device["name"]: device["mac"] for device in json.loads(done.stdout)}


_SIGN_IN = """
import base64, smtplib, sys
host, username, password = sys.argv[1:]
client = smtplib.SMTP(host, 25, timeout=10)
client.ehlo()
response = base64.b64encode(f"\\0{username}\\0{password}".encode()).decode()
print(client.docmd("AUTH", f"PLAIN {response}")[0])
"""


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with Namespace() as relay, Namespace() as device:
        relay.cable("cable", device)
        for end, address, address_6 in ((relay, RELAY, RELAY_6), (device, CAMERA, CAMERA_6)):
            end.ip(f"address add {address}/24 dev cable")
            end.ip(f"address add {address_6}/64 dev cable nodad")
        found = Office(relay, device, tmp_path)
        found.becomes(MAC)
        process = found.serve()
        yield found
        process.terminate()
        process.wait(30)


TO_A_STRANGER = ("HELO camera", "MAIL FROM:<camera@office.example>", "RCPT TO:<spam@elsewhere.example>")


def test_a_device_is_known_by_its_mac_over_ipv4_and_ipv6(office: Office) -> None:
    for source, host in ((CAMERA, RELAY), (CAMERA_6, RELAY_6)):
        assert office.say(*TO_A_STRANGER, source=source, host=host).startswith("550 5.7.1 ")
        office.wait_for("refused", client=source, device="camera")
    assert office.devices()["camera"] == MAC
    # The same address is another machine now, and one that has to sign in: it may in clear.
    office.becomes(OTHER_MAC)
    wait_until(lambda: office.say(*TO_A_STRANGER[:2])[:3] == "530", 15, "the other machine to be known")
    office.wait_for("refused", client=CAMERA, device="fax")
    assert office.signs_in("fax") == 235
    office.wait_for("legacy", device="fax", what="AUTH in clear")
    office.becomes("02:00:00:00:00:01")
    wait_until(lambda: office.say(*TO_A_STRANGER)[:3] == "250", 15, "a stranger of the office")
    assert office.signs_in("fax") == 538, "in clear only from its own mac"
    assert office.devices()[""] == "02:00:00:00:00:01"
