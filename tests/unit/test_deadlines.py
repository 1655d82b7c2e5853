from __future__ import annotations

from pi_relay.delivery.deadlines import Deadlines


def test_a_step_past_its_deadline_is_named() -> None:
    now = [0.0]
    deadlines = Deadlines(lambda: now[0])
    with deadlines.step("connecting", 10), deadlines.step("a delivery", 100):
        now[0] = 10.0
        assert deadlines.missed() == ""
        now[0] = 15.0
        assert deadlines.missed() == "connecting should have ended 5 s ago"
    assert deadlines.missed() == "", "it has ended after all"
