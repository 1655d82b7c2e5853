"""The daemon at its next start: why the last run ended, and a file that has been spoilt meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import wait_until
from tests.support.relay import PI_RELAY, Relay


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    with Relay(tmp_path, smart_host_port=1) as relay:
        yield relay


def spoil(relay: Relay) -> str:
    """The good file, for later."""
    good = relay.file.read_text()
    relay.file.write_text("nonsense = 1\n" + good)
    return good


def test_a_killed_relay_tells_so_after_the_next_start(relay: Relay) -> None:
    assert relay.ask("status")["last_restart"] is None
    relay.kill()
    relay.start()
    last_restart = relay.ask("status")["last_restart"]
    assert last_restart["reason"] == "it was killed, or crashed"
    assert last_restart["at"].endswith("Z")
    relay.stop()
    relay.start()
    assert relay.ask("status")["last_restart"] == last_restart, "a stop in good order is none"


def test_a_service_serves_the_last_good_file(relay: Relay) -> None:
    relay.stop()
    good = spoil(relay)
    relay.start()
    status = relay.ask("status")
    assert [reason for reason in status["reasons"] if "nonsense" in reason]
    assert "the last good configuration stays in force" in relay.log.read_text()

    relay.stop()
    relay.start()
    assert relay.ask("status")["pid"], "the copy is no worse for it"

    relay.file.write_text(good)
    relay.command("reload")
    assert not [reason for reason in relay.ask("status")["reasons"] if "nonsense" in reason]


def test_relative_paths_of_the_copy_count_from_the_files_folder(tmp_path: Path) -> None:
    secret = tmp_path / "office.password"
    secret.write_text("s3cret\n")
    secret.chmod(0o600)
    options = 'username = "u"\npassword_file = "office.password"'
    with Relay(tmp_path, smart_host_port=1, smart_host_tls="starttls", smart_host_extra=options) as relay:
        relay.stop()
        spoil(relay)
        relay.start()
        copy = relay.state_directory / "last-good.toml"
        assert copy.stat().st_mode & 0o777 == 0o600
        assert "s3cret" not in copy.read_text()


def test_on_a_terminal_a_bad_file_ends_it(relay: Relay) -> None:
    relay.stop()
    spoil(relay)
    environment = {key: value for key, value in relay.environment.items() if key != "NOTIFY_SOCKET"}
    command = [PI_RELAY, "-c", relay.file, "serve"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 3
    assert "nonsense" in ended.stderr


def test_a_reload_is_told_to_the_service_manager(relay: Relay) -> None:
    relay.notifications()
    os.kill(relay.pid, signal.SIGHUP)
    said: list[str] = []

    def is_over() -> bool:
        said.extend(relay.notifications())
        return "READY=1" in said

    wait_until(is_over, 10, "the end of the reload")
    assert said[0].startswith("RELOADING=1\nMONOTONIC_USEC=")
    spoil(relay)
    os.kill(relay.pid, signal.SIGHUP)
    said.clear()
    wait_until(is_over, 10, "the end of the reload")
    assert [words for words in said if words.startswith("STATUS=") and "nonsense" in words]
    assert not [words for words in said if words.startswith("WATCHDOG")], "nobody asked for it"
