"""What a client may send in an hour: over it held, far over it refused, by device and by address."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pi_relay import maillog
from pi_relay.config import Config, Device, Listener
from pi_relay.quotas import HOUR, Quotas
from pi_relay.submission.limits import CLIENTS_MAX, RUNAWAY, Account, Limits
from tests.support.processes import free_port
from tests.support.submission_room import DEVICES, PASSWORD, SUBMISSION, Client, Room, configuration

OpenRoom = Callable[..., Room]
CONTENT = b"Subject: a scan\r\n\r\nx\r\n.\r\n"
FAR_OVER = "450 4.7.1 "
THREE_AN_HOUR = replace(SUBMISSION, messages_per_hour_max=3)
CAMERA = Device("camera", address="192.168.1.7", messages_per_hour_max=2)
COPIER = Device("copier", address="192.168.1.8", recipients_per_hour_max=5)


def send(client: Client, *to: str) -> str:
    """The reply that decides: to MAIL where it is refused, else to the end of the data."""
    reply = client.ask("MAIL FROM:<a@office.example>")
    if not reply.startswith("250 "):
        return reply
    for each in to or ("b@far.example",):
        client.ask(f"RCPT TO:<{each}>")
    if not client.ask("DATA").startswith("354 "):
        return client.ask("RSET")
    client.send(CONTENT)
    return client.reply()


def send_many(client: Client, count: int) -> list[str]:
    return [send(client)[:3] for _ in range(count)]


def held(room: Room) -> list[str]:
    return [envelope.held for envelope, _ in room.queued]


def proxied(directory: Path, **more: object) -> Config:
    """Clients come from wherever they say."""
    listener = Listener("127.0.0.1", free_port(), networks=("0.0.0.0/0", "::/0"), proxy_protocol=True)
    submission = replace(THREE_AN_HOUR, networks=("0.0.0.0/0", "::/0"))
    return configuration(directory, listener, **{"submission": submission, **more})  # type: ignore[arg-type]


def log_of(directory: Path) -> list[str]:
    return [line for file in maillog.log_files(directory / "log") for line in file.read_text().splitlines()]


# ── in the dialogue ──────────────────────────────────────────────────────────────────────────────


def test_over_the_limit_mail_is_accepted_and_held_and_far_over_it_refused(
    open_room: OpenRoom, tmp_path: Path
) -> None:
    room = open_room(configuration(tmp_path, submission=THREE_AN_HOUR))
    with room.client().greeted() as client:
        assert send_many(client, 9) == ["250"] * 9
        assert send(client).startswith(FAR_OVER)
        assert send(client).startswith(FAR_OVER)
    assert held(room) == [""] * 3 + [RUNAWAY] * 6
    assert room.open == 0, "no place was reserved for what was refused"
    assert room.server.troubles() == ["127.0.0.1 is over its limit of 3 messages an hour: its mail is held"]
    log = log_of(tmp_path)
    alerts = [line.partition("alert ")[2] for line in log if " alert " in line]
    assert alerts == [
        'reason="over its limit of 3 messages an hour, its mail is held" device=127.0.0.1',
        'reason="far over its limit of 3 messages an hour, its mail is refused (5 held since the last alert)"'
        " device=127.0.0.1",
    ]
    assert sum("held queue_id=" in line and "reason=runaway" in line for line in log) == 6


def test_each_address_has_its_own_limit_and_each_ipv6_network(open_room: OpenRoom, tmp_path: Path) -> None:
    room = open_room(proxied(tmp_path))
    sources = ["192.168.1.1", "192.168.1.2", "fd00::1", "fd00::2", "fd00:0:0:1::1"]
    for source in sources:
        with room.client(source=source).greeted() as client:
            assert send_many(client, 3) == ["250"] * 3
    assert held(room) == [""] * 9 + [RUNAWAY] * 3 + [""] * 3, "fd00::1 and fd00::2 are one machine"


def test_a_known_device_has_no_limit_but_its_own(open_room: OpenRoom, tmp_path: Path) -> None:
    devices = (CAMERA, Device("scanner", address="192.168.1.9"))
    room = open_room(proxied(tmp_path, devices=devices))
    with room.client(source="192.168.1.9").greeted() as scanner:
        assert send_many(scanner, 20) == ["250"] * 20
    assert held(room) == [""] * 20
    with room.client(source="192.168.1.7").greeted() as camera:
        assert send_many(camera, 7) == ["250"] * 6 + ["450"]
    assert held(room)[20:] == ["", ""] + [RUNAWAY] * 4
    assert {envelope.device for envelope, _ in room.queued[20:]} == {"camera"}
    assert any("alert " in line and "device=camera" in line for line in log_of(tmp_path))


def test_a_device_that_signs_in_is_counted_by_its_name(
    open_room: OpenRoom, tmp_path: Path, client_context: object
) -> None:
    device = replace(DEVICES[0], messages_per_hour_max=1)
    room = open_room(configuration(tmp_path, submission=THREE_AN_HOUR, devices=(device,)))
    secret = base64.b64encode(f"\0scanner\0{PASSWORD}".encode()).decode()
    for _ in range(2):
        with room.client().greeted() as client:
            client.ask("STARTTLS")
            client.start_tls(client_context)  # type: ignore[arg-type]
            client.ask("EHLO device")
            assert client.ask(f"AUTH PLAIN {secret}").startswith("235 ")
            assert send(client).startswith("250 ")
    with room.client().greeted() as client:
        assert send(client).startswith("250 ")
    assert held(room) == ["", RUNAWAY, ""]


def test_recipients_are_limited_across_messages_and_within_one(open_room: OpenRoom, tmp_path: Path) -> None:
    submission = replace(SUBMISSION, recipients_max=100, networks=("0.0.0.0/0",))
    room = open_room(proxied(tmp_path, devices=(COPIER,), submission=submission))
    with room.client(source="192.168.1.8").greeted() as copier:
        assert send(copier, *(f"{n}@far.example" for n in range(5))).startswith("250 ")
        assert send(copier, "one@far.example").startswith("250 ")
        copier.ask("MAIL FROM:<a@office.example>")
        replies = [copier.ask(f"RCPT TO:<{n}@far.example>") for n in range(12)]
        assert [reply[:3] for reply in replies] == ["250"] * 9 + ["450"] * 3
        assert copier.ask("DATA").startswith("354 ")
        copier.send(CONTENT)
        assert copier.reply().startswith("250 ")
        assert send(copier).startswith(FAR_OVER), "at MAIL, before anything was sent"
    assert held(room) == ["", RUNAWAY, RUNAWAY]
    assert [len(envelope.recipients) for envelope, _ in room.queued] == [5, 1, 9]


def test_many_at_once_get_no_more_out_than_one_after_the_other(open_room: OpenRoom, tmp_path: Path) -> None:
    room = open_room(configuration(tmp_path, submission=THREE_AN_HOUR))
    clients = [room.client().greeted() for _ in range(20)]
    for client in clients:
        client.ask("MAIL FROM:<a@office.example>", "RCPT TO:<b@far.example>", "DATA")
    for client in clients:
        client.send(CONTENT)
    for client in clients:
        assert client.reply().startswith("250 ")
        client.close()
    assert sorted(held(room)) == [""] * 3 + [RUNAWAY] * 17


@pytest.mark.parametrize("stage", ["begin", "write", "commit"])
def test_what_the_queue_refused_is_not_counted(stage: str, open_room: OpenRoom, tmp_path: Path) -> None:
    room = open_room(configuration(tmp_path, submission=THREE_AN_HOUR))
    with room.client().greeted() as client:
        room.refuse_at = stage
        assert send_many(client, 10) == ["452"] * 10
        room.refuse_at = ""
        assert send_many(client, 3) == ["250"] * 3
    assert held(room) == [""] * 3


# ── the accounts ─────────────────────────────────────────────────────────────────────────────────


class Box:
    def __init__(self, directory: Path, maximum: int = 2) -> None:
        self.now = 1000.0
        self.config = configuration(directory, submission=replace(SUBMISSION, messages_per_hour_max=maximum))
        self.quotas = Quotas(monotonic=lambda: self.now)
        self.limits = Limits(self.quotas)

    def account(self, address: str = "192.168.1.1") -> Account:
        account = self.limits.account(self.config, None, address)
        assert account is not None
        return account


def test_an_hour_later_all_is_forgotten_and_nothing_is_told_twice_in_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alerts: list[str] = []
    monkeypatch.setattr(maillog, "alert", lambda *, reason, device: alerts.append(reason))
    box = Box(tmp_path, 2)
    assert [box.account().admit(1) for _ in range(3)] == ["", "", RUNAWAY]
    box.now += HOUR - 120
    assert box.account().admit(1) == RUNAWAY and len(alerts) == 1
    box.now += 300
    assert box.account().admit(1) == "" and not box.limits.troubles()
    assert box.account().admit(1) == RUNAWAY
    assert len(alerts) == 2 and "(2 held since the last alert)" in alerts[1]
    box.now += HOUR + 61
    assert box.account().refusal() is None


def test_a_changed_limit_counts_what_was_before(tmp_path: Path) -> None:
    box = Box(tmp_path, 2)
    assert [box.account().admit(1) for _ in range(2)] == ["", ""]
    box.config = replace(box.config, submission=replace(SUBMISSION, messages_per_hour_max=3))
    assert [box.account().admit(1) for _ in range(2)] == ["", RUNAWAY]
    box.config = replace(box.config, submission=replace(SUBMISSION, messages_per_hour_max=0))
    assert box.limits.account(box.config, None, "192.168.1.1") is None


def test_thousands_of_addresses_are_not_remembered_for_ever(tmp_path: Path) -> None:
    box = Box(tmp_path)
    for number in range(5 * CLIENTS_MAX):
        box.account(f"10.0.{number // 250}.{number % 250}").admit(1)
        box.account("10.9.9.9").admit(1)
    assert len(box.quotas.names("clients.")) == CLIENTS_MAX
    assert box.account("10.9.9.9").refusal(), "whoever goes on is not forgotten"
