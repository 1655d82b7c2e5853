"""The verbs that need no relay: check, password, trace."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from pi_relay import maillog, passwords
from pi_relay.config import Log
from tests.support.command_line import CommandLine

# ── check ────────────────────────────────────────────────────────────────────────────────────────


def test_check_of_a_good_file(pi_relay: CommandLine) -> None:
    result = pi_relay("check")
    assert (result.returncode, result.stderr) == (0, "")
    assert "0 error(s)" in result.stdout


def test_check_names_every_error_at_once(pi_relay: CommandLine) -> None:
    pi_relay.file.write_text('hostnam = "x"\nlanguage = "xx"\n')
    result = pi_relay("check")
    assert result.returncode == 3
    assert f"{pi_relay.file}:1: hostnam: " in result.stdout
    assert f"{pi_relay.file}:2: language: " in result.stdout
    assert "\nhint: " in result.stdout


def test_check_as_json_is_a_list_of_flat_objects(pi_relay: CommandLine) -> None:
    pi_relay.file.write_text('language = "xx"\n')
    result = pi_relay("check", "--json")
    assert result.returncode == 3
    findings = json.loads(result.stdout)
    (error,) = [finding for finding in findings if finding["severity"] == "error"]
    assert set(error) == {"line", "key", "severity", "message", "hint"}
    assert (error["line"], error["key"]) == (1, "language")


def test_check_of_a_file_with_warnings_alone_is_0(pi_relay: CommandLine) -> None:
    pi_relay.file.write_text('[smart_hosts.isp]\nhost = "smtp.isp.example"\n')  # no postmaster
    result = pi_relay("check")
    assert result.returncode == 0
    assert "postmaster: warning: " in result.stdout


def test_check_of_no_file(pi_relay: CommandLine) -> None:
    result = pi_relay("-c", "/nowhere/pi-relay.toml", "check")
    assert result.returncode == 3
    assert "/nowhere/pi-relay.toml" in result.stdout


def test_config_may_be_given_after_the_verb(pi_relay: CommandLine) -> None:
    assert "/nowhere/x.toml" in pi_relay("check", "-c", "/nowhere/x.toml").stdout


# ── password ─────────────────────────────────────────────────────────────────────────────────────


def test_password_reads_a_line_and_prints_its_hash(pi_relay: CommandLine) -> None:
    result = pi_relay("password", input="geheim\nmore\n")
    assert result.returncode == 0
    assert passwords.verify("geheim", result.stdout.strip())


def test_password_as_json(pi_relay: CommandLine) -> None:
    made = json.loads(pi_relay("password", "--json", input="geheim\n").stdout)
    assert set(made) == {"password", "password_hash"}
    assert made["password"] == "geheim"  # noqa: S105
    assert passwords.verify("geheim", made["password_hash"])


def test_generated_passwords_are_printed_with_their_hash(pi_relay: CommandLine) -> None:
    made = json.loads(pi_relay("password", "--generate", "--json").stdout)
    assert len(made["password"]) <= 20 and made["password"].isascii()
    assert passwords.verify(made["password"], made["password_hash"])
    prose = pi_relay("password", "--generate").stdout.splitlines()
    password, password_hash = (line.partition(": ")[2] for line in prose)
    assert passwords.verify(password, password_hash)


def test_an_empty_password_is_1(pi_relay: CommandLine) -> None:
    result = pi_relay("password", input="\n")
    assert result.returncode == 1
    assert "empty" in result.stderr and result.stdout == ""


def test_a_typed_password_is_hidden_and_asked_twice(pi_relay: CommandLine) -> None:
    exit_code, screen = pi_relay.on_terminal(b"geheim\ngeheim\n", "password")
    assert exit_code == 0
    assert b"scrypt$16384$8$1$" in screen
    assert pi_relay.on_terminal(b"geheim\nanders\n", "password")[0] == 1


# ── trace ────────────────────────────────────────────────────────────────────────────────────────

DAY_SECONDS = 86400
LATEST = 1_772_400_000.0  # 2026-03-01T21:20:00Z


def accepted(queue_id: str, device: str, to: list[str], message_id: str) -> None:
    maillog.accepted(
        queue_id=queue_id,
        client="192.168.1.23",
        device=device,
        reverse_path="scans@office.example",
        to=to,
        size_bytes=2345,
        tls="",
        auth="",
        seconds=0.6,
        message_id=message_id,
    )


def relayed(queue_id: str, to: str) -> None:
    maillog.relayed(
        queue_id=queue_id, to=to, next_hop="isp", reply="250 2.0.0 ok", attempt=1, delay_seconds=61.7
    )


@pytest.fixture
def logged(pi_relay: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two days: on the first 0A1 comes and is deferred, on the second it goes, and 0A2 comes."""
    directory = pi_relay.state_directory / "log"
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: LATEST - DAY_SECONDS)
        maillog.open_log(directory, Log(), stderr=False)
        accepted("0A1", "copier-2f", ["ann@office.example", "bob@x.example"], "<1@copier>")
        maillog.deferred(
            queue_id="0A1",
            to="ann@office.example",
            next_hop="isp",
            reply="451 4.7.1 later",
            next_attempt_at=LATEST,
        )
        maillog.failed(queue_id="0A1", to="bob@x.example", next_hop="isp", reply="550 no", dsn="0A1-f1-1")
        accepted("0A1-f1-1", "", ["scans@office.example"], "<2@relay>")
        maillog.refused(client="192.168.1.77", device="", reply="550 5.7.1 no", reason="not in networks")
        patch.setattr(time, "time", lambda: LATEST)
        relayed("0A1", "ann@office.example")
        accepted("0A2", "camera", ["ann@office.example"], "<3@camera>")
        maillog.close_log()
    return directory


OF_0A1 = ["accepted", "deferred", "failed", "accepted", "relayed"]


@pytest.mark.parametrize(
    ("word", "events"),
    [
        ("0A1", OF_0A1),
        ("0A2", ["accepted"]),
        ("0A1-f1-1", ["accepted"]),
        ("<1@copier>", OF_0A1),
        ("1@copier", OF_0A1),
        ("bob@x.example", OF_0A1),
        ("BOB@X.example", OF_0A1),
        ("*@x.example", OF_0A1),
        ("ann@office.example", [*OF_0A1, "accepted"]),
        ("copier-2f", OF_0A1),
        ("camera", ["accepted"]),
        ("192.168.1.77", ["refused"]),
    ],
)
def test_trace_finds_the_life_of_messages(
    pi_relay: CommandLine, logged: Path, word: str, events: list[str]
) -> None:
    result = pi_relay("trace", word, "--json")
    assert result.returncode == 0
    assert [event["event"] for event in json.loads(result.stdout)] == events


@pytest.mark.parametrize("word", ["0A", "copier", "office.example", "ann", "queue_id", "relayed", "250"])
def test_trace_takes_whole_words_alone(pi_relay: CommandLine, logged: Path, word: str) -> None:
    result = pi_relay("trace", word, "--json")
    assert result.returncode == 5
    assert json.loads(result.stdout) == []
    assert word in result.stderr


def test_trace_without_a_log_is_5(pi_relay: CommandLine) -> None:
    assert pi_relay("trace", "0A1").returncode == 5


def test_trace_gives_whole_numbers(pi_relay: CommandLine, logged: Path) -> None:
    first, *_, last = json.loads(pi_relay("trace", "0A1", "--json").stdout)
    assert (first["size"], first["seconds"]) == (2345, 1)
    assert (last["attempt"], last["delay"]) == (1, 62)


def test_trace_since(pi_relay: CommandLine, logged: Path) -> None:
    since_the_second_day = int(time.time() - LATEST + DAY_SECONDS / 2)
    result = pi_relay("trace", "0A1", "--json", "--since", f"{since_the_second_day}s")
    assert [event["event"] for event in json.loads(result.stdout)] == ["relayed"]
    long_ago = int(time.time() - LATEST + 2 * DAY_SECONDS)
    assert len(json.loads(pi_relay("trace", "0A1", "--json", "--since", f"{long_ago}s").stdout)) == len(
        OF_0A1
    )


def test_trace_tells_people_the_other_sides_words(pi_relay: CommandLine, logged: Path) -> None:
    result = pi_relay("trace", "0A1")
    assert result.returncode == 0
    assert "copier-2f (192.168.1.23)" in result.stdout
    assert "isp said: 451 4.7.1 later" in result.stdout
    assert "isp took it after 1m 02s (attempt 1): 250 2.0.0 ok" in result.stdout


def test_trace_takes_the_device_of_many_messages(pi_relay: CommandLine) -> None:
    maillog.open_log(pi_relay.state_directory / "log", Log(), stderr=False)
    for number in range(100):
        accepted(f"0B{number:03}", "camera", ["ann@office.example"], f"<{number}@camera>")
        relayed(f"0B{number:03}", "ann@office.example")
        relayed(f"0C{number:03}", "bob@office.example")
        relayed(f"0B{number:03}-f1-0", "eve@office.example")
    maillog.close_log()
    assert len(json.loads(pi_relay("trace", "camera", "--json").stdout)) == 300
    assert len(json.loads(pi_relay("trace", "eve@office.example", "--json").stdout)) == 100


def test_trace_reads_over_a_torn_and_a_growing_line(pi_relay: CommandLine, logged: Path) -> None:
    path = maillog.log_files(logged)[-1]
    with path.open("a") as file:
        file.write('2026-03-01T21:20:00.000Z relayed queue_id=0A1 reply="250 \n')
        file.write("2026-03-01T21:20:00.000Z held queue_id=0A1 reason=admin\n")
        file.write("2026-03-01T21:20:00.000Z held queue_id=0A1 rea")
    events = [event["event"] for event in json.loads(pi_relay("trace", "0A1", "--json").stdout)]
    assert events == [*OF_0A1, "held"]


def test_trace_finds_hashed_addresses(pi_relay: CommandLine) -> None:
    maillog.open_log(pi_relay.state_directory / "log", Log(addresses="hashed"), stderr=False)
    accepted("0A1", "copier-2f", ["ann@office.example"], "<1@copier>")
    accepted("0A2", "copier-2f", ["bob@office.example"], "<2@copier>")
    maillog.close_log()
    for word in ("ann@office.example", "<1@copier>"):
        (event,) = json.loads(pi_relay("trace", word, "--json").stdout)
        assert event["queue_id"] == "0A1"
    assert pi_relay("trace", "eve@office.example").returncode == 5
