"""What is old is said once a day, of each device and each kind."""

from __future__ import annotations

import pytest

from pi_relay import maillog
from pi_relay.submission.legacy import AUTH_IN_CLEAR, DAY_SECONDS, Uses


def test_once_a_day_of_each_device_and_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, str]] = []
    monkeypatch.setattr(maillog, "legacy", lambda *, device, what: said.append((device, what)))
    uses, morning = Uses(), 20_000.0 * DAY_SECONDS + 60
    for hour in range(24):
        for device in ("copier", "fax"):
            uses.note(device, "TLSv1", morning + 3600 * hour - 1)
    uses.note("fax", AUTH_IN_CLEAR, morning)
    assert said == [("copier", "TLSv1"), ("fax", "TLSv1"), ("fax", AUTH_IN_CLEAR)]
    said.clear()
    uses.note("fax", "TLSv1", morning + DAY_SECONDS)
    assert said == [("fax", "TLSv1")]
