"""The box as the office meets it: on a cable of its own, with a PC at the other end that looks at it."""

from __future__ import annotations

import json
import re
import smtplib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dns.message
import pytest

from pi_relay.submission.policy import LOCAL_BELIEVED_SECONDS
from tests.support.flashed_box import CABLE, FlashedBox, office

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

BOX, PC, ROUTER, FAR_AWAY = "192.168.77.5", "192.168.77.20", "192.168.77.1", "203.0.113.9"
ULA, PC_ULA = "fd00:77::5", "fd00:77::20"
LINK_LOCAL = f"fe80::5054:ff:fe12:3456%{CABLE}"  # of the MAC address that QEMU gives by itself
IDLE_SECONDS = 180
OPEN = {22, 25, 465, 587}
TOML = """\
hostname = "relay.office.example"
postmaster = "admin@office.example"

[smart_hosts.office]
host = "192.168.77.1"
port = 2526
tls = "off"
"""


@pytest.fixture(scope="module")
def box(image_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlashedBox]:
    image, folder = image_of("amd64"), tmp_path_factory.mktemp("lan")
    with (
        office(f"{PC}/24", f"{ROUTER}/24", f"{FAR_AWAY}/24", f"{PC_ULA}/64"),
        FlashedBox(image, folder, lan=BOX) as box,
    ):
        box.drop("pi-relay.toml", TOML)
        box.drop("authorized_keys", box.public_key)
        box.drop("hostname.txt", "mailbox")
        box.drop("network.txt", f"address = {BOX}/24\ngateway = {ROUTER}\n")
        box.start()
        box.run(f"sudo ip address add {ULA}/64 dev $(ls /sys/class/net | grep -v lo) nodad")
        time.sleep(LOCAL_BELIEVED_SECONDS)  # then the relay knows of it
        # Somebody has started something on it that listens to everybody.
        box.run("sudo systemd-run --quiet --unit=open python3 -m http.server --bind :: 8080")
        yield box


def connects(host: str, port: int, source: str) -> bool:
    try:
        socket.create_connection((host, port), 5, source_address=(source, 0)).close()
    except OSError:
        return False
    return True


def reachable(host: str, ports: set[int], source: str) -> set[int]:
    with ThreadPoolExecutor(256) as pool:
        answers = pool.map(lambda port: (port, connects(host, port, source)), sorted(ports))
        return {port for port, answer in answers if answer}


def ask(name: str, kind: str, *, source: str = PC, timeout_seconds: float = 15) -> list[str]:
    """What the box answers by mDNS (RFC 6762) over the family of ``source``: every record, as text."""
    family, group = (socket.AF_INET6, "ff02::fb") if ":" in source else (socket.AF_INET, "224.0.0.251")
    with socket.socket(family, socket.SOCK_DGRAM) as asker:
        asker.bind((source, 0))
        if family == socket.AF_INET6:
            asker.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(CABLE))
        else:
            asker.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(source))
        question = dns.message.make_query(name, kind, flags=0)
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            asker.sendto(question.to_wire(), (group, 5353))
            asker.settimeout(2)
            try:
                reply = dns.message.from_wire(asker.recv(9000), ignore_trailing=True)
            except TimeoutError:
                continue
            return [str(item) for record in (*reply.answer, *reply.additional) for item in record]
    return []


def submit(host: str, source: str) -> None:
    with smtplib.SMTP(host, 587, timeout=60, source_address=(source, 0)) as client:
        client.sendmail(
            "scanner@office.example", ["someone@customer.example"], "Subject: scan\r\n\r\nscan\r\n"
        )


@pytest.mark.parametrize(
    ("host", "source"), [(BOX, PC), (LINK_LOCAL, "::"), (ULA, PC_ULA)], ids=["IPv4", "link-local", "ULA"]
)
def test_the_office_may_send(box: FlashedBox, host: str, source: str) -> None:
    submit(host, source)


@pytest.mark.parametrize(("host", "source"), [(BOX, PC), (ULA, PC_ULA)])
def test_only_mail_and_ssh_are_open(box: FlashedBox, host: str, source: str) -> None:
    listening = {int(port) for port in re.findall(r":(\d+) +\S+ *$", box.run("ss -lntH"), re.MULTILINE)}
    assert listening >= OPEN | {53, 8080}
    probed = listening | set(range(1, 1025)) | {2525, 3306, 5353, 5355}
    assert reachable(host, probed, source) == OPEN


def test_from_far_away_nothing_is(box: FlashedBox) -> None:
    subprocess.run(
        ["ping", "-c", "3", "-W", "10", "-I", FAR_AWAY, BOX], check=True, capture_output=True, timeout=60
    )
    assert reachable(BOX, OPEN, FAR_AWAY) == set()
    assert ask("mailbox.local", "A", source=FAR_AWAY, timeout_seconds=6) == []
    assert reachable(BOX, OPEN, PC) == OPEN  # meanwhile


def test_it_is_found_by_name(box: FlashedBox) -> None:
    assert BOX in ask("mailbox.local", "A")
    assert any(each.startswith("fe80::") for each in ask("mailbox.local", "AAAA", source=PC_ULA))
    assert "mailbox._submission._tcp.local." in ask("_submission._tcp.local", "PTR")
    assert "0 0 587 mailbox.local." in ask("mailbox._submission._tcp.local", "SRV")


def test_ssh_greets_with_the_state_and_the_next_step(box: FlashedBox) -> None:
    said = subprocess.run(
        box.ssh("-tt"), input=b"exit\n", capture_output=True, timeout=120, check=True
    ).stdout.decode()
    status = box.run("pi-relay status", check=False).splitlines()[0]
    assert status in said
    assert "Next: " in said
    assert said.index(status) < said.index("Next: ") < said.index("admin@mailbox")


def test_nobody_gets_in_without_the_key(box: FlashedBox, tmp_path: Path) -> None:
    def refusal(*options: str, user: str = "admin") -> str:
        command = [*box.ssh(*options, user=user), "true"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert result.returncode == 255
        return result.stderr

    passwords = ("-oPreferredAuthentications=password,keyboard-interactive", "-oPubkeyAuthentication=no")
    assert "Permission denied (publickey)" in refusal(*passwords)
    assert "Permission denied (publickey)" in refusal(user="root")
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    command = [str(other) if part == str(box.key) else part for part in box.ssh()]
    result = subprocess.run([*command, "true"], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 255
    assert "Permission denied (publickey)" in result.stderr


def test_what_it_costs_when_nothing_happens(box: FlashedBox) -> None:
    def written_kib() -> int:
        return sum(map(int, box.run("cat /sys/fs/ext4/*/session_write_kbytes").split()))

    waiting = " ".join(each["queue_id"] for each in json.loads(box.run("sudo pi-relay queue list --json")))
    box.run(f"sudo systemctl stop open; sudo pi-relay queue delete --yes {waiting}")
    time.sleep(60)
    before = written_kib()
    time.sleep(IDLE_SECONDS)
    written = written_kib() - before
    assert written * 3600 / IDLE_SECONDS < 1024, f"{written} KiB in {IDLE_SECONDS} s; 1 MB an hour is the aim"
    total, available = (
        int(value) // 1024
        for value in re.findall(
            r"^Mem(?:Total|Available): +(\d+)", box.run("cat /proc/meminfo"), re.MULTILINE
        )
    )
    assert total - available < 100, "MB of memory are used"
