"""The image in QEMU, as an office meets it: files dropped from a PC, power cuts, updates, lost data."""

from __future__ import annotations

import re
import smtplib
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.flashed_box import FlashedBox
from tests.support.processes import free_port, wait_until
from tests.support.sinks import SmtpSink

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

REPOSITORY = Path(__file__).parents[2]
# QEMU's network lets us arrive from the guest's gateway, which is no local client unless a device says so.
TOML = """\
hostname = "relay.office.example"
postmaster = "admin@office.example"

[[devices]]
name = "scanner"
address = "10.0.2.2"

[smart_hosts.office]
host = "10.0.2.2"
port = {port}
tls = "off"
"""


def submit(port: int, subject: str) -> None:
    """Returns once the box has acknowledged it."""
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
        text = f"From: scanner@office.example\r\nSubject: {subject}\r\n\r\nscan\r\n"
        client.sendmail("scanner@office.example", ["someone@customer.example"], text)


def subjects(dump: Path) -> list[str]:
    return (
        re.findall(r"^Subject: (.*)$", dump.read_text(errors="replace"), re.MULTILINE)
        if dump.exists()
        else []
    )


def status_of(box: FlashedBox) -> str:
    return (box.read("STATUS.txt") or b"").decode("utf-8-sig")


def tell(box: FlashedBox) -> None:
    box.run("sudo systemctl start pi-relay-box-status")


def test_from_first_start_to_factory_reset(image_of: Callable[[str], Path], tmp_path: Path) -> None:
    dump = tmp_path / "mail"
    with FlashedBox(image_of("amd64"), tmp_path) as box, SmtpSink(tmp_path, dump=dump) as sink:
        toml = TOML.format(port=sink.port)

        # As Windows writes them: BOM, CRLF, other case, .txt behind the name, UTF-16.
        box.drop("Pi-Relay.TOML.txt", b"\xef\xbb\xbf" + toml.replace("\n", "\r\n").encode())
        box.drop("Authorized_Keys.txt", box.public_key.encode("utf-16"))
        box.drop("hostname.txt", "Mailbox\r\n")
        box.drop("isp.password.txt", "secret\r\n")
        box.start()
        submit(box.mail_port, "first")
        wait_until(lambda: subjects(dump) == ["first"], 60, "the message at the smart host")
        assert box.run("hostname").strip() == "mailbox"
        assert "ro," in box.run("findmnt -no OPTIONS /")
        assert "Read-only file system" in box.run("sudo touch /x", check=False)
        assert int(box.run("df --output=size -BM /var | tail -1").strip().rstrip("M")) > 600  # 384 as flashed
        assert box.run("sudo cat /etc/pi-relay/isp.password") == "secret\n"
        assert box.run("systemctl --failed --plain --no-legend").strip() == ""
        machine_id = box.run("cat /etc/machine-id")
        host_key = box.run("cat /var/lib/pi-relay-box/ssh/ssh_host_ed25519_key.pub")
        tell(box)
        box.power_off()
        left = {name.lower() for name in box.names()}
        assert not left & {"pi-relay.toml.txt", "authorized_keys.txt", "hostname.txt", "isp.password.txt"}
        said = status_of(box)
        assert "Pi-Relay.TOML.txt: taken" in said
        assert "10.0.2.15" in said
        assert "SHA256:" in said

        # A bad file leaves the last good one in force; the address is fixed from now on.
        box.drop("pi-relay.toml", toml + "\n[submission]\nnetwork = 3\n")
        box.drop(
            "network.txt", "address: 10.0.2.15/24\ngateway: 10.0.2.2\ndns: 10.0.2.3\ntime zone: Asia/Tokyo\n"
        )
        box.start()
        submit(box.mail_port, "second")
        wait_until(lambda: subjects(dump) == ["first", "second"], 60, "the second message")
        assert box.run("cat /etc/machine-id") == machine_id
        assert box.run("cat /var/lib/pi-relay-box/ssh/ssh_host_ed25519_key.pub") == host_key
        assert box.run("date +%Z").strip() == "JST"
        assert "dynamic" not in box.run("ip -4 address show scope global")
        assert box.run("systemctl --failed --plain --no-legend").strip() == ""

        # An update of our own package: the root is written to for that long only.
        deb = next((REPOSITORY / "dist").glob("pi-relay_*_all.deb"))
        box.run("cat >/tmp/pi-relay.deb", stdin=deb.read_bytes())
        box.run("sudo apt-get install -y --reinstall /tmp/pi-relay.deb", timeout_seconds=600)
        assert "ro," in box.run("findmnt -no OPTIONS /")
        assert "ro," in box.run("findmnt -no OPTIONS /boot/firmware")
        assert box.run("sudo ls /var/backups/pi-relay").strip() == "before-update.tar.gz"
        submit(box.mail_port, "third")
        wait_until(lambda: "third" in subjects(dump), 60, "the message after the update")
        tell(box)
        box.power_off()
        said = status_of(box)
        assert "pi-relay.toml: NOT taken" in said
        assert re.search(r"line 1[45]: .*network", said)
        assert "hint" in said
        assert box.read("pi-relay.toml") is not None  # for its owner to mend

        box.drop("factory-reset.txt", b"")
        box.drop("pi-relay.toml", toml.replace("relay.office.example", "new.office.example"))
        box.drop("authorized_keys", box.public_key)
        box.start()
        submit(box.mail_port, "fourth")
        wait_until(lambda: "fourth" in subjects(dump), 60, "the message after the reset")
        assert box.run("hostname").strip() == "pi-relay"
        assert box.run("cat /var/lib/pi-relay-box/ssh/ssh_host_ed25519_key.pub") != host_key
        assert box.run("sudo ls /etc/pi-relay").split() == ["pi-relay.toml"]
        assert box.read("factory-reset.txt") is None


def test_a_power_cut_loses_nothing(image_of: Callable[[str], Path], tmp_path: Path) -> None:
    dump, port = tmp_path / "mail", free_port()
    acknowledged: list[str] = []

    def load(number: int, mail_port: int) -> None:
        with suppress(OSError, smtplib.SMTPException):
            for count in range(10_000):
                submit(mail_port, f"{number}.{count}")
                acknowledged.append(f"{number}.{count}")

    with FlashedBox(image_of("amd64"), tmp_path) as box:
        box.drop("pi-relay.toml", TOML.format(port=port))
        box.drop("authorized_keys", box.public_key)
        box.start()
        senders = [threading.Thread(target=load, args=(number, box.mail_port)) for number in range(4)]
        for sender in senders:
            sender.start()
        wait_until(lambda: len(acknowledged) >= 30, 300, "some messages to be acknowledged")
        box.cut_power()
        for sender in senders:
            sender.join(120)
        with SmtpSink(tmp_path, port=port, dump=dump):
            box.start()
            box.run("sudo pi-relay queue retry --all", check=False)
            wait_until(
                lambda: set(acknowledged) <= set(subjects(dump)),
                300,
                f"all of {len(acknowledged)} acknowledged messages",
            )


def test_a_card_that_lost_its_data_says_so_and_starts_again(
    image_of: Callable[[str], Path], tmp_path: Path
) -> None:
    with FlashedBox(image_of("amd64"), tmp_path) as box:
        table = subprocess.run(
            ["sfdisk", "--json", box.image], capture_output=True, text=True, check=True
        ).stdout
        start = int(re.findall(r'"start": (\d+)', table)[2])
        with box.image.open("r+b") as card:
            card.seek(start * 512)
            card.write(b"\xff" * 64 * 1024 * 1024)
        started_at = time.monotonic()
        box.start(wait=False)
        box.wait_for_end(900)  # it restarts, which ends QEMU
        assert time.monotonic() - started_at > 60
        trouble = (box.read("TROUBLE.txt") or b"").decode()
        assert "could not start" in trouble
        assert "var.mount" in trouble or "systemd-fsck@" in trouble


@pytest.mark.parametrize("board", ["virt", "raspi3b"])
def test_arm64_starts_and_delivers(image_of: Callable[[str], Path], tmp_path: Path, board: str) -> None:
    dump = tmp_path / "mail"
    image = image_of("arm64")
    with FlashedBox(image, tmp_path, board=board) as box, SmtpSink(tmp_path, dump=dump) as sink:
        box.drop("pi-relay.toml", TOML.format(port=sink.port))
        box.drop("authorized_keys", box.public_key)
        print(f"{board}: greets after {box.start(timeout_seconds=1800):.0f} s")
        submit(box.mail_port, "from a Pi's image")
        wait_until(lambda: subjects(dump) == ["from a Pi's image"], 120, "the message at the smart host")
        assert box.run("uname -m").strip() == "aarch64"
        assert "ro," in box.run("findmnt -no OPTIONS /")
        assert box.run("systemctl --failed --plain --no-legend").strip() == ""
        assert int(box.run("stat -c %Y /usr/lib/clock-epoch")) <= int(box.run("date +%s"))
        assert not {"vchiq", "cfg80211", "hci_uart"} & set(box.run("lsmod").split())
        print(box.run("tr -d '\\0' </proc/device-tree/model; echo; free -m; systemd-analyze"))
