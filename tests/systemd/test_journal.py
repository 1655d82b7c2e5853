"""What the journal has of the mail."""

from __future__ import annotations

import json
from collections.abc import Callable

from pi_relay.journald import KINDS
from tests.support.processes import wait_until
from tests.systemd.box import CONFIGURATION, Box

MakeBox = Callable[..., Box]


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
