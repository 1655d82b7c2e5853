"""`queue list`, `show` and `export` from the queue's folder, while nobody runs; also after a crash."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from pi_relay.model import Envelope, Recipient
from pi_relay.queue.store import Store
from tests.support.command_line import CommandLine

HEADER = b"Subject: x\r\n\r\n"
BODY = b"..one\r\n...\r\n"
UNSTUFFED = b"Subject: x\r\n\r\n.one\r\n..\r\n"
QUEUED, HELD, DEFERRED = "0000000000A1", "0000000000A2", "0000000000A3"


def envelope(queue_id: str, *, held: str = "", attempts: int = 0, to: str = "ann@office.example") -> Envelope:
    return Envelope(
        queue_id=queue_id,
        reverse_path="scans@office.example",
        recipients=(Recipient(to),),
        accepted_at=1_700_000_000.0,
        held=held,
        attempts=attempts,
        next_attempt_at=1_700_000_060.0 if attempts else None,
        device="copier-2f",
        client="192.168.1.23",
        header_size_bytes=len(HEADER),
        message_size_bytes=len(HEADER) + len(BODY),
    )


async def fill(directory: Path) -> Store:
    store = Store(directory, size_max_bytes=10**9, free_space_min_bytes=0)
    await store.open()
    await store.put(envelope(QUEUED), HEADER, BODY)
    await store.put(envelope(HELD, held="admin", to="bob@x.example"), HEADER, BODY)
    await store.put(envelope(DEFERRED, attempts=2), HEADER, BODY)
    return store


@pytest.fixture(params=["stopped", "crashed"])
def queue(request: pytest.FixtureRequest, pi_relay: CommandLine, tmp_path: Path) -> Path:
    """Three messages; in the folder as a clean stop leaves it, or as a crash does: all in the journal."""
    directory = pi_relay.state_directory / "queue"

    async def leave() -> None:
        if request.param == "stopped":
            await (await fill(directory)).close()
        else:
            store = await fill(tmp_path / "running")
            shutil.copytree(tmp_path / "running", directory)
            await store.close()

    asyncio.run(leave())
    return directory


def ids(text: str) -> list[str]:
    return [message["queue_id"] for message in json.loads(text)]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], [QUEUED, HELD, DEFERRED]),
        (["--state", "queued"], [QUEUED]),
        (["--state", "held"], [HELD]),
        (["--state", "deferred"], [DEFERRED]),
        (["--state", "attempting"], []),
        (["--device", "copier-2f"], [QUEUED, HELD, DEFERRED]),
        (["--device", "camera"], []),
        (["--recipient", "*@X.example"], [HELD]),
        (["--recipient", "ann@office.example", "--state", "deferred"], [DEFERRED]),
    ],
    ids=lambda value: " ".join(value) or "-",
)
def test_list(pi_relay: CommandLine, queue: Path, arguments: list[str], found: list[str]) -> None:
    result = pi_relay("queue", "list", "--json", *arguments)
    assert result.returncode == 0, result.stderr
    assert ids(result.stdout) == found
    assert "not running" in result.stderr


def test_list_as_json_has_the_keys_that_others_rely_on(pi_relay: CommandLine, queue: Path) -> None:
    _, _, message = json.loads(pi_relay("queue", "list", "--json").stdout)
    assert message == {
        "queue_id": DEFERRED,
        "state": "deferred",
        "reverse_path": "scans@office.example",
        "recipients": [{"forward_path": "ann@office.example", "status": "pending", "last_reply": None}],
        "size_bytes": len(HEADER + BODY),
        "accepted_at": "2023-11-14T22:13:20Z",
        "attempts": 2,
        "next_attempt_at": "2023-11-14T22:14:20Z",
        "device": "copier-2f",
        "client": "192.168.1.23",
    }


def test_show_and_export(pi_relay: CommandLine, queue: Path) -> None:
    shown = json.loads(pi_relay("queue", "show", HELD, "--json").stdout)
    assert (shown["state"], shown["history"]) == ("held", [])
    assert "bob@x.example" in pi_relay("queue", "show", HELD).stdout
    for arguments in (["export", HELD], ["show", HELD, "--message"]):
        assert pi_relay.binary("queue", *arguments).stdout == UNSTUFFED


@pytest.mark.parametrize("action", ["show", "export"])
def test_an_unknown_id_is_5(pi_relay: CommandLine, queue: Path, action: str) -> None:
    for unknown in ("0000000000A9", "../../etc/passwd"):
        result = pi_relay("queue", action, unknown)
        assert result.returncode == 5
        assert result.stdout == ""


def test_a_damaged_message_is_told_and_the_others_are_listed(pi_relay: CommandLine) -> None:
    directory = pi_relay.state_directory / "queue"

    async def leave() -> None:
        await (await fill(directory)).close()

    asyncio.run(leave())
    path = directory / QUEUED
    path.write_bytes(path.read_bytes()[:40])
    result = pi_relay("queue", "list", "--json")
    assert result.returncode == 0
    assert ids(result.stdout) == [HELD, DEFERRED]
    assert f"{QUEUED} is damaged" in result.stderr
    assert pi_relay("queue", "export", QUEUED).returncode == 1


def test_a_queue_that_never_was(pi_relay: CommandLine) -> None:
    assert json.loads(pi_relay("queue", "list", "--json").stdout) == []
    assert pi_relay("queue", "show", QUEUED).returncode == 5


def test_looking_changes_nothing(pi_relay: CommandLine, queue: Path) -> None:
    before = {path: path.read_bytes() for path in queue.rglob("*") if path.is_file()}
    for arguments in (["list"], ["show", HELD], ["export", HELD]):
        pi_relay("queue", *arguments)
    assert {path: path.read_bytes() for path in queue.rglob("*") if path.is_file()} == before


def test_a_bad_file_is_3(pi_relay: CommandLine) -> None:
    pi_relay.file.write_text('hostnam = "x"\n')
    result = pi_relay("queue", "list")
    assert result.returncode == 3
    assert ":1: hostnam: " in result.stderr
