"""What the journal has of the mail, and that an idle box writes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from pi_relay.journald import KINDS
from tests.support.processes import wait_until
from tests.systemd.box import CONFIGURATION, Box

MakeBox = Callable[..., Box]
IDLE_SECONDS = 40


def test_the_journal_finds_mail_by_its_fields(box: MakeBox) -> None:
    machine = box(configuration=CONFIGURATION + '[[devices]]\nname = "copier-2f"\naddress = "127.0.0.1"\n')
    new = machine.open_smart_host()
    first, second = machine.submit(2)
    wait_until(lambda: len(list(new.iterdir())) == 2, 20, "both at the smart host")

    entries = [
        json.loads(line)
        for line in machine.journal("--output=json", f"PI_RELAY_QUEUE_ID={first}").splitlines()
    ]
    assert [entry["PI_RELAY_EVENT"] for entry in entries] == ["accepted", "rewritten", "relayed"]
    assert entries[0]["MESSAGE"].startswith(f"accepted queue_id={first} client=127.0.0.1 device=copier-2f ")
    assert entries[0]["_SYSTEMD_UNIT"] == "pi-relay.service"
    assert entries[2]["PI_RELAY_NEXT_HOP"] == "isp"
    accepted = machine.journal(
        "--output=cat", f"MESSAGE_ID={KINDS['accepted'][0]}", "PI_RELAY_DEVICE=copier-2f"
    )
    assert [line.split()[1] for line in accepted.splitlines()] == [f"queue_id={first}", f"queue_id={second}"]
    assert "isp took it" in machine.relay("trace", first), "the daily files have it, too"


def test_an_idle_box_writes_nothing(box: MakeBox) -> None:
    machine = box(fault="wedged_loop")  # for its watchdog, which asks for signs all the time
    new = machine.open_smart_host()
    machine.submit(3)
    wait_until(lambda: len(list(new.iterdir())) == 3, 20, "the smart host")
    io = machine.root / f"proc/{machine.relay_pid}/io"
    time.sleep(15)  # until what the messages left behind has been written
    before = io.read_text()
    time.sleep(IDLE_SECONDS)
    written = ("wchar", "syscw", "write_bytes")
    assert [line for line in io.read_text().splitlines() if line.startswith(written)] == [
        line for line in before.splitlines() if line.startswith(written)
    ]
