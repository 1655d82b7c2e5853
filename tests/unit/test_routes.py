"""Ways out: which route takes a recipient, and how large a message they take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pi_relay.config import Config, Queue, Route, SmartHost, Submission
from pi_relay.model import Envelope, Recipient, RecipientStatus, WayOut
from pi_relay.patterns import matches
from pi_relay.routes import largest_message_size_bytes, too_large_for, via_for, ways_out

MB = 1_000_000
BASE = Config(hostname="relay.office.example", queue=Queue(Path("/nowhere")))


def with_routes(*routes: Route) -> Config:
    return replace(BASE, routes=routes)


@pytest.mark.parametrize(
    ("pattern", "value", "fits"),
    [
        ("*@office.example", "ann@office.example", True),
        ("*@office.example", "ann@OFFICE.Example", True),
        ("*@office.example", "ann@sub.office.example", False),
        ("*@office.example", "ann@office.example.evil", False),
        ("*@*.office.example", "ann@sub.office.example", True),
        ("ann@office.example", "ANN@office.example", True),
        ("*", "", True),
        ("*", "anything@at.all", True),
        ("a.n@office.example", "aXn@office.example", False),
        ("*@bücher.example", "ann@xn--bcher-kva.example", True),
        ("*@xn--bcher-kva.example", "ann@BÜCHER.example", True),
        ("scan-*", "scan-2f", True),
        ("scan-*", "copier", False),
        ("[ab]@x.example", "a@x.example", False),
    ],
)
def test_a_pattern_knows_one_wildcard_and_no_case(pattern: str, value: str, fits: bool) -> None:
    assert matches((pattern,), value) is fits
    assert matches(("nothing@else", pattern), value) is fits


def test_the_first_route_that_matches_wins() -> None:
    config = with_routes(
        Route(via=("office",), recipients=("*@office.example",)),
        Route(via=("isp", "office"), devices=("copier-*",)),
        Route(via=("isp",), senders=("*@office.example",)),
    )
    assert via_for(config, "x@y.example", "ann@office.example", "copier-2f") == ("office",)
    assert via_for(config, "x@y.example", "bob@far.example", "copier-2f") == ("isp", "office")
    assert via_for(config, "ann@office.example", "bob@far.example", "") == ("isp",)
    assert via_for(config, "x@y.example", "bob@far.example", "") == ()


def test_every_condition_of_a_route_must_hold() -> None:
    config = with_routes(Route(via=("isp",), recipients=("*@far.example",), devices=("copier",)))
    assert via_for(config, "", "a@far.example", "copier") == ("isp",)
    assert via_for(config, "", "a@far.example", "printer") == ()
    assert via_for(config, "", "a@near.example", "copier") == ()


def test_pending_recipients_are_grouped_by_their_way() -> None:
    config = with_routes(
        Route(via=("office",), recipients=("*@office.example",)),
        Route(via=("isp",), recipients=("*@far.example",)),
    )
    addresses = ("a@far.example", "b@office.example", "c@far.example", "d@nowhere.example", "e@far.example")
    recipients = [Recipient(address) for address in addresses]
    recipients[4] = replace(recipients[4], status=RecipientStatus.RELAYED)
    envelope = Envelope("A1", "s@office.example", tuple(recipients), 0.0)
    assert ways_out(config, envelope) == (
        WayOut((0, 2), ("isp",)),
        WayOut((1,), ("office",)),
        WayOut((3,), ()),
    )
    single = replace(envelope, recipients=(recipients[1],))
    assert ways_out(config, single) == (WayOut((0,), ("office",)),)
    done = replace(envelope, recipients=(recipients[4],))
    assert ways_out(config, done) == ()


@pytest.mark.parametrize(
    ("message_size_max", "hosts", "direct", "announced"),
    [
        (35 * MB, (20 * MB, 10 * MB), False, 20 * MB),
        (35 * MB, (50 * MB,), False, 35 * MB),
        (35 * MB, (20 * MB, 0), False, 35 * MB),
        (35 * MB, (20 * MB,), True, 35 * MB),
        (35 * MB, (), False, 35 * MB),
        (0, (20 * MB,), False, 20 * MB),
        (0, (0,), False, 0),
    ],
)
def test_the_size_announced(
    message_size_max: int, hosts: tuple[int, ...], direct: bool, announced: int
) -> None:
    config = replace(
        BASE,
        submission=Submission(message_size_max_bytes=message_size_max),
        smart_hosts=tuple(
            SmartHost(f"h{number}", "h.example", message_size_max_bytes=size)
            for number, size in enumerate(hosts)
        ),
        routes=(Route(via=("direct",)),) if direct else (),
    )
    assert largest_message_size_bytes(config) == announced


def test_too_large_only_if_every_host_of_the_way_is_too_small() -> None:
    config = replace(
        BASE,
        smart_hosts=(
            SmartHost("small", "s.example", message_size_max_bytes=10 * MB),
            SmartHost("large", "l.example", message_size_max_bytes=20 * MB),
            SmartHost("any", "a.example"),
        ),
    )
    assert too_large_for(config, ("small", "large"), 20 * MB + 1)
    assert not too_large_for(config, ("small", "large"), 20 * MB)
    assert not too_large_for(config, ("small", "any"), 100 * MB)
    assert not too_large_for(config, ("small", "direct"), 100 * MB)
    assert not too_large_for(config, (), 100 * MB)
