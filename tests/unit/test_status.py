"""What health says of the ways out: plain data in, words out."""

from __future__ import annotations

import pytest

from pi_relay.status import (
    DOMAINS_NAMED_MAX,
    HopStatus,
    Observation,
    QueueStatus,
    degraded_reasons,
    document,
    failing_reasons,
)

GB = 1_000_000_000
ISP = HopStatus("isp", "ok", 1.0)
ISP_DOWN = HopStatus("isp", "paused", None, "421 4.4.1 cannot connect", 2.0)
DIRECT = HopStatus("direct", "unknown")


def domain(name: str) -> HopStatus:
    return HopStatus(f"direct:{name}", "paused", None, "421 4.4.1 cannot connect", 2.0)


def seen(*hops: HopStatus) -> Observation:
    queue = QueueStatus(0, 0, 0, 0, 0, 4 * GB, 10 * GB, GB, "")
    return Observation("1", 1, 1, 1, True, False, 0, 100, queue, {}, hops, ())


@pytest.mark.parametrize(
    ("hops", "health"),
    [
        ((), "failing"),
        ((ISP,), "ok"),
        ((ISP_DOWN,), "failing"),
        ((ISP, ISP_DOWN), "degraded"),
        ((DIRECT,), "ok"),
        ((ISP_DOWN, DIRECT), "degraded"),
        ((DIRECT, domain("dead.example")), "degraded"),
        ((ISP_DOWN, DIRECT, domain("dead.example")), "degraded"),
    ],
)
def test_health_by_the_ways_out(hops: tuple[HopStatus, ...], health: str) -> None:
    assert document(seen(*hops))["health"] == health


def test_direct_is_a_way_out() -> None:
    assert failing_reasons(seen(DIRECT)) == []
    assert failing_reasons(seen()) == ["there is no smart host: mail has nowhere to go"]


def test_a_few_domains_are_named_and_the_others_counted() -> None:
    domains = [domain(f"d{number}.example") for number in range(DOMAINS_NAMED_MAX + 3)]
    reasons = degraded_reasons(seen(DIRECT, *domains))
    assert reasons[0] == "direct:d0.example is paused: 421 4.4.1 cannot connect"
    assert len(reasons) == DOMAINS_NAMED_MAX + 1 and reasons[-1] == "3 more domains are paused"
