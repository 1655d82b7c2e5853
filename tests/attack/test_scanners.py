"""What scanners find who know nothing of us: nmap's open-relay script, and testssl.sh."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.processes import free_port
from tests.support.relay import Relay

pytestmark = pytest.mark.slow

# The scanners come from loopback, which is no network of this relay's; one old device is let in beside them.
_CONFIGURATION = """\
hostname = "relay.office.example"
postmaster = "admin@office.example"

[[listeners]]
address = "127.0.0.1:{offered}"
networks = ["127.0.0.0/8"]
[[listeners]]
address = "127.0.0.1:{implicit}"
tls = "implicit"
networks = ["127.0.0.0/8"]
[[listeners]]
address = "127.0.0.1:{without}"
tls = "off"
auth = "off"
networks = ["127.0.0.0/8"]

[submission]
networks = ["192.168.7.0/24"]
sender_domains = ["office.example"]

[[devices]]
name = "old-copier"
address = "127.0.0.77"
legacy = true

[smart_hosts.office]
host = "127.0.0.1"
port = {smart_host}
tls = "off"
"""

# What testssl.sh minds, and we do not: CBC suites stay for devices of ten years ago, and OpenSSL has had the
# cure for LUCKY13 since 2013.
_ACCEPTED = {"cipherlist_AVERAGE", "cipherlist_OBSOLETED", "LUCKY13", "BREACH"}
_BAD = {"LOW", "MEDIUM", "HIGH", "CRITICAL"}
_OLD = ("SSLv2", "SSLv3", "TLS1", "TLS1_1")
_CURRENT = ("TLS1_2", "TLS1_3")


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """Of a relay that runs: "offered", "implicit" and "without" TLS."""
    ports = {name: free_port() for name in ("offered", "implicit", "without", "smart_host")}
    directory = tmp_path_factory.mktemp("scanned")
    with Relay(directory, port=ports["offered"], configuration=_CONFIGURATION.format(**ports)):
        yield ports


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


@pytest.mark.parametrize("listener", ["offered", "implicit", "without"])
def test_nmap_finds_no_open_relay(listener: str, ports: dict[str, int]) -> None:
    needs("nmap")
    arguments = f"-Pn -n -p {ports[listener]} --script +smtp-open-relay -oX - 127.0.0.1"
    found = subprocess.run(["nmap", *arguments.split()], check=True, capture_output=True, timeout=300).stdout
    said = {
        script.attrib["id"]: script.attrib["output"]
        for script in ElementTree.fromstring(found).iter("script")
    }
    assert said["smtp-open-relay"].startswith(("Server isn't an open relay", "Server doesn't seem to be"))


@pytest.mark.parametrize("listener", ["offered", "implicit"])
def test_testssl_finds_no_weakness(listener: str, ports: dict[str, int], tmp_path: Path) -> None:
    needs("testssl")
    report = tmp_path / "report.json"
    checks = ["--protocols", "--std", "--server-preference", "--vulnerable"]
    starttls = ["--starttls", "smtp"] if listener == "offered" else []
    quietly = ["--quiet", "--color", "0", "--warnings", "off", "--nodns", "none", "--openssl-timeout", "20"]
    subprocess.run(
        ["testssl", *quietly, *checks, "--jsonfile", report, *starttls, f"127.0.0.1:{ports[listener]}"],
        check=False,  # its exit code counts what it minds
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=500,
    )
    findings = {finding["id"]: finding for finding in json.loads(report.read_text())}
    assert {name: findings[name]["finding"] for name in _OLD} == dict.fromkeys(_OLD, "not offered")
    assert all(findings[name]["finding"].startswith("offered") for name in _CURRENT)
    weak = {name for name, finding in findings.items() if finding["severity"] in _BAD} - _ACCEPTED
    assert not weak, {name: findings[name]["finding"] for name in weak}
