"""Our package in a real Debian with a real systemd: installed, used, upgraded, started again, purged."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import wait_until
from tests.support.systemd_machine import Machine, tree, why_not

pytestmark = pytest.mark.timeout(600)

SOURCE = Path(__file__).parents[2]
FILE = """\
hostname = "relay.office.example"
postmaster = "admin@office.example"
[smart_hosts.sink]
host = "127.0.0.1"
port = 2526
tls = "off"
sender = "relay@office.example"
[queue]
free_space_min = "16 MB"
"""
MESSAGE = "From: cron@office.example\nTo: ann@elsewhere.example\nSubject: {subject}\n\nhello\n"


@pytest.fixture(scope="module", params=["trixie", "bookworm"])
def package(request: pytest.FixtureRequest) -> Path:
    """The one for Debian 13, and the one for 12."""
    if reason := why_not():
        pytest.skip(reason)
    command = [SOURCE / "scripts/package", "--no-lint", request.param]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout
    return SOURCE / said.split()[-1]


@pytest.fixture
def machine(package: Path, tmp_path: Path) -> Iterator[Machine]:
    """With the package installed, and a smart host in its file that is not there."""
    suite = "bookworm" if "deb12" in package.name else "trixie"
    with Machine(tree(suite), tmp_path) as machine:
        shutil.copy(package, machine.root / "root/pi-relay.deb")
        machine.run("dpkg", "--install", "/root/pi-relay.deb")
        machine.put("/etc/pi-relay/pi-relay.toml", FILE)
        machine.run("systemctl", "restart", "pi-relay")
        yield machine


def ask(machine: Machine, *arguments: str) -> Any:
    return json.loads(machine.run("pi-relay", *arguments, "--json"))


def open_smart_host(machine: Machine) -> None:
    """Until the machine ends."""
    command = ("pi-relay", "sink", "--address", "127.0.0.1:2526", "--maildir", "/root/Maildir")
    machine.run("systemd-run", "--quiet", *command)
    wait_until(lambda: "220" in machine.run("python3", "-c", _GREETING, check=False), 30, "the smart host")


_GREETING = "import smtplib; c = smtplib.SMTP(); print(c.connect('127.0.0.1', 2526))"


def submit(machine: Machine, subject: str) -> None:
    """As cron would."""
    machine.run("/usr/sbin/sendmail", "-t", "-oi", stdin=MESSAGE.format(subject=subject))


def arrived(machine: Machine) -> list[str]:
    """Subjects, in the order of the alphabet."""
    texts = [path.read_text() for path in (machine.root / "root/Maildir/new").glob("*")]
    return sorted(line[9:] for text in texts for line in text.splitlines() if line.startswith("Subject: "))


def waiting(machine: Machine) -> int:
    return len(ask(machine, "queue", "list"))


def test_it_runs_after_its_installation(machine: Machine) -> None:
    assert machine.show("pi-relay", "ActiveState") == "active"
    assert machine.show("pi-relay", "User") == "pi-relay"
    assert machine.run("systemctl", "is-enabled", "pi-relay").strip() == "enabled"
    for port in (25, 587):
        assert "STARTTLS" in machine.run("python3", "-c", _EHLO, str(port))
    open_smart_host(machine)
    submit(machine, "one")
    wait_until(lambda: arrived(machine) == ["one"], 30, "the message to arrive")
    assert "relayed: sink" in machine.run("pi-relay", "send-test", "ann@elsewhere.example")
    assert machine.run("systemctl", "--failed", "--plain", "--no-legend").strip() == ""


_EHLO = "import smtplib, sys; c = smtplib.SMTP('127.0.0.1', int(sys.argv[1])); print(c.ehlo()[1].decode())"


def test_the_queue_outlives_an_upgrade_and_a_power_cut(machine: Machine) -> None:
    submit(machine, "before the upgrade")
    assert waiting(machine) == 1
    before = machine.show("pi-relay", "MainPID")
    machine.run("dpkg", "--install", "/root/pi-relay.deb")
    assert machine.show("pi-relay", "ActiveState") == "active"
    assert machine.show("pi-relay", "MainPID") != before
    assert "port = 2526" in (machine.root / "etc/pi-relay/pi-relay.toml").read_text()
    submit(machine, "before the power cut")
    assert waiting(machine) == 2
    machine.cut_power()
    machine.boot()
    assert waiting(machine) == 2
    open_smart_host(machine)
    machine.run("pi-relay", "queue", "retry", "--all")
    wait_until(lambda: len(arrived(machine)) == 2, 60, "both to arrive")
    assert arrived(machine) == ["before the power cut", "before the upgrade"]


def test_purge_keeps_mail_unless_it_is_told_otherwise(machine: Machine) -> None:
    submit(machine, "kept")
    said = machine.run("dpkg", "--purge", "pi-relay")
    assert "kept in /var/lib/pi-relay/queue" in said
    state = machine.root / "var/lib/pi-relay"
    assert {path.name for path in state.iterdir()} == {"queue"}
    assert not (machine.root / "etc/pi-relay/pi-relay.toml").exists()
    assert not (machine.root / "usr/sbin/sendmail").is_symlink()
    machine.run("dpkg", "--install", "/root/pi-relay.deb")
    assert waiting(machine) == 1
    machine.run("env", "PI_RELAY_PURGE_MAIL=yes", "dpkg", "--purge", "pi-relay")
    assert not state.exists()


def test_purge_leaves_nothing_where_nothing_waits(machine: Machine) -> None:
    machine.run("dpkg", "--purge", "pi-relay")
    assert not (machine.root / "var/lib/pi-relay").exists()


def test_the_package_is_the_same_each_time_and_lintian_finds_nothing(package: Path) -> None:
    first = package.read_bytes()
    suite = "bookworm" if "deb12" in package.name else "trixie"
    subprocess.run([SOURCE / "scripts/package", suite], check=True, capture_output=True, timeout=600)
    assert package.read_bytes() == first
