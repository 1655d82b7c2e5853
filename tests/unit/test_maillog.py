"""The mail log: what its lines say, that nobody can write one, its files, and reading them back."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi_relay import maillog
from pi_relay.config import Log
from pi_relay.model import Reply

TAKEN = Reply(250, "2.0.0", "queued as 4F2 at the other side", "mx.example")
TEXTS = st.text(st.characters() | st.sampled_from('"\\\n\r\t =\x00\x1b\u202e\udc80'), max_size=60)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    maillog.open_log(tmp_path / "log", Log(), stderr=False)
    yield tmp_path / "log"
    maillog.close_log()


def lines(directory: Path) -> list[str]:
    return [line for path in maillog.log_files(directory) for line in path.read_text("utf-8").splitlines()]


def without_time(line: str) -> str:
    return line.partition(" ")[2]


def log_every_event() -> None:
    maillog.accepted(
        queue_id="0A1",
        client="192.168.1.23",
        device="copier-2f",
        reverse_path="",
        to=["ann@office.example", "bob@office.example"],
        size_bytes=2345,
        tls="TLSv1.3",
        auth="",
        seconds=0.0123,
        message_id="<1@copier>",
    )
    maillog.refused(
        client="192.168.1.9", device="", reply=Reply(550, "5.7.1", "no"), reason="not in networks"
    )
    maillog.relayed(
        queue_id="0A1", to="ann@office.example", next_hop="isp", reply=TAKEN, attempt=1, delay_seconds=0.44
    )
    maillog.deferred(
        queue_id="0A1",
        to="bob@office.example",
        next_hop="isp",
        reply=Reply(451, "4.7.1", "later"),
        next_attempt_at=1_700_000_000.0,
    )
    maillog.failed(queue_id="0A1", to="bob@office.example", next_hop="isp", reply="550 no", dsn="0A1-f2-1")
    maillog.paused(next_hop="isp", reason="535 5.7.8 bad password", until=None)
    maillog.resumed(next_hop="isp")
    maillog.held(queue_id="0A1", reason="runaway")
    maillog.released(queue_id="0A1")
    maillog.deleted(queue_id="0A1", reason="admin")
    maillog.corrupt(queue_id="0A2", reason="no envelope record")
    maillog.alert(reason="100 messages in an hour", device="camera")
    maillog.legacy(device="copier-2f", what="TLSv1")
    maillog.notice("ready")
    maillog.error("a defect")


EVERY_EVENT = """\
accepted queue_id=0A1 client=192.168.1.23 device=copier-2f from=<> to=ann@office.example,bob@office.example \
size=2345 tls=TLSv1.3 auth= seconds=0.012 message_id=<1@copier>
refused client=192.168.1.9 device= reply="550 5.7.1 no" reason="not in networks"
relayed queue_id=0A1 to=ann@office.example next_hop=isp reply="250 2.0.0 queued as 4F2 at the other side" \
attempt=1 delay=0.4
deferred queue_id=0A1 to=bob@office.example next_hop=isp reply="451 4.7.1 later" \
next_attempt=2023-11-14T22:13:20Z
failed queue_id=0A1 to=bob@office.example next_hop=isp reply="550 no" dsn=0A1-f2-1
paused next_hop=isp reason="535 5.7.8 bad password" until=
resumed next_hop=isp
held queue_id=0A1 reason=runaway
released queue_id=0A1
deleted queue_id=0A1 reason=admin
corrupt queue_id=0A2 reason="no envelope record"
alert reason="100 messages in an hour" device=camera
legacy device=copier-2f what=TLSv1
notice text=ready
error text="a defect"
"""


def test_every_event_is_worded_as_documented(directory: Path) -> None:
    log_every_event()
    assert [without_time(line) for line in lines(directory)] == EVERY_EVENT.splitlines()


def test_every_event_and_key_stands_in_the_reference() -> None:
    reference = (Path(__file__).parents[2] / "docs" / "mail-log.md").read_text("utf-8")
    for line in EVERY_EVENT.splitlines():
        event = maillog.parse_line(line)
        assert event is not None
        assert f"`{event['event']}`" in reference
        for key in event.keys() - {"event"}:
            assert f"`{key}`" in reference, (event["event"], key)


def test_a_line_in_the_file_begins_with_its_time_in_utc(directory: Path) -> None:
    before = time.time()
    maillog.notice("ready")
    event = maillog.parse_line(lines(directory)[0])
    assert event is not None
    assert maillog.rfc3339(before)[:19] <= event["time"][:19] <= maillog.rfc3339(time.time())[:19]
    assert event["time"].endswith("Z")


@given(TEXTS, TEXTS, TEXTS)
def test_what_is_written_is_read_back_and_is_one_line(client: str, reply: str, reason: str) -> None:
    written: list[str] = []
    sink = maillog._sink
    original, sink.write = sink.write, written.extend  # type: ignore[method-assign,assignment]
    try:
        maillog.refused(client=client, device="", reply=reply, reason=reason)
    finally:
        sink.write = original  # type: ignore[method-assign]
    (line,) = written
    assert line.isprintable()
    line.encode("utf-8")
    assert maillog.parse_line(line) == {
        "event": "refused",
        "client": client,
        "device": "",
        "reply": reply,
        "reason": reason,
    }


@given(st.text())
def test_reading_back_takes_any_line(line: str) -> None:
    event = maillog.parse_line(line)
    assert event is None or "event" in event


def test_readable_text_of_other_scripts_stays_readable(directory: Path) -> None:
    maillog.held(queue_id="0A1", reason="受信拒否")
    assert without_time(lines(directory)[0]) == "held queue_id=0A1 reason=受信拒否"


def test_a_line_is_bounded(directory: Path) -> None:
    maillog.refused(client="x" * 100_000, device="", reply="\x00" * 100_000, reason="")
    maillog.accepted(
        queue_id="0A1",
        client="",
        device="",
        reverse_path="a" * 300 + "@b.example",
        to=["a" * 300 + "@b.example"] * 1000,
        size_bytes=1,
        tls="",
        auth="",
        seconds=0,
    )
    assert max(map(len, lines(directory))) < 48 * 1024  # journald's LineMax
    assert all(maillog.parse_line(line) for line in lines(directory))


def test_an_exception_is_logged_line_by_line(directory: Path) -> None:
    try:
        raise ValueError("one\naccepted queue_id=FORGED")
    except ValueError as problem:
        maillog.error("a defect", problem)
    events = [maillog.parse_line(line) for line in lines(directory)]
    assert {event["event"] for event in events if event} == {"error", "traceback"}
    assert any("ValueError: one" in event["line"] for event in events if event and "line" in event)


# ── gathering ────────────────────────────────────────────────────────────────────────────────────


def test_lines_of_one_turn_of_the_loop_are_one_write(directory: Path) -> None:
    async def turn() -> tuple[list[str], list[str]]:
        maillog.notice("one")
        maillog.notice("two")
        at_once = lines(directory)
        await asyncio.sleep(0)
        return at_once, lines(directory)

    at_once, later = asyncio.run(turn())
    assert at_once == []
    assert [without_time(line) for line in later] == ["notice text=one", "notice text=two"]
    assert len({line.split(" ")[0] for line in later}) == 1  # one time: one write


def test_other_threads_write_for_themselves(directory: Path) -> None:
    async def turn() -> None:
        maillog.notice("of the loop")
        await asyncio.to_thread(maillog.notice, "of a thread")

    asyncio.run(turn())
    assert sorted(map(without_time, lines(directory))) == [
        'notice text="of a thread"',
        'notice text="of the loop"',
    ]


def test_closing_writes_what_is_gathered(tmp_path: Path) -> None:
    async def turn() -> None:
        maillog.open_log(tmp_path / "log", Log(), stderr=False)
        maillog.notice("last words")
        maillog.close_log()

    asyncio.run(turn())
    assert [without_time(line) for line in lines(tmp_path / "log")] == ['notice text="last words"']


def test_nothing_happens_nothing_is_written(tmp_path: Path) -> None:
    maillog.open_log(tmp_path / "log", Log(), stderr=False)
    maillog.close_log()
    assert not (tmp_path / "log").exists()


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def at(monkeypatch: pytest.MonkeyPatch, day: str) -> None:
    seconds = time.mktime(time.strptime(f"{day} 12:00:00 +0000", "%Y-%m-%d %H:%M:%S %z")) - time.timezone
    monkeypatch.setattr(time, "time", lambda: seconds)


def test_a_new_day_is_a_new_file(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in ("2026-03-01", "2026-03-02"):
        at(monkeypatch, day)
        maillog.notice(day)
    assert [path.name for path in maillog.log_files(directory)] == [
        "mail-2026-03-01.log",
        "mail-2026-03-02.log",
    ]


@pytest.mark.parametrize(("clock_is_right", "kept"), [(True, ["2026-03-30", "2026-04-15"]), (False, None)])
def test_retention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock_is_right: bool, kept: list[str] | None
) -> None:
    days = ["2026-03-01", "2026-03-30", "2026-04-15"]
    log = Log(retention_seconds=30 * 86400)
    maillog.open_log(tmp_path, log, stderr=False, clock_is_right=lambda: clock_is_right)
    for day in days:
        at(monkeypatch, day)
        maillog.notice("x")
    maillog.close_log()
    assert [maillog.file_day(path) for path in maillog.log_files(tmp_path)] == (kept or days)


def test_all_files_together_stay_within_size_max(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maillog.open_log(tmp_path, Log(size_max_bytes=40_000), stderr=False)
    for day in ("2026-03-01", "2026-03-02"):
        at(monkeypatch, day)
        for number in range(1000):
            maillog.notice(f"line {number:04} of {day}" + "x" * 50)
    maillog.close_log()
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 20_000 < total <= 41_000
    assert "line 0999 of 2026-03-02" in lines(tmp_path)[-1]


def test_files_are_closed_to_others(directory: Path) -> None:
    maillog.notice("x")
    (path,) = maillog.log_files(directory)
    assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0


def test_a_new_line_begins_after_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / f"mail-{time.strftime('%Y-%m-%d', time.gmtime())}.log"
    path.write_text("2026-03-01T00:00:00.000Z relayed queue_id=0A1 to=ann@off")
    maillog.open_log(tmp_path, Log(), stderr=False)
    maillog.notice("ready")
    maillog.close_log()
    assert without_time(path.read_text().splitlines()[-1]) == "notice text=ready"


def test_a_log_that_cannot_be_written_is_said_once_and_mended_later(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").write_text("in the way")
    maillog.open_log(tmp_path / "log", Log(), stderr=True)
    maillog.notice("one")
    maillog.notice("two")
    (tmp_path / "log").unlink()
    maillog.notice("three")
    maillog.close_log()
    said = capfd.readouterr().err
    assert said.count("the mail log cannot be written") == 1
    assert [line for line in said.splitlines() if line.startswith("notice")] == [
        "notice text=one",
        "notice text=two",
        "notice text=three",
    ]
    assert [without_time(line) for line in lines(tmp_path / "log")] == ["notice text=three"]


def test_a_full_disk_is_no_exception(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(maillog._Sink, "_open", lambda sink, *_: sink.__dict__.update(_descriptor=full()))
    maillog.open_log(Path("/nowhere"), Log(), stderr=False)
    maillog.notice("lost")
    maillog.close_log()
    assert "No space left" in capfd.readouterr().err


def full() -> int:
    return os.open("/dev/full", os.O_WRONLY)


# ── hashed addresses ─────────────────────────────────────────────────────────────────────────────


def log_hashed(state: Path) -> list[str]:
    maillog.open_log(state / "log", Log(addresses="hashed"), stderr=False)
    maillog.relayed(
        queue_id="0A1",
        to="Ann@office.example",
        next_hop="isp",
        reply=Reply(250, "2.1.5", "<ann@office.example> ok"),
        attempt=1,
        delay_seconds=0,
    )
    maillog.close_log()
    return lines(state / "log")


def test_hashed_addresses_keep_the_domain_and_stay_the_same(tmp_path: Path) -> None:
    first, second = log_hashed(tmp_path)[-1], log_hashed(tmp_path)[-1]
    assert "ann@" not in first.lower()
    event = maillog.parse_line(first)
    assert event is not None
    local_part, _, domain = event["to"].partition("@")
    assert domain == "office.example"
    assert f"<{local_part}@office.example> ok" in event["reply"]
    assert without_time(first) == without_time(second)


def test_another_box_hashes_otherwise(tmp_path: Path) -> None:
    assert without_time(log_hashed(tmp_path / "a")[0]) != without_time(log_hashed(tmp_path / "b")[0])


def test_the_key_of_the_hashes_is_closed_to_others(tmp_path: Path) -> None:
    log_hashed(tmp_path)
    assert stat.S_IMODE((tmp_path / maillog.SALT_FILE).stat().st_mode) == 0o600
