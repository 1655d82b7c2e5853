"""The verbs that ask the running relay, from outside, against a relay that answers as scripted."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pi_relay import maillog
from pi_relay.config import Log
from pi_relay.control import ControlError, Handler
from tests.support.command_line import CommandLine

REPLY = {"code": 451, "enhanced_status": "4.7.1", "text": "later \x1b[31m", "remote_mta": "mx.example"}
MESSAGE = {
    "queue_id": "0A1",
    "state": "deferred",
    "reverse_path": "scans@office.example",
    "recipients": [
        {"forward_path": "ann@office.example", "status": "pending", "last_reply": REPLY},
        {"forward_path": "bob@office.example", "status": "relayed", "last_reply": None},
    ],
    "size_bytes": 5_071_412,
    "accepted_at": "2026-03-01T09:30:00Z",
    "attempts": 2,
    "next_attempt_at": "2099-01-01T00:00:00Z",
    "device": "copier-2f",
    "client": "192.168.1.23",
}
STATUS: dict[str, Any] = {
    "health": "degraded",
    "reasons": ["smart host isp is paused: 535 5.7.8 bad password"],
    "version": "0.1",
    "uptime_seconds": 93784,
    "pid": 7,
    "queue": {"messages": 2, "bytes": 2_500_000, "oldest_seconds": 3700, "held": 1, "corrupt": 0},
    "totals": {"accepted": 5, "relayed": 3, "deferred": 1, "failed": 0, "refused": 9},
    "smart_hosts": [
        {
            "name": "isp",
            "state": "paused",
            "last_success_at": None,
            "last_error": "535 5.7.8 bad password",
            "next_attempt_at": "2099-01-01T00:00:00Z",
        }
    ],
    "devices": [
        {
            "name": "",
            "address": "192.168.1.9",
            "last_seen_at": "2026-03-01T09:30:00Z",
            "accepted": 0,
            "refused": 9,
        }
    ],
    "disk": {"free_bytes": 12_300_000_000},
    "memory": {"rss_bytes": 24_000_000},
}


def answering(answer: object) -> Handler:
    async def handler(question: dict[str, Any]) -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer(question) if callable(answer) else answer

    return handler


def streaming(*items: object) -> Handler:
    async def handler(question: dict[str, Any]) -> AsyncIterator[object]:
        for item in items:
            yield item

    return handler


VERSION = {"version": answering({"version": "0.1", "pid": 7})}


# ── the relay is down ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "--json"],
        ["reload"],
        ["queue", "retry", "--all"],
        ["queue", "hold", "0A1"],
        ["queue", "release", "--device", "copier-2f"],
        ["queue", "delete", "0A1"],
        ["send-test", "ann@office.example"],
    ],
    ids=" ".join,
)
def test_what_needs_the_relay_is_4_without_it(pi_relay: CommandLine, arguments: list[str]) -> None:
    result = pi_relay(*arguments)
    assert result.returncode == 4
    assert "not running" in result.stderr and "hint: " in result.stderr
    assert result.stdout == ""


# ── status, reload ───────────────────────────────────────────────────────────────────────────────


def test_status_as_json_is_the_relays_document(pi_relay: CommandLine) -> None:
    with pi_relay.relay({"status": answering(STATUS)}):
        result = pi_relay("status", "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout) == STATUS


def test_status_is_one_screen_for_people(pi_relay: CommandLine) -> None:
    with pi_relay.relay({"status": answering(STATUS)}):
        result = pi_relay("status")
    assert result.returncode == 0
    for word in ("535 5.7.8 bad password", "2.5 MB", "1d 2h", "1h 01m", "12.3 GB", "24.0 MB", "192.168.1.9"):
        assert word in result.stdout
    assert len(result.stdout.splitlines()) <= 24
    assert "\x1b" not in result.stdout  # no terminal, no colours


def test_reload(pi_relay: CommandLine) -> None:
    warning = {
        "line": 3,
        "key": "postmaster",
        "severity": "warning",
        "message": "is missing",
        "hint": "set it",
    }
    with pi_relay.relay({"reload": answering({"warnings": [warning]})}):
        result = pi_relay("reload")
    assert result.returncode == 0
    assert "3: postmaster: warning: is missing\nhint: set it\n" in result.stdout


def test_reload_of_a_bad_file_is_3(pi_relay: CommandLine) -> None:
    finding = {"line": 3, "key": "hostnam", "severity": "error", "message": "is unknown", "hint": "hostname?"}
    refusal = ControlError("bad_configuration", "the file has an error", details=[finding])
    with pi_relay.relay({"reload": answering(refusal)}):
        result = pi_relay("reload")
    assert result.returncode == 3
    assert "3: hostnam: is unknown" in result.stderr


# ── queue ────────────────────────────────────────────────────────────────────────────────────────


def test_queue_list_as_json(pi_relay: CommandLine) -> None:
    with pi_relay.relay({**VERSION, "queue_list": streaming(MESSAGE, {**MESSAGE, "queue_id": "0A2"})}):
        result = pi_relay("queue", "list", "--json")
    assert json.loads(result.stdout) == [MESSAGE, {**MESSAGE, "queue_id": "0A2"}]


def test_queue_list_of_nothing_as_json(pi_relay: CommandLine) -> None:
    with pi_relay.relay({**VERSION, "queue_list": streaming()}):
        assert json.loads(pi_relay("queue", "list", "--json").stdout) == []


def test_queue_list_for_people(pi_relay: CommandLine) -> None:
    with pi_relay.relay({**VERSION, "queue_list": streaming(MESSAGE)}):
        result = pi_relay("queue", "list")
    assert result.returncode == 0
    heading, row, total = result.stdout.splitlines()
    assert row.index("5.1 MB") == heading.index("SIZE")
    assert "ann@office.example: 451 4.7.1 later" in row and "bob@" not in row
    assert "\x1b" not in row  # what a stranger wrote does not reach the terminal as it is
    assert total == "1 message(s), 5.1 MB"


def test_queue_list_asks_for_what_is_wanted(pi_relay: CommandLine) -> None:
    asked: list[dict[str, Any]] = []

    async def queue_list(question: dict[str, Any]) -> AsyncIterator[object]:
        asked.append(question)
        return
        yield

    with pi_relay.relay({**VERSION, "queue_list": queue_list}):
        pi_relay("queue", "list", "--state", "held", "--device", "copier-2f", "--recipient", "*@x.example")
    assert asked == [
        {"verb": "queue_list", "state": "held", "device": "copier-2f", "recipient": "*@x.example"}
    ]


def log_something(pi_relay: CommandLine) -> None:
    maillog.open_log(pi_relay.state_directory / "log", Log(), stderr=False)
    maillog.held(queue_id="0A1", reason="runaway")
    maillog.held(queue_id="0A10", reason="another")
    maillog.close_log()


def test_queue_show_tells_envelope_and_history(pi_relay: CommandLine) -> None:
    log_something(pi_relay)
    with pi_relay.relay({**VERSION, "queue_show": answering(MESSAGE)}):
        as_json = json.loads(pi_relay("queue", "show", "0A1", "--json").stdout)
        prose = pi_relay("queue", "show", "0A1")
    (event,) = as_json.pop("history")
    assert as_json == MESSAGE
    assert event.pop("time").endswith("Z")
    assert event == {"event": "held", "queue_id": "0A1", "reason": "runaway"}
    assert prose.returncode == 0
    assert "held: runaway" in prose.stdout and "451 4.7.1 later" in prose.stdout


@pytest.mark.parametrize("action", [["show"], ["show", "--message"], ["export"]], ids=" ".join)
def test_an_unknown_message_is_5(pi_relay: CommandLine, action: list[str]) -> None:
    unknown = answering(ControlError("not_found", "there is no message 0A9 in the queue"))
    with pi_relay.relay({**VERSION, "queue_show": unknown, "queue_message": unknown}):
        result = pi_relay("queue", *action, "0A9")
    assert result.returncode == 5
    assert "0A9" in result.stderr and result.stdout == ""


@pytest.mark.parametrize("action", [["show", "--message"], ["export"]], ids=" ".join)
def test_a_message_comes_unstuffed_wherever_it_was_cut(pi_relay: CommandLine, action: list[str]) -> None:
    wire_form = b"Subject: x\r\n\r\n..one\r\ntwo.\r\n...\r\n\xff\xfe\r\n"
    pieces = [{"data": base64.b64encode(wire_form[at : at + 1]).decode()} for at in range(len(wire_form))]
    with pi_relay.relay({**VERSION, "queue_message": streaming(*pieces)}):
        result = pi_relay.binary("queue", *action, "0A1")
    assert result.stdout == b"Subject: x\r\n\r\n.one\r\ntwo.\r\n..\r\n\xff\xfe\r\n"


@pytest.mark.parametrize(
    ("arguments", "question"),
    [
        (["retry", "--all"], {"verb": "queue_retry", "all": True}),
        (["retry", "0A1", "0A2"], {"verb": "queue_retry", "ids": ["0A1", "0A2"]}),
        (["hold", "0A1"], {"verb": "queue_hold", "ids": ["0A1"]}),
        (["release", "0A1"], {"verb": "queue_release", "ids": ["0A1"]}),
        (["release", "--device", "copier-2f"], {"verb": "queue_release", "device": "copier-2f"}),
        (["delete", "0A1"], {"verb": "queue_delete", "ids": ["0A1"], "bounce": False}),
        (["delete", "0A1", "--bounce", "--yes"], {"verb": "queue_delete", "ids": ["0A1"], "bounce": True}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize(("unknown", "exit_code"), [([], 0), (["0A9"], 5)])
def test_changes(
    pi_relay: CommandLine,
    arguments: list[str],
    question: dict[str, Any],
    unknown: list[str],
    exit_code: int,
) -> None:
    asked: list[dict[str, Any]] = []

    def remember(question: dict[str, Any]) -> object:
        asked.append(question)
        return {"done": ["0A1"], "unknown": unknown}

    with pi_relay.relay({**VERSION, question["verb"]: answering(remember)}):
        result = pi_relay("queue", *arguments)
    assert asked == [question]
    assert result.returncode == exit_code
    assert result.stdout.startswith("1 message(s)")
    assert all(queue_id in result.stderr for queue_id in unknown)


@pytest.mark.parametrize(("typed", "deleted"), [(b"y\n", True), (b"n\n", False), (b"\n", False)])
def test_delete_asks_on_a_terminal(pi_relay: CommandLine, typed: bytes, deleted: bool) -> None:
    asked: list[object] = []

    def delete(question: dict[str, Any]) -> object:
        asked.append(question)
        return {"done": ["0A1"], "unknown": []}

    with pi_relay.relay({**VERSION, "queue_delete": answering(delete)}):
        exit_code, screen = pi_relay.on_terminal(typed, "queue", "delete", "0A1")
    assert b"[y/N]" in screen
    assert bool(asked) == deleted
    assert exit_code == (0 if deleted else 1)


# ── send-test ────────────────────────────────────────────────────────────────────────────────────


def fate(state: str, attempts: int) -> dict[str, Any]:
    return {"state": state, "attempts": attempts, "next_hop": "isp", "reply": REPLY, "next_attempt_at": None}


def with_fates(*fates: object) -> dict[str, Handler]:
    coming = list(fates)

    async def next_fate(question: dict[str, Any]) -> object:
        fate = coming.pop(0) if len(coming) > 1 else coming[0]
        if isinstance(fate, Exception):
            raise fate
        return fate

    sent = {"queue_id": "0A1", "from": "relay@office.example", "size_bytes": 600}
    return {"send_test": answering(sent), "fate": next_fate}


@pytest.mark.parametrize(
    ("fates", "exit_code", "words"),
    [
        ([fate("attempting", 0), fate("relayed", 1)], 0, ["queued as 0A1", "relayed: isp said: 451"]),
        ([fate("deferred", 1), fate("relayed", 2)], 0, ["attempt 1: isp said: 451 4.7.1", "relayed"]),
        ([fate("failed", 1)], 1, ["failed: isp said"]),
        ([fate("held", 0)], 1, ["held"]),
        ([fate("deferred", 1)], 1, ["attempt 1", "still waits"]),
        ([ControlError("not_found", "forgotten")], 1, ["queued as 0A1"]),
    ],
)
def test_send_test_tells_each_step(
    pi_relay: CommandLine, fates: list[object], exit_code: int, words: list[str]
) -> None:
    with pi_relay.relay(with_fates(*fates)):
        result = pi_relay("send-test", "ann@office.example", "--wait", "0.3")
    assert result.returncode == exit_code, result.stderr
    assert all(word in result.stdout for word in words), result.stdout
    assert result.stdout.count("attempt 1") <= 1


def test_send_test_by_an_unknown_smart_host_is_5(pi_relay: CommandLine) -> None:
    with pi_relay.relay({"send_test": answering(ControlError("not_found", "no smart host 'x'", hint="see"))}):
        result = pi_relay("send-test", "ann@office.example", "--via", "x")
    assert result.returncode == 5
    assert "no smart host 'x'\nhint: see" in result.stderr
