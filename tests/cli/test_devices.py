"""`pi-relay devices` and `devices add`, from outside against the real relay."""

from __future__ import annotations

import json
import os
import smtplib
import socket
import ssl
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pi_relay import passwords
from tests.support.command_line import CommandLine
from tests.support.processes import free_port, greeting, wait_until

KEYS = {
    "name", "address", "mac", "known", "last_seen_at", "accepted", "refused", "last_reply", "last_reason",
    "mend",
}  # fmt: skip
PORT, OTHER_PORT, SMART_HOST_PORT = free_port(), free_port(), free_port()
FILE = f"""\
# the office's relay
hostname = "relay.office.example"
postmaster = "admin@office.example"

[[listeners]]
address = "127.0.0.1:{PORT}"
[[listeners]]
address = "127.0.0.1:{OTHER_PORT}"
networks = ["10.9.9.0/24"]   # not us

[smart_hosts.isp]
host = "127.0.0.1"
port = {SMART_HOST_PORT}
tls = "off"
sender = "relay@office.example"

[[devices]]
name = "nas"
address = "192.0.2.7"
# quiet

# the queue
[queue]
free_space_min = "16 MB"
"""


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

    pi_relay.file.write_text(FILE)
    yield start
    for process in processes:
        process.terminate()
        process.wait(30)


def listed(pi_relay: CommandLine) -> list[dict[str, Any]]:
    result = pi_relay("devices", "--json")
    assert result.returncode == 0, result.stderr
    devices: list[dict[str, Any]] = json.loads(result.stdout)
    assert all(set(device) == KEYS for device in devices)
    return devices


def say(source: str, *lines: bytes, port: int = PORT) -> bytes:
    """The last answer."""
    with socket.create_connection(("127.0.0.1", port), 10, source_address=(source, 0)) as client:
        answers = client.makefile("rb")
        answer = answers.readline()
        for line in lines:
            client.sendall(line + b"\r\n")
            answer = answers.readline()
        return answer


def sign_in(username: str, password: str, source: str = "127.0.0.1") -> int:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with smtplib.SMTP("127.0.0.1", PORT, timeout=20, source_address=(source, 0)) as client:
        client.starttls(context=context)
        with suppress(smtplib.SMTPAuthenticationError):
            return client.login(username, password)[0]
    return 535


def test_who_was_seen_and_what_would_mend_it(pi_relay: CommandLine, serve: Callable[[], None]) -> None:
    serve()
    assert [(one["name"], one["known"], one["last_seen_at"]) for one in listed(pi_relay)] == [
        ("nas", True, None)
    ]
    assert say("127.0.0.2", port=OTHER_PORT).startswith(b"554 5.7.1")
    sign_in("copier", "wrong", "127.0.0.3")
    mail = (b"HELO x", b"MAIL FROM:<a@office.example>", b"RCPT TO:<b@x.example>", b"DATA", b"x: y\r\n\r\n.")
    assert say("127.0.0.4", *mail).startswith(b"250")
    last, second, first, nas = listed(pi_relay)
    assert [one["address"] for one in (last, second, first, nas)] == [
        "127.0.0.4", "127.0.0.3", "127.0.0.2", "192.0.2.7"
    ]  # fmt: skip
    assert (last["accepted"], last["refused"], last["last_reply"], last["mend"]) == (1, 0, None, None)
    assert not last["known"] and last["name"] == ""
    assert second["last_reply"].startswith("535 5.7.8") and "copier" in second["last_reason"]
    assert tomllib.loads(second["mend"])["devices"][0]["username"] == "copier"
    assert tomllib.loads(first["mend"])["listeners"] == [
        {"address": f"127.0.0.1:{OTHER_PORT}", "networks": ["10.9.9.0/24", "127.0.0.0/24"]}
    ]

    text = pi_relay("devices").stdout
    assert "127.0.0.3: 535 5.7.8" in text and "    username = " in text and str(pi_relay.file) in text
    japanese = pi_relay("devices", LANG="ja_JP.UTF-8").stdout
    assert "# そのユーザーはいません" in japanese


def test_it_is_quick(pi_relay: CommandLine, serve: Callable[[], None]) -> None:
    """As quick as the least that Python does: a ratio, for the machine may be busy."""
    serve()

    def seconds(*command: str) -> float:
        begun = time.monotonic()
        subprocess.run(command, env=pi_relay.environment(), check=True, capture_output=True)
        return time.monotonic() - begun

    ours = min(seconds(sys.executable, "-m", "pi_relay", "devices") for _ in range(5))
    bare = min(seconds(sys.executable, "-c", "import argparse, json, socket") for _ in range(5))
    assert ours < 4 * bare


def test_without_the_relay_it_is_4(pi_relay: CommandLine) -> None:
    assert pi_relay("devices").returncode == 4


# ── add ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_device_is_added_and_can_sign_in(pi_relay: CommandLine, serve: Callable[[], None]) -> None:
    pi_relay.file.write_text(FILE)
    serve()
    result = pi_relay("devices", "add", "Copier 2F", "--address", "127.0.0.9", "--login", "--json")
    assert result.returncode == 0, result.stderr
    sheet = json.loads(result.stdout)
    assert sheet["username"] == "copier-2f" and sheet["authentication"] is True
    assert len(sheet["password"]) <= 20 and sheet["password"].isascii()
    assert (sheet["server"], sheet["port"], sheet["encryption"]) == ("127.0.0.1", PORT, "starttls")
    assert (sheet["hostname"], sheet["sender"]) == ("relay.office.example", "relay@office.example")

    text = pi_relay.file.read_text()
    lines = text.split("\n")
    assert lines[sheet["line"] - 1] == "[[devices]]"
    added = tomllib.loads(text)["devices"][-1]
    assert passwords.verify(sheet["password"], added.pop("password_hash"))
    assert added == {"name": "Copier 2F", "address": "127.0.0.9", "username": "copier-2f"}
    assert text.replace("\n".join(lines[sheet["line"] - 1 : sheet["line"] + 5]) + "\n", "") == FILE
    assert sheet["password"] not in text

    assert sign_in("copier-2f", sheet["password"], "127.0.0.9") == 535  # not yet in force
    assert pi_relay("reload").returncode == 0
    assert sign_in("copier-2f", sheet["password"], "127.0.0.9") == 235
    assert listed(pi_relay)[0]["name"] == "Copier 2F"


def test_the_sheet(pi_relay: CommandLine) -> None:
    english = pi_relay("devices", "add", "copier", "--login")
    assert english.returncode == 0, english.stderr
    for words in ("587", "STARTTLS", "copier", "pi-relay reload", "line 6"):
        assert words in english.stdout
    japanese = pi_relay("devices", "add", "nas", "--address", "10.0.0.7", LANG="ja_JP.UTF-8")
    assert japanese.returncode == 0 and "送信元アドレス" in japanese.stdout
    assert tomllib.loads(pi_relay.file.read_text())["devices"][1] == {"name": "nas", "address": "10.0.0.7"}


def test_a_device_on_dhcp(pi_relay: CommandLine) -> None:
    result = pi_relay("devices", "add", "copier", "--mac", "00-1B-A9-12-34-56", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["mac"] == "00:1b:a9:12:34:56"
    assert tomllib.loads(pi_relay.file.read_text())["devices"] == [
        {"name": "copier", "mac": "00:1b:a9:12:34:56"}
    ]
    again = pi_relay("devices", "add", "other", "--mac", "001ba9123456")
    assert again.returncode == 1 and "nothing was written" in again.stderr


def test_names_become_user_names(pi_relay: CommandLine) -> None:
    names = [
        json.loads(pi_relay("devices", "add", name, "--login", "--json").stdout)["username"]
        for name in ("複合機", "受付の複合機", "Canon iR-ADV C5535 III (2nd floor)", "device 2")
    ]
    assert names == ["device", "device-2", "canon-ir-adv-c5535-i", "device-2-2"]


@pytest.mark.parametrize(
    ("arguments", "text", "code"),
    [
        (["nas", "--address", "192.0.2.8"], FILE, 1),
        (["other", "--address", "192.0.2.7"], FILE, 1),
        (["other", "--address", "192.0.2.8"], "devices = [{name = 'x', address = '10.0.0.1'}]\n", 1),
        (["other", "--address", "192.0.2.8"], f"hostnam = 'x'\n{FILE}", 3),
        (["other", "--address", "192.0.2.8"], "[queue\n", 3),
        (["other", "--address", "192.0.2.256"], FILE, 2),
    ],
)
def test_what_cannot_be_added_changes_nothing(
    pi_relay: CommandLine, arguments: list[str], text: str, code: int
) -> None:
    pi_relay.file.write_text(text)
    before = pi_relay.file.stat()
    result = pi_relay("devices", "add", *arguments)
    assert result.returncode == code, result.stderr
    assert result.stderr and not result.stdout and "Traceback" not in result.stderr
    assert pi_relay.file.read_text() == text and pi_relay.file.stat().st_ino == before.st_ino
    assert [one.name for one in pi_relay.file.parent.iterdir() if one.is_file()] == [pi_relay.file.name]


def test_no_file_is_3(pi_relay: CommandLine) -> None:
    pi_relay.file.unlink()
    assert pi_relay("devices", "add", "x", "--login").returncode == 3


def test_mode_owner_link_and_line_ends_stay(pi_relay: CommandLine, tmp_path: Path) -> None:
    real = tmp_path / "real.toml"
    real.write_bytes(b"\xef\xbb\xbf" + FILE.replace("\n", "\r\n").encode().rstrip())
    real.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(real, 4711, 4712)
    before = real.stat()
    pi_relay.file.unlink()
    pi_relay.file.symlink_to(real)
    result = pi_relay("devices", "add", "copier", "--address", "10.0.0.7")
    assert result.returncode == 0, result.stderr
    after = real.stat()
    assert (after.st_uid, after.st_gid, stat.S_IMODE(after.st_mode)) == (before.st_uid, before.st_gid, 0o640)
    assert pi_relay.file.is_symlink()
    data = real.read_bytes()
    assert data.startswith(b"\xef\xbb\xbf") and data.count(b"\n") == data.count(b"\r\n")
    assert pi_relay("check").returncode == 0
