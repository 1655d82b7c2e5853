"""Rooms that tests of this folder share, and the certificates of their TLS."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pi_relay.config import Config
from tests.support.certificates import Authority
from tests.support.submission_room import Room, configuration


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def server_context(authority: Authority) -> ssl.SSLContext:
    context = authority.leaf().server_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@pytest.fixture(scope="session")
def client_context(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.certificate))


@pytest.fixture
def open_room(tmp_path: Path, server_context: ssl.SSLContext) -> Iterator[Callable[..., Room]]:
    """``open_room(config)``: a room that is closed, and judged, when the test is over."""
    with ExitStack() as rooms:

        def opened(config: Config | None = None, **more: Any) -> Room:
            config = config or configuration(tmp_path)
            return rooms.enter_context(
                Room(config, log_directory=tmp_path / "log", context=server_context, **more)
            )

        yield opened
