"""Everything in here boots machines: it is slow, needs root, and says why where it cannot run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.systemd_machine import why_not
from tests.systemd.box import Box


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Callable[..., Box]]:
    """Makes boxes of the options given; they are booted, and switched off at the end."""
    if reason := why_not():
        pytest.skip(reason)
    made: list[Box] = []

    def boot(**options: str) -> Box:
        made.append(Box(tmp_path / f"box{len(made)}", **options))
        made[-1].boot()
        return made[-1]

    yield boot
    for each in made:
        each.cut_power()
