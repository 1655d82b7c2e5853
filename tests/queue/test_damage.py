"""What is damaged is moved aside, counted and named; everything else goes on."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pi_relay import maillog
from pi_relay.model import Envelope
from pi_relay.queue import files
from pi_relay.queue.envelopes import encode
from pi_relay.queue.files import Damaged, last_record
from pi_relay.queue.store import CorruptMessage, Store, read_message, survey
from tests.support.stored_messages import bytes_of, content, envelope_for, new_store, submit, with_relayed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "queue"


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the mail log is told of damages: {queue id: reason}."""
    told: dict[str, str] = {}

    def corrupt(*, queue_id: str, reason: str) -> None:
        assert queue_id not in told, "told twice"
        told[queue_id] = reason

    monkeypatch.setattr(maillog, "corrupt", corrupt)
    return told


async def filled(folder: Path, sizes: tuple[int, ...] = (2000, 3000, 300_000)) -> list[Envelope]:
    """A queue of files, closed."""
    store = new_store(folder)
    await store.open()
    sent = [await submit(store, size_bytes, f"word-{n}") for n, size_bytes in enumerate(sizes)]
    await store.close()
    return sent


async def reopened(folder: Path) -> Store:
    store = new_store(folder)
    await store.open()
    return store


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:100],
        lambda data: data[:-1],
        lambda data: data[:-30] + b"\xff" + data[-29:],
        lambda data: bytes(len(data)),
    ],
    ids=["empty", "cut", "short", "flipped", "zeros"],
)
def test_a_file_without_a_readable_end_is_moved_aside_at_start(
    folder: Path, logged: dict[str, str], damage: object
) -> None:
    async def check() -> None:
        sent = await filled(folder)
        path = folder / sent[1].queue_id
        wrong = damage(path.read_bytes())  # type: ignore[operator]
        path.write_bytes(wrong)
        [named] = [message for message in survey(folder) if message.envelope is None]
        assert named.queue_id == sent[1].queue_id
        assert named.corrupt
        store = await reopened(folder)
        assert sorted(store.entries) == [sent[0].queue_id, sent[2].queue_id]
        assert list(logged) == [sent[1].queue_id]
        assert store.usage().corrupt == 1
        assert not path.exists()
        assert (folder / "corrupt" / sent[1].queue_id).read_bytes() == wrong
        fresh = await submit(store)
        assert fresh.queue_id > max(envelope.queue_id for envelope in sent)
        await store.close()
        (folder / "corrupt" / sent[1].queue_id).unlink()
        store = await reopened(folder)
        assert store.usage().corrupt == 0
        await store.close()

    asyncio.run(check())


@pytest.mark.parametrize("which", [0, 2], ids=["small", "large"])
def test_a_damaged_body_is_found_out_before_it_is_sent(
    folder: Path, logged: dict[str, str], which: int
) -> None:
    async def check() -> None:
        sent = await filled(folder)
        path = folder / sent[which].queue_id
        with path.open("r+b") as file:
            file.seek(1500)
            file.write(b"\x00")
        store = await reopened(folder)
        assert len(store.entries) == 3
        with pytest.raises(CorruptMessage):
            await store.load(sent[which].queue_id)
        assert (list(logged), store.usage().corrupt) == ([sent[which].queue_id], 1)
        assert sent[which].queue_id not in store.entries
        assert (folder / "corrupt" / sent[which].queue_id).exists()
        with pytest.raises(KeyError):
            await store.load(sent[which].queue_id)
        assert bytes_of((await store.load(sent[1].queue_id))[1]) == b"".join(content(3000, "word-1"))
        await store.close()

    asyncio.run(check())


def test_a_message_damaged_in_the_journal(
    folder: Path, logged: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pi_relay.queue.store.KEPT_MEMORY_MAX_BYTES", 0)

    async def check() -> None:
        store = await reopened(folder)
        sent = [await submit(store, 3000, f"word-{n}") for n in range(3)]
        at = (folder / "journal").read_bytes().index(b"word-1 ===")
        with (folder / "journal").open("r+b") as file:
            file.seek(at + 100)
            file.write(b"#")
        with pytest.raises(CorruptMessage):
            await store.load(sent[1].queue_id)
        assert list(logged) == [sent[1].queue_id]
        assert b"word-1" in (folder / "corrupt" / sent[1].queue_id).read_bytes()
        for n in (0, 2):
            assert bytes_of((await store.load(sent[n].queue_id))[1]) == b"".join(content(3000, f"word-{n}"))
        await store.close()
        store = await reopened(folder)
        assert sorted(store.entries) == [sent[0].queue_id, sent[2].queue_id]
        await store.close()

    asyncio.run(check())


def test_damaged_while_it_waits_to_move(
    folder: Path, logged: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pi_relay.queue.store.KEPT_MEMORY_MAX_BYTES", 0)

    async def check() -> None:
        store = await reopened(folder)
        sent = [await submit(store, 3000, f"word-{n}") for n in range(3)]
        at = (folder / "journal").read_bytes().index(b"word-1 ===")
        with (folder / "journal").open("r+b") as file:
            file.seek(at + 100)
            file.write(b"#")
        with pytest.raises(KeyError):
            await store.settle(replace(sent[1], attempts=1), durable=True)
        await store.settle(replace(sent[0], attempts=1), durable=True)
        assert list(logged) == [sent[1].queue_id]
        await store.close()
        assert read_message(folder, sent[0].queue_id)[0].attempts == 1

    asyncio.run(check())


def test_a_damaged_batch_is_kept_once_and_the_rest_goes_on(folder: Path, logged: dict[str, str]) -> None:
    async def check() -> None:
        store = await reopened(folder)
        sent = [await submit(store, 3000, f"word-{n}") for n in range(3)]
        image = bytearray((folder / "journal").read_bytes())
        await store.close()
        for envelope in sent:
            (folder / envelope.queue_id).unlink()
        at = image.index(b"word-1 ===")
        image[at] ^= 1
        (folder / "journal").write_bytes(image)
        store = await reopened(folder)
        assert sorted(store.entries) == [sent[0].queue_id, sent[2].queue_id]
        [name] = logged
        assert name.startswith("journal-")
        assert bytes(image[at : at + 500]) in (folder / "corrupt" / name).read_bytes()
        await store.close()
        logged.clear()
        store = await reopened(folder)
        assert not logged
        assert store.usage().corrupt == 1
        await store.close()

    asyncio.run(check())


@pytest.mark.parametrize("size_bytes", [0, 100, 5000, 70_000])
def test_a_journal_cut_short_by_hand(folder: Path, logged: dict[str, str], size_bytes: int) -> None:
    async def check() -> None:
        sent = await filled(folder)
        with (folder / "journal").open("r+b") as file:
            file.truncate(size_bytes)
        store = await reopened(folder)
        assert sorted(store.entries) == [envelope.queue_id for envelope in sent]
        assert (await submit(store)).queue_id > sent[-1].queue_id
        await store.close()

    asyncio.run(check())


def test_a_file_under_a_wrong_name_and_one_that_vanishes(folder: Path, logged: dict[str, str]) -> None:
    async def check() -> None:
        sent = await filled(folder)
        (folder / sent[0].queue_id).rename(folder / "0000000009")
        store = await reopened(folder)
        assert list(logged) == ["0000000009"]
        (folder / sent[1].queue_id).unlink()
        with pytest.raises(CorruptMessage, match="vanished"):
            await store.load(sent[1].queue_id)
        (folder / sent[2].queue_id).unlink()
        with pytest.raises(KeyError):
            await store.settle(replace(sent[2], attempts=1), durable=True)
        assert (store.usage().messages, store.usage().broken) == (0, "")
        await submit(store)
        await store.close()

    asyncio.run(check())


def test_reading_names_what_is_wrong_and_knows_what_is_unknown(folder: Path) -> None:
    async def check() -> None:
        sent = await filled(folder)
        assert read_message(folder, sent[2].queue_id)[1] == b"".join(content(300_000, "word-2"))
        with (folder / sent[0].queue_id).open("r+b") as file:
            file.write(b"XX")
        with pytest.raises(CorruptMessage):
            read_message(folder, sent[0].queue_id)
        for unknown in ("0000000000", "../journal", "journal", ""):
            with pytest.raises(KeyError):
                read_message(folder, unknown)
        assert survey(folder / "nothing") == []

    asyncio.run(check())


# -- one file, any damage

HEADER, BODY = content(700, "one")
ENVELOPE = envelope_for("0000000001", HEADER, BODY, ("a@x.example", "b@x.example"))
STATES = (ENVELOPE, with_relayed(ENVELOPE, 0), with_relayed(with_relayed(ENVELOPE, 0), 1))


def file_of(states: tuple[Envelope, ...]) -> bytes:
    crc = files.zlib.crc32(HEADER + BODY)
    return HEADER + BODY + b"".join(files.record(encode(state), crc) for state in states)


WHOLE = file_of(STATES)


def test_the_last_good_record_counts_wherever_an_append_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "0000000001"
    ends = [len(file_of(STATES[: n + 1])) for n in range(3)]
    for cut in range(ends[0], len(WHOLE) + 1):
        path.write_bytes(WHOLE[:cut])
        last = max(n for n in range(3) if ends[n] <= cut)
        assert files.read_message(str(path), check=True)[0] == STATES[last]
    path.write_bytes(WHOLE[: ends[1] + 50] + file_of(STATES)[ends[1] :])
    assert files.read_message(str(path), check=True)[0] == STATES[2], "an append behind a cut one"
    path.write_bytes(WHOLE[: ends[1]] + bytes(9000))
    assert files.read_message(str(path), check=True)[0] == STATES[1], "zeros behind"


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(1, 255)), max_size=5),
    cut=st.integers(0, len(WHOLE)),
    tail=st.binary(max_size=100),
)
@example(flips=[], cut=0, tail=b"")
@example(flips=[], cut=len(WHOLE), tail=files.MAGIC)
@example(flips=[], cut=0, tail=struct.pack(">III8s", 0xFFFFFFFF, 0, 0, files.MAGIC))
def test_a_damaged_file_is_read_right_or_not_at_all(
    tmp_path: Path, flips: list[tuple[int, int]], cut: int, tail: bytes
) -> None:
    data = bytearray(WHOLE)
    for offset, mask in flips:
        data[offset] ^= mask
    path = tmp_path / "0000000001"
    path.write_bytes(data[:cut] + tail)
    try:
        envelope, message = files.read_message(str(path), check=True)
    except Damaged:
        pass
    else:
        assert envelope in STATES
        assert bytes_of(message) == HEADER + BODY


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_no_bytes_are_taken_for_a_record(data: bytes) -> None:
    assert last_record(data + files.MAGIC) is None


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.binary(min_size=1, max_size=40), at=st.floats(0, 1), cut=st.booleans())
def test_damage_to_one_file_never_touches_the_others(
    tmp_path_factory: pytest.TempPathFactory, damage: bytes, at: float, cut: bool
) -> None:
    folder = tmp_path_factory.mktemp("damage") / "queue"

    async def check() -> None:
        sent = await filled(folder, (900, 1000, 1100))
        path = folder / sent[1].queue_id
        data = path.read_bytes()
        offset = int(at * len(data))
        path.write_bytes(data[:offset] + damage + (b"" if cut else data[offset + len(damage) :]))
        store = await reopened(folder)
        for n in (0, 2):
            found, message = await store.load(sent[n].queue_id)
            assert found == sent[n]
            assert bytes_of(message) == b"".join(content((900, 1000, 1100)[n], f"word-{n}"))
        if sent[1].queue_id in store.entries:
            try:
                assert (await store.load(sent[1].queue_id))[0] == sent[1]
            except CorruptMessage:
                assert store.usage().corrupt == 1
        assert store.usage().corrupt == len(list((folder / "corrupt").iterdir()))
        await store.close()

    asyncio.run(check())
