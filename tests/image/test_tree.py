"""The box's root file system under a real systemd, without kernel and disk: the quick look at it.

It needs the tree in the cache of image/build, which is too slow to be made here: an image that was built for
amd64 leaves it there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import systemd_machine
from tests.support.processes import wait_until
from tests.support.systemd_machine import Machine

pytestmark = [pytest.mark.timeout(180)]

CACHE = Path(
    os.environ.get("PI_RELAY_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "/var/cache"), "pi-relay-image")
)
# In place of the card's partitions.
FSTAB = """\
/var /var none bind 0 0
/var/lib/pi-relay-box/config /etc/pi-relay none bind,x-systemd.requires-mounts-for=/var 0 0
/card /boot/firmware none bind 0 0
"""
TOML = """\
hostname = "relay.office.example"
postmaster = "admin@office.example"

[smart_hosts.office]
host = "127.0.0.1"
port = 2526
tls = "off"
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if reason := systemd_machine.why_not():
        pytest.skip(reason)
    made = sorted(CACHE.glob("root-amd64-*.tar"), key=lambda path: path.stat().st_mtime)
    if not made:
        pytest.skip("no root file system in the cache: image/build --arch amd64 makes it")
    folder = tmp_path_factory.mktemp("box")
    (folder / "tree").mkdir()
    unpack = ["tar", "-C", folder / "tree", "--numeric-owner", "--exclude=./boot/*", "-xf", made[-1]]
    subprocess.run(unpack, check=True)
    machine = Machine(folder / "tree", folder / "machine")
    machine.put("/etc/fstab", FSTAB)
    machine.put("/card/PI-RELAY.toml.txt", "\ufeff" + TOML.replace("\n", "\r\n"))
    machine.put("/card/hostname.txt", "mailbox\r\n")
    try:
        with machine:
            yield machine
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_it_comes_up_whole(machine: Machine) -> None:
    assert machine.show("pi-relay", "ActiveState") == "active"
    assert machine.show("pi-relay-box-take-over", "Result") == "success"
    assert machine.run("hostname").strip() == "mailbox"
    assert "PI-RELAY.toml.txt" not in machine.run("ls", "/boot/firmware")


def test_it_takes_mail_and_hands_it_on(machine: Machine) -> None:
    sink = machine.start("pi-relay", "sink", "--address", "127.0.0.1:2526", "--maildir", "/run/sink")
    try:
        said = machine.run(
            *("swaks", "--server", "127.0.0.1:587", "--from", "scanner@office.example"),
            *("--to", "someone@customer.example", "--header", "Subject: scan"),
        )
        assert "250" in said
        wait_until(lambda: machine.run("ls", "/run/sink/new", check=False).strip(), 60, "the message")
    finally:
        sink.terminate()
        sink.wait(10)


def test_status_txt(machine: Machine) -> None:
    machine.run("systemctl", "start", "pi-relay-box-status")
    said = machine.run("cat", "/boot/firmware/STATUS.txt")
    assert "pi-relay box mailbox" in said
    assert "PI-RELAY.toml.txt: taken" in said


def test_nobody_has_a_password(machine: Machine) -> None:
    hashes = [line.split(":")[1] for line in machine.run("cat", "/etc/shadow").splitlines()]
    assert {each[:1] for each in hashes} <= {"!", "*"}
    effective = machine.run("sshd", "-T", "-C", "user=admin")
    for setting in ("passwordauthentication no", "permitrootlogin no", "kbdinteractiveauthentication no"):
        assert setting in effective


def test_only_security_updates_come_by_themselves(machine: Machine) -> None:
    settings = machine.run("apt-config", "dump", "Unattended-Upgrade::Origins-Pattern")
    origins = [
        line.split('"')[1] for line in settings.splitlines() if line.count('"') == 2 and '""' not in line
    ]
    assert origins
    assert all("label=Debian-Security" in each for each in origins)


def test_an_update_whose_packages_cannot_be_kept_is_not_begun(machine: Machine) -> None:
    scripts = "/usr/lib/pi-relay-box"
    machine.run("touch", f"{scripts}/update-under-way")
    said = machine.run("sh", "-c", f"echo /no/such.deb | {scripts}/update-keeps || echo no", check=False)
    assert said.endswith("no\n")
    assert "update-under-way" not in machine.run("ls", scripts)
    assert machine.run("ls", "/var/cache/pi-relay-box") == ""
