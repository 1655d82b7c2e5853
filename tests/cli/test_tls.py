"""`pi-relay tls`: what it says is what a client of the running relay sees; and without the relay."""

from __future__ import annotations

import contextlib
import hashlib
import json
import smtplib
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import CommandLine
from tests.support.processes import free_port, greeting, wait_until

PORT = free_port()
KEYS = {
    "source", "path", "subject", "names", "addresses", "issuer", "valid_from", "valid_until", "days_left",
    "expired", "sha256", "ca_subject", "ca_valid_until", "ca_sha256", "clock_wrong", "problem",
}  # fmt: skip


def configure(pi_relay: CommandLine, more: str = "") -> None:
    pi_relay.file.write_text(
        'hostname = "relay.office.example"\npostmaster = "admin@office.example"\n'
        f'[[listeners]]\naddress = "127.0.0.1:{PORT}"\n'
        f'[smart_hosts.isp]\nhost = "127.0.0.1"\ntls = "off"\nport = 9\n'
        f'[queue]\nfree_space_min = "16 MB"\n{more}'
    )


@pytest.fixture
def serve(pi_relay: CommandLine, tmp_path: Path) -> Iterator[Callable[[], None]]:
    processes = []

    def start() -> None:
        with (tmp_path / "stderr.log").open("ab") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "pi_relay", "serve"],
                    env=pi_relay.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )
        wait_until(lambda: greeting(PORT).startswith(b"220"), 60, "the relay to greet")

    configure(pi_relay)
    yield start
    for process in processes:
        process.terminate()
        process.wait(30)


def shown(pi_relay: CommandLine, action: str = "show") -> dict[str, Any]:
    result = pi_relay("tls", action, "--json")
    assert result.returncode == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    assert set(document) == KEYS
    return document


def seen_by_a_client(ca_file: Path | None = None) -> str:
    """SHA-256 of the leaf that STARTTLS brings; with ``ca_file``, verified by it."""
    context = ssl.create_default_context(cafile=ca_file)
    if ca_file is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with smtplib.SMTP("127.0.0.1", PORT, timeout=20) as client:
        client._host = "relay.local"  # type: ignore[attr-defined]
        client.starttls(context=context)
        assert isinstance(client.sock, ssl.SSLSocket)
        return hashlib.sha256(client.sock.getpeercert(binary_form=True) or b"").hexdigest()


def test_what_is_shown_is_what_is_served(
    pi_relay: CommandLine, serve: Callable[[], None], tmp_path: Path
) -> None:
    serve()
    first = shown(pi_relay)
    assert first["sha256"] == seen_by_a_client()
    assert first["names"] == ["relay.office.example", "relay", "relay.local"]
    assert (first["source"], first["expired"], first["problem"]) == ("local_ca", False, None)
    assert 820 <= first["days_left"] <= 825
    assert pi_relay("tls", "export-ca", str(tmp_path / "ca.crt")).returncode == 0
    assert seen_by_a_client(tmp_path / "ca.crt") == first["sha256"]

    second = shown(pi_relay, "renew")
    assert second["sha256"] == seen_by_a_client(tmp_path / "ca.crt") != first["sha256"]
    assert second["ca_sha256"] == first["ca_sha256"]
    text = pi_relay("tls", "show").stdout
    assert second["sha256"][:2].upper() + ":" in text and "relay.local" in text
    assert pi_relay("status").returncode == 0


def test_the_admins_own(pi_relay: CommandLine, serve: Callable[[], None], tmp_path: Path) -> None:
    self_signed(tmp_path)
    configure(pi_relay, '[tls]\ncertificate = "own.pem"\nkey = "own.key"\n')
    serve()
    first = shown(pi_relay)
    assert (first["source"], first["ca_sha256"]) == ("admin", None)
    assert first["names"] == ["own.example"] and first["addresses"] == ["192.0.2.1"]
    self_signed(tmp_path)
    renewed = pi_relay("tls", "renew")
    assert renewed.returncode == 1
    assert "not pi-relay's to renew" in renewed.stderr and "hint: " in renewed.stderr
    second = shown(pi_relay)
    assert second["sha256"] == seen_by_a_client() != first["sha256"]
    exported = pi_relay("tls", "export-ca")
    assert exported.returncode == 1 and not exported.stdout

    (tmp_path / "own.pem").write_text("hello")
    wait_until(lambda: shown(pi_relay)["problem"], 10, "the damage to be seen")
    assert shown(pi_relay)["sha256"] == seen_by_a_client() == second["sha256"]
    status = json.loads(pi_relay("status", "--json").stdout)
    assert status["health"] == "degraded"
    assert any("last good one is served on" in reason for reason in status["reasons"])


def test_without_the_relay(pi_relay: CommandLine, tmp_path: Path) -> None:
    missing = pi_relay("tls", "show")
    assert missing.returncode == 1 and "pi-relay tls renew" in missing.stderr
    first, second = shown(pi_relay, "renew"), shown(pi_relay, "renew")
    assert first["sha256"] != second["sha256"] and shown(pi_relay) == second
    mode = stat.S_IMODE((pi_relay.state_directory / "tls" / "device.pem").stat().st_mode)
    assert mode == 0o600


def test_export_ca(pi_relay: CommandLine, tmp_path: Path) -> None:
    shown(pi_relay, "renew")
    pem = pi_relay.binary("tls", "export-ca").stdout
    assert pi_relay.binary("tls", "export-ca", "-").stdout == pem
    der = pi_relay.binary("tls", "export-ca", "--der").stdout
    assert ssl.PEM_cert_to_DER_cert(pem.decode()) == der
    assert hashlib.sha256(der).hexdigest() == shown(pi_relay)["ca_sha256"]

    file = tmp_path / "ca.crt"
    written = pi_relay("tls", "export-ca", str(file))
    assert written.returncode == 0 and "Trusted Root" in written.stdout
    assert file.read_bytes() == pem
    again = pi_relay("tls", "export-ca", str(file), "--der")
    assert again.returncode == 1 and "--force" in again.stderr
    assert file.read_bytes() == pem
    assert pi_relay("tls", "export-ca", str(file), "--der", "--force").returncode == 0
    assert file.read_bytes() == der
    nowhere = pi_relay("tls", "export-ca", "/nowhere/ca.crt")
    assert nowhere.returncode == 1 and "Traceback" not in nowhere.stderr


def test_a_bad_file_is_3(pi_relay: CommandLine) -> None:
    pi_relay.file.write_text('hostnam = "x"\n')
    for action in ("show", "renew", "export-ca"):
        assert pi_relay("tls", action).returncode == 3


def self_signed(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        (folder / "own.key").unlink()
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=own.example")
    names = ("-addext", "subjectAltName=DNS:own.example,IP:192.0.2.1")
    files = ("-keyout", folder / "own.key", "-out", folder / "own.pem")
    subprocess.run(["openssl", "req", "-x509", *kind, *names, *files], check=True, capture_output=True)
    (folder / "own.key").chmod(0o600)
