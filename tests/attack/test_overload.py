"""Too many, too much, too slow: refused in good order, while known devices are served and promises kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.attack.conftest import Office
from tests.support.attacks import ATTACKS, Attack

OpenOffice = Callable[..., Office]


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_a_device_is_served_during_an_attack(name: str, open_office: OpenOffice) -> None:
    office = open_office()
    before_bytes = office.rss_bytes()
    with Attack(name, office.port) as attack:
        office.serves_the_device()
        grown_bytes = office.rss_bytes() - before_bytes
    office.serves_everybody_again()
    office.keeps_its_promises(attack.promised)
    office.has_no_tracebacks()
    assert grown_bytes < 64_000_000
    print(name, attack.heard, len(attack.promised), grown_bytes)
