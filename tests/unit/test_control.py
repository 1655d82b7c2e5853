"""The control socket, over a real one: answers, streams, refusals, bounds, the socket file itself."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pi_relay import control
from pi_relay.control import ControlError, ControlServer, NotRunning, ask, ask_each
from pi_relay.model import Envelope, Recipient, RecipientStatus, Reply


async def echo(question: dict[str, Any]) -> object:
    return question


async def count(question: dict[str, Any]) -> AsyncIterator[object]:
    for number in range(question["upto"]):
        yield {"number": number, "filler": "x" * 1000}


async def break_in_the_middle(question: dict[str, Any]) -> AsyncIterator[object]:
    yield 1
    raise ControlError("not_found", "the rest is missing", hint="look elsewhere", details=[1])


async def stumble(question: dict[str, Any]) -> object:
    raise ZeroDivisionError("a defect")


async def never(question: dict[str, Any]) -> object:
    return await asyncio.Event().wait()


HANDLERS: dict[str, control.Handler] = {
    "echo": echo,
    "count": count,
    "break": break_in_the_middle,
    "stumble": stumble,
    "never": never,
}


def with_server(path: Path, act: Callable[[], object], *more: Callable[[], object]) -> list[object]:
    async def run() -> list[object]:
        server = ControlServer(path, HANDLERS)
        await server.start()
        try:
            acts: list[Awaitable[object]] = [asyncio.to_thread(one) for one in (act, *more)]
            return list(await asyncio.gather(*acts))
        finally:
            await server.close()

    return asyncio.run(run())


def test_a_question_is_answered_with_its_arguments(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    (answer,) = with_server(path, lambda: ask(path, "echo", {"text": "日本\n", "ids": ["A", "B"]}))
    assert answer == {"verb": "echo", "text": "日本\n", "ids": ["A", "B"]}


def test_a_long_answer_is_streamed_in_order(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    (numbers,) = with_server(
        path, lambda: [item["number"] for item in ask_each(path, "count", {"upto": 3000})]
    )
    assert numbers == list(range(3000))


def test_an_empty_stream_is_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    assert with_server(path, lambda: list(ask_each(path, "count", {"upto": 0}))) == [[]]


def test_a_refusal_amid_a_stream_reaches_the_client(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    def collect() -> object:
        seen = []
        with pytest.raises(ControlError) as refusal:
            for item in ask_each(path, "break"):
                seen.append(item)
        return seen, refusal.value.code, refusal.value.hint, refusal.value.details

    assert with_server(path, collect) == [([1], "not_found", "look elsewhere", [1])]


def test_a_defect_of_a_handler_answers_and_is_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "control.sock"

    def provoke() -> object:
        with pytest.raises(ControlError) as refusal:
            ask(path, "stumble")
        return refusal.value.code, ask(path, "echo")

    assert with_server(path, provoke) == [("failed", {"verb": "echo"})]
    logged = capfd.readouterr().err
    assert "ZeroDivisionError" in logged and "traceback" in logged


@pytest.mark.parametrize(
    "question", [b"\xff\xfe\n", b"[]\n", b"{}\n", b'{"verb": 3}\n', b'{"verb": "dance"}\n']
)
def test_a_question_that_makes_no_sense_is_refused(tmp_path: Path, question: bytes) -> None:
    path = tmp_path / "control.sock"

    def send() -> object:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(question)
            return json.loads(client.makefile("rb").readline())["error"]["code"]

    assert with_server(path, send) == ["usage"]


def test_a_question_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    def send() -> object:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            try:
                client.sendall(b"x" * (3 * control.QUESTION_SIZE_MAX_BYTES))
            except OSError:
                return True  # we were cut off while sending
            return b"too long" in client.makefile("rb").readline()

    assert with_server(path, send) == [True]


def test_a_silent_client_and_a_leaving_one_disturb_nobody(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    def send() -> object:
        silent = socket.socket(socket.AF_UNIX)
        silent.connect(str(path))
        leaving = socket.socket(socket.AF_UNIX)
        leaving.connect(str(path))
        leaving.sendall(b'{"verb": "count", "upto": 100000}\n')
        leaving.close()
        answer = ask(path, "echo")
        silent.close()
        return answer

    assert with_server(path, send) == [{"verb": "echo"}]


def test_connections_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    def crowd() -> object:
        crowd = [socket.socket(socket.AF_UNIX) for _ in range(control.CONNECTIONS_MAX)]
        for client in crowd:
            client.connect(str(path))
            client.sendall(b'{"verb": "never"}\n')
        with pytest.raises((ControlError, OSError)):
            ask(path, "echo")
        for client in crowd:
            client.close()
        return True

    assert with_server(path, crowd) == [True]


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(NotRunning):
        ask(tmp_path / "nothing.sock", "status")


def test_the_socket_is_closed_to_others_and_gone_after_close(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    (mode,) = with_server(path, lambda: stat.S_IMODE(path.stat().st_mode))
    assert mode == 0o660
    assert not path.exists()


def test_what_a_crash_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(path))
    with pytest.raises(NotRunning):
        ask(path, "echo")
    assert with_server(path, lambda: ask(path, "echo")) == [{"verb": "echo"}]


def test_a_second_relay_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    def second() -> object:
        with pytest.raises(FileExistsError, match="another pi-relay"):
            asyncio.run(ControlServer(path, HANDLERS).start())
        return ask(path, "echo")

    assert with_server(path, second) == [{"verb": "echo"}]


def test_the_message_document_has_the_keys_that_other_programs_rely_on() -> None:
    envelope = Envelope(
        queue_id="0A1",
        reverse_path="",
        recipients=(
            Recipient(
                "a@b.example", status=RecipientStatus.FAILED, last_reply=Reply(550, "5.1.1", "no", "mx")
            ),
            Recipient("c@b.example"),
        ),
        accepted_at=1_700_000_000.9,
        attempts=2,
        next_attempt_at=None,
        message_size_bytes=123,
    )
    assert control.message_document(envelope, "deferred") == {
        "queue_id": "0A1",
        "state": "deferred",
        "reverse_path": "",
        "recipients": [
            {
                "forward_path": "a@b.example",
                "status": "failed",
                "last_reply": {"code": 550, "enhanced_status": "5.1.1", "text": "no", "remote_mta": "mx"},
            },
            {"forward_path": "c@b.example", "status": "pending", "last_reply": None},
        ],
        "size_bytes": 123,
        "accepted_at": "2023-11-14T22:13:20Z",
        "attempts": 2,
        "next_attempt_at": None,
        "device": "",
        "client": "",
    }
